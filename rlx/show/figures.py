"""The figures: curves over steps or attack radii with intervals, single seeds as faint lines."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlx.statistics import Estimate, Resampled, interval, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#c8553d", "#3c8d5a", "#8a5aa8", "#b8860b", "#5b6770", "#d06aa0", "#2a9d9d")
LINE_STYLES = ("-", "--", ":", "-.")
PROFILES = "Share of seeds × radii with a score above τ"
"""The title of performance profiles."""
SCORE = "score τ (0: random play, 1: the best clean play)"
"""What performance profiles are drawn against."""
LABEL_WIDTH = 46
"""Characters after which a label goes on in another line."""
LEGEND_GAP = 0.5
"""Inches between the axes and the legend below, which the numbers and name of the x axis need."""
LEGEND_LINE = 0.17
"""Inches that a line of the legend adds to the height of its panel."""


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
    values = zip(share.value.tolist(), low.tolist(), high.tolist(), strict=True)
    estimates = [
        Estimate(nobody, value, (its_low, its_high)) for value, its_low, its_high in values
    ]
    return Curve(label, levels.tolist(), estimates)


def learning(
    steps: Sequence[int],
    seeds: Sequence[int],
    values: NDArray[np.float64],
    title: str,
    unit: str = "steps",
    threshold: float | None = None,
) -> "Figure":
    """A figure of the greedy returns `values` [E, S] of S seeds against the `steps` [E].

    `steps`, `seeds` and `values` are as `Run.curve` gives them; `unit`: what is counted as a step;
    `threshold`: the return from which the task counts as solved. The interval resamples seeds.
    """
    text = f"{title}: greedy evaluation while learning, {len(seeds)} seeds"
    figure, axes = _axes(text, f"{unit} per seed", "return", legend_lines=2)
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
    _legend_below(axes, columns=2, title=None)
    return figure


def curves(panels: Mapping[str, Sequence[Curve]], x: str, random: float | None = None) -> "Figure":
    """A figure of returns against `x`, one colour for each curve; `panels`: the curves by title.

    `random`: the return of random play, for a line across.
    """
    columns, legend_lines = _legend_size(panels)
    title = "interquartile mean, 95 % interval; thin: each seed" if len(panels) == 1 else None
    figure, all_axes = make_panels(list(panels), x, "return", legend_lines)
    for axes, panel in zip(all_axes, panels.values(), strict=False):
        for number, curve in enumerate(panel):
            _draw(axes, curve, number)
        if random is not None:
            axes.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
        _legend_below(axes, columns, title)
    return figure


def robustness(
    title: str,
    curves: Sequence[Curve],
    x: str,
    random: float,
    profiles: Sequence[Curve],
) -> "Figure":
    """A figure of agents beside each other: returns against the radius, and performance profiles.

    `random`: the return of random play, for a line across; `profiles`: for each curve the share
    above each score.
    """
    columns, legend_lines = _legend_size({"": curves})
    titles = [title, PROFILES]
    figure, (left, right) = make_panels(titles, x, "return", legend_lines, _panel_size(1))
    for number, curve in enumerate(curves):
        _draw(left, curve, number)
    left.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
    _legend_below(left, columns, "interquartile mean, 95 % interval; thin: each seed")
    right.set_xlabel(SCORE)
    right.set_ylabel("share")
    for number, curve in enumerate(profiles):
        _draw(right, curve, number, marker=None)
    return figure


def sandwich(panels: Mapping[str, Sequence[Curve]], x: str) -> "Figure":
    """A figure of shares against `x`, by title: first what is so at most, then what is at least so.

    The truth is between these two curves, where it is shaded; any others are drawn beside them.
    """
    columns, legend_lines = _legend_size(panels)
    figure, all_axes = make_panels(list(panels), x, "share of decisions", legend_lines)
    for axes, curves in zip(all_axes, panels.values(), strict=False):
        most, least = ([estimate.iqm for estimate in curve.estimates] for curve in curves[:2])
        axes.fill_between(
            curves[0].x, least, most, color="black", alpha=0.35, linewidth=0, label="undecided"
        )
        for number, curve in enumerate(curves):
            _draw(axes, curve, number)
        axes.set_ylim(-0.02, 1.02)
        _legend_below(axes, columns, "interquartile mean, 95 % interval; thin: each seed")
    return figure


def _draw(axes: "Axes", curve: Curve, number: int, marker: str | None = "o") -> None:
    """Draw a curve, in the colour and style of its `number` within its panel."""
    if len(curve.x) == 0:  # of a run that was never evaluated
        return
    colour = COLOURS[number % len(COLOURS)]
    # Equal curves cover each other; where the upper one has gaps, the lower one stays visible.
    style = LINE_STYLES[number % len(LINE_STYLES)]
    for returns in np.array([estimate.per_seed for estimate in curve.estimates]).T:
        axes.plot(curve.x, returns, color=colour, alpha=0.14, linewidth=0.7)
    low, high = np.array([estimate.ci95 for estimate in curve.estimates]).T
    if np.isfinite(low).all():
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        curve.x,
        [estimate.iqm for estimate in curve.estimates],
        color=colour,
        linestyle=style,
        linewidth=2,
        marker=marker,
        markersize=3,
        label="\n".join(textwrap.wrap(curve.label, LABEL_WIDTH)),
    )


def _legend_size(panels: Mapping[str, Sequence[Curve]]) -> tuple[int, int]:
    """The columns and the lines of the legend below each panel, as far as the labels tell."""
    wrapped = {
        title: [textwrap.wrap(curve.label, LABEL_WIDTH) for curve in panel]
        for title, panel in panels.items()
    }
    longest = max(len(line) for labels in wrapped.values() for lines in labels for line in lines)
    # In inches: a character of 8 points takes about 0.065, the line before a label 0.55.
    columns = max(1, int(_panel_size(len(panels))[0] / (0.55 + 0.065 * longest)))
    most_lines = max(sum(len(lines) for lines in labels) for labels in wrapped.values())
    # Two more: the title, and the line of random play.
    return columns, -(-most_lines // columns) + 2


def _panel_size(panels: int) -> tuple[float, float]:
    """The width and height in inches of each of so many panels, without its legend."""
    return (7.2, 4.4) if panels == 1 else (4.4, 3.1)


def _legend_below(axes: "Axes", columns: int, title: str | None) -> None:
    """Draw the legend of a panel below its axes, where it covers no curve."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    gap = ScaledTranslation(0, -LEGEND_GAP, figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + gap,
        borderaxespad=0,
        ncols=columns,
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=7,
    )


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


