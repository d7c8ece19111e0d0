"""Data sets of Minari (an extra: pip install "rlx[minari]"), the public format of offline RL."""

import tempfile
import warnings
from typing import Any

import numpy as np

from rlx.agent import Spec
from rlx.config import ConfigError
from rlx.data import Episodes, Writer

_AT_ONCE = 64
"""Episodes in memory while writing."""


def imported(name: str) -> Episodes:
    """The local data set `name` in our own format, in a temporary folder that lasts as long as the process; ConfigError if it has none."""
    minari = _minari()
    try:
        data = minari.load_dataset(name)
    except (OSError, ValueError) as error:
        local = ", ".join(minari.list_local_datasets()) or "none"
        raise ConfigError(f"data=minari:{name}: cannot be loaded ({error}). Local ones: {local}.") from None
    folder = tempfile.TemporaryDirectory(prefix="rlx-")
    writer = Writer(f"{folder.name}/data")
    for episode in data.iterate_episodes():
        if isinstance(episode.observations, (dict, tuple)):
            raise ConfigError(f"data=minari:{name}: its observations are {data.observation_space}; rlx takes Box and Discrete.")
        obs, action = (np.asarray(x) for x in (episode.observations, episode.actions))
        obs = obs.astype(np.float32) if obs.dtype.kind == "f" else obs
        action = action.astype(np.float32 if action.dtype.kind == "f" else np.int64)
        writer.add(obs, action, np.asarray(episode.rewards), bool(episode.terminations[-1]))
    result = writer.close({}, 1, [f"minari:{name}"])
    result.temporary = folder
    return result


def write(data: Episodes, name: str, spec: Spec) -> None:
    """`data`, of an env of this `spec`, as Minari's data set `name`, to the bit; ConfigError where it exists or the name is none."""
    minari = _minari()
    from minari.data_collector import EpisodeBuffer

    def buffer(number: int) -> Any:
        obs, action, reward, terminated = data.episode(number)
        ends = np.arange(1, len(action) + 1) == len(action)
        flags = {"terminations": list(ends & terminated), "truncations": list(ends & (not terminated))}
        return EpisodeBuffer(id=number, observations=list(obs), actions=list(action), rewards=list(reward), **flags)

    warnings.filterwarnings("ignore", module="minari")  # it asks for an author, a permalink, …
    made = None
    for begin in range(0, data.episodes, _AT_ONCE):
        buffers = [buffer(number) for number in range(begin, min(begin + _AT_ONCE, data.episodes))]
        if made is not None:
            made.update_dataset_from_buffer(buffers)
            continue
        spaces = {"observation_space": spec.observation_space, "action_space": spec.action_space}
        try:
            made = minari.create_dataset_from_buffers(name, buffers, jpeg_encoding=False, **spaces)
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"out=minari:{name}: Minari cannot make it ({error}).") from None


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ConfigError(f'minari: not installed ({error}); pip install "rlx[minari]".') from None
    return minari
