"""What a person sees: chosen settings, progress, tables. Lines without decoration where the output is no terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from rlx.runs.run import Run
    from rlx.show.stats import Estimate

COVERAGE = {2: 50, 3: 74, 4: 88}
"""Percent of 95 % bootstrap intervals of so few seeds that hold the truth (of normal returns; 90 of 5 seeds, 94 of 10)."""

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 200


def start(**facts: object) -> None:
    """What was chosen, one line each."""
    width = max([8, *map(len, facts)])
    for key, value in facts.items():
        console.print(f"{key:<{width}} {value}", markup=False)


def end(path: Path, wall_s: float | None = None, **files: Path) -> None:
    """Where the results are; the last line is the run directory alone."""
    if wall_s is not None:
        console.print(f"{'took':<8} {duration(wall_s)}", markup=False)
    for key, value in files.items():
        console.print(f"{key:<8} {value}", markup=False)
    console.print(str(path), markup=False)


def ranges(numbers: Sequence[int]) -> str:
    """As in "0–3, 7" for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def duration(seconds: float) -> str:
    """As in "2 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(
        f"{n} {unit}"
        for n, unit in ((hours, "h"), (minutes, "min"), (rest, "s"))
        if n or unit == "s"
    )


def unfinished(runs: "Sequence[Run]") -> None:
    """Say so where a run is played that has not come to its end."""
    for run in runs:
        status = run.unfinished()
        if status is not None:
            start(warning=f"{run.path} is not finished: {status}")


class Progress:
    """A bar on a terminal; evaluations are lines above it, and all there is elsewhere."""

    def __init__(
        self,
        total: int,
        begin: int = 0,
        threshold: float | None = None,
        unit: str = "steps",
        quarters: bool = False,
    ):
        """From `begin` to `total`; `threshold`: the return from which a seed counts as solved; `quarters`: where there is no bar,
        a line at each quarter."""
        self.quarters = quarters
        self.total, self.begin, self.threshold, self.unit = total, begin, threshold, unit
        self.live = RichProgress(
            TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self.done = 0
        self.last = begin

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.live.start()
        self.task = self.live.add_task("", total=self.total, completed=self.begin, unit=self.unit)
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def steps_per_s(self, step: int) -> float:
        """In this process, of one seed."""
        return (step - self.begin) / max(time.monotonic() - self.began, 1e-9)

    def update(self, step: int) -> None:
        """Move the bar."""
        if not self.live.disable:
            self.live.update(self.task, completed=step)
        elif self.quarters and 4 * step // self.total > 4 * self.last // self.total:
            seconds = (self.total - step) / max(self.steps_per_s(step), 1e-9)
            console.print(f"{step / self.total:>8.0%} done, {duration(seconds)} left", markup=False)
        self.last = step

    def evaluated(self, step: int, mean: "Tensor", best: "Tensor") -> None:
        """Show an evaluation's returns [S'] and those of the weights kept [S]: interquartile means."""
        from rlx.show.stats import iqm

        now = mean.cpu().numpy()
        text = f"{step:>9,}  return {number(float(iqm(now)))}"
        if bool(best.isfinite().all()):
            text += f"  kept {number(float(iqm(best.cpu().numpy())))} (worst {number(float(best.min()))})"
        if self.threshold is not None:
            text += f"  {int((best >= self.threshold).sum())}/{len(best)} solved"
        text += f"  {self.done} stopped" if self.done else ""
        text += f"  {self.steps_per_s(step):,.0f} {self.unit}/s each"
        if self.live.disable:
            remaining = max(self.total - step, 0) / max(self.steps_per_s(step), 1e-9)
            text += f"  {duration(remaining)} left"
        console.print(text, markup=False)

    def stopped(self, seeds: int) -> None:
        """Count seeds whose stop rule was met."""
        self.done += seeds


def per_seed(
    title: str, seeds: Sequence[int], columns: Mapping[str, Any], estimate: "Estimate"
) -> None:
    """A table with one line per seed, and the estimate over them."""
    table = Table(title=title, title_justify="left")
    table.add_column("seed", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for i, seed in enumerate(seeds):
        table.add_row(str(seed), *(_cell(values[i]) for values in columns.values()))
    console.print(table)
    what = (
        "one seed: no interval"
        if len(seeds) == 1
        else f"interquartile mean over {len(seeds)} seeds, 95 % bootstrap interval"
    )
    console.print(f"{'return':<8} {interval_text(estimate.iqm, estimate.ci95)} ({what})")
    few(len(seeds))


def few(seeds: int) -> None:
    """Say so where an interval is of too few seeds."""
    if 1 < seeds < 5:
        start(
            warning=f"an interval of {seeds} seeds is too narrow: it covers the truth in {COVERAGE[seeds]} % of all cases"
        )


def interval_text(value: float, ci95: tuple[float, float]) -> str:
    """As in "-82.1 [-83.0, -81.2]"; without an interval where there is none (one seed)."""
    low, high = ci95
    if np.isnan(value):
        return "–"
    return number(value) if np.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def number(value: float) -> str:
    """Three significant digits, more only before the point."""
    return (
        f"{value:.0f}"
        if abs(value) >= 99.95
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.3g}"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Any table."""
    result = Table(title=title, title_justify="left")
    for name in header:
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(*map(_cell, row))
    whole = console.measure(result, options=console.options.update(width=1000)).maximum
    console.print(result, width=max(console.width, whole), crop=False)


def _cell(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:,}"
        if isinstance(value, int)
        else number(float(value))
    )
