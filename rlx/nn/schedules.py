"""What changes with the steps of a run: values that fall linearly, and how many updates are due."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rlx.agent import Part


def linear(start: float | Tensor, end: float | Tensor, progress: Tensor) -> Tensor:
    """From `start` at progress 0 to `end` at 1 and beyond, elementwise; `progress`: [S]."""
    return start + (end - start) * progress.clamp(max=1)


class UpdateSchedule(nn.Module):
    """How many minibatches are due after each vector step; the replay ratio need not be whole.

    None is due before a seed has made `learning_starts` environment steps. The host counts them, so
    that nobody need ask the device whether there is something to learn from.
    """

    ticks: Tensor
    """Vector steps so far, int64 [S], all equal, and on the CPU: it is read without a sync."""

    def __init__(self, seeds: Tensor, num_envs: int, replay_ratio: float, learning_starts: int = 0):
        super().__init__()
        self.num_envs = num_envs
        self.learning_starts = learning_starts
        self.per_tick = num_envs * replay_ratio
        self.register_buffer("ticks", torch.zeros(len(seeds), dtype=torch.int64))

    @property
    def steps(self) -> int:
        """Environment steps that each seed has made."""
        return int(self.ticks[0]) * self.num_envs

    def advance(self) -> int:
        """Count one vector step; returns how many minibatches are due after it."""
        before = int(self.ticks[0])
        self.ticks += 1
        if self.steps < self.learning_starts:
            return 0
        return int((before + 1) * self.per_tick) - int(before * self.per_tick)

    def parts(self, learn: Part, average: Callable[[int], dict[str, Tensor]]) -> list[Part]:
        """Count one vector step; returns `learn` for each minibatch that is due, then `average`.

        The latter is given their number; there are no parts where none is due.
        """
        due = self.advance()
        return [learn] * due + [partial(average, due)] if due else []
