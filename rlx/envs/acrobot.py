"""Acrobot: swing up a pendulum of two links (Sutton 1996; Gymnasium's Acrobot-v1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

_MAX_SPEED_1 = 4 * math.pi
_MAX_SPEED_2 = 9 * math.pi
_DT = 0.2
_HIGH = np.array([1, 1, 1, 1, _MAX_SPEED_1, _MAX_SPEED_2], np.float32)


@dataclass(frozen=True)
class Acrobot(Dynamics):
    """Swing the tip one link's length above the first joint: −1 per step until it is there.

    State [B, 4]: θ1 (rad, 0 hangs down), θ2 (rad, relative to the first link), their speeds
    (rad/s). An action is a torque of −1, 0 or 1 N·m on the joint between the links for 0.2 s, one
    Runge-Kutta step. The equations are those of Sutton & Barto's book.
    """

    gravity: float = 9.8
    """Acceleration of free fall, in m/s²."""
    link_mass: float = 1.0
    """Mass of each link, in kg."""
    link_length: float = 1.0
    """Length of each link, in m; its centre of mass is half-way."""
    link_inertia: float = 1.0
    """Moment of inertia of each link, in kg·m²."""

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 500
    reward_threshold = -100.0
    observation_units = ("cos θ1", "sin θ1", "cos θ2", "sin θ2", "θ1' (rad/s)", "θ2' (rad/s)")
    angles = ((0, 1), (2, 3))
    lowest_reward = -1.0
    truncation_is_harm = True
    initial_draws = 4

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 0.2 - 0.1

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        torque = action.to(state.dtype) - 1
        theta1, theta2, speed1, speed2 = self._runge_kutta(state.unbind(-1), torque, _DT)
        theta1 = torch.remainder(theta1 + math.pi, 2 * math.pi) - math.pi
        theta2 = torch.remainder(theta2 + math.pi, 2 * math.pi) - math.pi
        speed1 = speed1.clamp(-_MAX_SPEED_1, _MAX_SPEED_1)
        speed2 = speed2.clamp(-_MAX_SPEED_2, _MAX_SPEED_2)
        terminated = -torch.cos(theta1) - torch.cos(theta1 + theta2) > 1.0
        reward = terminated.to(state.dtype) - 1
        return torch.stack([theta1, theta2, speed1, speed2], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        theta1, theta2, speed1, speed2 = state.unbind(-1)
        angles = [theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin()]
        return torch.stack([*angles, speed1, speed2], -1)

    def _acceleration(
        self, theta1: Tensor, theta2: Tensor, speed1: Tensor, speed2: Tensor, torque: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Angular accelerations [B] (rad/s²) of both links; the names are those of the book."""
        m, g = self.link_mass, self.gravity
        length = self.link_length
        centre = length / 2
        sin2, cos2 = theta2.sin(), theta2.cos()
        coupling = m * length * centre
        d1 = 2 * coupling * cos2 + (m * (2 * centre**2 + length**2) + 2 * self.link_inertia)
        d2 = coupling * cos2 + (m * centre**2 + self.link_inertia)
        phi2 = (m * centre * g) * (theta1 + theta2).sin()
        centrifugal = coupling * sin2 * speed2 * (speed2 + 2 * speed1)
        phi1 = (m * (centre + length) * g) * theta1.sin() + phi2 - centrifugal
        ratio = d2 / d1
        top = torque + ratio * phi1 - coupling * speed1.square() * sin2 - phi2
        acceleration2 = top / ((m * centre**2 + self.link_inertia) - ratio * d2)
        return -(d2 * acceleration2 + phi1) / d1, acceleration2

    def _runge_kutta(self, y: Sequence[Tensor], torque: Tensor, dt: float) -> list[Tensor]:
        """The state `y`, four numbers [B], after `dt` seconds: the classical method of order 4."""

        def slope(y: Sequence[Tensor]) -> tuple[Tensor, ...]:
            theta1, theta2, speed1, speed2 = y
            return speed1, speed2, *self._acceleration(theta1, theta2, speed1, speed2, torque)

        k1 = slope(y)
        k2 = slope([a + dt / 2 * k for a, k in zip(y, k1, strict=True)])
        k3 = slope([a + dt / 2 * k for a, k in zip(y, k2, strict=True)])
        k4 = slope([a + dt * k for a, k in zip(y, k3, strict=True)])
        return [
            a + dt / 6 * (p + 2 * (q + r) + s)
            for a, p, q, r, s in zip(y, k1, k2, k3, k4, strict=True)
        ]


register("rlx/Acrobot-v1", Acrobot)
