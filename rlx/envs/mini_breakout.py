"""Breakout on a board of 10 × 10, after MinAtar's (Young & Tian 2019): a ball that moves diagonally, a paddle, three rows of bricks."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

SIZE = 10
TOP, BOTTOM = 1, 4
"""Rows of bricks: from the one to before the other."""


@dataclass(frozen=True)
class MiniBreakout(Dynamics):
    """State [B, 38]: the ball's row and column, where it goes (±1 each), its last row and column, the paddle's column, whether it struck
    bricks a step ago, the bricks. Actions: stay, left, right. A brick gives 1; when none is left the wall is built again; the ball
    below the paddle ends the episode. The observation has a plane each for paddle, ball, its last place, bricks."""

    observation_space = spaces.Box(0, 1, (4, SIZE, SIZE), np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 1000
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        right = (draws[:, 0] >= 0.5).long()
        row, bricks = (
            torch.full_like(right, BOTTOM - 1),
            torch.ones(len(draws), (BOTTOM - TOP) * SIZE, dtype=torch.int64),
        )
        column = right * (SIZE - 1)
        parts = [
            row,
            column,
            torch.ones_like(row),
            1 - 2 * right,
            row,
            column,
            torch.full_like(row, SIZE // 2 - 1),
            torch.zeros_like(row),
        ]
        return torch.cat([torch.stack(parts, -1), bricks.to(draws.device)], 1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        row, column, down, right, _, _, paddle, struck = state[:, :8].unbind(-1)
        bricks = state[:, 8:]
        paddle = (paddle - (action == 1).long() + (action == 2).long()).clamp(0, SIZE - 1)
        old_row, old_column = row, column
        column = old_column + right
        outside = (column < 0) | (column >= SIZE)
        right, column = torch.where(outside, -right, right), column.clamp(0, SIZE - 1)
        row = old_row + down
        ceiling = row < 0
        row, down = torch.where(ceiling, 0, row), torch.where(ceiling, 1, down)
        wall = (row >= TOP) & (row < BOTTOM)
        place = ((row - TOP) * SIZE + column).clamp(0, bricks.shape[1] - 1).unsqueeze(1)
        hit = wall & (bricks.gather(1, place).squeeze(1) > 0)
        broken = hit & (struck == 0)  # in two successive steps a ball breaks one brick only
        bricks = bricks.scatter(
            1, place, torch.where(broken.unsqueeze(1), 0, bricks.gather(1, place))
        )
        row, down = torch.where(broken, old_row, row), torch.where(broken, -down, down)
        floor = row == SIZE - 1
        bricks = torch.where((floor & (bricks.sum(1) == 0)).unsqueeze(1), 1, bricks)
        straight, corner = (
            floor & (old_column == paddle),
            floor & (old_column != paddle) & (column == paddle),
        )
        caught = straight | corner
        right = torch.where(corner, -right, right)
        row, down = torch.where(caught, old_row, row), torch.where(caught, -1, down)
        parts = [row, column, down, right, old_row, old_column, paddle, hit.long()]
        return torch.cat([torch.stack(parts, -1), bricks], 1), broken.float(), floor & ~caught

    def observe(self, state: Tensor) -> Tensor:
        row, column, _, _, old_row, old_column, paddle, _ = state[:, :8].unbind(-1)
        board = torch.zeros(len(state), 4, SIZE * SIZE, device=state.device)
        places = torch.stack(
            [(SIZE - 1) * SIZE + paddle, row * SIZE + column, old_row * SIZE + old_column], 1
        ).unsqueeze(2)
        board[:, :3].scatter_(2, places, 1.0)
        board[:, 3, TOP * SIZE : BOTTOM * SIZE] = state[:, 8:].float()
        return board.unflatten(2, (SIZE, SIZE))


register("rlx/MiniBreakout-v0", MiniBreakout)
