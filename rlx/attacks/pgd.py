"""Projected gradient descent on observations (Madry et al. 2018; on policies Zhang et al. 2020, arXiv:2003.08938)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.attack import Attack, Budget, Draw, Objective
from rlx.config import Count


@dataclass(frozen=True)
class PGD(Attack):
    """`steps` sign steps of `step_size` radii from each of `restarts` starts, the first of them the clean observation
    unless `random_start`, the others random in the box. The iterate kept is the one whose decision is worst by the clean
    scores, then the one with the highest objective."""

    loss: str
    target: int | None
    steps: Count
    step_size: float
    restarts: Count
    random_start: bool

    def __post_init__(self) -> None:
        Objective(self.loss, self.target)

    def perturb(self, scores: Scores, obs: Tensor, budget: Budget, draw: Draw) -> Tensor:
        objective = Objective(self.loss, self.target)
        with torch.no_grad():
            clean = scores(obs)
        best = obs
        best_damage = best_value = torch.full_like(clean[..., 0], -torch.inf)
        for restart in range(self.restarts):
            at = obs
            if (
                self.random_start or restart or self.loss == "distance"
            ):  # which has no gradient at the clean observation
                noise = draw(obs[0, 0].numel()).view(obs.shape) * 2 - 1
                at = budget.project(obs + budget.radius * noise, obs)
            slope, _, _ = objective.gradient(scores, at, clean)
            for step in range(1, self.steps + 1):
                at = budget.project(at + self.step_size * budget.radius * slope.sign(), obs)
                if step < self.steps:
                    slope, value, here = objective.gradient(scores, at, clean)
                else:  # the last iterate is only looked at
                    with torch.no_grad():
                        here = scores(at)
                        value = objective(here, clean)
                damage = self._damage(scores, here, clean)
                better = (damage > best_damage) | ((damage == best_damage) & (value > best_value))
                best_damage = torch.where(better, damage, best_damage)
                best_value = torch.where(better, value, best_value)
                best = torch.where(better.view(*better.shape, *[1] * (obs.dim() - 2)), at, best)
        return best

    def _damage(self, scores: Scores, here: Tensor, clean: Tensor) -> Tensor:
        """How bad the decision at `here` is: clean score lost, whether it is the target, how far an action is that is really taken."""
        if self.loss == "distance":
            return (scores.decide(here) - scores.decide(clean)).square().sum(-1)
        decision = here.argmax(-1, keepdim=True)
        if self.target is not None:
            return (decision.squeeze(-1) == self.target).to(clean.dtype)
        return clean.amax(-1) - clean.gather(-1, decision).squeeze(-1)
