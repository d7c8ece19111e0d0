"""The figures: curves over steps or attack radii with intervals, single seeds as faint lines."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.statistics import Estimate, interval, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#c8553d", "#3c8d5a", "#8a5aa8", "#b8860b", "#5b6770", "#d06aa0", "#2a9d9d")
LINE_STYLES = ("-", "--", ":", "-.")
LABEL_WIDTH = 46
"""Characters after which a label goes on in another line."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure: the returns of one policy at each of E points."""

    label: str
    x: Sequence[float]
    """The points, [E]: radii or steps."""
    estimates: Sequence[Estimate]
    """The return over seeds at each point, [E]."""


def learning(
    steps: Sequence[int],
    seeds: Sequence[int],
    values: NDArray[np.float64],
    title: str,
    unit: str = "steps",
    threshold: float | None = None,
) -> "Figure":
    """The greedy returns `values` [E, S] against `steps` [E], of which `unit` says of what.

    They are as `Run.curve` gives them. `threshold`: the return from which the task counts as
    solved. The interval resamples seeds.
    """
    text = f"{title}: greedy evaluation while learning, {len(seeds)} seeds"
    figure, axes = _axes(text, f"{unit} per seed", "return")
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
    axes.legend(frameon=False, fontsize=8)
    return figure


def curves(panels: Mapping[str, Sequence[Curve]], x: str, random: float | None = None) -> "Figure":
    """Returns against `x`, one colour for each curve; `panels`: the curves by title.

    `random`: the return of random play, for a line across.
    """
    figure, all_axes = _panels(list(panels), x, "return")
    for axes, lines in zip(all_axes, panels.values(), strict=False):
        for number, line in enumerate(lines):
            _draw(axes, line, number)
        if random is not None:
            axes.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
        _legend(axes, lines, explained=len(panels) == 1)
    return figure


def _draw(axes: "Axes", curve: Curve, number: int) -> None:
    """The curve with this `number` among those of its panel."""
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
        marker="o",
        markersize=3,
        label="\n".join(textwrap.wrap(curve.label, LABEL_WIDTH)),
    )


def _legend(axes: "Axes", lines: Sequence[Curve], explained: bool) -> None:
    """The legend of some curves, below the axes where it is large.

    `explained`: whether it also says what is drawn.
    """
    title = "interquartile mean, 95 % interval; thin: each seed" if explained else None
    options: dict[str, Any] = {"frameon": False, "title": title, "title_fontsize": 7}
    if len(lines) > 4 or any(len(line.label) > LABEL_WIDTH for line in lines):
        anchor = (0.5, -0.16)
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=anchor, ncols=1, **options)
    else:
        axes.legend(fontsize=8, **options)


def eps_label(scale: object) -> str:
    """The label of an axis of radii, which says what a radius of 1 is."""
    names = {
        "bounds": "half the range of the observation space",
        "std": "a standard deviation of the observations of clean play",
    }
    return f"eps (1: {names.get(str(scale), f'the units {scale}')})"


def grid(values: NDArray[np.float64], title: str) -> "Figure":
    """Numbers [rows, columns] as a map; those above 0 are written into their cells."""
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


def _panels(titles: Sequence[str], x: str, y: str) -> "tuple[Figure, Sequence[Axes]]":
    """A figure and its axes, one for each title, up to three beside each other."""
    from matplotlib.figure import Figure

    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    size = (7.2, 4.4) if len(titles) == 1 else (4.4 * columns, 3.1 * rows)
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


def _axes(title: str, x: str, y: str) -> "tuple[Figure, Axes]":
    """A figure of one panel."""
    figure, panels = _panels([title], x, y)
    return figure, panels[0]
