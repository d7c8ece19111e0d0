"""Figures at the size that was asked: nothing overlaps, nothing is cut off, three formats."""

import itertools
import math
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import rlx as package
from rlx import ConfigError, statistics
from rlx.show import figures
from rlx.show.figures import Curve, Style
from rlx.show.sweep_figures import Panel
from rlx.show.sweep_figures import figure as sweep_figure
from rlx.sweeps.ranking import in_order

EPS = [number * 0.0025 for number in range(13)]
STEPS = list(range(20_000, 1_000_001, 20_000))
ATTACKS = ("fgsm", "pgd margin towards 0", "minq restarts=4, attack.steps=20, attack.loss=margin")
AGENTS = ("dqn-acrobot", "hdqn-acrobot", "hdqn_regions-acrobot", "ppo-acrobot", "a2c-acrobot")
UNITS = "[0.05,0.05,0.05,0.05,0.62831853,1.4137167]"
STYLES = {"screen": figures.SCREEN, "column": Style(width=3.3, font_size=8.0)}


def curve(label, x, first=-80.0, last=-500.0):
    """A curve from one return to another, of five seeds."""
    rng = np.random.default_rng(0)
    means = np.linspace(first, last, len(x))
    spread = abs(last - first) / 20
    estimates = [statistics.estimate(mean + spread * rng.normal(size=(5, 3))) for mean in means]
    return Curve(label, x, estimates)


def report(style):
    envs = ("acrobot", "cartpole", "mountain_car", "pendulum")
    labels = ("dqn learning_rate=0.001, buffer_size=50000", "ppo")
    panels = {env: [curve(label, STEPS, -400, -90) for label in labels] for env in envs}
    return figures.curves(panels, "environment steps per seed", style=style)


def learning(style):
    returns = np.random.default_rng(0).normal(-100, 20, (len(STEPS), 10))
    return figures.learning(
        STEPS, range(10), returns, "hdqn-acrobot", "environment steps", -100.0, style
    )


def attack(style):
    curves = [curve(f"auto on {mode}", EPS) for mode in ("both", "goal", "action")]
    title = "hdqn-acrobot under auto, 10 seeds × 100 episodes"
    return figures.curves({title: curves}, figures.eps_label("reference"), -499.0, style)


def attacks(style):
    curves = [curve(label, EPS) for label in ATTACKS]
    return figures.curves({"hdqn-acrobot": curves}, figures.eps_label("bounds"), -499.0, style)


def agents(style):
    levels = np.linspace(0, 1, 20)
    shares = [np.stack([1 - levels, 0.9 - 0.9 * levels, 1 - 0.9 * levels])] * len(AGENTS)
    curves = [curve(label, EPS) for label in AGENTS]
    title = "acrobot: return under attack"
    x = figures.eps_label(UNITS)
    return figures.robustness(title, curves, x, -499.0, levels, shares, style)


def sandwich(style):
    labels = ("no observation was found that changes it", "certified: none does", "by bounds")
    panels = {
        f"hdqn-acrobot: {head}": [curve(label, EPS, 1, 0.5) for label in labels]
        for head in ("goal", "action")
    }
    found = [curve(label, EPS) for label in ("the lowest that was found", "proved", "auto")]
    returns = {f"{mode} attacked": found for mode in ("both", "goal", "action")}
    title = "hdqn-acrobot under auto, 10 seeds × 20 episodes"
    return figures.sandwich(panels, figures.eps_label("bounds"), style, returns, title)


def swept(settings, style):
    values = list(itertools.product(*settings.values()))
    columns = {key: [row[number] for row in values] for number, key in enumerate(settings)}
    scores = np.random.default_rng(0).normal(100, 50, len(values))
    return sweep_figure([Panel("dqn-cartpole", "return", columns, scores)], in_order, style)


RATES = ["0.0001", "0.0003", "0.001", "0.003", "0.01"]
RUNS = [f"outputs/train/dqn-cartpole/20261126-0225{number:02}-854181" for number in range(12)]


def points(style):
    return swept({"agent.learning_rate": RATES}, style)


def heat_map(style):
    return swept({"agent.learning_rate": RATES, "agent.batch_size": ["32", "64", "128"]}, style)


def wide_map(style):
    return swept({"run": RUNS, "attack": ["fgsm", "pgd"]}, style)


def parallel(style):
    keys = {"agent.learning_rate": RATES, "agent.batch_size": ["32", "64"]}
    return swept({**keys, "agent.target_update_every": ["1", "2"], "num_envs": ["8"]}, style)


def grid(style):
    return figures.grid(np.arange(48.0).reshape(4, 12), "cliff: steps in each cell", style)


KINDS = (
    grid,
    learning,
    report,
    attack,
    attacks,
    agents,
    sandwich,
    points,
    heat_map,
    wide_map,
    parallel,
)


