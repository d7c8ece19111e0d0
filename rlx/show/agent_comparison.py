"""Attacks on different agents beside each other: who is more robust, by how much, how surely."""

import csv
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx import statistics
from rlx.errors import ConfigError
from rlx.runs.finding import reading
from rlx.show import console, figures
from rlx.show.attack_comparison import check_same_agents
from rlx.show.attack_run import (
    AttackRun,
    attack_labels,
    compared_modes,
    strongest_modes,
    unique,
    units_text,
)
from rlx.show.training_comparison import agent_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = 201
"""Scores at which a performance profile is computed."""
PRINTED_RADII = 5
"""The most radii whose returns are printed; the tables on disk have all."""


@dataclass(frozen=True)
class Row:
    """One attack on one agent, as it is compared."""

    attack: AttackRun
    label: str
    """Agent and attack, as in "dqn-cartpole, fgsm ce"."""
    name: str
    """What it is called in the tables: its rank, or a letter."""
    mode: str
    """The mode of the attack that is compared."""
    curve: figures.Curve
    """The returns against the radius, as the attack run has them."""
    result: statistics.Robustness
    """How robust the agent is, in the score that all rows have in common."""

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.attack.summary["seeds"])


@dataclass(frozen=True)
class AgentComparison:
    """Attacks on different agents."""

    rows: Sequence[Row]
    """The attacks, the most robust agent first; or in the user's order, where letters name them."""
    pairs: dict[tuple[int, int], statistics.Comparison]
    """The first minus the second, for each pair of numbers of `rows`, as they are ordered."""
    eps: Sequence[float]
    """The E radii, in units of the scale of the attack that was named first."""
    scale: np.ndarray
    """What eps = 1 means for each component of an observation, [O]."""
    episodes: int
    """Episodes of each seed and radius."""
    random: float
    """The return of random play, the common score's 0."""
    clean: float
    """The best clean return of any agent, the common score's 1."""
    levels: np.ndarray
    """The scores of the performance profiles, [L]."""
    profiles: Sequence[statistics.Resampled]
    """The share of seeds × radii above each level, [L], for each of the `rows`."""

    @classmethod
    def of(
        cls, attacks: Sequence[AttackRun], mode: str | None, letters: str = ""
    ) -> "AgentComparison":
        """The comparison of `attacks` in `mode`; None: all heads, or the first mode that all have.

        `letters`: the names of the attacks, which then stay in their order; "": they are ranked.
        ConfigError where they cannot be compared. That the envs are the same is for the caller to
        check.
        """
        _check_agents(attacks)
        _check_boxes(attacks)
        random, clean = _anchors(attacks)
        modes = strongest_modes(attacks) if mode is None else compared_modes(attacks, mode)
        returns = [attack.returns(its) for attack, its in zip(attacks, modes, strict=True)]
        _check_episodes(attacks, returns)
        episodes = returns[0].shape[2]
        eps = attacks[0].summary["eps"]
        bootstraps = _bootstraps(attacks, episodes)
        labels = _labels(attacks)
        rows = []
        for number, attack in enumerate(attacks):
            result = statistics.Robustness.of(
                returns[number], np.array(eps), random, clean, bootstraps[number]
            )
            curve = replace(attack.curve(modes[number], labels[number]), x=eps)
            name = letters[number] if letters else ""
            rows.append(Row(attack, labels[number], name, modes[number], curve, result))
        if not letters:
            rows.sort(key=lambda row: (-float(row.result.area.value), row.attack.path.name))
            rows = [replace(row, name=str(rank)) for rank, row in enumerate(rows, 1)]
        scores = np.concatenate([row.result.seed_scores.value.flatten() for row in rows])
        levels = np.linspace(min(0.0, scores.min()), max(1.0, scores.max()), LEVELS)
        pairs = {}
        for first, second in combinations(range(len(rows)), 2):
            pairs[first, second] = statistics.Comparison.of(rows[first].result, rows[second].result)
        return cls(
            rows=rows,
            pairs=pairs,
            eps=eps,
            scale=attacks[0].scale,
            episodes=episodes,
            random=random,
            clean=clean,
            levels=levels,
            profiles=[row.result.profile(levels) for row in rows],
        )

    @property
    def env(self) -> str:
        """The name of the env, as in "cartpole"."""
        return self.rows[0].attack.source.partition("-")[2]

    def figure(self, style: figures.Style = figures.SCREEN) -> "Figure":
        """Return against the radius, and the performance profiles."""
        curves = [row.curve for row in self.rows]
        title = f"{self.env}: return under attack"
        shares = [np.stack([profile.value, *profile.ci95]) for profile in self.profiles]
        return figures.robustness(title, curves, self.x, self.random, self.levels, shares, style)

    @property
    def x(self) -> str:
        """What the curves are drawn against, in the words of the runs where these agree."""
        words = {str(row.attack.config.scale) for row in self.rows}
        return figures.eps_label(words.pop() if len(words) == 1 else units_text(self.scale))

    def profile_curves(self) -> list[figures.Curve]:
        """The performance profiles, a curve for each of the `rows`."""
        return [
            figures.profile(row.label, self.levels, profile)
            for row, profile in zip(self.rows, self.profiles, strict=True)
        ]

    def write_csv(self, path: Path) -> None:
        """A row for each attack and radius."""
        rows = []
        for rank, row in enumerate(self.rows, 1):
            for eps, estimate in zip(self.eps, row.curve.estimates, strict=True):
                low, high = estimate.ci95
                rows.append(
                    {
                        "rank": rank,
                        "label": row.label,
                        "run": row.attack.path,
                        "mode": row.mode,
                        "seeds": row.seeds,
                        "eps": eps,
                        "iqm": estimate.iqm,
                        "ci95_low": low,
                        "ci95_high": high,
                        "score": (estimate.iqm - self.random) / (self.clean - self.random),
                    }
                )
        _write(rows, path)

    def write_pairs(self, path: Path) -> None:
        """A row for each pair and statistic: of the return one at each radius."""
        rows = []
        for (first, second), pair in self.pairs.items():
            for statistic, eps, value, (low, high) in _statistics(pair, self.eps):
                rows.append(
                    {
                        "first": self.rows[first].label,
                        "second": self.rows[second].label,
                        "statistic": statistic,
                        "eps": eps,
                        "first_minus_second": value,
                        "ci95_low": low,
                        "ci95_high": high,
                    }
                )
        _write(rows, path)

    def print_tables(self) -> None:
        """Print what eps means, the agents, then the differences of each two of them."""
        console.facts(**self.facts())
        for text in self.warnings():
            console.warning(text)
        console.table(*self.agents())
        console.table(*self.differences())

    def facts(self) -> dict[str, str]:
        """What all attacks have in common: the env, what eps means, the episodes."""
        episodes = f"{self.episodes} per seed and radius, the same start states for all agents"
        scale = f"eps 1 is {units_text(self.scale)}"
        return {"env": self.env, "scale": scale, "episodes": episodes}

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know."""
        texts = []
        settings = [row.attack.config.attack for row in self.rows]
        if any(others != settings[0] for others in settings):
            texts.append(
                "the agents are under different attacks; a difference may be that of the attacks"
            )
        texts += console.few_seeds(min(row.seeds for row in self.rows))
        for row in self.rows:
            # Studies from before the audit do not say.
            if not row.attack.summary.get("converged", {}).get(row.mode, True):
                texts.append(f"{row.label}: an upper bound at best (see its audit)")
        return texts

    def agents(self) -> console.Table:
        """Each agent on a line."""
        numbers = _spread(len(self.eps))
        radii = [f"at {self.eps[number]:g}" for number in numbers]
        rows = []
        for row in self.rows:
            estimates = [row.curve.estimates[number] for number in numbers]
            rows.append(
                [
                    row.name,
                    row.label,
                    row.mode,
                    str(row.seeds),
                    *(console.interval_text(one.iqm, one.ci95) for one in estimates),
                    console.resampled_text(row.result.area),
                    _critical_text(row.result),
                ]
            )
        title = (
            f"Return: interquartile mean over seeds, 95 % bootstrap interval. Scores of area and "
            f"critical eps from 0, random play ({self.random:.4g}), to 1, the best clean play of "
            f"these agents ({self.clean:.4g})"
        )
        header = ["", "agent, attack", "mode", "seeds", *radii, "area", "critical eps"]
        return console.Table(title, header, rows)

    def differences(self) -> console.Table:
        """The difference of each two agents on a line."""
        numbers = _spread(len(self.eps))
        radii = [f"at {self.eps[number]:g}" for number in numbers]
        rows = []
        for (first, second), pair in self.pairs.items():
            names = [self.rows[number].name for number in (first, second)]
            low, high = pair.returns.ci95
            returns = []
            for number in numbers:
                ends = (float(low[number]), float(high[number]))
                returns.append(console.interval_text(pair.returns.value[number], ends))
            rows.append(
                [
                    " − ".join(names),
                    *returns,
                    console.resampled_text(pair.area),
                    self._critical_difference_text(first, second),
                    console.resampled_text(pair.probability),
                ]
            )
        title = (
            "Differences. Seeds are resampled for each agent, episodes jointly. Last: the "
            "probability that a random seed of the first has the larger area"
        )
        header = ["", *radii, "area", "critical eps", "probability"]
        return console.Table(title, header, rows)

    def _critical_difference_text(self, first: int, second: int) -> str:
        """The difference of two critical radii; "≥" or "≤" where one is beyond the grid."""
        difference = self.pairs[first, second].critical_eps
        text = console.resampled_text(difference)
        results = [self.rows[number].result for number in (first, second)]
        beyond = any(np.isinf(result.critical_eps.value) for result in results)
        if np.isnan(difference.value) or not beyond:
            return text
        return f"≥{text}" if difference.value >= 0 else f"≤{text}"

    def summary(self) -> dict[str, Any]:
        """The comparison as summary.json has it."""
        return {
            "run": [str(row.attack.path) for row in self.rows],
            "labels": [row.label for row in self.rows],
            "modes": [row.mode for row in self.rows],
            "eps": self.eps,
            "scale": self.scale,
            "episodes": self.episodes,
            "random": self.random,
            "best_clean": self.clean,
            "agents": [self._agent_summary(number) for number in range(len(self.rows))],
            "differences": [self._pair_summary(*numbers) for numbers in self.pairs],
            "levels": self.levels,
        }

    def _agent_summary(self, number: int) -> dict[str, Any]:
        """What summary.json says of one agent."""
        row = self.rows[number]
        result = row.result
        profile = self.profiles[number]
        return {
            "label": row.label,
            "seeds": row.attack.summary["seeds"],
            "clean": row.attack.summary["clean"],
            "return": [estimate.as_dict() for estimate in row.curve.estimates],
            "area": result.area.value,
            "area_ci95": result.area.ci95,
            "area_per_seed": result.seed_areas.value,
            "critical_eps": _within_grid(float(result.critical_eps.value), self.eps),
            "critical_eps_ci95": [
                _within_grid(bound, self.eps) for bound in result.critical_eps_ci95
            ],
            "profile": profile.value,
            "profile_ci95": profile.ci95,
        }

    def _pair_summary(self, first: int, second: int) -> dict[str, Any]:
        """What summary.json says of the first agent minus the second."""
        pair = self.pairs[first, second]
        return {
            "first": self.rows[first].label,
            "second": self.rows[second].label,
            "return": pair.returns.value,
            "return_ci95": pair.returns.ci95.T,
            "area": pair.area.value,
            "area_ci95": pair.area.ci95,
            "critical_eps": pair.critical_eps.value,
            "critical_eps_ci95": pair.critical_eps.ci95,
            "probability": pair.probability.value,
            "probability_ci95": pair.probability.ci95,
        }


def _check_agents(attacks: Sequence[AttackRun]) -> None:
    """ConfigError where two attacks share some of their agents, and are not of the same ones."""
    for first, second in combinations(attacks, 2):
        shared = set(first.trainings) & set(second.trainings)
        if first.trainings == second.trainings:
            check_same_agents([first, second])
        elif shared:
            raise ConfigError(
                f"run={second.path}: attacks some agents that {first.path} attacks, and others; "
                "compare runs that attack the same agents, or quite different ones."
            )


def _check_boxes(attacks: Sequence[AttackRun]) -> None:
    """ConfigError unless every attack has the same boxes, in the components' own units."""
    first = attacks[0]
    boxes = np.outer(first.summary["eps"], first.scale)
    for attack in attacks[1:]:
        its_boxes = np.outer(attack.summary["eps"], attack.scale)
        if its_boxes.shape == boxes.shape and np.allclose(its_boxes, boxes, rtol=1e-6, atol=0):
            continue
        if attack.scale.shape == first.scale.shape and np.allclose(attack.scale, first.scale):
            grids = [",".join(f"{eps:g}" for eps in one.summary["eps"]) for one in (attack, first)]
            raise ConfigError(
                f"run={attack.path}: has other radii than {first.path}: eps=[{grids[0]}], "
                f"not [{grids[1]}]; attack one of them again with the eps of the other."
            )
        units = [units_text(one.scale) for one in (attack, first)]
        raise ConfigError(
            f"run={attack.path}: has other boxes than {first.path}: eps 1 is {units[0]}, "
            f"not {units[1]} (scale=std is another one for each agent); attack both with "
            "scale=reference, or with the numbers of one run."
        )


