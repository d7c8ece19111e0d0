"""Statistics against independent definitions and known answers."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rlx import statistics
from rlx.benchmarks import atari100k


def test_iqm_is_the_mean_of_the_middle_half():
    values = np.random.default_rng(0).normal(size=20)
    assert statistics.iqm(values) == pytest.approx(np.sort(values)[5:15].mean())


@pytest.mark.parametrize("seed, episode", [(1, 0), (1, 1), (0.2, 2), (0, 1)])
def test_interval_covers_the_truth_about_as_often_as_it_says(seed, episode):
    """20 seeds play the same 30 episodes.

    Returns spread between seeds, between episodes, and from each seed in each episode.
    """
    rng = np.random.default_rng(0)
    hits = 0
    bootstrap = statistics.Bootstrap(20, 30, resamples=500)
    for _ in range(200):
        of_seeds = seed * rng.normal(size=(20, 1))
        of_episodes = episode * rng.normal(size=30)
        of_both = 0.5 * rng.normal(size=(20, 30))
        returns = of_seeds + of_episodes + of_both
        low, high = statistics.estimate(returns, bootstrap).ci95
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.995


def test_interval_reflects_seeds_not_the_number_of_episodes():
    seeds = np.random.default_rng(0).normal(size=(10, 1)) * 10
    few, many = (statistics.estimate(np.repeat(seeds, n, 1)).ci95 for n in (5, 500))
    assert few[1] - few[0] == pytest.approx(many[1] - many[0], rel=0.15)


def test_one_seed_has_no_interval():
    estimate = statistics.estimate(np.zeros((1, 50)))
    assert estimate.iqm == 0 and np.isnan(estimate.ci95).all()


def test_curve_of_a_known_decline():
    eps = np.array([0.0, 1.0, 2.0, 4.0])
    clean = np.full((4, 3), -100.0)
    returns = np.broadcast_to(np.array([-100.0, -200.0, -400.0, -500.0])[None, :, None], (4, 4, 3))
    curve = statistics.curve(returns, clean, -500.0, eps, statistics.Bootstrap(4, 3))
    np.testing.assert_allclose(curve.score, [1, 0.75, 0.25, 0])
    assert curve.area == pytest.approx((0.875 + 0.5 + 0.25) / 4)
    assert curve.critical_eps == pytest.approx(1.5)
    assert curve.area_ci95 == (pytest.approx(curve.area), pytest.approx(curve.area))
    assert curve.critical_eps_ci95 == (pytest.approx(1.5), pytest.approx(1.5))
    same = np.broadcast_to(clean[:, None], (4, 4, 3))
    unharmed = statistics.curve(same, clean, -500.0, eps, statistics.Bootstrap(4, 3))
    assert unharmed.area == pytest.approx(1) and unharmed.critical_eps == np.inf


def test_a_first_radius_that_already_costs_half_is_not_reported_as_the_critical_one():
    returns, clean = np.full((4, 2, 3), -450.0), np.full((4, 3), -100.0)
    curve = statistics.curve(
        returns, clean, -500.0, np.array([0.1, 0.2]), statistics.Bootstrap(4, 3)
    )
    assert curve.critical_eps == -np.inf and curve.critical_eps_ci95 == (-np.inf, -np.inf)


def test_resamples_without_a_score_are_left_out_and_counted():
    clean = np.repeat(np.array([-500.0, -500.0, -100.0, -100.0])[:, None], 3, 1)
    returns = np.stack([clean, clean - 50], 1)
    eps = np.array([0.0, 1.0])
    curve = statistics.curve(returns, clean, -500.0, eps, statistics.Bootstrap(4, 3))
    # The interquartile mean of four is that of the middle two. Both are at −500 when at least three
    # of the four draws are.
    assert curve.undefined == pytest.approx(5 / 16, abs=0.04)
    assert curve.area_ci95 == pytest.approx((0.875, 0.9375))


def test_agent_no_better_than_random_has_no_score():
    flat = np.full((3, 2, 4), -500.0)
    curve = statistics.curve(
        flat, flat[:, 0], -500.0, np.array([0.0, 1.0]), statistics.Bootstrap(3, 4)
    )
    assert np.isnan(curve.area)
    assert np.isnan(curve.critical_eps)
    assert np.isnan(curve.critical_eps_ci95).all()
    # Also of one seed, which has no resamples, it is told that there is no score.
    one = statistics.curve(
        flat[:1], flat[:1, 0], -500.0, np.array([0.0, 1.0]), statistics.Bootstrap(1, 4)
    )
    assert curve.undefined == one.undefined == 1.0


def test_human_normalised_scores_are_the_published_ones():
    """EfficientZero's mean is 1.943, its median 1.090 (Ye et al. 2021).

    Human play is 1, random play 0.
    """

    def summary(column, seeds):
        games = atari100k.SCORES.items()
        scores = [atari100k.normalised(game, getattr(known, column)) for game, known in games]
        return atari100k.summarise([np.full(seeds, score) for score in scores])

    for column, expected in (("random", 0.0), ("human", 1.0)):
        values = [value for value, _ in summary(column, seeds=3).values()]
        assert values == pytest.approx([expected] * 3)
    published = summary("efficientzero", seeds=1)
    assert published["mean"][0] == pytest.approx(1.943, abs=5e-4)
    assert published["median"][0] == pytest.approx(1.090, abs=5e-4)
    assert np.isnan(published["mean"][1]).all(), "one seed has no interval"


def test_intervals_over_games_draw_seeds_within_games():
    rng = np.random.default_rng(1)
    games = [rng.normal(level, 0.1, 10) for level in (0.0, 5.0, 10.0)]
    mean, (low, high) = atari100k.summarise(games)["mean"]
    assert low < mean < high
    width = 2 * 1.96 * 0.1 / 30**0.5
    assert high - low == pytest.approx(width, rel=0.35), "what differs between games is no error"


EPS = np.array([0.0, 1.0, 3.0])


def agents(seed, *counts):
    """Falling returns [S, 3, 8] at `EPS` of agents with so many seeds, who play the same episodes.

    They are between −40 and 130, and clean play is about 100.
    """
    rng = np.random.default_rng(seed)
    of_episodes = 20 * rng.normal(size=8)
    loss = np.array([0.0, 50.0, 90.0])[:, None]
    return [
        100
        - loss * rng.uniform(0.5, 1.4, (count, 1, 1))
        + rng.normal(size=(count, 3, 8)) * 5
        + of_episodes
        for count in counts
    ]


def compared(returns, eps=EPS, random=0.0, clean=100.0):
    """The robustness of each agent of `returns`, from bootstraps that are made for them all."""
    counts = [len(values) for values in returns]
    bootstraps = statistics.independent(counts, returns[0].shape[2])
    pairs = zip(returns, bootstraps, strict=True)
    return [statistics.Robustness.of(values, eps, random, clean, one) for values, one in pairs]


def plain_iqm(values):
    """The interquartile mean, as its definition reads."""
    cut = len(values) // 4
    return np.sort(values)[cut : len(values) - cut].mean()


def plain_critical(score):
    """The first radius of `EPS` where the score is ½, at most 3, for a score that begins higher."""
    for number in range(1, len(EPS)):
        if score[number] <= 0.5:
            share = (score[number - 1] - 0.5) / (score[number - 1] - score[number])
            return EPS[number - 1] + share * (EPS[number] - EPS[number - 1])
    return EPS[-1]


def test_differences_are_those_of_a_plain_bootstrap():
    """Seeds of each agent drawn by themselves, episodes once for both, resample by resample."""
    returns = agents(0, 6, 9)
    bootstraps = statistics.independent([6, 9], 8)
    result = statistics.Comparison.of(*compared(returns))
    rows = []
    for resample in range(statistics.RESAMPLES):
        measured = []
        for values, bootstrap in zip(returns, bootstraps, strict=True):
            drawn = values[bootstrap.seeds[resample]] @ bootstraps[0].weights[resample]
            score = np.array([plain_iqm(column) for column in drawn.T]) / 100
            area = ((score[0] + score[1]) / 2 + (score[1] + score[2])) / 3
            areas = ((drawn[:, 0] + drawn[:, 1]) / 2 + drawn[:, 1] + drawn[:, 2]) / 300
            measured.append((score, area, plain_critical(score), areas))
        (score, area, critical, areas), (score_2, area_2, critical_2, areas_2) = measured
        larger = np.mean([one > other for one in areas for other in areas_2])
        rows.append([*(100 * (score - score_2)), area - area_2, critical - critical_2, larger])
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    found = [result.returns.ci95[:, number] for number in range(3)]
    found += [result.area.ci95, result.critical_eps.ci95, result.probability.ci95]
    np.testing.assert_allclose(np.array(found).T, [low, high], atol=1e-9)
    means = [np.array([plain_iqm(column) for column in one.mean(2).T]) for one in returns]
    np.testing.assert_allclose(result.returns.value, means[0] - means[1])


def test_seeds_are_drawn_apart_and_episodes_together():
    first, second = statistics.independent([10, 10], 30)
    assert (first.weights == second.weights).all()
    assert 0.05 < (first.seeds == second.seeds).mean() < 0.15, "a tenth, by chance"


def test_a_hard_start_state_leaves_the_difference():
    of_episodes = 50 * np.random.default_rng(0).normal(size=20)
    first = np.broadcast_to(100 + of_episodes, (5, 3, 20))
    good, bad = compared([first, first - 7])
    assert np.ptp(good.returns.ci95[:, 0]) > 20
    difference = statistics.Comparison.of(good, bad)
    np.testing.assert_allclose(difference.returns.ci95, 7)
    assert difference.area.ci95 == pytest.approx([0.07, 0.07])


def test_the_interval_of_a_difference_covers_the_truth():
    """12 and 8 seeds, equally good, spread between seeds and between episodes."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        of_episodes = rng.normal(size=15)
        returns = []
        for count in (12, 8):
            of_both = 0.5 * rng.normal(size=(count, 15))
            returns.append((rng.normal(size=(count, 1)) + of_episodes + of_both)[:, None])
        bootstraps = statistics.independent([12, 8], 15, resamples=300)
        one, other = (
            statistics.Robustness.of(values, np.zeros(1), 0.0, 1.0, bootstrap)
            for values, bootstrap in zip(returns, bootstraps, strict=True)
        )
        low, high = statistics.Comparison.of(one, other).area.ci95
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.995


