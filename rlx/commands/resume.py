"""Go on with an interrupted run, exactly as if it had never stopped, or with a finished one for more steps."""

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig

from rlx import report
from rlx.commands.train import Config as TrainConfig
from rlx.config import ConfigError, build, command
from rlx.run import Run


@dataclass(frozen=True)
class Config:
    """The keys of resume.yaml: a run, and what may change in it; null leaves it."""

    run: Any
    outputs: str
    steps: int | None
    eval_every: int | None
    eval_episodes: int | None
    final_episodes: int | None
    checkpoint_every: int | None


@command("resume")
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation."""
    config = build(Config, composed, "")
    runs = Run.find_all(config.run, config.outputs, finished=False)
    if len(runs) != 1:
        raise ConfigError("run: resume takes one run.")
    run = runs[0]
    saved = run.config
    for key in (field.name for field in fields(Config) if field.name not in ("run", "outputs")):
        if (value := getattr(config, key)) is not None and value != saved[key]:
            report.start(**{key: f"{saved[key]:,} → {value:,}"})
            saved[key] = value
    train = build(TrainConfig, saved, "")
    counters, policy, state, warnings = run.load_newest()

    from rlx.training import Training

    training = Training(train, run.path.parent.name)
    training.load(counters, policy, state)
    if training.step >= train.steps and run.meta()["status"] == "completed":
        raise ConfigError(f"run={run.path}: complete at step {training.step:,}; to go on, add for example steps={2 * training.step}.")
    for warning in warnings:
        report.start(warning=warning)
    report.start(resumes=f"at step {training.step:,}")
    return training.run(run, saved)
