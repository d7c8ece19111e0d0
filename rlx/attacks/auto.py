"""The worst of many attacks: what a robustness number is made of unless one asks for less."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rlx.attacks.minq import MinQ
from rlx.attacks.planned import Planned
from rlx.config import Count, build, load_class
from rlx.errors import ConfigError
from rlx.evaluation import SELECTION
from rlx.robustness.planner import why_not
from rlx.robustness.sweep import Game, Played, check_attackable, sweep
from rlx.show import console
from rlx.threat import Adversary, Attack, Mode

TARGETS = 6
"""Choices of a head up to which each of them is a target of its own."""


@dataclass(frozen=True)
class Auto(Adversary):
    """Many attacks, of which the worst counts.

    All are tried on selection episodes. The strongest of them, the finalists, play the reported
    ones. Where the env can be copied, the planned adversary plays them too, and of each episode the
    worst counts: who owns copies of the env can try everything in them first. Where it cannot, the
    attack of each seed and radius is the one that was worst on the selection episodes.
    """

    attacks: Any
    """Attacks that move each decision by itself, by name: files of conf/attack."""
    planned: Any
    """The adversary that searches, where the env can be copied: conf/attack/planned.yaml."""
    selection_episodes: Count
    """Episodes of each seed and radius by which the finalists are chosen."""
    finalists: Count
    """Attacks that play the reported episodes."""

    @cached_property
    def singles(self) -> dict[str, Attack]:
        """The attacks, by name."""
        made = {}
        for name, node in self.attacks.items():
            key = f"attack.attacks.{name}"
            made[name] = build(load_class(node, key, Attack), node, key)
        return made

    @cached_property
    def planner(self) -> Planned:
        """The adversary that searches."""
        kind = load_class(self.planned, "attack.planned", Planned)
        return build(kind, self.planned, "attack.planned")

    def check(self, game: Game, modes: Mapping[str, Mode]) -> None:
        if not self._fitting(game, modes):
            # What is wrong is said by the first of them.
            check_attackable(game, next(iter(self.singles.values())), modes)
        if why_not(game) is None:
            self.planner.check(game, modes)

    def _fitting(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Attack]:
        """The attacks that these policies can be attacked with, and one for each target."""
        fitting = {}
        for name, attack in {**self.singles, **self._targeted(game)}.items():
            try:
                check_attackable(game, attack, modes)
            except ConfigError:
                continue  # of continuous actions an attack on choices, and the reverse
            fitting[name] = attack
        return fitting

    def _targeted(self, game: Game) -> dict[str, Attack]:
        """An attack that forces one choice wherever it can, for each choice of small heads."""
        minq = next((one for one in self.singles.values() if isinstance(one, MinQ)), None)
        choices = getattr(game.opened.spec.action_space, "n", 0)
        if minq is None or choices > TARGETS:
            return {}
        numbers = range(int(choices))
        return {f"towards {number}": replace(minq, target=number) for number in numbers}

    def play(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Played]:
        fitting = self._fitting(game, modes)
        positive = [radius for radius in game.eps if radius > 0]
        trial = replace(
            game,
            eps=positive or list(game.eps),
            episodes=self.selection_episodes,
            first_reset_seed=SELECTION,
        )
        console.facts(trying=", ".join(fitting))
        tried = {name: sweep(trial, attack, modes) for name, attack in fitting.items()}
        finalists = self._finalists(tried)
        copied = why_not(game) is None
        named = [*finalists, "planned"] if copied else finalists
        console.facts(playing=", ".join(named))
        played: dict[str, dict[str, Played]] = {}
        for name in finalists:
            played[name] = sweep(game, fitting[name], modes)
        if copied:
            played["planned"] = self.planner.play(game, modes)
        result = {}
        for mode in modes:
            final = {name: by_mode[mode] for name, by_mode in played.items()}
            trials = {name: by_mode[mode].returns for name, by_mode in tried.items()}
            if copied:
                result[mode] = worst_of_each_episode(final, game.eps)
            else:
                chosen = {name: trials[name] for name in finalists}
                result[mode] = worst_of_each_seed(final, chosen, game.eps)
            result[mode].singles = trials
        return result

    def _finalists(self, tried: Mapping[str, Mapping[str, Played]]) -> list[str]:
        """The attacks that are worst in most cells of seeds, radii and modes."""
        means = np.stack(
            [
                np.concatenate([played.returns.mean(-1).flatten() for played in by_mode.values()])
                for by_mode in tried.values()
            ]
        )
        # By how much each attack is better for the policies than the worst one, in all cells.
        shortfall = (means - means.min(0)).sum(1)
        names = list(tried)
        order = np.argsort(shortfall, kind="stable")[: self.finalists]
        return [names[number] for number in sorted(order)]


def worst_of_each_episode(played: Mapping[str, Played], eps: Sequence[float]) -> Played:
    """Of each episode the lowest return of any attack at that radius or a smaller one.

    Among equals the attack that is named first counts.
    """
    names = list(played)
    order = np.argsort(eps, kind="stable")
    attack = np.stack([one.returns for one in played.values()]).argmin(0)  # [S, E, P]
    radius = np.broadcast_to(np.arange(len(eps))[:, None], attack.shape).copy()
    returns = np.minimum.reduce([one.returns for one in played.values()])
    for smaller, larger in zip(order[:-1], order[1:], strict=True):
        better = returns[:, smaller] < returns[:, larger]
        for values in (attack, radius, returns):
            values[:, larger][better] = values[:, smaller][better]
    seed, _, episode = np.indices(attack.shape)

    def picked(read: Callable[[Played], np.ndarray]) -> np.ndarray:
        """What `read` finds in each episode's attack, [S, E, P]."""
        values = np.stack([read(one) for one in played.values()])
        return values[attack, seed, radius, episode]

    result = _picked(played, picked)
    result.winners = {name: (attack == number).mean(-1) for number, name in enumerate(names)}
    planned = played.get("planned")
    if planned is not None and planned.halved is not None:
        others = [one.returns for name, one in played.items() if name != "planned"]
        halved = np.minimum.reduce([*others, planned.halved])[:, order]
        result.halved = np.minimum.accumulate(halved, 1)[:, np.argsort(order)]
        result.exact = planned.exact
    return result


