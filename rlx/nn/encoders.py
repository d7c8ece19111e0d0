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
    """Observations [S, B, *O] → network input [S, B, F].

    Those of Discrete spaces become one-hot, those of a Box flat; `scaled` divides each number by
    its bound where that is finite.
    """

    scale: Tensor
    """[S, 1, F]: what each number of the input is multiplied by."""

    def __init__(self, space: gymnasium.Space, seeds: Tensor, *, scaled: bool = False):
        super().__init__()
        self.features = obs_features(space)
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        scale = np.ones(self.features, np.float32)
        if isinstance(space, gymnasium.spaces.Box) and scaled:
            bound = np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float64).ravel()
            known = np.isfinite(bound) & (bound > 0)
            scale = np.where(known, 1 / np.maximum(bound, 1e-12), 1.0).astype(np.float32)
        per_seed = torch.from_numpy(scale).to(seeds.device).expand(len(seeds), 1, -1)
        self.register_buffer("scale", per_seed.contiguous())

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
    """Stacked images [S, B, k · C, H, W] → features [S, B, F] of `net`, which sees differences.

    It is shown the newest image, and how it differs from each of the others: what moves by less
    than a pixel in one step is lost beside what stands still.
    """

    def __init__(self, net: ConvNet, channels: int):
        super().__init__()
        self.net = net
        self.channels = channels
        self.features = net.features

    def forward(self, x: Tensor) -> Tensor:
        images = x.float().unflatten(2, (-1, self.channels))  # [S, B, k, C, H, W]
        newest = images[:, :, -1:]
        differences = newest - images[:, :, :-1]
        return self.net(torch.cat([differences, newest], 2).flatten(2, 3))


def is_image(shape: Sequence[int] | None) -> bool:
    """Whether observations of this shape are images [C, H, W], of IMAGE_SIDE pixels a side or more.

    Others are flattened.
    """
    return shape is not None and len(shape) == 3 and min(shape[1:]) >= IMAGE_SIDE


def check_conv(layers: Sequence[Sequence[int]]) -> None:
    """ConfigError where a layer is not three numbers."""
    if any(len(layer) != 3 for layer in layers):
        expected = "expected [channels, kernel, stride] for each layer"
        raise ConfigError(f"agent.conv={layers}: {expected}.")


def make_encoder(
    space: gymnasium.Space,
    conv: Sequence[Sequence[int]],
    seeds: Tensor,
    rng: Streams,
    *,
    scaled: bool = False,
    batch_norm: bool = False,
    stack: int = 1,
) -> ObsEncoder | ConvNet | Differences:
    """The first part of a network: observations [S, B, *O] → vectors [S, B, F].

    Images are `stack` of them, [S, B, stack · C, H, W], and go through the layers of `conv`, with
    `batch_norm`; other observations are `scaled`. Its attribute `features` is F.
    """
    shape = space.shape
    if shape is None or not is_image(shape):
        return ObsEncoder(space, seeds, scaled=scaled)
    channels, *size = shape
    scale = 255.0 if space.dtype == np.uint8 else 1.0
    net = ConvNet((stack * channels, *size), conv, batch_norm, scale, seeds, rng)
    return net if stack == 1 else Differences(net, channels)


def obs_features(space: gymnasium.Space) -> int:
    """Length of the vector that a network sees of one observation that is no image."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    assert space.shape is not None
    return int(torch.Size(space.shape).numel())


def check_no_image(space: gymnasium.Space, agent: str) -> None:
    """ConfigError where observations are images, for which this agent has no layers."""
    if is_image(space.shape):
        raise ConfigError(
            f"agent: {agent} sees short observations, not images; this env has {space}. "
            "Use agent=dqn, agent=ppo or agent=efficientzero."
        )
