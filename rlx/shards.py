"""A folder of npz shards, each with `states` [n, k · C, …], `actions` [n], `next_states`, `rewards` [n] and `dones` [n]."""

import functools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx import report
from rlx.agent import Spec
from rlx.config import ConfigError
from rlx.data import Data, Episodes, check_actions, histogram
from rlx.rng import stream_key, uniform

ARRAYS = ("states", "actions", "next_states", "rewards", "dones")


class Shards(Data):
    """One shard at a time is in memory. An epoch goes through all of them in random order; from each, as many minibatches are drawn
    as it has rows for.

    `dones` must be true where an episode terminated (not at time limits, which the format cannot tell apart), and pictures are
    uint8, or floats as v / 128 − 1.
    """

    def __init__(self, folder: Path, skip_bad: bool):
        """Reads every shard once. ConfigError names the first bad one and what is wrong with it."""
        self.folder, self.files, self.sizes = folder, [], []
        self.counts, self.dones, self.rewards = np.zeros(0, np.int64), 0, 0.0
        kind: Any = None
        for file in sorted(folder.glob("*.npz")):
            try:
                arrays = _read(file)
                own = {name: (arrays[name].dtype, arrays[name].shape[1:]) for name in ARRAYS}
                for name in ARRAYS:
                    if kind is not None and own[name] != kind[name]:
                        (dtype, shape), (others, size) = own[name], kind[name]
                        raise ConfigError(f"{file}: '{name}' is {dtype} {list(shape)}, in others {others} {list(size)}.")
            except ConfigError as error:
                if not skip_bad:
                    raise ConfigError(f"{error} skip_bad=true goes on without it.") from None
                report.start(skipped=error)
                continue
            kind = own
            self.files.append(file)
            self.sizes.append(len(arrays["actions"]))
            counts = np.bincount(arrays["actions"])
            self.counts = np.pad(self.counts, (0, max(0, len(counts) - len(self.counts))))
            self.counts[: len(counts)] += counts
            self.dones, self.rewards = self.dones + int(arrays["dones"].sum()), self.rewards + float(arrays["rewards"].sum())
        if kind is None:
            raise ConfigError(f"data={folder}: no shard in it is good.")
        self.dtype, self.shape = kind["states"]
        self.transitions = sum(self.sizes)
        self.opened: tuple[Path | None, dict[str, np.ndarray]] = (None, {})

    def fit(self, spec: Spec) -> None:
        space: Any = spec.observation_space
        scaled = self.dtype.kind == "f" and space.dtype == np.uint8
        if not isinstance(space, gymnasium.spaces.Box) or self.shape != space.shape or not (scaled or self.dtype == space.dtype):
            raise ConfigError(f"data={self.folder}: its states are {self.dtype} {list(self.shape)}; this env has {space}.")
        self.scaled = scaled
        check_actions(np.arange(len(self.counts)), spec, f"data={self.folder}")

    def sample(self, number: int, draws: Tensor, n_steps: int, discount: float) -> dict[str, Tensor]:
        """ConfigError for n_steps > 1: shards have no order."""
        if n_steps > 1:
            raise ConfigError(f"agent.n_steps={n_steps}: npz shards keep no episodes; use 1.")
        arrays = self._open(self._due(number, draws.shape[1]))
        rows = (draws[..., 0] * len(arrays["actions"])).long().cpu().numpy()
        obs, next_obs = (self._shown(arrays[name][rows]) for name in ("states", "next_states"))
        batch = {"obs": obs, "action": arrays["actions"][rows].astype(np.int64), "reward": arrays["rewards"][rows].astype(np.float32)}
        batch |= {"discount": (discount * ~arrays["dones"][rows].astype(bool)).astype(np.float32), "next_obs": next_obs}
        return {name: torch.from_numpy(value).to(draws.device) for name, value in batch.items()}

    def _due(self, number: int, batch: int) -> Path:
        """The shard of minibatch `number`: a function of it alone, so that a resumed run needs no memory of its place."""
        each = -(-np.array(self.sizes) // batch)
        epoch, within = divmod(number, int(each.sum()))
        order = _order(epoch, len(self.files))
        return self.files[order[np.searchsorted(each[order].cumsum(), within, side="right")]]

    def _open(self, file: Path) -> dict[str, np.ndarray]:
        if self.opened[0] != file:
            self.opened = (None, {})  # never two at a time
            self.opened = (file, _read(file))
        return self.opened[1]

    def _shown(self, states: np.ndarray) -> np.ndarray:
        return np.rint(states * 128 + 128).clip(0, 255).astype(np.uint8) if self.scaled else states

    def card(self) -> dict[str, Any]:
        size = sum(file.stat().st_size for file in self.files)
        return {
            "transitions": f"{self.transitions:,}, mean reward {self.rewards / self.transitions:.3g}",
            "shards": f"{len(self.files)}, at most {max(self.sizes):,} transitions each",
            "ended": f"{self.dones:,} done; returns are unknown: shards keep no episodes",
            "obs": f"{self.dtype} {list(self.shape)}",
            "actions": histogram(self.counts),
            "size": f"{size / 1e6:,.1f} MB on disk",
        }


@functools.lru_cache(4)
def _order(epoch: int, shards: int) -> np.ndarray:
    return uniform(stream_key(torch.tensor(epoch), "shards"), torch.tensor(0), shards).argsort().numpy()


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard; ConfigError says what is wrong with it."""
    try:
        with np.load(file) as shard:
            arrays = {name: shard[name] for name in ARRAYS if name in shard}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{file}: unreadable, perhaps truncated ({error}).") from None
    for name in ARRAYS:
        if name not in arrays:
            raise ConfigError(f"{file}: array '{name}' is missing; it needs {', '.join(ARRAYS)}.")
        array = arrays[name]
        kinds = {"states": "uif", "next_states": "uif", "actions": "ui", "rewards": "uif", "dones": "bui"}[name]
        if array.dtype.kind not in kinds and not (name == "dones" and set(np.unique(array)) <= {0.0, 1.0}):
            raise ConfigError(f"{file}: '{name}' is {array.dtype}.")
        shape = arrays["states"].shape if name == "next_states" else arrays["states"].shape[:1]
        if array.ndim < 1 or not len(array) or (name != "states" and array.shape != shape):
            raise ConfigError(f"{file}: '{name}' is {list(array.shape)}; states are {list(arrays['states'].shape)}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigError(f"{file}: '{name}' has a NaN or an infinite number in it.")
    if int(arrays["actions"].min()) < 0:
        raise ConfigError(f"{file}: 'actions' has a negative number in it.")
    return arrays


def write(data: Episodes, out: Path, stack: int, rows: int = 4096) -> None:
    """`data` as shards of so many transitions, its observations stacked as `stack` says; ConfigError where `out` exists."""
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be made ({error.strerror}).") from None
    for file, begin in enumerate(range(0, data.transitions, rows)):
        number = np.arange(begin, min(begin + rows, data.transitions))
        episode = data.episode_of(number)
        arrays = {
            "states": data.stacked(number, episode, stack),
            "actions": data.action[number],
            "next_states": data.stacked(number + 1, episode, stack),
            "rewards": data.reward[number],
            "dones": data.terminated[episode] & (number + 1 == data.begin[episode + 1]),
        }
        np.savez_compressed(out / f"{file:05d}.npz", **arrays)
