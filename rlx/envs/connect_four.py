"""Connect Four, with an opponent who looks four moves ahead."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import register
from rlx.envs.board import Board

DEPTH = 4
"""Moves that the opponent "search" looks ahead."""
WIN = 1000.0
"""The score of a win: more than any `prospects`, which are 69 windows of at most 4."""
_CPU_CHUNK = 16
_GPU_CHUNK = 4096
"""Boards searched at a time, each with 7⁴ leaves of 8 bytes.

On a CPU they are as many as a core's cache holds (2400 boards/s), on a GPU as its memory holds.
"""


@dataclass(frozen=True)
class ConnectFour(Board):
    """Four in a row on 6 x 7 cells; an action drops a stone into a column, from the left.

    The opponent "search" looks four moves ahead (its own, the agent's, its own, the agent's). It
    takes the quickest win and the slowest loss; where there is neither, it goes by `prospects`.
    """

    rows, columns, in_a_row = 6, 7, 4
    opponents = {"self": None, "random": 0.9, "search": 0.5}
    observation_space = spaces.Box(0, 1, (2, 6, 7), np.float32)
    action_space = spaces.Discrete(7)
    max_episode_steps = 42

    def moves(self, taken: Tensor) -> Tensor:
        bottom = 1 << torch.arange(0, 49, 7, device=taken.device)
        column = 0b111111 * bottom
        # The carry of the addition ends in the column's lowest free cell.
        return (taken.unsqueeze(-1) + bottom) & column

    def scores(self, state: Tensor) -> Tensor:
        chunk = _CPU_CHUNK if state.device.type == "cpu" else _GPU_CHUNK
        parts = state.split(chunk)
        return torch.cat([self.search(part[:, 0], part[:, 1], DEPTH) for part in parts])

    def search(self, own: Tensor, other: Tensor, depth: int) -> Tensor:
        """float32 [..., 7]: what each action leads to when both look `depth` moves ahead (negamax).

        `own` and `other`: bitboards int64 [...] of the player to move and of the other one. An
        action that is not allowed has −inf.
        """
        stone = self.moves(own | other)
        own = own.unsqueeze(-1) | stone
        other = other.unsqueeze(-1)
        if depth == 1:
            value = self.prospects(own, other) - self.prospects(other, own)
        else:
            best = self.search(other, own, depth - 1).amax(-1)
            # Where no reply is allowed the board is full, a draw.
            value = -torch.where(best == -torch.inf, 0, best)
        # A win is worth the more the sooner it comes.
        value = torch.where(self.won(own), WIN + depth, value)
        return torch.where(stone == 0, -torch.inf, value)

    def prospects(self, own: Tensor, other: Tensor) -> Tensor:
        """float32, shaped as the bitboards: what the lines that `own` may still fill are worth.

        It is a sum over the windows of four cells with none of `other`'s stones: 1 for two of
        `own`'s stones in one, 4 for three.
        """
        total = torch.zeros((), dtype=torch.int64, device=own.device)
        board = self.full()
        for step in self.steps():
            # A bit of these four stands for the window of cells that begins there.
            windows = board & (board >> step) & (board >> (2 * step)) & (board >> (3 * step))
            blocked = other | (other >> step)
            free = windows & ~(blocked | (blocked >> (2 * step)))
            a, b, c, d = own, own >> step, own >> (2 * step), own >> (3 * step)
            two = (a & b) | (c & d) | ((a | b) & (c | d))
            three = (a & b & (c | d)) | (c & d & (a | b))
            total = total + count(free & two) + 3 * count(free & three)
        return total.float()

    @staticmethod
    def legal(obs: Tensor) -> Tensor:
        """bool [..., 7] of observations [..., 2, 6, 7]: whose top cell is free."""
        return ~(obs[..., 0, :] > 0.5).any(-2)

    @staticmethod
    def after(obs: Tensor) -> Tensor:
        """[..., 7, 2, 6, 7]: the observations [..., 2, 6, 7] with the stone of each action."""
        taken = (obs > 0.5).any(-3).float()
        below = torch.cat([taken[..., 1:, :], torch.ones_like(taken[..., :1, :])], -2)
        lowest_free = below - taken
        stone = lowest_free.unsqueeze(-3) * torch.eye(7, device=obs.device).unsqueeze(1)
        own = obs[..., :1, :, :] + stone
        other = obs[..., 1:, :, :].expand_as(stone)
        return torch.stack([own, other], -3)


def count(bits: Tensor) -> Tensor:
    """How many bits are set in int64 numbers ≥ 0 (Warren, Hacker's Delight, §5-1)."""
    bits = bits - ((bits >> 1) & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bits * 0x0101010101010101) >> 56


register("rlx/ConnectFour-v0", ConnectFour)