def grid(values: NDArray[np.float64], title: str) -> "Figure":
    """A map of numbers [rows, columns]; a number above 0 is written into its cell."""
    figure, axes = _axes(title, "", "")
    axes.grid(False)
    darkest = 2 * max(1.0, float(values.max()))
    axes.imshow(np.ma.masked_equal(values, 0), cmap="Blues", vmin=0, vmax=darkest)
    for (row, column), value in np.ndenumerate(values):
        if value > 0:
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7)
    axes.set_xticks(np.arange(values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", alpha=0.4, linewidth=0.6)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    return figure


def make_panels(
    titles: Sequence[str],
    x: str,
    y: str,
    legend_lines: int = 0,
    panel_size: tuple[float, float] | None = None,
) -> "tuple[Figure, Sequence[Axes]]":
    """A figure and its axes, one for each title, up to three beside each other.

    `legend_lines`: the lines of the legend below each panel; `panel_size`: the width and height of
    a panel in inches, unless it is that of `_panel_size`.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    width, height = panel_size or _panel_size(len(titles))
    size = (width * columns, (height + LEGEND_LINE * legend_lines) * rows)
    # Without pyplot, which would choose a window system and keep every figure.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        if len(titles) > 1:
            axes.locator_params(axis="x", nbins=5)
    for axes in panels.flat[len(titles) :]:
        axes.set_axis_off()
    return figure, list(panels.flat)


def _axes(title: str, x: str, y: str, legend_lines: int = 0) -> "tuple[Figure, Axes]":
    """A figure of one panel, and its axes."""
    figure, drawn = make_panels([title], x, y, legend_lines)
    return figure, drawn[0]
