"""A folder of npz shards, each with `states` [n, k · C, …], `actions` [n], `next_states`, `rewards` [n] and `dones` [n]."""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.data.datasets import (
    MOST_ACTIONS,
    Data,
    Episodes,
    check_actions,
    check_numbered,
    flags,
    histogram,
    observed,
    whole,
    writing,
)
from rlx.data.npy import archived, cast, check_finite, require_memory, shown_dtype
from rlx.errors import ConfigError
from rlx.nn.rng import pick, stream_key, uniform
from rlx.show import report

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
        self.scaled = False
        read: dict[Path, _Facts | ConfigError] = {}
        for file in sorted(folder.glob("*.npz")):
            try:
                read[file] = _Facts.of(_read(file))
            except ConfigError as error:
                read[file] = error
        kinds = Counter(facts.kind for facts in read.values() if isinstance(facts, _Facts))
        if not kinds:
            raise ConfigError(
                f"data={folder}: no shard in it is good.{''.join(f' {error}' for error in read.values())}"
            )
        (self.dtype, self.shape), _ = kinds.most_common(1)[0]
        self.shown = self.dtype
        good: dict[Path, _Facts] = {}
        for file, facts in read.items():
            if isinstance(facts, _Facts) and facts.kind == (self.dtype, self.shape):
                good[file] = facts
                continue
            if isinstance(facts, _Facts):
                dtype, shape = facts.kind
                facts = ConfigError(
                    f"{file}: 'states' is {dtype} {list(shape)}, in others {self.dtype} {list(self.shape)}."
                )
            if not skip_bad:
                raise ConfigError(f"{facts} skip_bad=true goes on without it.")
            report.start(skipped=facts)
        self.files, self.sizes = list(good), [int(facts.counts.sum()) for facts in good.values()]
        self.transitions = sum(self.sizes)
        counts = np.zeros(MOST_ACTIONS, np.int64)
        for facts in good.values():
            counts[: len(facts.counts)] += facts.counts
        self.counts = np.trim_zeros(counts, "b")
        self.dones, self.rewards = (
            sum(getattr(facts, name) for facts in good.values()) for name in ("dones", "rewards")
        )
        self.low, self.high = (
            min(facts.low for facts in good.values()),
            max(facts.high for facts in good.values()),
        )
        if self.dones > self.transitions / 2:
            raise ConfigError(
                f"data={folder}: 'dones' is true in {self.dones:,} of {self.transitions:,} rows; does it say who is not done?"
            )

    def fit(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        space: Any = spec.observation_space
        where = f"data={self.folder}"
        bounds = (self.low, self.high)
        pixels = space.dtype == np.uint8 and space.shape == self.shape
        self.scaled = pixels and self.dtype.kind == "f"
        if not self.scaled:
            self.shown = observed(spec, self.dtype, self.shape, lambda: bounds, where)
        elif not -1 <= self.low < 0 < self.high <= 1:
            reach, wanted = f"{self.low:g} to {self.high:g}", "v / 128 − 1, or uint8"
            raise ConfigError(f"{where}: its states reach from {reach}; pictures are {wanted}.")
        check_actions(np.arange(len(self.counts)), spec, where)
        return []

    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float
    ) -> dict[str, Tensor]:
        """ConfigError for n_steps > 1: shards have no order."""
        if n_steps > 1:
            raise ConfigError(f"agent.n_steps={n_steps}: npz shards keep no episodes; use 1.")
        arrays = self._open(self._due(number, draws.shape[1]))
        rows = pick(draws, len(arrays["actions"])).cpu().numpy()
        obs, next_obs = (self._shown(arrays[name][rows]) for name in ("states", "next_states"))
        discounts = (discount * ~arrays["dones"][rows]).astype(np.float32)
        batch = {
            "obs": obs,
            "action": arrays["actions"][rows],
            "reward": arrays["rewards"][rows],
            "discount": discounts,
        }
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
        if self.scaled:
            return np.rint(states * 128 + 128).clip(0, 255).astype(np.uint8)
        return cast(states, self.shown)

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
    return (
        uniform(stream_key(torch.tensor(epoch), "shards"), torch.tensor(0), shards)
        .argsort()
        .numpy()
    )


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
    """Of its states and next states."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "_Facts":
        states, next_states = arrays["states"], arrays["next_states"]
        return cls(
            kind=(states.dtype, states.shape[1:]),
            counts=np.bincount(arrays["actions"]),
            dones=int(arrays["dones"].sum()),
            rewards=float(arrays["rewards"].sum()),
            low=min(float(states.min()), float(next_states.min())),
            high=max(float(states.max()), float(next_states.max())),
        )


_KINDS = dict(states="uif", actions="ui", next_states="uif", rewards="buif", dones="buif")
"""Of the dtypes that the arrays may have."""


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard, in dtypes that agents take; ConfigError says what is wrong with it."""
    arrays = archived(file, ARRAYS)
    for name in ARRAYS:
        if name not in arrays:
            raise ConfigError(f"{file}: array '{name}' is missing; it needs {', '.join(ARRAYS)}.")
        array, states = arrays[name], arrays["states"].shape
        if array.dtype.kind not in _KINDS[name]:
            what = "whole numbers" if name == "actions" else "numbers"
            raise ConfigError(f"{file}: '{name}' is {array.dtype}; expected {what}.")
        if array.shape != (states if name in ("states", "next_states") else states[:1]):
            has = list(array.shape)
            raise ConfigError(f"{file}: '{name}' is {has}; states are {list(states)}.")
    dtypes = {name: shown_dtype(array.dtype) for name, array in arrays.items()}
    dtypes |= {"actions": np.dtype(np.int64), "rewards": np.dtype(np.float32)}
    if dtypes["next_states"] != dtypes["states"]:
        own, states_own = arrays["next_states"].dtype, arrays["states"].dtype
        raise ConfigError(f"{file}: 'next_states' is {own}, 'states' is {states_own}.")
    check_numbered(arrays["actions"], f"{file}: 'actions'")
    dones = flags(arrays["dones"], f"{file}: 'dones'")
    for name in ("states", "next_states", "rewards"):
        check_finite(arrays[name], f"{file}: '{name}'")
    return {name: cast(arrays[name], dtypes[name]) for name in ARRAYS} | {"dones": dones}


def write(data: Episodes, out: Path, stack: int, rows: int = 4096) -> None:
    """`data` as shards of so many transitions, its observations stacked as `stack` says.

    ConfigError where `out` exists or cannot be written, or shards cannot hold the actions.
    """
    if data.action.ndim > 1:
        reason = "npz shards hold numbered actions, and these are continuous"
        raise ConfigError(f"out={out}: {reason}; write them as out=minari:NAME.")
    most = min(rows, data.transitions)
    require_memory(4 * most * stack * data.obs[0].nbytes, f"out={out}: stacks of {stack}")
    with whole(out, f"out={out}") as folder:
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
            with writing(f"out={out}"):
                np.savez_compressed(folder / f"{file:05d}.npz", **arrays)
