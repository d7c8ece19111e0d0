"""Statistics over training seeds, the unit of replication.

They are interquartile means (Agarwal et al. 2021, arXiv:2108.13264), bootstrap intervals and
robustness curves. All seeds play the same episodes, from the same start states, so that cells can
be compared; seeds and episodes are crossed, and the bootstrap draws both (Owen 2007,
doi:10.1214/07-AOAS122): what is hard about a start state is hard for every seed, and does not
average out over them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from rlx.rollout import Episodes

RESAMPLES = 2000
LEVEL = 95.0
"""Percent of the resamples within an interval."""
TAILS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)
"""The percentiles that are the ends of an interval."""

Array = NDArray[np.float64]


def iqm(values: Array, axis: int = 0) -> Array:
    """Interquartile mean along `axis`: the mean without the lowest and the highest quarter."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


class Bootstrap:
    """Resamples of S seeds and of the P episodes that all of them played.

    They are the same at every call, so that all cells of a study are resampled alike.
    """

    def __init__(self, seeds: int, episodes: int, resamples: int = RESAMPLES, rng: int = 0):
        generator = np.random.default_rng(rng)
        self.seeds = generator.integers(seeds, size=(resamples, seeds))
        """The seeds of each resample, [resamples, S]."""
        counts = generator.multinomial(episodes, np.full(episodes, 1 / episodes), resamples)
        self.weights = counts / episodes
        """The weight of each episode in its mean, [resamples, P]."""

    def means(self, values: Array) -> Array:
        """The mean of `values` [S, P] over the resampled episodes, [resamples, S].

        It is that of each resampled seed, so that a seed may be there several times.
        """
        means = self.weights @ values.T
        return np.take_along_axis(means, self.seeds, 1)

    def iqms(self, returns: Array) -> Array:
        """The interquartile mean of `returns` [S, P] in each resample, [resamples].

        It is over the resampled seeds, of their means over the resampled episodes.
        """
        return iqm(self.means(returns), axis=1)


def independent(seeds: Sequence[int], episodes: int, resamples: int = RESAMPLES) -> list[Bootstrap]:
    """Resamples for several agents, of so many `seeds` each, that played the same P `episodes`.

    The seeds of each agent are drawn by themselves, the episodes jointly: a start state that is
    hard is so for all agents, and leaves the difference between two of them.
    """
    bootstraps: list[Bootstrap] = []
    for number, count in enumerate(seeds):
        bootstrap = Bootstrap(count, episodes, resamples, rng=number)
        if bootstraps:
            bootstrap.weights = bootstraps[0].weights
        bootstraps.append(bootstrap)
    return bootstraps


def one_of_many(number: int, seeds: int, episodes: int) -> Bootstrap:
    """Resamples for the agent `number` of many, drawn as `independent` draws those of a few.

    The episodes are drawn jointly for all agents that have played as many.
    """
    bootstrap = Bootstrap(seeds, 1, rng=number)
    bootstrap.weights = _episode_weights(episodes)
    return bootstrap


@cache
def _episode_weights(episodes: int) -> Array:
    """The weight of each episode in its mean, [resamples, P]; the same for all agents."""
    return Bootstrap(1, episodes).weights


def interval(resampled: Array) -> Array:
    """95 % percentile interval [2, …] of statistics [resamples, …]."""
    return np.percentile(resampled, TAILS, axis=0)


NO_INTERVAL = (float("nan"), float("nan"))
"""The interval over a single seed, which says nothing about the spread of seeds."""


@dataclass(frozen=True)
class Estimate:
    """The return of S seeds."""

    per_seed: Array
    """The mean over each seed's episodes, [S]."""
    iqm: float
    """The interquartile mean over seeds."""
    ci95: tuple[float, float]
    """The bootstrap interval of `iqm`; NaN with one seed (see `NO_INTERVAL`)."""

    def as_dict(self) -> dict[str, object]:
        """The estimate as summary.json has it."""
        return {"per_seed": self.per_seed, "iqm": self.iqm, "ci95": self.ci95}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Estimate":
        """The estimate that `as_dict` gave."""
        low, high = values["ci95"]
        return cls(np.array(values["per_seed"], dtype=np.float64), values["iqm"], (low, high))


def estimate(returns: Array, bootstrap: Bootstrap | None = None) -> Estimate:
    """The estimate of `returns` [S, P]: S seeds, P episodes of each."""
    per_seed = returns.mean(1)
    value = float(iqm(per_seed))
    if len(returns) == 1:
        return Estimate(per_seed, value, NO_INTERVAL)
    if bootstrap is None:
        bootstrap = Bootstrap(*returns.shape)
    low, high = interval(bootstrap.iqms(returns))
    return Estimate(per_seed, value, (float(low), float(high)))


