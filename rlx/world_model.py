"""EfficientZero's networks (Ye et al. 2021, appendix A).

They are the representation, the dynamics, the value prefix, the predictions of value and policy,
and SimSiam's heads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.nn.encoders import ObsEncoder
from rlx.nn.networks import SeedBatchNorm, SeedConv, SeedLinear
from rlx.nn.rng import Streams
from rlx.search import RecurrentOutput


class SeedLayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of x [S, B, F]."""

    def __init__(self, features: int, seeds: Tensor):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(len(seeds), 1, features, device=seeds.device))
        self.shift = nn.Parameter(torch.zeros_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class SeedLSTM(nn.Module):
    """S long short-term memory cells (Hochreiter & Schmidhuber 1997, in torch's form).

    x is [S, B, inputs], h and c are [S, B, units].
    """

    def __init__(self, inputs: int, units: int, rng: Streams):
        super().__init__()
        self.gates = SeedLinear(inputs + units, 4 * units, rng)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next (h, c), [S, B, units] each."""
        gates = self.gates(torch.cat([x, h], -1))
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
        c = torch.sigmoid(forget_gate) * c + torch.sigmoid(input_gate) * torch.tanh(candidate)
        return torch.sigmoid(output_gate) * torch.tanh(c), c


def layer_norm_mlp(sizes: Sequence[int], seeds: Tensor, rng: Streams) -> nn.Sequential:
    """Linear layers of these sizes; layer normalisation and ReLU follow each but the last."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        parts += [SeedLinear(inputs, outputs, rng), SeedLayerNorm(outputs, seeds), nn.ReLU()]
    return nn.Sequential(*parts, SeedLinear(sizes[-2], sizes[-1], rng))


def zero_last_layer(head: nn.Sequential) -> nn.Sequential:
    """Set the last layer of `head` to 0 and return it: so every outcome begins equally likely."""
    with torch.no_grad():
        for parameter in head[-1].parameters():
            parameter.zero_()
    return head


class Support(nn.Module):
    """Real numbers as distributions over `bins` places, evenly spread between ±`limit`.

    They are spread so after h(x) = sign(x)(√(|x| + 1) − 1) + 0.001 x (Pohlen et al. 2018),
    which squashes large numbers.
    """

    places: Tensor
    """[S, 1, bins]."""
    EPS = 1e-3
    """Least slope of h: so its inverse does not blow errors up without bound."""

    def __init__(self, limit: float, bins: int, seeds: Tensor):
        super().__init__()
        self.limit = limit
        self.bins = bins
        places = torch.linspace(-limit, limit, bins, device=seeds.device)
        self.register_buffer("places", places.expand(len(seeds), 1, -1).contiguous())

    def squash(self, x: Tensor) -> Tensor:
        """The squashed numbers h(x), elementwise."""
        return x.sign() * ((x.abs() + 1).sqrt() - 1) + self.EPS * x

    def unsquash(self, y: Tensor) -> Tensor:
        """The numbers x of which y = h(x), elementwise (Pohlen et al. 2018)."""
        root = ((1 + 4 * self.EPS * (y.abs() + 1 + self.EPS)).sqrt() - 1) / (2 * self.EPS)
        return y.sign() * (root.square() - 1)

    def end(self) -> float:
        """The largest number that it can tell from larger ones."""
        return float(self.unsquash(torch.tensor(self.limit, dtype=torch.float64)))

    def two_hot(self, x: Tensor) -> Tensor:
        """[S, B, …] → [S, B, …, bins]: weights on the two places beside h(x), whose mean it is."""
        h = self.squash(x).clamp(-self.limit, self.limit)
        position = (h + self.limit) * ((self.bins - 1) / (2 * self.limit))
        # The largest number lies on the last place, and is the upper neighbour's.
        low = position.floor().clamp(max=self.bins - 2)
        share = (position - low).unsqueeze(-1)
        index = low.long().unsqueeze(-1)
        weights = share.new_zeros(*x.shape, self.bins)
        return weights.scatter_(-1, index, 1 - share).scatter_(-1, index + 1, share)

    def decode(self, logits: Tensor) -> Tensor:
        """[S, B, bins] → [S, B]: the mean of the places by `logits`, unsquashed."""
        return self.unsquash((logits.softmax(-1) * self.places).sum(-1))


@dataclass(frozen=True)
class Sizes:
    """What the networks of vectors and of images have in common."""

    actions: int
    """Discrete actions of the env."""
    latent: int
    """Units of a state; of images, its planes."""
    lstm: int
    """Units of the value prefix's memory."""
    head: int
    """Units of the hidden layer of each prediction."""
    projection: int
    """Units of SimSiam's heads."""


class WorldModel(nn.Module):
    """How states follow from observations and actions, and what they are worth.

    Latents are {"state": [S, B, *H], "h": [S, B, L], "c": [S, B, L]}; h and c, the LSTM's memory,
    hold the rewards since the value prefix began. A subclass sets the modules below and has the
    method `dynamics`.
    """

    memory = ("h", "c")
    """Names of the latents that begin anew with the value prefix."""

    represent: Callable[[Tensor], Tensor]
    """Observations [S, B, *O] → states [S, B, *H]."""
    reduce: Callable[[Tensor], Tensor]
    """States → vectors [S, B, F] for the LSTM."""
    shared: Callable[[Tensor], Tensor]
    """States → what `value_head` and `policy_head` see."""
    value_head: Callable[[Tensor], Tensor]
    """Result of `shared` → logits [S, B, bins] of the value."""
    policy_head: Callable[[Tensor], Tensor]
    """Result of `shared` → logits [S, B, A] of the policy."""
    prefix_head: Callable[[Tensor], Tensor]
    """h → logits [S, B, bins] of the value prefix."""
    project: Callable[[Tensor], Tensor]
    """States → vectors [S, B, P]: SimSiam's projection (Chen & He 2021)."""
    predict: Callable[[Tensor], Tensor]
    """Projected states → vectors [S, B, P]: SimSiam's predictor."""

    def __init__(
        self,
        sizes: Sizes,
        reduced: int,
        supports: tuple[Support, Support],
        rng: Streams,
    ):
        """`reduced`: length of the vectors of `reduce`; `supports`: of values and of prefixes."""
        super().__init__()
        self.actions = sizes.actions
        self.units = sizes.lstm
        self.value_support, self.prefix_support = supports
        self.lstm = SeedLSTM(reduced, sizes.lstm, rng)

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        """The state that an action (one-hot, [S, B, A]) leads to from `state`."""
        raise NotImplementedError

    def begin(self, obs: Tensor) -> dict[str, Tensor]:
        """Latents of observations [S, B, *O]: their states, and a memory of zeros."""
        latent = {"state": self.represent(obs)}
        for name in self.memory:
            latent[name] = latent["state"].new_zeros(*obs.shape[:2], self.units)
        return latent

    def advance(self, latent: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        """The latent that `action` [S, B] leads to from `latent`.

        Half of the gradient flows back through a state (Schrittwieser et al. 2020, appendix G).
        """
        one_hot = nn.functional.one_hot(action, self.actions).to(latent["state"].dtype)
        state = self.dynamics(latent["state"], one_hot)
        if torch.is_grad_enabled():
            state = state.detach().lerp(state, 0.5)
        h, c = self.lstm(self.reduce(state), latent["h"], latent["c"])
        return {"state": state, "h": h, "c": c}

    def values(self, obs: Tensor) -> Tensor:
        """What the value head says of observations [S, B, *O], [S, B]."""
        return self.value_support.decode(self.value_head(self.shared(self.represent(obs))))

    def root(self, obs: Tensor) -> RecurrentOutput:
        """Where a search from observations [S, B, *O] begins."""
        latent = self.begin(obs)
        return self._output(latent, latent["h"].new_zeros(obs.shape[:2]))

    def forward(self, latent: dict[str, Tensor], action: Tensor) -> RecurrentOutput:
        """One step of a search, by `action` [S, B]."""
        latent = self.advance(latent, action)
        return self._output(latent, self.prefix_support.decode(self.prefix_head(latent["h"])))

    def _output(self, latent: dict[str, Tensor], prefix: Tensor) -> RecurrentOutput:
        """What the search is told of `latent`, with the value `prefix` [S, B]."""
        shared = self.shared(latent["state"])
        value = self.value_support.decode(self.value_head(shared))
        return RecurrentOutput(latent, prefix, value, self.policy_head(shared), self.memory)


class VectorModel(WorldModel):
    """States are vectors [S, B, `latent`], and the dynamics residual.

    Layer normalisation stands in place of the paper's batch normalisation.
    """

    def __init__(
        self,
        encoder: ObsEncoder,
        sizes: Sizes,
        supports: tuple[Support, Support],
        seeds: Tensor,
        rng: Streams,
    ):
        latent = sizes.latent
        head = sizes.head
        projection = sizes.projection
        super().__init__(sizes, latent, supports, rng)
        value_support, prefix_support = supports
        self.represent = nn.Sequential(
            encoder,
            layer_norm_mlp([encoder.features, latent, latent], seeds, rng),
            SeedLayerNorm(latent, seeds),
        )
        self.step = layer_norm_mlp([latent + sizes.actions, latent, latent], seeds, rng)
        self.after = SeedLayerNorm(latent, seeds)
        self.reduce = nn.Identity()
        self.shared = nn.Identity()
        self.prefix_head = zero_last_layer(
            layer_norm_mlp([sizes.lstm, head, prefix_support.bins], seeds, rng)
        )
        self.value_head = zero_last_layer(
            layer_norm_mlp([latent, latent, head, value_support.bins], seeds, rng)
        )
        self.policy_head = zero_last_layer(
            layer_norm_mlp([latent, latent, head, sizes.actions], seeds, rng)
        )
        self.project = layer_norm_mlp([latent, projection, projection], seeds, rng)
        self.predict = layer_norm_mlp([projection, projection, projection], seeds, rng)

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        return self.after(state + self.step(torch.cat([state, one_hot], -1)))


class Residual(nn.Module):
    """Two 3 × 3 convolutions with batch normalisation beside a shortcut (He et al. 2016).

    x is [S, B, C, H, W]; `stride` 2 halves the image.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, seeds: Tensor, rng: Streams):
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = SeedConv(inputs, outputs, 3, stride, rng, padding=1, bias=False)
        self.path = nn.Sequential(
            SeedConv(inputs, outputs, 3, stride, rng, padding=1, bias=False),
            SeedBatchNorm(outputs, seeds),
            nn.ReLU(),
            SeedConv(outputs, outputs, 3, 1, rng, padding=1, bias=False),
            SeedBatchNorm(outputs, seeds),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.path(x))


class Pool(nn.Module):
    """Means of 3 × 3 pixels around every second one: [S, B, C, H, W] → half of H and W."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])


class Scaled(nn.Module):
    """Images as float32, divided by `most`."""

    def __init__(self, most: float):
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / self.most


class ImageModel(WorldModel):
    """States are images [S, B, `latent`, H, W].

    Observations of 64 pixels a side and more are made smaller by 16; others keep their size.
    """

    def __init__(
        self,
        space: spaces.Box,
        sizes: Sizes,
        supports: tuple[Support, Support],
        seeds: Tensor,
        rng: Streams,
        one_hot: bool,
    ):
        """`one_hot`: an action is a constant plane of 0 or 1 for each of A; else one of a / A."""
        channels, height, width = space.shape
        large = min(height, width) >= 64
        if large:
            height = math.ceil(height / 16)
            width = math.ceil(width / 16)
        area = height * width
        latent = sizes.latent
        head = sizes.head
        projection = sizes.projection
        thin = max(1, latent // 4)
        super().__init__(sizes, thin * area, supports, rng)
        self.one_hot = one_hot
        planes = sizes.actions if one_hot else 1
        value_support, prefix_support = supports
        scaled = Scaled(255.0 if space.dtype == np.uint8 else 1.0)
        tower = large_tower if large else small_tower
        self.represent = nn.Sequential(scaled, *tower(channels, latent, seeds, rng))
        self.enter = nn.Sequential(
            SeedConv(latent + planes, latent, 3, 1, rng, padding=1, bias=False),
            SeedBatchNorm(latent, seeds),
        )
        self.go = Residual(latent, latent, 1, seeds, rng)
        self.reduce = flatten_head(latent, thin, seeds, rng)
        self.shared = Residual(latent, latent, 1, seeds, rng)
        self.prefix_head = nn.Sequential(
            norm_relu(sizes.lstm, seeds),
            zero_last_layer(batch_norm_mlp([sizes.lstm, head, prefix_support.bins], seeds, rng)),
        )
        self.value_head = nn.Sequential(
            flatten_head(latent, thin, seeds, rng),
            zero_last_layer(batch_norm_mlp([thin * area, head, value_support.bins], seeds, rng)),
        )
        self.policy_head = nn.Sequential(
            flatten_head(latent, thin, seeds, rng),
            zero_last_layer(batch_norm_mlp([thin * area, head, sizes.actions], seeds, rng)),
        )
        self.project = nn.Sequential(
            nn.Flatten(2),
            *batch_norm_layers([latent * area, projection, projection], seeds, rng),
            SeedLinear(projection, projection, rng, bias=False),
            SeedBatchNorm(projection, seeds),
        )
        self.predict = batch_norm_mlp([projection, projection // 2, projection], seeds, rng)

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        if not self.one_hot:
            one_hot = one_hot.argmax(-1, keepdim=True).to(state.dtype) / self.actions
        planes = one_hot[..., None, None].expand(*one_hot.shape, *state.shape[-2:])
        return self.go(torch.relu(state + self.enter(torch.cat([state, planes], 2))))


def norm_relu(features: int, seeds: Tensor) -> nn.Sequential:
    """Batch normalisation and ReLU."""
    return nn.Sequential(SeedBatchNorm(features, seeds), nn.ReLU())


def small_tower(channels: int, latent: int, seeds: Tensor, rng: Streams) -> list[nn.Module]:
    """Layers from images to states of the same size."""
    return [
        SeedConv(channels, latent, 3, 1, rng, padding=1, bias=False),
        norm_relu(latent, seeds),
        Residual(latent, latent, 1, seeds, rng),
    ]


def large_tower(channels: int, latent: int, seeds: Tensor, rng: Streams) -> list[nn.Module]:
    """Layers from images to states of a sixteenth of their height and width."""
    half = latent // 2
    return [
        SeedConv(channels, half, 3, 2, rng, padding=1, bias=False),
        norm_relu(half, seeds),
        Residual(half, half, 1, seeds, rng),
        Residual(half, latent, 2, seeds, rng),
        Residual(latent, latent, 1, seeds, rng),
        Pool(),
        Residual(latent, latent, 1, seeds, rng),
        Pool(),
        Residual(latent, latent, 1, seeds, rng),
    ]


def flatten_head(planes: int, thin: int, seeds: Tensor, rng: Streams) -> nn.Sequential:
    """Layers from states [S, B, planes, H, W] to vectors [S, B, thin · H · W]."""
    return nn.Sequential(
        SeedConv(planes, thin, 1, 1, rng, bias=False),
        norm_relu(thin, seeds),
        nn.Flatten(2),
    )


def batch_norm_layers(sizes: Sequence[int], seeds: Tensor, rng: Streams) -> list[nn.Module]:
    """Linear layers, each followed by batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [SeedLinear(inputs, outputs, rng, bias=False), norm_relu(outputs, seeds)]
    return layers


def batch_norm_mlp(sizes: Sequence[int], seeds: Tensor, rng: Streams) -> nn.Sequential:
    """Linear layers of these sizes; batch normalisation and ReLU follow each but the last."""
    return nn.Sequential(
        *batch_norm_layers(sizes[:-1], seeds, rng), SeedLinear(sizes[-2], sizes[-1], rng)
    )
