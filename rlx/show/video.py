"""A greedy episode as an animated GIF."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from rlx.agent import Policy
from rlx.env import TensorEnv
from rlx.envs.gym import GymEnv
from rlx.envs.view import View
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.nn.seed_axis import take
from rlx.rollout import rollout

FRAMES_PER_S = 25


def drawing(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config group `node` of an env, changed so that Gymnasium's envs draw images."""
    if "id" not in node:
        return node
    return {**node, "kwargs": {**(node["kwargs"] or {}), "render_mode": "rgb_array"}}


def film(policy: Policy, env: "Camera", row: int, reset_seed: int, path: Path) -> None:
    """Play an episode in `env` and write it as a GIF at `path`.

    `row`: the row of the policy's seed axis that plays; `reset_seed`: where the episode starts.
    """
    device = next(policy.parameters()).device
    policy = take(policy, torch.tensor([row], device=device))
    filmed: Any = env
    rollout(policy, filmed, torch.tensor([[reset_seed]], device=device))
    save(env.frames, path)


def save(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write frames uint8 [H, W, 3] as a GIF."""
    from PIL import Image

    first, *later = (Image.fromarray(frame).quantize(128) for frame in frames)
    milliseconds = 1000 // FRAMES_PER_S
    first.save(path, save_all=True, append_images=later, duration=milliseconds, loop=0)


class Camera:
    """An env of one copy that keeps an image of every step of its first episode."""

    def __init__(self, env: TensorEnv):
        self.env = env
        self.keep = env.keep
        self.frames: list[np.ndarray] = []
        """The images so far, each uint8 [H, W, 3]."""
        self.filming = True
        """Whether the first episode is still running."""
        self.draw = _drawing(env)
        """Makes an observation [1, *O] into an image of the env's state, uint8 [H, W, 3]."""

    def reset(self, **options: Any) -> tuple[Tensor, dict]:
        """Reset the env, and keep the first image."""
        obs, info = self.env.reset(**options)
        self.frames.append(self.draw(obs))
        return obs, info

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step the env, and keep an image if the first episode goes on."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        self.filming = self.filming and not bool(terminated[0] | truncated[0])
        if self.filming:
            self.frames.append(self.draw(obs))
        return obs, reward, terminated, truncated, info


def _drawing(env: TensorEnv) -> Callable[[Tensor], np.ndarray]:
    """The function that draws `env` (see `Camera.draw`); ConfigError where there is none."""
    inner: Any = env.env if isinstance(env, View) else env
    space = env.single_observation_space
    gymnasium_id = getattr(getattr(inner, "dynamics", None), "gymnasium_id", None)
    if isinstance(inner, GymEnv):
        return lambda obs: inner.render()[0]
    if isinstance(space, Box) and is_image(space.shape):
        return _enlarged
    if gymnasium_id not in gymnasium.registry:
        raise ConfigError("video: this env draws no images.")
    # Gymnasium's env of the same equations draws the state of ours.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window
    twin: Any = gymnasium.make(gymnasium_id, render_mode="rgb_array").unwrapped
    twin.reset()

    def draw(obs: Tensor) -> np.ndarray:
        twin.state = inner.state[0].double().cpu().numpy()
        return twin.render()

    return draw


def _enlarged(obs: Tensor) -> np.ndarray:
    """The newest channel of an image [1, C, H, W], or its three colours, four times as large.

    The result is uint8 [4 H, 4 W, 3].
    """
    channels = 3 if obs.shape[1] == 3 else 1
    image = obs[0, -channels:].cpu().numpy()
    if image.dtype != np.uint8:
        image = (255 * image).astype(np.uint8)
    image = np.repeat(image, 3 // channels, axis=0)
    return image.transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
