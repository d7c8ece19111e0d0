"""Go on with a run as if it had never stopped, or with a finished one for more steps or seeds."""

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of resume.yaml: a run, and what may change in it; null leaves it as it was."""

    run: Any
    """Run directory, or a folder with runs, of which the newest is taken; null: of all runs."""
    seeds: Any
    """All seeds that a finished run shall have."""
    device: Any
    """One of conf/device, with its keys."""
    tracker: Any
    """Trackers of conf/tracker, with their keys; `none`: no more."""
    steps: int | None
    """Environment steps per seed, those made included."""
    eval_every: int | None
    """Environment steps between two greedy evaluations."""
    eval_episodes: int | None
    """Episodes of an evaluation while learning."""
    final_episodes: int | None
    """Episodes of the last evaluation."""
    checkpoint_every: int | None
    """Environment steps between two checkpoints that stay."""
    checkpoint_seconds: float | None
    """Seconds after which another checkpoint is saved."""


@command("resume")
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation."""
    config = build(Config, composed, "")
    runs = find_all(config.run, config.outputs, finished=False, trusted=config.trust)
    if len(runs) != 1:
        raise ConfigError("run: resume takes one run.")
    (run,) = runs
    changes = _changes(config)
    if config.seeds is not None and changes:
        raise ConfigError(
            f"seeds={config.seeds}: seeds are added by themselves; "
            f"give {', '.join(changes)} in another rlx resume."
        )
    console.facts(resume=run.path)
    if config.seeds is not None:
        from rlx.training import growing

        return growing.grow(run, config.seeds)
    with run.lock():  # from the first look at what is saved to the last write
        return go_on(run, changes)


def _changes(config: Config) -> dict[str, Any]:
    """The keys of the run's config that are to change."""
    changes = {}
    for field in fields(Config):
        value = getattr(config, field.name)
        if field.name not in ("run", "outputs", "seeds", "trust") and value is not None:
            changes[field.name] = value
    return changes


def go_on(run: Run, changes: dict[str, Any]) -> float:
    """Take up the run, which is locked, with some keys changed."""
    from rlx.experiment import training_config
    from rlx.training.config import validated
    from rlx.training.resuming import resumed

    saved = validated(training_config(run))
    if "device" in changes:
        # Of a group some keys may be given alone.
        changes["device"] = {**saved.device, **changes["device"]}
    for key, value in changes.items():
        if value != saved[key]:
            console.facts(**{key: f"{saved[key]} → {value}"})
            saved[key] = value
    saved = validated(saved)
    training, warnings = resumed(run, saved)
    steps = training.config.steps
    if training.step >= steps and run.meta()["status"] == "completed":
        raise ConfigError(
            f"run={run.path}: complete at step {training.step:,}; to go on, "
            f"add for example steps={2 * training.step} or more seeds=, or name another run."
        )
    for warning in warnings:
        console.warning(warning)
    annealed = saved.agent.get("anneal_steps", steps)
    if steps > annealed:
        console.facts(
            warning=f"agent.anneal_steps={annealed}: from that step on the learning rate stays at "
            "agent.learning_rate_end"
        )
    console.facts(resumes=f"at step {training.step:,}")
    return training.run(run, saved)
