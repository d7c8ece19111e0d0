"""What may be wrong with an attack study: checks of the attack itself, each with its number."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlx import statistics
from rlx.robustness.clean_states import CleanStates
from rlx.robustness.sweep import Played

CLEAN_TOLERANCE = 0.02
"""Share of the episodes at radius 0 that may differ from clean play: rounding breaks ties."""
CONVERGED = 0.02
"""Change of the area, of which 1 is full robustness, up to which doubling the effort is idle."""
CONVERGED_AT_ONE_RADIUS = 0.05
"""Change of the score at any one radius up to which it is: an area may hide a steep place."""
FLAT = 0.01
"""Share of the decisions without any gradient up to which gradients are trusted."""
NO_SCORE = "there is no score: clean play is no better than random play"
LEVEL = 0.05
"""Probability that a check of many cells warns in one of them where nothing is wrong.

Two standard errors in each of 120 cells would warn in 97 of 100 sound studies."""
FEW_SEEDS = 5
EXHAUSTIVE = "how far the search was exhaustive"
LOWEST = "how much is at the lowest return"
NOTES = (EXHAUSTIVE, LOWEST)
"""The checks that nothing fails: they say how much is known."""
TOWARDS = "towards "
"""How the names of attacks begin that force one choice wherever they can."""


@dataclass(frozen=True)
class Finding:
    """A check of one mode of a study."""

    check: str
    """What was checked, as in "radius 0 is clean play"; of `NOTES` what was measured."""
    passed: bool
    number: float
    """What was measured; what it is, `text` says."""
    text: str
    """The number in words."""

    @property
    def is_note(self) -> bool:
        """Whether nothing fails it."""
        return self.check in NOTES

    def as_dict(self) -> dict[str, Any]:
        """The finding as summary.json has it."""
        return asdict(self)


def audit(
    played: Played,
    heads: Sequence[str],
    eps: Sequence[float],
    clean: np.ndarray,
    random: float,
    floor: float,
    states: CleanStates,
) -> list[Finding]:
    """The checks of one mode's episodes.

    `heads`: the attacked ones; `clean`: the returns [S, P] of the same episodes without an attack;
    `random`: the mean return of random play; `floor`: the lowest return there can be in the env,
    minus infinity where that is unknown.
    """
    findings = [
        _radius_zero(played.returns, eps, clean),
        _larger_never_better(played.returns, eps),
        _never_above_clean(played.returns, eps, clean),
        _noise_never_wins(played.singles),
        _never_raises(played.singles, played.unattacked),
        _has_gradients(heads, states),
        _more_than_one(played),
        _converged(played, eps, clean, random),
        _exhaustive(played),
        _at_the_floor(played.returns, eps, floor),
        _seeds(len(clean)),
    ]
    return [finding for finding in findings if finding is not None]


def _radius_zero(returns: np.ndarray, eps: Sequence[float], clean: np.ndarray) -> Finding | None:
    """Radius 0 must be clean play."""
    zeros = [number for number, radius in enumerate(eps) if radius == 0]
    if not zeros:
        return None
    # Of continuous actions and rewards, rounding changes the last digits in every episode.
    differ = float((~np.isclose(returns[:, zeros[0]], clean, rtol=1e-4)).mean())
    text = f"{differ:.1%} of the episodes differ"
    return Finding("radius 0 is clean play", differ <= CLEAN_TOLERANCE, differ, text)


def _larger_never_better(returns: np.ndarray, eps: Sequence[float]) -> Finding | None:
    """A larger box holds the smaller one, so that its worst is no better."""
    if len(eps) < 2:
        return None
    order = np.argsort(eps, kind="stable")
    rise = np.diff(returns[:, order], axis=1)
    means = rise.mean(-1)
    worst = max(0.0, float(means.max()))
    sure = int(_above_zero(rise).sum())
    rises = int((means > 0).sum())
    text = f"a seed's return rises in {rises} of {means.size} steps to a larger radius"
    if worst:
        text += f", by {worst:.3g} at most; in {sure} by more than chance"
    return Finding("no larger radius is better by more than chance", sure == 0, worst, text)


def _never_above_clean(
    returns: np.ndarray, eps: Sequence[float], clean: np.ndarray
) -> Finding | None:
    """An attack that leaves a policy better off than it was is none."""
    gain = returns - clean[:, None]
    above = max(0.0, float(gain.mean(-1).max()))
    sure = int(_above_zero(gain).sum())
    text = "no seed returns more than in clean play"
    if above:
        text = f"a seed returns up to {above:.3g} more than in clean play; "
        text += f"by more than chance in {sure} of {gain[..., 0].size} cells (seed and radius)"
    return Finding("no seed gains by more than chance", sure == 0, above, text)


def _noise_never_wins(singles: Mapping[str, np.ndarray]) -> Finding | None:
    """Random noise that beats every gradient: gradients that are masked, or steps too few."""
    noise = [returns for name, returns in singles.items() if name in ("noise", "corners")]
    others = [returns for name, returns in singles.items() if name not in ("noise", "corners")]
    if not noise or not others:
        return None
    # Above 0 where noise is the worse for the policy.
    sure = _above_zero(min_by_mean(others) - min_by_mean(noise))
    share = float(sure.mean())
    cells = f"{int(sure.sum())} of {sure.size} cells (seed and radius)"
    text = f"noise is stronger than all others by more than chance in {cells}"
    return Finding("noise beats gradients nowhere by more than chance", not sure.any(), share, text)


def _never_raises(
    singles: Mapping[str, np.ndarray], unattacked: np.ndarray | None
) -> Finding | None:
    """A single attack that helps the policies: what it raises is not what hurts.

    To force one choice wherever it can be may rightly help, and is not counted.
    """
    singles = {name: one for name, one in singles.items() if not name.startswith(TOWARDS)}
    if not singles or unattacked is None:
        return None
    gain = np.stack([returns - unattacked[:, None] for returns in singles.values()])
    # Of each attack and radius the episodes of all seeds: [attacks, E, S · P'].
    gain = gain.swapaxes(1, 2)
    gain = gain.reshape(*gain.shape[:2], -1)
    sure = _above_zero(gain)
    means = np.where(sure, gain.mean(-1), 0.0)
    highest = float(means.max())
    names = list(singles)
    text = f"none of {len(names)} does"
    if len(names) == 1:
        text = f"{names[0]} does not"
    if sure.any():
        text = f"{names[int(means.max(1).argmax())]} raises it by {highest:.3g} at one radius"
    check = "no single attack raises the return by more than chance"
    return Finding(check, not sure.any(), highest, text)


def _has_gradients(heads: Sequence[str], states: CleanStates) -> Finding | None:
    """Where scores are flat, gradient attacks are blind."""
    shares = [states.flat[head] for head in heads if head in states.flat]
    if not shares:
        return None
    share = max(shares)
    text = f"{share:.1%} of the decisions of clean play have scores without any gradient"
    return Finding("gradients exist", share <= FLAT, share, text)


def _more_than_one(played: Played) -> Finding:
    """One attack says how little it left, not how little can be left."""
    count = 1 if played.attack is None else len({*played.attacks, *played.singles, *played.tried})
    text = f"{count} attacks" if count > 1 else "one alone; attack=auto plays many"
    if count == 1 and played.unattacked is not None:  # there was a trial, as auto has it
        text = "one alone: the others were tried, and could add nothing"
    return Finding("more than one attack was played", count > 1, count, text)


def _converged(
    played: Played, eps: Sequence[float], clean: np.ndarray, random: float
) -> Finding | None:
    """Whether twice the effort still finds more."""
    if played.halved is None:
        return None
    unharmed = float(statistics.iqm(clean.mean(1)))
    before = statistics.iqm(played.halved.mean(2))
    after = statistics.iqm(played.returns.mean(2))
    change = statistics.area_under(before, unharmed, random, eps)
    change -= statistics.area_under(after, unharmed, random, eps)
    if np.isnan(change):
        return Finding("the search has converged", False, change, NO_SCORE)
    most = float((before - after).max()) / (unharmed - random)
    text = f"the last doubling of the effort lowered the area by {change:.3f}"
    text += f", the score at one radius by {most:.3f} at most"
    passed = change <= CONVERGED and most <= CONVERGED_AT_ONE_RADIUS
    return Finding("the search has converged", passed, change, text)


def _exhaustive(played: Played) -> Finding | None:
    """Where all courses were followed, nothing lower can be forced by what was found reachable."""
    if played.exact is None:
        return None
    share = float(played.exact.mean())
    text = f"in {share:.0%} of the episodes it followed every course that was found reachable"
    return Finding(EXHAUSTIVE, True, share, text)


def _at_the_floor(returns: np.ndarray, eps: Sequence[float], floor: float) -> Finding | None:
    """Where all episodes are at the lowest return there can be, nothing stronger exists."""
    if not np.isfinite(floor):
        return None
    largest = int(np.argmax(eps))
    share = float((returns[:, largest] <= floor).mean())
    text = f"{share:.0%} of the episodes at eps {eps[largest]:g} have {floor:g}; none can be below"
    return Finding(LOWEST, True, share, text)


def _seeds(seeds: int) -> Finding:
    """Intervals over few seeds are too narrow."""
    text = "1 seed" if seeds == 1 else f"{seeds} seeds"
    if seeds < FEW_SEEDS:
        text += f"; an interval needs {FEW_SEEDS}"
    return Finding("seeds are enough", seeds >= FEW_SEEDS, seeds, text)


def min_by_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Of `parts` [S, E, P] each, in every cell the one with the lowest mean, [S, E, P]."""
    stacked = np.stack(list(parts))
    lowest = stacked.mean(-1).argmin(0)
    return np.take_along_axis(stacked, lowest[None, :, :, None], 0)[0]


def _above_zero(differences: np.ndarray) -> np.ndarray:
    """In which cells the mean of `differences` [..., P] is above 0 by more than chance, bool [...].

    One-sided paired t-tests, whose `LEVEL` is that of all cells together (Bonferroni). A single
    episode says nothing.
    """
    from scipy.stats import t

    episodes = differences.shape[-1]
    if episodes < 2:
        return np.zeros(differences.shape[:-1], dtype=bool)
    cells = differences[..., 0].size
    errors = differences.std(-1, ddof=1) / np.sqrt(episodes)
    return differences.mean(-1) > t.ppf(1 - LEVEL / cells, episodes - 1) * errors + 1e-9