def _check_episodes(attacks: Sequence[AttackRun], returns: Sequence[np.ndarray]) -> None:
    """ConfigError unless the `returns` [S, E, P] of all attacks are of the same episodes."""
    episodes = [its_returns.shape[2] for its_returns in returns]
    fewest, most = min(episodes), max(episodes)
    if fewest != most:
        attack, other = (attacks[episodes.index(number)] for number in (fewest, most))
        raise ConfigError(
            f"run={attack.path}: played {fewest} episodes per seed and radius, {other.path} "
            f"{most}; agents are compared on the same ones: {_again(attack, f'episodes={most}')}"
        )


def _again(attack: AttackRun, word: str) -> str:
    """The command line that makes an attack again with `word`, as in "episodes=50"."""
    line = attack.run.meta().get("line")
    if not line:
        return f"attack it again with {word}"
    if not attack.is_of_files:
        line = reading(line, [str(path) for path in attack.trainings])
    words = shlex.split(line)
    key = word.partition("=")[0]
    return shlex.join([*(one for one in words if one.partition("=")[0] != key), word])


def _anchors(attacks: Sequence[AttackRun]) -> tuple[float, float]:
    """The returns that are the common score's 0 and 1: random play, and the best clean play.

    ConfigError where no agent plays better than random play.
    """
    random = float(np.mean([attack.summary["random"] for attack in attacks]))
    clean = max(attack.summary["clean"]["iqm"] for attack in attacks)
    if not clean > random:
        raise ConfigError(
            f"run: none of these agents plays better than random play without an attack "
            f"({clean:.4g}, random play {random:.4g}): there is no robustness to compare."
        )
    return random, clean


