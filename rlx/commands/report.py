"""Compare runs in one figure: learning curves, or attacks on the same agents and how each ranks."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rlx import statistics
from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.config import build, choice
from rlx.errors import ConfigError
from rlx.runs.finding import command_of, find_all, named
from rlx.runs.run import Run
from rlx.show import console

APART = ("outputs", "device", "checkpoint_every", "checkpoint_seconds")
"""Keys that change nothing about a result, and so tell no run from another."""


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
    if command_of(named(config.run)[0]) == "train":
        runs = _finished(find_all(config.run, config.outputs, "train"))
        _compare_trainings(runs, config, composed)
    else:
        runs = _finished(find_all(config.run, config.outputs, "attack"))
        _compare_attacks(runs, config, composed)


def _finished(runs: Sequence[Run]) -> list[Run]:
    """Those of `runs` that have a result; each of the others is named.

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


def _compare_trainings(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Greedy return while learning, a curve per run and a panel per env, and each run's result."""
    from rlx.show import figures

    labels = _labels(runs)
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    table = output.path / "report.csv"
    figure = output.path / "report.png"
    with output.writing():
        panels: dict[str, list[figures.Curve]] = {}
        for label, run in zip(labels, runs, strict=True):
            steps, _, values = run.curve()
            estimates = [statistics.estimate(returns[:, None]) for returns in values]
            env = run.path.parent.name.partition("-")[2]
            panels.setdefault(env, []).append(figures.Curve(label, steps, estimates))
        figures.curves(panels, "environment steps per seed").savefig(figure)
        results = [_result(label, run) for label, run in zip(labels, runs, strict=True)]
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, list(results[0]), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(results)
        title = "Return of the weights kept: interquartile mean over seeds, 95 % bootstrap interval"
        header = ["run", "return", "seeds", "solved", "steps", "took"]
        rows = [_row(result, run) for result, run in zip(results, runs, strict=True)]
        console.table(title, header, rows)
        if atari100k.is_benchmark(runs):
            atari100k.table(runs)
        output.complete({"run": [str(run.path) for run in runs], "labels": labels})
    console.result(output.path, table=table, figure=figure)


def _result(label: str, run: Run) -> dict[str, Any]:
    """A training's row of report.csv."""
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


def _row(result: dict[str, Any], run: Run) -> list[str]:
    """A training's row of the printed table."""
    summary = run.summary()
    threshold = summary.get("reward_threshold", np.nan)
    solved = ""
    if not np.isnan(threshold):
        count = sum(value >= threshold for value in summary["return"]["per_seed"])
        solved = f"{count} (from {threshold:g})"
    return [
        result["label"],
        console.interval_text(result["iqm"], (result["ci95_low"], result["ci95_high"])),
        str(result["seeds"]),
        solved,
        f"{result['steps']:,}",
        console.duration(result["wall_s"]),
    ]


def _labels(runs: Sequence[Run]) -> list[str]:
    """Agent and env of each run where these differ, and what tells it from others of the same."""
    names = [run.path.parent.name for run in runs]
    labels = list(names)
    for name in set(names):
        same = [number for number, other in enumerate(names) if other == name]
        if len(same) == 1:
            continue
        texts = differences([runs[number].config for number in same])
        for number, text in zip(same, texts, strict=True):
            labels[number] = text if len(same) == len(runs) else f"{name} {text}"
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({run.path.name})" if label in twice else label
        for label, run in zip(labels, runs, strict=True)
    ]


def differences(configs: Sequence[DictConfig]) -> list[str]:
    """What tells each of some configs from the others, as in "agent.double=true, steps=1000"."""
    flat = [_flat(OmegaConf.to_container(config), "") for config in configs]
    all_keys = dict.fromkeys(key for values in flat for key in values)
    keys = [
        key
        for key in all_keys
        if len({str(values.get(key)) for values in flat}) > 1 and key.split(".")[0] not in APART
    ]
    texts = []
    for number, values in enumerate(flat):
        own = [f"{key.removeprefix('agent.')}={values.get(key)}" for key in keys]
        texts.append(", ".join(own) or f"run {number}")
    return texts


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    """Nested keys as one level: {"agent": {"double": True}} becomes {"agent.double": True}."""
    if not isinstance(node, dict):
        return {prefix: node}
    values = {}
    for name, inner in node.items():
        values.update(_flat(inner, f"{prefix}.{name}".lstrip(".")))
    return values


