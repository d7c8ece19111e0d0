"""What a state is worth to a policy under attack: a regression on episodes that were played."""

import torch
from torch import Tensor, nn

from rlx.nn.networks import MLP
from rlx.nn.optim import Adam, descend
from rlx.nn.rng import Streams

HIDDEN = (64, 64)
LEARNING_RATE = 1e-3
BATCH_SIZE = 512
LEAST_SPREAD = 1e-6
"""Standard deviation below which a number counts as constant, and is only centred."""


class ReturnToGo(nn.Module):
    """S networks, one for each policy: (obs [S, K, *O], radius [S, K], time) → return [S, K].

    Time is the share of the time limit that has passed: what is left to lose depends on it.
    """

    def __init__(self, seeds: Tensor, features: int, largest_radius: float):
        """`seeds`: int64 [S]; `features`: the size of one observation."""
        super().__init__()
        self.net = MLP(features + 2, HIDDEN, 1, Streams(seeds, "return to go"))
        self.optimizer = Adam(list(self.net.parameters()), LEARNING_RATE)
        self.rng = Streams(seeds, "return to go, minibatch")
        self.largest_radius = largest_radius
        self.moments: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        """Mean and standard deviation of the inputs [features], and of the returns; None before
        the first fit."""

    @torch.no_grad()
    def forward(self, obs: Tensor, radius: Tensor, time: float) -> Tensor:
        """The expected rest of the returns, float64 [S, K]."""
        assert self.moments is not None
        _, _, mean, std = self.moments
        inputs = self._inputs(obs, radius, torch.full_like(radius, time))
        return self.net(inputs).squeeze(-1).double() * std + mean

    def fit(self, rows: list[tuple[Tensor, ...]], updates: int) -> None:
        """Learn from `rows`: tuples (obs, radius, time, rest of the return, whether it counts).

        Each tensor is [S, K], the observations [S, K, *O], with any K.
        """
        obs, radius, time, rest, counts = (torch.cat(parts, 1) for parts in zip(*rows, strict=True))
        if self.moments is None:
            self.moments = (*_moments(obs.flatten(2), counts), *_moments(rest, counts))
        _, _, mean, std = self.moments
        inputs = self._inputs(obs, radius, time)
        targets = ((rest - mean) / std).float()
        number = counts.sum(1, keepdim=True)
        # The numbers of the rows that count come first in each seed.
        order = counts.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        parameters = list(self.net.parameters())
        for _ in range(updates):
            draws = self.rng.uniform(BATCH_SIZE, dtype=torch.float64)
            picks = order.gather(1, (draws * number).long())
            index = picks.unsqueeze(-1).expand(-1, -1, inputs.shape[-1])
            with torch.enable_grad():
                predicted = self.net(inputs.gather(1, index)).squeeze(-1)
                loss = nn.functional.smooth_l1_loss(
                    predicted, targets.gather(1, picks), reduction="none"
                ).mean(1)
                descend(loss, parameters, self.optimizer)

    def _inputs(self, obs: Tensor, radius: Tensor, time: Tensor) -> Tensor:
        """What the networks are given, [S, K, features + 2]."""
        assert self.moments is not None
        mean, std, _, _ = self.moments
        scaled = (obs.flatten(2) - mean) / std
        share = radius / self.largest_radius
        return torch.cat([scaled, share.unsqueeze(-1), time.unsqueeze(-1)], -1).float()


def _moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x [S, K, …] over the rows that count (bool [S, K]), […]."""
    values = x[counts].double()
    std = values.std(0, unbiased=False)
    return values.mean(0), torch.where(std > LEAST_SPREAD, std, 1.0)
