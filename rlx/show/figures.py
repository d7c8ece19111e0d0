"""The figures: curves over steps or attack radii with intervals, single seeds as faint lines."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from rlx.config import Range
from rlx.statistics import Estimate, Resampled, interval, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B6770")
"""Colours that people of any colour vision tell apart (Okabe & Ito 2008), and a gray."""
LINE_STYLES = ("-", "--", ":", "-.")
PROFILES = "Share of seeds × radii with a score above τ"
"""The title of performance profiles."""
SCORE = "score τ (0: random play, 1: the best clean play)"
"""What performance profiles are drawn against."""
LABEL_WIDTH = 46
"""Characters after which a label goes on in another line, where there is room for so many."""
MOST_BANDS = 4
"""The most curves of a panel of which intervals and single seeds are drawn too."""
LETTER = 0.585 / 72
"""Inches that a character takes for each point of its size, on average."""
LINE = 1.45 / 72
"""Inches that a line takes for each point of the size of its characters."""


@dataclass(frozen=True)
class Style:
    """How large figures are: the keys of the config group `figure`."""

    width: Annotated[float, Range(1.5, 40)] | None = None
    """Inches from left to right; null: as wide as the panels need."""
    height: Annotated[float, Range(1, 40)] | None = None
    """Inches from top to bottom; null: as high as the panels and their legends need."""
    font_size: Annotated[float, Range(3, 30)] = 10.0
    """Size of the axes' names, in points; titles are larger, the numbers and legends smaller."""

    @property
    def small(self) -> float:
        """Size of the numbers at the axes and of legends, in points."""
        return 0.8 * self.font_size

    def columns(self, panels: int) -> int:
        """How many of so many panels lie beside each other."""
        fitting = 3 if self.width is None else int(self.width / (0.24 * self.font_size))
        return max(1, min(3, panels, fitting))

    def panel_size(self, panels: int) -> tuple[float, float]:
        """The width and height in inches of each of so many panels, without its legend."""
        width, height = (7.2, 4.4) if panels == 1 else (4.4, 3.1)
        if self.width is None:
            return width, height
        own_width = self.width / self.columns(panels)
        return own_width, height / width * own_width


SCREEN = Style()
"""The figures that are looked at."""


@dataclass(frozen=True)
class Curve:
    """The returns of one policy at E points, which a figure shows as a line with its interval."""

    label: str
    """The name of the curve in the legend."""
    x: Sequence[float]
    """The points, [E]: radii or steps."""
    estimates: Sequence[Estimate]
    """The return over seeds at each point, [E]."""


