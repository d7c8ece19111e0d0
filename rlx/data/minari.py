"""Data sets of Minari (an extra: pip install "rlx[minari]"), the public format of offline RL."""

import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rlx.config import load_class
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.data.datasets import Episodes, Writer, whole, writing
from rlx.env import Convert, TensorEnv, played, shown

_AT_ONCE = 64
"""Episodes in memory while writing."""


def imported(name: str) -> Episodes:
    """The local data set `name` in our own format, in a folder that lasts as long as it is used.

    ConfigError if there is none, or it holds what rlx does not take.
    """
    minari, where = _minari(), f"data=minari:{name}"
    folder = _folder(name, where)
    if not (folder / "data").is_dir():
        get = f"to get it: minari download {name}.{_locals(name)}"
        raise ConfigError(f"{where}: no such local data set; {get}")
    temporary = tempfile.TemporaryDirectory(prefix="rlx-")
    try:
        _check_spaces_written(folder / "data", where)
        data = minari.load_dataset(name)
        with Writer(f"{temporary.name}/data", source=f"minari:{name}") as writer:
            for episode in _episodes(data, where):
                writer.add(*episode)
            if not writer.episodes:
                raise ConfigError(f"{where}: has no episodes.")
            result = writer.close({}, 1, [f"minari:{name}"])
    except ConfigError:
        raise
    except Exception as error:  # of Minari, HDF5, Arrow or Pillow, on a broken file: anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: cannot be loaded ({text}).") from None
    result.temporary = temporary
    return result


def _check_spaces_written(folder: Path, where: str) -> None:
    """ConfigError where Minari would make the env that a set names: anybody's code."""
    from minari.dataset.minari_storage import MinariStorage

    metadata = MinariStorage.read_raw_metadata(folder)
    for name in ("observation_space", "action_space"):
        if name not in metadata:
            text = f"its metadata.json has no {name}"
            raise ConfigError(f"{where}: {text}; write it with Minari 0.5.")


