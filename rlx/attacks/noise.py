"""Random perturbations: what an attacker without the network can do.

Every attack must beat this baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.attack import Attack, Budget, Draw, Mode
from rlx.config import choice
from rlx.errors import ConfigError


@dataclass(frozen=True)
class Noise(Attack):
    """A fresh random perturbation at every decision."""

    kind: str
    """`uniform` in the box, `gaussian` (standard deviation half the radius, cut at the radius) or
    `corners` of the box."""
    width: float
    """Greatest perturbation in radii: 1, or ½ for the source study's U(−eps/2, eps/2)."""
    clip: bool
    """Keep the observation within the space's bounds. Only the source study does not."""

    def __post_init__(self) -> None:
        choice(self.kind, ("uniform", "gaussian", "corners"), "attack.kind")
        if not 0 < self.width <= 1:
            raise ConfigError(f"attack.width={self.width}: must be in (0, 1]; the radius is eps.")

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        noise = self._shaped(draw(obs[0, 0].numel()).view(obs.shape)) * self.width
        moved = obs + budget.radius * noise
        return budget.project(moved, obs) if self.clip else moved

    def _shaped(self, draws: Tensor) -> Tensor:
        """Noise in [−1, 1] of the shape of `draws`, which are uniform in [0, 1)."""
        if self.kind == "corners":
            return torch.where(draws < 0.5, -1.0, 1.0)
        symmetric = draws * 2 - 1
        if self.kind == "uniform":
            return symmetric
        # The quantile function of a normal distribution, which is infinite at −1 and 1.
        normal = torch.erfinv(symmetric.clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5
        return (normal / 2).clamp(-1, 1)

    def modes(self, heads: Sequence[str]) -> Mapping[str, Mode]:
        """All heads at once, in two ways, and each head alone.

        In mode `same` all heads see one noisy observation, in `diff` each sees its own.
        """
        alone = {head: Mode((head,), shared=False) for head in heads}
        if len(heads) == 1:
            return alone
        together = {
            "same": Mode(tuple(heads), shared=True),
            "diff": Mode(tuple(heads), shared=False),
        }
        return together | alone
