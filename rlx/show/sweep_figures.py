"""The figure of a sweep: points for one key, a map for two, parallel coordinates for more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.show.figures import COLOURS, LETTER, LINE, SCREEN, Style, make_panels, panel_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Order = Callable[[str], Any]
"""What the values of a key are sorted by."""
MOST_CELLS = 12
"""The most rows of a map whose cells have room for numbers, and the most names of an axis."""
MOST_LETTERS = 18
"""The longest name of a value that is written whole."""
SMALLEST = 4.5
"""Size, in points, below which nobody reads the numbers of a map."""


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


def figure(panels: Sequence[Panel], order: Order, style: Style = SCREEN) -> "Figure":
    """The figure of a sweep, a panel for each env."""
    titles = [panel.title for panel in panels]
    drawn, all_axes = make_panels(titles, "", "", style)
    for panel, axes in zip(panels, all_axes, strict=False):
        draw = {1: _points, 2: _map}.get(len(panel.settings), _parallel)
        draw(axes, panel, order, style)
    return drawn


def _points(axes: "Axes", panel: Panel, order: Order, style: Style) -> None:
    """The score against the values of the only key, in their order."""
    ((key, values),) = panel.settings.items()
    names = sorted(set(values), key=order)
    places = [names.index(value) for value in values]
    axes.plot(places, panel.scores, "o", color=COLOURS[0])
    _name_columns(axes, names, style)
    axes.set_xlabel(key)
    axes.set_ylabel(panel.what)


def _map(axes: "Axes", panel: Panel, order: Order, style: Style) -> None:
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
    # A number takes up to five characters, and the names beside the map a third of the width.
    size = min(style.small, 2 / 3 * panel_width(axes) / values.shape[1] / (5.5 * LETTER))
    if size > SMALLEST and len(row_names) <= MOST_CELLS and np.isfinite(values).any():
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < middle else "black"
                text = f"{value:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    _name_columns(axes, column_names, style)
    axes.set_yticks(*_named(row_names))
    axes.set_xlabel(column_key)
    axes.set_ylabel(row_key)
    axes.grid(False)
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(panel.what, fontsize=style.font_size)
    bar.ax.tick_params(labelsize=style.small)


def _name_columns(axes: "Axes", names: Sequence[str], style: Style) -> None:
    """Write the names of values below the places 0, 1, …, slanted where they are wide."""
    places, texts = _named(names)
    axes.set_xticks(places, texts)
    room = 2 / 3 * panel_width(axes) / len(texts)  # inches for each name
    if LETTER * style.small * max(len(text) + 2 for text in texts) > room:
        fits_slanted = 2 * LINE * style.small < room
        axes.tick_params("x", labelrotation=30 if fits_slanted else 90)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right" if fits_slanted else "center")


def _named(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """The places of as many of the names as there is room for, and these names."""
    places = list(range(0, len(names), -(-len(names) // MOST_CELLS)))
    return places, [_short(names[place]) for place in places]


def _short(name: str) -> str:
    """A name, or the end of a long one, which tells runs from each other."""
    return name if len(name) <= MOST_LETTERS else f"…{name[1 - MOST_LETTERS :]}"


def _parallel(axes: "Axes", panel: Panel, order: Order, style: Style) -> None:
    """Parallel coordinates: a line for each job through its values, the best drawn last."""
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground="white")  # the names are over the lines
    heights = []
    ticks = []
    room = panel_width(axes) / (len(panel.settings) + 1)  # inches between two keys
    for place, (key, values) in enumerate(panel.settings.items()):
        names = sorted(set(values), key=order)
        steps = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        heights.append([steps[names.index(value)] for value in values])
        ticks.append(_short(key.removeprefix("agent.")))
        width = LETTER * style.small * max(len(_short(name)) + 1 for name in names)
        if width > room or len(names) > MOST_CELLS:
            ticks[-1] += f"\n{_short(names[0])} to {_short(names[-1])}"
            continue
        for height, name in zip(steps, names, strict=True):
            text = f" {_short(name)}"
            label = axes.text(place, height, text, fontsize=style.small, va="center", zorder=3)
            label.set_path_effects([halo])
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
            axes.text(last, height, f" {score:.4g}", fontsize=style.small, va="center")
    axes.set_xticks(range(len(heights)), [*ticks, panel.what], rotation=90)
    axes.set_yticks([])
    axes.grid(False, axis="y")
