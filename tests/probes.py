"""Probe environments: so small that the value of every observation is known.

The idea is Andy Jones's ("Debugging RL, without the agonizing pain"), and that of rejax's tests.
Each probe needs one thing more than those before it, and so its name says what is wrong with an
agent that fails it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics

Transition = tuple[Tensor, Tensor, Tensor]
"""(next state [B, D], reward [B], terminated [B])."""


@dataclass(frozen=True)
class Probe(Dynamics):
    """State int64 [B, D], of which the first number is the observation 0…`numbers` − 1.

    `board` shows it as the board of a game, on which every action is legal: one row of cells, and
    the other player's only stone lies on the cell of that number. Each step is then the next
    player's move, so that what follows counts with the opposite sign: `discount` is negative below.
    """

    board: bool = False

    numbers: ClassVar[int]
    actions: ClassVar[int]
    lowest: ClassVar[float] = 0.0
    """The smallest return of an episode …"""
    highest: ClassVar[float] = 1.0
    """… and the largest one."""
    best: ClassVar[tuple[int, ...] | None] = None
    """The best action at each number; None: all are as good."""
    max_episode_steps = 10

    @staticmethod
    def values(discount: float) -> list[float]:
        """What each number is worth."""
        raise NotImplementedError

    @property
    def cells(self) -> int:
        """Cells of the board: one for each number, and one for each action."""
        return max(self.numbers, self.actions)

    @property
    def observation_space(self) -> spaces.Space:  # type: ignore[override]
        """Discrete, or a board [2, 1, cells]."""
        if self.board:
            return spaces.Box(0, 1, (2, 1, self.cells), np.float32)
        return spaces.Discrete(self.numbers)

    @property
    def action_space(self) -> spaces.Space:  # type: ignore[override]
        """Discrete."""
        return spaces.Discrete(self.actions)

    @property
    def rules(self) -> "Probe | None":  # type: ignore[override]
        """Its own, where it is a game; `rlx.agent.Rules`."""
        return self if self.board else None

    def initial(self, draws: Tensor) -> Tensor:
        """[B, 1]: number 0, or any, each as likely."""
        if not self.initial_draws:
            return torch.zeros(len(draws), 1, dtype=torch.int64)
        return (draws * self.numbers).long()

    def observe(self, state: Tensor) -> Tensor:
        """int64 [B], or a board [B, 2, 1, cells]."""
        number = state[:, 0]
        if not self.board:
            return number
        stone = torch.nn.functional.one_hot(number, self.cells).float()
        return torch.stack([torch.zeros_like(stone), stone], 1).unsqueeze(2)

    def legal(self, obs: Tensor) -> Tensor:
        """bool [..., A]: every action."""
        return torch.ones(*obs.shape[:-3], self.actions, dtype=torch.bool, device=obs.device)

    def after(self, obs: Tensor) -> Tensor:
        """[..., A, 2, 1, cells]: with the stone of each action; unchanged where it may not."""
        stone = torch.eye(self.cells, device=obs.device)[: self.actions] * self.legal(
            obs
        ).unsqueeze(-1)
        own = obs[..., :1, :, :] + stone.unsqueeze(-2)
        return torch.stack([own, obs[..., 1:, :, :].expand_as(own)], -3)

    def has_won(self, obs: Tensor) -> Tensor:
        """bool [...]: nobody ever wins by a line."""
        return torch.zeros(obs.shape[:-3], dtype=torch.bool, device=obs.device)


class ConstantReward(Probe):
    """One step, which pays 1. Wrong: the loss, the reward's sign, or a bootstrap past the end."""

    numbers, actions = 1, 2

    @staticmethod
    def values(discount: float) -> list[float]:
        return [1.0]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        return state, torch.ones(len(state)), torch.ones(len(state), dtype=torch.bool)


