"""What a command prints while it runs: chosen settings, progress, tables.

Where the output is no terminal, these are lines without decoration.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from torch import Tensor

    from rlx.runs.run import Run
    from rlx.statistics import Estimate, Resampled

COVERAGE = {2: 50, 3: 74, 4: 88}
"""Number of seeds → percent of their 95 % bootstrap intervals that hold the truth.

The returns are normally distributed. With 5 seeds it is 90 %, with 10 seeds 94 %.
"""

MOST_COLUMNS = 10_000
"""The widest table, in characters."""
terminal = Console(highlight=False, soft_wrap=True)
if not terminal.is_terminal:
    terminal.width = 200


class Table(NamedTuple):
    """A table of numbers, as `table` prints it and a report's page shows it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """Words stay as they are, numbers are rounded as by `number`."""


_brief = False
"""Whether all but progress and warnings is left out."""


@contextmanager
def only_progress() -> Iterator[None]:
    """Print only progress and warnings within: of a run that is part of another command."""
    global _brief
    former = _brief
    _brief = True
    try:
        yield
    finally:
        _brief = former


def facts(**values: object) -> None:
    """Print a line for each of `values`: settings that were chosen, facts that were found."""
    if _brief:
        values = {key: value for key, value in values.items() if key == "warning"}
    width = max([8, *map(len, values)])
    for key, value in values.items():
        terminal.print(f"{key:<{width}} {value}", markup=False)


def warning(text: str) -> None:
    """Print what a reader of the numbers should know, on a line that begins with "warning"."""
    facts(warning=text)


def result(path: Path, wall_s: float | None = None, **files: Path) -> None:
    """Print how long a command took and where its results are; the last line is `path` alone."""
    if _brief:
        return
    if wall_s is not None:
        terminal.print(f"{'took':<8} {duration(wall_s)}", markup=False)
    for key, value in files.items():
        terminal.print(f"{key:<8} {value}", markup=False)
    terminal.print(str(path), markup=False)


def ranges(numbers: Collection[int]) -> str:
    """Whole numbers in words, as in "0–3, 7" for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in spans)


def duration(seconds: float) -> str:
    """A duration in words, as in "2 min 5 s"."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = []
    if hours:
        parts.append(f"{hours} h")
    if minutes:
        parts.append(f"{minutes} min")
    return " ".join([*parts, f"{whole_seconds} s"])


def warn_of_unfinished(runs: "Sequence[Run]") -> None:
    """Warn of runs that are played though they have not come to their end."""
    for run in runs:
        status = run.unfinished()
        if status is not None:
            warning(f"{run.path} is not finished: {status}")


class Progress:
    """How far a command is: a bar on a terminal, with a line above it for each evaluation.

    Where the output is no terminal, only the lines are printed.
    """

    def __init__(
        self,
        total: int,
        begin: int = 0,
        threshold: float | None = None,
        unit: str = "steps",
        quarters: bool = False,
    ):
        """The progress from `begin` to `total`, counted in `unit`.

        `threshold`: the return from which a seed counts as solved. `quarters`: print a line at each
        quarter of the way where there is no bar. Within `only_progress` there are no other lines.
        """
        self.total = total
        self.begin = begin
        self.threshold = threshold
        self.unit = unit
        self.quarters = quarters or _brief
        self.live = RichProgress(
            TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=terminal,
            expand=True,
            disable=not terminal.is_terminal,
        )
        self.stopped_seeds = 0
        self.step = begin

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.live.start()
        self.task = self.live.add_task("", total=self.total, completed=self.begin, unit=self.unit)
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def steps_per_s(self, step: int) -> float:
        """Steps of one seed per second, in this process."""
        return (step - self.begin) / max(time.monotonic() - self.began, 1e-9)

    def seconds_left(self, step: int) -> float:
        """Seconds until the end, at the speed so far."""
        return max(self.total - step, 0) / max(self.steps_per_s(step), 1e-9)

    def update(self, step: int) -> None:
        """Move the bar to `step`; without a bar, print a line at each quarter if asked for."""
        if not self.live.disable:
            self.live.update(self.task, completed=step)
        elif self.quarters and 4 * step // self.total > 4 * self.step // self.total:
            remaining = duration(self.seconds_left(step))
            terminal.print(f"{step / self.total:>8.0%} done, {remaining} left", markup=False)
        self.step = step

    def evaluated(self, step: int, mean: "Tensor", best: "Tensor") -> None:
        """Print an evaluation: interquartile means over seeds.

        `mean` are the returns of the seeds that still learn, [S'], `best` those of the weights kept
        of every seed, [S].
        """
        if _brief:
            return
        from rlx.statistics import iqm

        now = float(iqm(mean.cpu().numpy()))
        parts = [f"{step:>9,}", f"return {number(now)}"]
        if bool(best.isfinite().all()):
            kept = float(iqm(best.cpu().numpy()))
            parts.append(f"kept {number(kept)} (worst {number(float(best.min()))})")
        if self.threshold is not None:
            parts.append(f"{int((best >= self.threshold).sum())}/{len(best)} solved")
        if self.stopped_seeds:
            parts.append(f"{self.stopped_seeds} stopped")
        parts.append(f"{self.steps_per_s(step):,.0f} {self.unit}/s each")
        if self.live.disable:
            parts.append(f"{duration(self.seconds_left(step))} left")
        terminal.print("  ".join(parts), markup=False)

    def stopped(self, seeds: int) -> None:
        """Note that the stop rule was met by this number of further seeds."""
        self.stopped_seeds += seeds


