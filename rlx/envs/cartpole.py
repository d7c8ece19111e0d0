"""CartPole: balance a pole on a cart (Barto, Sutton & Anderson 1983; Gymnasium's CartPole-v1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

_MAX_ANGLE = 12 * math.pi / 180
_MAX_POSITION = 2.4
_HIGH = np.array([2 * _MAX_POSITION, np.inf, 2 * _MAX_ANGLE, np.inf], np.float32)


@dataclass(frozen=True)
class CartPole(Dynamics):
    """State [B, 4]: position (m), speed (m/s), angle from upright (rad), its speed (rad/s). A push of 10 N to the left or
    right for 0.02 s (explicit Euler); 1 per step until the cart is 2.4 m off or the pole leans 12°."""

    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    force: float = 10.0

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(2)
    max_episode_steps = 500
    reward_threshold = 475.0
    initial_draws = 4

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 0.1 - 0.05

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, speed, theta, spin = state.unbind(-1)
        sin, cos, mass = theta.sin(), theta.cos(), self.cart_mass + self.pole_mass
        push = (action.to(state.dtype) * 2 - 1) * self.force
        pull = (push + self.pole_mass * self.half_length * spin.square() * sin) / mass
        angular = (self.gravity * sin - cos * pull) / (
            self.half_length * (4 / 3 - self.pole_mass / mass * cos.square())
        )
        linear = pull - self.pole_mass * self.half_length / mass * angular * cos
        x, speed, theta, spin = (
            x + 0.02 * speed,
            speed + 0.02 * linear,
            theta + 0.02 * spin,
            spin + 0.02 * angular,
        )
        terminated = (x.abs() > _MAX_POSITION) | (theta.abs() > _MAX_ANGLE)
        return torch.stack([x, speed, theta, spin], -1), torch.ones_like(x), terminated

    def observe(self, state: Tensor) -> Tensor:
        return state


register("rlx/CartPole-v1", CartPole)
