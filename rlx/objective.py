"""What gradient attacks raise: an objective of a policy's scores, and its gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.agent import Scores
from rlx.config import at_least, choice
from rlx.errors import ConfigError
from rlx.nn.seed_axis import along

LOSSES = ("ce", "margin", "worst", "critic", "q_to_zero", "distance")

BLIND = "attack=square, nes, random_search or noise"
"""What can attack policies without gradients."""


@dataclass(frozen=True)
class Objective:
    """What a gradient attack raises, row by row.

    The losses are

    - `ce`: the cross-entropy of softmax(scores) against the clean choice,
    - `margin`: the best other score minus that of the clean choice,
    - `worst`: minus the cross-entropy against the choice with the lowest clean score,
    - `critic`: minus the highest score, which of Q-values is the state's value (Pattanaik et al.
      2018): the policy is shown what it takes for a bad state,
    - `q_to_zero`: the smooth-L1 distance of the scores to zero (the source study's),
    - `distance`: the squared distance of a continuous action from the clean one ("maximal action
      difference", Zhang et al. 2020).

    The cross-entropy is log(1 + exp(r)), with r the log-odds against the choice. It is r that is
    raised: the direction is the same, and the gradient does not vanish in rounding where the choice
    is certain.
    """

    loss: str
    """One of `LOSSES`."""
    target: int | None
    """Steer towards this choice: minus the cross-entropy against it, or its margin over others."""

    def __post_init__(self) -> None:
        choice(self.loss, LOSSES, "attack.loss")
        if self.target is None:
            return
        at_least(self.target, 0, "attack.target")
        if self.loss not in ("ce", "margin"):
            raise ConfigError(
                f"attack.target={self.target}: only attack.loss=ce or margin can be targeted, "
                f"not {self.loss}."
            )

    def __call__(self, scores: Tensor, clean: Tensor) -> Tensor:
        """The objective [S, B] of `scores` [S, B, A] at a perturbed observation.

        `clean` are the scores [S, B, A] at the clean one.
        """
        if self.loss == "q_to_zero":
            zero = torch.zeros_like(scores)
            return nn.functional.smooth_l1_loss(scores, zero, reduction="none").mean(-1)
        if self.loss == "critic":
            return -scores.amax(-1)
        if self.loss == "distance":
            return (scores - clean).square().sum(-1)
        if self.target is not None or self.loss == "worst":
            return -self._log_odds_against(self._reference(clean), scores)
        return self._log_odds_against(self._reference(clean), scores)

    def _reference(self, clean: Tensor) -> Tensor:
        """The choice, int64 [S, B], that the objective leads to or away from."""
        if self.target is None:
            return clean.argmin(-1) if self.loss == "worst" else clean.argmax(-1)
        if self.target >= clean.shape[-1]:
            raise ConfigError(
                f"attack.target={self.target}: this head has choices 0 to {clean.shape[-1] - 1}."
            )
        return torch.full_like(clean[..., 0], self.target, dtype=torch.int64)

    def _log_odds_against(self, reference: Tensor, scores: Tensor) -> Tensor:
        """By how much the other scores exceed that of `reference`, [S, B].

        It is the largest difference for a margin, else the log-odds of softmax(scores).
        """
        index = reference.unsqueeze(-1)
        differences = scores - scores.gather(-1, index)
        # No choice exceeds itself.
        differences = differences.scatter(-1, index, -torch.inf)
        return differences.amax(-1) if self.loss == "margin" else differences.logsumexp(-1)

    def check(self, scores: Scores) -> None:
        """ConfigError where what is raised is not of actions of this kind."""
        if scores.continuous and self.loss != "distance":
            raise ConfigError(
                f"attack.loss={self.loss}: this agent's actions are continuous: "
                "use attack=pgd attack.loss=distance."
            )
        if not scores.continuous and self.loss == "distance":
            raise ConfigError(f"attack.loss={self.loss}: this agent's choices are discrete.")

    def damage(self, scores: Scores, perturbed: Tensor, clean: Tensor) -> Tensor:
        """How bad the decision by the `perturbed` scores [S, B, A] is, [S, B].

        It is what the decision loses by the `clean` scores [S, B, A]; with a target, whether it is
        the target; of a continuous action, how far the action that is really taken has moved.
        """
        if self.loss == "distance":
            return (scores.decide(perturbed) - scores.decide(clean)).square().sum(-1)
        decision = perturbed.argmax(-1, keepdim=True)
        if self.target is not None:
            return (decision.squeeze(-1) == self.target).to(clean.dtype)
        return clean.amax(-1) - clean.gather(-1, decision).squeeze(-1)

    def gradient(
        self, scores: Scores, at: Tensor, clean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient [S, B, *O], objective [S, B], scores [S, B, A]) at the observations `at`.

        `clean` are the scores at the clean observations; None: `at` are the clean ones.
        """
        self.check(scores)
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            values = scores(at)
            if not values.requires_grad:
                raise ConfigError(f"attack: these policies have no gradients; use {BLIND}.")
            objective = self(values, values.detach() if clean is None else clean)
            (gradient,) = torch.autograd.grad(objective.sum(), at)
        return gradient, objective.detach(), values.detach()


class Tried:
    """The worst of the observations that an attack has tried at [S, B], row by row.

    Whose decision is worst by the clean scores; among equals, with the highest objective.
    """

    def __init__(self, objective: Objective, scores: Scores, obs: Tensor):
        """Nothing has been tried at the clean observations `obs` [S, B, *O]."""
        objective.check(scores)
        self.objective = objective
        self.scores = scores
        with torch.no_grad():
            self.clean = scores(obs)
        """The scores [S, B, A] of the clean observations."""
        self.obs = obs
        """The worst observations, [S, B, *O]."""
        self.damage = torch.full_like(self.clean[..., 0], -torch.inf)
        """How bad the decisions there are, [S, B]."""
        self.value = self.damage
        """The objective there, [S, B]."""

    @torch.no_grad()
    def look(self, obs: Tensor) -> Tensor:
        """Ask for the scores at `obs` [S, B, *O]; returns where they are the worst, bool [S, B]."""
        perturbed = self.scores(obs)
        return self.add(obs, perturbed, self.objective(perturbed, self.clean))

    def add(self, obs: Tensor, perturbed: Tensor, value: Tensor) -> Tensor:
        """As `look`, where the scores and the objective are known."""
        damage = self.objective.damage(self.scores, perturbed, self.clean)
        better = (damage > self.damage) | ((damage == self.damage) & (value > self.value))
        self.damage = torch.where(better, damage, self.damage)
        self.value = torch.where(better, value, self.value)
        self.obs = torch.where(along(better, obs), obs, self.obs)
        return better
