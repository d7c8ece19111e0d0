"""Mountain car: rock an underpowered car out of a valley (Moore 1990; Gymnasium's MountainCar-v0)."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

_LOW, _HIGH = np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32)


@dataclass(frozen=True)
class MountainCar(Dynamics):
    """State [B, 2]: position, speed. Push left, not at all or right; −1 per step until position 0.5."""

    force: float = 0.001
    gravity: float = 0.0025

    observation_space = spaces.Box(_LOW, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 200
    reward_threshold = -110.0
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        return torch.cat([draws * 0.2 - 0.6, torch.zeros_like(draws)], -1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, speed = state.unbind(-1)
        speed = speed + (action.to(state.dtype) - 1) * self.force - self.gravity * torch.cos(3 * x)
        speed = speed.clamp(-0.07, 0.07)
        x = (x + speed).clamp(-1.2, 0.6)
        speed = torch.where(x <= -1.2, speed.clamp(min=0), speed)
        return torch.stack([x, speed], -1), -torch.ones_like(x), (x >= 0.5) & (speed >= 0)

    def observe(self, state: Tensor) -> Tensor:
        return state


register("rlx/MountainCar-v0", MountainCar)
