"""What a command prints while it runs: chosen settings, progress, tables.

Where the output is no terminal, these are lines without decoration.
"""

import datetime
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from rlx.machine import memory_text

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
NO_NUMBER = "–"
"""What is printed where there is no number."""
NARROWEST = 12
"""Characters that a column of sentences has at least, where a terminal is narrow."""


class _Terminal(Console):
    """A console that raises where nobody reads on, as in `rlx … | head`; rich exits with 1."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that rich is handling


terminal = _Terminal(highlight=False, soft_wrap=True)
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
        terminal.print(_wrapped(f"{key:<{width}} {value}", width + 1), markup=False)


def _wrapped(text: str, indent: int = 0) -> str:
    """`text` in lines that fit a terminal, all but the first indented; a path alone stays whole.

    What goes to a file stays on one line.
    """
    if not terminal.is_terminal or " " not in text[indent:]:
        return text
    lines = textwrap.wrap(
        text,
        terminal.width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


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


class _Column(ProgressColumn):
    """A column of a progress bar, whose text a function gives."""

    def __init__(self, text: Callable[[Task], str]):
        super().__init__(Column(no_wrap=True))
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text(task))


BAR = 10
"""The fewest characters of a progress bar that tell how far it is."""


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
        spent: Mapping[str, float] | None = None,
        paused: Callable[[], float] = lambda: 0.0,
    ):
        """The progress from `begin` to `total`, counted in `unit`.

        `threshold`: the return from which a seed counts as solved. `quarters`: print a line at each
        quarter of the way where there is no bar. Within `only_progress` there are no other lines.
        `spent`: seconds by what they were spent on, which grow meanwhile while the keys stay.
        `paused`: seconds within this progress, so far, in which no step could be made.
        """
        self.total = total
        self.begin = begin
        self.threshold = threshold
        self.unit = unit
        self.quarters = quarters or _brief
        self.spent = {} if spent is None else spent
        self.paused = paused
        self.live = RichProgress(
            _Column(self._so_far),
            BarColumn(bar_width=None),
            _Column(self._rest),
            console=terminal,
            expand=True,
            disable=not terminal.is_terminal,
        )
        self.stopped_seeds = 0
        self.step = begin

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.live.start()
        self.task = self.live.add_task("", total=self.total, completed=self.begin)
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def _so_far(self, task: Task) -> str:
        """What stands before the bar."""
        step = f"{int(task.completed):,}"
        return f"{step:>{len(f'{self.total:,}')}} {self.unit}"

    def _rest(self, task: Task) -> str:
        """What stands behind the bar, the most important first, as far as there is room."""
        left = "-:--:--"
        if task.time_remaining is not None:
            left = str(datetime.timedelta(seconds=round(task.time_remaining)))
        parts = [f"{task.percentage:3.0f} %", f"{left} left"]
        if self.step > self.begin:
            parts.append(f"{self.steps_per_s(self.step):,.0f}/s")
        parts += filter(None, [memory_text(), shares_text(self.spent)])
        return _fitting(parts, terminal.width - len(self._so_far(task)) - BAR - 2)

    def steps_per_s(self, step: int) -> float:
        """Steps of one seed per second, in this process."""
        seconds = time.monotonic() - self.began - self.paused()
        return (step - self.begin) / max(seconds, 1e-9)

    def seconds_left(self, step: int) -> float:
        """Seconds until the end, at the speed so far."""
        return max(self.total - step, 0) / max(self.steps_per_s(step), 1e-9)

    def update(self, step: int) -> None:
        """Move the bar to `step`; without a bar, print a line at each quarter if asked for."""
        if not self.live.disable:
            self.live.update(self.task, completed=step)
        elif self.quarters and 4 * step // self.total > 4 * self.step // self.total:
            remaining = duration(self.seconds_left(step))
            share = f"{step / self.total:>8.0%} of the {self.unit}"
            terminal.print(f"{share}, {remaining} left", markup=False)
        self.step = step

    def evaluated(
        self, step: int, mean: "Tensor", best: "Tensor", attacked: "Tensor | None" = None
    ) -> None:
        """Print an evaluation: interquartile means over seeds.

        `mean` are the returns of the seeds that still learn, [S'], `attacked` those under attack
        where they count too, `best` those of the weights kept of every seed, [S].
        """
        if _brief:
            return
        from rlx.statistics import iqm

        parts = [f"{step:>9,}", f"return {number(float(iqm(mean.cpu().numpy())))}"]
        if attacked is not None:
            parts.append(f"attacked {number(float(iqm(attacked.cpu().numpy())))}")
        if bool(best.isfinite().all()):
            kept = float(iqm(best.cpu().numpy()))
            parts.append(f"kept {number(kept)} (worst {number(float(best.min()))})")
        if self.threshold is not None:
            solved = f"{int((best >= self.threshold).sum())}/{len(best)} solved"
            parts.append(solved if attacked is None else f"{solved} under attack")
        if self.stopped_seeds:
            parts.append(f"{self.stopped_seeds} stopped")
        parts.append(f"{self.steps_per_s(step):,.0f} {self.unit}/s each")
        if self.live.disable:
            parts.append(f"{duration(self.seconds_left(step))} left")
            terminal.print("  ".join(parts), markup=False)
        else:
            terminal.print(_fitting(parts, terminal.width), markup=False)

    def stopped(self, seeds: int) -> None:
        """Note that the stop rule was met by this number of further seeds."""
        self.stopped_seeds += seeds


def _fitting(parts: Sequence[str], width: int) -> str:
    """As many of the first `parts` beside each other as `width` characters hold."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text += f"  {part}"
    return text


def shares_text(spent: Mapping[str, float]) -> str:
    """The share of each of some seconds in all of them, as in "acting 20%, env 70%".

    Empty where no time was spent.
    """
    total = sum(spent.values())
    if not total:
        return ""
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in spent.items())