def test_the_other_way_round_only_the_sign_changes():
    first, second = compared(agents(1, 5, 7))
    there = statistics.Comparison.of(first, second)
    back = statistics.Comparison.of(second, first)
    for name in ("returns", "area", "critical_eps"):
        one, other = getattr(there, name), getattr(back, name)
        np.testing.assert_allclose(one.value, -other.value)
        np.testing.assert_allclose(one.ci95, -other.ci95[::-1])
    assert there.probability.value == pytest.approx(1 - back.probability.value)
    np.testing.assert_allclose(there.probability.ci95, 1 - back.probability.ci95[::-1])


def resampled(*values):
    """A statistic of several seeds that is the same in its one resample."""
    array = np.array(values, dtype=np.float64)
    return statistics.Resampled(array, array[None])


def test_probability_counts_a_tie_half():
    first, second = resampled(1, 2, 2), resampled(2, 0)
    probability = statistics.probability_of_improvement(first, second)
    assert probability.value == pytest.approx((0 + 1 + 0.5 + 1 + 0.5 + 1) / 6)
    whitney = mannwhitneyu(first.value, second.value).statistic
    assert probability.value == pytest.approx(whitney / 6)
    assert statistics.probability_of_improvement(second, first).value == pytest.approx(2 / 6)


def test_equal_agents_tie_in_every_resample():
    """Matrix products of 3 and of 100 rows may round differently; that decides no pair."""
    full = np.full((100, 3, 19), 1 / 3)
    few, many = compared([full[:3], full])
    probability = statistics.Comparison.of(few, many).probability
    assert probability.value == 0.5 and (probability.resampled == 0.5).all()


