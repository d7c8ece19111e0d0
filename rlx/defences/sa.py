"""State-adversarial regularisation (Zhang et al. 2020, arXiv:2003.08938): SA-DQN and SA-PPO."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlx.config import Count, NonNegative
from rlx.defence import Decisions, Defence
from rlx.objective import Objective


@dataclass(frozen=True)
class SA(Defence):
    """The decision at the worst observation in the box shall be that at the clean one.

    Of values the loss is max(−`least_margin`, max over s' and b ≠ a* of Q(s', b) − Q(s', a*)), with
    a* the best action at s (equation 8 of the paper); of a policy the divergence KL(π(s) ‖ π(s'))
    (equation 6). The worst s' is searched for along gradients.
    """

    weight: NonNegative
    """What the loss is multiplied by before it is added."""
    least_margin: NonNegative
    """Values of which the best exceeds all others by this are safe enough."""
    gradients: Count
    """Gradient steps of the search for the worst observation."""

    def penalty(self, decisions: Decisions) -> Tensor:
        worse = self._worse(decisions)
        moved = decisions.worst(worse, self.gradients)
        loss = worse(moved)
        if decisions.are_values:
            loss = loss.clamp_min(-self.least_margin)
        return self.weight * loss

    def _worse(self, decisions: Decisions) -> Callable[[Tensor], Tensor]:
        """Observations [S, B, *O] → how bad the decisions there are, [S, B]."""
        scores = decisions.scores
        clean = scores(decisions.obs)
        if decisions.are_values:
            margin = Objective("margin", None)
            return lambda obs: margin(scores(obs), clean)
        if decisions.std is not None:
            std = decisions.std
            return lambda obs: 0.5 * ((clean - scores(obs)) / std).square().sum(-1)
        log_probs = clean.log_softmax(-1)
        return lambda obs: (log_probs.exp() * (log_probs - scores(obs).log_softmax(-1))).sum(-1)
