"""Finding runs: by their path, or the newest one below a folder; crashed ones are put back."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from rlx.errors import ConfigError
from rlx.runs.files import beside, nearest_path, put_back
from rlx.runs.run import Run


def find(
    path: str | None,
    root: str,
    command: str = "train",
    finished: bool = True,
    trusted: bool = False,
) -> Run:
    """The run at `path`, or the newest (finished) one below it; None means below `root`/`command`.

    `finished`: whether a folder is searched for completed runs only. ConfigError where there is
    none, or the run was made by another command.
    """
    top = Path(path) if path is not None else Path(root) / command
    recover(top)
    if (top / "config.yaml").is_file() and (top / "meta.json").is_file():
        run = Run(top, trusted)
        run.check_links()
        maker = run.meta()["command"]
        if maker != command:
            raise ConfigError(f"run={path}: made by rlx {maker}; this takes runs of rlx {command}.")
        return run
    if top.is_dir():
        return _find_newest(top, command, finished, trusted)
    if path is None:
        raise ConfigError(f"no run yet below {top}; start one with: rlx {command}")
    raise ConfigError(f"run={path}: no such run directory.{nearest_path(top)}")


def find_all(
    paths: object,
    root: str,
    command: str = "train",
    finished: bool = True,
    trusted: bool = False,
) -> list[Run]:
    """One run for each of `paths` (null, one path or a list of them), found as `find` does."""
    if paths is None:
        return [find(None, root, command, finished, trusted)]
    return [find(path, root, command, finished, trusted) for path in named(paths)]


def named(paths: object) -> list[str]:
    """The run directories that a user named; ConfigError unless it is a text or a list of texts."""
    names = [paths] if isinstance(paths, str) else paths
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"run={paths}: expected a run directory, or a list of them.")
    return names


def command_of(path: str) -> str | None:
    """Which command made the run at `path` or the newest one below it; None where there is none."""
    for folder in _newest_first(Path(path)):
        with suppress(ConfigError):
            return Run(folder).meta()["command"]
    return None


def recover(path: Path) -> None:
    """Put a run back that a crash left between two renames, unless a process is between them."""
    path = path.absolute()
    if not path.name or path.exists():
        return
    former = beside(path, "former")
    if former.is_dir():
        with suppress(ConfigError), Run(former).lock():
            put_back(path)
            shutil.rmtree(former, ignore_errors=True)  # where its replacement was put in its place


def _find_newest(top: Path, command: str, finished: bool, trusted: bool) -> Run:
    """The newest run of `command` below `top` that is finished, or else that can go on."""
    unreadable = ""
    for folder in _newest_first(top):
        run = Run(folder, trusted)
        try:
            meta = run.meta()
        except ConfigError as error:  # of another run than the one that is looked for, perhaps
            unreadable = f" {error}"
            continue
        if meta["command"] != command:
            continue
        if finished and meta["status"] != "completed":
            continue
        run.check_links()
        # A run that was stopped before its first checkpoint is none to go on with.
        if finished or run.checkpoints.resumable():
            return run
    kind = f"finished {command}" if finished else command
    raise ConfigError(f"run={top}: neither a run nor a folder with a {kind} run in it.{unreadable}")


def _newest_first(top: Path) -> list[Path]:
    """The runs at and below `top`, those within a run that grows left out.

    What crashes left of some is put back.
    """
    runs = []
    for folder, names, files in os.walk(top):
        for hidden in [name for name in names if name.startswith(".")]:
            names.remove(hidden)
            whole = hidden[1:].rpartition(".")[0]
            recover(Path(folder, whole))
            if whole and whole not in names and Path(folder, whole).is_dir():
                names.append(whole)
        if "meta.json" in files:
            names.clear()
            runs.append(Path(folder))
    return sorted(runs, key=lambda path: path.name, reverse=True)
