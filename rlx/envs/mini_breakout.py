"""Breakout on a board of 10 x 10, after MinAtar's (Young & Tian 2019)."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, BLUE, GRAY, GREEN, RED, YELLOW, board, tile

SIZE = 10
"""Rows and columns of the board."""
TOP = 1
"""The first row of bricks."""
BOTTOM = 4
"""The row below the last row of bricks."""


@dataclass(frozen=True)
class MiniBreakout(Dynamics):
    """Keep a ball that moves diagonally in play: the paddle stays (0), moves left (1), right (2).

    State int64 [B, 38]: the ball's row and column, where it goes down and to the right (±1 each),
    its last row and column, the paddle's column, whether the ball struck bricks a step ago, and the
    bricks, 1 where there is one, row by row. A broken brick earns 1; when none is left the wall is
    built again. The episode ends when the ball falls below the paddle.

    The observation [B, 4, 10, 10] has one plane each for the paddle, the ball, the ball's last
    place and the bricks.
    """

    observation_space = spaces.Box(0, 1, (4, SIZE, SIZE), np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 1000
    lowest_reward = 0.0
    render_fps = 10
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        from_right = (draws[:, 0] >= 0.5).long()
        row = torch.full_like(from_right, BOTTOM - 1)
        column = from_right * (SIZE - 1)
        down = torch.ones_like(row)
        right = 1 - 2 * from_right
        paddle = torch.full_like(row, SIZE // 2 - 1)
        struck = torch.zeros_like(row)
        numbers = torch.stack([row, column, down, right, row, column, paddle, struck], -1)
        bricks = torch.ones_like(row).unsqueeze(1).repeat(1, (BOTTOM - TOP) * SIZE)
        return torch.cat([numbers, bricks], 1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        old_row, old_column, down, right, _, _, paddle, struck = state[:, :8].unbind(-1)
        bricks = state[:, 8:]
        step = (action == 2).long() - (action == 1).long()
        paddle = (paddle + step).clamp(0, SIZE - 1)

        # The ball is thrown back by the side walls and by the ceiling …
        column = old_column + right
        outside = (column < 0) | (column >= SIZE)
        right = torch.where(outside, -right, right)
        column = column.clamp(0, SIZE - 1)
        row = old_row + down
        ceiling = row < 0
        row = torch.where(ceiling, 0, row)
        down = torch.where(ceiling, 1, down)

        # … and by bricks; in two successive steps it breaks one only.
        in_wall = (row >= TOP) & (row < BOTTOM)
        brick = ((row - TOP) * SIZE + column).clamp(0, bricks.shape[1] - 1).unsqueeze(1)
        present = bricks.gather(1, brick)
        hit = in_wall & (present.squeeze(1) > 0)
        broken = hit & (struck == 0)
        bricks = bricks.scatter(1, brick, torch.where(broken.unsqueeze(1), 0, present))
        row = torch.where(broken, old_row, row)
        down = torch.where(broken, -down, down)

        # At the floor the paddle catches it, at a corner of the paddle it goes back where it came.
        floor = row == SIZE - 1
        cleared = floor & (bricks.sum(1) == 0)
        bricks = torch.where(cleared.unsqueeze(1), 1, bricks)
        straight = floor & (old_column == paddle)
        corner = floor & (old_column != paddle) & (column == paddle)
        caught = straight | corner
        right = torch.where(corner, -right, right)
        row = torch.where(caught, old_row, row)
        down = torch.where(caught, -1, down)

        numbers = [row, column, down, right, old_row, old_column, paddle, hit.long()]
        next_state = torch.cat([torch.stack(numbers, -1), bricks], 1)
        return next_state, broken.float(), floor & ~caught

    def observe(self, state: Tensor) -> Tensor:
        row, column, _, _, old_row, old_column, paddle, _ = state[:, :8].unbind(-1)
        planes = torch.zeros(len(state), 4, SIZE * SIZE, device=state.device)
        paddle_cell = (SIZE - 1) * SIZE + paddle
        ball_cell = row * SIZE + column
        last_cell = old_row * SIZE + old_column
        cells = torch.stack([paddle_cell, ball_cell, last_cell], 1)
        planes[:, :3].scatter_(2, cells.unsqueeze(2), 1.0)
        planes[:, 3, TOP * SIZE : BOTTOM * SIZE] = state[:, 8:].float()
        return planes.unflatten(2, (SIZE, SIZE))

    def render(self, state: Tensor) -> Tensor:
        bricks = state[:, 8:] * torch.arange(1, 4, device=state.device).repeat_interleave(SIZE)
        cells = torch.zeros(len(state), SIZE * SIZE, dtype=torch.int64, device=state.device)
        cells[:, TOP * SIZE : BOTTOM * SIZE] = bricks
        for row, column, number in ((4, 5, 4), (0, 1, 5)):  # the ball's last place, the ball
            cell = (state[:, row] * SIZE + state[:, column]).unsqueeze(1)
            cells.scatter_(1, cell, number)
        paddle = ((SIZE - 1) * SIZE + state[:, 6]).unsqueeze(1)
        # A ball that is lost may be where the paddle is not, and is not where the paddle is.
        cells.scatter_(1, paddle, 6)
        tiles = [tile(32), *(tile(32, colour) for colour in (RED, YELLOW, GREEN))]
        tiles += [tile(32, disc=GRAY, radius=0.4), tile(32, disc=BLUE), tile(32, BLACK)]
        return board(cells.unflatten(1, (SIZE, SIZE)), tiles)


register("rlx/MiniBreakout-v0", MiniBreakout)
