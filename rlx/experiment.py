"""From a composed config to the agent, env, data and device of a run."""

import multiprocessing
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlx.config import (
    Count,
    at_least,
    build,
    choice,
    convert,
    load_class,
    plain,
    typed,
)
from rlx.errors import ConfigError
from rlx.machine import free_memory
from rlx.names import one_line

if TYPE_CHECKING:
    import gymnasium
    import torch

    from rlx.agent import Agent, Spec
    from rlx.data.datasets import Data
    from rlx.env import TensorEnv
    from rlx.runs.run import Run


@dataclass(frozen=True)
class Device:
    """The keys of the config group `device`."""

    name: str
    """`cpu`, `cuda`, or `auto` for a GPU where there is one."""
    threads: Count
    """Threads that torch computes with on the CPU."""
    # Runs of earlier versions lack this.
    compile: Any = "auto"
    """`true`: compile what a training does at every step; `auto`: where it is worth the time."""
    index: int | None = None
    """Which of several GPUs, from 0; null: the first, and another for each process of a pool."""

    def __post_init__(self) -> None:
        choice(compile_mode(vars(self)), ("auto", "true", "false"), "device.compile")
        if self.index is not None:
            at_least(self.index, 0, "device.index")


def compile_mode(device: Mapping[str, Any]) -> str:
    """`device.compile` of the config group `device`: "auto", "true" or "false"."""
    return str(device.get("compile", Device.compile)).lower()


@dataclass(frozen=True)
class CommonEnvConfig:
    """Keys of the config group `env` that every env takes beside those of its class."""

    observe: list[int] | None = None
    """Components of a flat observation that are seen; null: all."""
    stack: Count = 1
    """Last observations that are seen at once."""
    workers: Count = 1
    """Processes that the copies of a Gymnasium env are shared out among."""


_COMMON_KEYS = [field.name for field in fields(CommonEnvConfig)]
_BATCH_KEYS = ["drift", "max_episode_steps"]
"""Keys of the config group `env` that BatchedEnv takes, around a class of dynamics."""


def training_config(run: "Run") -> DictConfig:
    """The config of a training, without the keys that its agent had once and has no more."""
    from rlx.agent import Agent

    config = run.config
    for key in ("agent", "env", "eval_env", "device", "seeds", "num_envs"):
        if key not in config:
            raise ConfigError(f"{run.path / 'config.yaml'}: '{key}' is missing.")
    agent = load_class(config.agent, "agent", Agent)
    for name in getattr(agent.config_type, "retired", ()):
        config.agent.pop(name, None)
    return config


@dataclass(frozen=True)
class _EnvParts:
    """The keys of the config group `env`, by who takes them."""

    target: str
    """`_target_`, which names the class."""
    kind: Any
    """The class: a Dynamics, or anybody's VectorEnv, whose keyword arguments cannot be checked."""
    common: dict[str, Any]
    """The keys of `CommonEnvConfig` that are there."""
    batch: dict[str, Any]
    """The keys `drift` and `max_episode_steps` of a Dynamics, which BatchedEnv takes."""
    parameters: dict[str, Any]
    """All other keys: the keyword arguments of the class."""
    is_vector_env: bool
    """Whether the class makes a batch of copies itself."""


def _env_parts(node: Mapping[str, Any], key: str) -> _EnvParts:
    """The config group `env`, at `key`, taken apart; ConfigError where it names no class."""
    from gymnasium.vector import VectorEnv

    parameters = plain(node)
    kind = load_class(parameters, key, object)
    target = parameters.pop("_target_")
    common = _pop_all(parameters, _COMMON_KEYS)
    batch = {}
    is_vector_env = issubclass(kind, VectorEnv)
    if not is_vector_env:
        batch = _pop_all(parameters, _BATCH_KEYS)
    return _EnvParts(target, kind, common, batch, parameters, is_vector_env)


