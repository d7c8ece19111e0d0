"""Data sets: what offline agents learn from, whatever its format.

Formats: our own (episodes.py), Minari's (minari.py), and folders of npz shards (shards.py).
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rlx.agent import Spec
from rlx.runs.files import sha256


class Data(ABC):
    """Logged transitions. A subclass reads one format; it sets the two attributes."""

    transitions: int
    """The number of transitions."""
    files: list[Path]
    """All files that the transitions are read from."""

    @abstractmethod
    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float | Tensor
    ) -> dict[str, Tensor]:
        """Minibatch `number`: fields [S, B, …], those of `Replay.sample`.

        They are obs, action, reward (Σ_{i<k} γ^i r_i), discount (γ^k, 0 behind a terminal state)
        and next_obs; k is `n_steps`, or less at the end of an episode; γ is `discount`, one number
        or [S]. `draws`: float64 [S, B], uniform in [0, 1), choose the rows.
        """

    @abstractmethod
    def adapt_to(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        """From now on sample observations as the env of this `spec` shows them.

        `env`: the config group of that env. Returns the settings in which the env of the data
        differs, one line for each. ConfigError where the data are of another env.
        """

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Facts about the data, name → value, in the order in which they are printed."""

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the names and all bytes of its files."""
        lines = [f"{file.name} {sha256(file)}\n" for file in self.files]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def is_of(self, fingerprint: object) -> bool:
        """Whether `fingerprint`, as saved in a checkpoint, is that of this data.

        Runs of rlx 0.1.0 saved a checksum of the card alone, which has no prefix.
        """
        if isinstance(fingerprint, str) and ":" not in fingerprint:
            return fingerprint == hashlib.sha256(json.dumps(self.card()).encode()).hexdigest()
        return fingerprint == self.fingerprint

    def __deepcopy__(self, memo: dict) -> "Data":
        return self  # it does not change


def column(discount: float | Tensor) -> np.ndarray:
    """float64 []: one discount, or [S, 1], one of each seed."""
    if isinstance(discount, Tensor):
        return discount.double().unsqueeze(1).cpu().numpy()
    return np.asarray(discount)


def histogram(counts: np.ndarray) -> str:
    """The share of each action of a Discrete space, for the card; `counts`: [actions]."""
    shares = counts / counts.sum()
    return " ".join(f"{action}: {share:.1%}" for action, share in enumerate(shares))
