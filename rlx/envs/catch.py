"""Catch: a ball falls, and a paddle must be under it (Mnih et al. 2014; the board of bsuite)."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, RED, board, tile

ROWS = 10
COLUMNS = 5
_SIDE = 32
"""Pixels of a cell that is drawn."""


@dataclass(frozen=True)
class Catch(Dynamics):
    """Move the paddle in the last row left (0), not at all (1) or right (2).

    State int64 [B, 3]: the ball's row (from the top) and column, the paddle's column. After nine
    steps the ball is at the bottom, and the episode ends: with 1 if the paddle is there, else −1.
    The observation [B, 50] is the board, row by row, with a 1 where the ball or the paddle is.
    """

    observation_space = spaces.Box(0, 1, (ROWS * COLUMNS,), np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = ROWS
    reward_threshold = 0.9
    lowest_reward = -1.0
    render_fps = 5
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        column = (draws[:, 0] * COLUMNS).long()
        row = torch.zeros_like(column)
        paddle = torch.full_like(column, COLUMNS // 2)
        return torch.stack([row, column, paddle], -1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        row, column, paddle = state.unbind(-1)
        row = row + 1
        paddle = (paddle + action - 1).clamp(0, COLUMNS - 1)
        terminated = row == ROWS - 1
        result = torch.where(paddle == column, 1.0, -1.0)
        reward = torch.where(terminated, result, 0.0)
        return torch.stack([row, column, paddle], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        row, column, paddle = state.unbind(-1)
        plane = torch.zeros(len(state), ROWS * COLUMNS, device=state.device)
        ball_cell = row * COLUMNS + column
        paddle_cell = (ROWS - 1) * COLUMNS + paddle
        return plane.scatter(1, torch.stack([ball_cell, paddle_cell], 1), 1.0)

    def render(self, state: Tensor) -> Tensor:
        row, column, paddle = state.unbind(-1)
        cells = torch.zeros(len(state), ROWS * COLUMNS, dtype=torch.int64, device=state.device)
        cells.scatter_(1, ((ROWS - 1) * COLUMNS + paddle).unsqueeze(1), 1)
        cells.scatter_add_(
            1, (row * COLUMNS + column).unsqueeze(1), torch.full_like(cells[:, :1], 2)
        )
        tiles = [tile(_SIDE), tile(_SIDE, BLACK), tile(_SIDE, disc=RED), tile(_SIDE, BLACK, RED)]
        return board(cells.unflatten(1, (ROWS, COLUMNS)), tiles)


register("rlx/Catch-v0", Catch)
