"""List runs and sweeps, the newest last: agent=hdqn status=failed age=:2d lists some."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import build, choice
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.runs.files import nearest_path, to_json
from rlx.runs.finding import located, run_paths
from rlx.runs.listing import UNREADABLE, Entry, folders, read
from rlx.show import console
from rlx.sweeps.sweep import Sweep, counted


@dataclass(frozen=True)
class Config:
    """The keys of list.yaml."""

    run: Any
    """Folders with runs; null: `outputs`."""
    format: str
    """table, json or csv."""
    where: dict
    """Column → the value, or the range of values, of the rows that are listed."""
    outputs: str
    """Folder of all runs."""

    def __post_init__(self) -> None:
        choice(self.format, ("table", "json", "csv"), "format")


Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column of the table, and a filter of the same name."""

    of: Callable[[Entry], Value]
    """What it has of a row; None: nothing."""
    text: Callable[[Entry], str]
    """The same for the table."""
    units: Mapping[str, float] | None = None
    """Unit of a number → how many of the first one, which need not be written; None: it has texts.
    """


TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
COLUMNS = {
    "kind": Column(lambda row: row.kind, lambda row: row.kind),
    "status": Column(lambda row: row.status, lambda row: row.status),
    "agent": Column(lambda row: row.agent, lambda row: row.agent),
    "env": Column(lambda row: row.env, lambda row: row.env),
    "defence": Column(lambda row: row.defence.partition(" ")[0], lambda row: row.defence),
    "seeds": Column(lambda row: row.seeds, lambda row: str(row.seeds or ""), {"": 1.0}),
    "return": Column(lambda row: row.value, lambda row: _return_text(row), {"": 1.0}),
    "age": Column(lambda row: row.age, lambda row: _in_units(row.age, TIMES), TIMES),
    "size": Column(lambda row: row.size, lambda row: in_bytes(row.size), SIZES),
}
"""Name → column, in order; behind them stands the path."""
TOLD_BY_PATH = ("kind", "agent", "env")
"""The columns that a terminal which is too narrow for all goes without."""


@command("list")
def main(composed: DictConfig) -> None:
    """Prints the table."""
    config = build(Config, composed, "")
    fits = [_filter(name, str(value)) for name, value in config.where.items()]
    rows = entries_of(config.run, config.outputs)
    for name, value in config.where.items():
        _check_value(name, str(value), rows)
    rows = [row for row in rows if all(fit(row) for fit in fits)]
    rows.sort(key=lambda row: row.begun)
    if config.format == "table":
        print_table(rows)
        size = in_bytes(sum(row.size for row in rows))
        console.facts(listed=f"{len(rows):,}, {size}")
    else:
        _write(rows, config.format)


def entries_of(run: Any, outputs: str) -> list[Entry]:
    """The runs and sweeps below the folders that the key `run` names; null: below `outputs`.

    ConfigError where there is no such folder.
    """
    tops = [located(path) for path in run_paths(outputs if run is None else run)]
    for top in tops:
        if not top.is_dir():
            key = "outputs" if run is None else "run"
            raise ConfigError(f"{key}={top}: no such folder.{nearest_path(top)}")
    return listed(tops)


def listed(tops: Iterable[Path]) -> list[Entry]:
    """The runs and sweeps at and below `tops`, each once, but not what is inside of one."""
    found = {folder.resolve(): folder for top in tops for folder in folders(top)}
    return [_sweep(path) if Sweep.is_at(path) else read(path) for path in found.values()]


def _sweep(path: Path) -> Entry:
    """The sweep in the folder `path`, whatever its state."""
    try:
        sweep = Sweep(path)
        jobs = sweep.jobs()
        counts = counted(jobs)
    except ConfigError as error:
        return Entry(path, "sweep", UNREADABLE, error=str(error))
    order = ("running", "failed", "interrupted", "waiting")
    status = next((state for state in order if state in counts), "completed")
    words = dict(word.lstrip("+").split("=", 1) for word in sweep.words if "=" in word)
    name = f"{words.get('agent', '')}-{words.get('env', '')}"
    meta = sweep.facts | {"jobs": counts}
    errors = [job.error for job in jobs if job.status == "failed" and job.error]
    return Entry(path, "sweep", status, name, "; ".join(errors[:1]), meta)