def per_seed(
    title: str, seeds: Sequence[int], columns: Mapping[str, Any], estimate: "Estimate"
) -> None:
    """Print a table with one line for each seed, and the `estimate` over all seeds.

    `columns`: name → a value for each seed.
    """
    if _brief:
        return
    rows = []
    for i, seed in enumerate(seeds):
        rows.append([str(seed), *(values[i] for values in columns.values())])
    table(title, ["seed", *columns], rows)
    statistic = f"interquartile mean over {len(seeds)} seeds, 95 % bootstrap interval"
    if len(seeds) == 1:
        statistic = "one seed: no interval"
    facts(**{"return": f"{interval_text(estimate.iqm, estimate.ci95)} ({statistic})"})
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


def interval_text(value: float | str, ci95: Sequence[float | str]) -> str:
    """A number and its interval, as in "-82.1 [-83.0, -81.2]"; of one seed the number alone.

    Words stay as they are, as of a radius beyond a grid: "0.013 [0.011, >0.03]".
    """
    texts = [part if isinstance(part, str) else number(part) for part in (value, *ci95)]
    if NO_NUMBER in texts[:2]:
        return texts[0]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def resampled_text(statistic: "Resampled") -> str:
    """A statistic [] and its interval, as `interval_text` has them."""
    low, high = statistic.ci95
    return interval_text(float(statistic.value), (float(low), float(high)))


def number(value: float) -> str:
    """A number in three significant digits, more only before the point; a dash for NaN."""
    if np.isnan(value):
        return NO_NUMBER
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3g}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table. Words stay as they are, numbers are rounded as by `number`.

    On a terminal that is too narrow for it, it goes on below, the first column again in each part.
    """
    if _brief:
        return
    lines = [[str(name) for name in header], *([cell(value) for value in row] for row in rows)]
    if not terminal.is_terminal:
        _print_columns(title, lines, prose=[])
        return
    columns = list(zip(*lines, strict=True))
    prose = [number for number, cells in enumerate(columns) if _is_prose(cells)]
    widths = [max(map(cell_len, cells)) for cells in columns]
    for number in prose:
        widths[number] = min(widths[number], NARROWEST)
    for part in _parts(widths, terminal.width):
        own_prose = [part.index(number) for number in prose if number in part]
        _print_columns(_wrapped(title), [[line[n] for n in part] for line in lines], own_prose)
        title = ""


def _is_prose(cells: Sequence[str]) -> bool:
    """Whether a column has sentences, which may be broken into lines."""
    return any(len(cell.split()) > 3 for cell in cells)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns of each part of a table that fits the `room`; the first is in all of them.

    `widths`: the characters of each column; its frame takes three more.
    """
    parts = [[0]]
    for column in range(1, len(widths)):
        used = sum(widths[number] + 3 for number in parts[-1]) + 1
        if used + widths[column] + 3 > room and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _print_columns(title: str, lines: Sequence[Sequence[str]], prose: Sequence[int]) -> None:
    """Print a table of `lines`, of which the first is the header; the columns `prose` may wrap."""
    header, *rows = lines
    rich_table = RichTable(title=title or None, title_justify="left")
    for column, name in enumerate(header):
        rich_table.add_column(name, justify="right", no_wrap=column not in prose)
    for row in rows:
        rich_table.add_row(*row)
    # A table that is wider than the console is not cut: a file or a pager shows it whole.
    whole = terminal.measure(
        rich_table, options=terminal.options.update(width=MOST_COLUMNS)
    ).maximum
    if whole > terminal.width and not prose:
        rich_table.width = whole
    terminal.print(rich_table, crop=False, soft_wrap=not prose)


def cell(value: Any) -> str:
    """A cell of a table: words as they are, whole numbers whole, others as by `number`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return number(float(value))
