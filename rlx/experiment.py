"""What a composed config means: the validated agent, env, data, seeds and device of one run, before and after it is on disk."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig, OmegaConf

from rlx.config import ConfigError, at_least, build, choice, load_class, nearest, parse_seeds

if TYPE_CHECKING:
    import torch

    from rlx.agent import Agent, Policy, Spec
    from rlx.data import Data
    from rlx.env import TensorEnv
    from rlx.run import Run


def make_env(node: Mapping[str, Any], num_envs: int, device: "torch.device | str", clock: int = 0) -> "TensorEnv":
    """`num_envs` copies of the env of the config group `env`, as the keys `observe` and `stack` show it, in `workers` processes.

    `clock`: for a drifting env, how many steps each copy is old.
    """
    params = _plain(node)
    observe, stack, workers = params.pop("observe", None), params.pop("stack", 1), params.pop("workers", 1)
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"env.workers={workers}: expected a whole number from 1 on.")
    env = _whole_env(node, params, num_envs, device, clock, workers)
    if observe is None and stack == 1:
        return env
    from rlx.envs.view import View

    return View(env, observe, stack)


def _whole_env(
    node: Mapping[str, Any], params: dict[str, Any], num_envs: int, device: "torch.device | str", clock: int, workers: int
) -> "TensorEnv":
    """A Dynamics, or a VectorEnv class of anybody's."""
    from gymnasium.vector import VectorEnv

    from rlx.envs.batched import BatchedEnv, Drift, Dynamics

    params.pop("_target_")
    if params.get("max_episode_steps") is not None:
        at_least(params["max_episode_steps"], 1, "env.max_episode_steps")
    for key, value in params.items():
        if value == MISSING:
            raise ConfigError(f"env.{key}: missing; set env.{key}=…")
    target: Any = load_class(node, "env", object)
    if issubclass(target, VectorEnv):
        known = [name for name in inspect.signature(target).parameters if name not in ("num_envs", "device")]
        for key in params:
            if key not in known:
                raise ConfigError(f"env.{key}: unknown key.{nearest(key, [*known, 'observe', 'stack', 'workers'])}")
        if min(workers, num_envs) == 1:
            return target(num_envs=num_envs, device=device, **params)
        from rlx.envs.workers import Workers

        return Workers(partial(target, **params), num_envs, workers, device)
    kind: Any = load_class(node, "env", Dynamics)  # type: ignore[type-abstract]
    if workers != 1:
        raise ConfigError(f"env.workers={workers}: this env steps all copies as one tensor; processes are for envs of Gymnasium.")
    limit, drift = params.pop("max_episode_steps", None), params.pop("drift", None)
    known = [field.name for field in fields(kind)]
    for key in params:
        if key not in known:
            raise ConfigError(f"env.{key}: unknown key.{nearest(key, [*known, 'max_episode_steps', 'observe', 'stack', 'drift'])}")
    dynamics = build(kind, params, "env")
    return BatchedEnv(dynamics, num_envs, limit, device, drift=build(Drift, drift, "env.drift") if drift else None, clock=clock)


def env_spec(node: Mapping[str, Any]) -> "Spec":
    """What an agent may know of the env; ConfigError where its spaces are of other kinds than rlx has."""
    from gymnasium import spaces

    from rlx.agent import Spec

    env = make_env(node, 1, "cpu")
    obs, action = env.single_observation_space, env.single_action_space
    for what, space in (("actions", action), ("observations", obs)):
        if not (isinstance(space, spaces.Box) or (isinstance(space, spaces.Discrete) and int(space.start) == 0)):
            raise ConfigError(f"env: needs Box or Discrete (0…n−1) {what}; {node.get('id', node['_target_'])} has {space}.")
    limit = getattr(env, "max_episode_steps", None)
    if not limit:
        raise ConfigError("env.max_episode_steps: this env has no time limit of its own; set one.")
    return Spec(obs, action, int(limit), env.reward_threshold, getattr(env, "rules", None))


def age(run: "Run", checkpoint: str = "last") -> int:
    """How old a run's env copies are at a checkpoint, in steps; 0 unless its env drifts."""
    config = run.config
    return int(run.counters(checkpoint)["step"]) // config.copies if config.env.get("drift") else 0


def evaluated_env(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config group `env` as a run is evaluated and attacked in: with the keys of `eval_env`, nested ones too."""
    return _plain(OmegaConf.merge(_plain(config["env"]), _plain(config["eval_env"])))  # type: ignore[arg-type]


def same_env(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs' envs, as they are evaluated, are one; in how many processes or threads they run says nothing."""
    first, second = ({k: v for k, v in evaluated_env(config).items() if k not in ("workers", "threads")} for config in (one, other))
    return first == second


def setup_device(node: Mapping[str, Any]) -> "torch.device":
    """The device of the config group `device`, with the process's threads set for it."""
    import torch

    name = choice(node["name"], ("auto", "cpu", "cuda"), "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto.")
    at_least(node["threads"], 1, "device.threads")
    torch.set_num_threads(int(node["threads"]))
    torch.set_flush_denormal(True)  # dead units' gradients decay into denormal numbers, ten times slower
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name if name != "auto" else "cpu")


