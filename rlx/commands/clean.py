"""List what is unfinished or superseded, and how large it is; dry=false removes it."""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.commands.list import entries_of, in_bytes, listed
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.listing import STAMP, UNREADABLE, Entry, disk_size, root_of
from rlx.runs.run import Run
from rlx.show import console
from rlx.sweeps.sweep import LEFT_OUT, Sweep

ADVERSARIES = "adversaries"
"""The folder of a run, or of all runs, in which attacks keep what they have learnt."""
QUIET_S = 600
"""Seconds for which a folder is left alone in which a run may be beginning."""


@dataclass(frozen=True)
class Config:
    """The keys of clean.yaml."""

    run: Any
    """Folders with runs; null: `outputs`."""
    dry: bool
    """Whether nothing is removed."""
    resumable: bool
    """Also trainings that were stopped and could go on from a checkpoint."""
    outputs: str
    """Folder of all runs."""


@dataclass(frozen=True)
class Removal:
    """What can go of a run, or all of it."""

    entry: Entry
    paths: Sequence[Path]
    """The folders that are removed."""
    why: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(map(disk_size, self.paths))


@command("clean")
def main(composed: DictConfig) -> None:
    """Prints what can go, and removes it where it shall."""
    config = build(Config, composed, "")
    entries = entries_of(config.run, config.outputs)
    roots = [Path(config.outputs), *{root_of(entry.path) for entry in entries}]
    needed = _needed([root for root in roots if root.is_dir()])
    closed = list(_closed(entries))
    closed += listed(entry.path / ADVERSARIES for entry in closed)
    found = [*_unfinished(closed, config.resumable), *_superseded(closed)]
    removals = [removal for removal in found if removal.entry.path.name not in needed]
    freed = 0
    for removal in removals:
        size = removal.size
        try:
            if not config.dry:
                _remove(removal)
        except (ConfigError, OSError) as error:
            console.warning(f"{removal.entry.path} stays: {error}")
            continue
        freed += size
        word = "can go" if config.dry else "removed"
        console.facts(**{word: f"{removal.entry.path}, {in_bytes(size)}: {removal.why}"})
    hint = "; dry=false removes it" if removals and config.dry else ""
    console.facts(total=f"{in_bytes(freed)}{hint}")


def _needed(roots: Iterable[Path]) -> set[str]:
    """The names of the folders that something below the `roots` was, or is being, made of."""
    names = set()
    for entry in listed(roots):
        if Sweep.is_at(entry.path):
            # Also of a sweep that cannot be read.
            for file in entry.path.glob("jobs/*.json"):
                names |= set(STAMP.findall(file.read_text(errors="replace")))
        elif entry.status in ("completed", "running"):
            names |= entry.sources()
    return names


def _closed(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The runs in which no link leads out; a line names each other one, which stays."""
    for entry in entries:
        try:
            Run(entry.path).check_links()
        except (ConfigError, OSError) as error:
            console.warning(f"{entry.path} stays: {error}")
        else:
            yield entry


def _unfinished(entries: Iterable[Entry], resumable: bool) -> Iterator[Removal]:
    """The runs that came to no end, and that no process is writing.

    Trainings that could go on are among them only where they are `resumable`.
    """
    for entry in entries:
        if entry.status in ("failed", "interrupted"):
            can_go_on = bool(Run(entry.path).checkpoints.resumable())
            if can_go_on and not resumable:
                console.facts(kept=f"{entry.path}: {entry.status}, and can go on (rlx resume)")
                continue
            reason = f" ({entry.error})" if entry.error else ""
            yield Removal(entry, [entry.path], f"{entry.status}{reason}")
        elif entry.status == UNREADABLE and not (_is_written(entry.path) or _is_new(entry.path)):
            yield Removal(entry, [entry.path], "no run was begun in it")


def _is_new(path: Path) -> bool:
    """Whether a run may be beginning in a folder: its command takes the lock a moment later."""
    return time.time() - path.stat().st_mtime < QUIET_S


def _is_written(path: Path) -> bool:
    """Whether there is anything by which a folder is a run or a sweep, readable or not."""
    return any((path / name).exists() for name in ("meta.json", "sweep.json"))


def _superseded(entries: Iterable[Entry]) -> Iterator[Removal]:
    """What only going on needs, of trainings that were done again later with the same config.

    And of adversaries, which an attack trains to the end, and then plays as they are.
    """
    newest: dict[str, Entry] = {}
    finished = [entry for entry in entries if entry.kind == "train" and entry.status == "completed"]
    for entry in sorted(finished, key=lambda entry: entry.path.name, reverse=True):
        config = {key: value for key, value in entry.config().items() if key not in LEFT_OUT}
        other = newest.setdefault(json.dumps(config, sort_keys=True, default=str), entry)
        run = Run(entry.path)
        folders = [entry.path / "checkpoints" / name for name in run.checkpoints.steps()]
        folders += [path for path in [entry.path / "replay"] if path.is_dir()]
        if ADVERSARIES in entry.path.parts:
            why = "an adversary that has learnt"
        elif other is not entry and config:
            why = f"superseded by {other.path}"
        else:
            continue
        if folders:
            yield Removal(entry, folders, f"all but the weights kept; {why}")


def _remove(removal: Removal) -> None:
    """Remove folders of a run; ConfigError where a process has taken it up meanwhile."""
    run = Run(removal.entry.path)
    with run.lock():
        if (run.path / "meta.json").exists() and run.meta() != removal.entry.meta:
            raise ConfigError("it has changed meanwhile.")
        for path in removal.paths:
            shutil.rmtree(path)
    with suppress(OSError):  # there are other runs in it
        run.path.parent.rmdir()
