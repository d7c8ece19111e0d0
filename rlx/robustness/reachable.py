"""Reachable sets: which choices of a head a box of observations can force, and how."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.nn.seed_axis import along
from rlx.robustness.branching import decide
from rlx.threat import Budget, Draw

BLIND_SAMPLES = 16
"""Random corners that are tried at least where scores have no gradients at all."""


@dataclass(frozen=True)
class Reachable:
    """The choices of one head that an adversary has at observations [S, B, *O].

    K is the number of choices A of a discrete head. Of a continuous action of D numbers it is
    1 + 2 · D: to leave it, and each number as low and as high as it can be pushed.
    """

    mask: Tensor
    """Whether an observation was found that forces the choice, bool [S, B, K].

    The clean choice always is: it needs no perturbation."""
    obs: Tensor
    """The observations that force the choices, [S, B, K, *O]; the clean one where none was found.

    All lie within the box."""
    clean: Tensor
    """The choice that needs no perturbation, int64 [S, B]."""
    flat: Tensor
    """Whether the scores have no gradient at all at the clean observation, bool [S, B]."""
    open: Tensor | None = None
    """Whether a choice was neither found nor proved to be out of reach, bool [S, B, K].

    None: nothing was proved."""

    def shown(self, pick: Tensor) -> Tensor:
        """The observations [S, B, *O] that force `pick`, int64 [S, B]."""
        index = along(pick.unsqueeze(2), self.obs).expand(-1, -1, 1, *self.obs.shape[3:])
        return self.obs.gather(2, index).squeeze(2)


def reachable(
    scores: Scores,
    obs: Tensor,
    budget: Budget,
    draw: Draw,
    *,
    steps: int,
    samples: int,
    max_boxes: int | None = None,
) -> Reachable:
    """The choices that an observation within `budget` of `obs` [S, B, *O] forces.

    For each choice, `steps` signed gradient steps climb the margin of its score over the others:
    the first goes to a corner of the box, each later one half as far as the one before. Besides,
    the decisions at `samples` random corners count, which need no gradient: where the gradient
    is masked, they are what finds the choices. With `max_boxes` it is then proved which of the
    others no observation forces, at so many boxes for each row at most (`branch`); ConfigError
    where the scores have no bounds.
    """
    if scores.continuous:
        return _pushed(scores, obs, budget, steps)
    with torch.enable_grad():
        at = obs.detach().requires_grad_()
        values = scores(at)
        clean = scores.best(obs, values.detach())
        choices = values.shape[-1]
        found = _Found.nothing(obs, clean, choices)
        flat = torch.ones_like(clean, dtype=torch.bool)
        blind = not values.requires_grad
        for rank in range(0 if blind else choices - 1):
            # Choice number `rank` among those that are not the clean one.
            target = rank + (rank >= clean).long()
            (slope,) = torch.autograd.grad(
                _margin(values, target).sum(), at, retain_graph=rank < choices - 2
            )
            flat &= ~slope.flatten(2).any(-1)
            _climb(scores, obs, budget, target, slope, found, steps)
    for _ in range(max(samples, BLIND_SAMPLES) if blind else samples):
        signs = (draw(obs[0, 0].numel()).view(obs.shape) < 0.5).to(obs.dtype) * 2 - 1
        corner = budget.project(obs + budget.radius * signs, obs)
        found.add(corner, scores.best(corner))
    if max_boxes is None:
        return Reachable(found.mask, found.obs, clean, flat)
    decided = decide(scores, obs, budget, found.mask, max_boxes)
    new = decided.found & ~found.mask
    shown = torch.where(along(new, decided.obs), decided.obs, found.obs)
    return Reachable(decided.found, shown, clean, flat, decided.open)


def certified_reachable(
    scores: Scores, obs: Tensor, budget: Budget, where: Tensor, max_boxes: int
) -> Reachable:
    """The choices that an observation within `budget` of `obs` [S, B, *O] forces, by bounds alone.

    All others but the `open` ones are proved to be out of reach, for float32 in any order of
    summation. Only the rows `where`, bool [S, B], are looked at, of the others just the clean
    choice is possible. Of observations that are numbers, [S, B], every one in the box is tried.
    """
    if obs.dim() == 2:
        return _reachable_numbers(scores, obs, budget, where)
    obs = obs.float()
    values = scores(obs)
    clean = scores.best(obs, values)
    stays = torch.nn.functional.one_hot(clean, values.shape[-1]).bool()
    # Also of the clean choice: where it is within rounding of another one, a clearer observation.
    decided = decide(scores, obs, budget, torch.zeros_like(stays), max_boxes, where)
    shown = torch.where(along(decided.found, decided.obs), decided.obs, obs.unsqueeze(2))
    flat = torch.zeros_like(where)
    return Reachable(decided.found | stays, shown, clean, flat, decided.open & ~stays)


def _reachable_numbers(scores: Scores, obs: Tensor, budget: Budget, where: Tensor) -> Reachable:
    """What is reachable of observations int64 [S, B], of the rows `where`: all that is shown."""
    values = scores(obs)
    clean = scores.best(obs, values)
    found = _Found.nothing(obs, clean, values.shape[-1])
    low, high = budget.ends(obs)
    furthest = int(budget.radius.max())
    for step in range(-furthest, furthest + 1):
        moved = obs + step
        inside = where & (moved >= low) & (moved <= high)
        moved = torch.where(inside, moved, obs)
        found.add(moved, scores.best(moved))
    nothing = torch.zeros_like(found.mask)
    return Reachable(found.mask, found.obs, clean, torch.zeros_like(where), nothing)


@dataclass
class _Found:
    """The mask and observations of a `Reachable` that grows."""

    mask: Tensor
    obs: Tensor

    @classmethod
    def nothing(cls, obs: Tensor, clean: Tensor, choices: int) -> "_Found":
        """Only the `clean` choice [S, B], at the clean observations `obs` [S, B, *O]."""
        mask = torch.nn.functional.one_hot(clean, choices).bool()
        return cls(mask, obs.unsqueeze(2).expand(-1, -1, choices, *obs.shape[2:]).clone())

    def add(self, moved: Tensor, decision: Tensor) -> None:
        """Note that the observations `moved` [S, B, *O] lead to the `decision` [S, B]."""
        new = torch.nn.functional.one_hot(decision, self.mask.shape[-1]).bool() & ~self.mask
        self.obs = torch.where(along(new, self.obs), moved.unsqueeze(2), self.obs)
        self.mask = self.mask | new


def _margin(values: Tensor, target: Tensor) -> Tensor:
    """By how much the score of `target` [S, B] exceeds the best other one of `values` [S, B, A]."""
    index = target.unsqueeze(-1)
    others = values.scatter(-1, index, -torch.inf)
    return values.gather(-1, index).squeeze(-1) - others.amax(-1)


def _climb(
    scores: Scores,
    obs: Tensor,
    budget: Budget,
    target: Tensor,
    slope: Tensor,
    found: _Found,
    steps: int,
) -> None:
    """Climb the margin of `target` [S, B] from `obs`, where its gradient is `slope` [S, B, *O].

    Every decision on the way is noted in `found`, also where it is not the target's.
    """
    iterate = obs
    size = 2.0  # from any point of the box, two radii lead to a corner
    for step in range(1, steps + 1):
        iterate = budget.project(iterate + size * budget.radius * slope.sign(), obs)
        size /= 2
        if step == steps:
            with torch.no_grad():
                found.add(iterate, scores.best(iterate))
            return
        at = iterate.detach().requires_grad_()
        values = scores(at)
        found.add(iterate, scores.best(iterate, values.detach()))
        (slope,) = torch.autograd.grad(_margin(values, target).sum(), at)


def _pushed(scores: Scores, obs: Tensor, budget: Budget, steps: int) -> Reachable:
    """The reachable set of a continuous action; see `Reachable`."""
    with torch.enable_grad():
        at = obs.detach().requires_grad_()
        action = scores(at)
        numbers = action.shape[-1]
        shown = [obs]
        flat = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
        # Without gradients there is nothing to push along.
        for number in range(numbers if action.requires_grad else 0):
            (slope,) = torch.autograd.grad(
                action[..., number].sum(), at, retain_graph=number < numbers - 1
            )
            flat &= ~slope.flatten(2).any(-1)
            here = action[..., number].detach()
            for sign in (-1, 1):
                shown.append(_extreme(scores, obs, budget, number, here, slope, sign, steps))
    shown += [obs] * (1 + 2 * numbers - len(shown))
    forced = torch.stack(shown, 2)
    # At radius 0, or where no step leads further, there is nothing but to leave the action.
    mask = (forced != obs.unsqueeze(2)).flatten(3).any(-1)
    mask[:, :, 0] = True
    clean = torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
    return Reachable(mask, forced, clean, flat)


def _extreme(
    scores: Scores,
    obs: Tensor,
    budget: Budget,
    number: int,
    here: Tensor,
    slope: Tensor,
    sign: int,
    steps: int,
) -> Tensor:
    """The observation [S, B, *O] that moves a `number` of the action furthest in direction `sign`.

    `here` [S, B]: that number at `obs`, and `slope` [S, B, *O] its gradient there.
    """
    best = obs
    best_value = sign * here
    iterate = obs
    size = 2.0
    for step in range(1, steps + 1):
        iterate = budget.project(iterate + size * sign * budget.radius * slope.sign(), obs)
        size /= 2
        at = iterate.detach().requires_grad_()
        value = scores(at)[..., number]
        if step < steps:
            (slope,) = torch.autograd.grad(value.sum(), at)
        better = sign * value.detach() > best_value
        best_value = torch.where(better, sign * value.detach(), best_value)
        best = torch.where(along(better, best), iterate, best)
    return best
