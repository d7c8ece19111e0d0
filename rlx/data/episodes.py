"""Whole episodes on disk: our own format of data sets.

Each observation is stored once, in arrays that are mapped into memory and never read whole.

data.json        format, env (the config group), stack (observations shown at once), sources
obs.npy          [N + E, *O]   of N transitions in E episodes; each episode's last observation
                               follows its others
action.npy       [N] numbers of a Discrete space, or [N, D] of a Box
reward.npy       [N] float32
length.npy       [E] int64     transitions of each episode
terminated.npy   [E] bool      whether it ended by itself; else it was cut

Files that others have written may have other dtypes of numbers; they are cast in a batch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.data.compatibility import IDENTITY, check_actions, differences, obs_dtype
from rlx.data.datasets import Data, column, histogram
from rlx.data.facts import read_facts
from rlx.data.npy import (
    batch_dtype,
    cast,
    check_action_numbers,
    check_finite,
    flags,
    mapped,
    require_memory,
)
from rlx.errors import ConfigError
from rlx.nn.rng import pick

ARRAYS = ("obs", "action", "reward", "length", "terminated")
"""Names of the npy files."""
_KINDS = {"obs": "iuf", "action": "iuf", "reward": "biuf", "length": "iu", "terminated": "biuf"}
"""Array → the kinds of dtypes that it may have."""


class Episodes(Data):
    """A data set in our own format, above."""

    def __init__(self, folder: Path, source: str | None = None):
        """`source`: the name of the set in errors, where `folder` would tell nobody anything.

        ConfigError, with the file, where one is missing, cut or has other numbers than it should.
        """
        self.folder = folder
        self.source = source
        self.stack = 1
        self.files = [*(folder / f"{name}.npy" for name in ARRAYS), folder / "data.json"]
        self.temporary: object = None
        """Keeps the folder while the data is used, if it is to vanish with it."""
        self.facts = read_facts(folder / "data.json")
        arrays = {name: self._mapped(name) for name in ARRAYS}
        self.obs = arrays["obs"]
        self.action = arrays["action"]
        self.reward = arrays["reward"]
        self.transitions = len(self.action)
        self.episodes = len(arrays["length"])
        self.length = self._lengths(arrays["length"])
        self.begin = np.concatenate([[0], self.length.cumsum()])
        """Number of each episode's first transition; its observation lies in row `begin[e] + e`."""
        self._check_rows("obs", self.obs, self.transitions + self.episodes)
        self._check_rows("reward", self.reward, self.transitions)
        self._check_rows("terminated", arrays["terminated"], self.episodes)
        self.terminated = flags(arrays["terminated"], self._location("terminated"))
        self._check_numbers()
        self.obs_dtype = batch_dtype(self.obs.dtype)
        """The dtype of observations in a batch."""
        self._action_dtype = np.dtype(np.int64 if self.action.ndim == 1 else np.float32)

    def _location(self, name: str) -> str:
        """The name of one of the arrays in errors."""
        return f"{self.source}, {name}" if self.source else str(self.folder / f"{name}.npy")

    def _mapped(self, name: str) -> np.ndarray:
        """One of the arrays; ConfigError where it has other numbers, or axes, than it should."""
        array = mapped(self.folder / f"{name}.npy", self._location(name))
        has_axes = name in ("obs", "action")
        if array.dtype.kind not in _KINDS[name] or (array.ndim != 1 and not has_axes):
            raise ConfigError(f"{self._location(name)}: holds {array.dtype} {list(array.shape)}.")
        return array

    def _lengths(self, array: np.ndarray) -> np.ndarray:
        """int64 [E]: `array`, checked; ConfigError where it does not add up to the transitions."""
        location = self._location("length")
        require_memory(32 * len(array), location)
        length = array.astype(np.int64)
        rows = self.transitions
        # Each number is looked at, since a sum of large ones may overflow.
        if length.min() < 1 or length.max() > rows or length.sum() != rows:
            raise ConfigError(f"{location}: does not add up to the {rows:,} rows of action.npy.")
        return length

    def _check_rows(self, name: str, array: np.ndarray, expected: int) -> None:
        rows = len(array)
        if rows != expected:
            location = self._location(name)
            raise ConfigError(f"{location}: {rows:,} rows where {expected:,} were expected.")

    def _check_numbers(self) -> None:
        check_finite(self.obs, self._location("obs"))
        check_finite(self.action, self._location("action"))
        check_finite(self.reward, self._location("reward"))
        if self.action.ndim > 1:
            return
        location = self._location("action")
        dtype = self.action.dtype
        if dtype.kind == "f":
            expected = "whole numbers [N], or numbers [N, D] of a Box space"
            raise ConfigError(f"{location}: {dtype} [N]; expected {expected}.")
        check_action_numbers(self.action, location)

    def adapt_to(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        """As `Data.adapt_to`; observations are stacked as many at a time as the env's."""
        location = f"data={self.source or self.folder}"
        found = differences(self.facts["env"], env)
        for key, logged, wanted in found:
            if key in IDENTITY:
                raise ConfigError(
                    f"{location}: collected with {key}={logged}; this env has {wanted}."
                )
        stack = env.get("stack", 1)
        shape = self.obs.shape[1:]
        if shape:
            shape = (stack * shape[0], *shape[1:])
        self.obs_dtype = obs_dtype(spec, self.obs.dtype, shape, self._bounds, location)
        self.stack = stack
        check_actions(self.action, spec, location)
        return [f"{key}: {logged} in the data, {wanted} here" for key, logged, wanted in found]

    def _bounds(self) -> tuple[float, float]:
        return float(self.obs.min()), float(self.obs.max())

    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float | Tensor
    ) -> dict[str, Tensor]:
        """As `Data.sample`; every transition is drawn equally often, whatever `number`."""
        first = pick(draws, self.transitions).cpu().numpy()
        episode = self.episode_of(first)
        episode_end = self.begin[episode + 1]
        end = np.minimum(first + n_steps, episode_end)
        terminal = self.terminated[episode] & (end == episode_end)
        batch = {
            "obs": self.stacked(first, episode, self.stack),
            "action": cast(self.action[first], self._action_dtype),
            "reward": self._discounted_rewards(first, end, n_steps, column(discount)),
            "discount": (column(discount) ** (end - first) * ~terminal).astype(np.float32),
            "next_obs": self.stacked(end, episode, self.stack),
        }
        return {name: torch.from_numpy(value).to(draws.device) for name, value in batch.items()}

    def _discounted_rewards(
        self, first: np.ndarray, end: np.ndarray, n_steps: int, discount: np.ndarray
    ) -> np.ndarray:
        """float32 [S, B]: Σ γ^i r_{first + i} up to transition `end`, at most `n_steps` of them."""
        steps = np.arange(n_steps)
        taken = first[..., None] + steps
        behind = end[..., None]
        weight = np.where(taken < behind, discount[..., None] ** steps, 0.0)
        reward = self.reward[np.minimum(taken, behind - 1)]
        return (reward * weight).sum(-1).astype(np.float32)

    def episode_of(self, number: np.ndarray) -> np.ndarray:
        """Which episode each transition belongs to; of the shape of `number`."""
        return np.searchsorted(self.begin, number, side="right") - 1

    def stacked(self, number: np.ndarray, episode: np.ndarray, stack: int) -> np.ndarray:
        """[S, B, stack · C, …]: the last `stack` observations before transition `number` [S, B].

        They are of `episode` [S, B], whose first observation is repeated where there are fewer.
        The number after that of an episode's last transition gives the observations at its end.
        """
        steps_back = np.arange(stack - 1, -1, -1)
        begin = self.begin[episode][..., None]
        numbers = np.maximum(number[..., None] - steps_back, begin)
        # Each episode before has one observation more than transitions.
        rows = numbers + episode[..., None]
        obs = cast(self.obs[rows], self.obs_dtype)  # [S, B, stack, C, …]
        shape = self.obs.shape[1:]
        if not shape:
            return obs[..., 0]
        return obs.reshape(*number.shape, stack * shape[0], *shape[1:])

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(np.asarray(self.reward, np.float64), self.begin[:-1])

    def episode(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """(obs [T + 1, *O], action [T, …], reward [T], terminated) of one episode."""
        begin = self.begin[number]
        end = self.begin[number + 1]
        obs = cast(self.obs[begin + number : end + number + 1], self.obs_dtype)
        action = cast(self.action[begin:end], self._action_dtype)
        reward = cast(self.reward[begin:end], np.float32)
        return obs, action, reward, bool(self.terminated[number])

    def card(self) -> dict[str, Any]:
        """As `Data.card`."""
        returns = self.returns()
        low, *quartiles, high = np.quantile(returns, [0, 0.25, 0.5, 0.75, 1])
        quartile_text = " ".join(f"{quartile:.1f}" for quartile in quartiles)
        terminated = self.terminated.mean()
        size = sum((self.folder / f"{name}.npy").stat().st_size for name in ARRAYS)
        if self.action.ndim == 1:
            actions = histogram(np.bincount(cast(self.action, np.int64)))
        else:
            actions = f"continuous, {self.action.shape[1]} numbers"
        shape = list(self.obs.shape[1:])
        facts = {
            "transitions": f"{self.transitions:,}",
            "episodes": f"{self.episodes:,}, {self.length.mean():,.1f} transitions long on average",
            "returns": f"mean {returns.mean():.1f}; from {low:.1f} to {high:.1f}, "
            f"quartiles {quartile_text}",
            "ended": f"{terminated:.0%} terminated, {1 - terminated:.0%} truncated",
            "obs": f"{self.obs.dtype} {shape}, shown {self.facts['stack']} at a time",
            "actions": actions,
            "size": f"{size / 1e6:,.1f} MB on disk",
        }
        return facts | {f"source {i}": text for i, text in enumerate(self.facts["sources"])}
