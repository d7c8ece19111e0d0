"""What every command is wrapped in: composing by Hydra, one run or a sweep, failures, signals."""

import functools
import shlex
import sys
import tempfile
from collections.abc import Callable

from omegaconf import DictConfig

from rlx.conf import conf_dir, sweeps_of
from rlx.config import rename_keys
from rlx.errors import ConfigError, Interrupted, RunError

Task = Callable[[DictConfig], float | None]


def command(
    name: str, check: Callable[[DictConfig], None] | None = None
) -> Callable[[Task], Callable[[], None]]:
    """Decorator of a command's task, which gets the composed conf/`name`.yaml.

    `check` raises what is wrong with a composed config, and writes nothing: a sweep lets it see all
    combinations before the first of them begins.
    """

    def decorate(task: Task) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            if not _is_sweep():
                _once(name, task)
                return
            sweep = Sweep(task)
            if check is not None:
                sweep.checks(name, check)
            _compose(name, sweep.run)
            sweep.end()

        return main

    return decorate


def _once(name: str, task: Task) -> None:
    """Run `task`. Its errors pass Hydra by, which would print lines of its own about them."""
    errors: list[ConfigError | RunError] = []

    def guarded(composed: DictConfig) -> float | None:
        try:
            return task(composed)
        except (ConfigError, RunError) as error:
            errors.append(error)
            return None

    _compose(name, guarded)
    if errors:
        raise errors[0]


def _is_sweep() -> bool:
    """Whether the command line, or an experiment that it names, asks for a sweep."""
    if {"-m", "--multirun"} & set(sys.argv):
        return True
    named = [a.partition("=")[2] for a in sys.argv if a.startswith("experiment=")]
    return any(sweeps_of(name) for name in named)


def _compose(name: str, task: Task) -> None:
    """Let Hydra compose conf/`name`.yaml with sys.argv and call `task` on it, in a sweep on each."""
    import hydra

    def run(composed: DictConfig) -> float | None:
        rename_keys(composed)  # a user's YAML may be older than rlx
        return task(composed)

    hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(run)()


class Sweep:
    """The combinations of one `-m`: each is announced, fails alone, and is named at the end."""

    def __init__(self, task: Task):
        self.task = task
        self.planned: list[str] = []
        """The overrides of each combination, where a check has seen them."""
        self.begun = 0
        self.failures: list[tuple[str, ConfigError | RunError]] = []
        """(overrides, what went wrong)."""

    def checks(self, name: str, check: Callable[[DictConfig], None]) -> None:
        """Compose and check every combination; ConfigError with all that is wrong."""

        def look(composed: DictConfig) -> None:
            overrides = _overrides()
            self.planned.append(overrides)
            try:
                check(composed)
            except (ConfigError, RunError) as error:
                self.failures.append((overrides, error))

        if any(argument.startswith("hydra/sweeper=") for argument in sys.argv):
            return  # it decides by results what comes next
        argv = sys.argv
        quick = [a for a in argv if not a.startswith(("hydra/launcher=", "hydra.launcher."))]
        with tempfile.TemporaryDirectory(prefix="rlx-") as folder:  # Hydra writes what it sweeps
            sys.argv = [*quick, f"hydra.sweep.dir='{folder}'"]
            try:
                _compose(name, look)
            finally:
                sys.argv = argv
        if self.failures:
            for overrides, error in self.failures:
                _tell(error, overrides)
            count = f"{len(self.failures)} of {len(self.planned)} combinations are wrong"
            raise ConfigError(f"{count}; none was begun.")

    def run(self, composed: DictConfig) -> float | None:
        """One combination. A failure is told at once, and the next one goes on."""
        from rlx.show import report

        overrides = _overrides()
        self.begun += 1
        of = f" of {len(self.planned)}" if self.planned else ""
        report.start(sweep=f"{self.begun}{of}: {overrides}")
        try:
            return self.task(composed)
        except (ConfigError, RunError) as error:  # Hydra would print a line of its own about it
            _tell(error, overrides)
            self.failures.append((overrides, error))
            return None
        except Interrupted as error:
            raise Interrupted(error.code - 128, "\n".join([str(error), *self._left()])) from None

    def _left(self) -> list[str]:
        """Commands that go on with what was not begun."""
        left = self.planned[self.begun :]
        if not left:
            return []
        lines = [f"{sys.argv[0]} {one}" for one in left]
        return [f"rlx: not begun, {len(left)} of {len(self.planned)}:", *lines]

    def end(self) -> None:
        """Raise what failed, all of it; exit code 2 where nothing but configs were wrong."""
        if not self.failures:
            return
        for overrides, error in self.failures:  # once more: they may be far above
            _tell(error, overrides)
        summary = RunError(f"{len(self.failures)} of {self.begun} combinations failed.")
        summary.code = min(error.code for _, error in self.failures)
        raise summary


def _tell(error: Exception, overrides: str) -> None:
    """One line about a combination that failed."""
    print(f"rlx: {error}  ({overrides})", file=sys.stderr, flush=True)


def _overrides() -> str:
    """The overrides of the running combination, as one would type them."""
    from hydra.core.hydra_config import HydraConfig

    given = [
        one.lstrip("+").replace("\\:", ":") for one in HydraConfig.get().overrides.task
    ]  # as it escapes 0:5
    return " ".join(shlex.quote(one) for one in given)
