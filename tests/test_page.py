"""The page of rlx report: its numbers are those of summary.json; a browser opens it in peace."""

import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rlx import cli
from rlx.page.charts import UNDECIDED
from rlx.page.document import sort_value
from rlx.robustness.study import Study
from rlx.runs.run import Run
from rlx.show import console

PACKAGES = ("jinja2", "altair", "vl_convert")
needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)), reason="needs the extra report"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """What stands in an HTML page."""

    def __init__(self, file: Path):
        super().__init__()
        self.text = file.read_text()
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.charts: list[dict] = []
        self.path: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.path.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.path):
            self.tables[-1][-1][-1] += data.strip()
        elif self.path[-1:] == ["h2"]:
            self.headings.append(data)
        elif self.path[-1:] == ["script"] and data.startswith("{"):
            self.charts.append(json.loads(data))

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the first table whose header begins like this."""
        return next(rows[1:] for rows in self.tables if rows[0][: len(header)] == list(header))


@pytest.fixture(scope="module")
def studied(tiny_runs):
    """A folder with trainings, two attacks on one of them, one on another, and a certify run."""
    dqn, acrobot = (str(tiny_runs / "train" / name) for name in ("dqn-cartpole", "hdqn-acrobot"))
    boxes = ("scale=[0.2,0.2,0.05,0.2]", "eps=0:1:0.5", "episodes=3", f"outputs={tiny_runs}")
    for line in (
        ("attack", dqn, "attack=fgsm", *boxes),
        ("attack", dqn, "attack=noise", *boxes),
        ("certify", dqn, "attack=fgsm", *boxes),
        ("attack", acrobot, "attack=fgsm", "eps=[0,0.1]", "episodes=2", f"outputs={tiny_runs}"),
    ):
        assert cli.run(list(line)) == 0
    return tiny_runs


def newest(folder: Path) -> Path:
    """The newest run in a folder."""
    return sorted(folder.glob("*/meta.json"))[-1].parent


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("-82.1 [-83.0, -81.2]", -82.1),
        ("12,000", 12000),
        ("−0.5", -0.5),
        ("1e-05", 1e-5),
        (">0.03", 0.03),
        ("8.5%", 8.5),
        ("92.2 (1)", 92.2),
        ("1 h 2 min 3 s", 3723),
        ("45 s", 45),
        (7, 7),
        ("2 of 16 steps", None),
        ("2026-11-26 12:31:03", None),
        ("both", None),
        ("–", None),
    ],
)
def test_what_a_cell_is_sorted_by(cell, value):
    assert sort_value(cell) == value


def test_a_study_is_read_back_whole(studied):
    for name in ("hdqn-acrobot", "dqn-cartpole"):
        summary = Run(newest(studied / "attack" / name)).summary()
        again = Study.from_summary(summary).summary()
        expected = {key: summary[key] for key in again}
        assert json.dumps(again, default=list) == json.dumps(expected)


def test_an_unknown_format(rlx, studied):
    result = rlx("report", studied / "train/dqn-cartpole", "format=htm", "outputs=here")
    assert result.code == 2
    assert "format=htm: unknown. Did you mean 'html'?" in result.err
    assert not Path("here").exists()


def test_a_missing_extra(rlx, studied, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "altair" else find(name)
    )
    result = rlx("report", studied / "train/dqn-cartpole", "format=html", "outputs=here")
    assert result.code == 2
    assert 'format=html: altair is not installed; pip install "rlx[report]"' in result.err
    assert not Path("here").exists()


@needs_extra
def test_a_folder_that_is_no_run(rlx, tmp_path):
    result = rlx("report", tmp_path, "format=html")
    assert result.code == 2 and str(tmp_path) in result.err
    assert not Path("outputs").exists()


def test_a_certify_run_has_a_report_of_its_own(rlx, studied, real_figures):
    result = rlx("report", studied / "certify/dqn-cartpole")
    assert result.code == 0, result
    assert "Head action: share of the decisions of clean play" in result.out
    assert (result.run / "report.png").stat().st_size > 5000


@needs_extra
def test_the_page_of_trainings(rlx, studied):
    runs = sorted((studied / "train/hdqn-acrobot").iterdir())
    result = rlx("report", *runs, "format=html")
    assert result.code == 0, result
    page = Page(result.run / "report.html")
    assert page.headings[:4] == [
        "Results of training",
        "Learning curves",
        "Comparison of trainings",
        "Single seeds",
    ]
    returns = [run_summary(run)["return"] for run in runs]
    texts = [console.interval_text(one["iqm"], one["ci95"]) for one in returns]
    assert [row[1] for row in page.table("run", "return")] == texts
    ((_, _, difference, probability),) = page.table("first", "second")
    first, second = (np.array(one["per_seed"]) for one in returns)
    expected = returns[0]["iqm"] - returns[1]["iqm"]
    assert sort_value(difference) == pytest.approx(expected, rel=0.01, abs=0.01)
    share = np.heaviside(first[:, None] - second, 0.5).mean()
    assert sort_value(probability) == pytest.approx(share, abs=0.005)
    seeds = page.table("seed", "return")
    assert [row[1] for row in seeds] == [console.number(value) for value in first]


@needs_extra
def test_a_chart_has_the_numbers_of_the_study(rlx, studied):
    run = newest(studied / "attack/hdqn-acrobot")
    result = rlx("report", run, "format=html")
    page = Page(result.run / "report.html")
    cells = run_summary(run)["cells"]
    drawn = [points(chart) for chart in page.charts]
    curves = next(rows for rows in drawn if {row[0] for row in rows} == modes(cells))
    assert len(curves) == len(cells)
    for (mode, eps, iqm, low, high, _), cell in zip(curves, cells, strict=True):
        found = [float(value) for value in (eps, iqm, low, high)]
        expected = [cell["eps"], cell["return"]["iqm"], *cell["return"]["ci95"]]
        assert mode == cell["head"]
        assert found == pytest.approx(expected, rel=1e-5)
    flips = page.table("eps", "goal: clean play", "goal: under attack")
    goal = [cell for cell in cells if cell["head"] == "goal"]
    shares = [f"{cell['flip_rate_per_head']['goal']:.1%}" for cell in goal]
    assert [row[2] for row in flips] == shares
    audit = run_summary(run)["audit"]
    texts = {finding["text"] for findings in audit.values() for finding in findings}
    assert {row[2] for row in page.table("", "check", "measured")} == texts


@needs_extra
def test_a_run_has_one_colour_on_the_whole_page(rlx):
    paths = []
    for name in ("dqn-cartpole", "ppo-cartpole"):
        line = ("attack", f"zoo:{name}", "attack=fgsm", "eps=[0,0.2]", "seeds=0:2", "episodes=2")
        paths.append(rlx(*line, "certify=true", "max_boxes=8", "max_nodes=8").run)
    result = rlx("report", *paths, "format=html")
    page = Page(result.run / "report.html")
    by_agent = {"dqn-cartpole": set(), "ppo-cartpole": set()}
    for chart in page.charts:
        for label, colour in colours(chart).items():
            text = label if label[:3] in ("dqn", "ppo") else chart["description"]
            agent = next(name for name in by_agent if name in text)
            if label != UNDECIDED:
                by_agent[agent].add(colour)
        layers = chart["layer"]
        marks = [layer["mark"]["type"] for layer in layers if "color" in layer["encoding"]]
        assert ("thin: each seed" in chart["title"]["text"]) == (marks.count("line") == 2)
        assert ("band: 95 % interval" in chart["title"]["text"]) == ("area" in marks)
    assert [len(found) for found in by_agent.values()] == [1, 1]
    assert by_agent["dqn-cartpole"] != by_agent["ppo-cartpole"]
    shaded = [chart for chart in page.charts if "from both sides" in chart["description"]]
    assert shaded and all(UNDECIDED in colours(chart) for chart in shaded)
    axes = {chart["layer"][0]["encoding"]["x"]["title"] for chart in page.charts}
    (radius,) = (title for title in axes if title and title.startswith("eps"))
    assert "reference policies" in radius
    assert "are not known here" not in page.text and "noted no command line" not in page.text
    lines = re.findall(r"^rlx .*$", page.text, re.MULTILINE)
    assert set(lines[:2]) == {
        "rlx train agent=dqn env=cartpole",
        "rlx train agent=ppo env=cartpole",
    }


def colours(chart: dict) -> dict[str, str]:
    """The colour of each curve of a chart, by its name in the legend."""
    for layer in chart["layer"]:
        scale = layer["encoding"].get("color", {}).get("scale")
        if scale:
            return dict(zip(scale["domain"], scale["range"], strict=True))
    return {}


@needs_extra
def test_how_it_was_made_is_on_the_page(rlx, studied):
    fgsm, noise = sorted((studied / "attack/dqn-cartpole").iterdir())
    result = rlx("report", fgsm, noise, "format=html", f"outputs={studied}")
    page = Page(result.run / "report.html")
    assert "Certificates of dqn-cartpole" in " ".join(page.headings), "found by itself"
    training = newest(studied / "train/dqn-cartpole")
    lines = re.findall(r"^rlx .*$", page.text, re.MULTILINE)
    assert lines[0].startswith("rlx train steps=600 eval_every=300"), "trainings first"
    assert lines[1].startswith(f"rlx certify {training} attack=fgsm"), "the run, not the newest"
    assert lines[-1] == f"rlx report {fgsm} {noise} " + " ".join(lines[-1].split()[4:])
    settings = {row[0]: row[1] for row in page.table("key", "dqn-cartpole")}
    assert settings["steps"] == "600 (100000)"
    assert settings["agent.target_tau"] == "0.01 (0.005)", "tuned is not the default"
    assert "agent.discount" not in settings
    kinds = {row[1]: row[2] for row in page.table("run", "command", "settings")}
    assert kinds["train"] == "tuned/dqn-cartpole"


@needs_extra
def test_a_resumed_training_has_both_lines(rlx):
    tiny = ("steps=300", "eval_every=300", "eval_episodes=2", "final_episodes=3", "seeds=2")
    begun = rlx("train", "agent=dqn", "env=cartpole", *tiny)
    assert rlx("resume", begun.run, "steps=600").code == 0
    assert rlx("resume", begun.run, "seeds=3").code == 0
    result = rlx("report", begun.run, "format=md")
    _, _, end = (result.run / "report.md").read_text().rpartition("## To make it again")
    assert re.findall(r"^rlx .*$", end, re.MULTILINE) == [
        " ".join(["rlx train agent=dqn env=cartpole", *tiny]),
        f"rlx resume {begun.run} steps=600",
        f"rlx resume {begun.run} seeds=3",
        f"rlx report {begun.run} format=md",
    ]


@needs_extra
def test_a_page_loads_nothing_and_is_small(rlx, studied):
    result = rlx("report", studied / "train/hdqn-acrobot", "format=html")
    page = result.run / "report.html"
    assert page.stat().st_size < 1.5 * MEGABYTE
    text = page.read_text()
    assert "default-src 'none'" in text
    outside = re.findall(r"""<(?:link|img|script|iframe)[^>]*(?:src|href)=["']?http""", text)
    assert not outside