def test_a_profile_is_the_share_of_seeds_and_radii_above_a_score():
    scores = np.array([[1.0, 0.8, 0.2], [1.0, 0.4, 0.0]])
    (result,) = compared([np.repeat(100 * scores[:, :, None], 8, 2)])
    # The radii 0, 1 and 3 weigh 1/6, 1/2 and 1/3, as trapezoids have it.
    share = result.profile(np.array([-0.1, 0.1, 0.3, 0.5, 0.9, 1.0])).value
    expected = [1, 1 - 1 / 6, 1 - 1 / 3, 1 / 6 + 1 / 4, 1 / 6, 0]
    np.testing.assert_allclose(share, expected)
    levels = np.linspace(0, 1, 2_001)
    area = np.trapezoid(result.profile(levels).value, levels)
    assert area == pytest.approx(result.seed_areas.value.mean(), abs=1e-3)
    low, high = result.profile(np.array([0.5])).ci95
    np.testing.assert_allclose([low[0], high[0]], [1 / 6, 1 / 6 + 1 / 2])


def test_critical_radii_beyond_the_grid_count_as_its_end():
    loss = {"never": [0, 1, 2], "late": [0, 25, 75], "early": [80, 90, 95]}
    returns = [
        100 - np.broadcast_to(np.array(one)[None, :, None], (4, 3, 8)) for one in loss.values()
    ]
    never, late, early = compared(returns)
    assert never.critical_eps.value == np.inf and (never.critical_eps_ci95 == np.inf).all()
    assert late.critical_eps.value == pytest.approx(2)
    assert early.critical_eps.value == 0
    assert statistics.Comparison.of(never, late).critical_eps.value == pytest.approx(1)
    assert statistics.Comparison.of(never, early).critical_eps.value == pytest.approx(3)
    both = statistics.Comparison.of(never, never).critical_eps
    assert np.isnan(both.value) and np.isnan(both.ci95).all()


def test_what_was_worse_from_the_start_is_not_robust_in_the_common_score():
    good, bad = (np.full((4, 3, 8), value) for value in (100.0, 40.0))
    result, worse = compared([good, bad])
    assert result.area.value == pytest.approx(1)
    assert worse.area.value == pytest.approx(0.4) and worse.critical_eps.value == 0


def test_a_single_seed_has_values_and_no_intervals():
    one, many = compared(agents(2, 1, 6))
    result = statistics.Comparison.of(one, many)
    for statistic in (result.returns, result.area, result.critical_eps, result.probability):
        assert np.isfinite(statistic.value).all() and np.isnan(statistic.ci95).all()
    assert np.isnan(one.critical_eps_ci95).all()
    assert np.isnan(one.profile(np.array([0.5])).ci95).all()
    assert np.isfinite(one.profile(np.array([0.5])).value).all()
