"""The records of docs/results/, the pages made from them, and the commands that both name."""

import importlib.util
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import compose

from rlx.help import all_keys
from rlx.training.config import validated

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
RECORDS = sorted(path.stem for path in RESULTS.glob("*.json"))
PAGES = sorted(RESULTS.glob("*.md"))


def load_tables():
    """docs/tables.py as a module: it belongs to no package."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_tables()


def parts(record: dict) -> list[dict]:
    """The record itself and its rows: all that may say how a number was made."""
    return [record, *record["rows"]]


def command_lines() -> list[str]:
    """Every command line of the records and of the pages' blocks, once."""
    records = [tables.read(name) for name in RECORDS]
    lines = [line for record in records for part in parts(record) for line in tables.commands(part)]
    for page in PAGES:
        lines += re.findall(r"^    (rlx [^#\n]+)", page.read_text(), re.MULTILINE)
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_how_its_numbers_were_made(name):
    record = tables.read(name)
    assert record["title"] and record["rows"]
    for field in tables.ORIGIN:
        said_once = field in record
        in_rows = [field in row for row in record["rows"]]
        assert said_once or all(in_rows), f"{field}: neither in the record nor in every row"
    if any("commit" in row for row in record["rows"]):
        assert "commit" in record["columns"], "rows of several versions show which"
    for part in parts(record):
        assert re.fullmatch(r"[0-9a-f]{7}", part.get("commit", "0000000"))
        assert re.fullmatch(r"2\d{3}-\d\d-\d\d", part.get("date", "2026-01-01"))


@pytest.mark.parametrize("name", RECORDS)
def test_every_column_has_values_and_every_return_is_ordered(name):
    record = tables.read(name)
    for column in record["columns"]:
        assert any(row.get(column) is not None for row in record["rows"]), column
    returns = [value for row in record["rows"] for value in row.values() if isinstance(value, dict)]
    for value in returns:
        assert set(value) <= {"iqm", "ci95", "per_seed"}
        if "ci95" in value:
            low, high = map(float, value["ci95"])
            assert low <= float(value["iqm"]) <= high


def test_every_record_is_shown_on_a_page():
    markers = [tables.TABLE.findall(page.read_text()) for page in tables.pages()]
    shown = {marker.split()[0] for marker in itertools.chain.from_iterable(markers)}
    assert shown == set(RECORDS)


def test_the_tables_are_current(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_named_and_rewritten(tmp_path, monkeypatch, capsys):
    page = tmp_path / "docs/results/page.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("no table\n")
    record = {"title": "t", "columns": {"command": "command", "return": "return"}, "machine": "m"}
    row = {"command": "rlx train agent=dqn", "return": {"iqm": -1234, "ci95": [-1300, 0.5]}}
    other = {"command": "rlx train agent=ppo", "return": None}
    (page.parent / "one.json").write_text(json.dumps(record | {"rows": [row, other]}))
    page.write_text("Text.\n\n<!-- table: one agent=dqn -->\n<!-- end -->\n\nMore.\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path / "docs")
    assert tables.main(["--check"]) == 1 and str(page) in capsys.readouterr().out
    assert "agent=dqn |" not in page.read_text()
    assert tables.main([]) == 0 and tables.main(["--check"]) == 0
    text = page.read_text()
    assert text.startswith("Text.\n") and text.endswith("<!-- end -->\n\nMore.\n")
    assert "| `rlx train agent=dqn` | −1234 [−1300, 0.5] |" in text and "agent=ppo" not in text
    page.write_text(text.replace("one agent=dqn", "one agent=bcq"))
    assert tables.main([]) == 2 and "no row has agent=bcq" in capsys.readouterr().err


def combinations(words: list[str]) -> list[list[str]]:
    """What Hydra would make of a sweep: `env=acrobot,cartpole` is two command lines."""
    choices = []
    for word in words:
        key, _, value = word.partition("=")
        is_sweep = "," in value and value[0] not in "[{"
        choices.append([f"{key}={one}" for one in value.split(",")] if is_sweep else [word])
    return [list(line) for line in itertools.product(*choices)]


def check_dotted_keys(command: str, overrides: list[str]) -> None:
    """Assert that keys below agent, env, attack exist: Hydra adds them whatever they are."""
    dotted = {word.partition("=")[0] for word in overrides if "." in word.partition("=")[0]}
    if command == "train":
        added = [f"++{word}" if word.partition("=")[0] in dotted else word for word in overrides]
        validated(compose("train", *added))
    else:
        assert dotted <= set(all_keys(command, overrides))


@pytest.mark.parametrize("line", command_lines())
def test_every_command_of_a_record_is_one_of_rlx(line, rlx, tmp_path):
    words = shlex.split(line)
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    program, *words = words
    if program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.endswith(".py"))
        return
    assert program == "rlx"
    if "--help" in words:
        assert rlx(*words).code == 0
        return
    for command, *rest in combinations(words):
        composed = rlx(command, *rest, "--cfg", "job")
        assert composed.code == 0, composed.err
        check_dotted_keys(command, [word for word in rest if "=" in word])
    assert list(tmp_path.iterdir()) == []


def test_links_and_figures_of_the_pages_exist():
    figures = set()
    for page in [*PAGES, ROOT / "docs/statistics.md", ROOT / "docs/changelog.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                figures |= {target} if target.endswith(".png") else set()
    assert figures == {path.name for path in RESULTS.glob("*.png")}
    assert all((RESULTS / name).stat().st_size < 1_000_000 for name in figures)


def test_the_index_lists_every_page():
    index = (RESULTS / "index.md").read_text()
    for page in PAGES:
        if page.stem != "index":
            assert f"({page.name})" in index and f"\n{page.stem}\n" in index
