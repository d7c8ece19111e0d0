"""Adversarial training: to learn from observations as the greedy attack moves them.

Of Q-learners: Pattanaik et al. 2018, arXiv:1712.03632.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.config import Count, Share
from rlx.defence import Decisions, Defence
from rlx.objective import Objective


@dataclass(frozen=True)
class Adversarial(Defence):
    """A share of what is learnt from is moved to where the decision of today's weights is worst."""

    share: Share
    """Share of the observations that are moved."""
    gradients: Count
    """Gradient steps of the search for the worst observation."""

    def learnt(self, decisions: Decisions) -> Tensor:
        with torch.no_grad():
            clean = decisions.scores(decisions.obs)

        objective = Objective("margin" if decisions.std is None else "distance", None)
        moved = decisions.worst(lambda obs: objective(decisions.scores(obs), clean), self.gradients)
        is_moved = decisions.rng.uniform(decisions.obs.shape[1], 1) < self.share
        return torch.where(is_moved, moved, decisions.obs)
