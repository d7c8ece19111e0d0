"""The wrapper of every command: a single run or a sweep, and failures."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.composing import Task, chosen, run_composed, tell_users_options
from rlx.conf import group_files, sweeps_of
from rlx.config import plain
from rlx.errors import ConfigError, RunError
from rlx.runs.finding import find_all
from rlx.runs.run import Run

if TYPE_CHECKING:
    from rlx.sweeps.planning import Options
    from rlx.sweeps.ranking import Measure

Check = Callable[[DictConfig], None]
"""Raises what is wrong with a composed config, and writes nothing."""
Pin = Callable[[DictConfig], DictConfig]
"""The same config with what may be another thing tomorrow pinned: the newest run, a relative path.

Two configs of the same meaning become equal."""
Resume = Callable[[Run, DictConfig], float]
"""Goes on with a run that was stopped; the config is that of its job."""

Table = Callable[[Sequence[Run]], None]
"""Prints something of all finished runs of a sweep."""
Writes = Callable[[DictConfig], str]
"""The file, or the folder, that a config names to be written."""
MakesJobs = Callable[[DictConfig, "Options"], float]
"""Begins, or goes on with, a sweep whose jobs come of the results of others."""


@dataclass(frozen=True)
class RunConfig:
    """The keys of every command that plays or reads trainings; a command's config adds its own."""

    run: Any
    """Run directories, or folders with runs; null: the newest training."""
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the run's config names, though somebody else made the run."""


def pin_runs(composed: DictConfig) -> DictConfig:
    """The config of a command that reads runs with these as they are found from any folder."""
    pinned = composed.copy()
    runs = find_all(plain(composed)["run"], composed.outputs, trusted=composed.trust)
    pinned.run = [str(run.path.absolute()) for run in runs]
    return pinned


def command(
    name: str,
    *,
    check: Check | None = None,
    pin: Pin | None = None,
    resume: Resume | None = None,
    measure: "Measure | None" = None,
    table: Table | None = None,
    writes: Writes | None = None,
    makes_jobs: MakesJobs | None = None,
) -> Callable[[Task], "Command"]:
    """A decorator of a command's task, which gets the composed conf/`name`.yaml.

    The others are for sweeps: see `Command`.
    """

    def decorated(task: Task) -> Command:
        return Command(name, task, check, pin, resume, measure, table, writes, makes_jobs)

    return decorated


@dataclass(frozen=True)
class Command:
    """A command of rlx: called, it does what sys.argv says."""

    name: str
    """As in "train"."""
    task: Task
    """Its work on a composed config."""
    check: Check | None
    """What a sweep asks of all its jobs before the first of them begins; None: it has no sweeps."""
    pin: Pin | None
    """What makes the identity of a job independent of when and where it is done."""
    resume: Resume | None
    """What a sweep does with a job that was stopped; None: the job is done anew."""
    measure: "Measure | None"
    """What the jobs of a sweep are ranked by; None: they are not."""
    table: Table | None
    """What more there is to print of the finished runs of a sweep."""
    writes: Writes | None
    """What it writes beside its run; two jobs of a sweep may not write one file."""
    makes_jobs: MakesJobs | None
    """What it does instead of `task` where each run of it is a sweep by itself."""

    def __call__(self) -> None:
        """Do the task for a single run or for a sweep; raises what fails."""
        from rlx.sweeps import planning, running

        options = planning.options(sys.argv)
        if self.makes_jobs is not None:
            self.begin(options)
        elif _is_sweep():
            if self.check is None:
                raise ConfigError(f"-m: rlx {self.name} has no sweeps.")
            running.run_sweep(self, options)
        else:
            planning.refuse(options)
            self._once(self.task)

    def begin(self, options: "Options") -> None:
        """Begin, or go on with, a sweep that makes its own jobs."""
        if {"-m", "--multirun"} & set(sys.argv):
            raise ConfigError(f"-m: rlx {self.name} is a sweep by itself.")
        makes_jobs = self.makes_jobs
        assert makes_jobs is not None
        self._once(lambda composed: makes_jobs(composed, options))

    def _once(self, task: Task) -> None:
        """Do the task for a single run.

        Its errors are carried past Hydra, which would print lines of its own about them.
        """
        errors: list[Exception] = []

        def guarded(composed: DictConfig) -> float | None:
            tell_users_options()
            try:
                return task(composed)
            except (ConfigError, RunError, BrokenPipeError) as error:
                errors.append(error)
                return None
            except SystemExit as error:  # an agent's, or an env's
                errors.append(RunError(f"sys.exit({error.code!r}) was called while it ran."))
                return None

        run_composed(self.name, guarded)
        if errors:
            raise errors[0]


def _is_sweep() -> bool:
    """Whether the command line, or an experiment that it names, asks for a sweep."""
    if {"-c", "--cfg"} & set(sys.argv):
        return False  # Hydra prints the config, and does nothing
    if {"-m", "--multirun"} & set(sys.argv):
        return True
    named = [arg.partition("=")[2] for arg in sys.argv if arg.startswith("experiment=")]
    return any(sweeps_of(name) for name in named)


def check_protocol(protocol: str | None) -> None:
    """ConfigError where protocol=source was asked for and no preset says what it means here.

    `protocol`: the key as it was composed. conf/protocol/source.yaml sets it to null, and the
    preset of a source study sets it to `source`: null is left where there is no such preset.
    """
    if protocol is None:
        wanted = chosen("preset@_global_").removesuffix("-source")
        presets = [name for name in group_files("preset") if name.endswith("-source")]
        known = ", ".join(preset.removesuffix("-source") for preset in presets)
        raise ConfigError(
            f"protocol=source: no settings for {wanted}. There are some for: {known}."
        )
