"""What every attack is: a way to find a nearby observation at which the policy decides worse."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Scores
from rlx.config import at_least, choice
from rlx.errors import ConfigError

LOSSES = ("ce", "margin", "worst", "q_to_zero", "distance")


@dataclass(frozen=True)
class Budget:
    """The box an observation may be moved in: [S, B, *O], |obs' − obs| ≤ radius and low ≤ obs' ≤ high."""

    radius: Tensor
    """eps · scale, [S, B, *O]."""
    low: Tensor
    high: Tensor
    """The observation space's bounds, [*O], infinite where it has none."""
    whole: bool = False
    """Whether observations are whole numbers, as gray levels are: those between cannot be shown."""

    @classmethod
    def of(cls, space: gymnasium.Space, radius: Tensor) -> "Budget":
        """`radius` within the bounds of a Box space; where that holds whole numbers, the whole radius below it."""
        assert isinstance(space, gymnasium.spaces.Box)
        low, high = (
            torch.as_tensor(bound, dtype=torch.float32, device=radius.device)
            for bound in (space.low, space.high)
        )
        whole = np.issubdtype(space.dtype, np.integer)
        # 1e-4: a radius of 0.02 · 127.5 that float32 makes 2.9999 of 3 levels is 3.
        return cls((radius + 1e-4).floor() if whole else radius, low, high, whole)

    def project(self, moved: Tensor, obs: Tensor) -> Tensor:
        """The point of the box around `obs` nearest to `moved`. An observation that is itself out of bounds may stay there."""
        moved = moved.round() if self.whole else moved
        inside = torch.minimum(torch.maximum(moved, obs - self.radius), obs + self.radius)
        return torch.minimum(
            torch.maximum(inside, torch.minimum(self.low, obs)), torch.maximum(self.high, obs)
        )


Draw = Callable[[int], Tensor]
"""Uniform random numbers in [0, 1): count → [S, B, count], other ones at each call."""


class Attack(ABC):
    """One file, one frozen dataclass of its settings."""

    @abstractmethod
    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        """obs' [S, B, *O] within `budget`; rows are independent. `scores` gives the attacked head's [S, B, A]."""

    def modes(self, heads: Sequence[str]) -> Mapping[str, tuple[tuple[str, ...], bool]]:
        """Name → (heads attacked, whether they share one sensor), in the order they are reported.

        Without sharing every head sees a perturbation of its own of the same observation.
        """
        return ({"both": (tuple(heads), False)} if len(heads) > 1 else {}) | {
            head: ((head,), False) for head in heads
        }


@dataclass(frozen=True)
class Objective:
    """What a gradient attack raises, row by row."""

    loss: str
    """ce: cross-entropy of softmax(scores) against the clean choice; margin: best other score minus the clean choice's;
    worst: minus the cross-entropy against the worst-scored choice; q_to_zero: smooth-L1 distance of the scores to zero;
    distance: of a continuous action from the clean one, squared ("maximal action difference", Zhang et al. 2020).

    The cross-entropy is log(1 + exp(r)), r the log-odds against the choice. It is r that is raised: the direction is the
    same, and the gradient does not vanish in rounding where the choice is certain."""
    target: int | None
    """Steer towards this choice instead: minus the cross-entropy against it, or its margin over the others."""

    def __post_init__(self) -> None:
        choice(self.loss, LOSSES, "attack.loss")
        at_least(self.target or 0, 0, "attack.target")
        if self.target is not None and self.loss not in ("ce", "margin"):
            raise ConfigError(
                f"attack.target={self.target}: only attack.loss=ce or margin can be targeted, not {self.loss}."
            )

    def __call__(self, scores: Tensor, clean: Tensor) -> Tensor:
        """[S, B] of `scores` [S, B, A] at a perturbed observation, given the `clean` ones."""
        if self.loss == "q_to_zero":
            return nn.functional.smooth_l1_loss(
                scores, torch.zeros_like(scores), reduction="none"
            ).mean(-1)
        if self.loss == "distance":
            return (scores - clean).square().sum(-1)
        if self.target is not None:
            if self.target >= clean.shape[-1]:
                raise ConfigError(
                    f"attack.target={self.target}: this head has choices 0 to {clean.shape[-1] - 1}."
                )
            reference, sign = torch.full_like(clean[..., 0], self.target, dtype=torch.int64), -1
        elif self.loss == "worst":
            reference, sign = clean.argmin(-1), -1
        else:
            reference, sign = clean.argmax(-1), 1
        own = scores.gather(-1, reference.unsqueeze(-1))
        others = (scores - own).scatter(-1, reference.unsqueeze(-1), -torch.inf)
        return sign * (others.amax(-1) if self.loss == "margin" else others.logsumexp(-1))

    def gradient(
        self, scores: Scores, at: Tensor, clean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient [S, B, *O], objective [S, B], scores [S, B, A]) at the observations `at`; `clean` None: `at` is clean."""
        if scores.continuous != (self.loss == "distance"):
            kind = (
                "actions are continuous: use attack=pgd attack.loss=distance"
                if scores.continuous
                else "choices are discrete"
            )
            raise ConfigError(f"attack.loss={self.loss}: this agent's {kind}.")
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            here = scores(at)
            value = self(here, here.detach() if clean is None else clean)
            (slope,) = torch.autograd.grad(value.sum(), at)
        return slope, value.detach(), here.detach()


def unit_scale(
    scale: object, space: gymnasium.Space, visited_std: Callable[[], np.ndarray]
) -> np.ndarray:
    """What eps = 1 means for each component of an observation, [*O] in its own units.

    `scale`: "bounds" (half the space's range), "std" (of observations visited in clean episodes) or one number per component.
    Raises ConfigError where the space has no such scale.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigError(
            f"attack: needs continuous observations (a Box space); this env has {space}."
        )
    if isinstance(scale, str):
        choice(scale, ("bounds", "std"), "scale")
        if scale == "std":
            return visited_std()
        if not (space.is_bounded("below") and space.is_bounded("above")):
            unbounded = [
                i
                for i in range(space.low.size)
                if not np.isfinite([space.low.flat[i], space.high.flat[i]]).all()
            ]
            raise ConfigError(
                f"scale=bounds: components {unbounded} of this env's observations have no finite bounds; use scale=std or one number each."
            )
        return (space.high.astype(np.float64) - space.low) / 2
    units = np.asarray(scale if isinstance(scale, (list, tuple)) else [scale], dtype=np.float64)
    if units.size != space.low.size or not (units >= 0).all():
        raise ConfigError(
            f"scale={scale}: expected bounds, std or {space.low.size} numbers ≥ 0, one per component of an observation."
        )
    return units.reshape(space.shape)
