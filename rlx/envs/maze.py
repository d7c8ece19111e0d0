"""Two rooms and a door: a grid maze (after Sutton, Precup & Singh 1999), whose door makes a natural sub-goal."""

from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

PLAN = (
    "#########",
    "#S..#...#",
    "#...#...#",
    "#.......#",
    "#...#...#",
    "#...#..G#",
    "#########",
)
"""# wall, S start, G goal."""

_WIDTH = len(PLAN[0])
_CELLS = "".join(PLAN)
_FREE = [i for i, cell in enumerate(_CELLS) if cell != "#"]
_MOVES = (-_WIDTH, 1, _WIDTH, -1)  # up, right, down, left


@dataclass(frozen=True)
class Maze(Dynamics):
    """State [B, 1]: cell of the plan, row by row; the observation counts free cells only. Four moves, replaced by a random one
    with probability `slip`; a wall stops a move. −0.01 per step and 1 at the goal: the shortest way, 10 moves, returns 0.9."""

    slip: float = 0.0

    observation_space = spaces.Discrete(len(_FREE))
    action_space = spaces.Discrete(4)
    max_episode_steps = 100
    reward_threshold = 0.85
    initial_draws = 1
    transition_draws = 2

    def initial(self, draws: Tensor) -> Tensor:
        return torch.full(
            (len(draws), 1), _CELLS.index("S"), dtype=torch.int64, device=draws.device
        )

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        moves = torch.tensor(_MOVES, device=state.device)
        wall = torch.tensor([cell == "#" for cell in _CELLS], device=state.device)
        action = torch.where(draws[:, 0] < self.slip, (draws[:, 1] * 4).long(), action)
        cell = state[:, 0]
        ahead = cell + moves[action]
        cell = torch.where(wall[ahead], cell, ahead)
        terminated = cell == _CELLS.index("G")
        return cell.unsqueeze(-1), terminated.float() - 0.01, terminated

    def observe(self, state: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(_FREE, device=state.device), state[:, 0])


register("rlx/Maze-v0", Maze)
