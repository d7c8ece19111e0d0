"""Grids, seeds and typed configs."""

import math
from dataclasses import dataclass

import pytest

from rlx.config import build
from rlx.errors import ConfigError
from rlx.grids import parse_grid, parse_seeds


def test_grid_includes_its_end_exactly():
    grid = parse_grid("0:0.03:0.0025", "eps")
    assert len(grid) == 13 and grid[-1] == 0.03 and grid[3] == 0.0075
    assert parse_grid("8/255", "eps") == [8 / 255]
    assert parse_grid([0, 0.01], "eps") == [0, 0.01]
    assert parse_grid(["0:0.02:0.01", "1/8"], "eps") == [0, 0.01, 0.02, 0.125]
    assert parse_grid(0.5, "eps") == [0.5]


@pytest.mark.parametrize(
    "bad", ["0.03:0:0.01", "0:1:0", "0:1:-1", "-0.1", "1:2", "a", "", [], "nan", "inf", "1/0"]
)
def test_bad_grids_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match="^eps="):
        parse_grid(bad, "eps")


def test_seeds_are_a_count_a_range_or_a_list():
    assert parse_seeds(3) == parse_seeds("3") == parse_seeds("0:3") == [0, 1, 2]
    assert parse_seeds([7, 3]) == [7, 3] and parse_seeds(["5:7", 9]) == [5, 6, 9]
    for bad in (0, "3:3", "a", [1, 1], -1, "1:2:3"):
        with pytest.raises(ConfigError, match="^seeds="):
            parse_seeds(bad)


@dataclass(frozen=True)
class Example:
    steps: int
    rate: float
    name: str
    sizes: list[int]
    limit: float | None
    scale: str | list[float] = "std"


GOOD = {"steps": 1, "rate": 0.5, "name": "x", "sizes": [1, 2], "limit": None}


def test_values_become_the_types_declared():
    built = build(Example, GOOD | {"steps": 1e6, "rate": 1, "limit": 3}, "agent")
    assert built == Example(1_000_000, 1.0, "x", [1, 2], 3.0) and type(built.rate) is float


def test_fractions_are_numbers():
    built = build(Example, GOOD | {"rate": "8/255", "limit": "1/2", "name": "1/2"}, "agent")
    assert built == Example(1, 8 / 255, "1/2", [1, 2], 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, "agent.stepz: unknown key. Did you mean 'agent.steps'?"),
        ({"steps": 1.5}, "agent.steps=1.5: expected a whole number"),
        ({"steps": "???"}, "agent.steps: missing"),
        ({"rate": "fast"}, "agent.rate=fast: expected a number, not a word"),
        ({"rate": "1/0"}, "agent.rate=1/0: expected a number, not a word"),
        ({"rate": math.inf}, "agent.rate=inf: expected a finite number"),
        ({"limit": math.nan}, "agent.limit=nan: expected a finite number"),
        ({"scale": [1, math.inf]}, "agent.scale=inf: expected a finite number"),
        ({"sizes": [1, "a"]}, "agent.sizes=a: expected a whole number"),
        ({"name": True}, "agent.name=True: expected a word, not true or false"),
    ],
)
def test_errors_name_key_value_and_what_was_expected(change, message):
    with pytest.raises(ConfigError) as error:
        build(Example, GOOD | change, "agent")
    assert message in str(error.value)
