"""Statistics against independent definitions and known answers."""

import numpy as np
import pytest

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
