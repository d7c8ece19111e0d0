"""The wrapper of every command: composing by Hydra, a single run or a sweep, and failures.

It also knows the options that the running command was given (`chosen`).
"""

import functools
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, open_dict

from rlx.conf import conf_dir, group_files, sweeps_of, user_dir
from rlx.config import rename_keys
from rlx.errors import ConfigError, Interrupted, RunError

Task = Callable[[DictConfig], float | None]
"""The work of a command on its composed config; a sweeper gets the number that it returns."""
Check = Callable[[DictConfig], None]
"""Raises what is wrong with a composed config, and writes nothing."""


@dataclass(frozen=True)
class RunConfig:
    """The keys of every command that plays or reads trainings; a command's config adds its own."""

    run: Any
    """Run directories, or folders with runs; null: the newest training."""
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the run's config names, though somebody else made the run."""


def command(name: str, check: Check | None = None) -> Callable[[Task], "Command"]:
    """A decorator of a command's task, which gets the composed conf/`name`.yaml.

    With `check`, a sweep looks at all its combinations before the first of them begins.
    """
    return functools.partial(Command, name, check)


@dataclass(frozen=True)
class Command:
    """A command of rlx: called, it does what sys.argv says."""

    name: str
    check: Check | None
    task: Task

    def __call__(self) -> None:
        """Do the task for a single run or for a sweep; raises what fails."""
        if not _is_sweep():
            self._once()
            return
        sweep = Sweep(self.name, self.task)
        if self.check is not None:
            sweep.check_all(self.check)
        sweep.run_all()

    def _once(self) -> None:
        """Do the task for a single run.

        Its errors are carried past Hydra, which would print lines of its own about them.
        """
        errors: list[ConfigError | RunError] = []

        def guarded(composed: DictConfig) -> float | None:
            try:
                return self.task(composed)
            except (ConfigError, RunError) as error:
                errors.append(error)
                return None

        _compose(self.name, guarded)
        if errors:
            raise errors[0]


def _is_sweep() -> bool:
    """Whether the command line, or an experiment that it names, asks for a sweep."""
    if {"-m", "--multirun"} & set(sys.argv):
        return True
    named = [arg.partition("=")[2] for arg in sys.argv if arg.startswith("experiment=")]
    return any(sweeps_of(name) for name in named)


def _compose(name: str, task: Task) -> None:
    """Let Hydra compose conf/`name`.yaml with sys.argv and call `task` on the config.

    In a sweep, `task` is called on the config of each combination.
    """
    import hydra

    def renamed(composed: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        # A user's YAML may be older than rlx.
        rename_keys(composed, HydraConfig.get().overrides.task)
        return task(composed)

    hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(renamed)()


class Failure(NamedTuple):
    """A combination of a sweep that failed."""

    overrides: str
    error: ConfigError | RunError

    def tell(self) -> None:
        """Print the failure on one line."""
        print(f"rlx: {self.error}  ({self.overrides})", file=sys.stderr, flush=True)


class Sweep:
    """The combinations of one `-m`: each is announced, fails alone, and is named at the end."""

    def __init__(self, name: str, task: Task):
        self.name = name
        self.task = task
        self.planned: list[str] = []
        """The overrides of each combination that a check has looked at."""
        self.begun = 0
        """The number of combinations that have begun."""
        self.failures: list[Failure] = []

    def check_all(self, check: Check) -> None:
        """Compose and check every combination; ConfigError with all that is wrong."""
        if any(argument.startswith("hydra/sweeper=") for argument in sys.argv):
            return  # such a sweeper decides by results what comes next
        argv = sys.argv
        # Checks run in this process, one after the other, whatever launches the runs.
        launcher = ("hydra/launcher=", "hydra.launcher.")
        arguments = [argument for argument in argv if not argument.startswith(launcher)]
        # Hydra writes a file about each sweep.
        with tempfile.TemporaryDirectory(prefix="rlx-") as folder:
            sys.argv = [*arguments, f"hydra.sweep.dir='{folder}'"]
            try:
                _compose(self.name, functools.partial(self._check, check))
            finally:
                sys.argv = argv
        if self.failures:
            for failure in self.failures:
                failure.tell()
            count = f"{len(self.failures)} of {len(self.planned)} combinations are wrong"
            raise ConfigError(f"{count}; none was begun.")

    def run_all(self) -> None:
        """Do the task for every combination; then tell and raise all that failed.

        The exit code is 2 where nothing but configs were wrong.
        """
        _compose(self.name, self._run)
        if not self.failures:
            return
        # Told once more: the first time may be far above.
        for failure in self.failures:
            failure.tell()
        summary = RunError(f"{len(self.failures)} of {self.begun} combinations failed.")
        summary.code = min(failure.error.code for failure in self.failures)
        raise summary

    def _check(self, check: Check, composed: DictConfig) -> None:
        """Check one combination, and note it."""
        overrides = _overrides()
        self.planned.append(overrides)
        try:
            check(composed)
        except (ConfigError, RunError) as error:
            self.failures.append(Failure(overrides, error))

    def _run(self, composed: DictConfig) -> float | None:
        """Do the task for a combination. A failure is told at once, and the sweep goes on."""
        from rlx.show import console

        overrides = _overrides()
        self.begun += 1
        number = f"{self.begun} of {len(self.planned)}" if self.planned else str(self.begun)
        console.facts(sweep=f"{number}: {overrides}")
        try:
            return self.task(composed)
        except (ConfigError, RunError) as error:
            # Raised here, Hydra would print a line of its own about it.
            failure = Failure(overrides, error)
            failure.tell()
            self.failures.append(failure)
            return None
        except Interrupted as error:
            message = "\n".join([str(error), *self._not_begun()])
            raise Interrupted(error.code - 128, message) from None

    def _not_begun(self) -> list[str]:
        """Commands that go on with what was not begun."""
        remaining = self.planned[self.begun :]
        if not remaining:
            return []
        commands = [f"{sys.argv[0]} {overrides}" for overrides in remaining]
        return [f"rlx: not begun, {len(remaining)} of {len(self.planned)}:", *commands]


def _overrides() -> str:
    """The overrides of the running combination, as one would type them."""
    from hydra.core.hydra_config import HydraConfig

    words = []
    for override in HydraConfig.get().overrides.task:
        words.append(override.lstrip("+").replace("\\:", ":"))  # Hydra escapes 0:5
    return " ".join(shlex.quote(word) for word in words)


def chosen(group: str) -> str:
    """The option of a config group that the running command was given, as in "cartpole"."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])


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


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The composed conf/`name`.yaml, outside of a command; raises Hydra's errors.

    Afterwards `chosen` answers for this config, as it does within a command.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    folder = user_dir()
    search = [] if folder is None else [f"hydra.searchpath=['file://{folder}']"]
    running = GlobalHydra.instance().hydra  # a command's, or that of a user's own program
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            config = hydra.compose(name, [*overrides, *search], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    rename_keys(config, overrides)
    return config


@contextmanager
def hydra_left_as_it_is() -> Iterator[None]:
    """Let `chosen` answer for another config within, and for that of before behind it."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = config
