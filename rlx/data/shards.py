"""A folder of npz shards, the format of others; transitions without episodes.

Each shard has `states` [n, k · C, …], `actions` [n], `next_states`, `rewards` [n] and `dones` [n].
"""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.data.compatibility import check_actions, obs_dtype
from rlx.data.datasets import Data, column, histogram
from rlx.data.episodes import Episodes
from rlx.data.npy import (
    MOST_ACTIONS,
    archived,
    batch_dtype,
    cast,
    check_action_numbers,
    check_finite,
    flags,
    require_memory,
)
from rlx.data.writer import disk_errors, new_folder
from rlx.errors import ConfigError
from rlx.nn.rng import pick, stream_key, uniform
from rlx.show import console

ARRAYS = ("states", "actions", "next_states", "rewards", "dones")
"""Names of the arrays in a shard."""
_KINDS = {
    "states": "uif",
    "actions": "ui",
    "next_states": "uif",
    "rewards": "buif",
    "dones": "buif",
}
"""Array → the kinds of dtypes that it may have."""


class Shards(Data):
    """A data set in npz shards, of which one at a time is in memory.

    An epoch goes through all shards in random order; from each shard, as many minibatches are drawn
    as it has rows for. `dones` must be true where an episode terminated (not at time limits, which
    the format cannot tell apart). Images are uint8, or floats as v / 128 − 1.
    """

    def __init__(self, folder: Path, skip_bad: bool):
        """Reads every shard once. ConfigError names the first bad one and what is wrong with it.

        `skip_bad`: leave bad ones out instead, and say so.
        """
        self.folder = folder
        self.opened: _Opened | None = None
        """The shard that is in memory, if one is."""
        self.scaled = False
        """Whether the states are images in floats, which become uint8 in a batch."""
        read = {file: _read_facts(file) for file in sorted(folder.glob("*.npz"))}
        kinds = Counter(facts.kind for facts in read.values() if isinstance(facts, _Facts))
        if not kinds:
            errors = "".join(f" {error}" for error in read.values())
            raise ConfigError(f"data={folder}: no shard in it is good.{errors}")
        (self.dtype, self.shape), _ = kinds.most_common(1)[0]
        self.obs_dtype = self.dtype
        """The dtype of observations in a batch."""
        good: dict[Path, _Facts] = {}
        for file, facts in read.items():
            if isinstance(facts, _Facts) and facts.kind == (self.dtype, self.shape):
                good[file] = facts
                continue
            error = self._error(file, facts)
            if not skip_bad:
                raise ConfigError(f"{error} skip_bad=true goes on without it.")
            console.facts(skipped=error)
        self.files = list(good)
        self._add_up(list(good.values()))
        if self.done_count > self.transitions / 2:
            share = f"{self.done_count:,} of {self.transitions:,} rows"
            question = "does it say who is not done?"
            raise ConfigError(f"data={folder}: 'dones' is true in {share}; {question}")

    def _error(self, file: Path, facts: "_Facts | ConfigError") -> ConfigError:
        """The error that says why the shard `file` is not good."""
        if isinstance(facts, ConfigError):
            return facts
        dtype, shape = facts.kind
        return ConfigError(
            f"{file}: 'states' is {dtype} {list(shape)}, in others {self.dtype} {list(self.shape)}."
        )

    def _add_up(self, shards: "list[_Facts]") -> None:
        """Set the facts of the whole set from those of its good `shards`."""
        self.sizes = [int(facts.action_counts.sum()) for facts in shards]
        """The number of transitions in each shard."""
        self.transitions = sum(self.sizes)
        action_counts = np.zeros(MOST_ACTIONS, np.int64)
        for facts in shards:
            action_counts[: len(facts.action_counts)] += facts.action_counts
        self.action_counts = np.trim_zeros(action_counts, "b")
        """How often each action was taken, [actions]."""
        self.done_count = sum(facts.done_count for facts in shards)
        self.reward_sum = sum(facts.reward_sum for facts in shards)
        self.low = min(facts.low for facts in shards)
        self.high = max(facts.high for facts in shards)

    def adapt_to(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        """As `Data.adapt_to`; shards do not say in which env they were collected."""
        space: Any = spec.observation_space
        location = f"data={self.folder}"
        bounds = (self.low, self.high)
        is_image_env = space.dtype == np.uint8 and space.shape == self.shape
        self.scaled = is_image_env and self.dtype.kind == "f"
        if not self.scaled:
            self.obs_dtype = obs_dtype(spec, self.dtype, self.shape, lambda: bounds, location)
        elif not -1 <= self.low < 0 < self.high <= 1:
            raise ConfigError(
                f"{location}: its states reach from {self.low:g} to {self.high:g}; "
                f"images are v / 128 − 1, or uint8."
            )
        check_actions(np.arange(len(self.action_counts)), spec, location)
        return []

    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float | Tensor
    ) -> dict[str, Tensor]:
        """As `Data.sample`; ConfigError for n_steps > 1, as shards have no order."""
        if n_steps > 1:
            raise ConfigError(f"agent.n_steps={n_steps}: npz shards keep no episodes; use 1.")
        arrays = self._open(self._due(number, draws.shape[1]))
        rows = pick(draws, len(arrays["actions"])).cpu().numpy()
        batch = {
            "obs": self._observations(arrays["states"][rows]),
            "action": arrays["actions"][rows],
            "reward": arrays["rewards"][rows],
            "discount": (column(discount) * ~arrays["dones"][rows]).astype(np.float32),
            "next_obs": self._observations(arrays["next_states"][rows]),
        }
        return {name: torch.from_numpy(value).to(draws.device) for name, value in batch.items()}

    def _due(self, number: int, batch_size: int) -> Path:
        """The shard of minibatch `number`.

        It is a function of the number alone, so that a resumed run need not remember its shard.
        """
        # Minibatches of each shard: its size by that of a batch, rounded up.
        minibatches = -(-np.array(self.sizes) // batch_size)
        epoch, number_in_epoch = divmod(number, int(minibatches.sum()))
        order = _order(epoch, len(self.files))
        ends = minibatches[order].cumsum()
        return self.files[order[np.searchsorted(ends, number_in_epoch, side="right")]]

    def _open(self, file: Path) -> dict[str, np.ndarray]:
        """The arrays of the shard `file`, which is in memory then."""
        if self.opened is None or self.opened.file != file:
            # Never two shards at a time: the old one goes before the new one is read.
            self.opened = None
            self.opened = _Opened(file, _read(file))
        return self.opened.arrays

    def _observations(self, states: np.ndarray) -> np.ndarray:
        """States [S, B, …] as observations of the env."""
        if self.scaled:
            return np.rint(states * 128 + 128).clip(0, 255).astype(np.uint8)
        return cast(states, self.obs_dtype)

    def card(self) -> dict[str, Any]:
        """As `Data.card`."""
        mean_reward = self.reward_sum / self.transitions
        done_share = self.done_count / self.transitions
        size = sum(file.stat().st_size for file in self.files)
        return {
            "transitions": f"{self.transitions:,}, mean reward {mean_reward:.3g}",
            "shards": f"{len(self.files)}, at most {max(self.sizes):,} transitions each",
            "ended": f"{self.done_count:,} done ({done_share:.1%}); "
            f"returns are unknown: shards keep no episodes",
            "obs": f"{self.dtype} {list(self.shape)}",
            "actions": histogram(self.action_counts),
            "size": f"{size / 1e6:,.1f} MB on disk",
        }


class _Opened(NamedTuple):
    """The shard that is in memory."""

    file: Path
    arrays: dict[str, np.ndarray]


@functools.lru_cache(4)
def _order(epoch: int, shards: int) -> np.ndarray:
    """int64 [shards]: the order in which an epoch goes through the shards."""
    key = stream_key(torch.tensor(epoch), "shards")
    return uniform(key, torch.tensor(0), shards).argsort().numpy()


@dataclass(frozen=True)
class _Facts:
    """The facts about a shard that are kept when it is closed."""

    kind: tuple[np.dtype, tuple[int, ...]]
    """(dtype, shape) of one of its states."""
    action_counts: np.ndarray
    """How often each action was taken, [actions]."""
    done_count: int
    """The number of rows where `dones` is true."""
    reward_sum: float
    """The sum of the rewards."""
    low: float
    """The lowest number in its states and next states."""
    high: float
    """The highest number in its states and next states."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "_Facts":
        """The facts of a shard that has these arrays."""
        states, next_states = arrays["states"], arrays["next_states"]
        return cls(
            kind=(states.dtype, states.shape[1:]),
            action_counts=np.bincount(arrays["actions"]),
            done_count=int(arrays["dones"].sum()),
            reward_sum=float(arrays["rewards"].sum()),
            low=min(float(states.min()), float(next_states.min())),
            high=max(float(states.max()), float(next_states.max())),
        )


def _read_facts(file: Path) -> _Facts | ConfigError:
    """The facts of a shard, or what is wrong with it."""
    try:
        return _Facts.of(_read(file))
    except ConfigError as error:
        return error


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard, in dtypes that agents take; ConfigError says what is wrong with it."""
    arrays = archived(file, ARRAYS)
    for name in ARRAYS:
        if name not in arrays:
            raise ConfigError(f"{file}: array '{name}' is missing; it needs {', '.join(ARRAYS)}.")
        _check_array(file, name, arrays[name], arrays["states"].shape)
    dtypes = {name: batch_dtype(array.dtype) for name, array in arrays.items()}
    dtypes["actions"] = np.dtype(np.int64)
    dtypes["rewards"] = np.dtype(np.float32)
    if dtypes["next_states"] != dtypes["states"]:
        dtype, states_dtype = arrays["next_states"].dtype, arrays["states"].dtype
        raise ConfigError(f"{file}: 'next_states' is {dtype}, 'states' is {states_dtype}.")
    check_action_numbers(arrays["actions"], f"{file}: 'actions'")
    dones = flags(arrays["dones"], f"{file}: 'dones'")
    for name in ("states", "next_states", "rewards"):
        check_finite(arrays[name], f"{file}: '{name}'")
    return {name: cast(arrays[name], dtypes[name]) for name in ARRAYS} | {"dones": dones}


def _check_array(file: Path, name: str, array: np.ndarray, states: tuple[int, ...]) -> None:
    """ConfigError where an array has no numbers, or not one row for each state.

    `states`: the shape of all states.
    """
    if array.dtype.kind not in _KINDS[name]:
        expected = "whole numbers" if name == "actions" else "numbers"
        raise ConfigError(f"{file}: '{name}' is {array.dtype}; expected {expected}.")
    expected_shape = states if name in ("states", "next_states") else states[:1]
    if array.shape != expected_shape:
        shape = list(array.shape)
        raise ConfigError(f"{file}: '{name}' is {shape}; states are {list(states)}.")


def write(data: Episodes, out: Path, stack: int, rows: int = 4096) -> None:
    """`data` as shards of `rows` transitions each, their states `stack` observations.

    ConfigError where `out` exists or cannot be written, or shards cannot hold the actions.
    """
    if data.action.ndim > 1:
        reason = "npz shards hold numbered actions, and these are continuous"
        raise ConfigError(f"out={out}: {reason}; write them as out=minari:NAME.")
    rows_at_once = min(rows, data.transitions)
    size = 4 * rows_at_once * stack * data.obs[0].nbytes
    require_memory(size, f"out={out}: stacks of {stack}")
    with new_folder(out, f"out={out}") as folder:
        for shard, begin in enumerate(range(0, data.transitions, rows)):
            number = np.arange(begin, min(begin + rows, data.transitions))
            episode = data.episode_of(number)
            is_last = number + 1 == data.begin[episode + 1]
            arrays = {
                "states": data.stacked(number, episode, stack),
                "actions": data.action[number],
                "next_states": data.stacked(number + 1, episode, stack),
                "rewards": data.reward[number],
                "dones": data.terminated[episode] & is_last,
            }
            with disk_errors(f"out={out}"):
                np.savez_compressed(folder / f"{shard:05d}.npz", **arrays)
