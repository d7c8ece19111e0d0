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

    def stone_bits(self, taken: Tensor) -> Tensor:
        bottom = 1 << torch.arange(0, 49, 7, device=taken.device)
        column = 0b111111 * bottom
        # The carry of the addition ends in the column's lowest free cell.
        return (taken.unsqueeze(-1) + bottom) & column

    def scores(self, state: Tensor) -> Tensor:
        chunk = _CPU_CHUNK if state.device.type == "cpu" else _GPU_CHUNK
        parts = state.split(chunk)
        return torch.cat([self.search(part[:, 0], part[:, 1], DEPTH) for part in parts])

    def search(self, stones: Tensor, opponent_stones: Tensor, depth: int) -> Tensor:
        """float32 [..., 7]: what each action leads to when both look `depth` moves ahead (negamax).

        `stones` and `opponent_stones`: bitboards int64 [...] of the player to move and of the
        opponent. An action that is not allowed has −inf.
        """
        stone = self.stone_bits(stones | opponent_stones)
        stones = stones.unsqueeze(-1) | stone
        opponent_stones = opponent_stones.unsqueeze(-1)
        if depth == 1:
            chances = self.prospects(stones, opponent_stones)
            value = chances - self.prospects(opponent_stones, stones)
        else:
            best = self.search(opponent_stones, stones, depth - 1).amax(-1)
            # Where no reply is allowed the board is full, a draw.
            value = -torch.where(best == -torch.inf, 0, best)
        # A win is worth the more the sooner it comes.
        value = torch.where(self.won(stones), WIN + depth, value)
        return torch.where(stone == 0, -torch.inf, value)

    def prospects(self, stones: Tensor, opponent_stones: Tensor) -> Tensor:
        """float32, shaped as the bitboards: what the lines that `stones` may still fill are worth.

        It is a sum over the windows of four cells with no stone of the opponent: 1 for a window
        with two of `stones`, 4 for a window with three.
        """
        total = torch.zeros((), dtype=torch.int64, device=stones.device)
        board = self.full()
        for shift in self.line_shifts():
            # A window is named by the bit of its first cell: bit i of `third` says whether there is
            # a stone in the third cell of window i.
            windows = board & (board >> shift) & (board >> (2 * shift)) & (board >> (3 * shift))
            blocked = opponent_stones | (opponent_stones >> shift)
            free = windows & ~(blocked | (blocked >> (2 * shift)))
            first = stones
            second = stones >> shift
            third = stones >> (2 * shift)
            fourth = stones >> (3 * shift)
            either_half = (first | second) & (third | fourth)
            two = (first & second) | (third & fourth) | either_half
            three = (first & second & (third | fourth)) | (third & fourth & (first | second))
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
        stones = obs[..., :1, :, :] + stone
        opponent_stones = obs[..., 1:, :, :].expand_as(stone)
        return torch.stack([stones, opponent_stones], -3)


def count(bits: Tensor) -> Tensor:
    """How many bits are set in int64 numbers ≥ 0 (Warren, Hacker's Delight, §5-1)."""
    bits = bits - ((bits >> 1) & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bits * 0x0101010101010101) >> 56


register("rlx/ConnectFour-v0", ConnectFour)
