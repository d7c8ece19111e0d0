"""Time a training on this machine, beside other programs that can train the same."""

import csv
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.commands.train import settings
from rlx.config import Count, Positive, build, load_class
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.show import console
from rlx.training import config as training_config

if TYPE_CHECKING:
    import torch

    from rlx.benchmarks.own import Stage, Timed
    from rlx.benchmarks.peers import Peer, Program


ONLY_IN_FILE = ("lowest", "highest", "note")
"""Columns of speed.csv that would make the printed table too wide."""


@dataclass(frozen=True, kw_only=True)
class Config(training_config.Config):
    """The keys of bench.yaml: those of train.yaml, and of the measurements."""

    seeds: list[Count]
    """Numbers of seeds to train at once."""
    rounds: Count
    """Measurements of each row, of which the median is told."""
    seconds: Positive
    """Seconds of a measurement."""
    peer_python: Any
    """Interpreters that have rejax or Stable-Baselines3: one, or a list; null: this one alone."""
    watch: list[str]
    """Methods of the agent that are timed beside the stages."""
    drawing: bool
    """Time the drawing of env=car_racing, and no training."""


@dataclass
class Row:
    """A program that trains a number of seeds at once."""

    program: str
    seeds: int
    num_envs: int
    speeds: list[float]
    """Environment steps per second, summed over seeds, in each round."""
    first_s: float
    """Seconds until it first learnt; compiling is most of it."""
    tensors: int | None = None
    """Bytes of the tensors that rlx keeps."""
    resident: int | None = None
    """Bytes by which rlx's process grew."""
    note: str = ""

    def ratio(self, other: "Row | None") -> float | None:
        """The median, over rounds, of this row's speed as a multiple of the other's."""
        if other is None:
            return None
        pairs = zip(self.speeds, other.speeds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@command("bench")
def main(composed: DictConfig) -> float:
    """Returns rlx's greatest number of environment steps per second."""
    config = build(Config, composed, "")

    from rlx import experiment

    device = experiment.setup_device(config.device)
    if config.drawing:
        return _time_drawing(config)
    _check_agent(config)
    name = training_config.run_name(config)
    clock = _clock(config, device)
    programs = _programs(config)
    cores = _free_cores() if clock == "cpu" else None
    console.facts(
        bench=name,
        settings=settings(),
        device=f"{device}, {config.device['threads']} thread(s)" + (", one core" if cores else ""),
        clock="this program's CPU seconds" if clock == "cpu" else "wall clock",
        rounds=f"{config.rounds} of {config.seconds:g} s each, all rows in turn; medians",
    )
    output = Run.create(config.outputs, "bench", name, composed)
    began = time.monotonic()
    with output.writing(), _pinned(cores):
        rows, stages = _measured(config, name, clock, cores, programs, output.path)
        table = [_cells(row, rows) for row in rows]
        _print(table, stages)
        files = {"table": output.path / "speed.csv", "stages": output.path / "stages.csv"}
        _write(files["table"], table)
        _write(files["stages"], stages)
        wall_s = time.monotonic() - began
        output.complete({"rows": table, "stages": stages, "wall_s": wall_s})
    console.result(output.path, wall_s, **files)
    return max(statistics.median(row.speeds) for row in rows if row.program.startswith("rlx"))


def _check_agent(config: Config) -> None:
    """ConfigError where the agent does not act, or lacks a method of `watch`."""
    from rlx.agent import Agent, OfflineAgent

    kind = load_class(config.agent, "agent", Agent)  # type: ignore[type-abstract]
    if issubclass(kind, OfflineAgent):
        raise ConfigError(
            f"agent: {kind.__name__} learns from a data set; rlx bench times agents that act."
        )
    for name in config.watch:
        if not callable(getattr(kind, name, None)):
            raise ConfigError(f"watch={name}: {kind.__name__} has no such method.")


def _clock(config: Config, device: "torch.device") -> str:
    """`cpu` where this process alone computes, on one thread: then nobody else's work counts."""
    alone = config.env.get("workers", 1) == 1 and config.device["threads"] == 1
    return "cpu" if device.type == "cpu" and alone else "wall"


def _free_cores() -> set[int] | None:
    """The cores that this process may run on; None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


@contextmanager
def _pinned(cores: set[int] | None) -> Iterator[None]:
    """Run on one of these cores alone within the context."""
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def _programs(config: Config) -> "list[Program]":
    """The other programs that can train this, with a line about each that cannot."""
    from rlx import experiment
    from rlx.benchmarks import peers

    given = config.peer_python or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list):
        raise ConfigError(f"peer_python={given}: expected the path of an interpreter, or a list.")
    spec = experiment.env_spec(config.env)
    training = peers.settings(config.agent, config.env, spec, config.num_envs)
    programs, refused = peers.find(training, [str(python) for python in given])
    for program, reason in refused.items():
        console.facts(peer=f"{program} is left out: {reason}")
    return programs


def _measured(
    config: Config,
    name: str,
    clock: str,
    cores: set[int] | None,
    programs: "Sequence[Program]",
    folder: Path,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The speed of every program, and the stages of rlx's eager trainings as rows of a table."""
    from rlx import experiment
    from rlx.benchmarks import own, peers

    seconds = config.seconds
    spec = experiment.env_spec(config.env)
    with ExitStack() as stack:
        measurements: list[tuple[Row, Peer | Timed]] = []
        for program in programs:
            training = peers.settings(config.agent, config.env, spec, config.num_envs) | {
                "seeds": [1] if program.one_seed else config.seeds,
                "threads": config.device["threads"],
                "clock": clock,
                "core": max(cores) if cores else None,
            }
            peer = peers.Peer(program, training, folder / f"{program.script.stem}.log")
            stack.callback(peer.close)
            differences = ", ".join(program.differences) or "in nothing that is known"
            console.facts(peer=f"{program.name} {peer.version}; differs: {differences}")
            for seeds in training["seeds"]:
                measurements.append((_peer_row(peer, seeds, config), peer))
        eager: dict[int, Timed] = {}
        for seeds in config.seeds:
            for compiled in _modes(config):
                row, timed = _own_row(config, name, clock, seeds, compiled)
                if timed is None:
                    continue
                measurements.append((row, timed))
                if not compiled:
                    eager[seeds] = timed
        for _ in range(config.rounds):
            for row, source in measurements:
                if isinstance(source, peers.Peer):
                    row.speeds.append(source.speed(row.seeds, seconds))
                else:
                    row.speeds.append(source.speed(seconds))
    stages = []
    for seeds, timed in eager.items():
        stages += _stage_rows(seeds, own.Stages(timed, config.watch).measure(seconds))
    return [row for row, _ in measurements], stages


def _modes(config: Config) -> list[bool]:
    """Whether steps are compiled: what `device.compile` says, `auto` both ways."""
    from rlx import experiment

    wanted = experiment.compile_mode(config.device)
    return {"true": [True], "false": [False]}.get(wanted, [False, True])


def _peer_row(peer: "Peer", seeds: int, config: Config) -> Row:
    """The row of another program, yet without measurements."""
    program = peer.program
    num_envs = 1 if "1 env" in program.differences else config.num_envs
    note = ", ".join([f"version {peer.version}", *program.differences])
    return Row(program.name, seeds, num_envs, [], peer.first_s[seeds], note=note)


def _own_row(
    config: Config, name: str, clock: str, seeds: int, compiled: bool
) -> "tuple[Row, Timed | None]":
    """rlx's row, yet without measurements, and its training; None where it cannot be compiled."""
    from rlx import experiment
    from rlx.benchmarks import own
    from rlx.benchmarks.timing import clock as clock_of

    node = {field.name: getattr(config, field.name) for field in fields(config)}
    program = "rlx, compiled" if compiled else "rlx, as written"
    row = Row(program, seeds, config.num_envs, [], 0.0)
    libraries = own.libraries()
    try:
        timed = own.Timed(own.config_of(node, seeds, compiled=compiled), name, clock_of(clock))
    except ConfigError as error:
        if not compiled or experiment.compile_mode(config.device) == "true":
            raise
        console.facts(compiled=f"no: {error}")
        return row, None
    row.first_s = timed.first_s
    row.tensors = timed.tensors()
    row.resident = timed.resident
    if compiled:
        row.note = "cold" if own.libraries() > libraries else "from the cache"
    return row, timed


def _stage_rows(seeds: int, stages: "Sequence[Stage]") -> list[dict[str, Any]]:
    """The stages of a training as rows of a table."""
    total, *parts = stages
    return [
        {
            "seeds": seeds,
            "stage": stage.name,
            "ms": stage.ms,
            "share": stage.ms / total.ms,
            "kernels": stage.kernels,
            "megabytes": stage.megabytes,
        }
        for stage in [*parts, total]
    ]


def _cells(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row as the table and the CSV file have it, with its ratios to the other programs.

    A ratio is to the other program's training of as many seeds, or else to that of one.
    """
    cells: dict[str, Any] = {
        "program": row.program,
        "seeds": row.seeds,
        "num_envs": row.num_envs,
        "steps_per_s": statistics.median(row.speeds),
        "lowest": min(row.speeds),
        "highest": max(row.speeds),
    }
    for program in dict.fromkeys(other.program for other in rows):
        if program == "rlx, compiled":
            continue
        others = {other.seeds: other for other in rows if other.program == program}
        cells[f"x {program}"] = row.ratio(others.get(row.seeds, others.get(1)))
    cells["first_s"] = row.first_s
    cells["tensors_mb"] = None if row.tensors is None else row.tensors / 1e6
    cells["resident_mb"] = None if row.resident is None else row.resident / 1e6
    cells["note"] = row.note
    return cells


def _print(table: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> None:
    """Print both tables."""
    title = "Environment steps per second, summed over seeds; as multiples of other rows (x)"
    shown = [
        {name: value for name, value in row.items() if name not in ONLY_IN_FILE} for row in table
    ]
    console.table(title, list(shown[0]), [_shown(row) for row in shown])
    if stages:
        title = "Stages of a vector step as written: milliseconds, operations, what these move"
        console.table(title, list(stages[0]), [_shown(row) for row in stages])


def _shown(row: Mapping[str, Any]) -> list[Any]:
    """The cells of a row, of which some may be empty."""
    return ["" if value is None else value for value in row.values()]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV file; of no rows an empty one."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _time_drawing(config: Config) -> float:
    """Print CarRacing's speeds; returns the ratio of the gray image's to Gymnasium's."""
    from rlx.benchmarks.car_racing import ID, frames_per_s

    if config.env.get("id") != ID:
        raise ConfigError("drawing=true: is for env=car_racing alone, which rlx draws itself.")
    speeds = frames_per_s(config.env, config.num_envs, config.seconds)
    first, gray, *_ = speeds.values()
    rows = [
        [label, f"{speed:,.0f}", console.number(speed / first)] for label, speed in speeds.items()
    ]
    console.table("CarRacing, frames per second", ["what", "frames/s", "ratio"], rows)
    return gray / first
