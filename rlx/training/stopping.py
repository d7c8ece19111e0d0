"""The classic stop rule: a seed is done when the mean of its last returns is high enough."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """The settings of the stop rule. Counts are training episodes of a seed."""

    window: int
    """Episodes whose returns are averaged."""
    solved: float
    """Stop, solved, when the average of a full window reaches this."""
    give_up_from: int
    """Episodes before a seed may be given up."""
    give_up_every: int
    """Episodes between two looks at whether it is given up."""
    give_up_below: float
    """Give a seed up whose average is below this."""
    episodes: int
    """Stop after so many in any case."""


class StopRule:
    """Follows the training episodes of S seeds.

    Each has one env copy, so that its episodes have an order.
    """

    def __init__(self, config: Config, seeds: int):
        self.config = config
        self.returns = torch.zeros(seeds, config.window, dtype=torch.float64)
        """float64 [S, window]: each seed's last returns, in a ring."""
        self.episodes = torch.zeros(seeds, dtype=torch.int64)
        """int64 [S]: each seed's episodes so far."""

    def mean(self) -> Tensor:
        """[S]: average of the last `window` returns, or of all where there are fewer."""
        return self.returns.sum(1) / self.episodes.clamp(1, self.config.window)

    def ended(self, finished: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """(stopped, solved), bool [S] each, after the episodes that ended just now.

        `finished`: bool [S], whether an episode of the seed ended; `returns`: [S], the returns of
        these episodes.
        """
        config = self.config
        slot = (self.episodes % config.window).unsqueeze(1)
        former = self.returns.gather(1, slot).squeeze(1)
        newest = torch.where(finished, returns.double(), former)
        self.returns.scatter_(1, slot, newest.unsqueeze(1))
        self.episodes += finished
        mean = self.mean()
        solved = finished & (self.episodes >= config.window) & (mean >= config.solved)
        looked_at = self.episodes % config.give_up_every == 0
        unlucky = (self.episodes >= config.give_up_from) & looked_at & (mean < config.give_up_below)
        given_up = finished & (unlucky | (self.episodes >= config.episodes))
        return solved | given_up, solved

    def state_dict(self) -> dict[str, Tensor]:
        """The returns and the counts of episodes: tensors [S, …] by name."""
        return {"returns": self.returns, "episodes": self.episodes}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self.returns = state["returns"]
        self.episodes = state["episodes"]

    def take(self, index: Tensor) -> None:
        """Go on with the seeds `index` (int64 [S']) only."""
        self.returns = self.returns[index]
        self.episodes = self.episodes[index]
