"""Two rooms and a door, a natural sub-goal: a maze after Sutton, Precup & Singh (1999)."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, BLUE, GREEN, WHITE, board, tile

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


class _Plan(NamedTuple):
    """The plan as tensors on one device."""

    moves: Tensor
    """int64 [4]: how far each action goes, in cells."""
    wall: Tensor
    """bool [cells]: which cells are walls."""
    free: Tensor
    """int64: the cells that are none."""


@functools.cache
def _plan(device: torch.device) -> _Plan:
    """The plan on `device`: made there once, since a GPU would wait for it at every step."""
    return _Plan(
        torch.tensor(_MOVES, device=device),
        torch.tensor([cell == "#" for cell in _CELLS], device=device),
        torch.tensor(_FREE, device=device),
    )


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
    render_fps = 5
    initial_draws = 1
    transition_draws = 2

    @property
    def deterministic(self) -> bool:
        return self.slip == 0.0

    def initial(self, draws: Tensor) -> Tensor:
        start = _CELLS.index("S")
        return torch.full((len(draws), 1), start, dtype=torch.int64, device=draws.device)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = _plan(state.device)
        random_action = (draws[:, 1] * 4).long()
        action = torch.where(draws[:, 0] < self.slip, random_action, action)
        cell = state[:, 0]
        ahead = cell + plan.moves[action]
        cell = torch.where(plan.wall[ahead], cell, ahead)
        terminated = cell == _CELLS.index("G")
        return cell.unsqueeze(-1), terminated.float() - 0.01, terminated

    def observe(self, state: Tensor) -> Tensor:
        return torch.searchsorted(_plan(state.device).free, state[:, 0])

    def render(self, state: Tensor) -> Tensor:
        grounds = {"#": BLACK, ".": WHITE, "S": WHITE, "G": GREEN}
        numbers = [list(grounds).index(cell) for cell in _CELLS]
        cells = torch.tensor(numbers, device=state.device).repeat(len(state), 1)
        cells.scatter_add_(1, state, torch.full_like(state, len(grounds)))
        tiles = [tile(40, ground, disc) for disc in (None, BLUE) for ground in grounds.values()]
        return board(cells.unflatten(1, (len(PLAN), _WIDTH)), tiles)


register("rlx/Maze-v0", Maze)
