"""Random search: what many guesses find, of which the worst is shown."""

from dataclasses import dataclass

from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count
from rlx.objective import Objective, Tried
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class RandomSearch(Attack):
    """Points of the box, each drawn anew: by turns one of its corners, and one within.

    It needs no gradient, and no slope that leads anywhere: only answers.
    """

    loss: str
    """What tells apart points of equal decisions: `ce`, `margin`, `worst` or, of continuous
    actions, `distance`, as `Objective` explains."""
    target: int | None
    """Number of the choice to steer towards, with loss=ce or margin; null: away from the clean."""
    queries: Count
    """Points whose scores are asked for."""

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        tried = Tried(Objective(self.loss, self.target), scores, obs)
        for query in range(self.queries):
            noise = draw(obs[0, 0].numel()).view(obs.shape) * 2 - 1
            if query % 2 == 0:
                noise = noise.sign()
            tried.look(budget.project(obs + budget.radius * noise, obs))
        return tried.obs