def shown(axis):
    """The labels of the ticks of an axis that can be seen."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels = [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [label for label in labels if label.get_visible() and label.get_text()]


def apart(label, other):
    """Whether two labels of an axis do not touch; slanted ones are measured across their lines."""
    box, other_box = label.get_window_extent(), other.get_window_extent()
    angle = math.radians(label.get_rotation())
    if 0 < angle < math.pi / 2:
        label.set_rotation(0)
        height = label.get_window_extent().height
        label.set_rotation(math.degrees(angle))
        return abs(box.x1 - other_box.x1) * math.sin(angle) >= height
    return not box.overlaps(other_box)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("draw", KINDS)
def test_nothing_overlaps_and_nothing_is_cut_off(draw, style):
    style = STYLES[style]
    figure = draw(style)
    FigureCanvasAgg(figure).draw()
    if style.width is not None:
        assert figure.get_figwidth() == style.width
    for axes in figure.axes:
        if not axes.axison:
            continue
        area = axes.get_window_extent()
        for axis in (axes.xaxis, axes.yaxis):
            labels = shown(axis)
            for label, other in itertools.combinations(labels, 2):
                assert apart(label, other), (label, other)
            for label in [*labels, axis.label, axes.title]:
                if label.get_text():
                    inside(label.get_window_extent(), figure)
        if draw not in (parallel, grid):
            assert shown(axes.xaxis) or shown(axes.yaxis)
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent()
            assert not box.overlaps(area) and not box.overlaps(axes.xaxis.label.get_window_extent())
            inside(box, figure)
        # What is left for the data is a good part of the panel.
        assert area.height > 0.5 * figure.dpi


def inside(box, figure):
    """Fails where a box reaches out of the figure by more than a pixel."""
    assert box.x0 > -1 and box.y0 > -1, box
    assert box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, box


def test_a_figure_is_written_in_three_formats_at_the_size_that_was_asked(tmp_path, real_figures):
    figure = attack(Style(width=3.3, height=2.5, font_size=7.0))
    figures.save(figure, tmp_path / "robustness.png")
    with Image.open(tmp_path / "robustness.png") as image:
        assert image.size == (3.3 * 150, 2.5 * 150)
    pdf = (tmp_path / "robustness.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+) *\]", pdf)
    assert [float(number) / 72 for number in box.groups()] == pytest.approx([3.3, 2.5], abs=0.01)
    svg = (tmp_path / "robustness.svg").read_text()
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    assert [float(width) / 72, float(height) / 72] == pytest.approx([3.3, 2.5], abs=0.01)
    assert figure.axes[0].xaxis.label.get_fontsize() == 7


def test_bands_are_drawn_of_four_curves_at_most():
    for count in (2, 4, 5):
        curves = [curve(f"attack {number}", EPS) for number in range(count)]
        axes = figures.curves({"title": curves}, "eps").axes[0]
        assert len(axes.collections) == (count if count <= 4 else 0)
        assert len(axes.lines) == (6 * count if count <= 4 else count)  # 5 seeds and the mean


def test_the_size_is_a_key_of_the_commands_that_draw(rlx, tiny_runs, real_figures):
    run = tiny_runs / "train/dqn-cartpole"
    line = (
        "attack=fgsm",
        "scale=std",
        "eps=[0,0.1]",
        "episodes=2",
        "figure.width=3.3",
        "figure.font_size=8",
    )
    attacked = rlx("attack", run, *line)
    assert attacked.code == 0, attacked.err
    reported = rlx("report", attacked.run, "figure=paper", "figure.height=4")
    for file, height in ((attacked.run / "robustness", None), (reported.run / "report", 4)):
        assert {path.suffix for path in file.parent.glob(f"{file.name}.*")} >= {".pdf", ".svg"}
        with Image.open(file.with_suffix(".png")) as image:
            assert image.width == 495 and (height is None or image.height == height * 150)
    for key, message in (
        ("figure.width=0", "figure.width=0: must be from 1.5 to 40"),
        ("figure.font_size=big", "figure.font_size=big: expected a number"),
        ("figure=papr", "paper"),
        ("figure.wdth=3", "figure.width"),
    ):
        refused = rlx("report", attacked.run, key)
        assert refused.code == 2 and message in refused.err, refused.err
        assert len(refused.err.strip().splitlines()) == 1


def test_from_python(tiny_runs, rlx):
    run = str(min((tiny_runs / "train/dqn-cartpole").iterdir()))
    attacked = rlx("attack", run, "attack=fgsm", "scale=std", "eps=[0,0.1]", "episodes=2").run
    certified = rlx(
        "certify", run, "scale=std", "eps=[0,0.02]", "episodes=1", "attack.restarts=1"
    ).run
    draw = package.figure
    for runs in ([run], [run, str(tiny_runs / "train/hdqn-acrobot")], [attacked], [certified]):
        drawn = draw(*runs, width=3.3, font_size=8)
        assert drawn.get_figwidth() == 3.3 and drawn.axes[0].lines
    compared = draw(attacked, attacked)
    assert [text.get_text() for text in compared.axes[0].get_legend().get_texts()][
        -1
    ] == "random play"
    for runs, style, message in (
        ([], {}, "name the runs"),
        ([run], {"widht": 3}, "figure.width"),
        (["nowhere"], {}, "nowhere"),
        ([certified, certified], {}, "one run at a time"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(*runs, **style)


def test_a_sandwich_shades_what_is_undecided_and_the_intervals_of_its_bounds():
    for axes in sandwich(figures.SCREEN).axes[:5]:  # the sixth place is empty
        assert len(axes.collections) == 3
        assert len(axes.lines) == 3, "no line of a single seed among those of the bounds"
