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
    """Three in a row on 3 × 3 cells, which are the actions, row by row. The opponent "minimax" plays any of the moves with the best
    outcome, whatever comes: an agent can at most draw. Against "random", the best mean return is 0.9598."""

    rows, columns, in_a_row = 3, 3, 3
    opponents = {"self": None, "random": 0.9, "minimax": 0.0}
    observation_space = spaces.Box(0, 1, (2, 3, 3), np.float32)
    action_space = spaces.Discrete(9)
    max_episode_steps = 9

    def moves(self, taken: Tensor) -> Tensor:
        return (1 << self.cells(taken.device)) & ~taken.unsqueeze(-1)

    def scores(self, state: Tensor) -> Tensor:
        own, other = self.observe(state).flatten(-2).unbind(-2)
        code = ((own + 2 * other).long() * 3 ** torch.arange(9, device=state.device)).sum(-1)
        return outcomes(state.device)[code]

    @staticmethod
    def legal(obs: Tensor) -> Tensor:
        """bool [..., 9] of observations [..., 2, 3, 3]."""
        return ~(obs > 0.5).any(-3).flatten(-2)

    @staticmethod
    def after(obs: Tensor) -> Tensor:
        """[..., 9, 2, 3, 3] of observations [..., 2, 3, 3]: with the stone of each action."""
        stone = (~(obs > 0.5).any(-3)).float().unsqueeze(-3) * torch.eye(9, device=obs.device).view(
            9, 3, 3
        )
        return torch.stack([obs[..., :1, :, :] + stone, obs[..., 1:, :, :].expand_as(stone)], -3)


@cache
def outcomes(device: torch.device) -> Tensor:
    """float32 [3⁹, 9]: how each move ends under perfect play, 1, 0 or −1 for the mover (−inf: illegal), on every board whose number
    has in base 3 a digit per cell, the first being the least: 1 for the mover's stone, 2 for the other's."""
    powers = 3 ** torch.arange(9)
    digits = torch.arange(3**9).unsqueeze(1) // powers % 3
    game = TicTacToe("self")
    lost = game.won(((digits == 2).long() << game.cells(powers.device)).sum(1))
    free = digits == 0
    moved = torch.where(free, (digits * 2 % 3 * powers).sum(1, keepdim=True) + 2 * powers, 0)
    value = -lost.float()
    for _ in range(9):  # exact for one stone fewer each time
        scores = torch.where(free, -value[moved], -torch.inf)
        value = torch.where(lost, -1.0, torch.where(free.any(1), scores.amax(1), 0.0))
    return scores.to(device)


def worst_result(choose: Callable[[Tensor], Tensor]) -> float:
    """The worst that a policy can come to, 1, 0 or −1: `choose`, obs [B, 2, 3, 3] → action [B] without chance or memory, against
    every line of play, as the first and as the second player."""
    game = TicTacToe("self")
    empty = torch.zeros(1, 2, dtype=torch.int64)
    state, worst = torch.cat([empty, game.move(empty.expand(9, -1), torch.arange(9))[0]]), 1.0
    while len(state):
        state, reward, over = game.move(state, choose(game.observe(state)))
        worst = min([worst, *reward[over].tolist()])
        state = state[~over]
        board, action = torch.nonzero(game.moves(state.sum(-1)), as_tuple=True)
        state, loss, ended = game.move(state[board], action)
        worst = min([worst, *(-loss[ended]).tolist()])
        state = state[~ended].unique(dim=0)
    return worst


register("rlx/TicTacToe-v0", TicTacToe)
