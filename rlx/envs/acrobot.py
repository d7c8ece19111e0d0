"""Acrobot: swing up a pendulum of two links (Sutton 1996; Gymnasium's Acrobot-v1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLUE, GRAY, GREEN, RED, Canvas

_MAX_SPEED_1 = 4 * math.pi
_MAX_SPEED_2 = 9 * math.pi
_DT = 0.2
_HIGH = np.array([1, 1, 1, 1, _MAX_SPEED_1, _MAX_SPEED_2], np.float32)


def tip_height(obs: Tensor) -> Tensor:
    """How far the tip is above the first joint [...], in link lengths, of `obs` [..., 6].

    −cos θ1 − cos(θ1 + θ2): −2 hangs down, above 1 the task is done.
    """
    cos1, sin1, cos2, sin2 = obs[..., :4].unbind(-1)
    return -cos1 - (cos1 * cos2 - sin1 * sin2)


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
    render_fps = 15
    initial_draws = 4
    features = {"tip_height": tip_height}

    def initial(self, draws: Tensor) -> Tensor:
        return draws * 0.2 - 0.1

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        joints = state.T.unflatten(0, (2, 2))  # [angles or speeds, joint, B]
        links = torch.stack([joints[:, 0], joints.sum(1)], 1)
        links = _runge_kutta(self._motion(action.to(state.dtype) - 1).slope, links, _DT)
        terminated = links[0].cos().sum(0) < -1.0
        reward = terminated.to(state.dtype) - 1
        joints = torch.stack([links[:, 0], links[:, 1] - links[:, 0]], 1)
        theta = torch.remainder(joints[0] + math.pi, 2 * math.pi) - math.pi
        speed1 = joints[1, 0].clamp(-_MAX_SPEED_1, _MAX_SPEED_1)
        speed2 = joints[1, 1].clamp(-_MAX_SPEED_2, _MAX_SPEED_2)
        return torch.stack([*theta, speed1, speed2], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        theta = state[:, :2]
        cos1, cos2 = theta.cos().unbind(-1)
        sin1, sin2 = theta.sin().unbind(-1)
        speed1, speed2 = state[:, 2:].unbind(-1)
        return torch.stack([cos1, sin1, cos2, sin2, speed1, speed2], -1)

    def render(self, state: Tensor) -> Tensor:
        upper = state[:, 0]
        lower = upper + state[:, 1]
        length = self.link_length
        joint = (length * upper.sin(), -length * upper.cos())
        tip = (joint[0] + length * lower.sin(), joint[1] - length * lower.cos())
        extent = (-2.2 * length, 2.2 * length)
        canvas = Canvas(len(state), extent, extent, state.device, columns=320)
        canvas.line((extent[0], length), (extent[1], length), 0.02 * length, GRAY)
        canvas.line((0.0, 0.0), joint, 0.18 * length, BLUE)
        canvas.line(joint, tip, 0.18 * length, GREEN)
        canvas.disc((0.0, 0.0), 0.05 * length, RED)
        canvas.disc(joint, 0.05 * length, RED)
        return canvas.images()

    def _motion(self, torque: Tensor) -> "_Motion":
        """The motion of the links while `torque` [B] (N·m) is on the joint between them."""
        m, g = self.link_mass, self.gravity
        length = self.link_length
        centre = length / 2
        coupling = m * length * centre
        lower_inertia = m * centre**2 + self.link_inertia
        upper_inertia = lower_inertia + m * length**2
        one = torch.ones_like(torque)
        weights = [m * (centre + length) * g / coupling * one, m * centre * g / coupling * one]
        inertias = [upper_inertia / coupling * one, lower_inertia / coupling * one]
        torque = torque / coupling
        return _Motion(
            torque=torch.stack([-torque, torque]),
            weight=torch.stack(weights),
            other_inertia=torch.stack(inertias[::-1]),
            inertias=inertias[0] * inertias[1],
        )


class _Motion(NamedTuple):
    """What the motion of the two links depends on, beside where they are.

    A link's angle φ is that to the vertical: θ1 and θ1 + θ2. In these the book's two equations have
    one form, where o is the other link, and one operation computes both:

        I φ'' + C cos(φₒ − φ) φₒ'' = T − W sin φ + C sin(φₒ − φ) φₒ'²

    All is divided by the coupling C of the links.
    """

    torque: Tensor
    """T, [2, B]."""
    weight: Tensor
    """W, [2, B]; the upper link carries the lower one."""
    other_inertia: Tensor
    """I of the other link, [2, B]."""
    inertias: Tensor
    """The product of both I, [B]."""

    def slope(self, y: Tensor) -> Tensor:
        """Speeds and accelerations [2, 2, B] of the links at angles and speeds `y` [2, 2, B]."""
        angle, speed = y
        other_angle, other_speed = y.flip(1)
        turn = other_angle - angle
        cos = turn.cos()
        # addcmul(a, b, c) is a + b c, in one operation instead of two.
        force = torch.addcmul(self.torque, self.weight, angle.sin(), value=-1)
        force = torch.addcmul(force, turn.sin(), other_speed.square())
        # The two equations, solved for the accelerations by Cramer's rule.
        top = torch.addcmul(self.other_inertia * force, cos, force.flip(0), value=-1)
        determinant = torch.addcmul(self.inertias, cos, cos, value=-1)
        return torch.stack([speed, top / determinant])


def _runge_kutta(slope: Callable[[Tensor], Tensor], y: Tensor, dt: float) -> Tensor:
    """`y` after `dt` seconds by its derivative `slope`: the classical method of order 4."""
    k1 = slope(y)
    k2 = slope(y.add(k1, alpha=dt / 2))
    k3 = slope(y.add(k2, alpha=dt / 2))
    k4 = slope(y.add(k3, alpha=dt))
    return y.add((k1 + k4).add(k2 + k3, alpha=2), alpha=dt / 6)


register("rlx/Acrobot-v1", Acrobot)