def worst_of_each_seed(
    played: Mapping[str, Played], tried: Mapping[str, np.ndarray], eps: Sequence[float]
) -> Played:
    """Of each seed and radius the attack that was worst when it was `tried`, on other episodes.

    `tried`: returns [S, E', P'] at the E' positive radii. A larger radius may use what was chosen
    at a smaller one, and changes only to what was lower there.
    """
    names = list(played)
    order = np.argsort(eps, kind="stable")
    positive = [number for number, radius in enumerate(eps) if radius > 0]
    means = np.stack([returns.mean(-1) for returns in tried.values()])  # [attacks, S, E']
    seeds = means.shape[1]
    attack = np.zeros((seeds, len(eps)), dtype=np.int64)
    radius = np.tile(np.arange(len(eps)), (seeds, 1))
    lowest = np.full(seeds, np.inf)
    former: int | None = None
    for number in order:
        if eps[number] > 0:
            here = means[:, :, positive.index(number)]
            better = here.min(0) < lowest
            attack[:, number] = here.argmin(0)
            if former is not None:
                attack[~better, number] = attack[~better, former]
                radius[~better, number] = radius[~better, former]
            lowest = np.minimum(lowest, here.min(0))
            former = number

    def picked(read: Callable[[Played], np.ndarray]) -> np.ndarray:
        """What `read` finds in the attack of each seed and radius, [S, E, P]."""
        values = np.stack([read(one) for one in played.values()])
        return values[attack, np.arange(seeds)[:, None], radius]

    result = _picked(played, picked)
    result.winners = {name: (attack == number).astype(float) for number, name in enumerate(names)}
    return result


def _picked(
    played: Mapping[str, Played], picked: Callable[[Callable[[Played], np.ndarray]], np.ndarray]
) -> Played:
    """The episodes of which `picked` finds each array in `played`."""
    heads = next(iter(played.values())).flips
    return Played(
        returns=picked(lambda one: one.returns),
        lengths=picked(lambda one: one.lengths),
        truncated=picked(lambda one: one.truncated),
        decisions={head: picked(lambda one, head=head: one.decisions[head]) for head in heads},  # type: ignore[misc]
        flips={head: picked(lambda one, head=head: one.flips[head]) for head in heads},  # type: ignore[misc]
    )
