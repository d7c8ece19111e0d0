"""Data sets of Minari, the public format of offline RL.

Minari is an extra: pip install "rlx[minari]".
"""

import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rlx.config import load_class
from rlx.data.episodes import Episodes
from rlx.data.npy import in_words
from rlx.data.writer import Writer, disk_errors, new_folder
from rlx.env import TensorEnv
from rlx.envs.spaces import Convert, agent_actions, agent_observations
from rlx.errors import ConfigError
from rlx.names import nearest

_Episode = tuple[np.ndarray, np.ndarray, np.ndarray, bool]
"""(obs [T + 1, *O], action [T, *A], reward [T], terminated)."""
_AT_ONCE = 64
"""Episodes in memory while writing."""
_NOT_ARGUMENTS = {"_target_", "max_episode_steps", "observe", "stack", "workers", "drift"}
"""Keys of the config group that say how an env is used, not which one it is."""


class _Original(NamedTuple):
    """The spaces of an env before rlx has changed them, and how data are brought back to them."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    convert_obs: Convert
    """From logged observations to the env's."""
    convert_actions: Convert
    """From logged actions to the env's."""


def imported(name: str) -> Episodes:
    """The local data set `name` in our own format, in a folder that lasts as long as it is used.

    ConfigError if there is none, or it holds what rlx does not take.
    """
    minari = _minari()
    location = f"data=minari:{name}"
    folder = _folder(name, location)
    if not (folder / "data").is_dir():
        get = f"to get it: minari download {name}.{_locals(name)}"
        raise ConfigError(f"{location}: no such local data set; {get}")
    temporary = tempfile.TemporaryDirectory(prefix="rlx-")
    try:
        _check_spaces_written(folder / "data", location)
        data = minari.load_dataset(name)
        with Writer(f"{temporary.name}/data", source=f"minari:{name}") as writer:
            for episode in _episodes(data, location):
                writer.add(*episode)
            if not writer.episodes:
                raise ConfigError(f"{location}: has no episodes.")
            result = writer.close({}, 1, [f"minari:{name}"])
    except ConfigError:
        raise
    except Exception as error:  # of Minari, HDF5, Arrow or Pillow, on a broken file: anything
        raise ConfigError(f"{location}: cannot be loaded ({in_words(error)}).") from None
    result.temporary = temporary
    return result


def _check_spaces_written(folder: Path, location: str) -> None:
    """ConfigError where Minari would make the env that a set names: anybody's code."""
    from minari.dataset.minari_storage import MinariStorage

    metadata = MinariStorage.read_raw_metadata(folder)
    for name in ("observation_space", "action_space"):
        if name not in metadata:
            reason = f"its metadata.json has no {name}"
            raise ConfigError(f"{location}: {reason}; write it with Minari 0.5.")


def _episodes(data: Any, location: str) -> Iterator[_Episode]:
    """The episodes of a set of Minari, as agents see them."""
    space, convert = agent_observations(data.observation_space)
    _check_taken(space, "observations", location)
    _check_taken(data.action_space, "actions", location)
    # A Discrete space may begin at another number than 0, which rlx's do not.
    obs_start = getattr(data.observation_space, "start", 0)
    action_start = getattr(data.action_space, "start", 0)
    action_dtype = np.int64 if isinstance(data.action_space, spaces.Discrete) else np.float32
    for number, episode in enumerate(data.iterate_episodes()):
        obs = np.asarray(episode.observations)
        action = np.asarray(episode.actions)
        reward = np.asarray(episode.rewards)
        terminated = np.asarray(episode.terminations)
        steps = len(action)
        episode_name = f"{location}: episode {number}"
        obs_shape = (steps + 1, *data.observation_space.shape)
        _check_shape("observations", obs, obs_shape, steps, episode_name)
        _check_shape("actions", action, (steps, *data.action_space.shape), steps, episode_name)
        _check_shape("rewards", reward, (steps,), steps, episode_name)
        _check_shape("terminations", terminated, (steps,), steps, episode_name)
        if obs_start:
            obs = obs - obs_start
        action = (action - action_start).astype(action_dtype)
        yield convert(obs), action, reward, bool(terminated[-1])


