"""Mountain car: rock a weak car out of a valley (Moore 1990; Gymnasium's MountainCar-v0)."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.envs.drawing import BLACK, BLUE, GRAY, GREEN, Canvas

_LOW = np.array([-1.2, -0.07], np.float32)
_HIGH = np.array([0.6, 0.07], np.float32)


@dataclass(frozen=True)
class MountainCar(Dynamics):
    """Push left (0), not at all (1) or right (2): −1 per step until position 0.5 is reached.

    State [B, 2]: position and speed. The height of the ground at position x is sin 3x.
    """

    force: float = 0.001
    """By how much a push changes the speed."""
    gravity: float = 0.0025
    """By how much the steepest slope changes the speed in a step."""

    observation_space = spaces.Box(_LOW, _HIGH, dtype=np.float32)
    action_space = spaces.Discrete(3)
    max_episode_steps = 200
    reward_threshold = -110.0
    observation_units = ("position", "speed (per step)")
    lowest_reward = -1.0
    truncation_is_harm = True
    render_fps = 30
    initial_draws = 1

    def initial(self, draws: Tensor) -> Tensor:
        return torch.cat([draws * 0.2 - 0.6, torch.zeros_like(draws)], -1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, speed = state.unbind(-1)
        push = (action.to(state.dtype) - 1) * self.force
        speed = speed + push - self.gravity * torch.cos(3 * x)
        speed = speed.clamp(-0.07, 0.07)
        x = (x + speed).clamp(-1.2, 0.6)
        # The left end of the valley is a wall.
        speed = torch.where(x <= -1.2, speed.clamp(min=0), speed)
        terminated = (x >= 0.5) & (speed >= 0)
        return torch.stack([x, speed], -1), -torch.ones_like(x), terminated

    def observe(self, state: Tensor) -> Tensor:
        return state

    def render(self, state: Tensor) -> Tensor:
        x = state[:, 0]
        ground = _height(x)
        slope = torch.atan(1.2 * torch.cos(3 * x))
        forward, upward = slope.cos(), slope.sin()
        canvas = Canvas(len(state), (-1.25, 0.65), (-0.6, 0.7), state.device)
        canvas.below(_height, GRAY)
        canvas.line((0.5, float(_height(torch.tensor(0.5)))), (0.5, 0.6), 0.01, BLACK)
        canvas.rectangle((0.545, 0.57), 0.08, 0.06, GREEN)
        middle = (x - 0.05 * upward, ground + 0.05 * forward)
        back = (middle[0] - 0.05 * forward, middle[1] - 0.05 * upward)
        front = (middle[0] + 0.05 * forward, middle[1] + 0.05 * upward)
        canvas.line(back, front, 0.05, BLUE)
        for end in (back, front):
            canvas.disc((end[0] + 0.03 * upward, end[1] - 0.03 * forward), 0.02, BLACK)
        return canvas.images()


def _height(x: Tensor) -> Tensor:
    """The height of the ground at `x` as it is drawn: sin 3x would be too steep to look at."""
    return 0.4 * torch.sin(3 * x)


register("rlx/MountainCar-v0", MountainCar)