@dataclass(frozen=True)
class Curve:
    """What one attack did as its radius grew over a grid of E radii."""

    score: Array
    """(J(eps) − random) / (clean − random), [E]: 1 is unharmed, 0 is as good as random play."""
    area: float
    """The mean score over the range of the grid (by trapezoids), so that 1 is full robustness."""
    area_ci95: tuple[float, float]
    """The bootstrap interval of `area`."""
    critical_eps: float
    """The smallest radius, interpolated, where the score is at most ½.

    It is infinite if there is none, and minus infinity if the score is that low at the first radius
    of a grid that does not begin at 0.
    """
    critical_eps_ci95: tuple[float, float]
    """The bootstrap interval of `critical_eps`."""
    undefined: float
    """The share of the resamples in which clean play is no better than random play.

    Such a resample has no score, and both intervals leave it out. Of one seed, which is not
    resampled, it is 0 or 1.
    """


def curve(returns: Array, clean: Array, random: float, eps: Array, bootstrap: Bootstrap) -> Curve:
    """The curve of `returns` [S, E, P] at the radii `eps` [E].

    `clean` are the returns [S, P] without an attack, `random` the mean return of random play.
    """
    score = _score(iqm(returns.mean(2)), float(iqm(clean.mean(1))), random)
    area = float(_area(score, eps))
    critical = _critical(score, eps)
    if len(returns) == 1:
        return Curve(score, area, NO_INTERVAL, critical, NO_INTERVAL, float(np.isnan(area)))
    resampled = np.stack([bootstrap.iqms(returns[:, e]) for e in range(len(eps))], 1)
    scores = _score(resampled, bootstrap.iqms(clean)[:, None], random)
    defined = ~np.isnan(scores[:, 0])
    if defined.any():
        scores = scores[defined]
    area_low, area_high = interval(_area(scores, eps))
    criticals = np.array([_critical(resample, eps) for resample in scores])
    # Percentiles by order: an infinite critical radius has no interpolation with a finite one.
    low, high = np.percentile(criticals, TAILS, method="closest_observation")
    return Curve(
        score=score,
        area=area,
        area_ci95=(float(area_low), float(area_high)),
        critical_eps=critical,
        critical_eps_ci95=(float(low), float(high)),
        undefined=float(1 - defined.mean()),
    )


def area_under(returns: Array, clean: float, random: float, eps: Sequence[float]) -> float:
    """The area of the curve of `returns` [E] at the radii `eps`, as `Curve.area` has it.

    `clean` is the return without an attack, `random` that of random play.
    """
    return float(_area(_score(returns, clean, random), np.asarray(eps)))


def _score(returns: Array, clean: float | Array, random: float) -> Array:
    """Where `returns` lie between random play, 0, and clean play, 1."""
    span = np.asarray(clean - random)
    # An agent no better than random has no robustness to lose.
    positive = span > 0
    return np.where(positive, (returns - random) / np.where(positive, span, 1.0), np.nan)


def _area(score: Array, eps: Array) -> Array:
    """The mean of `score` [..., E] over the range of `eps` [E], [...]."""
    if len(eps) == 1:
        return score[..., 0]
    return np.trapezoid(score, eps, axis=-1) / (eps[-1] - eps[0])


def _critical(score: Array, eps: Array, level: float = 0.5) -> float:
    """The smallest radius where `score` [E] is at most `level`; see `Curve.critical_eps`."""
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


@dataclass(frozen=True)
class Resampled:
    """A statistic [*X], of any shape, and its values in the resamples of a bootstrap."""

    value: Array
    """The statistic of what was measured, [*X]."""
    resampled: Array
    """The statistic of each resample, [resamples, *X]; NaN where a single seed was measured."""

    @property
    def ci95(self) -> Array:
        """The bootstrap interval, [2, *X]."""
        return interval(self.resampled)

    def __sub__(self, other: "Resampled") -> "Resampled":
        """The difference, resample by resample."""
        return Resampled(self.value - other.value, self.resampled - other.resampled)


