"""Feeds trackers from a run's directory, with what no crash takes back.

A resumed run makes the rows behind its checkpoint anew. So trackers get the rows before it, at
every checkpoint, and the rest when the run is complete: each step once, as in metrics.jsonl.
"""

import csv
import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from rlx.config import build, load_class, plain
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.names import one_line
from rlx.runs.run import Run
from rlx.show import console
from rlx.statistics import iqm
from rlx.trackers.tracker import Tracked, Tracker


def make_trackers(node: Any) -> dict[str, Tracker]:
    """The trackers of the config group `tracker`, by name; ConfigError where one cannot be."""
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"tracker={node}: expected one of conf/tracker, or a list of them.")
    made = {}
    for name, keys in plain(node).items():
        key = f"tracker.{name}"
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{key}={keys}: expected keys with values.")
        kind = load_class(keys, key, Tracker)
        if kind.package and not _is_installed(kind.package):
            raise ConfigError(f'{key}: {kind.package} is not installed; pip install "rlx[{name}]".')
        made[str(name)] = build(kind, keys, key)
    return made


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as ./wandb, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


class Tracking:
    """The trackers of a run, as a context; one that raises is left out from then on, and told."""

    def __init__(self, run: Run, trackers: Mapping[str, Tracker]):
        self.run = run
        self.trackers = trackers
        self.live: dict[str, Tracker] = {}
        """The trackers that have begun, and have not failed."""
        self.sent = dict.fromkeys(trackers, -1)
        """The last step that each tracker has got."""

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def begin(self) -> None:
        """Begin with the run, or take it up again, and say where it can be looked at."""
        self.live = dict(self.trackers)
        self._each(lambda name, tracker: console.facts(tracker=tracker.begin(_tracked(self.run))))

    def send(self, until: float) -> None:
        """Send what was logged up to the step `until`, the last that no crash takes back."""
        self._each(lambda name, tracker: self._send(name, tracker, until))

    def end(self) -> None:
        """Send what is left of a run that is over; Ctrl-C gives up one that takes too long."""
        self._each(self._end, (Exception, KeyboardInterrupt))
        self.live.clear()

    def _each(
        self,
        act: Callable[[str, Tracker], None],
        faults: tuple[type[BaseException], ...] = (Exception,),
    ) -> None:
        """`act` on each tracker; that one raises one of `faults` changes nothing for the run."""
        for name, tracker in list(self.live.items()):
            try:
                act(name, tracker)
            except faults as error:
                del self.live[name]
                reason = one_line(f"{type(error).__name__}: {error}")
                console.warning(f"tracker {name} failed and is left out from here on ({reason})")

    def _send(self, name: str, tracker: Tracker, until: float) -> None:
        """Send the steps up to `until` that a tracker does not have yet."""
        for step, scalars in _scalars(self.run, self.sent[name], until):
            new = {key: value for key, value in scalars.items() if tracker.last_step(key) < step}
            if new:
                tracker.log(step, new)
            self.sent[name] = step

    def _end(self, name: str, tracker: Tracker) -> None:
        """Send what is left of a run that is complete, and end a tracker in any case."""
        status = str(self.run.meta()["status"])
        try:
            if status == "completed":
                self._send(name, tracker, math.inf)
                for file in sorted(self.run.path.glob("*.png")):
                    tracker.figure(file.stem, file)
                tracker.result(*_result(self.run))
        finally:
            tracker.end(status)


def track_finished(run: Run, trackers: Mapping[str, Tracker]) -> None:
    """Send a complete run to trackers, all at once."""
    with Tracking(run, trackers) as tracking:
        tracking.begin()


def _tracked(run: Run) -> Tracked:
    """What trackers are told of a run."""
    path = run.path.absolute()
    command, group, stamp = path.parts[-3:]
    config = plain(run.config)
    name = f"{command}-{group}-{stamp}"
    if command == "train":
        # A run that gets more seeds has another interquartile mean at every step.
        name += f"-{len(parse_seeds(config['seeds']))}-seeds"
    outputs = path.parents[2]
    return Tracked(re.sub(r"[^\w.-]", "-", name), command, group, path, outputs, config)


def _scalars(run: Run, after: int, until: float) -> "Iterator[tuple[int, dict[str, float]]]":
    """(step, scalar by name) of each evaluation of a training, or of each radius of an attack.

    Only those behind the step `after` and up to `until`; of an attack the steps are 0, 1, ….
    """
    if run.path.parent.parent.name == "attack":
        yield from _of_attack(run.summary())
        return
    steps, _, returns = run.curve()
    rows: dict[int, list[Mapping[str, Any]]] = {step: [] for step in steps}
    for row in run.metrics():
        rows[row["step"]].append(row)
    for number, step in enumerate(steps):
        if not after < step <= until:
            continue
        scalars: dict[str, float] = {}
        for name in dict.fromkeys(name for row in rows[step] for name in row):
            values = {row["seed"]: row.get(name, math.nan) for row in rows[step]}
            if name not in ("step", "seed"):
                scalars |= _by_seed(name, values)
        # Seeds that have stopped count with their last return.
        scalars["iqm/return/mean"] = float(iqm(returns[number]))
        yield step, _finite(scalars)


def _of_attack(summary: Mapping[str, Any]) -> "Iterator[tuple[int, dict[str, float]]]":
    """(number of the radius, scalar by name) of each radius of an attack."""
    for number, eps in enumerate(summary["eps"]):
        scalars = {"iqm/eps": eps}
        for cell in summary["cells"]:
            if cell["eps"] == eps:
                values = dict(zip(summary["seeds"], cell["return"]["per_seed"], strict=True))
                scalars |= _by_seed(f"return/{cell['head']}", values)
        yield number, scalars


def _by_seed(name: str, values: Mapping[int, float]) -> dict[str, float]:
    """The scalar of each seed that has one, and their interquartile mean."""
    finite = _finite(values)
    scalars = {f"seed-{seed}/{name}": value for seed, value in finite.items()}
    if finite:
        scalars[f"iqm/{name}"] = float(iqm(np.array(list(finite.values()))))
    return scalars


class _Result(NamedTuple):
    """The result of a run, as `Tracker.result` takes it."""

    numbers: dict[str, float]
    header: list[str]
    rows: list[list[str]]


def _result(run: Run) -> _Result:
    """The result of a run that is complete."""
    summary = run.summary()
    if run.path.parent.parent.name == "attack":
        areas = {f"area/{mode}": area for mode, area in summary["area"].items()}
        with open(run.path / "robustness.csv", newline="") as file:
            header, *rows = csv.reader(file)
        return _Result(_finite(areas), header, rows)
    returns = summary["return"]
    low, high = returns["ci95"]
    numbers = {"final/return": returns["iqm"], "final/low": low, "final/high": high}
    columns = zip(summary["seeds"], returns["per_seed"], summary["kept"]["step"], strict=True)
    rows = [[str(value) for value in row] for row in columns]
    return _Result(_finite(numbers), ["seed", "return", "kept at step"], rows)


def _finite(values: Mapping[Any, float]) -> dict[Any, float]:
    """Those of `values` that are finite: no tracker draws NaN, and some refuse it."""
    return {key: value for key, value in values.items() if math.isfinite(value)}
