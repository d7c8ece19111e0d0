"""Finding runs: by path, the newest below a folder, or in the zoo; crashed ones are put back."""

import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import rlx
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.runs.files import hidden_sibling, nearest_path, put_back
from rlx.runs.run import Run

OFFERED = 50
"""The most paths that the tab key offers, where they are not all in one folder."""
ZOO = Path(rlx.__file__).resolve().parent / "zoo"
"""The runs that come with rlx, laid out as `outputs`; docs/zoo.py makes them."""
IN_ZOO = "zoo:"
"""What a name of the zoo begins with, as in zoo:dqn-cartpole."""
ALL_OF_ZOO = f"All: rlx list {IN_ZOO}"
"""The end of an error message about a name of the zoo."""


def find(
    path: str | None,
    root: str,
    command: str = "train",
    finished: bool = True,
    trusted: bool = False,
) -> Run:
    """The run at `path`, or the newest run below it; None means below `root`/`command`.

    `finished`: whether a folder is searched for completed runs only. `trusted`: what the run's
    config names may be imported. ConfigError where there is no such run, or where another command
    made it.
    """
    top = one_located(path) if path is not None else Path(root) / command
    if not finished and is_in_zoo(top):
        raise ConfigError(
            f"run={path}: comes with rlx, and cannot go on; train your own, as rlx show tells."
        )
    recover(top)
    if (top / "config.yaml").is_file() and (top / "meta.json").is_file():
        run = Run(top, trusted)
        if run.is_batch:
            sweep = top.absolute().parents[3]
            raise ConfigError(
                f"run={path}: is a batch of the sweep {sweep}, which goes on with: "
                f"rlx resume {sweep}"
            )
        _make_ready(run)
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
    """The runs at `paths` (null, one path or a list of them), each found as by `find`."""
    if paths is None:
        return [find(None, root, command, finished, trusted)]
    return [find(path, root, command, finished, trusted) for path in run_paths(paths)]


def run_paths(paths: object) -> list[str]:
    """The run directories that a user named; ConfigError unless it is a text or a list of texts."""
    if isinstance(paths, str):
        return [paths]
    is_list = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
    if not is_list:
        raise ConfigError(f"run={paths}: expected a run directory, or a list of them.")
    return cast(list[str], paths)


def located(path: str) -> Path:
    """The folder that a user names: by its path, or as zoo:NAME; ConfigError where that is none."""
    if not path.startswith(IN_ZOO):
        return Path(path)
    names = _zoo_names()
    if path not in [IN_ZOO, *names]:
        raise ConfigError(f"run={path}: no agent of the zoo.{nearest(path, names)} {ALL_OF_ZOO}")
    return ZOO / "train" / path.removeprefix(IN_ZOO)


def one_located(path: str) -> Path:
    """As `located`, for what takes one run: of the zoo an agent, and not the newest of all."""
    if path == IN_ZOO:
        raise ConfigError(
            f"run={path}: name one of its agents, as in {IN_ZOO}dqn-cartpole. {ALL_OF_ZOO}"
        )
    return located(path)


def is_in_zoo(path: Path) -> bool:
    """Whether a run is one of those that come with rlx, which nothing may be written into."""
    return path.resolve().is_relative_to(ZOO)


def shown_paths(paths: Sequence[str]) -> list[str]:
    """Runs and victims as one names them where one stands: relative below it, or by the zoo."""
    here = f"{Path.cwd()}/"
    shown = []
    for path in paths:
        if is_in_zoo(Path(path)):
            shown.append(IN_ZOO + Path(path).resolve().parents[0].name)
        else:
            shown.append(path.replace(here, ""))
    return shown


def reading(line: str, paths: Sequence[str]) -> str:
    """A command line with the runs that it has read, which may be others when it is typed again."""
    program, command, *words = shlex.split(line)
    others = [word for word in words if not word.startswith("run=")]
    return shlex.join([program, command, *shown_paths(paths), *others])


def _zoo_names() -> list[str]:
    """What the runs that come with rlx are called, as in zoo:dqn-cartpole."""
    return [f"{IN_ZOO}{Path(path).name}" for path in _subfolders(str(ZOO / "train"))]


def command_of(path: str) -> str | None:
    """The command that made the run at `path` or the newest run below it; None: there is none."""
    for folder in _newest_first(located(path)):
        with suppress(ConfigError):
            return Run(folder).meta()["command"]
    return None


def recover(path: Path) -> None:
    """Mend a run that a crash left between two renames, unless a process is between them now."""
    path = path.absolute()
    if not path.name or path.exists():
        return
    former = hidden_sibling(path, "former")
    if former.is_dir():
        with suppress(ConfigError), Run(former).lock():
            put_back(path)
            # It is still there if it was the replacement that got the name.
            shutil.rmtree(former, ignore_errors=True)


def _make_ready(run: Run) -> None:
    """ConfigError where a link leads out of the run; then mend what a crash left in it."""
    run.check_links()
    run.put_back()


def _find_newest(top: Path, command: str, finished: bool, trusted: bool) -> Run:
    """The newest run of `command` below `top`: completed or, unless `finished`, able to go on."""
    unreadable = ""
    for folder in _newest_first(top):
        run = Run(folder, trusted)
        try:
            meta = run.meta()
        except ConfigError as error:
            # Perhaps it is not the run that is looked for.
            unreadable = f" {error}"
            continue
        if run.is_batch:
            continue
        if meta["command"] != command:
            continue
        if finished and meta["status"] != "completed":
            continue
        _make_ready(run)
        # A run that was stopped before its first checkpoint is none to go on with.
        if finished or run.checkpoints.resumable():
            return run
    kind = f"finished {command}" if finished else command
    raise ConfigError(f"run={top}: neither a run nor a folder with a {kind} run in it.{unreadable}")


def _newest_first(top: Path) -> list[Path]:
    """The runs at and below `top`; runs within a run, of seeds to be added to it, are left out.

    What crashes left of some runs is put back.
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


def completions(word: str, root: str) -> list[str]:
    """What the path of a run that begins with `word` may go on with, for the shell's tab key.

    Runs, and folders that may have some; no deeper than makes `OFFERED` of them. `root`: the folder
    of all runs, which is offered where `word` names no folder. The zoo is offered before its names.
    """
    if word.startswith(IN_ZOO):
        return [name for name in _zoo_names() if name.startswith(word)]
    if "/" not in word:
        zoo = [IN_ZOO] if IN_ZOO.startswith(word) else []
        return zoo + (_opened([root]) if root.startswith(word) and os.path.isdir(root) else [])
    folder = word[: word.rindex("/") + 1]
    return _opened([path for path in _subfolders(folder) if path.startswith(word)])


def _opened(paths: list[str]) -> list[str]:
    """The folders, or what is in them, level by level, while these are few."""
    while True:
        below = [path for one in paths for path in ([one] if _is_made(one) else _subfolders(one))]
        if below == paths or len(below) > OFFERED:
            return paths
        paths = below


def _is_made(path: str) -> bool:
    """Whether a run or a sweep is in the folder."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("meta.json", "sweep.json"))


def _subfolders(path: str) -> list[str]:
    """The folders in a folder but for hidden ones, in order; none where it cannot be read."""
    with suppress(OSError), os.scandir(path) as items:
        return sorted(item.path for item in items if item.is_dir() and item.name[0] != ".")
    return []
