"""What a box can do where a policy is by itself: the states of clean episodes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Scores
from rlx.evaluation import SELECTION, evaluate
from rlx.robustness.attacker import flipped
from rlx.robustness.reachable import Reachable, reachable
from rlx.robustness.sweep import Game

EPISODES = 5
"""Clean episodes of each seed that are looked at."""
STEPS = 2
"""Gradient steps towards each choice."""
SAMPLES = 4
"""Random corners of the box that are tried."""


@dataclass(frozen=True)
class CleanStates:
    """What was found at the decisions of clean episodes."""

    movable: Mapping[str, np.ndarray]
    """The share of a head's decisions that the box can change, by head, [E]."""
    flat: Mapping[str, float]
    """The share of a head's decisions at which the scores have no gradient, by head."""


def look(game: Game) -> CleanStates:
    """Play clean episodes, and look at every decision what each radius could have changed.

    Policies that see a stack of observations are not looked at: both mappings are empty then.
    """
    opened = game.opened
    if opened.spec.stack > 1:
        return CleanStates({}, {})
    watch = _Watch(game)
    evaluate(
        opened.policy,
        opened.make_env,
        len(opened.seeds),
        EPISODES,
        SELECTION,
        opened.device,
        watch.make_choose,
    )
    movable = {}
    flat = {}
    for head, count in watch.decisions.items():
        decisions = float(count.sum().clamp_min(1))
        movable[head] = (watch.movable[head] / decisions).cpu().numpy()
        flat[head] = float(watch.flat[head] / decisions)
    return CleanStates(movable, flat)


class _Watch:
    """Greedy choices that count, at every radius, what could have been changed."""

    def __init__(self, game: Game):
        self.game = game
        device = game.opened.device
        self.generator = torch.Generator(device=device).manual_seed(0)
        zeros = torch.zeros(len(game.eps), device=device)
        heads = game.opened.policy.heads
        self.movable = {head: zeros.clone() for head in heads}
        self.flat = {head: zeros[0].clone() for head in heads}
        self.decisions = {head: zeros[0].clone() for head in heads}

    def make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose, for `rollout`: all copies alike."""
        return self.choose

    def choose(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose greedily, and count at the copies that decide."""
        obs = obs.float()
        clean = scores.best(obs)
        self.decisions[head] += deciding.sum()
        for number, radius in enumerate(self.game.eps):
            reach = self._reachable(obs, scores, radius)
            self.movable[head][number] += (self._moved(reach, scores, clean) & deciding).sum()
        self.flat[head] += (reach.flat & deciding).sum()
        return clean

    def _reachable(self, obs: Tensor, scores: Scores, radius: float) -> Reachable:
        """What is reachable at `obs` within a `radius`."""
        budget = self.game.budget(torch.full(obs.shape[:2], radius, device=obs.device), obs)

        def draw(count: int) -> Tensor:
            return torch.rand(*obs.shape[:2], count, generator=self.generator, device=obs.device)

        return reachable(scores, obs, budget, draw, steps=STEPS, samples=SAMPLES)

    def _moved(self, reach: Reachable, scores: Scores, clean: Tensor) -> Tensor:
        """Whether the decision can be changed, bool [S, B]; see `flipped`."""
        if not scores.continuous:
            return reach.mask.sum(-1) > 1
        moved = torch.zeros_like(reach.flat)
        for number in range(1, reach.mask.shape[-1]):
            decision = scores.best(reach.obs[:, :, number])
            moved |= flipped(self.game.opened.spec.action_space, decision, clean)
        return moved
