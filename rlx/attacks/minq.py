"""MinQ: force the choice that is worst by the policy's own scores (Zhang et al. 2020, SA-MDP).

It is the greedy adversary over what the box can force: optimal for one step if the scores are true.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count, Index
from rlx.errors import ConfigError
from rlx.robustness.reachable import reachable
from rlx.threat import Attack, Budget, Draw


@dataclass(frozen=True)
class MinQ(Attack):
    """Of all reachable choices the one with the lowest clean score is forced, or one that is named.

    Where that one is out of reach the policy decides as it would.
    """

    target: Index | None
    """Number of the choice that is forced wherever it is reachable; null: the one that is worst."""
    steps: Count
    """Gradient steps towards each choice, by which the reachable ones are found."""
    samples: Index
    """Random corners of the box that are tried beside the gradients."""
    max_boxes: Count | None = None
    """Boxes per decision by which branch and bound makes the reachable choices exact; null: none.

    Of fully connected networks only, and many times slower."""

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        if scores.continuous:
            raise ConfigError(
                "attack=minq: continuous actions have no values of choices; "
                "use attack=pgd attack.loss=distance."
            )
        reach = reachable(
            scores,
            obs,
            budget,
            draw,
            steps=self.steps,
            samples=self.samples,
            max_boxes=self.max_boxes,
        )
        with torch.no_grad():
            clean = scores(obs)
        if self.target is None:
            return reach.shown(clean.masked_fill(~reach.mask, torch.inf).argmin(-1))
        if self.target >= clean.shape[-1]:
            raise ConfigError(
                f"attack.target={self.target}: this head has choices 0 to {clean.shape[-1] - 1}."
            )
        wanted = torch.full_like(reach.clean, self.target)
        return reach.shown(torch.where(reach.mask[..., self.target], wanted, reach.clean))
