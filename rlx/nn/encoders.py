"""From observations to the vectors that networks see."""

from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlx.env import IMAGE_SIDE
from rlx.errors import ConfigError
from rlx.nn.networks import ConvNet
from rlx.nn.rng import Streams


class ObsEncoder(nn.Module):
    """Observations [S, B, *O] → network input [S, B, F]: one-hot for Discrete spaces, flat and scaled for Box."""

    scale: Tensor

    def __init__(self, space: gymnasium.Space, scaled: bool, seeds: Tensor):
        super().__init__()
        self.features = obs_features(space)
        self.width = 1 if isinstance(space, gymnasium.spaces.Discrete) else self.features
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        scale = np.ones(self.features, np.float32)
        if isinstance(space, gymnasium.spaces.Box) and scaled:
            bound = np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float64).ravel()
            scale = np.where(
                np.isfinite(bound) & (bound > 0), 1 / np.maximum(bound, 1e-12), 1.0
            ).astype(np.float32)
        self.register_buffer(
            "scale", torch.from_numpy(scale).to(seeds.device).expand(len(seeds), 1, -1).contiguous()
        )

    def forward(self, obs: Tensor) -> Tensor:
        if self.discrete:
            return nn.functional.one_hot(obs.long(), self.features).to(self.scale.dtype)
        return obs.flatten(2) * self.scale


def obs_field(space: gymnasium.Space) -> tuple[tuple[int, ...], torch.dtype]:
    """(shape, dtype) of one observation in the replay."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return (), torch.int64
    image = isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8
    return tuple(space.shape or ()), torch.uint8 if image else torch.float32


class Differences(nn.Module):
    """Shows `net` of stacked images [S, B, k · C, H, W] the newest and what each of the others is less: a single step moves things by
    less than a pixel, which is lost beside what stands still."""

    def __init__(self, net: ConvNet, channels: int):
        super().__init__()
        self.net, self.channels, self.features = net, channels, net.features

    def forward(self, x: Tensor) -> Tensor:
        frames = x.float().unflatten(2, (-1, self.channels))
        newest = frames[:, :, -1:]
        return self.net(torch.cat([newest - frames[:, :, :-1], newest], 2).flatten(2, 3))


def is_image(shape: Sequence[int] | None) -> bool:
    """Whether observations of this shape are images [C, H, W]: of IMAGE_SIDE pixels and more a side.

    The others are seen flat.
    """
    return shape is not None and len(shape) == 3 and min(shape[1:]) >= IMAGE_SIDE


def check_conv(layers: Sequence[Sequence[int]]) -> None:
    """ConfigError where a layer is not three numbers."""
    if any(len(layer) != 3 for layer in layers):
        raise ConfigError(
            f"agent.conv={layers}: expected [channels, kernel, stride] for each layer."
        )


def make_encoder(
    space: gymnasium.Space,
    scaled: bool,
    conv: Sequence[Sequence[int]],
    batch_norm: bool,
    stack: int,
    seeds: Tensor,
    rng: Streams,
) -> ObsEncoder | ConvNet | Differences:
    """Of observations [S, B, *O], or of pictures [S, B, stack · C, H, W]; its `features` say how long the vectors are."""
    if space.shape is None or not is_image(space.shape):
        return ObsEncoder(space, scaled, seeds)
    channels, *size = space.shape
    net = ConvNet(
        (stack * channels, *size),
        conv,
        batch_norm,
        255.0 if space.dtype == np.uint8 else 1.0,
        seeds,
        rng,
    )
    return net if stack == 1 else Differences(net, channels)


def obs_features(space: gymnasium.Space) -> int:
    """Length of the vector that a network sees of one observation that is no picture."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    assert space.shape is not None
    return int(torch.Size(space.shape).numel())


def check_no_image(space: gymnasium.Space, agent: str) -> None:
    """ConfigError where observations are images, which this agent has no layers for."""
    if is_image(space.shape):
        others = "agent=dqn, agent=ppo or agent=efficientzero"
        what = f"agent: {agent} sees short observations, not images"
        raise ConfigError(f"{what}; this env has {space}. Use {others}.")
