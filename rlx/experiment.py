"""What a composed config means: the validated agent, env, data, seeds and device of one run, before and after it is on disk."""

import os
from collections.abc import Mapping, Sequence
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
    parse_seeds,
    plain,
    typed,
)
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.runs.files import free_memory

if TYPE_CHECKING:
    import torch

    from rlx.agent import Agent, Policy, Spec
    from rlx.data.datasets import Data
    from rlx.env import TensorEnv
    from rlx.runs.run import Run


@dataclass(frozen=True)
class Device:
    """The keys of the config group `device`."""

    name: str
    threads: Count


@dataclass(frozen=True)
class Shown:
    """Keys that every env takes beside its own."""

    observe: list[int] | None = None
    """Components of a flat observation that are seen; null: all."""
    stack: Count = 1
    """Last observations that are seen at once."""
    workers: Count = 1
    """Processes that the copies of a Gymnasium env are shared out among."""


def validated(composed: Mapping[str, Any]) -> DictConfig:
    """A training's config with every value of the type that its key has; raises ConfigError.

    What is saved, compared and read from here on holds no `200k` and no text where a number belongs.
    """
    from rlx.agent import Agent
    from rlx.training.config import Config
    from rlx.training.stopping import Config as Stop

    config = typed(Config, composed, "")
    for group in ("agent", "env", "eval_env", "device"):
        config[group] = convert({} if config[group] is None else config[group], dict, group)
    agent: Any = load_class(config["agent"], "agent", Agent)
    config["agent"] = {
        "_target_": config["agent"]["_target_"],
        **typed(agent.config_type, config["agent"], "agent"),
    }
    config["env"] = typed_env(config["env"])
    config["eval_env"] = typed_env(
        {**config["eval_env"], "_target_": config["env"]["_target_"]}, "eval_env", partial=True
    )
    del config["eval_env"]["_target_"]
    config["device"] = typed(Device, config["device"], "device")
    config["stop"] = (
        typed(Stop, convert(config["stop"], dict, "stop"), "stop") if config["stop"] else None
    )
    if config["data"] and not config["data"].startswith("minari:"):
        config["data"] = str(Path(config["data"]).absolute())  # a run may be resumed from elsewhere
    return OmegaConf.create(config)


def trained(run: "Run") -> DictConfig:
    """A run's config, without the keys that its agent has had and has no more."""
    from rlx.agent import Agent

    config = run.config
    for key in ("agent", "env", "eval_env", "device", "seeds", "num_envs"):
        if key not in config:
            raise ConfigError(f"{run.path / 'config.yaml'}: '{key}' is missing.")
    kind: Any = load_class(config.agent, "agent", Agent)
    for name in getattr(kind.config_type, "retired", ()):
        config.agent.pop(name, None)
    return config


def typed_env(node: Mapping[str, Any], key: str = "env", partial: bool = False) -> dict[str, Any]:
    """The config group `env`, every value of its type; `partial`: only the keys that `node` has."""
    from gymnasium.vector import VectorEnv

    from rlx.envs.batched import Drift, Dynamics

    parameters = plain(node)
    kind: Any = load_class(parameters, key, object)
    target = parameters.pop("_target_")
    beside = [field.name for field in fields(Shown)]
    shown = {name: parameters.pop(name) for name in beside if name in parameters}
    result = {"_target_": target, **typed(Shown, shown, key, partial=partial)}
    if isinstance(kind, type) and issubclass(kind, VectorEnv):
        given = ("num_envs", "device")
        return result | typed(kind, parameters, key, given=given, beside=beside, partial=partial)
    kind = load_class({"_target_": target}, key, Dynamics)  # type: ignore[type-abstract]
    drift, limit = parameters.pop("drift", None), parameters.pop("max_episode_steps", None)
    beside += ["drift", "max_episode_steps"]
    if drift is not None:
        result["drift"] = typed(
            Drift, convert(drift, dict, f"{key}.drift"), f"{key}.drift", partial=partial
        )
    if limit is not None:
        result["max_episode_steps"] = convert(limit, int, f"{key}.max_episode_steps")
        at_least(result["max_episode_steps"], 1, f"{key}.max_episode_steps")
    return result | typed(kind, parameters, key, beside=beside, partial=partial)