def _episodes(data: Any, where: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """(obs [T + 1, *O], action [T, *A], reward [T], terminated) of each episode, as it is shown."""
    space, show = shown(data.observation_space)
    _check_taken(space, "observations", where)
    _check_taken(data.action_space, "actions", where)
    begins = [getattr(own, "start", 0) for own in (data.observation_space, data.action_space)]
    for number, episode in enumerate(data.iterate_episodes()):
        obs, action = np.asarray(episode.observations), np.asarray(episode.actions)
        reward, ended = np.asarray(episode.rewards), np.asarray(episode.terminations)
        steps = len(action)
        shapes = {
            "observations": (obs, (steps + 1, *data.observation_space.shape)),
            "actions": (action, (steps, *data.action_space.shape)),
            "rewards": (reward, (steps,)),
            "terminations": (ended, (steps,)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape or not steps:
                has, wanted = f"{name} {list(array.shape)}", f"{list(shape)}, one step or more"
                raise ConfigError(f"{where}: episode {number} has {has}; expected {wanted}.")
        if begins[0]:
            obs = obs - begins[0]
        kind = np.int64 if isinstance(data.action_space, spaces.Discrete) else np.float32
        yield show(obs), (action - begins[1]).astype(kind), reward, bool(ended[-1])


def _check_taken(space: gymnasium.Space, what: str, where: str) -> None:
    if isinstance(space, (spaces.Box, spaces.Discrete)):
        return
    way = "flatten the env (gymnasium.wrappers.FlattenObservation) and record it again"
    if what == "actions":
        way = "number the actions of the env (one Discrete) and record it again"
    kind = type(space).__name__
    raise ConfigError(f"{where}: its {what} are {kind}; rlx takes Box and Discrete: {way}.")


def write(data: Episodes, name: str, env: TensorEnv) -> bool:
    """`data`, of `env`, as Minari's data set `name`, to the bit.

    Returns whether `env` can be recovered from it. ConfigError where it exists or has no such name.
    """
    minari, where = _minari(), f"out=minari:{name}"
    folder = _folder(name, where)
    from minari import namespace
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    spec = env_spec(env, data.facts["env"])
    original = _original(spec, env)
    if original is None:
        spec = None
        original = (env.single_observation_space, env.single_action_space), _same, _same
    own_spaces, back, play = original

    def buffer(number: int) -> Any:
        obs, action, reward, terminated = data.episode(number)
        ends = np.arange(1, len(action) + 1) == len(action)
        return EpisodeBuffer(
            id=number,
            observations=list(back(obs)),
            actions=list(play(action)),
            rewards=list(reward),
            terminations=list(ends & terminated),
            truncations=list(ends & (not terminated)),
        )

    with whole(folder, where) as partial, writing(where):
        storage = MinariStorage.new(partial / "data", *own_spaces, spec, jpeg_encoding=False)
        storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__})
        for begin in range(0, data.episodes, _AT_ONCE):
            numbers = range(begin, min(begin + _AT_ONCE, data.episodes))
            storage.update_episodes([buffer(number) for number in numbers])
    above = name.rpartition("/")[0]
    if above and above not in namespace.list_local_namespaces():
        namespace.create_namespace(above)
    return spec is not None


def env_spec(env: TensorEnv, node: Mapping[str, Any]) -> EnvSpec | None:
    """From which `gymnasium.make` makes `env`, of the config group `node`; None where it cannot."""
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
    """Of a torch-native env, under its id at Gymnasium."""
    from rlx.envs.tabular import Tabular

    kind = load_class(node, "env", object)
    name = vars(kind).get("gymnasium_id")  # its own: a subclass is another env
    arguments = {key: value for key, value in node.items() if key not in _NOT_ARGUMENTS}
    if kind is Tabular:
        name, arguments = node["id"], dict(node["kwargs"] or {})
    if f"rlx/{name}" not in gymnasium.registry:
        return None
    spec = copy.deepcopy(gymnasium.spec(f"rlx/{name}"))
    spec.kwargs |= arguments
    return spec


_NOT_ARGUMENTS = {"_target_", "max_episode_steps", "observe", "stack", "workers", "drift"}
"""Keys of the config group that say how an env is used, not which one it is."""
_Spaces = tuple[gymnasium.Space, gymnasium.Space]


def _original(spec: EnvSpec | None, env: TensorEnv) -> tuple[_Spaces, Convert, Convert] | None:
    """((observation space, action space) of the env that `spec` makes, how its observations and
    actions are made of those of `env`); None where it is another, or no file can keep `spec`."""
    if spec is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            made = gymnasium.make(EnvSpec.from_json(spec.to_json()))
    except Exception:  # whatever anybody's env and its arguments do where they are made anew
        return None
    made.close()
    own = (made.observation_space, made.action_space)
    seen = (env.single_observation_space, env.single_action_space)
    if own == seen:  # a torch-native env
        return own, _same, _same
    action_space, play = played(own[1])
    if (shown(own[0])[0], action_space) != seen:
        return None
    return own, _inverse(own[0]), play


def _inverse(raw: gymnasium.Space) -> Convert:
    """How observations of the space `raw` are made of those that `shown` makes of them."""
    shape = tuple(raw.shape or ())
    seen = tuple(shown(raw)[0].shape or ())
    dtype = raw.dtype

    def back(obs: np.ndarray) -> np.ndarray:
        if len(seen) == 3 and len(shape) > 2 and shape[-2:] != seen[-2:]:  # channels were last
            *stack, height, width, channels = shape
            obs = np.moveaxis(obs.reshape(len(obs), *stack, channels, height, width), -3, -1)
        return obs.reshape(len(obs), *shape).astype(dtype, copy=False)

    return back


def _same(obs: np.ndarray) -> np.ndarray:
    return obs


def _folder(name: str, where: str) -> Path:
    """Where Minari keeps the set `name`; ConfigError where it could not read what lies there."""
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        root = get_dataset_path()
    except OSError as error:
        raise ConfigError(f"{where}: Minari has no folder for its sets ({error}).") from None
    if not _is_name(name):
        rule = "letters, digits, - and _, with a version and perhaps a namespace of two or more"
        example = f"{name}-v0" if _is_name(f"{name}-v0") else "cartpole/mixed-v0"
        raise ConfigError(f"{where}: Minari's names are {rule}, as in minari:{example}")
    parents = Path(name).parents
    if "data" in Path(name).parts or any((root / parent / "data").exists() for parent in parents):
        reason = "Minari takes a folder with 'data' in it for a data set"
        raise ConfigError(f"{where}: {reason}; choose another name.")
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
    for folder, inside, _ in os.walk(root):
        inside[:] = [each for each in inside if not each.startswith(".")]
        if "data" not in inside:
            continue
        inside.clear()
        own = Path(folder).relative_to(root).as_posix()
        (good if _is_name(own) else broken).append(own)
    text = nearest(name, sorted(good)) if good else " There is none."
    if broken:
        text += f" Broken, and best removed: {', '.join(sorted(broken))} in {root}."
    return text


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ConfigError(f'minari: not installed ({error}); pip install "rlx[minari]".') from None
    return minari