def _check_shape(
    name: str, array: np.ndarray, expected: tuple[int, ...], steps: int, location: str
) -> None:
    """ConfigError where an episode has no step, or an array of it another shape than expected."""
    if array.shape != expected or not steps:
        held = f"{name} {list(array.shape)}"
        raise ConfigError(f"{location} has {held}; expected {list(expected)}, one step or more.")


def _check_taken(space: gymnasium.Space, what: str, location: str) -> None:
    """ConfigError where rlx does not take such a space."""
    if isinstance(space, (spaces.Box, spaces.Discrete)):
        return
    way = "flatten the env (gymnasium.wrappers.FlattenObservation) and record it again"
    if what == "actions":
        way = "number the actions of the env (one Discrete) and record it again"
    kind = type(space).__name__
    raise ConfigError(f"{location}: its {what} are {kind}; rlx takes Box and Discrete: {way}.")


def write(data: Episodes, name: str, env: TensorEnv) -> bool:
    """`data`, of `env`, as Minari's data set `name`, to the bit.

    Returns whether `env` can be recovered from it. ConfigError where it exists or has no such name.
    """
    minari = _minari()
    location = f"out=minari:{name}"
    folder = _folder(name, location)
    from minari import namespace
    from minari.dataset.minari_storage import MinariStorage

    spec = _env_spec(env, data.facts["env"])
    original = _original(spec, env)
    if original is None:
        spec = None
        original = _Original(env.single_observation_space, env.single_action_space, _same, _same)
    raw_spaces = (original.observation_space, original.action_space)
    with new_folder(folder, location) as partial, disk_errors(location):
        storage = MinariStorage.new(partial / "data", *raw_spaces, spec, jpeg_encoding=False)
        storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__})
        for begin in range(0, data.episodes, _AT_ONCE):
            numbers = range(begin, min(begin + _AT_ONCE, data.episodes))
            storage.update_episodes([_buffer(data, number, original) for number in numbers])
    group = name.rpartition("/")[0]
    if group and group not in namespace.list_local_namespaces():
        namespace.create_namespace(group)
    return spec is not None


def _buffer(data: Episodes, number: int, original: _Original) -> Any:
    """One episode of `data`, as Minari's EpisodeBuffer."""
    from minari.data_collector import EpisodeBuffer

    obs, action, reward, terminated = data.episode(number)
    is_last = np.arange(1, len(action) + 1) == len(action)
    return EpisodeBuffer(
        id=number,
        observations=list(original.convert_obs(obs)),
        actions=list(original.convert_actions(action)),
        rewards=list(reward),
        terminations=list(is_last & terminated),
        truncations=list(is_last & (not terminated)),
    )


def _env_spec(env: TensorEnv, node: Mapping[str, Any]) -> EnvSpec | None:
    """The spec from which `gymnasium.make` makes `env`; None where it cannot.

    `node`: the config group `env` that it is of.
    """
    from rlx.envs.batched import BatchedEnv
    from rlx.envs.gym import GymEnv

    if node.get("observe") is not None or node.get("drift") is not None:
        return None
    if isinstance(env, GymEnv):
        spec = copy.deepcopy(env.envs[0].spec)
    elif isinstance(env, BatchedEnv):
        spec = _registered(node)
    else:
        spec = None
    if spec is not None:
        spec.max_episode_steps = env.max_episode_steps
    return spec


def _registered(node: Mapping[str, Any]) -> EnvSpec | None:
    """The spec of a torch-native env, under its id at Gymnasium; None where it has none."""
    from rlx.envs.tabular import Tabular

    kind = load_class(node, "env", object)
    # Of the class itself, not inherited: a subclass is another env.
    name = vars(kind).get("gymnasium_id")
    arguments = {key: value for key, value in node.items() if key not in _NOT_ARGUMENTS}
    if kind is Tabular:
        name, arguments = node["id"], dict(node["kwargs"] or {})
    if f"rlx/{name}" not in gymnasium.registry:
        return None
    spec = copy.deepcopy(gymnasium.spec(f"rlx/{name}"))
    spec.kwargs |= arguments
    return spec


