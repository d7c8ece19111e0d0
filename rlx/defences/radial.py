"""RADIAL (Oikarinen et al. 2021, arXiv:2008.01976): to learn from bounds of what the box can do."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.config import NonNegative
from rlx.defence import Decisions, Defence


@dataclass(frozen=True)
class Radial(Defence):
    """Bounds of the scores in the box are learnt from; they are intervals (Gowal et al. 2018).

    Of values the action taken shall keep its lead over each worse one: with d_b the lead by the
    clean scores, the loss is Σ_b d_b · max(0, high_b − low_a + d_b / 2) (the second approach of the
    paper). Of a policy it is the policy's own loss, with the worst log-probability of the action
    taken: the lowest where its advantage is positive, else the highest.
    """

    weight: NonNegative
    """What the loss is multiplied by before it is added: (1 − κ) / κ of the paper's κ."""

    def penalty(self, decisions: Decisions) -> Tensor:
        low, high = decisions.interval(*decisions.budget.ends(decisions.obs))
        if decisions.surrogate is None:
            return self.weight * self._overlap(decisions, low, high)
        is_good = decisions.surrogate.is_good
        if decisions.std is None:
            log_prob = _worst_of_choices(decisions, low, high, is_good)
        else:
            log_prob = _worst_of_normals(decisions, low, high, is_good, decisions.std)
        return self.weight * decisions.surrogate.loss(log_prob)

    def _overlap(self, decisions: Decisions, low: Tensor, high: Tensor) -> Tensor:
        """By how much bounds of values overlap, weighted by the leads, [S, B]."""
        assert decisions.taken is not None
        taken = decisions.taken.unsqueeze(-1)
        with torch.no_grad():
            clean = decisions.scores(decisions.obs)
            lead = (clean.gather(-1, taken) - clean).clamp_min(0)
        overlap = (high - low.gather(-1, taken) + lead / 2).clamp_min(0)
        return (lead * overlap).sum(-1)


def _worst_of_choices(decisions: Decisions, low: Tensor, high: Tensor, is_good: Tensor) -> Tensor:
    """The worst log-probability [S, B] of what was taken, by bounds of the logits [S, B, A]."""
    assert decisions.taken is not None
    taken = decisions.taken.unsqueeze(-1)
    is_taken = torch.zeros_like(low, dtype=torch.bool).scatter(-1, taken, True)
    # Its own logit at one end, all others at the other.
    worst = torch.where(is_taken == is_good.unsqueeze(-1), low, high)
    return worst.log_softmax(-1).gather(-1, taken).squeeze(-1)


def _worst_of_normals(
    decisions: Decisions, low: Tensor, high: Tensor, is_good: Tensor, std: Tensor
) -> Tensor:
    """The worst log-probability [S, B] of what was taken, by bounds of the means [S, B, D]."""
    taken = decisions.taken
    assert taken is not None
    farthest = torch.maximum(taken - low, high - taken)
    nearest = taken - torch.minimum(torch.maximum(taken, low), high)
    distance = torch.where(is_good.unsqueeze(-1), farthest, nearest) / std
    log_probs = -0.5 * distance.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return log_probs.sum(-1)
