"""The charts of a report's page, of the data that the figures of rlx/show draw: by Altair."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx.show import console
from rlx.show.figures import COLOURS, MOST_BANDS, Curve
from rlx.show.sweep_figures import Panel
from rlx.sweeps.ranking import in_order

if TYPE_CHECKING:
    import altair

DASHES = ([1, 0], [6, 3], [2, 2], [6, 3, 2, 3])
"""The line styles of the figures, in pixels of line and gap."""
UNDECIDED = "undecided: between what is proved and what was found"
"""What the shaded area of a chart is called."""
SHADE = "#888888"
"""The colour of that area."""
MOST_ROWS = 200
"""The most rows of the table of a chart's numbers."""
MOST_MARKED = 60
"""The most points of a curve that are marked."""
HEIGHT = 280
"""The height of a chart's axes in pixels."""


@dataclass(frozen=True)
class Chart:
    """Curves in one panel, as `rlx.show.figures.curves` draws them."""

    title: str
    curves: Sequence[Curve]
    x: str
    """What the curves are drawn against."""
    y: str = "return"
    rules: Mapping[str, float] = field(default_factory=dict)
    """Name → height of a line across, as the return of random play."""
    shaded: bool = False
    """Whether the truth is between the first two curves."""
    colours: Sequence[int] = ()
    """The number of each curve's colour; none: its place among the curves."""
    lines: Sequence[int] = ()
    """The number of each curve's line style; none: that of its colour."""

    def numbers(self) -> console.Table:
        """The points of the curves; of many some, at even distances."""
        rows = []
        step = -(-sum(len(curve.x) for curve in self.curves) // MOST_ROWS)
        for curve in self.curves:
            for number in _spread(len(curve.x), step):
                estimate = curve.estimates[number]
                text = console.interval_text(estimate.iqm, estimate.ci95)
                rows.append([curve.label, f"{curve.x[number]:,.10g}", text])
        return console.Table("", ["curve", self.x, self.y], rows)


@dataclass(frozen=True)
class Dots:
    """The jobs of a sweep as dots: the score against the values of one key."""

    panel: Panel
    key: str

    @property
    def title(self) -> str:
        """What the chart shows, in words."""
        return f"{self.panel.title} {self.panel.what} by {self.key}".strip()


def spec(chart: Chart | Dots, points: int) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, as wide as the page lets it be.

    `points`: the most returns of single seeds in it.
    """
    drawn = _curves(chart, points) if isinstance(chart, Chart) else _dots(chart)
    whole = drawn.properties(width="container", height=HEIGHT, description=chart.title)
    whole = whole.configure(
        background="transparent",
        autosize={"type": "fit-x", "contains": "padding"},
        font="system-ui, sans-serif",
    ).configure_view(stroke=None)
    # Each mark would be read out; the page has the numbers as a table.
    return whole.configure_mark(aria=False).to_dict()


def _curves(chart: Chart, most_points: int) -> "altair.LayerChart | altair.FacetChart":
    """The curves with their intervals, single seeds thin, and the lines across."""
    import altair as alt

    names = [curve.label for curve in chart.curves]
    many = len(names) > 1
    legend = None
    if many:
        columns = max(1, 48 // max(map(len, names)))
        legend = alt.Legend(
            title=None,
            orient="bottom",
            columns=columns,
            labelLimit=320,
            symbolType="stroke",
            symbolOpacity=1,
            symbolSize=400,
            symbolStrokeWidth=2,
        )
    numbers = chart.colours or range(len(names))
    colours = [COLOURS[number % len(COLOURS)] for number in numbers]
    dashes = [DASHES[number % len(DASHES)] for number in chart.lines or numbers]
    listed = list(names)
    if chart.shaded:
        listed.append(UNDECIDED)
        colours.append(SHADE)
        dashes.append(DASHES[0])
    colour = alt.Color("curve:N").scale(domain=listed, range=colours).legend(legend)
    dash = alt.StrokeDash("curve:N").scale(domain=listed, range=dashes).legend(legend)
    x = alt.X("x:Q").title(chart.x).scale(zero=False, nice=False).axis(tickCount=6)
    y = alt.Y("y:Q").title(chart.y).scale(zero=False).axis(tickCount=6)
    picked = alt.selection_point(name="picked", fields=["curve"], bind="legend")
    options = alt.binding_select(options=[None, *names], labels=["all", *names], name="Show ")
    named = alt.selection_point(name="named", fields=["curve"], bind=options)

    def opacity(shown: float) -> Any:
        if not many:
            return alt.value(shown)
        return alt.when(picked, named).then(alt.value(shown)).otherwise(alt.value(shown * 0.06))

    points = _point_data(chart.curves)
    base = alt.Chart(points).encode(x=x, color=colour)
    layers = []
    if chart.shaded:
        between = _between(chart.curves)
        area = alt.Chart(between).mark_area(color=SHADE, opacity=0.35)
        layers.append(area.encode(x=x, y=alt.Y("low:Q").title(chart.y), y2="high"))
    few = len(names) <= MOST_BANDS
    drawn = []
    seeds = _seed_data(chart.curves, most_points) if few else None
    if seeds is not None:
        drawn.append("thin: each seed")
        box = alt.binding_checkbox(name="Single seeds ")
        with_seeds = alt.param(name="seeds", value=True, bind=box)
        lines = alt.Chart(seeds).mark_line(strokeWidth=alt.expr("seeds ? 0.8 : 0"))
        encoded = lines.encode(x=x, y=y, color=colour, detail="seed:N", opacity=opacity(0.25))
        layers.append(encoded.add_params(with_seeds))
    ends = [estimate.ci95 for curve in chart.curves for estimate in curve.estimates]
    if few and np.isfinite(ends).any():
        drawn.append("band: 95 % interval")
        band = base.mark_area().encode(y=alt.Y("low:Q").title(chart.y), y2="high:Q")
        layers.append(band.encode(opacity=opacity(0.2)))
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash, opacity=opacity(1))
    layers.append(line.add_params(picked, named) if many else line)
    marked = max(len(curve.x) for curve in chart.curves) <= MOST_MARKED
    dots = base.mark_point(filled=True, size=36 if marked else 60)
    told = [
        alt.Tooltip("curve:N"),
        alt.Tooltip("x:Q", title=chart.x, format=",.10~g"),
        alt.Tooltip("text:N", title=chart.y),
    ]
    # Where there are too many, a point is seen when it is pointed at.
    layers.append(dots.encode(y=y, tooltip=told, opacity=opacity(1 if marked else 0.01)))
    for name, height in chart.rules.items():
        layers += _rule(name, height)
    is_share = chart.y == "share" or (not drawn and chart.y.startswith("share"))
    text = "; ".join(["line: share" if is_share else "line: interquartile mean", *drawn])
    key = alt.TitleParams(text, anchor="start", fontSize=11, fontWeight="normal")
    return alt.layer(*layers).properties(title=key)


def _rule(name: str, height: float) -> "list[altair.Chart]":
    """A line across at a `height`, and its name above it; below it where curves end above."""
    import altair as alt

    data = alt.InlineData(values=[{"name": name, "y": height}])
    line = alt.Chart(data).mark_rule(strokeDash=[2, 3]).encode(y="y:Q")
    offset = 8 if name == "solved" else -6
    text = alt.Chart(data).mark_text(align="left", dx=4, dy=offset, x=0, fontSize=10)
    return [line, text.encode(y="y:Q", text="name:N")]


def _dots(chart: Dots) -> "altair.Chart":
    """A dot for each job."""
    import altair as alt

    panel = chart.panel
    columns = [*panel.settings.values(), [_number(score) for score in panel.scores]]
    # Dots in the names of keys would mean fields of fields.
    names = [f"column{number}" for number in range(len(columns))]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    order = sorted(set(panel.settings[chart.key]), key=in_order)
    ours = names[list(panel.settings).index(chart.key)]
    x = alt.X(f"{ours}:N").title(chart.key).sort(order).axis(labelAngle=-30)
    y = alt.Y(f"{names[-1]}:Q").title(panel.what).scale(zero=False)
    titles = [*panel.settings, panel.what]
    told = [
        alt.Tooltip(f"{name}:N", title=title) for name, title in zip(names, titles, strict=True)
    ]
    dots = alt.Chart(alt.InlineData(values=rows)).mark_point(filled=True, size=70)
    return dots.encode(x=x, y=y, color=alt.value(COLOURS[0]), tooltip=told)


def _point_data(curves: Sequence[Curve]) -> "altair.InlineData":
    """The points of all curves: interquartile mean and interval."""
    rows = []
    for curve in curves:
        for x, estimate in zip(curve.x, curve.estimates, strict=True):
            text = console.interval_text(estimate.iqm, estimate.ci95)
            rows.append([curve.label, x, estimate.iqm, *estimate.ci95, text])
    return _data(["curve", "x", "y", "low", "high", "text"], rows)


def _between(curves: Sequence[Curve]) -> "altair.InlineData":
    """The interquartile means of the first two curves."""
    most, least = curves[:2]
    rows = [
        [x, low.iqm, high.iqm]
        for x, low, high in zip(most.x, least.estimates, most.estimates, strict=True)
    ]
    return _data(["x", "low", "high"], rows)


def _seed_data(curves: Sequence[Curve], most_points: int) -> "altair.InlineData | None":
    """The returns of single seeds; None where there is one alone, or too many for a page.

    Of long curves some points are left out, at even distances.
    """
    seeds = max(len(estimate.per_seed) for curve in curves for estimate in curve.estimates)
    points = sum(len(estimate.per_seed) for curve in curves for estimate in curve.estimates)
    step = -(-points // most_points)
    longest = max(len(curve.x) for curve in curves)
    if seeds < 2 or longest < 2 * step:
        return None
    rows = []
    for curve in curves:
        for number in _spread(len(curve.x), step):
            for seed, value in enumerate(curve.estimates[number].per_seed):
                rows.append([curve.label, seed, curve.x[number], value])
    return _data(["curve", "seed", "x", "y"], rows)


def _spread(count: int, step: int) -> list[int]:
    """Every `step`-th of the numbers below `count`, and the last one."""
    return sorted({*range(0, count, max(1, step)), max(0, count - 1)}) if count else []


def _data(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> "altair.InlineData":
    """Rows as a chart has them: as CSV, which takes a third of JSON's bytes."""
    import altair as alt

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([value if isinstance(value, str) else _number(value) for value in row])
    kinds = {name: "string" if name in ("curve", "text") else "number" for name in header}
    return alt.InlineData(values=file.getvalue(), format=alt.CsvDataFormat(type="csv", parse=kinds))


def _number(value: float) -> float | int | None:
    """A number in six digits; None where it is none."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")
