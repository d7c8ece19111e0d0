"""Projected gradient descent on observations (Madry et al. 2018).

On policies: Zhang et al. 2020, arXiv:2003.08938.
"""

from dataclasses import dataclass

from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count
from rlx.objective import Objective, Tried
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
        tried = Tried(objective, scores, obs)
        # The distance of an action from the clean one has no gradient at the clean observation.
        random_start = self.random_start or self.loss == "distance"
        for restart in range(self.restarts):
            iterate = obs
            if random_start or restart > 0:
                noise = draw(obs[0, 0].numel()).view(obs.shape) * 2 - 1
                iterate = budget.project(obs + budget.radius * noise, obs)
            gradient, _, _ = objective.gradient(scores, iterate, tried.clean)
            for step in range(1, self.steps + 1):
                moved = iterate + self.step_size * budget.radius * gradient.sign()
                iterate = budget.project(moved, obs)
                if step < self.steps:
                    gradient, value, perturbed = objective.gradient(scores, iterate, tried.clean)
                    tried.add(iterate, perturbed, value)
                else:
                    tried.look(iterate)  # no step follows: the last iterate needs no gradient
        return tried.obs
