"""The DeepMind Control Suite (Tassa et al. 2018), with every action dimension cut into a few values, seen in pictures or in numbers."""

import itertools
import os
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlx.config import Count, at_least
from rlx.envs.gym import GymEnv
from rlx.errors import ConfigError
from rlx.names import nearest

if "DISPLAY" not in os.environ:
    os.environ.setdefault(
        "MUJOCO_GL", "egl"
    )  # draws without a screen; read when dm_control is imported


class DMControl(gymnasium.Env):
    """One task; `repeat` control steps for each action, one of `bins` to the number of dimensions."""

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
        try:
            from dm_control import suite
        except ImportError:
            raise ConfigError(
                f'env.task={task}: the Control Suite needs dm_control; install it with: pip install "rlx[dmc]"'
            ) from None
        names = ["-".join(pair) for pair in suite.ALL_TASKS]
        if task not in names:
            raise ConfigError(f"env.task={task}: no such task.{nearest(task, names)}")
        for key, value, least in (("repeat", repeat, 1), ("bins", bins, 2), ("size", size, 16)):
            at_least(value, least, f"env.{key}")
        if not isinstance(pixels, bool):
            raise ConfigError(f"env.pixels={pixels}: expected true or false.")
        domain, _, name = task.partition("-")
        self.env, self.repeat, self.pixels, self.size, self.render_mode = (
            suite.load(domain, name),
            repeat,
            pixels,
            size,
            render_mode,
        )
        limits = self.env.action_spec()
        values = np.linspace(limits.minimum, limits.maximum, bins).T  # [dimensions, bins]
        if bins ** len(values) > 1000:
            raise ConfigError(
                f"env.bins={bins}: {bins ** len(values):,} actions in {len(values)} dimensions; at most 1,000."
            )
        self.values = np.array(list(itertools.product(*values)))
        self.action_space = spaces.Discrete(len(self.values))
        if pixels:
            self.observation_space: spaces.Box = spaces.Box(0, 255, (3, size, size), np.uint8)
        else:
            numbers = sum(int(np.prod(spec.shape)) for spec in self.env.observation_spec().values())
            self.observation_space = spaces.Box(-np.inf, np.inf, (numbers,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """First observation uint8 [3, size, size] or float32 [numbers]."""
        super().reset(seed=seed)
        self.env.task._random = np.random.RandomState(int(self.np_random.integers(2**31)))
        return self._seen(self.env.reset()), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As gymnasium.Env.step; the rewards of the repeated steps are added."""
        total = 0.0
        for _ in range(self.repeat):
            now = self.env.step(self.values[action])
            total += now.reward or 0.0
            if now.last():
                break
        over = bool(now.last() and now.discount == 0)
        return self._seen(now), total, over, bool(now.last()) and not over, {}

    def render(self) -> np.ndarray:
        """uint8 [480, 480, 3]."""
        return self.env.physics.render(480, 480, camera_id=0)

    def _seen(self, now: Any) -> np.ndarray:
        if self.pixels:
            return (
                self.env.physics.render(self.size, self.size, camera_id=0).transpose(2, 0, 1).copy()
            )
        return np.concatenate([np.ravel(value) for value in now.observation.values()]).astype(
            np.float32
        )


gymnasium.register(
    "rlx/DMControl-v0", f"{__name__}:DMControl", disable_env_checker=True, order_enforce=False
)


class DMControlEnv(GymEnv):
    """`num_envs` copies of a task; the interface of `rlx.envs.batched.BatchedEnv`."""

    def __init__(
        self, task: str, repeat: Count, bins: int, pixels: bool, size: int, num_envs: int = 1, device: torch.device | str = "cpu"
    ):  # fmt: skip
        """The keys of conf/env/dmc.yaml. An episode is 1000 control steps."""
        self.named = f"env.task={task}"
        kwargs = {"task": task, "repeat": repeat, "bins": bins, "pixels": pixels, "size": size}
        super().__init__(
            f"{__name__}:rlx/DMControl-v0", num_envs, -(-1000 // repeat), kwargs, device
        )
