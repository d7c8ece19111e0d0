"""Compare runs in one figure: learning curves, or attacks on the same agents and how each ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import command_of, find_all, run_paths
from rlx.runs.run import Run
from rlx.show import console


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    run: Any
    """Attack runs on the same agents, or training runs."""
    mode: str | None
    """Which mode of the attacks to draw; null: both heads, or the first that all have."""
    outputs: str
    """Folder of all runs."""


@command("report")
def main(composed: DictConfig) -> None:
    """Draws and prints what `run` names."""
    config = build(Config, composed, "")
    if config.run is None:
        raise ConfigError(
            "run: name the runs to compare, as in: rlx report outputs/attack/A outputs/attack/B"
        )
    if command_of(run_paths(config.run)[0]) == "train":
        runs = _finished(find_all(config.run, config.outputs, "train"))
        _report_trainings(runs, config, composed)
    else:
        runs = _finished(find_all(config.run, config.outputs, "attack"))
        _report_attacks(runs, config, composed)


def _finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that have a result; a line is printed for every run that has none.

    ConfigError where none is left.
    """
    finished = []
    for run in runs:
        status = run.unfinished()
        if status is None:
            finished.append(run)
        else:
            console.facts(**{"left out": f"{run.path}: {status}"})
    if not finished:
        raise ConfigError(
            f"run: none of the {len(runs)} runs is finished (of a training, rlx resume goes on)."
        )
    return finished


def _report_trainings(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Draw the learning curves of `runs`, and write and print the result of each run."""
    from rlx.show import training_comparison

    labels = training_comparison.run_labels(runs)
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    table = output.path / "report.csv"
    figure = output.path / "report.png"
    with output.writing():
        training_comparison.figure(runs, labels).savefig(figure)
        training_comparison.write_csv(runs, labels, table)
        training_comparison.print_table(runs, labels)
        if atari100k.is_benchmark(runs):
            atari100k.table(runs)
        output.complete({"run": [str(run.path) for run in runs], "labels": labels})
    console.result(output.path, table=table, figure=figure)


def _report_attacks(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Draw the robustness curves of `runs`, and print the ranks of the agents under each attack."""
    from rlx.show.attack_comparison import AttackComparison

    comparison = AttackComparison.of(runs, config.mode)
    output = Run.create(config.outputs, "report", comparison.agents, composed)
    figure = output.path / "report.png"
    with output.writing():
        comparison.figure().savefig(figure)
        comparison.print_ranks()
        output.complete({"run": [str(run.path) for run in runs]} | comparison.summary())
    console.result(output.path, figure=figure)
