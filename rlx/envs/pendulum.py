"""Pendulum: swing up and hold a pole with a weak motor (Gymnasium's Pendulum-v1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

_HIGH = np.array([1, 1, 8], np.float32)


@dataclass(frozen=True)
class Pendulum(Dynamics):
    """State [B, 2]: angle from upright (rad), speed (rad/s). A torque of at most 2 N m for 0.05 s (semi-implicit Euler); costs
    angle² + 0.1 speed² + 0.001 torque² per step."""

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    max_episode_steps = 200
    initial_draws = 2

    def initial(self, draws: Tensor) -> Tensor:
        return (draws * 2 - 1) * torch.tensor([math.pi, 1.0], device=draws.device)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = state.unbind(-1)
        torque = action[:, 0].clamp(-2, 2)
        off = (angle + math.pi).remainder(2 * math.pi) - math.pi
        cost = off.square() + 0.1 * speed.square() + 0.001 * torque.square()
        pull = (
            3 * self.gravity / (2 * self.length) * angle.sin()
            + 3 / (self.mass * self.length**2) * torque
        )
        speed = (speed + pull * 0.05).clamp(-8, 8)
        return (
            torch.stack([angle + speed * 0.05, speed], -1),
            -cost,
            torch.zeros_like(cost, dtype=torch.bool),
        )

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)


register("rlx/Pendulum-v1", Pendulum)
