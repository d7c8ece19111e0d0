"""A folder of npz shards, each with `states` [n, k · C, …], `actions` [n], `next_states`, `rewards` [n] and `dones` [n]."""

import functools
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx import report
from rlx.agent import Spec
from rlx.config import ConfigError
from rlx.data import Data, Episodes, aside, check_actions, histogram
from rlx.rng import pick, stream_key, uniform

_MOST_ACTIONS = 1 << 16
ARRAYS = ("states", "actions", "next_states", "rewards", "dones")


class Shards(Data):
    """One shard at a time is in memory. An epoch goes through all of them in random order; from each, as many minibatches are drawn
    as it has rows for.

    `dones` must be true where an episode terminated (not at time limits, which the format cannot tell apart), and pictures are
    uint8, or floats as v / 128 − 1.
    """

    def __init__(self, folder: Path, skip_bad: bool):
        """Reads every shard once. ConfigError names the first bad one and what is wrong with it."""
        self.folder, self.opened = folder, (Path(), dict[str, np.ndarray]())
        read: dict[Path, _Facts | ConfigError] = {}
        for file in sorted(folder.glob("*.npz")):
            try:
                read[file] = _Facts.of(_read(file))
            except ConfigError as error:
                read[file] = error
        kinds = Counter(facts.kind for facts in read.values() if isinstance(facts, _Facts))
        if not kinds:
            raise ConfigError(f"data={folder}: no shard in it is good.{''.join(f' {error}' for error in read.values())}")
        (self.dtype, self.shape), _ = kinds.most_common(1)[0]
        good: dict[Path, _Facts] = {}
        for file, facts in read.items():
            if isinstance(facts, _Facts) and facts.kind == (self.dtype, self.shape):
                good[file] = facts
                continue
            if isinstance(facts, _Facts):
                dtype, shape = facts.kind
                facts = ConfigError(f"{file}: 'states' is {dtype} {list(shape)}, in others {self.dtype} {list(self.shape)}.")
            if not skip_bad:
                raise ConfigError(f"{facts} skip_bad=true goes on without it.")
            report.start(skipped=facts)
        self.files, self.sizes = list(good), [int(facts.counts.sum()) for facts in good.values()]
        self.transitions = sum(self.sizes)
        self.counts = np.sum([np.pad(facts.counts, (0, _MOST_ACTIONS - len(facts.counts))) for facts in good.values()], 0)
        self.counts = np.trim_zeros(self.counts, "b")
        self.dones, self.rewards = (sum(getattr(facts, name) for facts in good.values()) for name in ("dones", "rewards"))
        self.low, self.high = min(facts.low for facts in good.values()), max(facts.high for facts in good.values())
        if self.dones > self.transitions / 2:
            raise ConfigError(
                f"data={folder}: 'dones' is true in {self.dones:,} of {self.transitions:,} rows; does it say who is not done?"
            )

    def fit(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        space: Any = spec.observation_space
        self.scaled = self.dtype.kind == "f" and space.dtype == np.uint8
        if not isinstance(space, gymnasium.spaces.Box) or self.shape != space.shape or not (self.scaled or self.dtype == space.dtype):
            raise ConfigError(f"data={self.folder}: its states are {self.dtype} {list(self.shape)}; this env has {space}.")
        if self.scaled and not -1 <= self.low < 0 < self.high <= 1:
            raise ConfigError(
                f"data={self.folder}: its states reach from {self.low:g} to {self.high:g}; pictures are v / 128 − 1, or uint8."
            )
        check_actions(np.arange(len(self.counts)), spec, f"data={self.folder}")
        return []

    def sample(self, number: int, draws: Tensor, n_steps: int, discount: float) -> dict[str, Tensor]:
        """ConfigError for n_steps > 1: shards have no order."""
        if n_steps > 1:
            raise ConfigError(f"agent.n_steps={n_steps}: npz shards keep no episodes; use 1.")
        arrays = self._open(self._due(number, draws.shape[1]))
        rows = pick(draws, len(arrays["actions"])).cpu().numpy()
        obs, next_obs = (self._shown(arrays[name][rows]) for name in ("states", "next_states"))
        discounts = (discount * ~arrays["dones"][rows]).astype(np.float32)
        batch = {"obs": obs, "action": arrays["actions"][rows], "reward": arrays["rewards"][rows], "discount": discounts}
        batch["next_obs"] = next_obs
        return {name: torch.from_numpy(value).to(draws.device) for name, value in batch.items()}

    def _due(self, number: int, batch: int) -> Path:
        """The shard of minibatch `number`: a function of it alone, so that a resumed run needs no memory of its place."""
        each = -(-np.array(self.sizes) // batch)
        epoch, within = divmod(number, int(each.sum()))
        order = _order(epoch, len(self.files))
        return self.files[order[np.searchsorted(each[order].cumsum(), within, side="right")]]

    def _open(self, file: Path) -> dict[str, np.ndarray]:
        if self.opened[0] != file:
            self.opened = (Path(), {})  # never two at a time
            self.opened = (file, _read(file))
        return self.opened[1]

    def _shown(self, states: np.ndarray) -> np.ndarray:
        return np.rint(states * 128 + 128).clip(0, 255).astype(np.uint8) if self.scaled else states

    def card(self) -> dict[str, Any]:
        size = sum(file.stat().st_size for file in self.files)
        return {
            "transitions": f"{self.transitions:,}, mean reward {self.rewards / self.transitions:.3g}",
            "shards": f"{len(self.files)}, at most {max(self.sizes):,} transitions each",
            "ended": f"{self.dones:,} done ({self.dones / self.transitions:.1%}); returns are unknown: shards keep no episodes",
            "obs": f"{self.dtype} {list(self.shape)}",
            "actions": histogram(self.counts),
            "size": f"{size / 1e6:,.1f} MB on disk",
        }


@functools.lru_cache(4)
def _order(epoch: int, shards: int) -> np.ndarray:
    return uniform(stream_key(torch.tensor(epoch), "shards"), torch.tensor(0), shards).argsort().numpy()


@dataclass(frozen=True)
class _Facts:
    """What is kept of a shard."""

    kind: tuple[np.dtype, tuple[int, ...]]
    """Of its states."""
    counts: np.ndarray
    """Of its actions."""
    dones: int
    rewards: float
    low: float
    high: float
    """Of its states."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "_Facts":
        states = arrays["states"]
        dones, rewards = int(arrays["dones"].sum()), float(arrays["rewards"].sum())
        return cls(
            (states.dtype, states.shape[1:]), np.bincount(arrays["actions"]), dones, rewards, float(states.min()), float(states.max())
        )


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard; ConfigError says what is wrong with it."""
    try:
        with np.load(file) as shard:
            arrays = {name: shard[name] for name in ARRAYS if name in shard}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{file}: unreadable, perhaps truncated ({error}).") from None
    for name in ARRAYS:
        if name not in arrays:
            raise ConfigError(f"{file}: array '{name}' is missing; it needs {', '.join(ARRAYS)}.")
        array = arrays[name]
        if array.dtype.kind not in ("ui" if name == "actions" else "buif"):
            raise ConfigError(f"{file}: '{name}' is {array.dtype}.")
        shape = arrays["states"].shape if name == "next_states" else arrays["states"].shape[:1]
        if array.ndim < 1 or not len(array) or (name != "states" and array.shape != shape):
            raise ConfigError(f"{file}: '{name}' is {list(array.shape)}; states are {list(arrays['states'].shape)}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigError(f"{file}: '{name}' has a NaN or an infinite number in it.")
    states, actions, next_states, rewards, dones = (arrays[name] for name in ARRAYS)
    if next_states.dtype != states.dtype:
        raise ConfigError(f"{file}: 'next_states' is {next_states.dtype}, 'states' is {states.dtype}.")
    if int(actions.min()) < 0 or int(actions.max()) >= _MOST_ACTIONS:
        raise ConfigError(f"{file}: 'actions' reaches from {actions.min()} to {actions.max()}.")
    if not np.isin(dones, (0, 1)).all():
        raise ConfigError(f"{file}: 'dones' has other numbers than 0 and 1 in it.")
    return arrays | {"actions": actions.astype(np.int64), "rewards": rewards.astype(np.float32), "dones": dones.astype(bool)}


def write(data: Episodes, out: Path, stack: int, rows: int = 4096) -> None:
    """`data` as shards of so many transitions, its observations stacked as `stack` says; ConfigError where `out` exists."""
    partial = aside(out)
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
        np.savez_compressed(partial / f"{file:05d}.npz", **arrays)
    partial.rename(out)
