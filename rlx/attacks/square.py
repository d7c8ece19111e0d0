"""The square attack: random search by patches (Andriushchenko et al. 2020, arXiv:1912.00049).

It needs no gradient, and so cannot be misled by a masked one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.objective import Objective, Tried
from rlx.threat import Attack, Budget, Draw

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the patch has half the area: the schedule of the paper."""


@dataclass(frozen=True)
class Square(Attack):
    """Corners of the box, of which a smaller and smaller patch is drawn anew at each query.

    A patch that makes the policy decide worse is kept. Of images it is a square, with one sign for
    each channel. Of other observations it is some of the components, which have no neighbours, each
    with a sign of its own.
    """

    loss: str
    """What a patch must raise: `ce`, `margin`, `worst` or, of continuous actions, `distance`, as
    `Objective` explains."""
    target: int | None
    """Number of the choice to steer towards, with loss=ce or margin; null: away from the clean."""
    queries: Count
    """Points whose scores are asked for."""
    share: float
    """Share of the observation that the first patch covers."""

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)
        if not 0 < self.share <= 1:
            raise ConfigError(f"attack.share={self.share}: must be in (0, 1].")

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        tried = Tried(Objective(self.loss, self.target), scores, obs)
        image = is_image(obs.shape[2:])
        numbers = obs[0, 0].numel()
        if image:
            # Stripes, which are as wide as a pixel: one sign for each column of each channel.
            channels, _, width = obs.shape[2:]
            signs = _signs(draw(channels * width)).view(*obs.shape[:3], 1, width).expand_as(obs)
        else:
            signs = _signs(draw(numbers)).view(obs.shape)
        tried.look(budget.project(obs + budget.radius * signs, obs))
        for query in range(1, self.queries):
            share = self.share / 2 ** sum(query / self.queries >= part for part in HALVINGS)
            patch, patch_signs = (_square if image else _some)(obs, share, draw)
            proposed = torch.where(patch, patch_signs, signs)
            better = tried.look(budget.project(obs + budget.radius * proposed, obs))
            signs = torch.where(better.view(*better.shape, *[1] * (obs.dim() - 2)), proposed, signs)
        return tried.obs


def _signs(draws: Tensor) -> Tensor:
    """−1 or 1 by `draws` in [0, 1), of any shape."""
    return torch.where(draws < 0.5, -1.0, 1.0)


def _some(obs: Tensor, share: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Some components of each of `obs` [S, B, *O], bool [S, B, *O], and a sign for each."""
    numbers = obs[0, 0].numel()
    count = max(1, round(share * numbers))
    order = draw(numbers).argsort(-1)
    chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :count], True)
    return chosen.view(obs.shape), _signs(draw(numbers)).view(obs.shape)


def _square(obs: Tensor, share: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """A square of each image of `obs` [S, B, C, H, W], bool [S, B, 1, H, W].

    With it comes a sign for each channel, [S, B, C, 1, 1].
    """
    channels, height, width = obs.shape[2:]
    side = min(height, width, max(1, round(math.sqrt(share * height * width))))
    corner = draw(2)
    top = (corner[..., :1] * (height - side + 1)).floor()
    left = (corner[..., 1:] * (width - side + 1)).floor()
    rows = torch.arange(height, device=obs.device)
    columns = torch.arange(width, device=obs.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    patch = in_rows[..., None, :, None] & in_columns[..., None, None, :]
    return patch, _signs(draw(channels))[..., None, None]
