"""Fast gradient sign method (Goodfellow et al. 2015).

On policies: Huang et al. 2017, arXiv:1702.02284.
"""

from dataclasses import dataclass

from torch import Tensor

from rlx.agent import Scores
from rlx.errors import ConfigError
from rlx.objective import Objective
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class FGSM(Attack):
    """One step to a corner of the box: obs' = project(obs + radius · sign ∇ objective)."""

    loss: str
    """What the step raises: `ce`, `margin`, `worst` or `q_to_zero`, as `Objective` explains."""
    target: int | None
    """Number of the choice to steer towards, with loss=ce or margin; null: away from the clean."""

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)
        if self.loss == "distance":
            raise ConfigError(
                "attack.loss=distance: has no gradient at the clean observation; use attack=pgd."
            )

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        gradient, _, _ = Objective(self.loss, self.target).gradient(scores, obs, None)
        return budget.project(obs + budget.radius * gradient.sign(), obs)
