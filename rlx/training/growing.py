"""More seeds for a finished run.

The new ones train alone, in a run inside it; then both are joined and take its place.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from rlx.config import build, parse_seeds
from rlx.errors import ConfigError
from rlx.experiment import trained
from rlx.nn.seed_axis import concatenated
from rlx.runs.run import Run
from rlx.show import console
from rlx.training import state
from rlx.training.config import Config, validated
from rlx.training.loop import Training
from rlx.training.resuming import resumed


def grow(run: Run, seeds: object) -> float:
    """Train those of `seeds` that `run` has not.

    Returns the interquartile mean of the last evaluation. The result is that of a run of all seeds.
    Until the new ones are done `run` stays as it is, and they can be resumed by the same command.
    ConfigError where `run` is not finished or has seeds that are not wanted.
    """
    with run.lock():
        saved = validated(trained(run))
        wanted = parse_seeds(seeds)
        own = parse_seeds(saved.seeds)
        unwanted = sorted(set(own) - set(wanted))
        if unwanted:
            raise ConfigError(
                f"seeds={seeds}: {run.path} has {unwanted} too; name all that it shall have."
            )
        if run.meta()["status"] != "completed":
            raise ConfigError(
                f"run={run.path}: finish it first (rlx resume {run.path}); then seeds can be added."
            )
        new = [seed for seed in wanted if seed not in own]
        if not new:
            raise ConfigError(f"seeds={seeds}: {run.path} has them all.")
        has = console.ranges(own)
        console.facts(grows=f"{run.path}: seeds {has}, now {console.ranges(new)} as well")
        argument = str(seeds).replace(" ", "")
        go_on = f"rlx resume {shlex.quote(str(run.path))} seeds={argument}"
        growth = _Growth(run, saved, own, new, go_on)
        return growth.join(growth.younger())


@dataclass(frozen=True)
class _Growth:
    """A run that gets more seeds."""

    run: Run
    config: DictConfig
    """The run's own."""
    own: list[int]
    """Seeds that it has."""
    new: list[int]
    """Seeds that it gets."""
    go_on: str
    """The command that takes this up again."""

    @property
    def name(self) -> str:
        """Agent and env, as in "dqn-cartpole"."""
        return self.run.path.parent.name

    def younger(self) -> Run:
        """A finished run of the new seeds, in a folder of the run: found, resumed or begun."""
        config = self._config_of(self.new)
        for younger in self.run.growing():
            if not younger.checkpoints.steps():
                younger.delete()  # killed before its first checkpoint
            elif younger.config == config:
                if younger.meta()["status"] != "completed":
                    self._resume(younger, config)
                return younger
        younger = Run.create(str(self.run.path / "growing"), "train", self.name, config)
        Training(build(Config, config, ""), self.name).run(younger, go_on=self.go_on)
        return younger

    def join(self, younger: Run) -> float:
        """Replace the run by itself and `younger` side by side."""
        first = self._whole(self.run, self.config)
        second = self._whole(younger, younger.config)
        config = self._config_of([*self.own, *self.new])
        training = Training(build(Config, config, ""), self.name)
        state.join(training, first, second)
        joined = Run.create(str(self.run.path / "growing" / "joined"), "train", self.name, config)
        self._join_metrics(joined, younger, training.evaluated)
        self._join_checkpoints(joined, younger, training.step)
        result = training.run(joined, go_on=self.go_on)
        joined.replaces(self.run)
        console.result(self.run.path)
        return result

    def _config_of(self, seeds: Sequence[int]) -> DictConfig:
        """The run's config, of other seeds."""
        config = OmegaConf.create(OmegaConf.to_container(self.config))
        assert isinstance(config, DictConfig)
        config.seeds = list(seeds)
        return config

    def _resume(self, younger: Run, config: DictConfig) -> None:
        """Finish a run of the new seeds that was interrupted; `config`: its own."""
        with younger.lock():
            training, warnings = resumed(younger, config)
            for warning in warnings:
                console.warning(warning)
            console.facts(resumes=f"at step {training.step:,}")
            training.run(younger, config, self.go_on)

    def _whole(self, run: Run, config: DictConfig) -> Training:
        """The training of a finished run; ConfigError where its last checkpoint is damaged."""
        training, warnings = resumed(run, config)
        if warnings:
            raise ConfigError(f"{warnings[0]} It is incomplete: rlx resume {run.path}")
        return training

    def _join_metrics(self, joined: Run, younger: Run, evaluated: int) -> None:
        """Log the rows of both runs up to the step `evaluated`, as a run of all seeds would."""
        place = {seed: i for i, seed in enumerate([*self.own, *self.new])}
        rows = [row for row in self.run.metrics() + younger.metrics() if row["step"] <= evaluated]
        joined.log(sorted(rows, key=lambda row: (row["step"], place[row["seed"]])))

    def _join_checkpoints(self, joined: Run, younger: Run, last: int) -> None:
        """Save the policies at those steps before `last` at which both runs have one."""
        for name in sorted(set(self.run.checkpoints.steps()) & set(younger.checkpoints.steps())):
            if int(name) >= last:
                continue
            seeds = (
                self.run.checkpoints.counters(name)["seeds"]
                + younger.checkpoints.counters(name)["seeds"]
            )
            policy = concatenated(self.run.checkpoints.load(name), younger.checkpoints.load(name))
            joined.checkpoints.save(name, {"step": int(name), "seeds": seeds}, policy)
