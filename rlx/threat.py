"""What every attack is: how a decision is moved, or which of the reachable ones is forced."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Scores

if TYPE_CHECKING:
    from rlx.robustness.sweep import Game, Played


@dataclass(frozen=True)
class Budget:
    """The box that an observation may be moved in: |obs' − obs| ≤ radius and low ≤ obs' ≤ high."""

    radius: Tensor
    """eps · scale, [S, B, *O], in the units of the observation."""
    low: Tensor
    """The lower bound of the observation space, [*O]; −infinity where it has none."""
    high: Tensor
    """The upper bound of the observation space, [*O]; infinity where it has none."""
    whole: bool = False
    """Whether observations are whole numbers, as gray levels are: those between cannot be shown."""

    @classmethod
    def of(cls, space: gymnasium.Space, radius: Tensor) -> "Budget":
        """The box of `radius` [S, B, *O] within the bounds of a Box space.

        Where the space holds whole numbers, the radius becomes the whole number below it.
        """
        assert isinstance(space, gymnasium.spaces.Box)
        low = torch.as_tensor(space.low, dtype=torch.float32, device=radius.device)
        high = torch.as_tensor(space.high, dtype=torch.float32, device=radius.device)
        whole = np.issubdtype(space.dtype, np.integer)
        if whole:
            # A radius of 0.02 · 127.5 gray levels, which float32 makes 2.9999 of 3, is one of 3.
            radius = (radius + 1e-4).floor()
        return cls(radius, low, high, whole)

    def project(self, moved: Tensor, obs: Tensor) -> Tensor:
        """The point of the box around `obs` that is nearest to `moved`, [S, B, *O].

        An observation that is out of the space's bounds by itself may stay there.
        """
        if self.whole:
            moved = moved.round()
        near = torch.minimum(torch.maximum(moved, obs - self.radius), obs + self.radius)
        low = torch.minimum(self.low, obs)
        high = torch.maximum(self.high, obs)
        return torch.minimum(torch.maximum(near, low), high)


Draw = Callable[[int], Tensor]
"""Uniform random numbers in [0, 1): count → [S, B, count], other ones at each call."""


class Mode(NamedTuple):
    """The heads of a policy that an attack perturbs together."""

    heads: tuple[str, ...]
    """The heads that see a perturbed observation; the others see the clean one."""
    shared: bool
    """Whether these heads look through one sensor, and so see the same perturbation."""


class Threat(ABC):
    """What conf/attack names: one file, one frozen dataclass of its settings.

    It is an `Attack`, which moves each decision by itself, or an `Adversary`, which plays whole
    episodes.
    """

    def modes(self, heads: Sequence[str]) -> Mapping[str, Mode]:
        """The modes of a policy with these `heads`, by name, in the order they are reported.

        Unless a subclass says otherwise, these are all heads at once, each with a sensor of its
        own, and each head alone.
        """
        alone = {head: Mode((head,), shared=False) for head in heads}
        if len(heads) == 1:
            return alone
        return {"both": Mode(tuple(heads), shared=False)} | alone


class Attack(Threat):
    """How a decision is moved, at every step anew: to where the policy decides worse."""

    @abstractmethod
    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        """The observation [S, B, *O] within `budget` of `obs` that the policy is shown.

        `scores` are those of the attacked head, a function of the observation. No row may depend on
        another one. What is random comes from `draw`.
        """


class Adversary(Threat):
    """Which of the reachable decisions is forced, and when: what knows more than one step."""

    @abstractmethod
    def check(self, game: "Game", modes: Mapping[str, Mode]) -> None:
        """ConfigError where this adversary cannot play `game`; it plays nothing yet."""

    @abstractmethod
    def play(self, game: "Game", modes: Mapping[str, Mode]) -> "dict[str, Played]":
        """The episodes of `game` as this adversary lets them end, by mode."""
