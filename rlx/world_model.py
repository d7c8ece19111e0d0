"""EfficientZero's networks (Ye et al. 2021, appendix A): representation, dynamics, value prefix, prediction, SimSiam heads."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.nn.encoders import ObsEncoder
from rlx.nn.networks import SeedBatchNorm, SeedConv, SeedLinear
from rlx.nn.rng import Streams
from rlx.search import Step


class SeedLayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of x [S, B, F]."""

    def __init__(self, features: int, seeds: Tensor):
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.full((len(seeds), 1, features), value, device=seeds.device))
            for value in (1.0, 0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class SeedLSTM(nn.Module):
    """S long short-term memory cells (Hochreiter & Schmidhuber 1997, torch's form): x [S, B, inputs], (h, c) [S, B, units] each."""

    def __init__(self, inputs: int, units: int, rng: Streams):
        super().__init__()
        self.gates = SeedLinear(inputs + units, 4 * units, rng)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        keep_in, forget, new, out = self.gates(torch.cat([x, h], -1)).chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(keep_in) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(c), c


def stack(sizes: Sequence[int], seeds: Tensor, rng: Streams) -> nn.Sequential:
    """Linear layers, each but the last followed by layer normalisation and ReLU."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        parts += [SeedLinear(inputs, outputs, rng), SeedLayerNorm(outputs, seeds), nn.ReLU()]
    return nn.Sequential(*parts, SeedLinear(sizes[-2], sizes[-1], rng))


def zeroed(head: nn.Sequential) -> nn.Sequential:
    """Its last layer begins at 0: every outcome is equally likely."""
    with torch.no_grad():
        for parameter in head[-1].parameters():
            parameter.zero_()
    return head


class Support(nn.Module):
    """Real numbers as distributions over `bins` places, evenly spread between ±`limit` after h(x) = sign(x)(√(|x| + 1) − 1) + 0.001 x
    (Pohlen et al. 2018)."""

    places: Tensor
    EPS = 1e-3

    def __init__(self, limit: float, bins: int, seeds: Tensor):
        super().__init__()
        self.limit, self.bins = limit, bins
        places = torch.linspace(-limit, limit, bins, device=seeds.device)
        self.register_buffer("places", places.expand(len(seeds), 1, -1).contiguous())

    def scaled(self, x: Tensor) -> Tensor:
        """h(x)."""
        return x.sign() * ((x.abs() + 1).sqrt() - 1) + self.EPS * x

    def unscaled(self, y: Tensor) -> Tensor:
        """x of y = h(x)."""
        root = ((1 + 4 * self.EPS * (y.abs() + 1 + self.EPS)).sqrt() - 1) / (2 * self.EPS)
        return y.sign() * (root.square() - 1)

    def end(self) -> float:
        """The largest number that it can tell from larger ones."""
        return float(self.unscaled(torch.tensor(self.limit, dtype=torch.float64)))

    def encode(self, x: Tensor) -> Tensor:
        """[S, B, …] → [S, B, …, bins]: weights on the two places beside h(x)."""
        h = self.scaled(x).clamp(-self.limit, self.limit)
        at = (h + self.limit) * ((self.bins - 1) / (2 * self.limit))
        low = at.floor().clamp(max=self.bins - 2)
        share = (at - low).unsqueeze(-1)
        index = low.long().unsqueeze(-1)
        return (
            torch.zeros(*x.shape, self.bins, device=x.device)
            .scatter_(-1, index, 1 - share)
            .scatter_(-1, index + 1, share)
        )

    def decode(self, logits: Tensor) -> Tensor:
        """[S, B, bins] → [S, B]: the expected place, back from h."""
        return self.unscaled((logits.softmax(-1) * self.places).sum(-1))


class WorldModel(nn.Module):
    """Latents are {"state": [S, B, *H], "h", "c": [S, B, L]}; h and c remember the rewards since the value prefix began."""

    memory = ("h", "c")

    represent: Callable[[Tensor], Tensor]
    """Observations [S, B, *O] → states."""
    reduce: Callable[[Tensor], Tensor]
    """States → vectors [S, B, F] for the LSTM."""
    shared: Callable[[Tensor], Tensor]
    """States → what both `value_head` and `policy_head` see; they give logits [S, B, bins] and [S, B, A]."""
    value_head: Callable[[Tensor], Tensor]
    policy_head: Callable[[Tensor], Tensor]
    prefix_head: Callable[[Tensor], Tensor]
    """h → logits [S, B, bins]."""
    project: Callable[[Tensor], Tensor]
    """States → vectors, which `predict` maps to vectors of the same length: SimSiam's heads (Chen & He 2021)."""
    predict: Callable[[Tensor], Tensor]

    def __init__(
        self,
        actions: int,
        reduced: int,
        lstm: int,
        supports: "tuple[Support, Support]",
        rng: Streams,
    ):
        super().__init__()
        self.actions, self.units = actions, lstm
        self.value_support, self.prefix_support = supports
        self.lstm = SeedLSTM(reduced, lstm, rng)

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        """The state behind `state` by an action [S, B, A]."""
        raise NotImplementedError

    def begin(self, obs: Tensor) -> dict[str, Tensor]:
        """The latent of observations [S, B, *O]."""
        state = self.represent(obs)
        return {"state": state} | {
            name: state.new_zeros(*state.shape[:2], self.units) for name in self.memory
        }

    def advance(self, latent: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        """The next latent by `action` [S, B]. Half of the gradient flows back through a state (Schrittwieser et al. 2020, appendix G)."""
        state = self.dynamics(
            latent["state"], nn.functional.one_hot(action, self.actions).to(latent["state"].dtype)
        )
        if torch.is_grad_enabled():
            state = state.detach().lerp(state, 0.5)
        h, c = self.lstm(self.reduce(state), latent["h"], latent["c"])
        return {"state": state, "h": h, "c": c}

    def values(self, obs: Tensor) -> Tensor:
        """What the value head says of observations [S, B, *O], [S, B]."""
        return self.value_support.decode(self.value_head(self.shared(self.represent(obs))))

    def root(self, obs: Tensor) -> Step:
        """Where a search begins."""
        latent = self.begin(obs)
        return self._step(latent, latent["h"].new_zeros(latent["h"].shape[:2]))

    def forward(self, latent: dict[str, Tensor], action: Tensor) -> Step:
        latent = self.advance(latent, action)
        return self._step(latent, self.prefix_support.decode(self.prefix_head(latent["h"])))

    def _step(self, latent: dict[str, Tensor], prefix: Tensor) -> Step:
        seen = self.shared(latent["state"])
        return Step(
            latent,
            prefix,
            self.value_support.decode(self.value_head(seen)),
            self.policy_head(seen),
            self.memory,
        )


class VectorModel(WorldModel):
    """States are vectors: layer normalisation in place of the paper's batch normalisation, residual dynamics."""

    def __init__(self, encoder: ObsEncoder, actions: int, latent: int, lstm: int, head: int, projection: int,
                 supports: "tuple[Support, Support]", seeds: Tensor, rng: Streams):  # fmt: skip
        super().__init__(actions, latent, lstm, supports, rng)
        value, prefix = supports
        self.represent = nn.Sequential(
            encoder,
            stack([encoder.features, latent, latent], seeds, rng),
            SeedLayerNorm(latent, seeds),
        )
        self.step = stack([latent + actions, latent, latent], seeds, rng)
        self.after = SeedLayerNorm(latent, seeds)
        self.reduce = self.shared = nn.Identity()
        self.prefix_head = zeroed(stack([lstm, head, prefix.bins], seeds, rng))
        self.value_head = zeroed(stack([latent, latent, head, value.bins], seeds, rng))
        self.policy_head = zeroed(stack([latent, latent, head, actions], seeds, rng))
        self.project = stack([latent, projection, projection], seeds, rng)
        self.predict = stack([projection, projection, projection], seeds, rng)

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        return self.after(state + self.step(torch.cat([state, one_hot], -1)))


class Residual(nn.Module):
    """Two 3 × 3 convolutions with batch normalisation beside a shortcut [S, B, C, H, W] (He et al. 2016); `stride` 2 halves the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int, seeds: Tensor, rng: Streams):
        super().__init__()
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else SeedConv(inputs, outputs, 3, stride, rng, padding=1, bias=False)
        )
        self.path = nn.Sequential(
            SeedConv(inputs, outputs, 3, stride, rng, padding=1, bias=False), SeedBatchNorm(outputs, seeds), nn.ReLU(),
            SeedConv(outputs, outputs, 3, 1, rng, padding=1, bias=False), SeedBatchNorm(outputs, seeds),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.path(x))


class Pool(nn.Module):
    """Means of 3 × 3 pixels at every second place."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])


class Scaled(nn.Module):
    """Pictures as float32, divided by `most`."""

    def __init__(self, most: float):
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / self.most


class ImageModel(WorldModel):
    """States are pictures [S, B, `latent`, H, W], in which an action is A constant planes, 0 or 1 each, or (without `one_hot`) one plane
    of a / A. Pictures of 64 pixels and more are made smaller by 16; others keep their size."""

    def __init__(self, space: spaces.Box, actions: int, latent: int, lstm: int, head: int, projection: int,
                 supports: "tuple[Support, Support]", seeds: Tensor, rng: Streams, one_hot: bool):  # fmt: skip
        channels, *size = space.shape
        large = min(size) >= 64
        height, width = (-(-pixels // 16) if large else pixels for pixels in size)
        thin = max(1, latent // 4)
        super().__init__(actions, thin * height * width, lstm, supports, rng)
        value, prefix = supports
        self.one_hot, planes = one_hot, actions if one_hot else 1

        def norm(features: int) -> nn.Sequential:
            return nn.Sequential(SeedBatchNorm(features, seeds), nn.ReLU())

        def flat() -> nn.Sequential:
            return nn.Sequential(
                SeedConv(latent, thin, 1, 1, rng, bias=False), norm(thin), nn.Flatten(2)
            )

        def dense(*units: int) -> list[nn.Module]:
            return [
                layer
                for a, b in pairwise(units)
                for layer in (SeedLinear(a, b, rng, bias=False), norm(b))
            ]

        def head_of(features: int, outputs: int) -> nn.Sequential:
            return zeroed(nn.Sequential(*dense(features, head), SeedLinear(head, outputs, rng)))

        def residual(inputs: int = latent, stride: int = 1) -> Residual:
            return Residual(inputs, latent, stride, seeds, rng)

        begin, half = Scaled(255.0 if space.dtype == np.uint8 else 1.0), latent // 2
        tower: list[nn.Module]
        if large:
            tower = [
                SeedConv(channels, half, 3, 2, rng, padding=1, bias=False),
                norm(half),
                Residual(half, half, 1, seeds, rng),
                residual(half, 2),
            ]
            tower += [residual(), Pool(), residual(), Pool(), residual()]
        else:
            tower = [
                SeedConv(channels, latent, 3, 1, rng, padding=1, bias=False),
                norm(latent),
                residual(),
            ]
        self.represent = nn.Sequential(begin, *tower)
        self.enter = nn.Sequential(
            SeedConv(latent + planes, latent, 3, 1, rng, padding=1, bias=False),
            SeedBatchNorm(latent, seeds),
        )
        self.go = residual()
        self.reduce = flat()
        self.shared = residual()
        self.prefix_head = nn.Sequential(norm(lstm), head_of(lstm, prefix.bins))
        self.value_head, self.policy_head = (
            nn.Sequential(flat(), head_of(thin * height * width, outputs))
            for outputs in (value.bins, actions)
        )
        features = latent * height * width
        self.project = nn.Sequential(
            nn.Flatten(2),
            *dense(features, projection, projection),
            SeedLinear(projection, projection, rng, bias=False),
            SeedBatchNorm(projection, seeds),
        )
        self.predict = nn.Sequential(
            *dense(projection, projection // 2), SeedLinear(projection // 2, projection, rng)
        )

    def dynamics(self, state: Tensor, one_hot: Tensor) -> Tensor:
        if not self.one_hot:
            one_hot = one_hot.argmax(-1, keepdim=True).to(state.dtype) / self.actions
        planes = one_hot[..., None, None].expand(*one_hot.shape, *state.shape[-2:])
        return self.go(torch.relu(state + self.enter(torch.cat([state, planes], 2))))