class RewardIsObs(Probe):
    """One step, which pays −1 at number 0 and 1 at number 1. Wrong: the observation is not seen."""

    numbers, actions = 2, 2
    lowest = -1.0
    initial_draws = 1

    @staticmethod
    def values(discount: float) -> list[float]:
        return [-1.0, 1.0]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        return state, state[:, 0] * 2.0 - 1.0, torch.ones(len(state), dtype=torch.bool)


class Discounting(Probe):
    """Three steps, of which the last pays 1. Wrong: the discount, or the observation a step led to.

    Three, because returns of two steps then end with a bootstrapped value.
    """

    numbers, actions = 3, 2

    @staticmethod
    def values(discount: float) -> list[float]:
        return [discount**2, discount, 1.0]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        last = state[:, 0] == 2
        return (state + 1).clamp(max=2), last.float(), last


class Truncation(Probe):
    """Every step pays 1, for ever, but the time limit cuts the episode after two of them.

    Wrong: the bootstrap. Two steps, because EfficientZero learns nothing from the last one of an
    episode that was cut.
    """

    numbers, actions = 1, 2
    max_episode_steps = 2

    @staticmethod
    def values(discount: float) -> list[float]:
        return [1 / (1 - discount)]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        return state, torch.ones(len(state)), torch.zeros(len(state), dtype=torch.bool)


class Choice(Probe):
    """One step; actions 0, 1 and 2 pay 0, 1 and −1. Wrong: the policy, or its advantages."""

    numbers, actions = 1, 3
    lowest = -1.0
    best = (1,)

    @staticmethod
    def values(discount: float) -> list[float]:
        return [1.0]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        reward = torch.tensor([0.0, 1.0, -1.0])[action]
        return state, reward, torch.ones(len(state), dtype=torch.bool)


class ChoiceByObs(Probe):
    """One step; pays 1 if the action is the number shown, else −1. Wrong: who acted on what."""

    numbers, actions = 2, 2
    lowest = -1.0
    best = (0, 1)
    initial_draws = 1

    @staticmethod
    def values(discount: float) -> list[float]:
        return [1.0, 1.0]

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        reward = torch.where(action == state[:, 0], 1.0, -1.0)
        return state, reward, torch.ones(len(state), dtype=torch.bool)


class IllegalBait(Probe):
    """A game of one move. A stone lies on the cell of the number shown: to set another there is
    illegal, though it pays 2. The cell to its right pays ½, and the one to its left −½; the first
    cell is to the right of the last.

    Wrong: the mask of the legal moves.
    """

    numbers, actions = 3, 3
    lowest, highest = -0.5, 2.0
    best = (1, 2, 0)
    initial_draws = 1

    @staticmethod
    def values(discount: float) -> list[float]:
        return [0.5, 0.5, 0.5]

    def legal(self, obs: Tensor) -> Tensor:
        """bool [..., A]: the empty cells."""
        return (obs < 0.5).all(-3).flatten(-2)

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        distance = (action - state[:, 0]) % 3
        reward = torch.tensor([2.0, 0.5, -0.5])[distance]
        return state, reward, torch.ones(len(state), dtype=torch.bool)


class Memory(Probe):
    """State [B, 2]: the number shown, and the cue, 0 or 1. The first of two steps shows the cue and
    pays nothing. The second shows 2, and pays 1 if the action is the cue, else −1.

    Wrong: the memory, or when it begins anew.
    """

    numbers, actions = 3, 2
    lowest = -1.0
    initial_draws = 1

    @staticmethod
    def values(discount: float) -> list[float]:
        return [discount, discount]

    def initial(self, draws: Tensor) -> Tensor:
        return (draws * 2).long().expand(-1, 2).contiguous()

    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> Transition:
        number, cue = state.unbind(1)
        last = number == 2
        paid = torch.where(action == cue, 1.0, -1.0)
        return torch.stack([torch.full_like(number, 2), cue], 1), torch.where(last, paid, 0.0), last
