"""Compare runs: learning curves of trainings, or attacks on the same agents and how each ranks them; one figure."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.commands.attack import eps_unit
from rlx.config import build, choice
from rlx.errors import ConfigError
from rlx.runs.finding import command_of, find_all, named
from rlx.runs.run import Run
from rlx.show import report, stats


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    run: Any
    mode: str | None
    outputs: str


@command("report")
def main(composed: DictConfig) -> None:
    """Draw and print."""
    config = build(Config, composed, "")
    if config.run is None:
        raise ConfigError(
            "run: name the runs to compare, as in: rlx report outputs/attack/A outputs/attack/B"
        )
    trained = command_of(named(config.run)[0]) == "train"
    runs = _finished(find_all(config.run, config.outputs, "train" if trained else "attack"))
    _learning(runs, config.outputs, composed) if trained else _attacks(runs, config, composed)


def _finished(runs: Sequence[Run]) -> list[Run]:
    """Those of `runs` that have a result; each of the others is named. ConfigError where none is left."""
    finished = []
    for run in runs:
        status = run.unfinished()
        if status is None:
            finished.append(run)
        else:
            report.start(**{"left out": f"{run.path}: {status}"})
    if not finished:
        raise ConfigError(
            f"run: none of the {len(runs)} runs is finished (of a training, rlx resume goes on)."
        )
    return finished


def _learning(runs: Sequence[Run], outputs: str, composed: DictConfig) -> None:
    """Greedy return while learning, one curve per run and one panel per env, and each run's result."""
    from rlx.show import figures

    labels = _names(runs)
    output = Run.create(outputs, "report", runs[0].path.parent.name, composed)
    with output.writing():
        panels: dict[str, list[figures.RobustnessCurve]] = {}
        for label, run in zip(labels, runs, strict=True):
            steps, _, values = run.curve()
            cells = [
                {"return": stats.estimate(row[:, None]).as_dict() | {"per_seed": row}}
                for row in values
            ]
            panels.setdefault(_env_name(run), []).append(
                figures.RobustnessCurve(label, steps, cells)
            )
        figures.robustness(panels, output.path / "report.png", "environment steps per seed")
        table, lines = [], []
        for label, run in zip(labels, runs, strict=True):
            summary = run.summary()
            returns, bar = summary["return"], summary.get("reward_threshold", np.nan)
            solved = (
                ""
                if np.isnan(bar)
                else f"{sum(value >= bar for value in returns['per_seed'])} (from {bar:g})"
            )
            result = report.interval_text(returns["iqm"], returns["ci95"])
            facts = [len(returns["per_seed"]), summary["steps"], summary["wall_s"]]
            lines.append([run.path, label, returns["iqm"], *returns["ci95"], *facts])
            table.append(
                [label, result, str(facts[0]), solved, f"{facts[1]:,}", report.duration(facts[2])]
            )
        with open(output.path / "report.csv", "w", newline="") as file:
            header = ["run", "label", "iqm", "ci95_low", "ci95_high", "seeds", "steps", "wall_s"]
            csv.writer(file).writerows([header, *lines])
        title = "Return of the weights kept: interquartile mean over seeds, 95 % bootstrap interval"
        report.table(title, ["run", "return", "seeds", "solved", "steps", "took"], table)
        if atari100k.is_benchmark(runs):
            atari100k.table(runs)
        output.complete({"run": [str(run.path) for run in runs], "labels": labels})
    report.end(output.path, table=output.path / "report.csv", figure=output.path / "report.png")


def _env_name(run: Run) -> str:
    return run.path.parent.name.partition("-")[2]


def _names(runs: Sequence[Run]) -> list[str]:
    """Agent and env of each run, where these differ, and what tells it from others of the same two."""
    names = [run.path.parent.name for run in runs]
    labels = list(names)
    for name in set(names):
        places = [i for i, other in enumerate(names) if other == name]
        for i, text in zip(places, differences([runs[i].config for i in places]), strict=True):
            if len(places) > 1:
                labels[i] = text if len(places) == len(runs) else f"{name} {text}"
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({run.path.name})" if label in twice else label
        for label, run in zip(labels, runs, strict=True)
    ]


