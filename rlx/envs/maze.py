"""Two rooms and a door, a natural sub-goal: a maze after Sutton, Precup & Singh (1999)."""

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
"""# is a wall, S the start, G the goal."""

_WIDTH = len(PLAN[0])
_CELLS = "".join(PLAN)
_FREE = [i for i, cell in enumerate(_CELLS) if cell != "#"]
_MOVES = (-_WIDTH, 1, _WIDTH, -1)
"""How far, in cells of the plan, the actions go: up, right, down, left."""


@dataclass(frozen=True)
class Maze(Dynamics):
    """Find the goal in the other room: −0.01 per step, and 1 at the goal, where the episode ends.

    State int64 [B, 1]: the cell of the plan, counted row by row; the observation counts free cells
    only. The actions move up, right, down and left; a wall stops a move. The shortest way is 10
    moves long and returns 0.9.
    """

    slip: float = 0.0
    """Probability that a random move takes the place of the action."""

    observation_space = spaces.Discrete(len(_FREE))
    action_space = spaces.Discrete(4)
    max_episode_steps = 100
    reward_threshold = 0.85
    lowest_reward = -0.01
    truncation_is_harm = True
    initial_draws = 1
    transition_draws = 2

    def initial(self, draws: Tensor) -> Tensor:
        start = torch.tensor([[_CELLS.index("S")]], device=draws.device)
        return start.repeat(len(draws), 1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        moves = torch.tensor(_MOVES, device=state.device)
        wall = torch.tensor([cell == "#" for cell in _CELLS], device=state.device)
        random_action = (draws[:, 1] * 4).long()
        action = torch.where(draws[:, 0] < self.slip, random_action, action)
        cell = state[:, 0]
        ahead = cell + moves[action]
        cell = torch.where(wall[ahead], cell, ahead)
        terminated = cell == _CELLS.index("G")
        return cell.unsqueeze(-1), terminated.float() - 0.01, terminated

    def observe(self, state: Tensor) -> Tensor:
        free = torch.tensor(_FREE, device=state.device)
        return torch.searchsorted(free, state[:, 0])


register("rlx/Maze-v0", Maze)
