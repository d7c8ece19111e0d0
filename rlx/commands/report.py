"""Compare attack runs on the same agents: one figure, and how each attack ranks the agents."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rlx import report
from rlx.config import ConfigError, build, choice, command
from rlx.run import Run


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    run: Any
    mode: str
    outputs: str


@command("report")
def main(composed: DictConfig) -> None:
    """Draw and print."""
    config = build(Config, composed, "")
    if config.run is None:
        raise ConfigError("run: name the attack runs to compare, as in: rlx report outputs/attack/A outputs/attack/B")
    runs = Run.find_all(config.run, config.outputs, "attack")
    summaries = [run.summary() for run in runs]
    for run, summary in zip(runs, summaries, strict=True):
        for key, what in (("run", "attacks other agents"), ("seeds", "attacks other seeds"), ("scale", "has another unit of eps")):
            if summary[key] != summaries[0][key]:
                raise ConfigError(f"run={run.path}: {what} than {runs[0].path}: {summary[key]}, not {summaries[0][key]}.")
        if run.config.checkpoint != runs[0].config.checkpoint:
            raise ConfigError(f"run={run.path}: attacks checkpoint {run.config.checkpoint}, {runs[0].path} {runs[0].config.checkpoint}.")
        choice(config.mode, {cell["head"] for cell in summary["cells"]}, "mode")

    from scipy.stats import rankdata, spearmanr

    from rlx import figures

    labels = [_label(run) for run in runs]
    cells = [[cell for cell in summary["cells"] if cell["head"] == config.mode] for summary in summaries]
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    curves = [figures.RobustnessCurve(label, s["eps"], c) for label, s, c in zip(labels, summaries, cells, strict=True)]
    seeds = summaries[0]["seeds"]
    scale = runs[0].config.scale
    title = f"{runs[0].path.parent.name}, {config.mode} attacked, {len(seeds)} seeds"
    figures.robustness(curves, output.path / "report.png", title, f"eps, radius of the box in units of {scale}")

    last = np.array([c[-1]["return"]["per_seed"] for c in cells])  # [runs, S]
    ranks = np.array([rankdata(-values) for values in last])
    rows = [[str(seed), *(f"{v:.1f} ({r:g})" for v, r in zip(last[:, i], ranks[:, i], strict=True))] for i, seed in enumerate(seeds)]
    columns = [f"{label} at {s['eps'][-1]:g}" for label, s in zip(labels, summaries, strict=True)]
    report.table(
        f"Return per seed at the largest radius, and the agent's rank (1: most robust), {config.mode} attacked", ["seed", *columns], rows
    )
    correlations = [float(spearmanr(last[0], values).statistic) for values in last]
    for label, value in zip(labels[1:], correlations[1:], strict=True):
        report.start(ranks=f"'{labels[0]}' against '{label}': Spearman correlation {value:.2f}")
    output.write_summary(
        {"status": "completed", "run": [str(run.path) for run in runs], "labels": labels, "seeds": seeds}
        | {"return": last, "rank": ranks, "spearman_with_first": correlations}
    )
    output.write_meta(status="completed")
    report.end(output.path, figure=output.path / "report.png")


def _label(run: Run) -> str:
    """What kind of attack it was, from its config."""
    attack = run.config.attack
    name = str(attack["_target_"]).rpartition(".")[2]
    return f"{name} {attack.get('loss', attack.get('kind', ''))}".strip()
