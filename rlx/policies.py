"""The policies of runs on disk: what evaluating, attacking and exporting begin with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from rlx.agent import Agent, Policy, Spec
from rlx.config import build, load_class, parse_seeds
from rlx.env import TensorEnv
from rlx.errors import ConfigError
from rlx.experiment import (
    env_spec,
    evaluated_env,
    evaluated_spec,
    make_env,
    same_env,
    trained,
)
from rlx.names import nearest
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import concatenate, take
from rlx.runs.run import Run


class Loaded(NamedTuple):
    """A policy, and what it is of."""

    policy: Policy
    spec: Spec
    seeds: list[int]
    """Of the rows of the policy's seed axis."""


@dataclass(frozen=True)
class Opened:
    """The policies of runs, and the env in which these are evaluated and attacked."""

    policy: Policy
    """The policies of all runs, side by side along the seed axis."""
    spec: Spec
    """What the policies were told of their env."""
    seeds: list[int]
    """The seed of each row of the policy's seed axis."""
    env: dict[str, Any]
    """The config group `env`, with the keys of `eval_env`."""
    age: int
    """How many steps old the env's copies are; 0 unless the env drifts."""
    device: torch.device
    """The device of the policy and of the env's copies."""

    def make_env(self, num_envs: int) -> TensorEnv:
        """`num_envs` copies of the env, on the device and of the age of the runs."""
        return make_env(self.env, num_envs, self.device, self.age)


def open_runs(
    runs: Sequence[Run], checkpoint: str, device: torch.device, seeds: object = None
) -> Opened:
    """The policies of `runs` at `checkpoint`, and their env.

    `seeds` picks some of the runs' seeds; None: all. ConfigError where the runs differ in agent,
    env or the age of a drifting env, or have a seed twice.
    """
    policy, spec, chosen_seeds = load_policies(runs, checkpoint, device, seeds)
    env = evaluated_env(trained(runs[0]))
    return Opened(policy, spec, chosen_seeds, env, env_age(runs, checkpoint), device)


def load_policies(
    runs: Sequence[Run], checkpoint: str, device: torch.device, seeds: object = None
) -> Loaded:
    """The policies of several runs of one agent and env, side by side along the seed axis.

    `seeds` picks some of theirs; None: all. ConfigError where a seed comes twice: it would be
    counted as two independent ones.
    """
    _require_same(runs)
    loaded = [load_policy(run, checkpoint) for run in runs]
    owners: dict[int, Path] = {}
    for run, one in zip(runs, loaded, strict=True):
        for seed in one.seeds:
            if seed in owners:
                raise ConfigError(
                    f"run={run.path}: seed {seed} is also in {owners[seed]}; "
                    "it would count as two independent seeds."
                )
            owners[seed] = run.path
    policy = concatenate([one.policy for one in loaded])
    own = list(owners)
    if seeds is not None:
        chosen = parse_seeds(seeds)
        unknown = sorted(set(chosen) - set(own))
        if unknown:
            paths = ", ".join(str(run.path) for run in runs)
            raise ConfigError(f"seeds={seeds}: {unknown} not in {paths}, which has {own}.")
        policy = take(policy, torch.tensor([own.index(seed) for seed in chosen]))
        own = chosen
    return Loaded(policy.to(device), loaded[0].spec, own)


def load_policy(run: Run, checkpoint: str) -> Loaded:
    """The policy of one run, on the CPU. ConfigError where it does not fit its config."""
    config = trained(run)
    spec = env_spec(config.env)
    evaluated_spec(spec, evaluated_env(config))
    # A stop rule may have taken some out.
    seeds = [int(seed) for seed in run.checkpoints.counters(checkpoint)["seeds"]]
    if not seeds:
        raise ConfigError(
            f"checkpoint={checkpoint}: every seed of {run.path} had stopped by then; "
            "use checkpoint=best, the weights each stopped with."
        )
    saved = run.checkpoints.load(checkpoint)
    file = run.checkpoints.folder(checkpoint) / "agent.safetensors"
    check_tensors(config, spec, len(seeds), saved, file)
    policy = _make_policy(config, spec, seed_tensor(seeds))
    policy.load_state_dict({name: saved[name] for name in policy.state_dict()})
    return Loaded(policy.requires_grad_(False), spec, seeds)


def check_tensors(
    config: DictConfig, spec: Spec, seeds: int, saved: Mapping[str, Tensor], file: Path
) -> None:
    """ConfigError where `saved`, of `file`, are not the tensors of the policy that `config` makes.

    `seeds`: their number. The policy is made without memory: what a config asks for may not fit
    into any, while a file holds what it is long.
    """
    with torch.device("meta"):
        outline = _make_policy(config, spec, seed_tensor(range(seeds), "meta"))
    for name, tensor in outline.state_dict().items():
        if name not in saved:
            raise ConfigError(f"{file}: tensor '{name}' is missing.{nearest(name, saved)}")
        if saved[name].shape != tensor.shape:
            raise ConfigError(
                f"{file}: tensor '{name}' is {list(saved[name].shape)}, "
                f"but this config makes {list(tensor.shape)}."
            )


def env_age(runs: Sequence[Run], checkpoint: str) -> int:
    """How old, in steps, the env copies of runs are at a checkpoint; 0 unless their env drifts.

    ConfigError where they differ: policies of several ages are judged in several envs.
    """
    ages = [_env_age(run, checkpoint) for run in runs]
    for run, age in zip(runs, ages, strict=True):
        if age != ages[0]:
            raise ConfigError(
                f"run={run.path}: its drifting env is {age:,} steps old at checkpoint "
                f"{checkpoint}, that of {runs[0].path} {ages[0]:,}; take them one by one."
            )
    return ages[0]


def _env_age(run: Run, checkpoint: str) -> int:
    config = run.config
    if not config.env.get("drift"):
        return 0
    step = run.checkpoints.counters(checkpoint)["step"]
    if isinstance(step, list):  # of each seed, in "best"
        step = max(step)
    return step // int(config.num_envs)


def _require_same(runs: Sequence[Run]) -> None:
    """ConfigError unless the runs are of one agent and env."""
    first = runs[0]
    for run in runs[1:]:
        same = {
            "agent": run.config.agent == first.config.agent,
            "env": same_env(run.config, first.config),
        }
        for key, is_same in same.items():
            if not is_same:
                raise ConfigError(
                    f"run={run.path}: its {key} differs from that of {first.path}; "
                    "take them one by one."
                )


def _make_policy(config: DictConfig, spec: Spec, seeds: Tensor) -> Policy:
    """A new policy as a training of `config` makes it, of `seeds` (int64 [S])."""
    agent = load_class(config.agent, "agent", Agent)
    return agent.policy_type(build(agent.config_type, config.agent, "agent"), spec, seeds)
