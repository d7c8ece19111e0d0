"""Optuna's study of a tuning: its journal on disk, who thinks of trials, who gives them up."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.errors import ConfigError
from rlx.training.tune_config import Config

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import JournalStorage
    from optuna.study import Study


def check_storage(file: Path) -> None:
    """ConfigError where a journal cannot be written there, or where something else is."""
    try:
        is_new = not file.exists()
        with open(file, "a"):
            pass
        if is_new:
            file.unlink()
            return
    except OSError as error:
        raise ConfigError(f"storage={file}: cannot be written ({error.strerror}).") from None
    with _storage_errors(file):
        # Optuna would write behind a last line that it cannot read.
        for line in file.read_text().splitlines()[-1:]:
            json.loads(line)
        _journal(file)


def open_study(name: str, file: Path, config: Config, line: str) -> "Study":
    """The study of this name in a journal, new or begun before, of the command `line`.

    ConfigError where it cannot be opened.
    """
    import optuna

    with _storage_errors(file):
        study = optuna.create_study(
            storage=_journal(file),
            study_name=name,
            direction="maximize",
            pruner=_pruner(config),
            load_if_exists=True,
        )
        study.set_user_attr("command", line)
    return study


@contextmanager
def _storage_errors(file: Path) -> Iterator[None]:
    """ConfigError where Optuna raises within the context, whatever it raises of a strange file."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(f"storage={file}: cannot be used ({reason}).") from None


def _journal(file: Path) -> "JournalStorage":
    """Optuna's storage in a file."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Absolute: Optuna takes a lock that a killed process left only where the link it is leads to
    # the file, and waits for ever for another.
    return JournalStorage(JournalFileBackend(str(file.absolute())))


def make_sampler(name: str, seed: int) -> "BaseSampler":
    """Optuna's sampler; `seed`: the number of trials before, so that no two batches are alike."""
    from optuna import samplers

    if name == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def _pruner(config: Config) -> "BasePruner":
    """Optuna's pruner of trainings of so many steps."""
    from optuna import pruners

    if config.pruner == "none":
        return pruners.NopPruner()
    first = min(config.eval_every, config.steps)
    return pruners.HyperbandPruner(min_resource=first, max_resource=config.steps)
