"""Layers with a seed axis: S independent networks of one shape, evaluated and trained as one."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.rng import Streams


class SeedLinear(nn.Module):
    """S affine maps side by side: [S, B, in] → [S, B, out]. `weight` is [S, in, out], `bias` [S, 1, out] or None."""

    def __init__(self, inputs: int, outputs: int, rng: Streams, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # nn.Linear's own initialisation
        self.weight = nn.Parameter((rng.uniform(inputs, outputs) * 2 - 1) * bound)
        self.bias = nn.Parameter((rng.uniform(1, outputs) * 2 - 1) * bound) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.bmm(x, self.weight)
            if self.bias is None
            else torch.baddbmm(self.bias, x, self.weight)
        )


class MLP(nn.Module):
    """Fully connected network [S, B, inputs] → [S, B, outputs], with `activation` (ReLU in place) between its layers."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        rng: Streams,
        activation: Callable[[Tensor], Tensor] = torch.relu_,
    ):
        super().__init__()
        self.activation = activation
        sizes = [inputs, *hidden, outputs]
        self.layers = nn.ModuleList(SeedLinear(a, b, rng) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class SeedConv(nn.Module):
    """S convolutions side by side: [S, B, in, H, W] → [S, B, out, H', W']. `weight` is [S, out, in, k, k], `bias` [S, out] or
    None: before batch normalisation it has no effect and no gradient but noise, which Adam would make steps of."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        rng: Streams,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, fan_in = stride, padding, inputs * kernel**2
        self.weight = nn.Parameter(
            (rng.uniform(outputs, inputs, kernel, kernel) * 2 - 1) / math.sqrt(fan_in)
        )
        self.bias = (
            nn.Parameter((rng.uniform(outputs) * 2 - 1) / math.sqrt(fan_in)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # a grouped convolution is a third slower there
            each = zip(
                x, self.weight, [None] * len(x) if self.bias is None else self.bias, strict=True
            )
            return torch.stack(
                [
                    nn.functional.conv2d(one, weight, bias, self.stride, self.padding)
                    for one, weight, bias in each
                ]
            )
        seeds = len(x)
        bias = None if self.bias is None else self.bias.flatten()
        side_by_side = x.transpose(0, 1).flatten(1, 2)  # [B, S · in, H, W]
        y = nn.functional.conv2d(
            side_by_side, self.weight.flatten(0, 1), bias, self.stride, self.padding, groups=seeds
        )
        return y.unflatten(1, (seeds, -1)).transpose(0, 1)


@torch.no_grad()
def scale_for_relu(net: nn.Module) -> None:
    """Begin its convolutions with weights that neither shrink nor swell what passes ReLU layers, for depth (He et al. 2015)."""
    for layer in net.modules():
        if isinstance(layer, SeedConv):
            layer.weight.mul_(math.sqrt(6))


class SeedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of each seed's channels x [S, B, C, H, W] or [S, B, C]: by the batch's own moments where
    `training`, else by running ones (the biased variance, unlike torch)."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, seeds: Tensor):
        super().__init__()
        shape = (len(seeds), 1, channels, 1, 1)
        self.scale, self.shift = (
            nn.Parameter(torch.full(shape, value, device=seeds.device)) for value in (1.0, 0.0)
        )
        self.register_buffer("mean", torch.zeros(shape, device=seeds.device))
        self.register_buffer("variance", torch.ones(shape, device=seeds.device))
        self.eval()  # a policy's decisions do not depend on the batch; the learning step says otherwise

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self(x[..., None, None])[..., 0, 0]
        if not self.training:
            return (x - self.mean) * ((self.variance + 1e-5).rsqrt() * self.scale) + self.shift
        side_by_side = x.transpose(0, 1).flatten(
            1, 2
        )  # [B, S · C, H, W]: torch's own kernel, twice as fast as the formula
        y, mean, inverse = torch.native_batch_norm(
            side_by_side, self.scale.flatten(), self.shift.flatten(), None, None, True, 0.0, 1e-5
        )
        with torch.no_grad():
            self.mean.lerp_(mean.view_as(self.mean), 0.1)
            self.variance.lerp_((inverse**-2 - 1e-5).view_as(self.variance), 0.1)
        return y.unflatten(1, (len(x), -1)).transpose(0, 1)


class ConvNet(nn.Module):
    """Images [S, B, C, H, W] → features [S, B, F]: convolutions with ReLU, flattened."""

    def __init__(
        self,
        shape: Sequence[int],
        layers: Sequence[Sequence[int]],
        batch_norm: bool,
        scale: float,
        seeds: Tensor,
        rng: Streams,
    ):
        """`shape` (C, H, W) of an image, which is divided by `scale`; `layers`: [channels, kernel, stride] each. ConfigError
        where the image is too small."""
        super().__init__()
        self.scale = scale
        channels, height, width = shape
        parts: list[nn.Module] = [SeedBatchNorm(channels, seeds)] if batch_norm else []
        for outputs, kernel, stride in layers:
            parts.append(SeedConv(channels, outputs, kernel, stride, rng))
            if batch_norm:
                parts.append(SeedBatchNorm(outputs, seeds))
            parts.append(nn.ReLU())
            channels, height, width = (
                outputs,
                (height - kernel) // stride + 1,
                (width - kernel) // stride + 1,
            )
            if min(height, width) < 1:
                raise ConfigError(
                    f"agent.conv={[list(layer) for layer in layers]}: nothing is left of an image of {list(shape)}."
                )
        self.layers = nn.Sequential(*parts)
        self.features = channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.float() / self.scale).flatten(2)


class SeedGRU(nn.Module):
    """S gated recurrent units (Cho et al. 2014, torch's form): x [S, B, inputs], h [S, B, units] → h' [S, B, units]."""

    def __init__(self, inputs: int, units: int, rng: Streams):
        super().__init__()
        self.input, self.hidden = (
            SeedLinear(inputs, 3 * units, rng),
            SeedLinear(units, 3 * units, rng),
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
            self.input(x).chunk(3, -1),
            self.hidden(h).chunk(3, -1),
        )
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new.lerp(h, update)


class RunningNorm(nn.Module):
    """Mean and variance of all that a seed has seen, [S, 1, F] (Chan et al. 1979's update by batches)."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int, seeds: Tensor):
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(seeds), 1, features, device=seeds.device))
        self.register_buffer("variance", torch.ones_like(self.mean))
        self.register_buffer("count", torch.full((len(seeds), 1, 1), 1e-4, device=seeds.device))

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Count the rows x [S, B, F] in."""
        total, off = self.count + x.shape[1], x.mean(1, keepdim=True) - self.mean
        spread = self.variance * self.count + x.var(1, correction=0, keepdim=True) * x.shape[1]
        self.variance.copy_((spread + off.square() * self.count * x.shape[1] / total) / total)
        self.mean += off * x.shape[1] / total
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """x [S, B, F] with mean 0 and variance 1, cut at ±10."""
        return ((x - self.mean) * (self.variance + 1e-8).rsqrt()).clamp(-10, 10)


class QNetwork(nn.Module):
    """Action values [S, B, inputs] → [S, B, A]; `dueling` splits them into value and advantage (Wang et al. 2016, eq. 9)."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], actions: int, dueling: bool, rng: Streams
    ):
        super().__init__()
        self.dueling = dueling
        self.body = MLP(inputs, hidden, actions + dueling, rng)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if not self.dueling:
            return out
        value, advantage = out[..., :1], out[..., 1:]
        return value + advantage - advantage.mean(-1, keepdim=True)
