"""Time training and attacks on this machine, beside a plain PyTorch loop and Stable-Baselines3."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import chosen, command
from rlx.config import Count, Positive, build, load_class
from rlx.errors import ConfigError
from rlx.show import console

if TYPE_CHECKING:
    import torch

    from rlx.agent import Spec
    from rlx.benchmarks.own import Training


@dataclass(frozen=True)
class Config:
    """The keys of bench.yaml."""

    agent: Any
    """The agent: a file of conf/agent, with `_target_` and its settings."""
    env: Any
    """The env: a file of conf/env."""
    device: Any
    """Where rlx runs: a file of conf/device. Other programs run on the CPU, on one thread."""
    seeds: list[Count]
    """Numbers of seeds to train at once."""
    num_envs: Count
    """Env copies of each seed."""
    seconds: Positive
    """Seconds of each measurement, after a warm-up."""
    attack_batch: Count
    """Observations per seed that are attacked at once."""
    eval_env: Any = None
    """Keys of `env` for evaluation, which some envs bring along; this command does not use them."""


@command("bench")
def main(composed: DictConfig) -> float:
    """Returns the best ratio of rlx's speed to that of the plain loop."""
    config = build(Config, composed, "")

    from rlx import experiment

    device = experiment.setup_device(config.device)
    if chosen("env") == "car_racing":
        return _time_car_racing(config)
    spec = experiment.env_spec(config.env)
    if chosen("agent") == "efficientzero":
        return _time_efficientzero(config, spec, device)
    return _compare_with_peers(config, spec, device)


def _compare_with_peers(config: Config, spec: "Spec", device: "torch.device") -> float:
    """Print the speed of the same training in other programs and in rlx; returns the best ratio."""
    from rlx.agent import Agent
    from rlx.agents.dqn import DQN
    from rlx.agents.ppo import PPO
    from rlx.benchmarks import own, peers
    from rlx.benchmarks.timing import steps_per_s

    name = chosen("agent")
    kind: Any = load_class(config.agent, "agent", Agent)  # type: ignore[type-abstract]
    env_id = f"{config.env['_target_'].rpartition('.')[2]}-v1"  # Gymnasium's own, of the same name
    if kind not in (DQN, PPO) or env_id not in ("Acrobot-v1", "CartPole-v1"):
        raise ConfigError(
            "bench: compares agent=dqn, ppo or a2c on env=acrobot or cartpole, "
            "and env=car_racing with Gymnasium's; it times agent=efficientzero."
        )
    agent = build(kind.config_type, config.agent, "agent")
    threads = config.device["threads"]
    console.facts(
        agent=f"{name} on {env_id}, network {agent.hidden}",
        device=f"{device}, {threads} thread(s); the others on the CPU, one thread",
    )
    training = {}
    if kind is DQN:
        plain = peers.PlainDQN(agent, spec, env_id)
        label = "training, plain PyTorch loop, 1 env, 1 seed"
        training[label] = steps_per_s(plain.step, config.seconds)
    if importlib.util.find_spec("stable_baselines3"):
        sb3 = peers.StableBaselines3(name, agent, env_id, config.num_envs)
        label = f"training, SB3, 1 seed × {config.num_envs} env copies"
        training[label] = steps_per_s(sb3.step, config.seconds)
    for seeds in config.seeds:
        ours = _training(config, spec, seeds, device)
        label = f"training, rlx, {seeds} seed(s) × {config.num_envs} env copies"
        training[label] = steps_per_s(ours.step, config.seconds)
    rows = _with_ratios(training, "{:.2g}")
    if kind is DQN and env_id == "Acrobot-v1":
        seeds = max(config.seeds)
        single = peers.PlainAttack(spec)
        batched = own.TwoHeadedAttack(spec, seeds, config.attack_batch, device)
        attacks = {}
        label = "FGSM on two heads, plain loop, one observation at a time"
        attacks[label] = steps_per_s(single.step, config.seconds)
        label = f"FGSM on two heads, rlx, {seeds} seeds × {config.attack_batch:,} copies"
        attacks[label] = steps_per_s(batched.step, config.seconds)
        rows += _with_ratios(attacks, "{:.3g}")
    title = "Environment steps per second, summed over seeds"
    console.table(title, ["what", "steps/s", "ratio"], rows)
    return max(training.values()) / next(iter(training.values()))


def _training(config: Config, spec: "Spec", seeds: int, device: "torch.device") -> "Training":
    """The training of `seeds` seeds that is timed."""
    from rlx.benchmarks.own import Training

    return Training(
        config.agent, config.env, spec, seeds=seeds, num_envs=config.num_envs, device=device
    )


def _time_efficientzero(config: Config, spec: "Spec", device: "torch.device") -> float:
    """Print what EfficientZero spends its time on; returns learner steps per second."""
    from rlx.benchmarks.efficientzero import measure

    rows: list[list[Any]] = []
    for seeds in config.seeds:
        training = _training(config, spec, seeds, device)
        times = measure(training, config.agent["learning_starts"], config.seconds)
        rows.append(
            [
                str(seeds),
                times.learner_step,
                times.search,
                times.value_targets,
                times.training,
                times.act,
                times.steps_per_s,
            ]
        )
    threads = config.device["threads"]
    console.facts(device=f"{device}, {threads} thread(s), {config.num_envs} env copies per seed")
    header = ["seeds", "learner step", "search", "value targets", "training", "act"]
    console.table("EfficientZero, milliseconds", [*header, "env steps/s per seed"], rows)
    return 1e3 / times.learner_step


def _time_car_racing(config: Config) -> float:
    """Print CarRacing's speeds; returns the ratio of the gray image's to Gymnasium's."""
    from rlx.benchmarks.car_racing import frames_per_s

    speeds = frames_per_s(config.env, config.num_envs, config.seconds)
    rows = _with_ratios(speeds, "{:.3g}")
    console.table("CarRacing, frames per second", ["what", "frames/s", "ratio"], rows)
    gymnasium, gray, *_ = speeds.values()
    return gray / gymnasium


def _with_ratios(speeds: Mapping[str, float], form: str) -> list[list[str]]:
    """A row for each of the `speeds`: label, speed, and its ratio to the first, in the `form`."""
    first = next(iter(speeds.values()))
    return [[label, f"{speed:,.0f}", form.format(speed / first)] for label, speed in speeds.items()]
