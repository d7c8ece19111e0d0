"""Attacks on the same agents beside each other: curves in one figure, and the agents' ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx import statistics
from rlx.config import choice
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.show import console, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARED_KEYS = {
    "run": "attacks other agents",
    "seeds": "attacks other seeds",
    "scale": "has another unit of eps",
}
"""Keys of summary.json that must be equal → what is said of a run where they are not."""


@dataclass(frozen=True)
class AttackComparison:
    """Attacks on the same agents, in one mode, and how the agents rank under each attack."""

    agents: str
    """Agent and env that are attacked, as in "dqn-acrobot"."""
    mode: str
    """The mode of the attacks that is compared."""
    seeds: Sequence[int]
    """The S seeds, which are the agents that are ranked."""
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
    def of(cls, runs: Sequence[Run], mode: str | None) -> "AttackComparison":
        """The comparison of `runs` in `mode`; None: both heads, or the first mode that all have.

        ConfigError where the runs cannot be compared.
        """
        summaries = [run.summary() for run in runs]
        mode = mode or _common_mode(summaries)
        _check_comparable(runs, summaries, mode)
        curves = []
        for run, summary in zip(runs, summaries, strict=True):
            cells = [cell for cell in summary["cells"] if cell["head"] == mode]
            estimates = [statistics.Estimate.from_dict(cell["return"]) for cell in cells]
            curves.append(figures.Curve(_attack_label(run), summary["eps"], estimates))
        returns = np.array([curve.estimates[-1].per_seed for curve in curves])
        ranks, correlations = _ranks(returns)
        return cls(
            agents=runs[0].path.parent.name,
            mode=mode,
            seeds=summaries[0]["seeds"],
            curves=curves,
            random=summaries[0]["random"],
            scale=runs[0].config.scale,
            returns=returns,
            ranks=ranks,
            correlations=correlations,
        )

    def figure(self) -> "Figure":
        """Return against the radius, a curve for each attack."""
        title = f"{self.agents}, mode {self.mode}, {len(self.seeds)} seeds"
        return figures.curves({title: self.curves}, figures.eps_label(self.scale), self.random)

    def print_ranks(self) -> None:
        """Print each seed's return and rank under each attack, and the correlations."""
        rows = []
        for number, seed in enumerate(self.seeds):
            pairs = zip(self.returns[:, number], self.ranks[:, number], strict=True)
            rows.append([str(seed), *(f"{value:.1f} ({rank:g})" for value, rank in pairs)])
        header = ["seed", *(f"{curve.label} at {curve.x[-1]:g}" for curve in self.curves)]
        title = "Return per seed at the largest radius, and the agent's rank (1: most robust)"
        console.table(f"{title}, mode {self.mode}", header, rows)
        first, *labels = [curve.label for curve in self.curves]
        for label, correlation in zip(labels, self.correlations[1:], strict=True):
            console.facts(
                ranks=f"'{first}' against '{label}': Spearman correlation {correlation:.2f}"
            )

    def summary(self) -> dict[str, Any]:
        """The comparison as summary.json has it, without the runs."""
        return {
            "labels": [curve.label for curve in self.curves],
            "seeds": self.seeds,
            "return": self.returns,
            "rank": self.ranks,
            "spearman_with_first": self.correlations,
        }


def _common_mode(summaries: Sequence[dict[str, Any]]) -> str:
    """`both`, or else the first mode that all attacks have; ConfigError where there is none."""
    modes = []
    for summary in summaries:
        modes.append(list(dict.fromkeys(cell["head"] for cell in summary["cells"])))
    shared = [mode for mode in modes[0] if all(mode in names for names in modes)]
    if not shared:
        texts = "; ".join(", ".join(names) for names in modes)
        raise ConfigError(f"run: these attacks share no mode: {texts}.")
    return "both" if "both" in shared else shared[0]


def _check_comparable(runs: Sequence[Run], summaries: Sequence[dict[str, Any]], mode: str) -> None:
    """ConfigError unless all attacks are of the same agents in the same units, and have `mode`."""
    first = runs[0]
    for run, summary in zip(runs, summaries, strict=True):
        for key, difference in COMPARED_KEYS.items():
            value = summary[key]
            expected = summaries[0][key]
            if value != expected:
                raise ConfigError(
                    f"run={run.path}: {difference} than {first.path}: {value}, not {expected}."
                )
        if run.config.checkpoint != first.config.checkpoint:
            raise ConfigError(
                f"run={run.path}: attacks checkpoint {run.config.checkpoint}, "
                f"{first.path} {first.config.checkpoint}."
            )
        choice(mode, {cell["head"] for cell in summary["cells"]}, "mode")


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


def _attack_label(run: Run) -> str:
    """The kind of the attack, from the run's config, as in "FGSM ce"."""
    attack = run.config.attack
    name = str(attack["_target_"]).rpartition(".")[2]
    return f"{name} {attack.get('loss', attack.get('kind', ''))}".strip()