@needs_extra
def test_what_stands_in_a_config_is_only_text(rlx, studied):
    run = shutil.copytree(newest(studied / "train/dqn-cartpole"), "train/dqn-<b>bold/now")
    result = rlx("report", run, "format=html")
    assert result.code == 0, result
    text = (result.run / "report.html").read_text()
    assert "<b>bold" not in text and "dqn-&lt;b&gt;bold" in text


@needs_extra
def test_markdown(rlx, studied):
    run = newest(studied / "attack/dqn-cartpole")
    (run / "episode.gif").write_bytes(b"GIF89a")
    result = rlx("report", run, "format=md", f"outputs={studied}")
    text = (result.run / "report.md").read_text()
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(images) >= 4
    for name in images:
        assert (result.run / name).read_bytes().startswith(b"\x89PNG")
    cells = run_summary(run)["cells"]
    estimate = console.interval_text(cells[0]["return"]["iqm"], cells[0]["return"]["ci95"])
    assert f"| 0 | {estimate.replace('[', chr(92) + '[').replace(']', chr(92) + ']')} |" in text
    assert "episode.gif" in text
    (run / "episode.gif").unlink()


@needs_extra
def test_a_film_is_in_the_page(rlx, studied):
    run = newest(studied / "train/dqn-cartpole")
    (run / "clean.gif").write_bytes(b"GIF89a small")
    (run / "large.gif").write_bytes(bytes(2 * MEGABYTE))
    result = rlx("report", run, "format=html")
    text = (result.run / "report.html").read_text()
    assert "data:image/gif;base64,R0lGODlhIHNtYWxs" in text
    assert f"Too large for this page: {run / 'large.gif'}" in text
    (run / "clean.gif").unlink()
    (run / "large.gif").unlink()


