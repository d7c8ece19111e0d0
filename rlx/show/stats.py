"""Statistics over training seeds, the unit of replication: interquartile means, bootstrap intervals, robustness curves.

Agarwal et al. 2021 (arXiv:2108.13264) for the interquartile mean. All seeds play the same episodes, from the same start states, so
that cells can be compared; seeds and episodes are crossed, and the bootstrap draws both (Owen 2007, doi:10.1214/07-AOAS122): what is
hard about a start state is hard for every seed, and does not average out over them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 95.0

Array = NDArray[np.float64]


def iqm(values: Array, axis: int = 0) -> Array:
    """Interquartile mean along `axis`: the mean without the lowest and the highest quarter."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


class Bootstrap:
    """Resamples of S seeds and of the P episodes that all of them played: the same ones at every call, so that all cells of a study
    are resampled alike."""

    def __init__(self, seeds: int, episodes: int, resamples: int = RESAMPLES, rng: int = 0):
        generator = np.random.default_rng(rng)
        self.seeds = generator.integers(seeds, size=(resamples, seeds))
        self.weights = (
            generator.multinomial(episodes, np.full(episodes, 1 / episodes), resamples) / episodes
        )

    def iqms(self, returns: Array) -> Array:
        """Interquartile means [resamples] of `returns` [S, P]: mean over resampled episodes, then over resampled seeds."""
        return iqm(np.take_along_axis(self.weights @ returns.T, self.seeds, 1), axis=1)


def interval(resampled: Array) -> Array:
    """95 % percentile interval [2, …] of statistics [resamples, …]."""
    tail = (100 - LEVEL) / 2
    return np.percentile(resampled, [tail, 100 - tail], axis=0)


@dataclass(frozen=True)
class Estimate:
    """A return over seeds."""

    per_seed: Array
    """Mean over episodes, [S]."""
    iqm: float
    ci95: tuple[float, float]
    """Bootstrap interval of the interquartile mean; NaN with one seed, from which nothing follows about another."""

    def as_dict(self) -> dict[str, object]:
        return {"per_seed": self.per_seed, "iqm": self.iqm, "ci95": self.ci95}


def estimate(returns: Array, bootstrap: Bootstrap | None = None) -> Estimate:
    """Of `returns` [S, P]: S seeds, P episodes each."""
    per_seed = returns.mean(1)
    low, high = np.nan, np.nan
    if len(returns) > 1:
        low, high = interval((bootstrap or Bootstrap(*returns.shape)).iqms(returns))
    return Estimate(per_seed, float(iqm(per_seed)), (float(low), float(high)))


@dataclass(frozen=True)
class Curve:
    """What one attack did as its radius grew. `score` is (J(eps) − random) / (clean − random): 1 unharmed, 0 as good as random."""

    score: Array
    """[E]."""
    area: float
    """Mean score over the grid's range (trapezoids), so 1 is full robustness."""
    area_ci95: tuple[float, float]
    critical_eps: float
    """Smallest radius, interpolated, where the score is at most ½; infinite if it never is, minus infinity if it already is
    at the first radius of a grid that does not begin at 0."""
    critical_eps_ci95: tuple[float, float]
    undefined: float
    """Share of the resamples in which clean play is no better than random play. They have no score, and both intervals are
    those of the others."""


def curve(returns: Array, clean: Array, random: float, eps: Array, bootstrap: Bootstrap) -> Curve:
    """Of `returns` [S, E, P] at radii `eps` [E], with `clean` returns [S, P] and the mean `random` return."""
    per_cell = iqm(returns.mean(2))
    score = _score(per_cell, float(iqm(clean.mean(1))), random)
    if len(returns) < 2:
        nothing = (np.nan, np.nan)
        return Curve(score, float(_area(score, eps)), nothing, _critical(score, eps), nothing, 0.0)
    resampled = np.stack([bootstrap.iqms(returns[:, e]) for e in range(len(eps))], 1)
    scores = _score(resampled, bootstrap.iqms(clean)[:, None], random)
    defined = ~np.isnan(scores[:, 0])
    scores = scores[defined] if defined.any() else scores
    areas = _area(scores, eps)
    critical = np.array([_critical(s, eps) for s in scores])
    # Percentiles by order: an infinite critical radius has no interpolation with a finite one.
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(critical, [tail, 100 - tail], method="closest_observation")
    area_low, area_high = interval(areas)
    area_ci95, critical_ci95 = (float(area_low), float(area_high)), (float(low), float(high))
    return Curve(
        score,
        float(_area(score, eps)),
        area_ci95,
        _critical(score, eps),
        critical_ci95,
        float(1 - defined.mean()),
    )


def _score(returns: Array, clean: float | Array, random: float) -> Array:
    span = np.asarray(clean - random)
    # An agent no better than random has no robustness to lose.
    return np.where(span > 0, (returns - random) / np.where(span > 0, span, 1.0), np.nan)


def _area(score: Array, eps: Array) -> Array:
    if len(eps) == 1:
        return score[..., 0]
    return np.trapezoid(score, eps, axis=-1) / (eps[-1] - eps[0])


def _critical(score: Array, eps: Array, level: float = 0.5) -> float:
    if np.isnan(score).any():
        return float("nan")
    below = np.flatnonzero(score <= level)
    if not len(below):
        return float("inf")
    i = below[0]
    if i == 0:
        return float(eps[0]) if eps[0] == 0 else -float("inf")
    drop = score[i - 1] - score[i]
    return float(eps[i - 1] + (score[i - 1] - level) / drop * (eps[i] - eps[i - 1]))
