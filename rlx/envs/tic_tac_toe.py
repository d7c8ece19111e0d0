"""Tic-tac-toe, with an opponent who never errs and a proof that a policy never loses."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import register
from rlx.envs.board import Board


@dataclass(frozen=True)
class TicTacToe(Board):
    """Three in a row on 3 x 3 cells, which are the actions, row by row.

    The opponent "minimax" plays any of the moves with the best outcome, whatever comes: an agent
    can at most draw. Against "random", the best mean return is 0.9598.
    """

    rows, columns, in_a_row = 3, 3, 3
    opponents = {"self": None, "random": 0.9, "minimax": 0.0}
    observation_space = spaces.Box(0, 1, (2, 3, 3), np.float32)
    action_space = spaces.Discrete(9)
    max_episode_steps = 9

    def stone_bits(self, taken: Tensor) -> Tensor:
        return (1 << self.cells(taken.device)) & ~taken.unsqueeze(-1)

    def scores(self, state: Tensor) -> Tensor:
        stones, opponent_stones = self.observe(state).flatten(-2).unbind(-2)
        digits = (stones + 2 * opponent_stones).long()
        powers = 3 ** torch.arange(9, device=state.device)
        return outcomes(state.device)[(digits * powers).sum(-1)]

    @staticmethod
    def legal(obs: Tensor) -> Tensor:
        """bool [..., 9] of observations [..., 2, 3, 3]: which cells are free."""
        return ~(obs > 0.5).any(-3).flatten(-2)

    @staticmethod
    def after(obs: Tensor) -> Tensor:
        """[..., 9, 2, 3, 3]: the observations [..., 2, 3, 3] with the stone of each action."""
        free = (~(obs > 0.5).any(-3)).float()
        cells = torch.eye(9, device=obs.device).view(9, 3, 3)
        stone = free.unsqueeze(-3) * cells
        stones = obs[..., :1, :, :] + stone
        opponent_stones = obs[..., 1:, :, :].expand_as(stone)
        return torch.stack([stones, opponent_stones], -3)


@cache
def outcomes(device: torch.device) -> Tensor:
    """float32 [3⁹, 9]: how each action ends under perfect play, on every board.

    1, 0 or −1 for the mover, −inf where the action is not allowed. The number of a board has in
    base 3 one digit per cell, the first cell's being the least: 1 for a stone of the mover, 2 for
    a stone of the opponent.
    """
    powers = 3 ** torch.arange(9)
    digits = torch.arange(3**9).unsqueeze(1) // powers % 3
    game = TicTacToe("self")
    opponent_stones = ((digits == 2).long() << game.cells(powers.device)).sum(1)
    lost = game.won(opponent_stones)
    free = digits == 0
    # The board after each action, as the other player sees it: 1 and 2 exchanged, and a 2 more.
    exchanged = (digits * 2 % 3 * powers).sum(1, keepdim=True)
    moved = torch.where(free, exchanged + 2 * powers, 0)
    value = -lost.float()
    # Each pass makes the values of boards with one stone fewer exact; after nine, all are.
    for _ in range(9):
        scores = torch.where(free, -value[moved], -torch.inf)
        best = torch.where(free.any(1), scores.amax(1), 0.0)
        value = torch.where(lost, -1.0, best)
    return scores.to(device)


def worst_result(choose: Callable[[Tensor], Tensor]) -> float:
    """The worst result, 1, 0 or −1, that a policy can come to as the first or the second player.

    `choose`: obs [B, 2, 3, 3] → actions [B], without chance or memory. Every line of play against
    it is followed.
    """
    game = TicTacToe("self")
    empty = torch.zeros(1, 2, dtype=torch.int64)
    opened, _, _ = game.move(empty.expand(9, -1), torch.arange(9))
    state = torch.cat([empty, opened])
    worst = 1.0
    while len(state):
        state, reward, ended = game.move(state, choose(game.observe(state)))
        worst = min([worst, *reward[ended].tolist()])
        state = state[~ended]
        row, action = torch.nonzero(game.stone_bits(state.sum(-1)), as_tuple=True)
        state, opponent_reward, ended = game.move(state[row], action)
        worst = min([worst, *(-opponent_reward[ended]).tolist()])
        state = state[~ended].unique(dim=0)
    return worst


register("rlx/TicTacToe-v0", TicTacToe)
