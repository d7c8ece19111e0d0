"""What a composed config means: the validated agent, env, data and device of a run."""

import os
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


@dataclass(frozen=True)
class Shown:
    """Keys that every env takes beside its own."""

    observe: list[int] | None = None
    """Components of a flat observation that are seen; null: all."""
    stack: Count = 1
    """Last observations that are seen at once."""
    workers: Count = 1
    """Processes that the copies of a Gymnasium env are shared out among."""


def trained(run: "Run") -> DictConfig:
    """A run's config, without the keys that its agent has had and has no more."""
    from rlx.agent import Agent

    config = run.config
    for key in ("agent", "env", "eval_env", "device", "seeds", "num_envs"):
        if key not in config:
            raise ConfigError(f"{run.path / 'config.yaml'}: '{key}' is missing.")
    agent = load_class(config.agent, "agent", Agent)
    for name in getattr(agent.config_type, "retired", ()):
        config.agent.pop(name, None)
    return config


def typed_env(node: Mapping[str, Any], key: str = "env", partial: bool = False) -> dict[str, Any]:
    """The config group `env`, at `key`, every value of its type.

    `partial`: only the keys that `node` has.
    """
    from gymnasium.vector import VectorEnv

    from rlx.envs.batched import Drift, Dynamics

    parameters = plain(node)
    env = load_class(parameters, key, object)
    target = parameters.pop("_target_")
    beside = [field.name for field in fields(Shown)]
    shown = {name: parameters.pop(name) for name in beside if name in parameters}
    result = {"_target_": target, **typed(Shown, shown, key, partial=partial)}
    if issubclass(env, VectorEnv):
        given = ("num_envs", "device")
        return result | typed(env, parameters, key, given=given, beside=beside, partial=partial)

    dynamics = load_class({"_target_": target}, key, Dynamics)
    beside += ["drift", "max_episode_steps"]
    drift = parameters.pop("drift", None)
    limit = parameters.pop("max_episode_steps", None)
    if drift is not None:
        drift = convert(drift, dict, f"{key}.drift")
        result["drift"] = typed(Drift, drift, f"{key}.drift", partial=partial)
    if limit is not None:
        limit = convert(limit, int, f"{key}.max_episode_steps")
        at_least(limit, 1, f"{key}.max_episode_steps")
        result["max_episode_steps"] = limit
    return result | typed(dynamics, parameters, key, beside=beside, partial=partial)


def make_env(
    node: Mapping[str, Any], num_envs: int, device: "torch.device | str", age: int = 0
) -> "TensorEnv":
    """`num_envs` copies of the env of the config group `env`.

    As the keys `observe` and `stack` show it, in `workers` processes. `age`: for a drifting env,
    how many steps each copy is old.
    """
    params = typed_env(node)
    observe = params.pop("observe")
    stack = params.pop("stack")
    workers = params.pop("workers")
    _require_room(num_envs, stack)
    env = _whole_env(params, num_envs, device, age, workers)
    if observe is None and stack == 1:
        return env
    from rlx.envs.view import View

    return View(env, observe, stack)


def _require_room(num_envs: int, stack: int) -> None:
    """ConfigError where so many copies cannot be, before any memory is taken for them."""
    least = 64.0 * num_envs * stack  # bytes: some numbers of each
    free = free_memory()
    if least > free:
        raise ConfigError(
            f"env: {num_envs:,} copies at once, env.stack={stack}, take {least / 1e9:,.0f} GB of "
            f"memory at least, and {free / 1e9:,.1f} GB are free; "
            "take fewer copies, seeds or episodes."
        )


_OPTIONAL = ("max_episode_steps", "reward_threshold", "rules", "grid")
"""Attributes of `TensorEnv` that are None where somebody's VectorEnv does not declare them."""


def _with_optional(kind: Any, **params: Any) -> "TensorEnv":
    """A VectorEnv of anybody's, with all attributes of the contract."""
    env = kind(**params)
    for name in _OPTIONAL:
        if not hasattr(env, name):
            setattr(env, name, None)
    return env


