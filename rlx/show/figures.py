"""The pictures: learning and robustness curves with intervals, single seeds as faint lines."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.show.stats import interval, iqm

COLOURS = ("#1b6ca8", "#c8553d", "#3c8d5a", "#8a5aa8", "#b8860b", "#5b6770", "#d06aa0", "#2a9d9d")


def _panels(titles: Sequence[str], x: str, y: str):
    """A figure and its axes, up to three beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    size = (7.2, 4.4) if len(titles) == 1 else (4.4 * columns, 3.1 * rows)
    figure, panels = pyplot.subplots(
        rows, columns, squeeze=False, figsize=size, dpi=150, layout="constrained"
    )
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
    return figure, panels.flat


def _axes(title: str, x: str, y: str):
    figure, panels = _panels([title], x, y)
    return figure, panels[0]


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path)
    pyplot.close(figure)


def learning(
    steps: Sequence[int],
    seeds: Sequence[int],
    values: NDArray[np.float64],
    path: Path,
    title: str,
    unit: str,
    threshold: float | None = None,
) -> None:
    """Greedy returns `values` [E, S] against steps (`unit`: of what), and the return that counts as solved, as `Run.curve` gives
    them. The band resamples seeds."""
    if not len(steps):
        return
    figure, axes = _axes(
        f"{title}: greedy evaluation while learning, {len(seeds)} seeds",
        f"{unit} per seed",
        "return",
    )
    for i, curve in enumerate(values.T):
        axes.plot(
            steps,
            curve,
            color=COLOURS[0],
            alpha=0.22,
            linewidth=0.8,
            label="each seed" if i == 0 else None,
        )
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=0.8, linestyle=":", label="solved")
    if values.shape[1] > 1:
        draws = np.random.default_rng(0).integers(values.shape[1], size=(2000, values.shape[1]))
        low, high = interval(iqm(values.T[draws], axis=1))
        axes.fill_between(
            steps,
            low,
            high,
            color=COLOURS[0],
            alpha=0.2,
            linewidth=0,
            label="95 % bootstrap interval",
        )
    axes.plot(
        steps,
        iqm(values.T),
        color=COLOURS[0],
        linewidth=2,
        marker="o",
        markersize=3,
        label="interquartile mean over seeds",
    )
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def grid(values: NDArray[np.float64], path: Path, title: str) -> None:
    """Numbers [rows, columns] as a map, the visited cells labelled."""
    figure, axes = _axes(title, "", "")
    axes.grid(False)
    axes.imshow(
        np.ma.masked_equal(values, 0), cmap="Blues", vmin=0, vmax=2 * max(1.0, float(values.max()))
    )
    for (row, column), value in np.ndenumerate(values):
        if value > 0:
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7)
    axes.set_xticks(np.arange(values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", alpha=0.4, linewidth=0.6)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    _save(figure, path)


def robustness(
    panels: "Mapping[str, Sequence[RobustnessCurve]]",
    path: Path,
    x: str,
    random: float | None = None,
) -> None:
    """Return against attack radius (or whatever `x` is), one colour per curve, and that of random play; `panels`: curves by title."""
    figure, places = _panels(list(panels), x, "return")
    for axes, curves in zip(places, panels.values(), strict=False):
        for i, curve in enumerate(curves):
            colour, style = (
                COLOURS[i % len(COLOURS)],
                ("-", "--", ":", "-.")[i % 4],
            )  # equal curves stay visible
            for seed in curve.per_seed:
                axes.plot(curve.eps, seed, color=colour, alpha=0.14, linewidth=0.7)
            if np.isfinite(curve.low).all():
                axes.fill_between(
                    curve.eps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0
                )
            label = "\n".join(textwrap.wrap(curve.label, 46))
            axes.plot(
                curve.eps,
                curve.iqm,
                color=colour,
                linestyle=style,
                linewidth=2,
                marker="o",
                markersize=3,
                label=label,
            )
        if random is not None:
            axes.axhline(random, color="black", linewidth=0.8, linestyle=":", label="random play")
        what = "interquartile mean, 95 % interval; thin: each seed" if len(panels) == 1 else None
        long = len(curves) > 4 or any(len(curve.label) > 46 for curve in curves)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 1} if long else {}
        axes.legend(frameon=False, fontsize=6 if long else 8, title=what, title_fontsize=7, **below)
    _save(figure, path)


class RobustnessCurve:
    """One line of a robustness figure: [E] each, `per_seed` [S, E]."""

    def __init__(self, label: str, eps: Sequence[float], cells: Sequence[Mapping[str, Any]]):
        """From the cells of an attack's summary.json."""

        def column(*keys: Any) -> NDArray[np.float64]:
            values = []
            for cell in cells:
                value: Any = cell["return"]
                for key in keys:
                    value = value[key]
                values.append(np.nan if value is None else value)
            return np.array(values, dtype=np.float64)

        self.label, self.eps = label, eps
        self.iqm, self.low, self.high = column("iqm"), column("ci95", 0), column("ci95", 1)
        self.per_seed = np.array([cell["return"]["per_seed"] for cell in cells], dtype=np.float64).T
