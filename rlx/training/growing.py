"""More seeds for a finished run: the new ones train alone, beside the old ones, and then both are one run."""

import shlex
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from rlx.config import build, parse_seeds
from rlx.errors import ConfigError
from rlx.experiment import check_tensors, env_spec, trained, validated
from rlx.nn.seed_axis import concatenated
from rlx.runs.run import Run
from rlx.show import report
from rlx.training.config import Config
from rlx.training.loop import Training


def grow(run: Run, seeds: object) -> float:
    """Train those of `seeds` that `run` has not; returns the interquartile mean of the last evaluation.

    The result is that of a run of all of them. Until the new seeds are done `run` stays as it is, and they can be resumed by
    the same command. ConfigError where `run` is not finished or has seeds that are not wanted.
    """
    with run.lock():
        saved, wanted = validated(trained(run)), parse_seeds(seeds)
        own = parse_seeds(saved.seeds)
        if missing := sorted(set(own) - set(wanted)):
            raise ConfigError(
                f"seeds={seeds}: {run.path} has {missing} too; name all that it shall have."
            )
        if run.meta()["status"] != "completed":
            raise ConfigError(
                f"run={run.path}: finish it first (rlx resume {run.path}); then seeds can be added."
            )
        new = [seed for seed in wanted if seed not in own]
        if not new:
            raise ConfigError(f"seeds={seeds}: {run.path} has them all.")
        report.start(
            grows=f"{run.path}: seeds {report.ranges(own)}, now {report.ranges(new)} as well"
        )
        words = str(seeds).replace(" ", "")
        go_on = f"rlx resume {shlex.quote(str(run.path))} seeds={words}"
        younger = _trained(run, saved, new, go_on)
        return _join(run, younger, saved, own, new, go_on)


def _config(saved: DictConfig, seeds: Sequence[int]) -> DictConfig:
    changed = OmegaConf.create(OmegaConf.to_container(saved))
    assert isinstance(changed, DictConfig)
    changed.seeds = list(seeds)
    return changed


def _trained(run: Run, saved: DictConfig, new: Sequence[int], go_on: str) -> Run:
    """A finished run of the new seeds, in a folder of `run`: found, resumed or begun."""
    config, name = _config(saved, new), run.path.parent.name
    for younger in run.growing():
        if not younger.checkpoints.steps():
            younger.delete()  # killed before its first checkpoint
        elif younger.config == config:
            if younger.meta()["status"] != "completed":
                with younger.lock():
                    training, warnings = resumed(younger, config)
                    for warning in warnings:
                        report.start(warning=warning)
                    report.start(resumes=f"at step {training.step:,}")
                    training.run(younger, config, go_on)
            return younger
    younger = Run.create(str(run.path / "growing"), "train", name, config)
    Training(build(Config, config, ""), name).run(younger, go_on=go_on)
    return younger


def resumed(run: Run, config: DictConfig) -> tuple[Training, list[str]]:
    """(a run's training as its newest whole checkpoint has it, warnings about damaged ones); `config`: its own, or a changed one."""
    counters, policy, state, warnings = run.newest()
    try:
        where = run.path / "checkpoints" / f"{counters['step']:09d}" / "agent.safetensors"
        check_tensors(config, env_spec(config.env), len(counters["seeds"]), policy, where)
        shape = len(parse_seeds(config.seeds)), len(counters["seeds"]), config.num_envs
        saved = len(state["loop.last"]), *state["loop.obs"].shape[:2]
        if shape != saved and not config.data:
            raise ConfigError(
                f"{run.path}: config.yaml has (seeds, those learning, num_envs) = {shape}, the checkpoint {saved}."
            )
        training = Training(build(Config, config, ""), run.path.parent.name)
        training.load(counters, policy, state, run.checkpoints.parts(counters["replay"]))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{run.path}: the newest checkpoint does not fit the run's config ({type(error).__name__}: {error})."
        ) from error
    return training, warnings


def _join(
    run: Run, younger: Run, saved: DictConfig, own: Sequence[int], new: Sequence[int], go_on: str
) -> float:
    """Replace `run` by itself and `younger` side by side."""
    config = _config(saved, [*own, *new])
    (older_training, damaged), (younger_training, also) = (
        resumed(run, saved),
        resumed(younger, younger.config),
    )
    if damaged or also:
        raise ConfigError(
            f"{(damaged + also)[0]} It is incomplete: rlx resume {run.path if damaged else younger.path}"
        )
    whole = Training(build(Config, config, ""), run.path.parent.name)
    whole.join(older_training, younger_training)
    joined = Run.create(str(run.path / "growing" / "joined"), "train", run.path.parent.name, config)
    order = {seed: i for i, seed in enumerate([*own, *new])}
    rows = [row for row in run.metrics() + younger.metrics() if row["step"] <= whole.evaluated]
    joined.log(sorted(rows, key=lambda row: (row["step"], order[row["seed"]])))
    for name in sorted(set(run.checkpoints.steps()) & set(younger.checkpoints.steps())):
        if int(name) < whole.step:
            learning = (
                run.checkpoints.counters(name)["seeds"]
                + younger.checkpoints.counters(name)["seeds"]
            )
            joined.checkpoints.save(
                name,
                {"step": int(name), "seeds": learning},
                concatenated(run.checkpoints.load(name), younger.checkpoints.load(name)),
            )
    result = whole.run(joined, go_on=go_on)
    joined.replaces(run)
    report.end(run.path)
    return result
