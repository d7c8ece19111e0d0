"""The DeepMind Control Suite (Tassa et al. 2018) with discrete actions, in images or in numbers."""

import itertools
import math
import os
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlx.config import Count, at_least
from rlx.env import IMAGE_SIDE
from rlx.envs.gym import GymEnv
from rlx.errors import ConfigError
from rlx.names import nearest

_MOST_ACTIONS = 1000
_MOST_STEPS = 1000
"""Control steps of an episode."""

if "DISPLAY" not in os.environ:
    # It draws without a screen; read when dm_control is imported.
    os.environ.setdefault("MUJOCO_GL", "egl")


class DMControl(gymnasium.Env):
    """One copy of a task, with the actions of its dimensions in `bins` equal steps.

    The actions are all combinations of such values; each is kept for `repeat` control steps.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task: str,
        repeat: int,
        bins: int,
        pixels: bool,
        size: int,
        render_mode: str | None = None,
    ):
        """The keys of conf/env/dmc.yaml."""
        try:
            from dm_control import suite
        except ImportError:
            install = 'install it with: pip install "rlx[dmc]"'
            needs = f"the Control Suite needs dm_control; {install}"
            raise ConfigError(f"env.task={task}: {needs}") from None
        names = ["-".join(pair) for pair in suite.ALL_TASKS]
        if task not in names:
            raise ConfigError(f"env.task={task}: no such task.{nearest(task, names)}")
        at_least(repeat, 1, "env.repeat")
        at_least(bins, 2, "env.bins")
        at_least(size, IMAGE_SIDE, "env.size")
        if not isinstance(pixels, bool):
            raise ConfigError(f"env.pixels={pixels}: expected true or false.")
        domain, _, name = task.partition("-")
        self.env = suite.load(domain, name)
        self.dt = self.env.control_timestep()
        self.repeat = repeat
        self.pixels = pixels
        self.size = size
        self.render_mode = render_mode
        limits = self.env.action_spec()
        values = np.linspace(limits.minimum, limits.maximum, bins).T  # [dimensions, bins]
        actions = bins ** len(values)
        if actions > _MOST_ACTIONS:
            dimensions = f"{actions:,} actions in {len(values)} dimensions"
            raise ConfigError(f"env.bins={bins}: {dimensions}; at most {_MOST_ACTIONS:,}.")
        self.values = np.array(list(itertools.product(*values)))
        """[actions, dimensions]."""
        self.action_space = spaces.Discrete(len(self.values))
        if pixels:
            self.observation_space: spaces.Box = spaces.Box(0, 255, (3, size, size), np.uint8)
        else:
            parts = self.env.observation_spec().values()
            numbers = sum(int(np.prod(part.shape)) for part in parts)
            self.observation_space = spaces.Box(-np.inf, np.inf, (numbers,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """First observation uint8 [3, size, size] or float32 [numbers]."""
        super().reset(seed=seed)
        self.env.task._random = np.random.RandomState(int(self.np_random.integers(2**31)))
        return self._observation(self.env.reset()), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As gymnasium.Env.step; the rewards of the repeated steps are added."""
        total = 0.0
        for _ in range(self.repeat):
            timestep = self.env.step(self.values[action])
            total += timestep.reward or 0.0
            if timestep.last():
                break
        ended = bool(timestep.last())
        terminated = bool(ended and timestep.discount == 0)
        truncated = ended and not terminated
        return self._observation(timestep), total, terminated, truncated, {}

    def render(self) -> np.ndarray:
        """uint8 [480, 480, 3]."""
        return self.env.physics.render(480, 480, camera_id=0)

    def _observation(self, timestep: Any) -> np.ndarray:
        """The image uint8 [3, size, size], or the numbers float32 [numbers] of a time step."""
        if self.pixels:
            image = self.env.physics.render(self.size, self.size, camera_id=0)
            return image.transpose(2, 0, 1).copy()
        parts = [np.ravel(value) for value in timestep.observation.values()]
        return np.concatenate(parts).astype(np.float32)


gymnasium.register(
    "rlx/DMControl-v0", f"{__name__}:DMControl", disable_env_checker=True, order_enforce=False
)


class DMControlEnv(GymEnv):
    """`num_envs` copies of a task: a `TensorEnv`."""

    def __init__(
        self,
        task: str,
        repeat: Count,
        bins: int,
        pixels: bool,
        size: int,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
    ):
        """The keys of conf/env/dmc.yaml."""
        self.named = f"env.task={task}"
        kwargs = {"task": task, "repeat": repeat, "bins": bins, "pixels": pixels, "size": size}
        kwargs["render_mode"] = "rgb_array"  # costs nothing until somebody looks
        steps = math.ceil(_MOST_STEPS / repeat)
        super().__init__(f"{__name__}:rlx/DMControl-v0", num_envs, steps, kwargs, device)
