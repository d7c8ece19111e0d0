"""The classic stop rule: a seed is done when the mean of its last training returns reaches a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Counts are training episodes of a seed."""

    window: int
    """Returns averaged."""
    solved: float
    """Stop, solved, when the average reaches this."""
    give_up_from: int
    give_up_every: int
    give_up_below: float
    """From `give_up_from` on, at every `give_up_every`-th episode, stop where the average is below this."""
    episodes: int
    """Stop in any case."""


class StopRule:
    """Follows the training episodes of S seeds (of one env copy each, so that episodes have an order)."""

    def __init__(self, config: Config, seeds: int):
        self.config = config
        self.returns = torch.zeros(seeds, config.window, dtype=torch.float64)
        self.episodes = torch.zeros(seeds, dtype=torch.int64)

    def mean(self) -> Tensor:
        """Average of the last `window` returns [S]; of all so far in the first `window` episodes."""
        return self.returns.sum(1) / self.episodes.clamp(1, self.config.window)

    def ended(self, finished: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """(stopped [S], solved [S]) after the episodes that ended just now: bool [S] and their returns [S]."""
        config = self.config
        at = (self.episodes % config.window).unsqueeze(1)
        self.returns.scatter_(
            1,
            at,
            torch.where(
                finished, returns.double(), self.returns.gather(1, at).squeeze(1)
            ).unsqueeze(1),
        )
        self.episodes += finished
        mean = self.mean()
        solved = finished & (self.episodes >= config.window) & (mean >= config.solved)
        unlucky = (
            (self.episodes >= config.give_up_from)
            & (self.episodes % config.give_up_every == 0)
            & (mean < config.give_up_below)
        )
        return solved | finished & (unlucky | (self.episodes >= config.episodes)), solved

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors [S, …]."""
        return {"returns": self.returns, "episodes": self.episodes}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.returns, self.episodes = state["returns"], state["episodes"]

    def take(self, index: Tensor) -> None:
        """Go on with the seeds `index` only."""
        self.returns, self.episodes = self.returns[index], self.episodes[index]
