"""Connect Four, with an opponent who looks four moves ahead."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import register
from rlx.envs.board import Board

DEPTH = 4
WIN = 1000.0
"""More than any `prospects`: 69 windows of at most 4."""
_CPU_CHUNK, _GPU_CHUNK = 16, 4096
"""Boards searched at a time, each with 7⁴ leaves of 8 bytes: as many as a core's cache holds, 2400 boards/s; as a GPU's memory."""


@dataclass(frozen=True)
class ConnectFour(Board):
    """Four in a row on 6 × 7 cells; an action drops a stone into a column, from the left. The opponent "search" looks four moves
    ahead (its own, the agent's, its own, the agent's), takes the quickest win and the slowest loss, and minds `prospects` otherwise."""

    rows, columns, in_a_row = 6, 7, 4
    opponents = {"self": None, "random": 0.9, "search": 0.5}
    observation_space = spaces.Box(0, 1, (2, 6, 7), np.float32)
    action_space = spaces.Discrete(7)
    max_episode_steps = 42

    def moves(self, taken: Tensor) -> Tensor:
        shift = torch.arange(0, 49, 7, device=taken.device)
        return (
            taken.unsqueeze(-1) + (1 << shift) & 0b111111 << shift
        )  # the carry ends in the column's lowest free cell

    def scores(self, state: Tensor) -> Tensor:
        parts = state.split(_CPU_CHUNK if state.device.type == "cpu" else _GPU_CHUNK)
        return torch.cat([self.search(part[:, 0], part[:, 1], DEPTH) for part in parts])

    def search(self, own: Tensor, other: Tensor, depth: int) -> Tensor:
        """float32 [..., 7] of the bitboards `own` (of the player to move) and `other` [...]: what each action leads to when both look
        `depth` moves ahead (negamax), −inf if illegal."""
        stone = self.moves(own | other)
        own, other = own.unsqueeze(-1) | stone, other.unsqueeze(-1)
        if depth == 1:
            value = self.prospects(own, other) - self.prospects(other, own)
        else:
            best = self.search(other, own, depth - 1).amax(-1)
            value = -torch.where(best == -torch.inf, 0, best)  # a full board
        value = torch.where(self.won(own), WIN + depth, value)
        return torch.where(stone == 0, -torch.inf, value)

    def prospects(self, own: Tensor, other: Tensor) -> Tensor:
        """float32, shaped as the bitboards: 1 for each window of four with two of `own`'s stones and none of `other`'s, 4 with three."""
        total = torch.zeros((), dtype=torch.int64, device=own.device)
        board = self.full()
        for step in self.steps():
            blocked = other | other >> step
            windows = board & board >> step & board >> 2 * step & board >> 3 * step
            a, b, c, d = (own >> step * place for place in range(4))
            free = windows & ~(blocked | blocked >> 2 * step)
            two, three = a & b | c & d | (a | b) & (c | d), a & b & (c | d) | c & d & (a | b)
            total = total + count(free & two) + 3 * count(free & three)
        return total.float()

    @staticmethod
    def legal(obs: Tensor) -> Tensor:
        """bool [..., 7] of observations [..., 2, 6, 7]."""
        return ~(obs[..., 0, :] > 0.5).any(-2)

    @staticmethod
    def after(obs: Tensor) -> Tensor:
        """[..., 7, 2, 6, 7] of observations [..., 2, 6, 7]: with the stone of each action."""
        taken = (obs > 0.5).any(-3).float()
        below = torch.cat([taken[..., 1:, :], torch.ones_like(taken[..., :1, :])], -2)
        stone = (below - taken).unsqueeze(-3) * torch.eye(7, device=obs.device).unsqueeze(1)
        return torch.stack([obs[..., :1, :, :] + stone, obs[..., 1:, :, :].expand_as(stone)], -3)


def count(bits: Tensor) -> Tensor:
    """How many bits are set in int64 numbers ≥ 0 (Warren, Hacker's Delight, §5-1)."""
    bits = bits - (bits >> 1 & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    return (bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0F) * 0x0101010101010101 >> 56


register("rlx/ConnectFour-v0", ConnectFour)