def per_seed(
    title: str, seeds: Sequence[int], columns: Mapping[str, Any], estimate: "Estimate"
) -> None:
    """Print a table with one line for each seed, and the `estimate` over all seeds.

    `columns`: name → a value for each seed.
    """
    if _brief:
        return
    rich_table = RichTable(title=title, title_justify="left")
    rich_table.add_column("seed", justify="right")
    for name in columns:
        rich_table.add_column(name, justify="right")
    for i, seed in enumerate(seeds):
        rich_table.add_row(str(seed), *(cell(values[i]) for values in columns.values()))
    terminal.print(rich_table)
    statistic = f"interquartile mean over {len(seeds)} seeds, 95 % bootstrap interval"
    if len(seeds) == 1:
        statistic = "one seed: no interval"
    terminal.print(f"{'return':<8} {interval_text(estimate.iqm, estimate.ci95)} ({statistic})")
    warn_of_few_seeds(len(seeds))


def time_limit(words: str | None) -> None:
    """Print what it means that an episode ended at the time limit; None: nobody has said it."""
    if words is not None:
        facts(limit=words)


def warn_of_few_seeds(seeds: int) -> None:
    """Warn of an interval of too few seeds."""
    for text in few_seeds(seeds):
        warning(text)


def few_seeds(seeds: int) -> list[str]:
    """What is to be said of an interval of so many `seeds`: nothing, or that they are too few."""
    if not 1 < seeds < 5:
        return []
    share = f"it covers the truth in {COVERAGE[seeds]} % of all cases"
    return [f"an interval of {seeds} seeds is too narrow: {share}"]


def interval_text(value: float, ci95: tuple[float, float]) -> str:
    """A number and its interval, as in "-82.1 [-83.0, -81.2]"; of one seed the number alone."""
    low, high = ci95
    if np.isnan(value):
        return "–"
    if np.isnan(low):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def resampled_text(statistic: "Resampled") -> str:
    """A statistic [] and its interval, as `interval_text` has them."""
    low, high = statistic.ci95
    return interval_text(float(statistic.value), (float(low), float(high)))


def number(value: float) -> str:
    """A number in three significant digits; more only before the point."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3g}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table. Words stay as they are, numbers are rounded as by `number`."""
    if _brief:
        return
    rich_table = RichTable(title=title, title_justify="left")
    for name in header:
        rich_table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rich_table.add_row(*(cell(value) for value in row))
    # A table that is wider than the console is not cut: a file or a pager shows it whole.
    whole = terminal.measure(
        rich_table, options=terminal.options.update(width=MOST_COLUMNS)
    ).maximum
    rich_table.width = whole if whole > terminal.width else None
    terminal.print(rich_table, crop=False)


def cell(value: Any) -> str:
    """A cell of a table: words as they are, whole numbers whole, others as by `number`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return number(float(value))