def profile(label: str, levels: NDArray[np.float64], share: Resampled) -> Curve:
    """The curve of a share [L] against the `levels` [L] above which it is."""
    low, high = share.ci95
    nobody = np.empty(0)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    points = zip(share.value.tolist(), ends, strict=True)
    return Curve(label, levels.tolist(), [Estimate(nobody, value, ci95) for value, ci95 in points])


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG at `path`, and beside it as PDF and SVG, for papers."""
    from matplotlib import rc_context

    with rc_context({"pdf.fonttype": 42}):  # letters as TrueType, which publishers ask for
        for suffix in (".png", ".pdf", ".svg"):
            figure.savefig(path.with_suffix(suffix))


def learning(
    steps: Sequence[int],
    seeds: Sequence[int],
    values: NDArray[np.float64],
    title: str,
    unit: str = "steps",
    threshold: float | None = None,
    style: Style = SCREEN,
) -> "Figure":
    """A figure of the greedy returns `values` [E, S] of S seeds against the `steps` [E].

    `steps`, `seeds` and `values` are as `Run.curve` gives them; `unit`: what is counted as a step;
    `threshold`: the return from which the task counts as solved. The interval resamples seeds.
    """
    text = f"{title}: greedy evaluation while learning, {len(seeds)} seeds"
    columns = 1 if style.panel_size(1)[0] < 5 else 2
    figure, axes = _axes(text, f"{unit} per seed", "return", style, legend_lines=4 // columns)
    colour = COLOURS[0]
    for number, returns in enumerate(values.T):
        label = "each seed" if number == 0 else None
        axes.plot(steps, returns, color=colour, alpha=0.22, linewidth=0.8, label=label)
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=0.8, linestyle=":", label="solved")
    if values.shape[1] > 1:
        draws = np.random.default_rng(0).integers(values.shape[1], size=(2000, values.shape[1]))
        low, high = interval(iqm(values.T[draws], axis=1))
        label = "95 % bootstrap interval"
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=label)
    axes.plot(
        steps,
        iqm(values.T),
        color=colour,
        linewidth=2,
        marker="o",
        markersize=3,
        label="interquartile mean over seeds",
    )
    _legend_below(axes, columns, None, style)
    return figure


def curves(
    panels: Mapping[str, Sequence[Curve]],
    x: str,
    random: float | None = None,
    style: Style = SCREEN,
) -> "Figure":
    """A figure of returns against `x`, one colour for each curve; `panels`: the curves by title.

    `random`: the return of random play, for a line across.
    """
    columns, legend_lines = _legend_size(panels, style)
    figure, all_axes = make_panels(list(panels), x, "return", style, legend_lines)
    for axes, panel in zip(all_axes, panels.values(), strict=False):
        _draw_all(axes, panel, style)
        if random is not None:
            axes.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
        _legend_below(axes, columns, _legend_title(panel) if len(panels) == 1 else None, style)
    return figure


def robustness(
    title: str,
    curves: Sequence[Curve],
    x: str,
    random: float,
    levels: NDArray[np.float64],
    shares: Sequence[NDArray[np.float64]],
    style: Style = SCREEN,
) -> "Figure":
    """A figure of agents beside each other: returns against the radius, and performance profiles.

    `random`: the return of random play, for a line across; `levels` [L]: scores; `shares`: for each
    curve the share above each level and the ends of its interval, [3, L].
    """
    titles = [title, PROFILES]
    size = style.panel_size(1 if style.width is None else 2)
    columns, legend_lines = _legend_size({"": curves}, style, size[0])
    figure, (left, right) = make_panels(titles, x, "return", style, legend_lines, size)
    _draw_all(left, curves, style)
    left.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
    _legend_below(left, columns, _legend_title(curves), style)
    right.set_xlabel(_wrapped(SCORE, size[0], style.font_size))
    right.set_ylabel("share")
    for number, (share, low, high) in enumerate(shares):
        colour = COLOURS[number % len(COLOURS)]
        line = LINE_STYLES[number % len(LINE_STYLES)]
        if len(shares) <= MOST_BANDS and np.isfinite(low).all():
            right.fill_between(levels, low, high, color=colour, alpha=0.18, linewidth=0)
        right.plot(levels, share, color=colour, linestyle=line, linewidth=_line_width(style))
    return figure


def sandwich(
    panels: Mapping[str, Sequence[Curve]],
    x: str,
    style: Style = SCREEN,
    returns: Mapping[str, Sequence[Curve]] | None = None,
    title: str = "",
) -> "Figure":
    """A figure of shares against `x`, by title: first what is so at most, then what is at least so.

    The truth is between these two curves, where it is shaded; any others are drawn beside them.
    `returns`: likewise panels of returns, which come first; a single curve has nothing to be
    between. `title`: of the whole figure.
    """
    every = {**(returns or {}), **panels}
    columns, legend_lines = _legend_size(every, style)
    figure, all_axes = make_panels(list(every), x, "share of decisions", style, legend_lines)
    if title:
        size = 1.2 * style.font_size
        text = _wrapped(title, figure.get_figwidth(), size)
        figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=size)
        if style.height is None:
            figure.set_figheight(figure.get_figheight() + LINE * size * (text.count("\n") + 1))
    for axes, (title, curves) in zip(all_axes, every.items(), strict=False):
        if len(curves) > 1:
            most, least = ([estimate.iqm for estimate in curve.estimates] for curve in curves[:2])
            axes.fill_between(
                curves[0].x,
                least,
                most,
                facecolor="none",
                edgecolor="0.6",
                hatch="////",
                linewidth=0,
                label="undecided",
            )
        width = _label_width(panel_width(axes), style)
        for number, curve in enumerate(curves):
            # Single seeds, and more intervals than those of the bounds, would hide the lines.
            _draw(axes, curve, number, number < 2, width, style)
        if title in panels:
            axes.set_ylim(-0.02, 1.02)
        else:
            axes.set_ylabel("return", fontsize=style.font_size)
        of_which = " of the bounds" if len(curves) > 2 else ""
        _legend_below(axes, columns, f"interquartile mean, 95 % interval{of_which}", style)
    return figure


def _draw_all(axes: "Axes", curves: Sequence[Curve], style: Style) -> None:
    """Draw the curves of a panel; where they are many, without intervals and single seeds."""
    width = _label_width(panel_width(axes), style)
    band = len(curves) <= MOST_BANDS
    for number, curve in enumerate(curves):
        if band:
            _draw_seeds(axes, curve, number)
        _draw(axes, curve, number, band, width, style)


def _draw_seeds(axes: "Axes", curve: Curve, number: int) -> None:
    """Draw each seed of a curve as a faint line, in the colour of its `number`."""
    colour = COLOURS[number % len(COLOURS)]
    for returns in np.array([estimate.per_seed for estimate in curve.estimates]).T:
        axes.plot(curve.x, returns, color=colour, alpha=0.14, linewidth=0.7)


def _draw(
    axes: "Axes", curve: Curve, number: int, band: bool, label_width: int, style: Style
) -> None:
    """Draw a curve, in the colour and style of its `number` within its panel.

    `band`: with its interval; `label_width`: characters of a line of its label.
    """
    if len(curve.x) == 0:  # of a run that was never evaluated
        return
    colour = COLOURS[number % len(COLOURS)]
    # Equal curves cover each other; where the upper one has gaps, the lower one stays visible.
    line = LINE_STYLES[number % len(LINE_STYLES)]
    if band:
        low, high = np.array([estimate.ci95 for estimate in curve.estimates]).T
        if np.isfinite(low).all():
            axes.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        curve.x,
        [estimate.iqm for estimate in curve.estimates],
        color=colour,
        linestyle=line,
        linewidth=_line_width(style),
        marker="o",
        markersize=1.5 * _line_width(style),
        label="\n".join(textwrap.wrap(curve.label, label_width)),
    )


def _line_width(style: Style) -> float:
    """The width of a curve, in points."""
    return 0.2 * style.font_size


def _legend_title(curves: Sequence[Curve]) -> str:
    """What the lines of a panel are."""
    if len(curves) > MOST_BANDS:
        return "interquartile mean"
    return "interquartile mean, 95 % interval; thin: each seed"


def _label_width(width: float, style: Style) -> int:
    """The most characters in a line of a label of the legend, below a panel `width` inches wide."""
    return min(LABEL_WIDTH, _letters(width - _handle(style), style.small))


def _handle(style: Style) -> float:
    """Inches that the line before a label takes, and the gap behind it."""
    return 0.07 * style.small


def _letters(width: float, size: float) -> int:
    """How many characters of a `size` in points a line `width` inches wide has room for."""
    return max(8, int(width / (LETTER * size)))


def _wrapped(text: str, width: float, size: float) -> str:
    """A text over or below a panel `width` inches wide, in as many lines as it needs."""
    # The numbers and the name of the y axis take about six characters of the panel.
    return textwrap.fill(text, _letters(width - 6 * LETTER * size, size))


def _legend_size(
    panels: Mapping[str, Sequence[Curve]], style: Style, width: float | None = None
) -> tuple[int, int]:
    """The columns and the lines of the legend below each panel, as far as the labels tell.

    `width`: inches of a panel, unless it is that of the style.
    """
    width = width or style.panel_size(len(panels))[0]
    wrapped = {
        title: [textwrap.wrap(curve.label, _label_width(width, style)) for curve in panel]
        for title, panel in panels.items()
    }
    longest = max(len(line) for labels in wrapped.values() for lines in labels for line in lines)
    columns = max(1, int(width / (_handle(style) + LETTER * style.small * longest)))
    most_lines = max(sum(len(lines) for lines in labels) for labels in wrapped.values())
    # Two more: the title, and the line of random play.
    return columns, -(-most_lines // columns) + 2


def _legend_below(axes: "Axes", columns: int, title: str | None, style: Style) -> None:
    """Draw the legend of a panel below its axes, where it covers no curve."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    gap = ScaledTranslation(0, -_below(axes, style), figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + gap,
        borderaxespad=0,
        ncols=columns,
        frameon=False,
        fontsize=style.small,
        title=title,
        title_fontsize=0.9 * style.small,
    )


