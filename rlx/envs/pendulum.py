"""Pendulum: swing up and hold a pole with a weak motor (Gymnasium's Pendulum-v1)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, RED, Canvas

_DT = 0.05
_HIGH = np.array([1, 1, 8], np.float32)


@dataclass(frozen=True)
class Pendulum(Dynamics):
    """Hold the pole upright: a step costs angle² + 0.1 speed² + 0.001 torque².

    State [B, 2]: angle from upright (rad), speed (rad/s). An action is a torque of at most 2 N·m
    for 0.05 s, one step of semi-implicit Euler.
    """

    gravity: float = 10.0
    """Acceleration of free fall, in m/s²."""
    mass: float = 1.0
    """Mass of the pole, in kg."""
    length: float = 1.0
    """Length of the pole, in m."""

    observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    max_episode_steps = 200
    observation_units = ("cos θ", "sin θ", "θ' (rad/s)")
    angles = ((0, 1),)
    lowest_reward = -(math.pi**2 + 0.1 * 8**2 + 0.001 * 2**2)
    render_fps = 30
    initial_draws = 2

    def initial(self, draws: Tensor) -> Tensor:
        angle, speed = (draws * 2 - 1).unbind(-1)
        return torch.stack([angle * math.pi, speed], -1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = state.unbind(-1)
        torque = action[:, 0].clamp(-2, 2)
        # The state's angle grows beyond a turn; the cost is of the nearest way to upright.
        off = (angle + math.pi).remainder(2 * math.pi) - math.pi
        cost = off.square() + 0.1 * speed.square() + 0.001 * torque.square()
        fall = 3 * self.gravity / (2 * self.length) * angle.sin()
        acceleration = fall + 3 / (self.mass * self.length**2) * torque
        speed = (speed + acceleration * _DT).clamp(-8, 8)
        angle = angle + speed * _DT
        terminated = torch.zeros_like(cost, dtype=torch.bool)
        return torch.stack([angle, speed], -1), -cost, terminated

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)

    def render(self, state: Tensor) -> Tensor:
        angle = state[:, 0]
        extent = (-1.25 * self.length, 1.25 * self.length)
        canvas = Canvas(len(state), extent, extent, state.device, columns=300)
        tip = (-self.length * angle.sin(), self.length * angle.cos())
        canvas.line((0.0, 0.0), tip, 0.2 * self.length, RED)
        canvas.disc((0.0, 0.0), 0.05 * self.length, BLACK)
        return canvas.images()


register("rlx/Pendulum-v1", Pendulum)
