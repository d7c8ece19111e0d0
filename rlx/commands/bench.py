"""Time training and attacks on this machine, beside a plain PyTorch loop and Stable-Baselines3."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.benchmarks.peers import plain_attack, plain_training, sb3_training, timed
from rlx.command import command
from rlx.config import Count, Positive, build, chosen, load_class
from rlx.errors import ConfigError
from rlx.show import report

if TYPE_CHECKING:
    import torch

    from rlx.agent import Agent, Spec


@dataclass(frozen=True)
class Config:
    """The keys of bench.yaml."""

    agent: Any
    env: Any
    device: Any
    seeds: list[int]
    """Numbers of seeds to train at once."""
    num_envs: Count
    seconds: Positive
    attack_batch: int
    eval_env: Any = None
    """Of some envs; of no meaning here."""


@command("bench")
def main(composed: DictConfig) -> float:
    """Returns the best training ratio."""
    config = build(Config, composed, "")

    from rlx import experiment
    from rlx.agents.dqn import DQN
    from rlx.agents.ppo import PPO

    device = experiment.setup_device(config.device)
    if chosen("env") == "car_racing":
        return drawing(config)
    spec = experiment.env_spec(config.env)
    if chosen("agent") == "efficientzero":
        return planning(config, spec, device)
    kind: Any = load_class(config.agent, "agent", object)
    env_id = f"{config.env['_target_'].rpartition('.')[2]}-v1"  # Gymnasium's own, of the same name
    if kind not in (DQN, PPO) or env_id not in ("Acrobot-v1", "CartPole-v1"):
        raise ConfigError(
            "bench: compares agent=dqn, ppo or a2c on env=acrobot or cartpole, and env=car_racing with Gymnasium's; "
            "it times agent=efficientzero."
        )
    agent = build(kind.config_type, config.agent, "agent")
    report.start(
        agent=f"{chosen('agent')} on {env_id}, network {agent.hidden}",
        device=f"{device}, {config.device['threads']} thread(s); the others on the CPU, one thread",
    )
    rows: list[list[Any]] = []
    if kind is DQN:
        rows.append(
            [
                "training, plain PyTorch loop, 1 env, 1 seed",
                plain_training(agent, spec, env_id, config.seconds),
            ]
        )
    if importlib.util.find_spec("stable_baselines3"):
        speed = sb3_training(chosen("agent"), agent, env_id, config.num_envs, config.seconds)
        rows.append([f"training, SB3, 1 seed × {config.num_envs} env copies", speed])
    for seeds in config.seeds:
        speed = timed(learner(config, spec, seeds, device)[1], config.seconds)
        rows.append([f"training, rlx, {seeds} seed(s) × {config.num_envs} env copies", speed])
    table = [[what, f"{speed:,.0f}", f"{speed / rows[0][1]:.2g}"] for what, speed in rows]
    if kind is DQN and env_id == "Acrobot-v1":
        single = plain_attack(spec, config.seconds)
        batched = rlx_attack(spec, max(config.seeds), config.attack_batch, config.seconds, device)
        table.append(
            ["FGSM on two heads, plain loop, one observation at a time", f"{single:,.0f}", "1"]
        )
        what = f"FGSM on two heads, rlx, {max(config.seeds)} seeds × {config.attack_batch:,} copies"
        table.append([what, f"{batched:,.0f}", f"{batched / single:.3g}"])
    report.table(
        "Environment steps per second, summed over seeds", ["what", "steps/s", "ratio"], table
    )
    return max(speed for _, speed in rows) / rows[0][1]


def learner(
    config: Config, spec: "Spec", seeds: int, device: "torch.device"
) -> "tuple[Agent, Callable[[], int]]":
    """rlx's own agent, and a vector step of it in its env: acts, steps, learns; returns the environment steps made."""
    import torch

    from rlx import experiment
    from rlx.nn.rng import seed_tensor
    from rlx.training.vector_step import vector_step

    shape = (seeds, config.num_envs)
    agent = experiment.make_agent(
        config.agent, spec, seed_tensor(range(seeds), device), config.num_envs
    )
    env = experiment.make_env(config.env, seeds * config.num_envs, device)
    obs, carry = (
        env.reset(seed=0)[0].unflatten(0, shape),
        agent.policy.initial_carry(config.num_envs),
    )
    first = torch.ones(shape, dtype=torch.bool, device=device)

    def step() -> int:
        nonlocal obs, carry, first
        done = vector_step(agent, env, obs, first, carry)
        obs, first, carry = done.obs, done.first, done.transition.carry
        _wait(device)
        return seeds * config.num_envs

    return agent, step