def _compare_attacks(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Robustness curves, and the ranks of the agents."""
    from rlx.show import figures

    summaries = [run.summary() for run in runs]
    mode = config.mode or _common_mode(summaries)
    _check_comparable(runs, summaries, mode)
    labels = [_attack_label(run) for run in runs]
    curves = []
    for label, summary in zip(labels, summaries, strict=True):
        cells = [cell for cell in summary["cells"] if cell["head"] == mode]
        estimates = [statistics.Estimate.from_dict(cell["return"]) for cell in cells]
        curves.append(figures.Curve(label, summary["eps"], estimates))
    seeds = summaries[0]["seeds"]
    agents = runs[0].path.parent.name
    output = Run.create(config.outputs, "report", agents, composed)
    figure = output.path / "report.png"
    with output.writing():
        title = f"{agents}, {mode} attacked, {len(seeds)} seeds"
        x = figures.eps_label(runs[0].config.scale)
        figures.curves({title: curves}, x, summaries[0]["random"]).savefig(figure)
        returns = np.array([curve.estimates[-1].per_seed for curve in curves])
        ranks, correlations = _ranks(returns)
        rows = []
        for number, seed in enumerate(seeds):
            pairs = zip(returns[:, number], ranks[:, number], strict=True)
            rows.append([str(seed), *(f"{value:.1f} ({rank:g})" for value, rank in pairs)])
        header = ["seed", *(f"{curve.label} at {curve.x[-1]:g}" for curve in curves)]
        what = "Return per seed at the largest radius, and the agent's rank (1: most robust)"
        console.table(f"{what}, {mode} attacked", header, rows)
        for label, value in zip(labels[1:], correlations[1:], strict=True):
            console.facts(
                ranks=f"'{labels[0]}' against '{label}': Spearman correlation {value:.2f}"
            )
        summary = {
            "run": [str(run.path) for run in runs],
            "labels": labels,
            "seeds": seeds,
            "return": returns,
            "rank": ranks,
            "spearman_with_first": correlations,
        }
        output.complete(summary)
    console.result(output.path, figure=figure)


def _common_mode(summaries: Sequence[dict[str, Any]]) -> str:
    """`both`, or else the first mode that all attacks have."""
    modes = []
    for summary in summaries:
        modes.append(list(dict.fromkeys(cell["head"] for cell in summary["cells"])))
    shared = [mode for mode in modes[0] if all(mode in others for others in modes)]
    if not shared:
        texts = "; ".join(", ".join(names) for names in modes)
        raise ConfigError(f"run: these attacks share no mode: {texts}.")
    return "both" if "both" in shared else shared[0]


def _check_comparable(runs: Sequence[Run], summaries: Sequence[dict[str, Any]], mode: str) -> None:
    """ConfigError unless all attacks are of the same agents in the same units, and have `mode`."""
    first = runs[0]
    for run, summary in zip(runs, summaries, strict=True):
        for key, what in (
            ("run", "attacks other agents"),
            ("seeds", "attacks other seeds"),
            ("scale", "has another unit of eps"),
        ):
            own, other = summary[key], summaries[0][key]
            if own != other:
                raise ConfigError(f"run={run.path}: {what} than {first.path}: {own}, not {other}.")
        if run.config.checkpoint != first.config.checkpoint:
            raise ConfigError(
                f"run={run.path}: attacks checkpoint {run.config.checkpoint}, "
                f"{first.path} {first.config.checkpoint}."
            )
        choice(mode, {cell["head"] for cell in summary["cells"]}, "mode")


def _ranks(returns: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The rank of each seed under each attack, by `returns` [runs, S], and Spearman correlations.

    Rank 1 is the highest return, [runs, S]. The correlations are those of each attack's returns
    with the first one's, [runs]; NaN where all agents return the same, since they have no ranks.
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
    """What kind of attack it was, from its config, as in "FGSM ce"."""
    attack = run.config.attack
    name = str(attack["_target_"]).rpartition(".")[2]
    return f"{name} {attack.get('loss', attack.get('kind', ''))}".strip()