def _whole_env(
    params: dict[str, Any], num_envs: int, device: "torch.device | str", age: int, workers: int
) -> "TensorEnv":
    """A Dynamics, or a VectorEnv class of anybody's, with its typed parameters."""
    from gymnasium.vector import VectorEnv

    from rlx.envs.batched import BatchedEnv, Drift

    # The keyword arguments of a class of anybody's cannot be checked.
    env: Any = load_class(params, "env", object)
    params = {name: value for name, value in params.items() if name != "_target_"}
    if issubclass(env, VectorEnv):
        make = partial(_with_optional, env, **params)
        if min(workers, num_envs) == 1:
            return make(num_envs=num_envs, device=device)
        from rlx.envs.workers import Workers

        return Workers(make, num_envs, workers, device)
    if workers != 1:
        raise ConfigError(
            f"env.workers={workers}: this env steps all copies as one tensor; "
            "processes are for envs of Gymnasium."
        )
    limit = params.pop("max_episode_steps", None)
    drift = params.pop("drift", None)
    if drift:
        drift = Drift(**drift)
    return BatchedEnv(env(**params), num_envs, limit, device, drift=drift or None, age=age)


def env_spec(node: Mapping[str, Any]) -> "Spec":
    """What an agent may know of the env; ConfigError where rlx does not take its spaces."""
    from rlx.agent import Spec
    from rlx.envs.spaces import refused

    env = make_env(node, 1, "cpu")
    obs_space = env.single_observation_space
    action_space = env.single_action_space
    problem = refused(obs_space, action_space, str(node.get("id")))
    if problem is not None:
        what, way = problem
        if "id" in node:
            raise ConfigError(f"env.id={node['id']}: {what} {way}")
        raise ConfigError(f"env: {node['_target_']} {what}")
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
    )


def evaluated_spec(spec: "Spec", node: Mapping[str, Any]) -> "Spec":
    """The spec of the env `node` in which an agent of `spec` is evaluated.

    ConfigError where its spaces are others.
    """
    evaluated = env_spec(node)
    _require_space("observations", evaluated.observation_space, spec.observation_space)
    _require_space("actions", evaluated.action_space, spec.action_space)
    return evaluated


def _require_space(what: str, space: "gymnasium.Space", learnt: "gymnasium.Space") -> None:
    """ConfigError where eval_env has another space than the env in which the agent learns."""
    if space != learnt:
        raise ConfigError(
            f"eval_env: has {what} {one_line(space)}; the agent learns with {one_line(learnt)}."
        )


def evaluated_env(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `env` as a run is evaluated and attacked in.

    That is with the keys of `eval_env`, nested ones too.
    """
    merged = OmegaConf.merge(plain(config["env"]), plain(config["eval_env"]))
    return typed_env(merged)  # type: ignore[arg-type]


def same_env(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the envs of two runs' configs, as they are evaluated, are one.

    In how many processes or threads they run says nothing.
    """
    first = evaluated_env(one)
    second = evaluated_env(other)
    for key in ("workers", "threads"):
        first.pop(key, None)
        second.pop(key, None)
    return first == second


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
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    return torch.device(name)


def make_agent(
    node: Mapping[str, Any],
    spec: "Spec",
    seeds: "torch.Tensor",
    num_envs: int,
    data: "Data | None" = None,
) -> "Agent":
    """The agent of the config group `agent`, on the device of `seeds` (int64 [S]).

    An offline one learns from `data`. ConfigError where the agent and the env do not fit.
    """
    from rlx.agent import Agent, OfflineAgent

    # The constructors of an Agent and an OfflineAgent differ in the last argument.
    agent: Any = load_class(node, "agent", Agent)
    _require_fit(agent, "observations", spec.observation_space, agent.observations)
    _require_fit(agent, "actions", spec.action_space, agent.actions)
    if agent.games and spec.rules is None:
        raise ConfigError(
            f"agent: {agent.__name__} needs a game of two players in turn, such as env=tic_tac_toe."
        )
    config = build(agent.config_type, node, "agent")
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
    """ConfigError where the env's observations or actions are none that the agent takes."""
    if not isinstance(space, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(
            f"agent: {agent.__name__} needs {names} {what}; this env has {one_line(space)}."
        )


def open_data(where: str, skip_bad: bool = False) -> "Data":
    """The data set `where`: a folder of ours or of npz shards, or minari:<id>.

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
