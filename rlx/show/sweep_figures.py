"""The figure of a sweep: points for one key, a map for two, parallel coordinates for more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.show.figures import COLOURS, make_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Order = Callable[[str], Any]
"""What the values of a key are sorted by."""
MOST_CELLS = 12
"""The most rows or columns of a map whose cells have room for numbers, and the most names."""
MOST_LETTERS = 18
"""The longest name of a value that is written whole."""


@dataclass(frozen=True)
class Panel:
    """The jobs of a sweep that can be compared, K keys and J jobs."""

    title: str
    what: str
    """What `scores` are, as in "return"."""
    settings: Mapping[str, Sequence[str]]
    """The values of each key, those of J jobs."""
    scores: NDArray[np.float64]
    """[J]; more is better."""


def figure(panels: Sequence[Panel], order: Order) -> "Figure":
    """The figure of a sweep, a panel for each env."""
    titles = [panel.title for panel in panels]
    size = (7.2, 4.4) if len(panels) == 1 else (5.0, 3.6)
    drawn, all_axes = make_panels(titles, "", "", panel_size=size)
    for panel, axes in zip(panels, all_axes, strict=False):
        draw = {1: _points, 2: _map}.get(len(panel.settings), _parallel)
        draw(axes, panel, order)
    return drawn


def _points(axes: "Axes", panel: Panel, order: Order) -> None:
    """The score against the values of the only key, in their order."""
    ((key, values),) = panel.settings.items()
    names = sorted(set(values), key=order)
    places = [names.index(value) for value in values]
    axes.plot(places, panel.scores, "o", color=COLOURS[0])
    _name_columns(axes, names)
    axes.set_xlabel(key)
    axes.set_ylabel(panel.what)


def _map(axes: "Axes", panel: Panel, order: Order) -> None:
    """The score of each pair of values of two keys as a colour; of several jobs the mean."""
    (column_key, columns), (row_key, rows) = panel.settings.items()
    column_names = sorted(set(columns), key=order)
    row_names = sorted(set(rows), key=order)
    cells: dict[tuple[int, int], list[float]] = {}
    for column, row, score in zip(columns, rows, panel.scores, strict=True):
        place = (row_names.index(row), column_names.index(column))
        cells.setdefault(place, []).append(float(score))
    values = np.full((len(row_names), len(column_names)), np.nan)
    for place, scores in cells.items():
        values[place] = np.mean(scores)
    image = axes.imshow(values, cmap="viridis", aspect="auto", origin="lower")
    if max(values.shape) <= MOST_CELLS and np.isfinite(values).any():
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < middle else "black"
                text = f"{value:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    _name_columns(axes, column_names)
    axes.set_yticks(*_named(row_names))
    axes.set_xlabel(column_key)
    axes.set_ylabel(row_key)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, label=panel.what)


def _name_columns(axes: "Axes", names: Sequence[str]) -> None:
    """Write the names of values below the places 0, 1, …, slanted where they are wide."""
    places, texts = _named(names)
    axes.set_xticks(places, texts)
    if sum(map(len, texts)) > 5 * MOST_CELLS:
        axes.tick_params("x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")


def _named(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """The places of as many of the names as there is room for, and these names."""
    places = list(range(0, len(names), -(-len(names) // MOST_CELLS)))
    return places, [_short(names[place]) for place in places]


def _short(name: str) -> str:
    """A name, or the end of a long one, which tells runs from each other."""
    return name if len(name) <= MOST_LETTERS else f"…{name[1 - MOST_LETTERS :]}"


def _parallel(axes: "Axes", panel: Panel, order: Order) -> None:
    """Parallel coordinates: a line for each job through its values, the best drawn last."""
    from matplotlib import colormaps

    heights = []
    for place, (_, values) in enumerate(panel.settings.items()):
        names = sorted(set(values), key=order)
        steps = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        heights.append([steps[names.index(value)] for value in values])
        for height, name in zip(steps, names, strict=True):
            axes.text(place, height, f" {_short(name)}", fontsize=8, va="center", zorder=3)
    scored = panel.scores[np.isfinite(panel.scores)]
    low, high = (scored.min(), scored.max()) if len(scored) else (np.nan, np.nan)
    share = (panel.scores - low) / (high - low if high > low else 1.0)
    heights.append(list(share))
    lines = np.array(heights)
    unscored = np.flatnonzero(np.isnan(share)).tolist()
    for job in [*unscored, *np.argsort(panel.scores)[: len(scored)]]:
        colour = "lightgrey" if job in unscored else colormaps["viridis"](share[job])
        axes.plot(lines[:, job], color=colour, linewidth=1.2, alpha=0.8)
    last = len(heights) - 1
    for height, score in ((0.0, low), (1.0, high)):
        if np.isfinite(score):
            axes.text(last, height, f" {score:.4g}", fontsize=8, va="center")
    axes.set_xticks(range(len(heights)), [*panel.settings, panel.what])
    axes.set_yticks([])
    axes.grid(False, axis="y")
