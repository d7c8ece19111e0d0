"""Attacks on the same agents beside each other: curves in one figure, and the seeds' ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx.errors import ConfigError
from rlx.show import console, figures
from rlx.show.attack_run import AttackRun, attack_labels, compared_modes, unique

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_RANKED = 5
"""The fewest seeds whose ranks are correlated: any order of four has a chance of 1 in 24."""
COMPARED_KEYS = {
    "seeds": "attacks other seeds",
    "scale": "has another unit of eps",
}
"""Keys of summary.json that must be equal → what is said of a run where they are not."""


@dataclass(frozen=True)
class AttackComparison:
    """Attacks on the same agents, in one mode, and how their seeds rank under each attack."""

    agents: str
    """Agent and env that are attacked, as in "dqn-acrobot"."""
    mode: str
    """The mode of the attacks that is compared."""
    seeds: Sequence[int]
    """The S seeds, which are ranked."""
    curves: Sequence[figures.Curve]
    """The returns against the radius, a curve for each run."""
    random: float
    """The mean return of random play."""
    scale: Any
    """What eps = 1 means, as the runs' configs say it."""
    returns: np.ndarray
    """The return of each seed at the largest radius, [runs, S]."""
    ranks: np.ndarray
    """The rank of each seed by `returns`, 1 for the most robust, [runs, S]."""
    correlations: Sequence[float]
    """Spearman's correlation of each run's returns with those of the first run, [runs]."""

    @classmethod
    def of(cls, attacks: Sequence[AttackRun], mode: str | None) -> "AttackComparison":
        """The comparison of `attacks` in `mode`; None: all heads, or the first mode that all have.

        ConfigError where they cannot be compared.
        """
        check_same_agents(attacks)
        modes = compared_modes(attacks, mode)
        labels = unique(attack_labels(attacks), attacks)
        curves = []
        for attack, its_mode, label in zip(attacks, modes, labels, strict=True):
            curves.append(attack.curve(its_mode, label))
        first = attacks[0]
        returns = np.array([curve.estimates[-1].per_seed for curve in curves])
        ranks, correlations = _ranks(returns)
        return cls(
            agents=first.source,
            mode=modes[0],
            seeds=first.summary["seeds"],
            curves=curves,
            random=first.summary["random"],
            scale=first.config.scale,
            returns=returns,
            ranks=ranks,
            correlations=correlations,
        )

    def figure(self, style: figures.Style = figures.SCREEN) -> "Figure":
        """Return against the radius, a curve for each attack."""
        title = f"{self.agents}, mode {self.mode}, {len(self.seeds)} seeds"
        return figures.curves({title: self.curves}, self.x, self.random, style)

    @property
    def x(self) -> str:
        """What the curves are drawn against."""
        return figures.eps_label(self.scale)

    def print_ranks(self) -> None:
        """Print each seed's return and rank under each attack, and the correlations."""
        for text in self.warnings():
            console.warning(text)
        console.table(*self.table())
        for text in self.correlation_texts():
            console.facts(ranks=text)

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know."""
        texts = console.few_seeds(len(self.seeds))
        if len(self.seeds) < LEAST_RANKED:
            texts.append(
                f"ranks of {len(self.seeds)} seeds say little: they are correlated from "
                f"{LEAST_RANKED} seeds on"
            )
        return texts

    def table(self) -> console.Table:
        """Each seed's return and rank under each attack."""
        rows = []
        for number, seed in enumerate(self.seeds):
            pairs = zip(self.returns[:, number], self.ranks[:, number], strict=True)
            rows.append([str(seed), *(f"{value:.1f} ({rank:g})" for value, rank in pairs)])
        header = ["seed", *(f"{curve.label} at {curve.x[-1]:g}" for curve in self.curves)]
        title = "Return per seed at the largest radius, and the seed's rank (1: most robust)"
        return console.Table(f"{title}, mode {self.mode}", header, rows)

    def correlation_texts(self) -> list[str]:
        """How far each attack ranks the seeds as the first one does; of few seeds nothing."""
        if len(self.seeds) < LEAST_RANKED:
            return []
        first, *labels = [curve.label for curve in self.curves]
        return [
            f"'{first}' against '{label}': Spearman correlation {console.number(correlation)}"
            for label, correlation in zip(labels, self.correlations[1:], strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """The comparison as summary.json has it, without the runs."""
        return {
            "labels": [curve.label for curve in self.curves],
            "seeds": self.seeds,
            "return": self.returns,
            "rank": self.ranks,
            "spearman_with_first": self.correlations,
        }


def check_same_agents(attacks: Sequence[AttackRun]) -> None:
    """ConfigError unless all attacks are of the same seeds and checkpoint, in the same units."""
    first = attacks[0]
    for attack in attacks:
        for key, difference in COMPARED_KEYS.items():
            value = attack.summary[key]
            expected = first.summary[key]
            if value != expected:
                raise ConfigError(
                    f"run={attack.path}: {difference} than {first.path}: {value}, not {expected}."
                )
        if attack.config.checkpoint != first.config.checkpoint:
            raise ConfigError(
                f"run={attack.path}: attacks checkpoint {attack.config.checkpoint}, "
                f"{first.path} {first.config.checkpoint}."
            )


def _ranks(returns: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The ranks [runs, S] of the seeds by `returns` [runs, S], and Spearman correlations [runs].

    Rank 1 is the highest return. The correlations are those of each attack's returns with the
    returns of the first attack; NaN where all agents return the same, since they have no ranks.
    """
    from scipy.stats import rankdata, spearmanr

    ranks = np.array([rankdata(-values) for values in returns])
    correlations = []
    for values in returns:
        if np.ptp(values) > 0 and np.ptp(returns[0]) > 0:
            correlations.append(float(spearmanr(returns[0], values).statistic))
        else:
            correlations.append(np.nan)
    return ranks, correlations