@needs_extra
def test_the_page_of_a_sweep(rlx):
    tiny = ("steps=300", "eval_every=300", "eval_episodes=2", "final_episodes=3", "seeds=2")
    line = ("train", "-m", "agent=dqn", "env=cartpole", *tiny, "agent.batch_size=8,16")
    assert rlx(*line).code == 0
    (sweep,) = Path("outputs/sweeps").iterdir()
    result = rlx("report", sweep, "format=html")
    assert result.code == 0, result
    page = Page(sweep / "report.html")
    assert {row[1] for row in page.table("", "agent.batch_size")} == {"8", "16"}
    assert len(page.charts) == 1
    assert " ".join(["rlx", *line]) in page.text


TRY = """
<script>
window.addEventListener("load", () => setTimeout(async () => {
  const found = { requests: performance.getEntriesByType("resource").length };
  found.drawn = document.querySelectorAll(".chart svg.marks").length;
  found.wide = document.documentElement.scrollWidth - innerWidth;
  const right = (part) => part.getBoundingClientRect().right;
  const beyond = (part) => right(part) > right(document.querySelector("main")) + 1;
  found.cut = [...document.querySelectorAll("caption span")].filter(beyond).length;
  const table = document.querySelector("section table");
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const button = table.tHead.rows[0].cells[1].querySelector("button");
  button.click();
  found.falling = column();
  button.click();
  found.rising = column();
  found.sort = button.parentElement.ariaSort;
  const view = views.find((one) => "picked_store" in one.getState({ data: () => true }).data);
  const chart = view.container();
  const press = { bubbles: true, cancelable: true };
  chart.querySelector(".role-legend-symbol path").dispatchEvent(new MouseEvent("click", press));
  await view.runAsync();
  found.picked = view.data("picked_store").length;
  const select = chart.parentElement.querySelector("select");
  select.selectedIndex = 1;
  select.dispatchEvent(new Event("change"));
  await view.runAsync();
  found.named = view.data("named_store").length;
  document.body.innerHTML = "";
  document.title = JSON.stringify(found);
}, 1500));
</script>
"""


