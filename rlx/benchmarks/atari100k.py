"""The Atari 100k benchmark (Kaiser et al. 2020): 26 games, 100,000 decisions each.

Scores are shares of a human's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from rlx import statistics
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.runs.run import Run
from rlx.show import console

STEPS = 100_000
"""Decisions per game."""


class Published(NamedTuple):
    """Returns of one game (Ye et al. 2021, table 1)."""

    random: float
    human: float
    efficientzero: float


SCORES = {
    "alien": Published(227.8, 7127.7, 808.5),
    "amidar": Published(5.8, 1719.5, 148.6),
    "assault": Published(222.4, 742.0, 1263.1),
    "asterix": Published(210.0, 8503.3, 25557.8),
    "bank_heist": Published(14.2, 753.1, 351.0),
    "battle_zone": Published(2360.0, 37187.5, 13871.2),
    "boxing": Published(0.1, 12.1, 52.7),
    "breakout": Published(1.7, 30.5, 414.1),
    "chopper_command": Published(811.0, 7387.8, 1117.3),
    "crazy_climber": Published(10780.5, 35829.4, 83940.2),
    "demon_attack": Published(152.1, 1971.0, 13003.9),
    "freeway": Published(0.0, 29.6, 21.8),
    "frostbite": Published(65.2, 4334.7, 296.3),
    "gopher": Published(257.6, 2412.5, 3260.3),
    "hero": Published(1027.0, 30826.4, 9315.9),
    "jamesbond": Published(29.0, 302.8, 517.0),
    "kangaroo": Published(52.0, 3035.0, 724.1),
    "krull": Published(1598.0, 2665.5, 5663.3),
    "kung_fu_master": Published(258.5, 22736.3, 30944.8),
    "ms_pacman": Published(307.3, 6951.6, 1281.2),
    "pong": Published(-20.7, 14.6, 20.1),
    "private_eye": Published(24.9, 69571.3, 96.7),
    "qbert": Published(163.9, 13455.0, 13781.9),
    "road_runner": Published(11.5, 7845.0, 17751.3),
    "seaquest": Published(68.4, 42054.7, 1100.2),
    "up_n_down": Published(533.4, 11693.2, 17264.2),
}


def normalised(game: str, score: Any) -> Any:
    """The return `score` of `game`, or an array of them: 0 as of random play, 1 as of a human."""
    published = SCORES[game]
    return (np.asarray(score) - published.random) / (published.human - published.random)


def summarise(scores: Sequence[np.ndarray]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Mean, median and interquartile mean (IQM) of normalised scores, with 95 % intervals.

    `scores`: one array [S] of seeds for each game. Mean and median are over games, of each game's
    mean. The bootstrap draws seeds within games (Agarwal et al. 2021).
    """
    values = _averages([np.asarray(game)[None] for game in scores])[0]
    rng = np.random.default_rng(0)
    draws = [rng.choice(game, (statistics.RESAMPLES, len(game))) for game in scores]
    low, high = statistics.interval(_averages(draws))
    if min(len(game) for game in scores) == 1:
        low, high = np.full((2, 3), np.nan)  # one seed says nothing about another
    return {
        name: (float(values[i]), (float(low[i]), float(high[i])))
        for i, name in enumerate(("mean", "median", "IQM"))
    }


def _averages(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Mean, median and interquartile mean, [R, 3], of R resamples of the scores [R, S] of games."""
    games = np.stack([game.mean(1) for game in scores], 1)
    iqm = statistics.iqm(np.concatenate(scores, 1), 1)
    return np.stack([games.mean(1), np.median(games, 1), iqm], 1)


def table(runs: Sequence[Run]) -> None:
    """Print the runs' scores beside the published ones."""
    for scores_of_kind, means in scores(runs):
        console.table(*scores_of_kind)
        console.facts(**means)


def scores(runs: Sequence[Run]) -> list[tuple[console.Table, dict[str, str]]]:
    """The runs' scores beside the published ones, and their means, for each kind of run.

    Within a kind, more runs of a game are more seeds. ConfigError where a game's seed comes twice
    in it: it would count as two independent ones.
    """
    found = []
    for kind, same in _kinds(runs).items():
        returns: dict[str, dict[int, float]] = {}
        for run in same:
            game = str(run.config.env.game)
            of_game = returns.setdefault(game, {})
            seeds = parse_seeds(run.config.seeds)
            for seed, value in zip(seeds, run.summary()["return"]["per_seed"], strict=True):
                if seed in of_game:
                    raise ConfigError(
                        f"run: seed {seed} of {game} is in two runs of {kind}; "
                        "it would count as two independent seeds."
                    )
                of_game[seed] = value
        by_game = {game: list(of_game.values()) for game, of_game in sorted(returns.items())}
        found.append((_table(kind, by_game), _means(by_game)))
    return found


def _kinds(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but game and seeds, under what is said of them."""
    kinds: dict[str, list[Run]] = {}
    known: list[dict[str, Any]] = []
    for run in runs:
        config = _without_game(run)
        if config not in known:
            known.append(config)
        target = config["agent"]["_target_"]
        steps = config["steps"]
        alike = [
            known_config
            for known_config in known
            if known_config["agent"]["_target_"] == target and known_config["steps"] == steps
        ]
        kind = str(target).rpartition(".")[2]
        if alike.index(config) > 0:
            kind += f" ({alike.index(config) + 1})"
        kind += f", {steps:,} decisions"
        if steps != STEPS:
            kind += f", not the benchmark's {STEPS:,}"
        kinds.setdefault(kind, []).append(run)
    return kinds


def _without_game(run: Run) -> dict[str, Any]:
    """The run's config without what may differ between the runs of one kind."""
    config: Any = OmegaConf.to_container(run.config)
    for key in ("seeds", "outputs", "device"):
        config.pop(key, None)
    for key in ("game", "threads"):
        config["env"].pop(key, None)
    return config


def _table(kind: str, returns: dict[str, list[float]]) -> console.Table:
    """The `returns` of each game's seeds."""
    rows: list[list[Any]] = []
    for game, values in returns.items():
        mean = np.mean(values)
        published = SCORES[game].efficientzero
        own_score = f"{normalised(game, mean):.2f}"
        published_score = f"{normalised(game, published):.2f}"
        rows.append([game, len(values), mean, own_score, published, published_score])
    title = f"Atari: {kind}; normalised: 0 as random, 1 as a human"
    header = ["game", "seeds", "return", "normalised", "EfficientZero", "normalised"]
    return console.Table(title, header, rows)


def _means(returns: dict[str, list[float]]) -> dict[str, str]:
    """The means of the `returns` of each game's seeds over games, beside the published ones."""
    texts = {}
    own_means = summarise([normalised(game, values) for game, values in returns.items()])
    published_means = summarise(
        [normalised(game, [SCORES[game].efficientzero]) for game in returns]
    )
    for name, (value, ci95) in own_means.items():
        text = f"{console.interval_text(value, ci95)}  published "
        text += f"{console.number(published_means[name][0])}, {len(returns)} of 26 games"
        texts[name] = text
    return texts


def is_benchmark(runs: Sequence[Run]) -> bool:
    """Whether all runs are of the benchmark's games."""
    return all(run.config.get("env", {}).get("game") in SCORES for run in runs)
