"""What every defence is: what an agent's learning steps do about observations that may be moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Choose, Scores, Spec
from rlx.config import Count, NonNegative, Share
from rlx.errors import ConfigError, RunError
from rlx.names import describe_error
from rlx.nn.encoders import is_image
from rlx.nn.rng import Streams
from rlx.objective import Objective
from rlx.threat import Boxes, Budget


@dataclass(frozen=True)
class Surrogate:
    """The loss of the policy gradient, as a function of the log-probabilities of what was taken."""

    loss: Callable[[Tensor], Tensor]
    """Log-probabilities [S, B] → the loss of each decision, [S, B]."""
    is_good: Tensor
    """bool [S, B]: whether the loss falls where the log-probability rises; else it rises."""


@dataclass(frozen=True)
class Decisions:
    """Decisions of one head that a learning step is about, and what defends them."""

    defence: "Defence"
    """What defends them."""
    scores: Scores
    """The observations [S, B, *O] → their scores [S, B, A], by the weights that learn."""
    interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(low, high) [S, B, *O] → the lowest and highest scores of what lies between, [S, B, A]."""
    obs: Tensor
    """[S, B, *O]: the observations that the decisions were taken on."""
    taken: Tensor | None
    """int64 [S, B] or float [S, B, D]: what was decided; None: nothing yet."""
    budget: Budget
    """The boxes that `obs` may be moved in."""
    rng: Streams
    """The random numbers of each seed."""
    are_values: bool
    """Whether scores are values, as of Q-learners; else preferences, as logits."""
    std: Tensor | None = None
    """[S, 1, D]: the deviation of continuous actions, whose scores are means; None: discrete."""
    surrogate: "Surrogate | None" = None
    """The loss of a policy that learns from `taken`; None: of values, and while it acts."""

    def worst(self, objective: Callable[[Tensor], Tensor], gradients: int) -> Tensor:
        """The observations [S, B, *O] in the boxes to which an `objective` climbs; see `ascend`."""
        start = self.rng.uniform(*self.obs.shape[1:]) * 2 - 1
        return ascend(objective, self.obs, self.budget, start, gradients)

    def learnt(self) -> Tensor:
        """The observations [S, B, *O] to learn from."""
        return self._of_defence("learnt", self.obs.shape)

    def penalty(self) -> Tensor:
        """What is added to the loss of each seed, [S]."""
        return self._of_defence("penalty", self.obs.shape[:2]).mean(1)

    def _of_defence(self, method: str, shape: torch.Size) -> Tensor:
        """What a `method` of the defence returns; RunError unless that is a tensor of the shape."""
        subject = f"agent.defence: {type(self.defence).__name__}.{method}"
        try:
            value = getattr(self.defence, method)(self)
        except (ConfigError, RunError):
            raise
        except Exception as error:  # whatever the user's class raises
            raise RunError(f"{subject} raised {describe_error(error)}") from error
        if not isinstance(value, Tensor) or value.shape != shape:
            kind = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RunError(f"{subject} returned {kind}; expected a tensor {list(shape)}")
        return value


@dataclass(frozen=True)
class Defence:
    """What conf/defence names: one file, one frozen dataclass of its settings.

    A subclass changes what is learnt from (`learnt`), or adds to the loss (`penalty`).
    """

    of_values: ClassVar[bool] = True
    """Whether it is for values, as Q-learners learn them."""
    of_policies: ClassVar[bool] = True
    """Whether it is for policies, as PPO learns them."""

    eps: NonNegative
    """Radius of the box in the end, in units of `scale`."""
    scale: str | list[NonNegative] | None
    """What a radius of 1 means, as in `rlx attack`: `bounds`, `reference`, one number for each
    component; null: the env's. A run keeps the numbers."""
    ramp: Share
    """Share of the training during which the radius rises from 0, linearly."""
    steps: Count
    """Environment steps per seed of the training."""

    def radius(self, steps: Tensor) -> Tensor:
        """The radius [S] after environment `steps` [S], in units of `scale`."""
        if self.ramp == 0:
            return torch.full_like(steps, self.eps, dtype=torch.float32)
        return self.eps * (steps / (self.ramp * self.steps)).clamp(max=1).float()

    def learnt(self, decisions: Decisions) -> Tensor:
        """The observations [S, B, *O] to learn from: those that were seen."""
        return decisions.obs

    def penalty(self, decisions: Decisions) -> Tensor:
        """What is added to the loss of each of the decisions, [S, B]: nothing."""
        return torch.zeros_like(decisions.obs[:, :, 0])