@dataclass(frozen=True)
class Robustness:
    """What an attack did to S seeds, in a score that several agents have in common.

    Unlike that of `Curve`, its 0 and its 1 are fixed numbers, the same for all agents and in all
    resamples.
    """

    eps: Array
    """The radii, [E]."""
    returns: Resampled
    """The interquartile mean over seeds of the return, [E]."""
    seed_scores: Resampled
    """The score of each seed, [S, E]."""
    seed_areas: Resampled
    """The mean score of each seed over the range of the grid, [S]."""
    area: Resampled
    """The area of the score of `returns`, [], as in `Curve`."""
    critical_eps: Resampled
    """The smallest radius where the score of `returns` is at most ½, [], as in `Curve`."""

    @classmethod
    def of(
        cls, returns: Array, eps: Array, random: float, clean: float, bootstrap: Bootstrap
    ) -> "Robustness":
        """The robustness of `returns` [S, E, P] at the radii `eps` [E].

        The score is 0 at the return `random` and 1 at the return `clean`, which is higher.
        """
        per_seed = returns.mean(2)
        resampled = np.stack([bootstrap.means(returns[:, e]) for e in range(len(eps))], 2)
        if len(returns) == 1:
            resampled = np.full_like(resampled, np.nan)
        return_iqms = Resampled(iqm(per_seed), iqm(resampled, axis=1))
        score = _score(return_iqms.value, clean, random)
        scores = _score(return_iqms.resampled, clean, random)
        seed_scores = Resampled(_score(per_seed, clean, random), _score(resampled, clean, random))
        criticals = np.array([_critical(resample, eps) for resample in scores])
        return cls(
            eps=eps,
            returns=return_iqms,
            seed_scores=seed_scores,
            seed_areas=Resampled(_area(seed_scores.value, eps), _area(seed_scores.resampled, eps)),
            area=Resampled(_area(score, eps), _area(scores, eps)),
            critical_eps=Resampled(np.array(_critical(score, eps)), criticals),
        )

    @property
    def critical_eps_ci95(self) -> Array:
        """The bootstrap interval of `critical_eps`, [2]; by order, as `Curve` has it."""
        return np.percentile(self.critical_eps.resampled, TAILS, method="closest_observation")

    @property
    def critical_eps_in_grid(self) -> Resampled:
        """`critical_eps`, where one beyond an end of the grid counts as that end, []."""
        value = self.critical_eps.value.clip(self.eps[0], self.eps[-1])
        return Resampled(value, self.critical_eps.resampled.clip(self.eps[0], self.eps[-1]))

    def profile(self, levels: Array) -> Resampled:
        """The share of seeds × radii with a score above each of the `levels` [L], [L].

        It is a performance profile (Agarwal et al. 2021) with radii in the place of tasks. A radius
        weighs as much as in the area, which makes the area below a profile the mean `seed_areas`.
        """
        weights = _area(np.eye(len(self.eps)), self.eps)
        resampled = self.seed_scores.resampled
        share = np.stack([(self.seed_scores.value > level).mean(0) @ weights for level in levels])
        shares = np.stack([(resampled > level).mean(1) @ weights for level in levels], 1)
        if np.isnan(resampled).any():
            shares = np.full_like(shares, np.nan)
        return Resampled(share, shares)


@dataclass(frozen=True)
class Comparison:
    """How much more robust one agent is than another: the first minus the second."""

    returns: Resampled
    """The difference of the interquartile mean return, at each radius, [E]."""
    area: Resampled
    """The difference of the area under the score, []."""
    critical_eps: Resampled
    """The difference of the critical radii, [], where one beyond an end of the grid counts as that
    end. NaN where both are beyond the same end, since nothing is known of their difference."""
    probability: Resampled
    """The probability that a random seed of the first has a larger area than one of the second."""

    @classmethod
    def of(cls, first: Robustness, second: Robustness) -> "Comparison":
        """The comparison of two agents, resampled by `independent` bootstraps."""
        critical = first.critical_eps_in_grid - second.critical_eps_in_grid
        infinite = np.isinf(first.critical_eps.value)
        if infinite and first.critical_eps.value == second.critical_eps.value:
            critical = Resampled(
                np.full_like(critical.value, np.nan), np.full_like(critical.resampled, np.nan)
            )
        return cls(
            returns=first.returns - second.returns,
            area=first.area - second.area,
            critical_eps=critical,
            probability=probability_of_improvement(first.seed_areas, second.seed_areas),
        )


def share_above(seeds: Resampled, levels: Array) -> Resampled:
    """The share of `seeds` [S] above each of the `levels` [L], [L]: a performance profile."""
    share = np.stack([(seeds.value > level).mean() for level in levels])
    shares = np.stack([(seeds.resampled > level).mean(1) for level in levels], 1)
    if np.isnan(seeds.resampled).any():
        shares = np.full_like(shares, np.nan)
    return Resampled(share, shares)


TIE = 1e-9
"""Scores that differ by less are equal: matrix products of other shapes round otherwise."""


def probability_of_improvement(first: Resampled, second: Resampled) -> Resampled:
    """The probability [] that one of `first` [S] is larger than one of `second` [S'].

    It is the share of pairs, ties counted half: the statistic of Mann and Whitney, over S · S'.
    """
    return Resampled(
        _share_larger(first.value, second.value),
        _share_larger(first.resampled, second.resampled),
    )


def _share_larger(first: Array, second: Array) -> Array:
    """The share [...] of pairs in which the one of `first` [..., S] is larger than of `second`."""
    difference = first[..., :, None] - second[..., None, :]
    difference[np.abs(difference) <= TIE] = 0
    return np.heaviside(difference, 0.5).mean((-2, -1))


@dataclass(frozen=True)
class Statistic:
    """A number that is reported of each seed's episodes beside the return."""

    key: str
    """The key in summary.json."""
    column: str
    """The column in printed tables."""
    form: str
    """The format of a printed number, as in "{:.0%}"."""
    of: "Callable[[Episodes], Tensor]"
    """The function that makes episodes [S, P] into a number for each seed, [S]."""

    def texts(self, values: "Tensor") -> list[str]:
        """The `values` [S] as the printed table has them."""
        return [self.form.format(value) for value in values.tolist()]


TRUNCATION_RATE = Statistic(
    key="truncation_rate",
    column="at the time limit",
    form="{:.0%}",
    of=lambda episodes: episodes.truncated.double().mean(1),
)
"""The share of the episodes that ended at the time limit."""

STATISTICS = (TRUNCATION_RATE,)
"""What training and rlx evaluate report of each seed. A new statistic is one more of these."""
