"""Go on with an interrupted run, exactly as if it had never stopped, or with a finished one for more steps or more seeds."""

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of resume.yaml: a run, and what may change in it; null leaves it."""

    run: Any
    outputs: str
    seeds: Any
    """All that a finished run shall have."""
    device: Any
    steps: int | None
    eval_every: int | None
    eval_episodes: int | None
    final_episodes: int | None
    checkpoint_every: int | None
    checkpoint_seconds: float | None
    trust: bool


@command("resume")
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation."""
    config = build(Config, composed, "")
    runs = find_all(config.run, config.outputs, finished=False, trusted=config.trust)
    if len(runs) != 1:
        raise ConfigError("run: resume takes one run.")
    own = ("run", "outputs", "seeds", "trust")
    changes = {f.name: getattr(config, f.name) for f in fields(Config) if f.name not in own}
    changes = {key: value for key, value in changes.items() if value is not None}
    if config.seeds is not None and changes:
        raise ConfigError(
            f"seeds={config.seeds}: seeds are added by themselves; give {', '.join(changes)} in another rlx resume."
        )
    report.start(resume=runs[0].path)

    from rlx.training import growing

    if config.seeds is not None:
        return growing.grow(runs[0], config.seeds)
    with runs[0].lock():  # from the first look at what is saved to the last write
        return _go_on(runs[0], changes)


def _go_on(run: Run, changes: dict[str, Any]) -> float:
    """Take up the run, which is locked, with some keys changed."""
    from rlx.experiment import trained, validated
    from rlx.training import growing

    saved = validated(trained(run))
    for key, value in changes.items():
        if value != saved[key]:
            report.start(**{key: f"{saved[key]} → {value}"})
            saved[key] = value
    saved = validated(saved)
    training, warnings = growing.resumed(run, saved)
    if training.step >= training.config.steps and run.meta()["status"] == "completed":
        more = 2 * training.step
        raise ConfigError(
            f"run={run.path}: complete at step {training.step:,}; to go on, add for example steps={more} or more seeds=, "
            f"or name another run."
        )
    for warning in warnings:
        report.start(warning=warning)
    if training.config.steps > (over := saved.agent.get("anneal_steps", training.config.steps)):
        report.start(
            warning=f"agent.anneal_steps={over}: from that step on the learning rate stays at agent.learning_rate_end"
        )
    report.start(resumes=f"at step {training.step:,}")
    return training.run(run, saved)
