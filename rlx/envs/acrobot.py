"""Acrobot: swing the tip of a two-link pendulum above one link's length (Sutton 1996; Gymnasium's Acrobot-v1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register

_MAX_SPEED_1, _MAX_SPEED_2 = 4 * math.pi, 9 * math.pi
_HIGH = np.array([1, 1, 1, 1, _MAX_SPEED_1, _MAX_SPEED_2], np.float32)


@dataclass(frozen=True)
class Acrobot(Dynamics):
    """State [B, 4]: θ1, θ2 (rad, θ1 = 0 hangs down, θ2 relative to link 1), their speeds (rad/s). Torque −1, 0 or 1 N·m on
    the middle joint; −1 per step until the tip is up. One Runge-Kutta step of 0.2 s, equations of Sutton & Barto's book."""

    gravity: float = 9.8
    link_mass: float = 1.0
    link_length: float = 1.0
    link_inertia: float = 1.0

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 500
    reward_threshold = -100.0
    initial_draws = 4

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 0.2 - 0.1

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        theta1, theta2, speed1, speed2 = self._runge_kutta(
            state.unbind(-1), action.to(state.dtype) - 1, 0.2
        )
        theta1 = torch.remainder(theta1 + math.pi, 2 * math.pi) - math.pi
        theta2 = torch.remainder(theta2 + math.pi, 2 * math.pi) - math.pi
        speed1 = speed1.clamp(-_MAX_SPEED_1, _MAX_SPEED_1)
        speed2 = speed2.clamp(-_MAX_SPEED_2, _MAX_SPEED_2)
        terminated = -torch.cos(theta1) - torch.cos(theta1 + theta2) > 1.0
        reward = terminated.to(state.dtype) - 1
        return torch.stack([theta1, theta2, speed1, speed2], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        theta1, theta2, speed1, speed2 = state.unbind(-1)
        return torch.stack(
            [theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), speed1, speed2], -1
        )

    def _acceleration(
        self, theta1: Tensor, theta2: Tensor, speed1: Tensor, speed2: Tensor, torque: Tensor
    ):
        """Angular accelerations (rad/s²) of both links; the centre of mass is half-way along a link."""
        m, length, centre, g = self.link_mass, self.link_length, self.link_length / 2, self.gravity
        sin2, cos2 = theta2.sin(), theta2.cos()
        coupling = m * length * centre
        d1 = 2 * coupling * cos2 + (m * (2 * centre**2 + length**2) + 2 * self.link_inertia)
        d2 = coupling * cos2 + (m * centre**2 + self.link_inertia)
        phi2 = (m * centre * g) * (theta1 + theta2).sin()
        phi1 = (
            (m * (centre + length) * g) * theta1.sin()
            + phi2
            - coupling * sin2 * speed2 * (speed2 + 2 * speed1)
        )
        ratio = d2 / d1
        top = torque + ratio * phi1 - coupling * speed1.square() * sin2 - phi2
        acceleration2 = top / ((m * centre**2 + self.link_inertia) - ratio * d2)
        return -(d2 * acceleration2 + phi1) / d1, acceleration2

    def _runge_kutta(self, y: tuple[Tensor, ...], torque: Tensor, dt: float) -> list[Tensor]:
        def slope(y: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return y[2], y[3], *self._acceleration(y[0], y[1], y[2], y[3], torque)

        k1 = slope(y)
        k2 = slope([a + dt / 2 * k for a, k in zip(y, k1, strict=True)])
        k3 = slope([a + dt / 2 * k for a, k in zip(y, k2, strict=True)])
        k4 = slope([a + dt * k for a, k in zip(y, k3, strict=True)])
        return [
            a + dt / 6 * (p + 2 * (q + r) + s)
            for a, p, q, r, s in zip(y, k1, k2, k3, k4, strict=True)
        ]


register("rlx/Acrobot-v1", Acrobot)
