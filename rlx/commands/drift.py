"""In a drifting env: a policy that stopped learning at some checkpoint beside the one that went on; one figure over time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import command
from rlx.config import Count, build
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of drift.yaml."""

    device: Any
    run: Any
    checkpoint: str | None
    episodes: Count
    outputs: str
    trust: bool


@command("drift")
def main(composed: DictConfig) -> None:
    """Play, draw and print."""
    config = build(Config, composed, "")
    runs = find_all(config.run, config.outputs, trusted=config.trust)
    run, trained = runs[0], runs[0].config
    if len(runs) > 1 or not trained.env.get("drift") or trained.stop:
        raise ConfigError(
            f"run={run.path}: drift takes one run, of an env that drifts (env.drift), without a stop rule."
        )
    before = [
        name
        for name in run.checkpoints.steps()
        if int(name) // trained.num_envs <= trained.env.drift.begin
    ]
    if config.checkpoint is None and not before:
        raise ConfigError(
            f"checkpoint: {run.path} has none from before the drift; it has: {', '.join(run.checkpoints.steps())}."
        )
    checkpoint = config.checkpoint or before[-1]

    from rlx import experiment
    from rlx.evaluation import SELECTION, evaluate
    from rlx.policies import load_policies
    from rlx.show import figures, stats

    device = experiment.setup_device(config.device)
    policy, _, seeds = load_policies(runs, checkpoint, device)
    output = Run.create(config.outputs, "drift", run.path.parent.name, composed)
    report.start(
        run=run.path,
        frozen=f"checkpoint {checkpoint}",
        episodes=f"{config.episodes} per seed and step",
        device=device,
    )
    env = experiment.evaluated_env(trained)
    steps, order, curve = run.curve()
    learning = curve[:, [order.index(seed) for seed in seeds]]  # [E, S]
    with output.writing():
        frozen = []
        for step in steps:
            then = partial(experiment.make_env, env, device=device, clock=step // trained.num_envs)
            episodes = evaluate(policy, then, len(seeds), config.episodes, SELECTION, device)
            frozen.append(episodes.returns.mean(1).cpu().numpy())
        curves = {
            "goes on learning": learning,
            f"frozen at checkpoint {checkpoint}": np.array(frozen),
        }
        estimates = {
            label: [stats.estimate(values[:, None]) for values in curve]
            for label, curve in curves.items()
        }
        cells = {
            label: [{"return": estimate.as_dict()} for estimate in row]
            for label, row in estimates.items()
        }
        drift = trained.env.drift
        title = f"{run.path.parent.name}, {len(seeds)} seeds: {drift.parameter} {trained.env[drift.parameter]:g} → {drift.to:g}"
        lines = [figures.RobustnessCurve(label, steps, row) for label, row in cells.items()]
        figures.robustness(
            {title: lines},
            output.path / "drift.png",
            "environment steps per seed (also the env's age)",
        )
        output.complete({"run": str(run.path), "seeds": seeds, "steps": steps, "cells": cells})
    report.table(
        "Greedy return in the env as it is at that step",
        ["step", *cells],
        [
            [
                f"{step:,}",
                *(report.interval_text(row[i].iqm, row[i].ci95) for row in estimates.values()),
            ]
            for i, step in enumerate(steps)
        ],
    )
    report.end(output.path, figure=output.path / "drift.png")