def _filter(name: str, value: str) -> Callable[[Entry], bool]:
    """Whether a row has in the column `name` the value, or one in the range, that was asked for."""
    if name not in COLUMNS:
        raise ConfigError(f"{name}: no column of this list.{nearest(name, COLUMNS)}")
    column = COLUMNS[name]
    if column.units is None:
        return lambda row: column.of(row) == value
    ends = [_number(name, end, column.units) for end in value.split(":")]
    if len(ends) > 2 or ends == [None]:
        raise ConfigError(f"{name}={value}: expected a number, or a range as in {name}=5:8.")
    low = -math.inf if ends[0] is None else ends[0]
    high = math.inf if ends[-1] is None else ends[-1]

    def fits(row: Entry) -> bool:
        number = column.of(row)
        return isinstance(number, float | int) and low <= number <= high

    return fits


def _number(name: str, text: str, units: Mapping[str, float]) -> float | None:
    """An end of a range, as in 5, -1e3 or 2d; None where it is left open."""
    if not text:
        return None
    match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-zA-Z]*)", text)
    first = next(iter(units))
    if match is None or (match[2] or first) not in units:
        known = ", ".join(unit for unit in units if unit)
        hint = f" with a unit of {known}" if known else ""
        raise ConfigError(f"{name}={text}: expected a number{hint}, or a range as in {name}=5:8.")
    return float(match[1]) * units[match[2] or first]


def _check_value(name: str, value: str, rows: Sequence[Entry]) -> None:
    """ConfigError where a text was asked for that no row has: it may be misspelt."""
    column = COLUMNS[name]
    there = {column.of(row) for row in rows} - {""}
    if column.units is None and rows and value not in there:
        raise ConfigError(f"{name}={value}: no run has it.{nearest(value, there)}")


def print_table(rows: Sequence[Entry], title: str = "") -> None:
    """Print the rows, then what is broken.

    Where the terminal is too narrow for the table, a path has a line of its own.
    """
    texts = {name: [column.text(row) for row in rows] for name, column in COLUMNS.items()}
    texts["run"] = [str(row.path) for row in rows]
    if not any(texts["defence"]):
        del texts["defence"]
    if _width(texts) > console.terminal.width:
        texts = {name: column for name, column in texts.items() if name not in TOLD_BY_PATH}
    lines = list(zip(*texts.values(), strict=True))
    if _width(texts) <= console.terminal.width:
        console.table(title, list(texts), lines)
    else:
        for *values, path in lines:
            facts = [_fact(*pair) for pair in zip(texts, values, strict=False) if pair[1]]
            console.terminal.print("  ".join(facts), markup=False)
            console.terminal.print(f"  {path}", markup=False)
    for row in rows:
        if row.status == UNREADABLE:
            console.warning(row.error)


def _fact(name: str, text: str) -> str:
    """A cell by itself; a number without a unit needs its name."""
    return f"{name} {text}" if name in ("seeds", "return") else text


def _width(texts: Mapping[str, Sequence[str]]) -> int:
    """Characters of a line of a table with these columns."""
    return 1 + sum(3 + max(map(len, [name, *column])) for name, column in texts.items())


def _write(rows: Sequence[Entry], form: str) -> None:
    """Print the rows as JSON or CSV: ages in seconds, sizes in bytes, no number rounded."""
    items = []
    for row in rows:
        item: dict[str, Any] = {name: column.of(row) for name, column in COLUMNS.items()}
        item["ci95_low"], item["ci95_high"] = row.interval
        item["started"] = row.meta.get("started")
        item["error"] = row.error
        item["run"] = str(row.path)
        items.append(to_json(item))
    if form == "json":
        print(json.dumps(items, indent=1))
        return
    header = items[0] if items else [*COLUMNS, "run"]
    writer = csv.DictWriter(sys.stdout, list(header), lineterminator="\n")
    writer.writeheader()
    writer.writerows(items)


def _return_text(row: Entry) -> str:
    """The return with its interval; of a sweep how many of its jobs are done."""
    if row.kind == "sweep" and row.status != UNREADABLE:
        jobs = row.meta["jobs"]
        done = jobs.get("completed", 0) + jobs.get("pruned", 0)
        return f"{done} of {sum(jobs.values())} jobs"
    return "" if row.value is None else console.interval_text(row.value, row.interval)


def in_bytes(size: int) -> str:
    """A number of bytes, as in "1.2 GB"."""
    return _in_units(size, SIZES)


def _in_units(number: float | None, units: Mapping[str, float]) -> str:
    """A number in the largest of the units that is not above it, as in "3 h"."""
    if number is None:
        return ""
    fitting = [unit for unit, size in units.items() if number >= size] or list(units)[:1]
    return f"{number / units[fitting[-1]]:.3g} {fitting[-1]}"
