"""The policies of runs on disk: what evaluating, attacking and exporting begin with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlx.agent import Agent, Policy, Spec
from rlx.config import build, load_class, varying
from rlx.env import TensorEnv
from rlx.errors import ConfigError
from rlx.experiment import (
    env_spec,
    eval_env_config,
    eval_spec,
    make_env,
    same_env,
    training_config,
)
from rlx.grids import parse_seeds
from rlx.names import nearest
from rlx.nn.per_seed import settings_of_seeds
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import concatenate, take
from rlx.runs.run import Run


class Loaded(NamedTuple):
    """A policy from disk, of one run or of several."""

    policy: Policy
    spec: Spec
    """The facts about the env that the policy was made with."""
    seeds: list[int]
    """The seed of each row of the policy's seed axis."""


@dataclass(frozen=True)
class Opened:
    """The policies of runs, and the env in which these are evaluated and attacked."""

    policy: Policy
    """The policies of all runs, side by side along the seed axis."""
    spec: Spec
    """The facts about the env that the policies were made with."""
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

    @property
    def weights(self) -> dict[str, str]:
        """The checksum of each seed's weights, by the seed."""
        return {str(seed): fingerprint(self.policy, row) for row, seed in enumerate(self.seeds)}


def fingerprint(policy: Policy, row: int) -> str:
    """The SHA-256 of the weights of one row of a policy's seed axis, in hexadecimal digits.

    Of each tensor, by their sorted names, there are the name, the type, the shape and the bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        own = tensor[row].cpu().contiguous()
        digest.update(f"{name} {own.dtype} {list(own.shape)}\n".encode())
        digest.update(own.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_runs(
    runs: Sequence[Run], checkpoint: str, device: torch.device, seeds: object = None
) -> Opened:
    """The policies of `runs` at `checkpoint`, and their env.

    `seeds` picks some of the runs' seeds; None: all. ConfigError where the runs differ in agent,
    env or the age of a drifting env, or have a seed twice.
    """
    policy, spec, chosen_seeds = load_policies(runs, checkpoint, device, seeds)
    env = _env_of_seeds(runs, checkpoint, chosen_seeds)
    return Opened(policy, spec, chosen_seeds, env, env_age(runs, checkpoint), device)


def _env_of_seeds(runs: Sequence[Run], checkpoint: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The config group `env` in which these `seeds` of the runs are evaluated.

    It is the same for all, unless each seed has learnt in copies of its own: the class of such an
    env has a method `of_rows`. ConfigError where runs of different lengths are taken together.
    """
    env = eval_env_config(training_config(runs[0]))
    kind = load_class(env, "env", object)
    if not hasattr(kind, "of_rows"):
        return env
    seeds_of_runs = [run.checkpoints.counters(checkpoint)["seeds"] for run in runs]
    number = len(seeds_of_runs[0])
    row_of: dict[int, int] = {}
    for run, run_seeds in zip(runs, seeds_of_runs, strict=True):
        if len(run_seeds) != number:
            raise ConfigError(
                f"run={run.path}: has {len(run_seeds)} seeds, {runs[0].path} {number}; "
                "take them one by one."
            )
        row_of |= {int(seed): row for row, seed in enumerate(run_seeds)}
    return kind.of_rows(env, [row_of[seed] for seed in seeds], number)


def load_policies(
    runs: Sequence[Run], checkpoint: str, device: torch.device, seeds: object = None
) -> Loaded:
    """The policies of several runs of one agent and env, side by side along the seed axis.

    `seeds` picks some of the runs' seeds; None: all. ConfigError where a seed comes twice: it would
    be counted as two independent seeds.
    """
    _require_same(runs)
    loaded = [load_policy(run, checkpoint) for run in runs]
    run_of_seed: dict[int, Path] = {}
    for run, (_, _, run_seeds) in zip(runs, loaded, strict=True):
        for seed in run_seeds:
            if seed in run_of_seed:
                raise ConfigError(
                    f"run={run.path}: seed {seed} is also in {run_of_seed[seed]}; "
                    "it would count as two independent seeds."
                )
            run_of_seed[seed] = run.path
    policy = concatenate([policy for policy, _, _ in loaded])
    all_seeds = list(run_of_seed)
    spec = loaded[0].spec
    if seeds is None:
        return Loaded(policy.to(device), spec, all_seeds)
    picked = parse_seeds(seeds)
    unknown = sorted(set(picked) - set(all_seeds))
    if unknown:
        paths = ", ".join(str(run.path) for run in runs)
        raise ConfigError(f"seeds={seeds}: {unknown} not in {paths}, which has {all_seeds}.")
    rows = torch.tensor([all_seeds.index(seed) for seed in picked])
    return Loaded(take(policy, rows).to(device), spec, picked)


def load_policy(run: Run, checkpoint: str) -> Loaded:
    """The policy of one run, on the CPU. ConfigError where it does not fit its config."""
    config = training_config(run)
    spec = env_spec(config.env)
    eval_spec(spec, eval_env_config(config))
    # Not all of the config's seeds: a stop rule may have taken some out.
    seeds = [int(seed) for seed in run.checkpoints.counters(checkpoint)["seeds"]]
    if not seeds:
        raise ConfigError(
            f"checkpoint={checkpoint}: every seed of {run.path} had stopped by then; "
            "use checkpoint=best, the weights each stopped with."
        )
    config = of_rows(config, run.checkpoints.counters(checkpoint).get("rows", range(len(seeds))))
    saved = run.checkpoints.load(checkpoint)
    file = run.checkpoints.folder(checkpoint) / "agent.safetensors"
    check_tensors(config, spec, len(seeds), saved, file)
    policy = _make_policy(config, spec, seed_tensor(seeds))
    policy.load_state_dict({name: saved[name] for name in policy.state_dict()})
    return Loaded(policy.requires_grad_(False), spec, seeds)


def numbers_of_seeds(config: DictConfig) -> list[str]:
    """The keys of the agent for which a training's config has a number for each seed."""
    kind = load_class(config.agent, "agent", Agent).config_type
    return [name for name in sorted(varying(kind)) if OmegaConf.is_list(config.agent.get(name))]


def of_rows(config: DictConfig, rows: Sequence[int]) -> DictConfig:
    """The config of a training with the numbers of these rows, where each seed has its own."""
    own = config.copy()
    for name in numbers_of_seeds(config):
        own.agent[name] = [config.agent[name][row] for row in rows]
    return own


def check_tensors(
    config: DictConfig, spec: Spec, seeds: int, saved: Mapping[str, Tensor], file: Path
) -> None:
    """ConfigError where `saved`, of `file`, are not the tensors of the policy that `config` makes.

    `seeds`: the number of seeds. The policy is made on the meta device, without memory: what a
    config asks for may be larger than any memory, while a file holds no more than its length.
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

    ConfigError where the runs differ in it: they would be evaluated in different envs.
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
    """How old, in steps, the env copies of a run are at a checkpoint."""
    config = run.config
    if not config.env.get("drift"):
        return 0
    step = run.checkpoints.counters(checkpoint)["step"]
    if isinstance(step, list):
        # The checkpoint "best" has a step of each seed.
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
    settings: Any = build(agent.config_type, config.agent, "agent")
    return agent.policy_type(settings_of_seeds(settings, seeds, "agent"), spec, seeds)
