"""A greedy episode as an animated picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from rlx import experiment
from rlx.agent import Policy
from rlx.env import TensorEnv
from rlx.envs.gym import GymEnv
from rlx.envs.view import View
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.nn.seed_axis import take
from rlx.rollout import rollout

FRAMES_PER_S = 25


def camera(node: Mapping[str, Any], device: torch.device, clock: int) -> "Camera":
    """On the env `node`; ConfigError where nothing can be drawn."""
    if "id" in node:
        node = {**node, "kwargs": {**(node["kwargs"] or {}), "render_mode": "rgb_array"}}
    return Camera(experiment.make_env(node, 1, device, clock))


def film(policy: Policy, env: "Camera", row: int, reset_seed: int, path: Path) -> None:
    """The episode from `reset_seed` of the policy's seed `row`, as a GIF at `path`."""
    filmed: Any = env
    device = next(policy.parameters()).device
    rollout(
        take(policy, torch.tensor([row], device=device)),
        filmed,
        torch.tensor([[reset_seed]], device=device),
    )
    save(env.frames, path)


def save(frames: Sequence[np.ndarray], path: Path) -> None:
    """Frames uint8 [H, W, 3] as a GIF."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame).quantize(128) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=1000 // FRAMES_PER_S, loop=0)


class Camera:
    """An env of one copy that notes a picture of every step of its first episode."""

    def __init__(self, env: TensorEnv):
        self.env, self.frames, self.on = env, list[np.ndarray](), True
        self.keep = env.keep
        self.draw: Any
        inner: Any = env.env if isinstance(env, View) else env
        space = env.single_observation_space
        own = getattr(getattr(inner, "dynamics", None), "gymnasium_id", None)
        if isinstance(inner, GymEnv):
            self.draw = lambda obs: inner.render()[0]
        elif isinstance(space, Box) and is_image(space.shape):
            self.draw = _enlarged
        elif own in gymnasium.registry:
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window
            twin: Any = gymnasium.make(own, render_mode="rgb_array").unwrapped
            twin.reset()

            def draw(obs: Tensor) -> np.ndarray:
                twin.state = inner.state[0].double().cpu().numpy()
                return twin.render()

            self.draw = draw
        else:
            raise ConfigError("video: this env draws no pictures.")

    def reset(self, **options: Any) -> tuple[Tensor, dict]:
        """As the env's."""
        obs, info = self.env.reset(**options)
        self.frames.append(self.draw(obs))
        return obs, info

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As the env's."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        self.on = self.on and not bool(terminated[0] | truncated[0])
        if self.on:
            self.frames.append(self.draw(obs))
        return obs, reward, terminated, truncated, info


def _enlarged(obs: Tensor) -> np.ndarray:
    """The newest channel or three of images [1, C, H, W], four times as large."""
    channels = 3 if obs.shape[1] == 3 else 1
    image = obs[0, -channels:].cpu().numpy()
    image = image if image.dtype == np.uint8 else (255 * image).astype(np.uint8)
    return np.repeat(image, 3 // channels, 0).transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
