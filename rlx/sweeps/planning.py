"""From a command line with -m to the jobs of a sweep: nothing is written, and no job is begun."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from rlx.composing import (
    overrides_of,
    overrides_text,
    sweep_of,
    task_overrides,
    tell_users_options,
)
from rlx.config import plain
from rlx.errors import ConfigError, RunError
from rlx.show import console
from rlx.sweeps.job_configs import JobConfigs
from rlx.sweeps.moving import movable
from rlx.sweeps.sweep import Planned, identity

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from rlx.command import Command

MANY = 50
"""So many jobs take a second or more to plan."""


class Options(NamedTuple):
    """What a command line says of the sweep itself."""

    name: str | None
    """`sweep=NAME`: the folder of the sweep; None: one named after its jobs."""
    fresh: bool
    """`fresh=true`: do what is finished once more."""


def options(argv: list[str]) -> Options:
    """Take the options of a sweep out of a command line; ConfigError where they are wrong."""
    values = {}
    for key in ("sweep", "fresh"):
        for word in [word for word in argv if word.startswith(f"{key}=")]:
            argv.remove(word)
            values[key] = word.partition("=")[2].strip("'\"")
    name = values.get("sweep")
    if name is not None and not _is_folder_name(name):
        raise ConfigError(f"sweep={name}: expected the name of a folder below outputs/sweeps.")
    fresh = values.get("fresh", "false").lower()
    if fresh not in ("true", "false"):
        raise ConfigError(f"fresh={fresh}: expected true or false.")
    return Options(name, fresh == "true")


def _is_folder_name(name: str) -> bool:
    """Whether `name` names a folder, and can be printed and typed."""
    fits = 0 < len(os.fsencode(name)) < 256 and name.isprintable()
    return fits and name.strip(".") != "" and "/" not in name and name == name.strip()


def refuse(given: Options) -> None:
    """ConfigError where a command line without -m speaks of a sweep."""
    if given.name is not None:
        raise ConfigError(f"sweep={given.name}: names a sweep; add -m, and a key with many values.")
    if given.fresh:
        raise ConfigError("fresh=true: begins a sweep anew; add -m. A single run is always new.")


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, before anything is written."""

    jobs: list[Planned] | None
    """All jobs; None where a sweeper of Hydra's thinks of them by results."""
    outputs: str
    """Folder of all runs."""
    words: str
    """The command line."""

    @classmethod
    def of(cls, command: "Command", argv: Sequence[str]) -> "Plan":
        """Compose and check every job of a command line; ConfigError with all that is wrong."""
        # They are composed in this process, one after the other, whatever launches the jobs.
        words = [word for word in overrides_of(argv) if not is_of_launcher(word)]
        with sweep_of(command.name, words) as (context, config):
            outputs = str(config.get("outputs", "outputs"))
            if not _is_product(config):
                return cls(None, outputs, " ".join(argv[1:]))
            planner = _Planner(command)
            combinations = _combinations(context, config)
            if len(combinations) > MANY:
                console.facts(plans=f"{len(combinations)} jobs")
            configs = JobConfigs(context.config_loader, config)
            for combination in combinations:
                with configs.running(combination) as composed:
                    planner.add(composed)
        planner.raise_failures()
        if not planner.jobs:
            raise ConfigError("-m: the line makes no job, perhaps because a glob matches nothing.")
        tell_users_options()
        return cls(list(planner.jobs.values()), outputs, " ".join(argv[1:]))

    def name(self, command: str) -> str:
        """The name of the sweep where none is given: the same jobs are the same sweep."""
        text = self.words
        if self.jobs is not None:
            text = " ".join(sorted(job.id for job in self.jobs))
        return f"{command}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _is_product(config: DictConfig) -> bool:
    """Whether Hydra's own sweeper makes the jobs: all combinations of the values."""
    return config.hydra.sweeper._target_.endswith(".BasicSweeper")


def _combinations(context: "HydraContext", config: DictConfig) -> list[list[str]]:
    """The overrides of each job of the sweep of a `config`."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = plain(config.hydra.sweeper).get("params") or {}  # of an experiment
    words = [f"{key}={value}" for key, value in params.items()]
    parser = OverridesParser.create(config_loader=context.config_loader)
    overrides = parser.parse_overrides([*words, *config.hydra.overrides.task])
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    return [_fitting(combination) for combination in combinations]


def _fitting(overrides: list[str]) -> list[str]:
    """The overrides of a job; the keys of a defence are not of a job that has none.

    So defence=none,sa agent.defence.eps=0.1,0.2 is three jobs.
    """
    if "defence=none" not in overrides:
        return overrides
    return [word for word in overrides if not word.lstrip("+").startswith("agent.defence.")]


class _Planner:
    """The jobs of a sweep, and what is wrong with them."""

    def __init__(self, command: "Command"):
        self.command = command
        self.jobs: dict[str, Planned] = {}
        """The jobs by their identity."""
        self.seen = 0
        """The number of combinations that were composed; two may be the same job."""
        self.errors: list[ConfigError | RunError] = []
        self.files: dict[str, str] = {}
        """File that a job writes beside its run → its identity."""

    def add(self, composed: DictConfig) -> None:
        """Note the job of the running config, and what is wrong with it."""
        self.seen += 1
        try:
            if self.command.check is not None:
                self.command.check(composed)
            job = planned(self.command, composed)
            self._check_file(job)
        except (ConfigError, RunError) as error:
            self.errors.append(error)
            tell_failure(overrides_text(), str(error))
            return
        self.jobs[job.id] = job

    def _check_file(self, job: Planned) -> None:
        """ConfigError where another job writes the same file beside its run."""
        if self.command.writes is None:
            return
        file = os.path.abspath(self.command.writes(job.config))
        if self.files.setdefault(file, job.id) != job.id:
            raise ConfigError(f"{file}: two jobs would write it; name one for each of them.")

    def raise_failures(self) -> None:
        """ConfigError where a job is wrong."""
        if self.errors:
            count = f"{len(self.errors)} of {self.seen} jobs are wrong"
            raise ConfigError(f"{count}; none was begun.")


def planned(command: "Command", composed: DictConfig) -> Planned:
    """The job of a composed config, with nothing left open that may be another thing tomorrow."""
    pinned = composed if command.pin is None else command.pin(composed)
    pinned = movable(pinned)
    return Planned(identity(pinned), task_overrides(), pinned)


def is_of_launcher(word: str) -> bool:
    """Whether a word of a command line names the launcher, or is one of its keys."""
    return word.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))


def tell_failure(overrides: str, message: str) -> None:
    """Print a failure on one line."""
    print(f"rlx: {message}  ({overrides})", file=sys.stderr, flush=True)
