"""The worst of many attacks: what a robustness number is made of unless one asks for less."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from rlx.attacks.learned import Learned
from rlx.attacks.minq import MinQ
from rlx.attacks.planned import Planned
from rlx.config import Count, build, load_class
from rlx.errors import ConfigError
from rlx.evaluation import TRIAL, evaluate
from rlx.robustness.audit import TOWARDS
from rlx.robustness.planner import why_not
from rlx.robustness.study import NONE
from rlx.robustness.sweep import Game, Played, Replay, check_attackable, has_gradients, sweep
from rlx.show import console
from rlx.threat import Adversary, Attack, Mode

PLANNED = "planned"
"""The name of the adversary that searches."""
LEARNED = "learned"
"""The name of the adversary that is trained."""
ROUNDING = 1e-4
"""Difference of two returns that may be one of rounding."""
TARGETS = 6
"""Choices of a head up to which each of them is a target of its own."""


@dataclass(frozen=True)
class Auto(Adversary):
    """Many attacks, of which the worst counts.

    All are tried on other episodes than those reported. The strongest, the finalists, play the
    reported ones. Where the env can be copied, the planned adversary plays them too, and of each
    episode the worst counts: who owns copies of the env can try everything in them first. Where it
    cannot, the attack of each seed and radius is the one that was worst in the trial.
    """

    attacks: Any
    """Attacks that move each decision by itself, by name: files of conf/attack."""
    blind: Any
    """Attacks that need no gradients, by name, likewise: for policies that have none."""
    planned: Any
    """The adversary that searches, where the env can be copied: conf/attack/planned.yaml."""
    learned: Any
    """The adversary that is trained, where the env cannot be copied: conf/attack/learned.yaml."""
    learns: bool
    """Whether it is: a training takes minutes."""
    trial_episodes: Count
    """Episodes of each seed and radius by which the finalists are chosen."""
    finalists: Count
    """Attacks that play the reported episodes."""

    @cached_property
    def singles(self) -> dict[str, Attack]:
        """The attacks, by name."""
        return _made(self.attacks, "attack.attacks")

    @cached_property
    def blind_singles(self) -> dict[str, Attack]:
        """The attacks on policies without gradients, by name."""
        return _made(self.blind, "attack.blind")

    @cached_property
    def planner(self) -> Planned:
        """The adversary that searches."""
        kind = load_class(self.planned, "attack.planned", Planned)
        return build(kind, self.planned, "attack.planned")

    @cached_property
    def learner(self) -> Learned:
        """The adversary that is trained."""
        kind = load_class(self.learned, "attack.learned", Learned)
        return build(kind, self.learned, "attack.learned")

    def strongest_single(self, game: Game, modes: Mapping[str, Mode]) -> tuple[str, Attack]:
        """The finalist that is worst when it is tried, and its name."""
        fitting = self._fitting(game, modes)
        tried = self._tried(game, fitting, modes)
        name = self._finalists(tried, 1)[0]
        return name, fitting[name]

    def check(self, game: Game, modes: Mapping[str, Mode]) -> None:
        if not self._fitting(game, modes):
            # What is wrong is said by the first of them.
            check_attackable(game, next(iter(self.singles.values())), modes)
        if why_not(game) is None:
            self.planner.check(game, modes)

    def _why_not_learned(self, game: Game, modes: Mapping[str, Mode]) -> str | None:
        """Why no adversary is trained; None: one is."""
        if not self.learns:
            return "effort.learns=false"
        try:
            self.learner.check(game, modes)
        except ConfigError as error:
            return str(error)
        return None

    def _fitting(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Attack]:
        """The attacks that these policies can be attacked with, and one for each target."""
        attacks = {**self.singles, **self._targeted(game)}
        if not has_gradients(game):
            attacks |= self.blind_singles
        fitting = {}
        for name, attack in attacks.items():
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
        return {f"{TOWARDS}{number}": replace(minq, target=number) for number in numbers}

    def play(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Played]:
        return self._worst(game, modes, why_not(game) is None)

    def _unattacked(self, game: Game) -> np.ndarray:
        """The returns of clean play in the trial episodes, [S, P']."""
        opened = game.opened
        seeds = len(opened.seeds)
        clean = evaluate(
            opened.policy,
            opened.make_env,
            seeds,
            self.trial_episodes,
            TRIAL,
            opened.device,
        )
        return clean.returns.cpu().numpy()

    def _worst(self, game: Game, modes: Mapping[str, Mode], copied: bool) -> dict[str, Played]:
        """The worst episodes that were found, by mode."""
        fitting = self._fitting(game, modes)
        # Where the env is searched, the strongest attacks on all heads are those on each.
        tried = self._tried(game, fitting, _widest(modes) if copied else modes)
        finalists = self._finalists(tried, self.finalists)
        if not copied:
            reason = self._why_not_learned(game, modes)
            named = finalists
            if reason is None:
                named = [*finalists, LEARNED]
            elif self.learns:
                console.facts(**{"left out": f"{LEARNED}: {reason}"})
            console.facts(playing=", ".join(named))
            # To do nothing is always allowed, and better than what helps.
            first = fitting[finalists[0]]
            tried[NONE] = _left_alone(self._trial(game), first, modes)
            played = {NONE: _left_alone(game, first, modes)}
            played |= _swept(game, {name: fitting[name] for name in finalists}, modes)
            if reason is None:
                tried[LEARNED] = self.learner.play(self._trial(game), modes)
                played[LEARNED] = self.learner.play(game, modes)
            result = self._worst_by_seed(game, played, tried, modes)
            for mode, worst in result.items():
                worst.unattacked = tried[NONE][mode].returns[:, 0]
            return result
        console.facts(playing=", ".join([*finalists, "planned"]))
        with game.costs.of(PLANNED):
            planned = self.planner.play(game, modes)
        open_modes = _open(modes, planned, tried)
        added = {name: fitting[name] for name in finalists if open_modes}
        played = _swept(game, added, open_modes)
        result = self._worst_by_episode(game, played, planned, tried, modes)
        unattacked = self._unattacked(game)
        for worst in result.values():
            worst.unattacked = unattacked
            worst.tried = list(tried)
        return result

    def _tried(
        self, game: Game, fitting: Mapping[str, Attack], modes: Mapping[str, Mode]
    ) -> dict[str, dict[str, Played]]:
        """What each attack does at the positive radii on trial episodes, by name and mode."""
        trial = self._trial(game)
        console.facts(trying=", ".join(fitting))
        return _swept(trial, fitting, modes)

    def _trial(self, game: Game) -> Game:
        """The positive radii of `game`, on other episodes."""
        positive = [radius for radius in game.eps if radius > 0]
        return replace(
            game,
            eps=positive or list(game.eps),
            episodes=self.trial_episodes,
            first_reset_seed=TRIAL,
            quiet=True,
        )

    def _worst_by_episode(
        self,
        game: Game,
        played: Mapping[str, Mapping[str, Played]],
        planned: Mapping[str, Played],
        tried: Mapping[str, Mapping[str, Played]],
        modes: Mapping[str, Mode],
    ) -> dict[str, Played]:
        """Of each episode the worst of what was `played` and `planned`, by mode.

        Whoever can move several heads may leave some alone: what is worst for fewer of them counts.
        """
        result: dict[str, Played] = {}
        for mode in sorted(modes, key=lambda name: len(modes[name].heads)):
            heads = modes[mode].heads
            own = {name: by_mode[mode] for name, by_mode in played.items() if mode in by_mode}
            result[mode] = worst_of_each_episode({**own, PLANNED: planned[mode]}, game.eps)
            for part in [name for name in result if set(modes[name].heads) < set(heads)]:
                result[mode] = worse_of_two(result[mode], result[part])
            result[mode].singles = {
                name: by_mode[mode].returns for name, by_mode in tried.items() if mode in by_mode
            }
        return {mode: result[mode] for mode in modes}

    def _worst_by_seed(
        self,
        game: Game,
        played: Mapping[str, Mapping[str, Played]],
        tried: Mapping[str, Mapping[str, Played]],
        modes: Mapping[str, Mode],
    ) -> dict[str, Played]:
        """Of each seed and radius the attack that was worst when it was `tried`, by mode."""
        result = {}
        for mode in modes:
            final = {name: by_mode[mode] for name, by_mode in played.items()}
            trials = {name: by_mode[mode].returns for name, by_mode in tried.items()}
            chosen = {name: trials[name] for name in final}
            result[mode] = worst_of_each_seed(final, chosen, game.eps)
            result[mode].singles = {
                name: returns for name, returns in trials.items() if name != NONE
            }
        return result

    def _finalists(self, tried: Mapping[str, Mapping[str, Played]], count: int) -> list[str]:
        """The `count` attacks that are worst, over all seeds, radii and modes.

        Each seed counts as much as any other, however much its return can fall.
        """
        means = np.stack(
            [
                np.concatenate([played.returns.mean(-1) for played in by_mode.values()], 1)
                for by_mode in tried.values()
            ]
        )  # [attacks, S, modes · E]
        # By how much each attack is better for the policies than the worst one, in all cells.
        shortfall = (means - means.min(0)).sum(-1)
        largest = shortfall.max(0)
        shortfall = (shortfall / np.where(largest > 0, largest, 1)).sum(1)
        names = list(tried)
        order = np.argsort(shortfall, kind="stable")[:count]
        return [names[number] for number in sorted(order)]


def _made(nodes: Mapping[str, Any], key: str) -> dict[str, Attack]:
    """The attacks of the config group at `key`, by name."""
    made = {}
    for name, node in nodes.items():
        own_key = f"{key}.{name}"
        made[name] = build(load_class(node, own_key, Attack), node, own_key)
    return made


def _swept(
    game: Game, attacks: Mapping[str, Attack], modes: Mapping[str, Mode]
) -> dict[str, dict[str, Played]]:
    """The episodes of each of `attacks`, by its name and by mode; each has a cost of its own."""
    played = {}
    for name, attack in attacks.items():
        with game.costs.of(name):
            played[name] = sweep(game, attack, modes)
    return played


def _left_alone(game: Game, attack: Attack, modes: Mapping[str, Mode]) -> dict[str, Played]:
    """The episodes of `game` as `attack` plays them at radius 0, at each of the radii, by mode."""
    clean = sweep(replace(game, eps=[0.0], quiet=True), attack, modes)
    radii = len(game.eps)

    def repeated(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, radii, axis=1)

    result = {}
    for mode, played in clean.items():
        result[mode] = Played(
            returns=repeated(played.returns),
            lengths=repeated(played.lengths),
            truncated=repeated(played.truncated),
            decisions={head: repeated(count) for head, count in played.decisions.items()},
            flips={head: repeated(count) for head, count in played.flips.items()},
            replay=partial(_replay_first, played),
        )
    return result


def _replay_first(clean: Played, row: int, number: int, *rest: Any) -> None:
    """Play an episode of `clean` again, which has but one radius."""
    _replay(clean)(row, 0, *rest)


def _replay(played: Played) -> Replay:
    """How the episodes that were `played` are played again, by any attack of rlx."""
    assert played.replay is not None
    return played.replay


def _widest(modes: Mapping[str, Mode]) -> dict[str, Mode]:
    """The modes whose heads are not all attacked by another mode as well, and others."""
    heads = [set(mode.heads) for mode in modes.values()]
    return {
        name: mode
        for name, mode in modes.items()
        if not any(set(mode.heads) < others for others in heads)
    }


def _open(
    modes: Mapping[str, Mode],
    planned: Mapping[str, Played],
    tried: Mapping[str, Mapping[str, Played]],
) -> dict[str, Mode]:
    """The modes in which other attacks may add to what was `planned`.

    They add nothing where the search is settled and none of the attacks that were `tried` has moved
    a head, or none has moved a head that a narrower mode does not attack too. The search alone does
    not say so: where gradients are masked, it knows of nothing to find.
    """
    moved = {head for mode in modes.values() for head in mode.heads}
    flips: dict[str, int] = {}
    for by_mode in tried.values():
        for played in by_mode.values():
            for head, counts in played.flips.items():
                flips[head] = flips.get(head, 0) + int(counts.sum())
    moved -= {head for head, count in flips.items() if count == 0}
    result = {}
    for name, mode in modes.items():
        narrower = [set(other.heads) for other in modes.values()]
        narrower = [heads for heads in narrower if heads < set(mode.heads)]
        movable = moved & set(mode.heads)
        closed = not movable or any(movable <= heads for heads in narrower)
        if not (closed and planned[name].settled):
            result[name] = mode
    return result


def worst_of_each_episode(played: Mapping[str, Played], eps: Sequence[float]) -> Played:
    """Of each episode the lowest return of any attack at that radius or a smaller one.

    Among equals the attack that is named first counts.
    """
    order = np.argsort(eps, kind="stable")
    attack = np.stack([one.returns for one in played.values()]).argmin(0)  # [S, E, P]
    radius = np.broadcast_to(np.arange(len(eps))[:, None], attack.shape).copy()
    returns = np.minimum.reduce([one.returns for one in played.values()])
    for smaller, larger in pairwise(order):
        better = returns[:, smaller] < returns[:, larger]
        for values in (attack, radius, returns):
            values[:, larger][better] = values[:, smaller][better]
    result = _picked(played, attack, radius)
    planned = played.get(PLANNED)
    if planned is not None and planned.halved is not None:
        others = [one.returns for name, one in played.items() if name != PLANNED]
        halved = np.minimum.reduce([*others, planned.halved])[:, order]
        result.halved = np.minimum.accumulate(halved, 1)[:, np.argsort(order)]
        if planned.exact is not None:
            # What is lower was out of the search's sight.
            result.exact = planned.exact & (returns >= planned.returns - ROUNDING)
    return result


def worse_of_two(one: Played, other: Played) -> Played:
    """Of each episode the lower return of `one` and of `other`, which attacks some of its heads."""
    better = other.returns < one.returns

    def chosen(own: np.ndarray, others: np.ndarray | float) -> np.ndarray:
        return np.where(better, others, own)

    assert one.attack is not None and other.attack is not None
    names = [*one.attacks, *(name for name in other.attacks if name not in one.attacks)]
    renamed = np.array([names.index(name) for name in other.attacks])[other.attack]
    halved = one.halved
    if halved is not None and other.halved is not None:
        halved = np.minimum(halved, other.halved)
    returns = chosen(one.returns, other.returns)

    def replay(row: int, number: int, episode: int, *rest: Any) -> None:
        source = other if better[row, number, episode] else one
        _replay(source)(row, number, episode, *rest)

    return Played(
        returns=returns,
        lengths=chosen(one.lengths, other.lengths),
        truncated=chosen(one.truncated, other.truncated).astype(bool),
        decisions={head: chosen(own, other.decisions[head]) for head, own in one.decisions.items()},
        # Heads that `other` leaves alone decide there, too, and are not flipped.
        flips={head: chosen(own, other.flips.get(head, 0)) for head, own in one.flips.items()},
        attacks=names,
        attack=chosen(one.attack, renamed),
        halved=halved,
        exact=None if one.exact is None else one.exact & (returns >= one.returns - ROUNDING),
        replay=replay,
    )


def worst_of_each_seed(
    played: Mapping[str, Played], tried: Mapping[str, np.ndarray], eps: Sequence[float]
) -> Played:
    """Of each seed and radius the attack that was worst when it was `tried`, on other episodes.

    `tried`: returns [S, E', P'] at the E' positive radii. A larger radius may use what was chosen
    at a smaller one, and changes only to what was lower there.
    """
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
    shape = next(iter(played.values())).returns.shape
    return _picked(
        played,
        np.broadcast_to(attack[:, :, None], shape),
        np.broadcast_to(radius[:, :, None], shape),
    )


def _picked(played: Mapping[str, Played], attack: np.ndarray, radius: np.ndarray) -> Played:
    """Of each episode what the number of an `attack` has done at the number of a `radius`.

    Both are int64 [S, E, P].
    """
    seed, _, episode = np.indices(attack.shape)
    sources = list(played.values())
    everywhere = [
        head for head in sources[0].decisions if all(head in one.decisions for one in sources)
    ]

    def picked(read: Callable[[Played], np.ndarray]) -> np.ndarray:
        """What `read` finds in each episode's attack, [S, E, P]."""
        return np.stack([read(one) for one in sources])[attack, seed, radius, episode]

    def replay(row: int, number: int, episode: int, *rest: Any) -> None:
        place = row, number, episode
        _replay(sources[attack[place]])(row, int(radius[place]), episode, *rest)

    return Played(
        returns=picked(lambda one: one.returns),
        lengths=picked(lambda one: one.lengths),
        truncated=picked(lambda one: one.truncated),
        decisions={head: picked(_counts("decisions", head)) for head in everywhere},
        flips={head: picked(_counts("flips", head)) for head in sources[0].flips},
        attacks=list(played),
        attack=attack,
        replay=replay,
    )


def _counts(count: str, head: str) -> Callable[[Played], np.ndarray]:
    """What reads the "decisions" or "flips" of a head, [S, E, P]."""
    return lambda played: getattr(played, count)[head]
