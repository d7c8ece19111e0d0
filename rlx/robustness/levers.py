"""What an adversary of env=attacked can do to a decision: force a choice, or push an action."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import torch
from torch import Tensor

from rlx.agent import Rules, Scores
from rlx.errors import ConfigError
from rlx.nn.seed_axis import along, rows_within
from rlx.robustness.reachable import reachable
from rlx.threat import Budget, Draw

MOST_ACTIONS = 64
"""Most combinations of choices that an adversary has at a step."""


class Look(NamedTuple):
    """What an adversary sees of one head's decision before it acts, at [S, B] observations."""

    own: Tensor
    """What the head would decide by itself, float32 [S, B, …]."""
    mask: Tensor | None = None
    """Which of its choices can be forced, bool [S, B, K]; None: nobody says."""
    forcing: Tensor | None = None
    """What must be shown for that, [S, B, K, *O]."""


class Lever(ABC):
    """How an adversary's action becomes what the attacked heads of its victims are shown."""

    action_space: gymnasium.Space
    """The adversary's actions."""
    size: int
    """Numbers by which an observation of the adversary tells of all heads' decisions.

    These are `own` of all looks, in the order of the heads, then their masks."""
    rules: Rules | None = None
    """The rules by which an agent leaves out actions that do nothing; None: there are none."""

    @abstractmethod
    def look(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        deciding: Tensor,
        budget: Budget,
        draw: Draw,
    ) -> Look:
        """What is seen of attacked head `number` at `obs` [S, B, *O].

        `deciding`, bool [S, B]: false where an earlier choice still stands.
        """

    @abstractmethod
    def shown(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        action: Tensor,
        forcing: Tensor | None,
        budget: Budget,
        draw: Draw,
    ) -> Tensor:
        """What head `number` is shown in place of `obs`, [S, B, *O] within `budget`.

        `action`: the adversary's, [S, B, …]; `forcing`: that of the look at these observations.
        """


class Forceable:
    """The rules by which an agent leaves out what cannot be forced: the `legal` of `Rules`.

    Without them most actions would be the victim's own choice under other names.
    """

    def __init__(self, choices: Sequence[int]):
        """`choices`: the number of choices of each attacked head."""
        self.first = choices[0]
        """How many choices the first head has, of which an observation says what can be forced."""
        self.others = math.prod(choices[1:])
        """How many combinations the others have; they are not known before the first is forced."""

    def legal(self, obs: Tensor) -> Tensor:
        """Which actions force something at observations [..., O'], bool [..., A]."""
        mask = obs[..., -1 - self.first : -1] > 0.5
        return mask.repeat_interleave(self.others, -1)

    def after(self, obs: Tensor) -> Tensor:
        """ConfigError: this is no game of two players."""
        raise ConfigError("agent: needs a game of two players in turn; env=attacked is none.")

    has_won = after


class Choices(Lever):
    """Discrete decisions: an action numbers the combinations of one choice of each attacked head.

    The first head's choice changes slowest. What cannot be forced is left to the victim, so that
    its own choice means to leave it alone.
    """

    def __init__(self, choices: Sequence[int], steps: int, samples: int):
        """`choices`: the numbers K of each head; `steps` and `samples`: as of `reachable`."""
        combinations = math.prod(choices)
        if combinations > MOST_ACTIONS:
            raise ConfigError(
                f"env.mode: {combinations:,} combinations of choices, "
                f"{' × '.join(map(str, choices))}; at most {MOST_ACTIONS} can be learnt."
            )
        self.choices = tuple(choices)
        self.steps = steps
        self.samples = samples
        self.action_space = gymnasium.spaces.Discrete(combinations)
        self.size = sum(choices) + choices[0]
        self.rules = Forceable(choices)

    def look(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        deciding: Tensor,
        budget: Budget,
        draw: Draw,
    ) -> Look:
        if number > 0:
            # What it can be forced to depends on what the first head is forced to.
            return Look(self._one_hot(scores.best(obs), number).float())
        found = reachable(scores, obs, budget, draw, steps=self.steps, samples=self.samples)
        own = self._one_hot(found.clean, 0)
        mask = torch.where(deciding.unsqueeze(-1), found.mask, own)
        return Look(own.float(), mask, found.obs)

    def shown(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        action: Tensor,
        forcing: Tensor | None,
        budget: Budget,
        draw: Draw,
    ) -> Tensor:
        if number > 0 or forcing is None:
            found = reachable(scores, obs, budget, draw, steps=self.steps, samples=self.samples)
            forcing = found.obs
        pick = torch.unravel_index(action, self.choices)[number]
        return rows_within(forcing, pick.unsqueeze(2)).squeeze(2)

    def _one_hot(self, choice: Tensor, number: int) -> Tensor:
        """A `choice` [S, B] of head `number`, bool [S, B, K]."""
        return torch.nn.functional.one_hot(choice, self.choices[number]).bool()


class Pushes(Lever):
    """A continuous action of D numbers, pushed as far as the box allows in a direction [D].

    The adversary says which way, and a gradient finds the observation (Sun et al. 2022,
    arXiv:2106.05087). Each number of the action counts by its range; only the direction matters,
    not its length. To learn the perturbation itself (Zhang et al. 2021, arXiv:2101.08452) did less:
    ten PPO agents on pendulum kept -837 at eps 0.1 and -1157 at 0.2; these leave -920 and -1314.
    """

    def __init__(self, space: gymnasium.spaces.Box, steps: int, device: torch.device):
        """`space`: the victims' actions; `steps`: gradient steps of a push."""
        self.low = torch.as_tensor(space.low, device=device)
        self.width = torch.as_tensor(space.high - space.low, device=device)
        self.steps = steps
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape)
        self.size = math.prod(space.shape)

    def look(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        deciding: Tensor,
        budget: Budget,
        draw: Draw,
    ) -> Look:
        return Look(2 * (scores.best(obs) - self.low) / self.width - 1)

    def shown(
        self,
        number: int,
        obs: Tensor,
        scores: Scores,
        action: Tensor,
        forcing: Tensor | None,
        budget: Budget,
        draw: Draw,
    ) -> Tensor:
        return furthest(scores, obs, budget, action / self.width, self.steps)


def furthest(scores: Scores, obs: Tensor, budget: Budget, direction: Tensor, steps: int) -> Tensor:
    """The observation [S, B, *O] that moves a continuous action furthest along `direction`.

    `direction`: [S, B, D]. Signed gradient steps from `obs` [S, B, *O], the first to a corner of
    the box, each later one half as far as the one before; the best of all is kept.
    """
    best = obs
    best_value = torch.full(obs.shape[:2], -torch.inf, device=obs.device)
    iterate = obs
    size = 2.0  # from any point of the box, two radii lead to a corner
    with torch.enable_grad():
        for step in range(steps + 1):
            at = iterate.detach().requires_grad_()
            value = (scores(at) * direction).sum(-1)
            better = value.detach() > best_value
            best_value = torch.where(better, value.detach(), best_value)
            best = torch.where(along(better, obs), iterate, best)
            if step < steps:
                (slope,) = torch.autograd.grad(value.sum(), at)
                iterate = budget.project(iterate + size * budget.radius * slope.sign(), obs)
                size /= 2
    return best
