"""CartPole: balance a pole on a cart (Barto, Sutton & Anderson 1983; Gymnasium's CartPole-v1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, BLUE, BROWN, GRAY, Canvas

_MAX_ANGLE = 12 * math.pi / 180
_MAX_POSITION = 2.4
_DT = 0.02
_HIGH = np.array([2 * _MAX_POSITION, np.inf, 2 * _MAX_ANGLE, np.inf], np.float32)


@dataclass(frozen=True)
class CartPole(Dynamics):
    """Push the cart left (0) or right (1) so that the pole stays up; each step earns 1.

    State [B, 4]: position of the cart (m), its speed (m/s), angle of the pole from upright (rad),
    its angular speed (rad/s). A push lasts 0.02 s, one step of explicit Euler. The episode ends
    when the cart is 2.4 m off the middle or the pole leans 12°.
    """

    gravity: float = 9.8
    """Acceleration of free fall, in m/s²."""
    cart_mass: float = 1.0
    """Mass of the cart, in kg."""
    pole_mass: float = 0.1
    """Mass of the pole, in kg."""
    half_length: float = 0.5
    """Half the length of the pole, in m: how far its centre of mass is from the joint."""
    force: float = 10.0
    """Force of a push, in N."""

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(2)
    max_episode_steps = 500
    reward_threshold = 475.0
    observation_units = ("position (m)", "speed (m/s)", "angle (rad)", "angular speed (rad/s)")
    lowest_reward = 1.0
    render_fps = 50
    initial_draws = 4

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 0.1 - 0.05

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, speed, theta, spin = state.unbind(-1)
        sin, cos = theta.sin(), theta.cos()
        mass = self.cart_mass + self.pole_mass
        push = (action.to(state.dtype) * 2 - 1) * self.force
        # The accelerations of pole and cart that Florian (2007) derives, without friction.
        pull = (push + self.pole_mass * self.half_length * spin.square() * sin) / mass
        length = self.half_length * (4 / 3 - self.pole_mass / mass * cos.square())
        angular = (self.gravity * sin - cos * pull) / length
        linear = pull - self.pole_mass * self.half_length / mass * angular * cos
        state = state + _DT * torch.stack([speed, linear, spin, angular], -1)
        x, _, theta, _ = state.unbind(-1)
        terminated = (x.abs() > _MAX_POSITION) | (theta.abs() > _MAX_ANGLE)
        return state, torch.ones_like(x), terminated

    def observe(self, state: Tensor) -> Tensor:
        return state

    def render(self, state: Tensor) -> Tensor:
        x, _, theta, _ = state[:, :4].unbind(-1)
        length = 2 * self.half_length
        canvas = Canvas(len(state), (-2.6, 2.6), (-0.9, 1.5), state.device)
        canvas.line((-_MAX_POSITION, -0.15), (_MAX_POSITION, -0.15), 0.02, GRAY)
        canvas.rectangle((x, 0.0), 0.5, 0.3, BLACK)
        canvas.line((x, 0.0), (x + length * theta.sin(), length * theta.cos()), 0.1, BROWN)
        canvas.disc((x, 0.0), 0.05, BLUE)
        return canvas.images()


register("rlx/CartPole-v1", CartPole)
