"""A study's cells: what a new statistic needs, and the files' columns and keys, which are kept."""

import csv
from dataclasses import dataclass

import numpy as np
import pytest

from rlx import statistics
from rlx.robustness import study
from rlx.robustness.clean_states import CleanStates
from rlx.robustness.study import Cell, Study
from rlx.robustness.sweep import Played

EPS = [0.0, 0.5, 1.0]
SEEDS, EPISODES = 4, 3
GOAL_FLIPS = [[0, 0, 0], [1, 0, 0], [1, 0, 1]]
NOT_LOOKED_AT = CleanStates({}, {})


def played(returns):
    """Episodes of two heads, of which the goal takes a tenth of the decisions."""
    shape = (SEEDS, len(EPS), EPISODES)
    flips = np.broadcast_to(np.array([0, 1, 2])[None, :, None], shape)
    return Played(
        returns=np.broadcast_to(np.array(returns)[None, :, None], shape),
        lengths=np.full(shape, 10),
        truncated=np.broadcast_to(np.array([False, False, True])[None, :, None], shape),
        decisions={"goal": np.full(shape, 1), "action": np.full(shape, 10)},
        flips={"goal": np.broadcast_to(GOAL_FLIPS, shape), "action": flips},
    )


def study_of(episodes):
    clean = np.full((SEEDS, EPISODES), 10.0)
    return Study.of("fgsm", EPS, clean, 0.0, {"both": episodes}, NOT_LOOKED_AT, -np.inf)


@pytest.fixture
def result():
    return study_of(played([10.0, 6.0, 4.0]))


def test_cells_hold_the_rates_of_all_heads_and_of_each(result):
    clean, middle, last = result.cells["both"]
    assert clean.flip_rate == 0 and clean.truncation_rate == 0 and clean.score == 1
    assert middle.flip_rate == pytest.approx((1 + 3) / 33)
    assert last.flip_rate_per_head == {"goal": 2 / 3, "action": 6 / 30}
    assert last.truncation_rate == 1 and last.score == pytest.approx(0.4)
    assert last.returns.iqm == 4


def test_the_columns_and_keys_of_the_files_are_kept(result, tmp_path):
    result.write_csv(tmp_path / "robustness.csv")
    with open(tmp_path / "robustness.csv") as file:
        rows = list(csv.reader(file))
    rates = ["score", "flip_rate", "truncation_rate"]
    assert rows[0] == ["attack", "head", "eps", "iqm", "ci95_low", "ci95_high", *rates]
    assert rows[3] == ["fgsm", "both", "1.0", "4.0", "4.0", "4.0", "0.4", str(8 / 33), "1.0"]
    assert list(result.summary()) == [
        "eps",
        "clean",
        "random",
        "cells",
        "area",
        "area_ci95",
        "critical_eps",
        "critical_eps_ci95",
        "undefined_resamples",
        "audit",
        "converged",
    ]
    assert list(result.summary()["cells"][0]) == [
        "attack",
        "head",
        "eps",
        "return",
        "score",
        "flip_rate",
        "flip_rate_per_head",
        "movable_per_head",
        "winners",
        "truncation_rate",
    ]


def test_a_new_statistic_is_one_field():
    """It comes into summary.json, robustness.csv and the printed table by itself."""

    @dataclass(frozen=True, kw_only=True)
    class More(Cell):
        longest: float = study._printed_share("longest", "share of the longest episode")

    cell = More(
        attack="fgsm",
        mode="action",
        eps=0.1,
        returns=statistics.estimate(np.zeros((2, 3))),
        score=0.5,
        flip_rate=0.25,
        flip_rate_per_head={"action": 0.25},
        movable_per_head={},
        winners={},
        truncation_rate=1.0,
        longest=0.75,
    )
    assert cell.as_dict()["longest"] == 0.75
    assert cell.row()["longest"] == 0.75
    assert dict(zip(More.columns(), cell.shares(), strict=True)) == {
        "flipped": "25%",
        "at the time limit": "100%",
        "longest": "75%",
    }
    assert More.words().endswith(", share of the longest episode")


def test_critical_radii_beyond_the_grid_say_on_which_side(result):
    assert result.critical_text("both") == "0.75 [0.75, 0.75]"
    unharmed = study_of(played([10.0, 9.0, 8.0]))
    assert unharmed.critical_text("both") == ">1 [>1, >1]"
    assert unharmed.summary()["critical_eps"] == {"both": ">1"}


def test_an_episode_that_nobody_harmed_is_nobodys():
    episodes = played([10.0, 10.0, 4.0])
    episodes.attacks = ["noise", "planned"]
    episodes.attack = np.zeros((SEEDS, len(EPS), EPISODES), dtype=np.int64)
    episodes.attack[:, 2, :2] = 1
    winners = [cell.winners for cell in study_of(episodes).cells["both"]]
    assert winners[0] == winners[1] == {"noise": 0.0, "planned": 0.0, "none": 1.0}
    assert winners[2] == pytest.approx({"noise": 1 / 3, "planned": 2 / 3, "none": 0.0})
