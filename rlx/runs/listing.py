"""Runs read as data, to be listed: nothing of what they name is imported, nothing is mended.

What cannot be read is listed too, with the reason. Importing this imports no torch.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlx.conf import conf_dir
from rlx.errors import ConfigError
from rlx.grids import parse_rows
from rlx.runs.finding import located
from rlx.runs.run import Run

UNREADABLE = "unreadable"
"""The status of a folder that ought to be a run, and cannot be read as one."""
STAMP = re.compile(r"\d{8}-\d{6}-\d{6}")
"""The name that `Run.create` gives to the folder of a run."""
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where libyaml is there


@dataclass(frozen=True)
class Entry:
    """A run, or another folder that is listed beside runs."""

    path: Path
    """Its folder."""
    kind: str
    """The command that made it, as in "train"."""
    status: str
    """As in meta.json, but of a run that was killed "interrupted"; or `UNREADABLE`."""
    name: str = ""
    """Agent and env, as in "dqn-cartpole"; "" where nobody knows."""
    error: str = ""
    """Why it failed, or cannot be read."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The content of meta.json."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The content of summary.json, NaN where it has null; empty where there is none."""

    @property
    def agent(self) -> str:
        """The agent, as in "dqn"; "" where nobody knows."""
        agent, dash, _ = self.name.partition("-")
        return agent if dash else ""

    @property
    def env(self) -> str:
        """The env, as in "cartpole"; "" where nobody knows."""
        return self.name.partition("-")[2] or self.name

    @cached_property
    def defence(self) -> str:
        """What its agent was defended by, as in "sa (eps 0.2)"; "" where by nothing.

        Of an attack, an evaluation or a certificate it is the one that all trainings have which it
        has read.
        """
        config = self.config()
        if "agent" in config:
            return defence_of(config["agent"])
        runs = self.summary.get("run") or config.get("run")
        paths = runs if isinstance(runs, list) else [runs]
        found = set()
        for path in paths:
            with suppress(ConfigError):
                training = _config(located(path)) if isinstance(path, str) else {}
                found.add(defence_of(training.get("agent")))
        return found.pop() if len(found) == 1 else ""

    @property
    def seeds(self) -> int | None:
        """The number of seeds; None: nobody knows."""
        seeds = self.summary.get("seeds")
        if isinstance(seeds, list):
            return len(seeds)
        with suppress(ConfigError):
            return len(parse_rows(self.config().get("seeds"))) if self.kind == "train" else None
        return None

    @property
    def estimate(self) -> Mapping[str, Any]:
        """The return with its interval, under the keys `iqm` and `ci95`; empty: there is none.

        Of an attack it is that at the largest radius, in the mode that was played first.
        """
        estimate = self.summary.get("return")
        cells = self.summary.get("cells")
        if isinstance(cells, list) and cells and all(isinstance(cell, dict) for cell in cells):
            mode = cells[0].get("head")
            estimate = [cell for cell in cells if cell.get("head") == mode][-1].get("return")
        return estimate if isinstance(estimate, dict) else {}

    @property
    def value(self) -> float | None:
        """The interquartile mean return; None: there is none."""
        value = self.estimate.get("iqm")
        return value if isinstance(value, float | int) and math.isfinite(value) else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the return; NaN where there is none."""
        match self.estimate.get("ci95"):
            case [float() | int() as low, float() | int() as high]:
                return low, high
        return math.nan, math.nan

    @property
    def begun(self) -> tuple[str, str]:
        """What entries are sorted by, the newest last: when each was begun, where that is known.

        Names of runs, which are times, tell those apart that were begun within one second.
        """
        return str(self.meta.get("started") or ""), self.path.name

    @cached_property
    def age(self) -> float | None:
        """Seconds since it was begun; None: nobody knows."""
        try:
            started = datetime.fromisoformat(self.meta["started"])
            return (datetime.now() - started).total_seconds()
        except (KeyError, TypeError, ValueError):
            return None

    @cached_property
    def size(self) -> int:
        """Bytes on disk."""
        return disk_size(self.path)

    def config(self) -> dict[str, Any]:
        """The content of config.yaml as plain data; empty where it cannot be read."""
        return _config(self.path)

    def sources(self) -> set[str]:
        """The names of the folders that it was made of: those of runs are unique."""
        config = self.config()
        env = config.get("env")
        victims = env.get("run") if isinstance(env, dict) else None
        found = set()
        for named in (self.summary.get("run"), config.get("run"), victims):
            paths = named if isinstance(named, list) else [named]
            found |= {Path(path).name for path in paths if isinstance(path, str)}
        return found


def _config(folder: Path) -> dict[str, Any]:
    """The content of a run's config.yaml as plain data; empty where it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        config = yaml.load((folder / "config.yaml").read_text(), _YAML)
        return config if isinstance(config, dict) else {}
    return {}


def defence_of(agent: Any) -> str:
    """What the config group `agent` is defended by, as in "sa (eps 0.2)"; "" where by nothing."""
    match agent:
        case {"defence": {"_target_": str() as target, "eps": float() | int() as eps}}:
            return f"{target.rpartition('.')[2].lower()} (eps {eps:g})"
    return ""


def folders(top: Path) -> Iterator[Path]:
    """The folders at and below `top` that are runs or sweeps, or were to become runs.

    What is inside a run or a sweep is left out.
    """
    for folder, names, files in os.walk(top):
        path = Path(folder)
        if "meta.json" in files or "sweep.json" in files or STAMP.fullmatch(path.name):
            names.clear()
            yield path
        names[:] = sorted(name for name in names if not name.startswith("."))


def root_of(path: Path) -> Path:
    """The folder of all runs in which a run or a sweep lies; of a copy elsewhere, the one it is in.

    It is relative where `path` is.
    """
    group = path.absolute().parent
    command = group.parent
    root = group
    if group.name == "sweeps":
        root = command
    elif Path(conf_dir(), f"{command.name}.yaml").is_file():
        root = command.parent
    return root if path.is_absolute() else Path(os.path.relpath(root))


def read(path: Path) -> Entry:
    """The run in the folder `path`, whatever its state."""
    run = Run(path)
    # As `Run.create` names it; the path of a copy may be any.
    kind = path.absolute().parent.parent.name
    name = path.absolute().parent.name
    try:
        meta = run.meta()
        status = str(meta["status"])
        if status == "running" and not run.is_busy:
            status = "interrupted"
        summary = run.summary() if status == "completed" else {}
    except (ConfigError, OSError) as problem:
        if not (path / "meta.json").exists() and run.is_busy:  # it is just beginning
            return Entry(path, kind, "running", name)
        return Entry(path, kind, UNREADABLE, name, str(problem))
    if kind != meta["command"]:
        name = ""
    error = str(meta.get("error") or "")
    return Entry(path, str(meta["command"]), status, name, error, meta, summary)


def disk_size(path: Path) -> int:
    """Bytes of the file `path`, or of all files below it."""
    size = 0
    if path.is_file():
        return path.lstat().st_size
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # deleted meanwhile
                size += os.lstat(os.path.join(folder, name)).st_size
    return size