@needs_extra
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1000, 390])
def test_a_browser_opens_it(rlx, studied, tmp_path, width):
    result = rlx("report", *sorted((studied / "train/hdqn-acrobot").iterdir()), "format=html")
    text = (result.run / "report.html").read_text()
    page = tmp_path / "page.html"
    before, _, after = text.rpartition("</body>")
    page.write_text(f"{before}{TRY}{after}")
    browser = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in browser.stderr.splitlines() if "CONSOLE" in line]
    assert not said
    (title,) = re.findall(r"<title>(.*)</title>", browser.stdout)
    found = json.loads(title.replace("&gt;", ">"))
    assert found["requests"] == 0 and found["wide"] <= 0 and found["cut"] == 0
    assert found["drawn"] == text.count('class="chart"') > 1
    values = [sort_value(cell) for cell in found["falling"]]
    assert values == sorted(values, reverse=True) and len(values) == 2
    assert [sort_value(cell) for cell in found["rising"]] == sorted(values)
    assert found["sort"] == "ascending"
    assert found["picked"] == 1 and found["named"] == 1


def run_summary(run: Path) -> dict:
    """The summary.json of a run."""
    return json.loads((run / "summary.json").read_text())


def modes(cells: list[dict]) -> set[str]:
    """The modes of a study's cells."""
    return {cell["head"] for cell in cells}


def points(chart: dict) -> list[list[str]]:
    """The rows of a chart's points: curve, x, y, low, high, text."""
    for text in chart.get("datasets", {}).values():
        header, *rows = text.splitlines()
        if header == "curve,x,y,low,high,text":
            return [row.split(",", 5) for row in rows]
    return []