def make_env(
    node: Mapping[str, Any], num_envs: int, device: "torch.device | str", clock: int = 0
) -> "TensorEnv":
    """`num_envs` copies of the env of the config group `env`, as the keys `observe` and `stack` show it, in `workers` processes.

    `clock`: for a drifting env, how many steps each copy is old.
    """
    params = typed_env(node)
    observe, stack, workers = (params.pop(name) for name in ("observe", "stack", "workers"))
    _require_room(num_envs, stack)
    env = _whole_env(params, num_envs, device, clock, workers)
    if observe is None and stack == 1:
        return env
    from rlx.envs.view import View

    return View(env, observe, stack)


def _require_room(num_envs: int, stack: int) -> None:
    """ConfigError where so many copies cannot be, before any memory is taken for them."""
    least, free = 64.0 * num_envs * stack, free_memory()  # bytes: some numbers of each
    if least > free:
        raise ConfigError(
            f"env: {num_envs:,} copies at once, env.stack={stack}, take {least / 1e9:,.0f} GB of memory at least, and "
            f"{free / 1e9:,.1f} GB are free; take fewer copies, seeds or episodes."
        )


def _whole_env(
    params: dict[str, Any], num_envs: int, device: "torch.device | str", clock: int, workers: int
) -> "TensorEnv":
    """A Dynamics, or a VectorEnv class of anybody's, with its typed parameters."""
    from gymnasium.vector import VectorEnv

    from rlx.envs.batched import BatchedEnv, Drift

    kind: Any = load_class(params, "env", object)
    params = {name: value for name, value in params.items() if name != "_target_"}
    if issubclass(kind, VectorEnv):
        if min(workers, num_envs) == 1:
            return kind(num_envs=num_envs, device=device, **params)
        from rlx.envs.workers import Workers

        return Workers(partial(kind, **params), num_envs, workers, device)
    if workers != 1:
        raise ConfigError(
            f"env.workers={workers}: this env steps all copies as one tensor; processes are for envs of Gymnasium."
        )
    limit, drift = params.pop("max_episode_steps", None), params.pop("drift", None)
    return BatchedEnv(
        kind(**params),
        num_envs,
        limit,
        device,
        drift=Drift(**drift) if drift else None,
        clock=clock,
    )


def env_spec(node: Mapping[str, Any]) -> "Spec":
    """What an agent may know of the env; ConfigError where rlx does not take its spaces."""
    from rlx.agent import Spec
    from rlx.env import refused

    env = make_env(node, 1, "cpu")
    obs, action = env.single_observation_space, env.single_action_space
    problem = refused(obs, action, str(node.get("id")))
    if problem is not None:
        what, way = problem
        if "id" in node:
            raise ConfigError(f"env.id={node['id']}: {what} {way}")
        raise ConfigError(f"env: {node['_target_']} {what}")
    limit = getattr(env, "max_episode_steps", None)
    if not limit:
        raise ConfigError("env.max_episode_steps: this env has no time limit of its own; set one.")
    stack = typed_env(node)["stack"]
    return Spec(obs, action, int(limit), env.reward_threshold, getattr(env, "rules", None), stack)


def evaluated_spec(spec: "Spec", node: Mapping[str, Any]) -> "Spec":
    """The spec of the env `node` in which an agent of `spec` is evaluated; ConfigError where its spaces are others."""
    own = env_spec(node)
    for what, here, there in (
        ("observations", spec.observation_space, own.observation_space),
        ("actions", spec.action_space, own.action_space),
    ):
        if here != there:
            raise ConfigError(
                f"eval_env: has {what} {named(there)}; the agent learns with {named(here)}."
            )
    return own


