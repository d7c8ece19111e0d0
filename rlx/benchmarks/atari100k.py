"""The Atari 100k benchmark (Kaiser et al. 2020): 26 games, 100,000 decisions each; scores as shares of a human's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from rlx.config import parse_seeds
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.show import report, stats

STEPS = 100_000
"""Decisions per game."""

SCORES = {
    "alien": (227.8, 7127.7, 808.5),
    "amidar": (5.8, 1719.5, 148.6),
    "assault": (222.4, 742.0, 1263.1),
    "asterix": (210.0, 8503.3, 25557.8),
    "bank_heist": (14.2, 753.1, 351.0),
    "battle_zone": (2360.0, 37187.5, 13871.2),
    "boxing": (0.1, 12.1, 52.7),
    "breakout": (1.7, 30.5, 414.1),
    "chopper_command": (811.0, 7387.8, 1117.3),
    "crazy_climber": (10780.5, 35829.4, 83940.2),
    "demon_attack": (152.1, 1971.0, 13003.9),
    "freeway": (0.0, 29.6, 21.8),
    "frostbite": (65.2, 4334.7, 296.3),
    "gopher": (257.6, 2412.5, 3260.3),
    "hero": (1027.0, 30826.4, 9315.9),
    "jamesbond": (29.0, 302.8, 517.0),
    "kangaroo": (52.0, 3035.0, 724.1),
    "krull": (1598.0, 2665.5, 5663.3),
    "kung_fu_master": (258.5, 22736.3, 30944.8),
    "ms_pacman": (307.3, 6951.6, 1281.2),
    "pong": (-20.7, 14.6, 20.1),
    "private_eye": (24.9, 69571.3, 96.7),
    "qbert": (163.9, 13455.0, 13781.9),
    "road_runner": (11.5, 7845.0, 17751.3),
    "seaquest": (68.4, 42054.7, 1100.2),
    "up_n_down": (533.4, 11693.2, 17264.2),
}
"""Of a random player, of a human, of EfficientZero (Ye et al. 2021, table 1)."""


def normalised(game: str, score: Any) -> Any:
    """0: as good as random play, 1: as a human's."""
    random, human, _ = SCORES[game]
    return (np.asarray(score) - random) / (human - random)


def summarise(scores: Sequence[np.ndarray]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Mean, median and interquartile mean of human-normalised `scores` (one array [S] of seeds per game), with 95 % intervals of a
    bootstrap that draws seeds within games (Agarwal et al. 2021). Mean and median are over games, of each game's mean."""

    def of(draws: Sequence[np.ndarray]) -> np.ndarray:  # [R, S] each → [R, 3]
        games = np.stack([draw.mean(1) for draw in draws], 1)
        return np.stack(
            [games.mean(1), np.median(games, 1), stats.iqm(np.concatenate(draws, 1), 1)], 1
        )

    rng = np.random.default_rng(0)
    low, high = stats.interval(of([rng.choice(x, (stats.RESAMPLES, len(x))) for x in scores]))
    if min(map(len, scores)) < 2:  # of one seed nothing follows about another
        low, high = np.full((2, 3), np.nan)
    values = of([np.asarray(x)[None] for x in scores])[0]
    return {
        name: (float(values[i]), (float(low[i]), float(high[i])))
        for i, name in enumerate(("mean", "median", "IQM"))
    }


def table(runs: Sequence[Run]) -> None:
    """Print the runs' scores beside the published ones, one table for each kind of run; in one, more runs of a game are more seeds.

    ConfigError where a game's seed comes twice in it: it would count as two independent ones.
    """
    for kind, same in _kinds(runs).items():
        returns: dict[str, dict[int, float]] = {}
        for run in same:
            game, own = str(run.config.env.game), parse_seeds(run.config.seeds)
            for seed, value in zip(own, run.summary()["return"]["per_seed"], strict=True):
                if seed in returns.setdefault(game, {}):
                    raise ConfigError(
                        f"run: seed {seed} of {game} is in two runs of {kind}; it would count as two independent seeds."
                    )
                returns[game][seed] = value
        _print(kind, {game: list(values.values()) for game, values in sorted(returns.items())})


def _kinds(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but game and seeds, under what is said of them."""
    kinds: dict[str, list[Run]] = {}
    known: list[Any] = []
    for run in runs:
        config = OmegaConf.to_container(run.config)
        assert isinstance(config, dict)
        config = {
            key: value for key, value in config.items() if key not in ("seeds", "outputs", "device")
        }
        config["env"] = {
            key: value for key, value in config["env"].items() if key not in ("game", "threads")
        }
        if config not in known:
            known.append(config)
        agent = str(config["agent"]["_target_"]).rpartition(".")[2]
        steps = "" if config["steps"] == STEPS else f", not the benchmark's {STEPS:,}"
        alike = [
            other
            for other in known
            if (other["agent"]["_target_"], other["steps"])
            == (config["agent"]["_target_"], config["steps"])
        ]
        number = f" ({alike.index(config) + 1})" if len(alike) > 1 and alike.index(config) else ""
        kinds.setdefault(f"{agent}{number}, {config['steps']:,} decisions{steps}", []).append(run)
    return kinds


def _print(kind: str, returns: dict[str, list[float]]) -> None:
    """One table, and its means beside the published ones."""
    rows = []
    for game, values in returns.items():
        theirs = SCORES[game][2]
        rows.append(
            [
                game,
                len(values),
                np.mean(values),
                f"{normalised(game, np.mean(values)):.2f}",
                theirs,
                f"{normalised(game, theirs):.2f}",
            ]
        )
    title = f"Atari: {kind}; normalised: 0 as random, 1 as a human"
    report.table(
        title, ["game", "seeds", "return", "normalised", "EfficientZero", "normalised"], rows
    )
    ours = summarise([normalised(game, values) for game, values in returns.items()])
    published = summarise([normalised(game, [SCORES[game][2]]) for game in returns])
    for name, (value, ci95) in ours.items():
        known = report.number(published[name][0])
        report.start(
            **{
                name: f"{report.interval_text(value, ci95)}  published {known}, {len(returns)} of 26 games"
            }
        )


def is_benchmark(runs: Sequence[Run]) -> bool:
    """Whether all runs are of its games."""
    return all(run.config.get("env", {}).get("game") in SCORES for run in runs)


class Table(Callback):
    """Prints it when a multirun ends; see conf/experiment/atari100k.yaml."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.before = self._runs(config)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        self.runs += [
            Run(path)
            for path in self._runs(config) - self.before
            if Run(path).meta()["status"] == "completed"
        ]

    def _runs(self, config: DictConfig) -> set[Path]:
        folder = Path(
            config.outputs, "train", f"{config.hydra.runtime.choices.agent}-{config.env.game}"
        )
        return {path.parent for path in folder.glob("*/meta.json")}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.runs:
            table(self.runs)