def differences(configs: Sequence[DictConfig]) -> list[str]:
    """What tells each of some configs from the others, as in "agent.double=true, steps=1000"."""
    flat = [_flat(OmegaConf.to_container(config), "") for config in configs]
    keys = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({str(one.get(key)) for one in flat}) > 1
    ]
    keys = [
        key
        for key in keys
        if key.split(".")[0] not in ("outputs", "device", "checkpoint_every", "checkpoint_seconds")
    ]
    return [
        ", ".join(f"{key.removeprefix('agent.')}={one.get(key)}" for key in keys) or f"run {i}"
        for i, one in enumerate(flat)
    ]


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, inner in node.items()
        for key, value in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()
    }


def _attacks(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Robustness curves, and the ranks of the agents."""
    summaries = [run.summary() for run in runs]
    heads = [
        list(dict.fromkeys(cell["head"] for cell in summary["cells"])) for summary in summaries
    ]
    shared = [head for head in heads[0] if all(head in other for other in heads)]
    if config.mode is None and not shared:
        raise ConfigError(
            f"run: these attacks share no mode: {'; '.join(', '.join(modes) for modes in heads)}."
        )
    mode = config.mode or ("both" if "both" in shared else shared[0])
    for run, summary in zip(runs, summaries, strict=True):
        for key, what in (
            ("run", "attacks other agents"),
            ("seeds", "attacks other seeds"),
            ("scale", "has another unit of eps"),
        ):
            if summary[key] != summaries[0][key]:
                raise ConfigError(
                    f"run={run.path}: {what} than {runs[0].path}: {summary[key]}, not {summaries[0][key]}."
                )
        if run.config.checkpoint != runs[0].config.checkpoint:
            raise ConfigError(
                f"run={run.path}: attacks checkpoint {run.config.checkpoint}, {runs[0].path} {runs[0].config.checkpoint}."
            )
        choice(mode, {cell["head"] for cell in summary["cells"]}, "mode")

    from scipy.stats import rankdata, spearmanr

    from rlx.show import figures

    labels = [_label(run) for run in runs]
    cells = [[cell for cell in summary["cells"] if cell["head"] == mode] for summary in summaries]
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    with output.writing():
        curves = [
            figures.RobustnessCurve(label, s["eps"], c)
            for label, s, c in zip(labels, summaries, cells, strict=True)
        ]
        seeds = summaries[0]["seeds"]
        scale = runs[0].config.scale
        title = f"{runs[0].path.parent.name}, {mode} attacked, {len(seeds)} seeds"
        figures.robustness(
            {title: curves},
            output.path / "report.png",
            f"eps ({eps_unit(scale)})",
            summaries[0]["random"],
        )

        last = np.array([c[-1]["return"]["per_seed"] for c in cells])  # [runs, S]
        ranks = np.array([rankdata(-values) for values in last])
        rows = [
            [str(seed), *(f"{v:.1f} ({r:g})" for v, r in zip(last[:, i], ranks[:, i], strict=True))]
            for i, seed in enumerate(seeds)
        ]
        columns = [
            f"{label} at {s['eps'][-1]:g}" for label, s in zip(labels, summaries, strict=True)
        ]
        report.table(
            f"Return per seed at the largest radius, and the agent's rank (1: most robust), {mode} attacked",
            ["seed", *columns],
            rows,
        )
        # Where all agents return the same they have no ranks.
        correlations = [
            float(spearmanr(last[0], x).statistic)
            if min(np.ptp(last[0]), np.ptp(x)) > 0
            else np.nan
            for x in last
        ]
        for label, value in zip(labels[1:], correlations[1:], strict=True):
            report.start(ranks=f"'{labels[0]}' against '{label}': Spearman correlation {value:.2f}")
        facts = {"run": [str(run.path) for run in runs], "labels": labels, "seeds": seeds}
        output.complete(
            facts | {"return": last, "rank": ranks, "spearman_with_first": correlations}
        )
    report.end(output.path, figure=output.path / "report.png")


def _label(run: Run) -> str:
    """What kind of attack it was, from its config."""
    attack = run.config.attack
    name = str(attack["_target_"]).rpartition(".")[2]
    return f"{name} {attack.get('loss', attack.get('kind', ''))}".strip()