class Guard(nn.Module):
    """A defence of one head: where its observations may be moved, and its random numbers."""

    def __init__(
        self,
        defence: Defence,
        spec: Spec,
        seeds: Tensor,
        name: str,
        *,
        are_values: bool,
        lead: int = 0,
    ):
        """`name`: of the head; `lead`: numbers before each observation that stay as they are.

        `are_values`: as of `Decisions`. ConfigError where the defence is none of such scores, the
        observations are not flat numbers, or the scale is not theirs.
        """
        super().__init__()
        if not (defence.of_values if are_values else defence.of_policies):
            kind = "policies, such as agent=ppo" if are_values else "Q-learners, such as agent=dqn"
            raise ConfigError(f"agent.defence: {type(defence).__name__} is for {kind}.")
        self.defence = defence
        self.are_values = are_values
        self.boxes = boxes_of(defence, spec, seeds.device, lead)
        self.rng = Streams(seeds, f"defence/{name}")

    def decisions(
        self,
        scores: Scores,
        interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        obs: Tensor,
        taken: Tensor | None,
        steps: Tensor,
        *,
        std: Tensor | None = None,
        surrogate: Surrogate | None = None,
    ) -> Decisions:
        """The decisions on `obs` [S, B, *O] after environment `steps` [S]; see `Decisions`."""
        return Decisions(
            self.defence,
            scores,
            interval,
            obs,
            taken,
            self.budget(obs, steps),
            self.rng,
            self.are_values,
            std,
            surrogate,
        )

    def budget(self, obs: Tensor, steps: Tensor) -> Budget:
        """The boxes that `obs` [S, B, *O] may be moved in after environment `steps` [S]."""
        radius = self.defence.radius(steps).unsqueeze(1).expand(obs.shape[:2])
        return self.boxes.around(obs, radius)


def boxes_of(defence: Defence, spec: Spec, device: torch.device, lead: int = 0) -> Boxes:
    """Where a defence says that observations may be moved; `lead` and ConfigError as of `Guard`."""
    space = spec.observation_space
    flat = isinstance(space, gymnasium.spaces.Box) and not is_image(space.shape)
    if not flat or spec.rules is not None:
        raise ConfigError(
            "agent.defence: needs observations that are a vector of numbers, of no board game; "
            f"this env has {space}."
        )
    assert isinstance(space, gymnasium.spaces.Box)
    assert isinstance(defence.scale, Sequence), "a training makes numbers of it"

    low = np.concatenate([np.zeros(lead), space.low.ravel()])
    high = np.concatenate([np.full(lead, np.inf), space.high.ravel()])
    scale = [0.0] * lead + list(defence.scale)
    numbers = [torch.as_tensor(x, dtype=torch.float32, device=device) for x in (scale, low, high)]
    return Boxes(numbers[0], numbers[1], numbers[2])


def ascend(
    objective: Callable[[Tensor], Tensor],
    obs: Tensor,
    budget: Budget,
    start: float | Tensor,
    gradients: int,
) -> Tensor:
    """The observations [S, B, *O] within `budget` of `obs` to which an `objective` [S, B] climbs.

    It begins `start` radii from `obs`, and makes so many steps along the sign of the gradient
    (Madry et al. 2018), which together are two radii long.
    """
    moved = budget.project(obs + budget.radius * start, obs)
    for _ in range(gradients):
        with torch.enable_grad():
            at = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(at).sum(), at)
        step = budget.radius * gradient.sign() * (2 / gradients)
        moved = budget.project(moved + step, obs)
    return moved.detach()


class Trial:
    """Attacks as strong as the defence of an agent shall resist, to choose its weights under.

    One episode is steered towards the first choice of each head all along, the next towards the
    second, and so on; then one away from whatever the clean choice is. To change every decision is
    a weak attack: what one change does, the next one undoes.
    """

    GRADIENTS = 5
    """Steps of the search for the worst observation."""
    START = 0.5
    """Where it begins, in radii; not at random: beside any others an episode is the same."""

    def __init__(self, defence: Defence, spec: Spec, episodes: int, device: torch.device):
        """`episodes`: how many each seed plays; ConfigError as of `Guard`."""
        self.eps = defence.eps
        self.boxes = boxes_of(defence, spec, device)
        self.episodes = episodes

    def __call__(self, ids: Tensor) -> Choose:
        """How the copies `ids`, int64 [S', B'], choose; see `rollout.MakeChoose`."""
        number = ids % self.episodes
        away = Objective("margin", None)
        apart = Objective("distance", None)

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            clean = scores(obs)
            choices = clean.shape[-1]
            target = number % (choices + 1)
            wanted = nn.functional.one_hot(target % choices, choices).to(clean.dtype)

            def objective(moved: Tensor) -> Tensor:
                values = scores(moved)
                if scores.continuous:
                    return apart(values, clean)
                towards = -away(values, wanted)
                return torch.where(target < choices, towards, away(values, clean))

            radius = torch.full(obs.shape[:2], self.eps, device=obs.device)
            moved = ascend(
                objective,
                obs,
                self.boxes.around(obs, radius),
                self.START,
                self.GRADIENTS,
            )
            return scores.best(moved)

        return choose