def _below(axes: "Axes", style: Style) -> float:
    """Inches below the axes that the numbers and the name of the x axis take."""
    lines = axes.get_xlabel().count("\n") + 1
    return LINE * (style.small + lines * style.font_size) + 0.15


def eps_label(scale: object) -> str:
    """The label of an axis of radii, which says what a radius of 1 means."""
    names = {
        "bounds": "half the range of the observation space",
        "std": "a standard deviation of the observations of clean play",
        "reference": "a standard deviation of the observations of the env's reference policies",
    }
    if str(scale).startswith("std:"):
        return "eps (1: a standard deviation of the observations of another run's policies)"
    return f"eps (1: {names.get(str(scale), f'the units {scale}')})"


def grid(values: NDArray[np.float64], title: str, style: Style = SCREEN) -> "Figure":
    """A map of numbers [rows, columns]; a number above 0 is written into its cell."""
    figure, axes = _axes(title, "", "", style)
    axes.grid(False)
    darkest = 2 * max(1.0, float(values.max()))
    # Four characters have room in a cell.
    cell = style.panel_size(1)[0] / values.shape[1]
    size = min(style.small, cell / (5 * LETTER))
    axes.imshow(np.ma.masked_equal(values, 0), cmap="Blues", vmin=0, vmax=darkest)
    for (row, column), value in np.ndenumerate(values):
        if value > 0:
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=size)
    axes.set_xticks(np.arange(values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", alpha=0.4, linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    return figure


def make_panels(
    titles: Sequence[str],
    x: str,
    y: str,
    style: Style = SCREEN,
    legend_lines: int = 0,
    panel_size: tuple[float, float] | None = None,
) -> "tuple[Figure, Sequence[Axes]]":
    """A figure and its axes, one for each title, up to three beside each other.

    `legend_lines`: the lines of the legend below each panel; `panel_size`: the width and height of
    a panel in inches, unless it is that of the style.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = style.columns(len(titles))
    rows = -(-len(titles) // columns)
    width, height = panel_size or style.panel_size(len(titles))
    title_size = 1.1 * style.font_size
    titles = [_wrapped(title, width, title_size) for title in titles]
    x = _wrapped(x, width, style.font_size)
    more_lines = x.count("\n") + max(title.count("\n") for title in titles)
    height += LINE * (style.small * legend_lines + title_size * more_lines)
    size = (width * columns, style.height or height * rows)
    # Without pyplot, which would choose a window system and keep every figure.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    # A number at the x axis takes up to ten characters, with a gap.
    most_numbers = min(8, _letters(width, style.small) // 12)
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.set_title(title, loc="left", fontsize=title_size)
        axes.set_xlabel(x, fontsize=style.font_size)
        axes.set_ylabel(y, fontsize=style.font_size)
        axes.tick_params(which="both", labelsize=style.small)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.xaxis.set_major_locator(MaxNLocator(max(2, most_numbers), steps=[1, 2, 2.5, 5, 10]))
    for axes in panels.flat[len(titles) :]:
        axes.set_axis_off()
    return figure, list(panels.flat)


def panel_width(axes: "Axes") -> float:
    """Inches from left to right of the panel of these axes."""
    grid = axes.get_gridspec()
    assert grid is not None
    return axes.figure.get_figwidth() / grid.ncols  # type: ignore[union-attr]


def _axes(title: str, x: str, y: str, style: Style, legend_lines: int = 0) -> "tuple[Figure, Axes]":
    """A figure of one panel, and its axes."""
    figure, drawn = make_panels([title], x, y, style, legend_lines)
    return figure, drawn[0]
