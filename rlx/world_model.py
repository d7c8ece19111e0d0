"""EfficientZero's networks (Ye et al. 2021, appendix A) for vectors: representation, dynamics, value prefix, prediction, SimSiam heads."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rlx.networks import SeedLinear
from rlx.rng import Streams
from rlx.search import Step


class SeedLayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of x [S, B, F]."""

    def __init__(self, features: int, seeds: Tensor):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.full((len(seeds), 1, features), value, device=seeds.device)) for value in (1.0, 0.0))

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

    def encode(self, x: Tensor) -> Tensor:
        """[S, B, …] → [S, B, …, bins]: weights on the two places beside h(x)."""
        h = (x.sign() * ((x.abs() + 1).sqrt() - 1) + self.EPS * x).clamp(-self.limit, self.limit)
        at = (h + self.limit) * ((self.bins - 1) / (2 * self.limit))
        low = at.floor().clamp(max=self.bins - 2)
        share = (at - low).unsqueeze(-1)
        index = low.long().unsqueeze(-1)
        return torch.zeros(*x.shape, self.bins, device=x.device).scatter_(-1, index, 1 - share).scatter_(-1, index + 1, share)

    def decode(self, logits: Tensor) -> Tensor:
        """[S, B, bins] → [S, B]: the expected place, back from h."""
        y = (logits.softmax(-1) * self.places).sum(-1)
        root = ((1 + 4 * self.EPS * (y.abs() + 1 + self.EPS)).sqrt() - 1) / (2 * self.EPS)
        return y.sign() * (root.square() - 1)


class WorldModel(nn.Module):
    """Latents are {"state": [S, B, H], "h", "c": [S, B, L]}; h and c remember the rewards since the value prefix began."""

    memory = ("h", "c")

    def __init__(self, encoder: nn.Module, features: int, actions: int, latent: int, lstm: int, head: int, projection: int,
                 value: Support, prefix: Support, seeds: Tensor, rng: Streams):  # fmt: skip
        super().__init__()
        self.actions, self.units = actions, lstm
        self.value_support, self.prefix_support = value, prefix
        self.encoder = encoder
        self.represent = nn.Sequential(stack([features, latent, latent], seeds, rng), SeedLayerNorm(latent, seeds))
        self.step = stack([latent + actions, latent, latent], seeds, rng)
        self.after = SeedLayerNorm(latent, seeds)
        self.lstm = SeedLSTM(latent, lstm, rng)
        self.prefix_head = zeroed(stack([lstm, head, prefix.bins], seeds, rng))
        self.value_head = zeroed(stack([latent, latent, head, value.bins], seeds, rng))
        self.policy_head = zeroed(stack([latent, latent, head, actions], seeds, rng))
        self.project = stack([latent, projection, projection], seeds, rng)
        self.predict = stack([projection, projection, projection], seeds, rng)

    def encode(self, obs: Tensor) -> Tensor:
        """Observations [S, B, *O] → states [S, B, H]."""
        return self.represent(self.encoder(obs))

    def begin(self, obs: Tensor) -> dict[str, Tensor]:
        """The latent of a root."""
        state = self.encode(obs)
        return {"state": state} | {name: state.new_zeros(*state.shape[:2], self.units) for name in self.memory}

    def advance(self, latent: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        """The next latent by `action` [S, B]. Half of the gradient flows back through a state (Schrittwieser et al. 2020, appendix G)."""
        one_hot = nn.functional.one_hot(action, self.actions).to(latent["state"].dtype)
        state = self.after(latent["state"] + self.step(torch.cat([latent["state"], one_hot], -1)))
        if torch.is_grad_enabled():
            state = state.detach().lerp(state, 0.5)
        h, c = self.lstm(state, latent["h"], latent["c"])
        return {"state": state, "h": h, "c": c}

    def values(self, obs: Tensor) -> Tensor:
        """What the value head says of observations [S, B, *O], [S, B]."""
        return self.value_support.decode(self.value_head(self.encode(obs)))

    def root(self, obs: Tensor) -> Step:
        """Where a search begins."""
        latent = self.begin(obs)
        return self._step(latent, torch.zeros_like(latent["state"][..., 0]))

    def forward(self, latent: dict[str, Tensor], action: Tensor) -> Step:
        latent = self.advance(latent, action)
        return self._step(latent, self.prefix_support.decode(self.prefix_head(latent["h"])))

    def _step(self, latent: dict[str, Tensor], prefix: Tensor) -> Step:
        value = self.value_support.decode(self.value_head(latent["state"]))
        return Step(latent, prefix, value, self.policy_head(latent["state"]), self.memory)
