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
FLAT = 0.01
"""Share of the decisions without any gradient up to which gradients are trusted."""
SURE = 2.0
"""Standard errors of a paired difference from which it is no chance."""
FEW_SEEDS = 5


@dataclass(frozen=True)
class Finding:
    """A check of one mode of a study."""

    check: str
    """What was checked, as in "larger radii are never better"."""
    passed: bool
    number: float
    """What was measured; what it is, `text` says."""
    text: str
    """The number in words."""

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
        _never_raises(played.singles, clean),
        _has_gradients(heads, states),
        _converged(played, eps, clean, random),
        _at_the_floor(played.returns, eps, floor),
        _seeds(len(clean)),
    ]
    return [finding for finding in findings if finding is not None]


def _radius_zero(returns: np.ndarray, eps: Sequence[float], clean: np.ndarray) -> Finding | None:
    """Radius 0 must be clean play."""
    zeros = [number for number, radius in enumerate(eps) if radius == 0]
    if not zeros:
        return None
    differ = float((returns[:, zeros[0]] != clean).mean())
    text = f"{differ:.1%} of the episodes differ"
    return Finding("radius 0 is clean play", differ <= CLEAN_TOLERANCE, differ, text)


def _larger_never_better(returns: np.ndarray, eps: Sequence[float]) -> Finding | None:
    """A larger box holds the smaller one, so that its worst is no better."""
    if len(eps) < 2:
        return None
    order = np.argsort(eps, kind="stable")
    means = returns.mean(-1)[:, order]
    rise = np.diff(means, axis=1)
    worst = max(0.0, float(rise.max()))
    count = int((rise > 0).sum())
    text = f"{count} of {rise.size} steps to a larger radius raise a seed's return"
    if count:
        text += f", by {worst:.3g} at most"
    return Finding("larger radii are never better", count == 0, worst, text)


def _never_above_clean(
    returns: np.ndarray, eps: Sequence[float], clean: np.ndarray
) -> Finding | None:
    """An attack that leaves a policy better off than it was is none."""
    gain = returns.mean(-1) - clean.mean(-1, keepdims=True)
    above = max(0.0, float(gain.max()))
    seed, number = np.unravel_index(int(gain.argmax()), gain.shape)
    error = _standard_error(returns[seed, number] - clean[seed])
    text = f"the highest return is {above:.3g} above that of clean play"
    passed = bool(above <= SURE * error + 1e-9)
    return Finding("no seed gains from the attack", passed, above, text)


def _noise_never_wins(singles: Mapping[str, np.ndarray]) -> Finding | None:
    """Random noise that beats every gradient: gradients that are masked, or steps too few."""
    noise = [returns for name, returns in singles.items() if name in ("noise", "corners")]
    others = [returns for name, returns in singles.items() if name not in ("noise", "corners")]
    if not noise or not others:
        return None
    worst_noise = min_by_mean(noise)
    worst_other = min_by_mean(others)
    difference = worst_other - worst_noise  # above 0 where noise is the worse for the policy
    sure = difference.mean(-1) > SURE * _standard_error(difference) + 1e-9
    share = float(sure.mean())
    text = f"noise is the strongest single attack in {int(sure.sum())} of {sure.size} cells"
    return Finding("noise never beats gradients", not sure.any(), share, text)


def _never_raises(singles: Mapping[str, np.ndarray], clean: np.ndarray) -> Finding | None:
    """A single attack that helps the policies: what it raises is not what hurts."""
    if not singles:
        return None
    smallest = {name: returns[:, 0].mean() for name, returns in singles.items()}
    base = max(smallest.values())
    highest = {name: float(returns.mean((0, 2)).max()) for name, returns in singles.items()}
    name = max(highest, key=lambda one: highest[one])
    returns = singles[name]
    number = int(returns.mean((0, 2)).argmax())
    error = float(statistics_error(returns[:, number]))
    gain = highest[name] - base
    passed = gain <= SURE * error + 1e-9
    text = f"{name} raises the return by {max(0.0, gain):.3g} at one radius"
    return Finding("no single attack helps", passed, max(0.0, gain), text)


def _has_gradients(heads: Sequence[str], states: CleanStates) -> Finding | None:
    """Where scores are flat, gradient attacks are blind."""
    shares = [states.flat[head] for head in heads if head in states.flat]
    if not shares:
        return None
    share = max(shares)
    text = f"{share:.1%} of the decisions of clean play have scores without any gradient"
    return Finding("gradients exist", share <= FLAT, share, text)


def _converged(
    played: Played, eps: Sequence[float], clean: np.ndarray, random: float
) -> Finding | None:
    """Whether twice the effort still finds more."""
    if played.halved is None:
        return None
    areas = []
    for returns in (played.halved, played.returns):
        unharmed = float(statistics.iqm(clean.mean(1)))
        areas.append(statistics.area_under(statistics.iqm(returns.mean(2)), unharmed, random, eps))
    change = float(areas[0] - areas[1])
    text = f"the last doubling of the effort lowered the area by {change:.3f}"
    if np.isnan(change):
        return Finding("the search has converged", False, change, "there is no score")
    return Finding("the search has converged", change <= CONVERGED, change, text)


def _at_the_floor(returns: np.ndarray, eps: Sequence[float], floor: float) -> Finding | None:
    """Where all episodes are at the lowest return there can be, nothing stronger exists."""
    if not np.isfinite(floor):
        return None
    largest = int(np.argmax(eps))
    share = float((returns[:, largest] <= floor).mean())
    text = f"{share:.0%} of the episodes at eps {eps[largest]:g} have the lowest return, {floor:g}"
    return Finding("lowest return there can be", True, share, text)


def _seeds(seeds: int) -> Finding:
    """Intervals over few seeds are too narrow."""
    return Finding("seeds are enough", seeds >= FEW_SEEDS, seeds, f"{seeds} seeds")


def min_by_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Of `parts` [S, E, P] each, in every cell the one with the lowest mean, [S, E, P]."""
    stacked = np.stack(list(parts))
    lowest = stacked.mean(-1).argmin(0)
    return np.take_along_axis(stacked, lowest[None, :, :, None], 0)[0]


def _standard_error(values: np.ndarray) -> np.ndarray:
    """The standard error of the mean of `values` [..., P], [...]; 0 of a single one."""
    if values.shape[-1] < 2:
        return np.zeros(values.shape[:-1])
    return values.std(-1, ddof=1) / np.sqrt(values.shape[-1])


def statistics_error(returns: np.ndarray) -> float:
    """The standard error of the mean over the seeds of `returns` [S, P]; 0 of a single one."""
    return float(_standard_error(returns.mean(-1)))
