"""In an env that drifts: a policy that stopped learning beside the one that went on.

It stopped at some checkpoint. One figure over time.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from rlx.command import RunConfig, command, pin_runs
from rlx.config import Count, build
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console, figures

if TYPE_CHECKING:
    from rlx.policies import Opened


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of drift.yaml."""

    device: Any
    """Where it runs: a file of conf/device."""
    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
    run: Any
    """A training of an env that drifts; null: the newest training."""
    checkpoint: str | None
    """The checkpoint that is frozen; null: the last before the drift begins."""
    episodes: Count
    """Episodes of each seed at each step."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config, as far as it can be told without playing."""
    _load(build(Config, composed, ""))


def _load(config: Config) -> "tuple[Run, str, Opened]":
    """The run, its checkpoint that is frozen, and the policies there."""
    runs = find_all(config.run, config.outputs, trusted=config.trust)
    run = runs[0]
    training = run.config
    if len(runs) > 1 or not training.env.get("drift") or training.stop:
        what = "drift takes one run, of an env that drifts (env.drift), without a stop rule"
        raise ConfigError(f"run={run.path}: {what}.")
    checkpoint = config.checkpoint or _last_before_drift(run)

    from rlx import experiment
    from rlx.policies import open_runs

    device = experiment.setup_device(config.device)
    return run, checkpoint, open_runs(runs, checkpoint, device)


@command("drift", check=check, pin=pin_runs)
def main(composed: DictConfig) -> None:
    """Plays, draws and prints."""
    config = build(Config, composed, "")
    run, checkpoint, opened = _load(config)
    training = run.config
    drift = training.env.drift

    from rlx import statistics
    from rlx.evaluation import SELECTION, evaluate
    from rlx.show import figures

    device = opened.device
    seeds = opened.seeds
    source = run.path.parent.name
    output = Run.create(config.outputs, "drift", source, composed)
    console.facts(
        run=run.path,
        frozen=f"checkpoint {checkpoint}",
        episodes=f"{config.episodes} per seed and step",
        device=device,
    )
    steps, order, logged = run.curve()
    learning = logged[:, [order.index(seed) for seed in seeds]]
    figure = output.path / "drift.png"
    with output.writing():
        frozen = []
        for step in steps:
            aged = replace(opened, age=step // training.num_envs)
            episodes = evaluate(
                opened.policy, aged.make_env, len(seeds), config.episodes, SELECTION, device
            )
            frozen.append(episodes.returns.mean(1).cpu().numpy())
        returns = {
            "goes on learning": learning,
            f"frozen at checkpoint {checkpoint}": np.array(frozen),
        }
        estimates = {
            label: [statistics.estimate(at_step[:, None]) for at_step in values]
            for label, values in returns.items()
        }
        curves = [figures.Curve(label, steps, values) for label, values in estimates.items()]
        change = f"{drift.parameter} {training.env[drift.parameter]:g} → {drift.to:g}"
        title = f"{source}, {len(seeds)} seeds: {change}"
        x = "environment steps per seed (also the env's age)"
        figures.save(figures.curves({title: curves}, x, None, config.figure), figure)
        cells = {
            label: [{"return": estimate.as_dict()} for estimate in values]
            for label, values in estimates.items()
        }
        output.complete({"run": str(run.path), "seeds": seeds, "steps": steps, "cells": cells})
    rows = []
    for number, step in enumerate(steps):
        row = [f"{step:,}"]
        for values in estimates.values():
            row.append(console.interval_text(values[number].iqm, values[number].ci95))
        rows.append(row)
    console.table("Greedy return in the env as it is at that step", ["step", *estimates], rows)
    console.result(output.path, figure=figure)


def _last_before_drift(run: Run) -> str:
    """The run's last checkpoint from before the env drifts; ConfigError where there is none."""
    steps = run.checkpoints.steps()
    begin = run.config.env.drift.begin
    before = [name for name in steps if int(name) // run.config.num_envs <= begin]
    if not before:
        text = f"{run.path} has none from before the drift; it has: {', '.join(steps)}"
        raise ConfigError(f"checkpoint: {text}.")
    return before[-1]