def _labels(attacks: Sequence[AttackRun]) -> list[str]:
    """Agent and attack of each run, as in "dqn-cartpole, fgsm ce"."""
    agents = agent_labels([attack.run for attack in attacks])
    pairs = zip(agents, attack_labels(attacks), strict=True)
    return unique([f"{agent}, {name}" for agent, name in pairs], attacks)


def _bootstraps(attacks: Sequence[AttackRun], episodes: int) -> list[statistics.Bootstrap]:
    """The resamples of each attack; attacks on the same agents have the same."""
    # In an order of their own, so that the user's has no effect.
    ordered = sorted(attacks, key=lambda attack: attack.trainings)
    seeds = {attack.trainings: len(attack.summary["seeds"]) for attack in ordered}
    drawn = statistics.independent(list(seeds.values()), episodes)
    of_agents = dict(zip(seeds, drawn, strict=True))
    return [of_agents[attack.trainings] for attack in attacks]


def _statistics(
    pair: statistics.Comparison, eps: Sequence[float]
) -> Iterator[tuple[str, float | str, float, np.ndarray]]:
    """The statistics of a pair: name, radius where it is of one, value, interval."""
    for radius, value, ends in zip(eps, pair.returns.value, pair.returns.ci95.T, strict=True):
        yield "return", radius, float(value), ends
    yield "area", "", float(pair.area.value), pair.area.ci95
    yield "critical_eps", "", float(pair.critical_eps.value), pair.critical_eps.ci95
    yield "probability", "", float(pair.probability.value), pair.probability.ci95


def _spread(count: int) -> list[int]:
    """Numbers from the first to the last of `count`, at most `PRINTED_RADII` of them."""
    return sorted({round(number) for number in np.linspace(0, count - 1, PRINTED_RADII)})


def _critical_text(result: statistics.Robustness) -> str:
    """The critical radius and its interval, as in "0.013 [0.011, >0.03]"."""
    criticals = (float(result.critical_eps.value), *result.critical_eps_ci95)
    value, *ends = [_within_grid(critical, result.eps) for critical in criticals]
    return console.interval_text(value, ends)


def _within_grid(critical: float, eps: Sequence[float] | np.ndarray) -> float | str:
    """A critical radius; where it is infinite, on which side of the grid it lies."""
    if not np.isinf(critical):
        return float(critical)
    return f">{eps[-1]:g}" if critical > 0 else f"≤{eps[0]:g}"


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write `rows` to a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
