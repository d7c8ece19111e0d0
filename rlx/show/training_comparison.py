"""Trainings beside each other: learning curves in one figure, and a table of their results."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rlx import statistics
from rlx.names import flatten_keys
from rlx.runs.run import Run
from rlx.show import console, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED_KEYS = ("outputs", "device", "checkpoint_every", "checkpoint_seconds")
"""Keys that change nothing about a result, and so tell no run from another."""


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A label for each run: agent and env where these differ, and the keys that tell it apart."""
    names = [run.path.parent.name for run in runs]
    labels = list(names)
    for name in set(names):
        numbers = [number for number, label in enumerate(names) if label == name]
        if len(numbers) == 1:
            continue
        settings = differences([runs[number].config for number in numbers])
        for number, text in zip(numbers, settings, strict=True):
            labels[number] = text if len(numbers) == len(runs) else f"{name} {text}"
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({run.path.name})" if label in twice else label
        for label, run in zip(labels, runs, strict=True)
    ]


def differences(configs: Sequence[DictConfig]) -> list[str]:
    """The keys that tell each config from the others, as in "agent.double=true, steps=1000"."""
    flat = [flatten_keys(OmegaConf.to_container(config)) for config in configs]
    all_keys = dict.fromkeys(key for values in flat for key in values)
    keys = []
    for key in all_keys:
        differs = len({str(values.get(key)) for values in flat}) > 1
        if differs and key.split(".")[0] not in IGNORED_KEYS:
            keys.append(key)
    texts = []
    for number, values in enumerate(flat):
        settings = [f"{key.removeprefix('agent.')}={values.get(key)}" for key in keys]
        texts.append(", ".join(settings) or f"run {number}")
    return texts


def figure(runs: Sequence[Run], labels: Sequence[str]) -> "Figure":
    """Greedy return while learning: a curve for each run, a panel for each env."""
    return figures.curves(panels(runs, labels), "environment steps per seed")


def panels(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, list[figures.Curve]]:
    """Greedy return against the step: the curves of the runs, by env."""
    found: dict[str, list[figures.Curve]] = {}
    for run, label in zip(runs, labels, strict=True):
        steps, _, values = run.curve()
        estimates = [statistics.estimate(returns[:, None]) for returns in values]
        env = run.path.parent.name.partition("-")[2]
        found.setdefault(env, []).append(figures.Curve(label, steps, estimates))
    return found


def write_csv(runs: Sequence[Run], labels: Sequence[str], path: Path) -> None:
    """Write the result of each run as a row of a CSV file."""
    rows = [_csv_row(run, label) for run, label in zip(runs, labels, strict=True)]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _csv_row(run: Run, label: str) -> dict[str, Any]:
    """The row of one training."""
    summary = run.summary()
    estimate = statistics.Estimate.from_dict(summary["return"])
    low, high = estimate.ci95
    return {
        "run": run.path,
        "label": label,
        "iqm": estimate.iqm,
        "ci95_low": low,
        "ci95_high": high,
        "seeds": len(estimate.per_seed),
        "steps": summary["steps"],
        "wall_s": summary["wall_s"],
    }


def results(runs: Sequence[Run], labels: Sequence[str]) -> console.Table:
    """The result of each run."""
    rows = [_table_row(run, label) for run, label in zip(runs, labels, strict=True)]
    title = "Return of the weights kept: interquartile mean over seeds, 95 % bootstrap interval"
    return console.Table(title, ["run", "return", "seeds", "solved", "steps", "took"], rows)


def _table_row(run: Run, label: str) -> list[str]:
    """The line of one training."""
    summary = run.summary()
    estimate = statistics.Estimate.from_dict(summary["return"])
    threshold = summary.get("reward_threshold", np.nan)
    solved = ""
    if not np.isnan(threshold):
        count = sum(value >= threshold for value in summary["return"]["per_seed"])
        solved = f"{count} (from {threshold:g})"
    return [
        label,
        console.interval_text(estimate.iqm, estimate.ci95),
        str(len(estimate.per_seed)),
        solved,
        f"{summary['steps']:,}",
        console.duration(summary["wall_s"]),
    ]
