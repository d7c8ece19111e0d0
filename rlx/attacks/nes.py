"""Projected steps along an estimated gradient (Ilyas et al. 2018, arXiv:1804.08598).

The estimate is that of natural evolution strategies, from answers alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count, Positive
from rlx.nn.seed_axis import along
from rlx.objective import Objective, Tried
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class NES(Attack):
    """Sign steps, as PGD takes them: ∇f(x) is about the mean of (f(x + σu) − f(x − σu)) / 2σ · u.

    The directions u are normal, in units of the radius. Where a policy answers choices and no
    scores, f is flat between them, and the steps begin only where a direction crosses a border.
    """

    loss: str
    """What the steps raise: `ce`, `margin`, `worst` or, of continuous actions, `distance`, as
    `Objective` explains."""
    target: int | None
    """Number of the choice to steer towards, with loss=ce or margin; null: away from the clean."""
    steps: Count
    """Steps from the clean observation."""
    step_size: Positive
    """Length of a step in radii."""
    directions: Count
    """Pairs of points, in opposite directions, from which a gradient is estimated."""
    sigma: Positive
    """How far they are from the iterate, in radii, as a standard deviation."""

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        objective = Objective(self.loss, self.target)
        tried = Tried(objective, scores, obs)
        iterate = obs
        for _ in range(self.steps):
            slope = torch.zeros_like(obs)
            for _ in range(self.directions):
                symmetric = draw(obs[0, 0].numel()).view(obs.shape) * 2 - 1
                # The quantile function of a normal distribution, infinite at −1 and 1.
                direction = torch.erfinv(symmetric.clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5
                offset = self.sigma * budget.radius * direction
                with torch.no_grad():
                    ahead = objective(scores(iterate + offset), tried.clean)
                    behind = objective(scores(iterate - offset), tried.clean)
                slope += along(ahead - behind, obs) * direction
            moved = iterate + self.step_size * budget.radius * slope.sign()
            iterate = budget.project(moved, obs)
            tried.look(iterate)
        return tried.obs
