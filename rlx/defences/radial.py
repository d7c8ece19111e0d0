"""RADIAL (Oikarinen et al. 2021, arXiv:2008.01976), second approach: bounds that do not overlap."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.config import NonNegative
from rlx.defence import Decisions, Defence


@dataclass(frozen=True)
class Radial(Defence):
    """The action taken shall keep its lead over each worse one, whatever is seen in the box.

    With d_b the lead by the clean scores, the loss is Σ_b d_b · max(0, high_b − low_a + d_b / 2),
    where low and high are interval bounds of the scores (Gowal et al. 2018).
    """

    of_policies = False

    weight: NonNegative
    """What the loss is multiplied by before it is added: (1 − κ) / κ of the paper's κ."""

    def penalty(self, decisions: Decisions) -> Tensor:
        low, high = decisions.interval(*decisions.budget.ends(decisions.obs))
        assert decisions.taken is not None
        taken = decisions.taken.unsqueeze(-1)
        with torch.no_grad():
            clean = decisions.scores(decisions.obs)
            lead = (clean.gather(-1, taken) - clean).clamp_min(0)
        overlap = (high - low.gather(-1, taken) + lead / 2).clamp_min(0)
        return self.weight * (lead * overlap).sum(-1)