def class_parameters(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments for the class of the config group `env`."""
    return _env_parts(node, "env").parameters


def _pop_all(values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Remove `keys` from `values`; returns those that were there, with their values."""
    return {key: values.pop(key) for key in keys if key in values}


def typed_env(node: Mapping[str, Any], key: str = "env", partial: bool = False) -> dict[str, Any]:
    """The config group `env`, at `key`, every value of its type.

    `partial`: only the keys that `node` has.
    """
    from rlx.envs.batched import Dynamics

    parts = _env_parts(node, key)
    common = typed(CommonEnvConfig, parts.common, key, partial=partial)
    result = {"_target_": parts.target, **common}
    given: tuple[str, ...] = ("num_envs", "device")
    beside = _COMMON_KEYS
    if not parts.is_vector_env:
        load_class({"_target_": parts.target}, key, Dynamics)
        result |= _typed_batch(parts.batch, key, partial)
        given = ()
        beside = [*_COMMON_KEYS, *_BATCH_KEYS]
    parameters = typed(
        parts.kind, parts.parameters, key, given=given, beside=beside, partial=partial
    )
    return result | parameters


def _typed_batch(batch: dict[str, Any], key: str, partial: bool) -> dict[str, Any]:
    """The keys that BatchedEnv takes, of the config group at `key`, every value of its type.

    Keys that are null are left out.
    """
    from rlx.envs.batched import Drift

    result: dict[str, Any] = {}
    drift = batch.get("drift")
    if drift is not None:
        drift = convert(drift, dict, f"{key}.drift")
        result["drift"] = typed(Drift, drift, f"{key}.drift", partial=partial)
    limit = batch.get("max_episode_steps")
    if limit is not None:
        limit = convert(limit, int, f"{key}.max_episode_steps")
        at_least(limit, 1, f"{key}.max_episode_steps")
        result["max_episode_steps"] = limit
    return result


def make_env(
    node: Mapping[str, Any], num_envs: int, device: "torch.device | str", age: int = 0
) -> "TensorEnv":
    """`num_envs` copies of the env of the config group `env`.

    Their observations are as the keys `observe` and `stack` show them, and they run in `workers`
    processes. `age`: how many steps old each copy of a drifting env is.
    """
    parts = _env_parts(typed_env(node), "env")
    common = CommonEnvConfig(**parts.common)
    _require_room(num_envs, common.stack)
    if parts.is_vector_env:
        env = _make_vector_env(parts, num_envs, device, common.workers)
    else:
        env = _make_batched_env(parts, num_envs, device, age, common.workers)
    if common.observe is None and common.stack == 1:
        return env
    from rlx.envs.view import View

    return View(env, common.observe, common.stack)


def _require_room(num_envs: int, stack: int) -> None:
    """ConfigError where the memory has no room for so many copies, before any is taken."""
    least = 64.0 * num_envs * stack  # bytes: each copy has at least some numbers
    free = free_memory()
    if least > free:
        raise ConfigError(
            f"env: {num_envs:,} copies at once, env.stack={stack}, take {least / 1e9:,.0f} GB of "
            f"memory at least, and {free / 1e9:,.1f} GB are free; "
            "take fewer copies, seeds or episodes."
        )


_OPTIONAL: dict[str, Any] = {
    "max_episode_steps": None,
    "reward_threshold": None,
    "rules": None,
    "grid": None,
    "features": None,
    "observation_units": None,
    "angles": (),
    "lowest_reward": None,
    "truncation_is_harm": False,
}
"""Attributes of `TensorEnv` → what they are where somebody's VectorEnv does not declare them."""


def _with_optional(kind: Any, **params: Any) -> "TensorEnv":
    """A VectorEnv of anybody's class `kind`, with all attributes of the contract."""
    env = kind(**params)
    for name, default in _OPTIONAL.items():
        if not hasattr(env, name):
            setattr(env, name, default)
    return env


def _make_vector_env(
    parts: _EnvParts, num_envs: int, device: "torch.device | str", workers: int
) -> "TensorEnv":
    """Copies of a VectorEnv, in as many processes as there are copies at most."""
    make = partial(_with_optional, parts.kind, **parts.parameters)
    if min(workers, num_envs) == 1:
        return make(num_envs=num_envs, device=device)
    from rlx.envs.workers import Workers

    return Workers(make, num_envs, workers, device)


def _make_batched_env(
    parts: _EnvParts, num_envs: int, device: "torch.device | str", age: int, workers: int
) -> "TensorEnv":
    """Copies of a Dynamics; ConfigError where `workers` asks for processes, which it has not."""
    from rlx.envs.batched import BatchedEnv, Drift

    if workers != 1:
        raise ConfigError(
            f"env.workers={workers}: this env steps all copies as one tensor; "
            "processes are for envs of Gymnasium."
        )
    drift = None
    if parts.batch.get("drift"):
        drift = Drift(**parts.batch["drift"])
    dynamics = parts.kind(**parts.parameters)
    limit = parts.batch.get("max_episode_steps")
    return BatchedEnv(dynamics, num_envs, limit, device, drift=drift, age=age)


def env_spec(node: Mapping[str, Any]) -> "Spec":
    """What an agent may know of the env; ConfigError where rlx does not take its spaces."""
    from rlx.agent import Spec
    from rlx.envs.spaces import refused

    env = make_env(node, 1, "cpu")
    obs_space = env.single_observation_space
    action_space = env.single_action_space
    problem = refused(obs_space, action_space, str(node.get("id")))
    if problem is not None:
        reason, remedy = problem
        if "id" in node:
            raise ConfigError(f"env.id={node['id']}: {reason} {remedy}")
        raise ConfigError(f"env: {node['_target_']} {reason}")
    limit = env.max_episode_steps
    if not limit:
        raise ConfigError("env.max_episode_steps: this env has no time limit of its own; set one.")
    return Spec(
        obs_space,
        action_space,
        max_episode_steps=int(limit),
        reward_threshold=env.reward_threshold,
        rules=env.rules,
        stack=typed_env(node)["stack"],
        features=env.features or {},
    )


def eval_spec(spec: "Spec", node: Mapping[str, Any]) -> "Spec":
    """The spec of the env `node` in which an agent of `spec` is evaluated.

    ConfigError where the spaces of the two differ.
    """
    result = env_spec(node)
    _require_space("observations", result.observation_space, spec.observation_space)
    _require_space("actions", result.action_space, spec.action_space)
    return result


def _require_space(what: str, space: "gymnasium.Space", learnt: "gymnasium.Space") -> None:
    """ConfigError where eval_env has another space than the env in which the agent learns."""
    if space != learnt:
        raise ConfigError(
            f"eval_env: has {what} {one_line(space)}; the agent learns with {one_line(learnt)}."
        )


def eval_env_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `env` of the env in which a run is evaluated and attacked.

    Keys of `eval_env`, nested ones too, replace those of `env`.
    """
    merged = OmegaConf.merge(plain(config["env"]), plain(config["eval_env"]))
    return typed_env(merged)  # type: ignore[arg-type]


def same_env(config: Mapping[str, Any], other_config: Mapping[str, Any]) -> bool:
    """Whether two runs are evaluated in the same env, by their configs.

    The numbers of processes and threads may differ: the env is the same in any number of them.
    """
    env = eval_env_config(config)
    other_env = eval_env_config(other_config)
    for key in ("workers", "threads"):
        env.pop(key, None)
        other_env.pop(key, None)
    return env == other_env


def setup_device(node: Mapping[str, Any]) -> "torch.device":
    """The device of the config group `device`, with the process's threads set for it."""
    import torch

    config = build(Device, node, "device")
    name = choice(config.name, ("auto", "cpu", "cuda"), "device")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError(
            "device=cuda: torch sees no CUDA device here; use device=cpu or device=auto."
        )
    most = max(64, os.cpu_count() or 1)
    if config.threads > most:
        raise ConfigError(f"device.threads={config.threads}: this machine takes at most {most}.")
    torch.set_num_threads(config.threads)
    # Dead units' gradients decay into denormal numbers, which are ten times slower.
    torch.set_flush_denormal(True)
    # 32 bits throughout: TF32 keeps 10 of the 23 binary digits of a factor.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Otherwise CUDA adds up the gradients of a convolution in any order.
    torch.backends.cudnn.deterministic = True
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    return _numbered(name, config.index)


def _numbered(name: str, index: int | None) -> "torch.device":
    """The device "cpu" or "cuda", of several GPUs that of number `index`, made torch's current one.

    Null means the GPU that the process has already: the first where nothing was set. The processes
    of a pool (`hydra/launcher=joblib`) take one each in turn. ConfigError where there is no such
    GPU.
    """
    import torch

    if name == "cpu":
        if index is not None:
            raise ConfigError(
                f"device.index={index}: numbers GPUs, and this runs on the CPU; leave it out."
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if index is None:
        worker = pool_number()
        if worker is None or count == 1:
            return torch.device("cuda")
        index = worker % count
    if index >= count:
        numbers = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
        raise ConfigError(f"device.index={index}: torch sees {numbers} here.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def pool_number() -> int | None:
    """The number of this process in its pool of processes, from 0; None: it is in none."""
    # joblib's are called LokyProcess-1, LokyProcess-2, …
    number = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(number[1]) - 1 if number else None


def make_agent(
    node: Mapping[str, Any],
    spec: "Spec",
    seeds: "torch.Tensor",
    num_envs: int,
    data: "Data | None" = None,
) -> "Agent":
    """The agent of the config group `agent`, on the device of `seeds` (int64 [S]).

    An offline agent learns from `data`. ConfigError where agent, env and data do not fit.
    """
    from rlx.agent import Agent, OfflineAgent
    from rlx.nn.per_seed import settings_of_seeds

    # The constructors of an Agent and an OfflineAgent differ in the last argument.
    agent: Any = load_class(node, "agent", Agent)
    _require_fit(agent, "observations", spec.observation_space, agent.observations)
    _require_fit(agent, "actions", spec.action_space, agent.actions)
    if agent.games and spec.rules is None:
        raise ConfigError(
            f"agent: {agent.__name__} needs a game of two players in turn, such as env=tic_tac_toe."
        )
    config = settings_of_seeds(build(agent.config_type, node, "agent"), seeds, "agent")
    offline = issubclass(agent, OfflineAgent)
    if offline and data is None:
        raise ConfigError(
            "data: this agent learns from a data set; give one, as in: data=data/cartpole "
            "(rlx collect makes them)."
        )
    if data is not None and not offline:
        raise ConfigError(
            "data: this agent learns by acting; data sets are for agent=bcq and agent=bc."
        )
    return agent(config, spec, seeds, data if offline else num_envs)


def _require_fit(
    agent: type["Agent"],
    what: str,
    space: "gymnasium.Space",
    kinds: tuple[type["gymnasium.Space"], ...],
) -> None:
    """ConfigError where the agent cannot take the env's observations, or its actions (`what`)."""
    if not isinstance(space, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(
            f"agent: {agent.__name__} needs {names} {what}; this env has {one_line(space)}."
        )


def open_data(where: str, skip_bad: bool = False) -> "Data":
    """The data set `where`: a folder of rlx's or of npz shards, or minari:<id>.

    ConfigError, with the file, where something is wrong. `skip_bad`: leave bad shards out instead.
    """
    from rlx.data.episodes import Episodes
    from rlx.data.minari import imported
    from rlx.data.shards import Shards

    if where.startswith("minari:"):
        return imported(where.removeprefix("minari:"))
    folder = Path(where)
    try:
        names = {file.name for file in folder.iterdir()}
    except (FileNotFoundError, ValueError):  # ValueError: a null byte in it
        raise ConfigError(
            f"data={where}: no such folder; make one with: rlx collect RUN out={where}"
        ) from None
    except NotADirectoryError:
        raise ConfigError(f"data={where}: is a file, not a folder.") from None
    except OSError as error:
        raise ConfigError(f"data={where}: cannot be read ({error.strerror}).") from None
    if "data.json" in names:
        return Episodes(folder)
    if any(name.endswith(".npz") for name in names):
        return Shards(folder, skip_bad)
    raise ConfigError(f"data={where}: neither data.json nor npz shards in it.")