def make_agent(node: Mapping[str, Any], spec: "Spec", seeds: "torch.Tensor", copies: int, data: "Data | None" = None) -> "Agent":
    """The agent of the config group `agent`, on the device of `seeds`; an offline one learns from `data`."""
    from rlx.agent import Agent, OfflineAgent

    kind: Any = load_class(node, "agent", Agent)
    for what, space, fits in (("observations", spec.observation_space, kind.observations), ("actions", spec.action_space, kind.actions)):
        if not isinstance(space, fits):
            names = " or ".join(fit.__name__ for fit in fits)
            raise ConfigError(f"agent: {kind.__name__} needs {names} {what}; this env has {space}.")
    if kind.games and spec.rules is None:
        raise ConfigError(f"agent: {kind.__name__} needs a game of two players in turn, such as env=tic_tac_toe.")
    config, offline = build(kind.config_type, node, "agent"), issubclass(kind, OfflineAgent)
    if offline != (data is not None):
        raise ConfigError(
            f"data: {kind.__name__} learns from a data set; give one, as in: data=data/cartpole (rlx collect makes them)."
            if offline
            else f"data: {kind.__name__} learns by acting; data sets are for agent=bcq and agent=bc."
        )
    return kind(config, spec, seeds, data if offline else copies)


def open_data(where: str, skip_bad: bool = False) -> "Data":
    """The data set `where`: a folder of ours or of npz shards, or minari:<id>. ConfigError, with the file, where something is wrong.

    `skip_bad`: leave bad shards out instead.
    """
    from rlx.data import Episodes
    from rlx.minari import imported
    from rlx.shards import Shards

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
    from rlx.rng import seed_tensor

    config = run.config
    spec = env_spec(config.env)
    kind: Any = load_class(config.agent, "agent", Agent)
    seeds = [int(seed) for seed in run.counters(checkpoint)["seeds"]]  # a stop rule may have taken some out
    policy = kind.policy_type(build(kind.config_type, config.agent, "agent"), spec, seed_tensor(seeds))
    saved = run.load(checkpoint)
    wanted = policy.state_dict()
    where = run.checkpoint(checkpoint) / "agent.safetensors"
    for name, tensor in wanted.items():
        if name not in saved:
            raise ConfigError(f"{where}: tensor '{name}' is missing.{nearest(name, saved)}")
        if saved[name].shape != tensor.shape:
            raise ConfigError(f"{where}: tensor '{name}' is {list(saved[name].shape)}, but this config makes {list(tensor.shape)}.")
    policy.load_state_dict({name: saved[name] for name in wanted})
    return policy.requires_grad_(False), spec, seeds


def load_policies(runs: "Sequence[Run]", checkpoint: str, device: "torch.device", seeds: object = None) -> "tuple[Policy, Spec, list[int]]":
    """(policy, spec, seeds) of several runs of one agent and env, side by side along the seed axis.

    `seeds` picks some of theirs. ConfigError where a seed comes twice: it would be counted as two independent ones.
    """
    import torch

    from rlx.networks import concatenate, take

    first = runs[0].config
    for run in runs[1:]:
        for key, same in (("agent", run.config.agent == first.agent), ("env", same_env(run.config, first))):
            if not same:
                raise ConfigError(f"run={run.path}: its {key} differs from that of {runs[0].path}; take them one by one.")
    loaded = [load_policy(run, checkpoint) for run in runs]
    owners: dict[int, Path] = {}
    for run, (_, _, seeds_of_run) in zip(runs, loaded, strict=True):
        for seed in seeds_of_run:
            if seed in owners:
                raise ConfigError(f"run={run.path}: seed {seed} is also in {owners[seed]}; it would count as two independent seeds.")
            owners[seed] = run.path
    policy, own = concatenate([policy for policy, _, _ in loaded]), list(owners)
    if seeds is not None:
        chosen = parse_seeds(seeds)
        if unknown := sorted(set(chosen) - set(own)):
            raise ConfigError(f"seeds={seeds}: {unknown} not in {', '.join(str(run.path) for run in runs)}, which has {own}.")
        policy, own = take(policy, torch.tensor([own.index(seed) for seed in chosen])), chosen
    return policy.to(device), loaded[0][1], own


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)  # type: ignore[return-value]
