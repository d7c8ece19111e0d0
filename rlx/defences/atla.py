"""ATLA (Zhang et al. 2021, arXiv:2101.08452): to learn beside an adversary that learns."""

from dataclasses import dataclass

from rlx.config import Count
from rlx.defence import Defence


@dataclass(frozen=True)
class ATLA(Defence):
    """An adversary of its own moves all that a policy observes, and earns what the policy loses.

    Both learn alike, in turns: while one does, the other stays as it is.
    """

    of_values = False

    rollouts: Count
    """Rollouts that one of both learns from before it is the other's turn; the policy begins."""
