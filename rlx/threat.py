"""What every attack is: a way to find a nearby observation at which the policy decides worse."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    """Which heads of a policy an attack perturbs together."""

    heads: tuple[str, ...]
    """The heads that see a perturbed observation; the others see the clean one."""
    shared: bool
    """Whether these heads look through one sensor, and so see the same perturbation."""


class Attack(ABC):
    """How a decision is moved: one file, one frozen dataclass of its settings."""

    @abstractmethod
    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        """The observation [S, B, *O] within `budget` of `obs` that the policy is shown.

        `scores` are those of the attacked head, a function of the observation. No row may depend on
        another one. What is random comes from `draw`.
        """

    def modes(self, heads: Sequence[str]) -> Mapping[str, Mode]:
        """The modes of a policy with these `heads`, by name, in the order they are reported.

        They are all heads at once, each with a sensor of its own, and each head alone.
        """
        alone = {head: Mode((head,), shared=False) for head in heads}
        if len(heads) == 1:
            return alone
        return {"both": Mode(tuple(heads), shared=False)} | alone


@dataclass(frozen=True)
class Objective:
    """What a gradient attack raises, row by row.

    The losses are

    - `ce`: the cross-entropy of softmax(scores) against the clean choice,
    - `margin`: the best other score minus that of the clean choice,
    - `worst`: minus the cross-entropy against the choice with the lowest clean score,
    - `q_to_zero`: the smooth-L1 distance of the scores to zero (the source study's),
    - `distance`: the squared distance of a continuous action from the clean one ("maximal action
      difference", Zhang et al. 2020).

    The cross-entropy is log(1 + exp(r)), with r the log-odds against the choice. It is r that is
    raised: the direction is the same, and the gradient does not vanish in rounding where the choice
    is certain.
    """

    loss: str
    """One of `LOSSES`."""
    target: int | None
    """Steer towards this choice: minus the cross-entropy against it, or its margin over others."""

    def __post_init__(self) -> None:
        choice(self.loss, LOSSES, "attack.loss")
        if self.target is None:
            return
        at_least(self.target, 0, "attack.target")
        if self.loss not in ("ce", "margin"):
            raise ConfigError(
                f"attack.target={self.target}: only attack.loss=ce or margin can be targeted, "
                f"not {self.loss}."
            )

    def __call__(self, scores: Tensor, clean: Tensor) -> Tensor:
        """The objective [S, B] of `scores` [S, B, A] at a perturbed observation.

        `clean` are the scores [S, B, A] at the clean one.
        """
        if self.loss == "q_to_zero":
            zero = torch.zeros_like(scores)
            return nn.functional.smooth_l1_loss(scores, zero, reduction="none").mean(-1)
        if self.loss == "distance":
            return (scores - clean).square().sum(-1)
        if self.target is not None or self.loss == "worst":
            return -self._log_odds_against(self._reference(clean), scores)
        return self._log_odds_against(self._reference(clean), scores)

    def _reference(self, clean: Tensor) -> Tensor:
        """The choice int64 [S, B] that the objective leads to, or away from."""
        if self.target is None:
            return clean.argmin(-1) if self.loss == "worst" else clean.argmax(-1)
        if self.target >= clean.shape[-1]:
            raise ConfigError(
                f"attack.target={self.target}: this head has choices 0 to {clean.shape[-1] - 1}."
            )
        return torch.full_like(clean[..., 0], self.target, dtype=torch.int64)

    def _log_odds_against(self, reference: Tensor, scores: Tensor) -> Tensor:
        """By how much the other scores exceed that of `reference`, [S, B].

        It is the largest difference for a margin, else the log-odds of softmax(scores).
        """
        index = reference.unsqueeze(-1)
        others = (scores - scores.gather(-1, index)).scatter(-1, index, -torch.inf)
        return others.amax(-1) if self.loss == "margin" else others.logsumexp(-1)

    def gradient(
        self, scores: Scores, at: Tensor, clean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient [S, B, *O], objective [S, B], scores [S, B, A]) at the observations `at`.

        `clean` are the scores at the clean observations; None: `at` are the clean ones.
        """
        if scores.continuous and self.loss != "distance":
            what = "this agent's actions are continuous: use attack=pgd attack.loss=distance"
            raise ConfigError(f"attack.loss={self.loss}: {what}.")
        if not scores.continuous and self.loss == "distance":
            raise ConfigError(f"attack.loss={self.loss}: this agent's choices are discrete.")
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            values = scores(at)
            objective = self(values, values.detach() if clean is None else clean)
            (gradient,) = torch.autograd.grad(objective.sum(), at)
        return gradient, objective.detach(), values.detach()


def unit_scale(
    scale: object, space: gymnasium.Space, visited_std: Callable[[], np.ndarray]
) -> np.ndarray:
    """What eps = 1 means for each component of an observation, [*O], in the component's own units.

    `scale` is "bounds" (half of the space's range), "std" (the standard deviation over observations
    visited in clean episodes, which `visited_std` plays) or one number for each component. Raises
    ConfigError where the space has no such scale.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        what = "needs continuous observations (a Box space)"
        raise ConfigError(f"attack: {what}; this env has {space}.")
    if isinstance(scale, str):
        choice(scale, ("bounds", "std"), "scale")
        return visited_std() if scale == "std" else _half_range(space)
    numbers = scale if isinstance(scale, (list, tuple)) else [scale]
    units = np.asarray(numbers, dtype=np.float64)
    if units.size != space.low.size or not (units >= 0).all():
        raise ConfigError(
            f"scale={scale}: expected bounds, std or {space.low.size} numbers ≥ 0, "
            "one per component of an observation."
        )
    return units.reshape(space.shape)


def _half_range(space: gymnasium.spaces.Box) -> np.ndarray:
    """Half of the range of each component; ConfigError where one of them has no finite bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    if not bounded.all():
        unbounded = np.flatnonzero(~bounded).tolist()
        raise ConfigError(
            f"scale=bounds: components {unbounded} of this env's observations have no finite "
            "bounds; use scale=std or one number each."
        )
    return (space.high.astype(np.float64) - space.low) / 2
