"""Projected gradient descent on observations (Madry et al. 2018).

On policies: Zhang et al. 2020, arXiv:2003.08938.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count
from rlx.nn.seed_axis import along
from rlx.objective import Objective
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class PGD(Attack):
    """Sign steps within the box, from one start or several.

    Of all iterates the one is kept whose decision is worst by the clean scores; among equals, the
    one with the highest objective.
    """

    loss: str
    """What the steps raise: `ce`, `margin`, `worst`, `q_to_zero` or, of continuous actions,
    `distance`, as `Objective` explains."""
    target: int | None
    """Number of the choice to steer towards, with loss=ce or margin; null: away from the clean."""
    steps: Count
    """Steps from each start."""
    step_size: float
    """Length of a step in radii."""
    restarts: Count
    """Starts: the first is the clean observation, the others are random in the box."""
    random_start: bool
    """Whether the first start is random too."""

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        objective = Objective(self.loss, self.target)
        with torch.no_grad():
            clean = scores(obs)
        best = obs
        best_damage = torch.full_like(clean[..., 0], -torch.inf)
        best_value = best_damage
        # The distance of an action from the clean one has no gradient at the clean observation.
        random_start = self.random_start or self.loss == "distance"
        for restart in range(self.restarts):
            iterate = obs
            if random_start or restart > 0:
                noise = draw(obs[0, 0].numel()).view(obs.shape) * 2 - 1
                iterate = budget.project(obs + budget.radius * noise, obs)
            gradient, _, _ = objective.gradient(scores, iterate, clean)
            for step in range(1, self.steps + 1):
                moved = iterate + self.step_size * budget.radius * gradient.sign()
                iterate = budget.project(moved, obs)
                if step < self.steps:
                    gradient, value, perturbed = objective.gradient(scores, iterate, clean)
                else:
                    # No step follows: the last iterate needs no gradient.
                    with torch.no_grad():
                        perturbed = scores(iterate)
                        value = objective(perturbed, clean)
                damage = self._damage(scores, perturbed, clean)
                better = (damage > best_damage) | ((damage == best_damage) & (value > best_value))
                best_damage = torch.where(better, damage, best_damage)
                best_value = torch.where(better, value, best_value)
                best = torch.where(along(better, obs), iterate, best)
        return best

    def _damage(self, scores: Scores, perturbed: Tensor, clean: Tensor) -> Tensor:
        """How bad the decision by the `perturbed` scores [S, B, A] is, [S, B].

        It is what the decision loses by the `clean` scores [S, B, A]; with a target, whether it is
        the target; of a continuous action, how far the action that is really taken has moved.
        """
        if self.loss == "distance":
            return (scores.decide(perturbed) - scores.decide(clean)).square().sum(-1)
        decision = perturbed.argmax(-1, keepdim=True)
        if self.target is not None:
            return (decision.squeeze(-1) == self.target).to(clean.dtype)
        return clean.amax(-1) - clean.gather(-1, decision).squeeze(-1)
