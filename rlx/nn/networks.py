"""Layers with a seed axis: S independent networks of one shape, evaluated and trained as one."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.rng import Streams

EPS = 1e-5
"""What batch normalisation adds to a variance before it takes the root; torch's default."""
MOMENTUM = 0.1
"""Weight of a batch in the running moments of batch normalisation; torch's default."""


class SeedLinear(nn.Module):
    """S affine maps side by side: [S, B, inputs] → [S, B, outputs].

    `weight` is [S, inputs, outputs], `bias` [S, 1, outputs] or None.
    """

    def __init__(self, inputs: int, outputs: int, rng: Streams, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear begins
        self.weight = nn.Parameter((rng.uniform(inputs, outputs) * 2 - 1) * bound)
        self.bias = nn.Parameter((rng.uniform(1, outputs) * 2 - 1) * bound) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    """Fully connected network: [S, B, inputs] → [S, B, outputs].

    `activation` (by default ReLU, in place) stands between its layers.
    """

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

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest outputs of inputs between `low` and `high`, [S, B, inputs] each.

        They are bounds, and not tight (interval bound propagation, Gowal et al. 2018).
        """
        for i, layer in enumerate(self.layers):
            if i > 0:
                low = self.activation(low)
                high = self.activation(high)
            assert isinstance(layer, SeedLinear)
            middle = layer((low + high) / 2)
            radius = torch.bmm((high - low) / 2, layer.weight.abs())
            low = middle - radius
            high = middle + radius
        return low, high


class SeedConv(nn.Module):
    """S convolutions side by side: [S, B, inputs, H, W] → [S, B, outputs, H', W'].

    `weight` is [S, outputs, inputs, kernel, kernel], `bias` [S, outputs] or None. Before batch
    normalisation leave the bias out: there it has no effect, and its gradient is only rounding
    noise, which Adam would turn into full steps.
    """

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
        self.stride = stride
        self.padding = padding
        root = math.sqrt(inputs * kernel**2)  # as nn.Conv2d begins
        weight = rng.uniform(outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter((weight * 2 - 1) / root)
        self.bias = nn.Parameter((rng.uniform(outputs) * 2 - 1) / root) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return self._one_by_one(x)
        seeds = len(x)
        bias = None if self.bias is None else self.bias.flatten()
        weight = self.weight.flatten(0, 1)
        side_by_side = x.transpose(0, 1).flatten(1, 2)  # [B, S · inputs, H, W]
        y = nn.functional.conv2d(
            side_by_side, weight, bias, self.stride, self.padding, groups=seeds
        )
        return y.unflatten(1, (seeds, -1)).transpose(0, 1)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """One seed after another: a grouped convolution takes a third longer on a CPU."""
        biases = [None] * len(x) if self.bias is None else self.bias
        images = [
            nn.functional.conv2d(image, weight, bias, self.stride, self.padding)
            for image, weight, bias in zip(x, self.weight, biases, strict=True)
        ]
        return torch.stack(images)


@torch.no_grad()
def scale_for_relu(net: nn.Module) -> None:
    """Scale the first weights of all convolutions in `net` for ReLU (He et al. 2015).

    With them the activations neither shrink nor grow with the depth.
    """
    for layer in net.modules():
        if isinstance(layer, SeedConv):
            # With n inputs, U(−1/√n, 1/√n) has the variance 1 / (3 n); it shall be 2 / n.
            layer.weight.mul_(math.sqrt(6))


class SeedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of each seed's channels.

    Input and output are [S, B, C, H, W] or [S, B, C]. In training mode it goes by the moments of
    the batch, else by running ones (whose variance is the biased one, unlike torch's). It starts
    in evaluation mode, since a policy's decision must not depend on the rest of its batch: a
    learning step switches the mode on and off.
    """

    mean: Tensor
    """[S, 1, C, 1, 1]: running mean of each channel."""
    variance: Tensor
    """[S, 1, C, 1, 1]: running variance of each channel."""

    def __init__(self, channels: int, seeds: Tensor):
        super().__init__()
        shape = (len(seeds), 1, channels, 1, 1)
        self.scale = nn.Parameter(torch.ones(shape, device=seeds.device))
        self.shift = nn.Parameter(torch.zeros(shape, device=seeds.device))
        self.register_buffer("mean", torch.zeros(shape, device=seeds.device))
        self.register_buffer("variance", torch.ones(shape, device=seeds.device))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self(x[..., None, None])[..., 0, 0]
        if not self.training:
            return (x - self.mean) * ((self.variance + EPS).rsqrt() * self.scale) + self.shift
        # torch's own kernel is twice as fast as the formula.
        side_by_side = x.transpose(0, 1).flatten(1, 2)  # [B, S · C, H, W]
        y, mean, inverse = torch.native_batch_norm(
            side_by_side, self.scale.flatten(), self.shift.flatten(), None, None, True, 0.0, EPS
        )
        # `inverse` is 1 / √(variance + EPS).
        self._update(mean, inverse**-2 - EPS)
        return y.unflatten(1, (len(x), -1)).transpose(0, 1)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running moments towards those of a batch, [S · C] each."""
        self.mean.lerp_(mean.view_as(self.mean), MOMENTUM)
        self.variance.lerp_(variance.view_as(self.variance), MOMENTUM)


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
        """`shape`: (C, H, W) of an image; `layers`: [channels, kernel, stride] of each.

        Images are divided by `scale`. With `batch_norm` they are normalised before the first
        layer, and behind every convolution. ConfigError where the image is too small.
        """
        super().__init__()
        self.scale = scale
        channels, height, width = shape
        parts: list[nn.Module] = [SeedBatchNorm(channels, seeds)] if batch_norm else []
        for outputs, kernel, stride in layers:
            parts.append(SeedConv(channels, outputs, kernel, stride, rng))
            if batch_norm:
                parts.append(SeedBatchNorm(outputs, seeds))
            parts.append(nn.ReLU())
            channels = outputs
            height = (height - kernel) // stride + 1
            width = (width - kernel) // stride + 1
            if min(height, width) < 1:
                given = [list(layer) for layer in layers]
                raise ConfigError(
                    f"agent.conv={given}: nothing is left of an image of {list(shape)}."
                )
        self.layers = nn.Sequential(*parts)
        self.features = channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.float() / self.scale).flatten(2)


class SeedGRU(nn.Module):
    """S gated recurrent units (Cho et al. 2014, in torch's form) side by side.

    Inputs x [S, B, inputs] and state h [S, B, units] → the next state [S, B, units].
    """

    def __init__(self, inputs: int, units: int, rng: Streams):
        super().__init__()
        self.input = SeedLinear(inputs, 3 * units, rng)
        self.hidden = SeedLinear(units, 3 * units, rng)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset_x, update_x, new_x = self.input(x).chunk(3, -1)
        reset_h, update_h, new_h = self.hidden(h).chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new.lerp(h, update)


class RunningNorm(nn.Module):
    """Mean and variance [S, 1, F] of all rows that each seed was given, to normalise by.

    Each update merges the moments of a batch (Chan et al. 1979).
    """

    mean: Tensor
    """[S, 1, F]."""
    variance: Tensor
    """[S, 1, F]."""
    count: Tensor
    """[S, 1, 1]: rows so far."""

    def __init__(self, features: int, seeds: Tensor):
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(seeds), 1, features, device=seeds.device))
        self.register_buffer("variance", torch.ones_like(self.mean))
        # Nearly no rows: the first batch's moments replace the initial ones.
        self.register_buffer("count", torch.full((len(seeds), 1, 1), 1e-4, device=seeds.device))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the rows x [S, B, F] into the moments."""
        rows = x.shape[1]
        total = self.count + rows
        shift = x.mean(1, keepdim=True) - self.mean
        # Sums of squared distances, from the old mean and from the batch's own.
        squares = self.variance * self.count + x.var(1, correction=0, keepdim=True) * rows
        self.variance.copy_((squares + shift.square() * self.count * rows / total) / total)
        self.mean += shift * rows / total
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """x [S, B, F] with mean 0 and variance 1, cut at ±10."""
        return ((x - self.mean) * (self.variance + 1e-8).rsqrt()).clamp(-10, 10)


class QNetwork(nn.Module):
    """Features [S, B, inputs] → action values [S, B, A].

    `dueling` splits them into the state's value and the actions' advantages (Wang et al. 2016,
    equation 9).
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], actions: int, dueling: bool, rng: Streams
    ):
        super().__init__()
        self.dueling = dueling
        outputs = 1 + actions if dueling else actions
        self.body = MLP(inputs, hidden, outputs, rng)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if not self.dueling:
            return out
        value = out[..., :1]
        advantage = out[..., 1:]
        return value + advantage - advantage.mean(-1, keepdim=True)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest values of features between `low` and `high`, as of `MLP`."""
        low, high = self.body.interval(low, high)
        if not self.dueling:
            return low, high
        count = low.shape[-1] - 1
        own = 1 - 1 / count
        lowest = low[..., 1:]
        highest = high[..., 1:]
        # An action's own advantage counts 1 − 1/A times, each other one −1/A times.
        others_low = (lowest.sum(-1, keepdim=True) - lowest) / count
        others_high = (highest.sum(-1, keepdim=True) - highest) / count
        lower = low[..., :1] + own * lowest - others_high
        upper = high[..., :1] + own * highest - others_low
        return lower, upper