def named(space: Any) -> str:
    """A space on one line."""
    return " ".join(str(space).split())


def age(runs: "Sequence[Run]", checkpoint: str) -> int:
    """How old, in steps, the env copies of runs are at a checkpoint; 0 unless their env drifts.

    ConfigError where they differ: policies of several ages are judged in several envs.
    """
    ages = [_age(run, checkpoint) for run in runs]
    for run, own in zip(runs, ages, strict=True):
        if own != ages[0]:
            raise ConfigError(
                f"run={run.path}: its drifting env is {own:,} steps old at checkpoint {checkpoint}, that of "
                f"{runs[0].path} {ages[0]:,}; take them one by one."
            )
    return ages[0]


def _age(run: "Run", checkpoint: str) -> int:
    config = run.config
    if not config.env.get("drift"):
        return 0
    step = run.counters(checkpoint)["step"]  # of each seed, in "best"
    return max(step if isinstance(step, list) else [step]) // int(config.num_envs)


def evaluated_env(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `env` as a run is evaluated and attacked in: with the keys of `eval_env`, nested ones too."""
    merged = OmegaConf.merge(plain(config["env"]), plain(config["eval_env"]))
    return typed_env(merged)  # type: ignore[arg-type]


def same_env(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs' envs, as they are evaluated, are one; in how many processes or threads they run says nothing."""
    first, second = (
        {k: v for k, v in evaluated_env(config).items() if k not in ("workers", "threads")}
        for config in (one, other)
    )
    return first == second


def setup_device(node: Mapping[str, Any]) -> "torch.device":
    """The device of the config group `device`, with the process's threads set for it."""
    import torch

    config = build(Device, node, "device")
    name = choice(config.name, ("auto", "cpu", "cuda"), "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda: torch sees no CUDA device here; use device=cpu or device=auto."
        )
    most = max(64, os.cpu_count() or 1)
    if config.threads > most:
        raise ConfigError(f"device.threads={config.threads}: this machine takes at most {most}.")
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(
        True
    )  # dead units' gradients decay into denormal numbers, ten times slower
    return torch.device(
        "cuda"
        if name == "auto" and torch.cuda.is_available()
        else name
        if name != "auto"
        else "cpu"
    )


def make_agent(
    node: Mapping[str, Any],
    spec: "Spec",
    seeds: "torch.Tensor",
    num_envs: int,
    data: "Data | None" = None,
) -> "Agent":
    """The agent of the config group `agent`, on the device of `seeds`; an offline one learns from `data`."""
    from rlx.agent import Agent, OfflineAgent

    kind: Any = load_class(node, "agent", Agent)
    for what, space, fits in (
        ("observations", spec.observation_space, kind.observations),
        ("actions", spec.action_space, kind.actions),
    ):
        if not isinstance(space, fits):
            names = " or ".join(fit.__name__ for fit in fits)
            raise ConfigError(
                f"agent: {kind.__name__} needs {names} {what}; this env has {named(space)}."
            )
    if kind.games and spec.rules is None:
        raise ConfigError(
            f"agent: {kind.__name__} needs a game of two players in turn, such as env=tic_tac_toe."
        )
    config, offline = build(kind.config_type, node, "agent"), issubclass(kind, OfflineAgent)
    if offline != (data is not None):
        raise ConfigError(
            "data: this agent learns from a data set; give one, as in: data=data/cartpole (rlx collect makes them)."
            if offline
            else "data: this agent learns by acting; data sets are for agent=bcq and agent=bc."
        )
    return kind(config, spec, seeds, data if offline else num_envs)


def open_data(where: str, skip_bad: bool = False) -> "Data":
    """The data set `where`: a folder of ours or of npz shards, or minari:<id>. ConfigError, with the file, where something is wrong.

    `skip_bad`: leave bad shards out instead.
    """
    from rlx.data.datasets import Episodes
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


def load_policy(run: "Run", checkpoint: str) -> "tuple[Policy, Spec, list[int]]":
    """(policy, spec, seeds) of a run's checkpoint, on the CPU. ConfigError where it does not fit."""
    from rlx.agent import Agent
    from rlx.nn.rng import seed_tensor

    config = trained(run)
    spec = env_spec(config.env)
    evaluated_spec(spec, evaluated_env(config))
    kind: Any = load_class(config.agent, "agent", Agent)
    seeds = [
        int(seed) for seed in run.counters(checkpoint)["seeds"]
    ]  # a stop rule may have taken some out
    if not seeds:
        raise ConfigError(
            f"checkpoint={checkpoint}: every seed of {run.path} had stopped by then; use checkpoint=best, the weights each stopped with."
        )
    saved = run.load(checkpoint)
    check_tensors(config, spec, len(seeds), saved, run.checkpoint(checkpoint) / "agent.safetensors")
    policy = kind.policy_type(
        build(kind.config_type, config.agent, "agent"), spec, seed_tensor(seeds)
    )
    policy.load_state_dict({name: saved[name] for name in policy.state_dict()})
    return policy.requires_grad_(False), spec, seeds


def check_tensors(
    config: DictConfig, spec: "Spec", seeds: int, saved: "Mapping[str, torch.Tensor]", where: Path
) -> None:
    """ConfigError where the file `where` lacks a tensor of the policy of `seeds` seeds that `config` makes, or has one of another shape.

    The policy is made without memory: what a config asks for may not fit into any, while a file
    holds what it is long.
    """
    import torch

    from rlx.agent import Agent
    from rlx.nn.rng import seed_tensor

    kind: Any = load_class(config.agent, "agent", Agent)
    with torch.device("meta"):
        outline = kind.policy_type(
            build(kind.config_type, config.agent, "agent"), spec, seed_tensor(range(seeds), "meta")
        )
    for name, tensor in outline.state_dict().items():
        if name not in saved:
            raise ConfigError(f"{where}: tensor '{name}' is missing.{nearest(name, saved)}")
        if saved[name].shape != tensor.shape:
            raise ConfigError(
                f"{where}: tensor '{name}' is {list(saved[name].shape)}, but this config makes {list(tensor.shape)}."
            )


def load_policies(
    runs: "Sequence[Run]", checkpoint: str, device: "torch.device", seeds: object = None
) -> "tuple[Policy, Spec, list[int]]":
    """(policy, spec, seeds) of several runs of one agent and env, side by side along the seed axis.

    `seeds` picks some of theirs. ConfigError where a seed comes twice: it would be counted as two independent ones.
    """
    import torch

    from rlx.nn.networks import concatenate, take

    first = runs[0].config
    for run in runs[1:]:
        for key, same in (
            ("agent", run.config.agent == first.agent),
            ("env", same_env(run.config, first)),
        ):
            if not same:
                raise ConfigError(
                    f"run={run.path}: its {key} differs from that of {runs[0].path}; take them one by one."
                )
    loaded = [load_policy(run, checkpoint) for run in runs]
    owners: dict[int, Path] = {}
    for run, (_, _, seeds_of_run) in zip(runs, loaded, strict=True):
        for seed in seeds_of_run:
            if seed in owners:
                raise ConfigError(
                    f"run={run.path}: seed {seed} is also in {owners[seed]}; it would count as two independent seeds."
                )
            owners[seed] = run.path
    policy, own = concatenate([policy for policy, _, _ in loaded]), list(owners)
    if seeds is not None:
        chosen = parse_seeds(seeds)
        if unknown := sorted(set(chosen) - set(own)):
            raise ConfigError(
                f"seeds={seeds}: {unknown} not in {', '.join(str(run.path) for run in runs)}, which has {own}."
            )
        policy, own = take(policy, torch.tensor([own.index(seed) for seed in chosen])), chosen
    return policy.to(device), loaded[0][1], own
