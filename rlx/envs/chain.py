"""The six-state chain of Kulkarni et al. 2016 (arXiv:1604.06057, §4.1): only a detour pays."""

from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLUE, GRAY, WHITE, YELLOW, board, tile

LENGTH = 6


@dataclass(frozen=True)
class Chain(Dynamics):
    """Walk along six places; the end pays much only after a visit to the other end.

    State int64 [B, 2]: the place, 0 to 5, where an episode begins at 1, and whether place 5 was
    visited, which the observation, the place, does not tell. Action 0 moves left; action 1 moves
    right with probability `success`, else left. At place 0 the episode ends: with 1 after a visit
    to place 5, else with 0.01.

    Exact mean returns: 0.208 of the best policy, 2/110 of the uniformly random one, 0.01 of going
    left always.
    """

    success: float = 0.5
    """Probability that moving right succeeds."""

    observation_space = spaces.Discrete(LENGTH)
    action_space = spaces.Discrete(2)
    max_episode_steps = 500
    reward_threshold = 0.9 * 0.208
    lowest_reward = 0.0
    truncation_is_harm = True
    render_fps = 4
    initial_draws = 1
    transition_draws = 1

    @property
    def deterministic(self) -> bool:
        return self.success in (0.0, 1.0)

    def initial(self, draws: Tensor) -> Tensor:
        state = torch.zeros(len(draws), 2, dtype=torch.int64, device=draws.device)
        state[:, 0] = 1
        return state

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        place, visited = state.unbind(-1)
        right = (action == 1) & (draws[:, 0] < self.success)
        place = (place + torch.where(right, 1, -1)).clamp(0, LENGTH - 1)
        visited = visited | (place == LENGTH - 1)
        terminated = place == 0
        result = torch.where(visited == 1, 1.0, 0.01)
        reward = torch.where(terminated, result, 0.0)
        return torch.stack([place, visited], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 0]

    def render(self, state: Tensor) -> Tensor:
        place, visited = state.unbind(-1)
        cells = torch.zeros(len(state), 1, LENGTH, dtype=torch.int64, device=state.device)
        cells[:, 0, -1] = 1 + visited
        grounds = (WHITE, GRAY, YELLOW)
        cells.scatter_add_(2, place.view(-1, 1, 1), torch.full_like(cells[..., :1], len(grounds)))
        tiles = [tile(60, ground, disc) for disc in (None, BLUE) for ground in grounds]
        return board(cells, tiles)


register("rlx/Chain-v0", Chain)
