"""Random perturbations: what an attacker without the network can do, and the baseline every attack must beat."""

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
    """A fresh draw at every decision, of one `kind`: uniform in the box, gaussian (standard deviation half the radius, cut
    at the radius) or corners of the box."""

    kind: str
    width: float
    """Greatest disturbance in radii: 1, or ½ for the source study's U(−eps/2, eps/2)."""
    clip: bool
    """Keep the observation within the space's bounds. Only the source study does not."""

    def __post_init__(self) -> None:
        choice(self.kind, ("uniform", "gaussian", "corners"), "attack.kind")
        if not 0 < self.width <= 1:
            raise ConfigError(f"attack.width={self.width}: must be in (0, 1]; the radius is eps.")

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        noise = draw(obs[0, 0].numel()).view(obs.shape)
        if self.kind == "uniform":
            noise = (noise * 2 - 1) * self.width
        elif self.kind == "corners":
            noise = torch.where(noise < 0.5, -1.0, 1.0) * self.width
        else:
            noise = (torch.erfinv((noise * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5 / 2).clamp(
                -1, 1
            ) * self.width
        moved = obs + budget.radius * noise
        return budget.project(moved, obs) if self.clip else moved

    def modes(self, heads: Sequence[str]) -> Mapping[str, Mode]:
        """Each head alone, and before that all heads at once, through one sensor or one each.

        `same` is one sensor: all heads see one noisy observation; in `diff` each sees its own.
        """
        alone = {head: Mode((head,), shared=False) for head in heads}
        if len(heads) == 1:
            return alone
        every = tuple(heads)
        return {"same": Mode(every, shared=True), "diff": Mode(every, shared=False)} | alone
