"""Catch: a ball falls down a board, and a paddle at the bottom must be under it (Mnih et al. 2014; the board of bsuite)."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

ROWS, COLUMNS = 10, 5


@dataclass(frozen=True)
class Catch(Dynamics):
    """State [B, 3]: the ball's row (from the top) and column, the paddle's column. Actions: left, stay, right. After nine steps the ball
    is at the bottom: 1 if the paddle is there, else −1. The observation shows ball and paddle on the board, row by row."""

    observation_space = spaces.Box(0, 1, (ROWS * COLUMNS,), np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = ROWS
    reward_threshold = 0.9
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        column = (draws[:, 0] * COLUMNS).long()
        return torch.stack(
            [torch.zeros_like(column), column, torch.full_like(column, COLUMNS // 2)], -1
        )

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        row, column, paddle = state.unbind(-1)
        row, paddle = row + 1, (paddle + action - 1).clamp(0, COLUMNS - 1)
        terminated = row == ROWS - 1
        reward = torch.where(terminated, torch.where(paddle == column, 1.0, -1.0), 0.0)
        return torch.stack([row, column, paddle], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        row, column, paddle = state.unbind(-1)
        board = torch.zeros(len(state), ROWS * COLUMNS, device=state.device)
        ball = (row * COLUMNS + column).unsqueeze(1)
        return board.scatter(1, ball, 1.0).scatter(
            1, ((ROWS - 1) * COLUMNS + paddle).unsqueeze(1), 1.0
        )


register("rlx/Catch-v0", Catch)