def _wait(device: "torch.device") -> None:
    """Until a GPU has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def clocked(agent: Any, names: Sequence[str], device: "torch.device") -> dict[str, list[float]]:
    """The milliseconds that each call of the methods `names` takes from now on."""
    times: dict[str, list[float]] = {name: [] for name in names}

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            _wait(device)
            began = time.perf_counter()
            result = method(*args)
            _wait(device)
            times[name].append(1e3 * (time.perf_counter() - began))
            return result

        return call

    for name in names:
        setattr(agent, name, watched(name, getattr(agent, name)))
    return times


def planning(config: Config, spec: "Spec", device: "torch.device") -> float:
    """EfficientZero's times for a learner step, its parts and a vector step's decisions; returns learner steps per second."""
    rows: list[list[Any]] = []
    for seeds in config.seeds:
        agent, step = learner(config, spec, seeds, device)
        for _ in range(-(-config.agent["learning_starts"] // config.num_envs)):
            step()
        times = clocked(agent, ("learn", "policy_targets", "value_targets", "act"), device)
        rate = timed(step, config.seconds) / seeds
        learn, search, values, act = (sum(each) / len(each) for each in times.values())
        rows.append([str(seeds), learn, search, values, learn - search - values, act, rate])
    report.start(
        device=f"{device}, {config.device['threads']} thread(s), {config.num_envs} env copies per seed"
    )
    header = [
        "seeds",
        "learner step",
        "search",
        "value targets",
        "training",
        "act",
        "env steps/s per seed",
    ]
    report.table("EfficientZero, milliseconds", header, rows)
    return 1e3 / rows[-1][1]


def drawing(config: Config) -> float:
    """CarRacing's frames per second, one process and several; returns the gray picture's ratio to Gymnasium's."""
    import gymnasium

    from rlx import experiment
    from rlx.envs.car_racing import CarRacing

    rng = np.random.default_rng(0)

    def driven(env: Any) -> float:
        env.reset(seed=0)

        def step() -> int:
            action = rng.uniform([-0.5, 0, 0], [0.5, 1, 0.2]).astype(np.float32)
            for _ in range(10):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            return 10

        return timed(step, config.seconds)

    def shared(workers: int) -> float:
        env = experiment.make_env({**config.env, "workers": workers}, config.num_envs, "cpu")
        env.reset(seed=0)

        def step() -> int:
            env.step(np.full(config.num_envs, 1))
            return config.num_envs * config.env["kwargs"]["repeat"]

        return timed(step, config.seconds)

    rows: list[tuple[str, float]] = [("Gymnasium, 1 env", driven(gymnasium.make("CarRacing-v3")))]
    rows += [
        (f"rlx, 1 env, {what}", driven(CarRacing(continuous=True, gray=gray)))
        for what, gray in (("gray", True), ("colour", False))
    ]
    repeat = config.env["kwargs"]["repeat"]
    rows += [
        (f"rlx, {config.num_envs} env copies, {repeat} frames a step, {n} process(es)", shared(n))
        for n in (1, 2)
    ]
    table = [[what, f"{speed:,.0f}", f"{speed / rows[0][1]:.3g}"] for what, speed in rows]
    report.table("CarRacing, frames per second", ["what", "frames/s", "ratio"], table)
    return rows[1][1] / rows[0][1]


def rlx_attack(
    spec: "Spec", seeds: int, batch: int, seconds: float, device: "torch.device"
) -> float:
    """The same networks and decisions in one batch of seeds × copies."""
    import torch

    from rlx.agent import Scores
    from rlx.attack import Budget
    from rlx.attacks.fgsm import FGSM
    from rlx.nn.networks import MLP
    from rlx.nn.rng import Streams, seed_tensor

    keys = seed_tensor(range(seeds), device)
    meta, controller = (
        MLP(6, [128, 128], 3, Streams(keys, "goal")),
        MLP(9, [128, 128], 3, Streams(keys, "action")),
    )
    high = torch.as_tensor(spec.observation_space.high, device=device)  # type: ignore[attr-defined]
    obs = Streams(keys, "obs").uniform(batch, 6) * 2 - 1
    attack = FGSM(loss="ce", target=None)
    budget = Budget(torch.full_like(obs, 0.01) * high, -high, high)

    def choose(scores: Scores) -> Any:
        seen = attack.perturb(scores, obs, budget, lambda count: obs)
        with torch.no_grad():
            return scores(seen).argmax(-1)

    def step() -> int:
        one_hot = torch.nn.functional.one_hot(choose(Scores(meta)), 3).float()
        choose(Scores(lambda x: controller(torch.cat([one_hot, x], -1))))
        _wait(device)
        return seeds * batch

    return timed(step, seconds)