def _original(spec: EnvSpec | None, env: TensorEnv) -> _Original | None:
    """The env that `spec` makes; None where it is not `env`, or no file can keep `spec`."""
    if spec is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            made = gymnasium.make(EnvSpec.from_json(spec.to_json()))
    except Exception:  # whatever anybody's env and its arguments do where they are made anew
        return None
    made.close()
    raw_spaces = (made.observation_space, made.action_space)
    env_spaces = (env.single_observation_space, env.single_action_space)
    if raw_spaces == env_spaces:  # a torch-native env
        return _Original(*raw_spaces, _same, _same)
    agent_obs_space, _ = agent_observations(made.observation_space)
    agent_action_space, convert_actions = agent_actions(made.action_space)
    if (agent_obs_space, agent_action_space) != env_spaces:
        return None
    return _Original(*raw_spaces, _inverse(made.observation_space), convert_actions)


def _inverse(raw_space: gymnasium.Space) -> Convert:
    """The function from observations as agents see them to those of `raw_space`."""
    shape = tuple(raw_space.shape or ())
    agent_space, _ = agent_observations(raw_space)
    agent_shape = tuple(agent_space.shape or ())
    is_image = len(agent_shape) == 3 and len(shape) > 2
    dtype = raw_space.dtype

    def convert(obs: np.ndarray) -> np.ndarray:
        if is_image and shape[-2:] != agent_shape[-2:]:  # channels were last
            *stack, height, width, channels = shape
            obs = np.moveaxis(obs.reshape(len(obs), *stack, channels, height, width), -3, -1)
        return obs.reshape(len(obs), *shape).astype(dtype, copy=False)

    return convert


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _folder(name: str, location: str) -> Path:
    """Where Minari keeps the set `name`; ConfigError where it could not read what lies there."""
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        root = get_dataset_path()
    except OSError as error:
        raise ConfigError(f"{location}: Minari has no folder for its sets ({error}).") from None
    if not _is_name(name):
        rule = "letters, digits, - and _, with a version and perhaps a namespace of two or more"
        example = f"{name}-v0" if _is_name(f"{name}-v0") else "cartpole/mixed-v0"
        raise ConfigError(f"{location}: Minari's names are {rule}, as in minari:{example}")
    parents = Path(name).parents
    if "data" in Path(name).parts or any((root / parent / "data").exists() for parent in parents):
        reason = "Minari takes a folder with 'data' in it for a data set"
        raise ConfigError(f"{location}: {reason}; choose another name.")
    return root / name


def _is_name(text: str) -> bool:
    """Whether Minari can read a data set of that name again."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(text)
    except (ValueError, TypeError):  # TypeError: without a version
        return False
    return True


def _locals(name: str) -> str:
    """The end of an error message: which data sets there are instead.

    Minari's own listing breaks where any folder has a name that it would not give.
    """
    from minari.storage.datasets_root_dir import get_dataset_path

    root = get_dataset_path()
    good: list[str] = []
    broken: list[str] = []
    for folder, children, _ in os.walk(root):
        children[:] = [child for child in children if not child.startswith(".")]
        if "data" not in children:
            continue
        children.clear()
        local_name = Path(folder).relative_to(root).as_posix()
        if _is_name(local_name):
            good.append(local_name)
        else:
            broken.append(local_name)
    text = nearest(name, sorted(good)) if good else " There is none."
    if broken:
        text += f" Broken, and best removed: {', '.join(sorted(broken))} in {root}."
    return text


def _minari() -> Any:
    """Minari itself; ConfigError where it is not installed."""
    try:
        import minari
    except ImportError as error:
        raise ConfigError(f'minari: not installed ({error}); pip install "rlx[minari]".') from None
    return minari
