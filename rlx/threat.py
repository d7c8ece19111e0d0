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
from rlx.nn.seed_axis import along

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
    angles: tuple[tuple[int, int], ...] = ()
    """Pairs (cosine, sine) of components of a flat observation that stay on the unit circle."""

    def ends(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest point of the box around `obs`, [S, B, *O] each."""
        low = torch.maximum(obs - self.radius, torch.minimum(self.low, obs))
        high = torch.minimum(obs + self.radius, torch.maximum(self.high, obs))
        return low, high

    def project(self, moved: Tensor, obs: Tensor) -> Tensor:
        """The point of the box around `obs` that is nearest to `moved`, [S, B, *O].

        An observation that is out of the space's bounds by itself may stay there. Each pair of
        `angles` goes to the nearest point that the box and the unit circle share.
        """
        if self.whole:
            moved = moved.round()
        low, high = self.ends(obs)
        near = torch.minimum(torch.maximum(moved, low), high)
        if not self.angles:
            return near
        for cos, sin in self.angles:
            on_circle = _nearest_on_circle(
                (moved[..., cos].double(), moved[..., sin].double()),
                (obs[..., cos].double(), obs[..., sin].double()),
                (low[..., cos].double(), low[..., sin].double()),
                (high[..., cos].double(), high[..., sin].double()),
            )
            near[..., cos] = on_circle[0].float()
            near[..., sin] = on_circle[1].float()
        # Rounding may have left the box.
        return torch.minimum(torch.maximum(near, low), high)


def box_of(space: gymnasium.Space) -> gymnasium.spaces.Box:
    """A Box space itself; of a Discrete one the whole numbers of it, next to which others are."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return gymnasium.spaces.Box(0, int(space.n) - 1, (), np.int64)
    assert isinstance(space, gymnasium.spaces.Box)
    return space


@dataclass(frozen=True)
class Boxes:
    """The boxes around the observations of one env: what a radius of 1 is, and what must stay."""

    scale: Tensor
    """What a radius of 1 means for each component of an observation, float32 [*O]."""
    low: Tensor
    """The bounds of the observation space, float32 [*O] on the same device; see `Budget`."""
    high: Tensor
    whole: bool = False
    """Whether observations are whole numbers."""
    angles: tuple[tuple[int, int], ...] = ()
    """Pairs (cosine, sine) of components that stay on the unit circle."""

    @classmethod
    def of(
        cls, space: gymnasium.Space, scale: Tensor, angles: tuple[tuple[int, int], ...] = ()
    ) -> "Boxes":
        """The boxes within the bounds of a space of observations, as `box_of` has it."""
        space = box_of(space)
        low = torch.as_tensor(space.low, dtype=torch.float32, device=scale.device)
        high = torch.as_tensor(space.high, dtype=torch.float32, device=scale.device)
        return cls(scale, low, high, np.issubdtype(space.dtype, np.integer), angles)

    def around(self, obs: Tensor, radius: Tensor) -> Budget:
        """The boxes around `obs` [S, B, *O], of a `radius` [S, B] in units of the scale.

        Where observations are whole numbers, it becomes the whole number below it.
        """
        width = along(radius, obs) * self.scale
        if self.whole:
            width = whole_radius(width)
        return Budget(width, self.low, self.high, self.whole, self.angles)

    def of_newest(self, stack: int) -> "Boxes":
        """The boxes of the newest of `stack` observations, which lie along the first axis.

        The others cannot be moved: they were shown before.
        """
        if stack == 1:
            return self
        size = len(self.scale) // stack
        past = len(self.scale) - size
        angles = tuple((cos - past, sin - past) for cos, sin in self.angles if cos >= past)
        scale, low, high = self.scale[-size:], self.low[-size:], self.high[-size:]
        return Boxes(scale, low, high, self.whole, angles)


def whole_radius(radius: Tensor) -> Tensor:
    """The whole numbers that a `radius` of any shape allows an observation to be moved by."""
    # A radius of 0.02 · 150 gray levels, which float32 makes 2.9999 of 3, is one of 3.
    return (radius + 1e-4).floor()


_Point = tuple[Tensor, Tensor]
"""A cosine and a sine, float64 [S, B] each."""


def _nearest_on_circle(moved: _Point, obs: _Point, low: _Point, high: _Point) -> _Point:
    """The point of the unit circle, within the box, that is nearest to `moved`.

    `obs` is on the circle and within the box, which goes from `low` to `high`. The circle leaves
    the box where it crosses an edge, and between two crossings the point nearest to `moved` is the
    one in its direction. So the nearest is one of ten: the direction, two crossings of each edge,
    and `obs`, where rounding hides all others.
    """
    length = torch.hypot(*moved)
    # To project a point again must leave it as it is, to the last bit.
    length = torch.where((length - 1).abs() < 5e-7, 1.0, length)
    cos = [obs[0], moved[0] / length]
    sin = [obs[1], moved[1] / length]
    for edge in (low, high):
        # Not a number where the circle does not reach the edge: such a point is not inside.
        sin_there = (1 - edge[0].square()).sqrt()
        cos_there = (1 - edge[1].square()).sqrt()
        cos += [edge[0], edge[0], cos_there, -cos_there]
        sin += [sin_there, -sin_there, edge[1], edge[1]]
    cosines = torch.stack(cos)
    sines = torch.stack(sin)
    inside = (cosines >= low[0] - 1e-7) & (cosines <= high[0] + 1e-7)
    inside &= (sines >= low[1] - 1e-7) & (sines <= high[1] + 1e-7)
    distance = (cosines - moved[0]).square() + (sines - moved[1]).square()
    # `argmin` takes ten times as long.
    nearest = distance.masked_fill(~inside, torch.inf).min(0, keepdim=True).indices
    return cosines.gather(0, nearest).squeeze(0), sines.gather(0, nearest).squeeze(0)


Witness = Callable[[str, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""Who is told of every decision: head, obs, shown obs, decision, clean decision, was it flipped,
deciding. All tensors are [S, B, …]."""
Draw = Callable[[int], Tensor]
"""Uniform random numbers in [0, 1): count → [S, B, count], other ones at each call."""


class Mode(NamedTuple):
    """The heads of a policy that an attack perturbs together."""

    heads: tuple[str, ...]
    """The heads that see a perturbed observation; the others see the clean one."""
    shared: bool
    """Whether these heads look through one sensor, and so see the same perturbation."""


class Threat(ABC):  # noqa: B024 (its two kinds have the abstract methods)
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
