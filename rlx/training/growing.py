"""More seeds for a finished run.

The new seeds train alone, in a run inside the finished one. Then both runs are joined into a third,
which takes the place of the finished one.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from rlx.config import build
from rlx.errors import ConfigError
from rlx.experiment import make_env, training_config
from rlx.grids import parse_seeds
from rlx.nn.seed_axis import concatenated
from rlx.policies import numbers_of_seeds
from rlx.robustness.attacked_env import AttackedEnv
from rlx.runs.run import Run
from rlx.show import console
from rlx.trackers.tracking import track_finished
from rlx.training import state
from rlx.training.config import Config, validated
from rlx.training.loop import Training
from rlx.training.resuming import resumed


def grow(run: Run, seeds: object) -> float:
    """Train those of `seeds` that `run` does not have, and add them to it.

    The result is that of a run of all seeds. Returns the interquartile mean of its last evaluation.
    Until the new seeds are done `run` stays as it is, and the same command goes on with them.
    ConfigError where `run` is not finished, or has a seed that is not among `seeds`.
    """
    with run.lock():
        saved = validated(training_config(run))
        wanted = parse_seeds(seeds)
        old_seeds = parse_seeds(saved.seeds)
        unwanted = sorted(set(old_seeds) - set(wanted))
        if unwanted:
            raise ConfigError(
                f"seeds={seeds}: {run.path} has {unwanted} too; name all that it shall have."
            )
        if run.meta()["status"] != "completed":
            raise ConfigError(
                f"run={run.path}: finish it first (rlx resume {run.path}); then seeds can be added."
            )
        new_seeds = [seed for seed in wanted if seed not in old_seeds]
        if not new_seeds:
            raise ConfigError(f"seeds={seeds}: {run.path} has them all.")
        lists = numbers_of_seeds(saved)
        if lists:
            raise ConfigError(
                f"seeds={seeds}: agent.{lists[0]} has a number for each seed of {run.path}, and "
                "none for new ones; train these as a run of their own."
            )
        env = make_env(saved.env, 1, "cpu")
        if isinstance(env, AttackedEnv):
            env.members.check_seeds(len(wanted), ())
        old_text = console.ranges(old_seeds)
        new_text = console.ranges(new_seeds)
        console.facts(grows=f"{run.path}: seeds {old_text}, now {new_text} as well")
        argument = str(seeds).replace(" ", "")
        go_on = f"rlx resume {shlex.quote(str(run.path))} seeds={argument}"
        growth = _Growth(run, saved, old_seeds, new_seeds, go_on)
        return growth.join(growth.train_new_seeds())


@dataclass(frozen=True)
class _Growth:
    """A run that gets more seeds."""

    run: Run
    config: DictConfig
    """The config of the run."""
    old_seeds: list[int]
    """Seeds that the run has."""
    new_seeds: list[int]
    """Seeds that the run gets."""
    go_on: str
    """The command that takes the growing up again where it was interrupted."""

    @property
    def name(self) -> str:
        """Agent and env, as in "dqn-cartpole"."""
        return self.run.path.parent.name

    def train_new_seeds(self) -> Run:
        """A finished run of the new seeds, in a folder of the run: found, resumed or begun."""
        config = self._config_of(self.new_seeds)
        for younger in self.run.runs_of_new_seeds():
            if not younger.checkpoints.steps():
                # It was killed before its first checkpoint.
                younger.delete()
            elif younger.config == config:
                if younger.meta()["status"] != "completed":
                    self._resume(younger, config)
                return younger
        younger = Run.create(str(self.run.path / "growing"), "train", self.name, config)
        Training(build(Config, config, ""), self.name).run(younger, go_on=self.go_on)
        return younger

    def join(self, younger: Run) -> float:
        """Replace the run by a run of its seeds and those of `younger`.

        Returns the interquartile mean of the last evaluation.
        """
        first = self._finished(self.run, self.config)
        second = self._finished(younger, younger.config)
        config = self._config_of([*self.old_seeds, *self.new_seeds])
        training = Training(build(Config, config, ""), self.name)
        state.join(training, first, second)
        joined = Run.create(str(self.run.path / "growing" / "joined"), "train", self.name, config)
        self._join_metrics(joined, younger, training.evaluated)
        self._join_checkpoints(joined, younger, training.step)
        result = training.run(joined, go_on=self.go_on)
        joined.take_place_of(self.run)
        track_finished(self.run, training.trackers)
        console.result(self.run.path, figure=self.run.path / "learning.png")
        return result

    def _config_of(self, seeds: Sequence[int]) -> DictConfig:
        """The run's config, but with these seeds."""
        config = OmegaConf.create(OmegaConf.to_container(self.config))
        assert isinstance(config, DictConfig)
        config.seeds = list(seeds)
        return config

    def _resume(self, younger: Run, config: DictConfig) -> None:
        """Finish the interrupted run `younger` of the new seeds, whose config is `config`."""
        with younger.lock():
            training, warnings = resumed(younger, config)
            for warning in warnings:
                console.warning(warning)
            console.facts(resumes=f"at step {training.step:,}")
            training.run(younger, config, self.go_on)

    def _finished(self, run: Run, config: DictConfig) -> Training:
        """The training of a finished run; ConfigError where its last checkpoint is damaged."""
        training, warnings = resumed(run, config)
        if warnings:
            raise ConfigError(f"{warnings[0]} It is incomplete: rlx resume {run.path}")
        return training

    def _join_metrics(self, joined: Run, younger: Run, evaluated: int) -> None:
        """Log the rows of both runs up to the step `evaluated`, as a run of all seeds would."""
        order = {seed: i for i, seed in enumerate([*self.old_seeds, *self.new_seeds])}
        rows = [row for row in self.run.metrics() + younger.metrics() if row["step"] <= evaluated]
        joined.log(sorted(rows, key=lambda row: (row["step"], order[row["seed"]])))

    def _join_checkpoints(self, joined: Run, younger: Run, last: int) -> None:
        """Save a policy at each step before `last` at which both runs have a checkpoint."""
        first = self.run.checkpoints
        second = younger.checkpoints
        for name in sorted(set(first.steps()) & set(second.steps())):
            if int(name) >= last:
                continue
            seeds = first.counters(name)["seeds"] + second.counters(name)["seeds"]
            policy = concatenated(first.load(name), second.load(name))
            joined.checkpoints.save(name, {"step": int(name), "seeds": seeds}, policy)
