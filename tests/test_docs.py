"""README and docs: what they say can be typed, their recipes run, their links lead somewhere."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from conftest import AGENTS, ENVS, PAIRS, TINY, small
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import rlx as package
from rlx import conf
from rlx.command_line import config_overrides, to_hydra
from rlx.composing import compose_config
from rlx.conf import group_files
from rlx.config import build
from rlx.help import commands
from rlx.training.config import validated

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = "<!-- run -->"
HERE = os.environ | {"PYTHONPATH": str(ROOT)}
"""So that another process imports this rlx."""

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the docs are not installed")


# What is in a page


def blocks(text: str) -> Iterator[tuple[bool, str, str]]:
    """(is it to be run, language, text) of each code block of a page, fenced or indented."""
    lines = text.splitlines()
    number, marked = 0, False
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"```(\S*)", line)
        if fence:
            end = lines.index("```", number + 1)
            yield marked, fence[1], "\n".join(lines[number + 1 : end])
            number, marked = end + 1, False
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield marked, "", "\n".join(part[4:] for part in lines[number:end])
            number, marked = end, False
        else:
            marked = line == RUN or (marked and not line.strip())
            number += 1


def command_lines(text: str) -> Iterator[list[str]]:
    """The words behind `rlx` of each command in lines of a shell, or in a code span."""
    for line in text.replace("\\\n", " ").splitlines():
        if "rlx " not in line:
            continue
        words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        for separator, command in groupby(words, lambda word: set(word) <= set("&|;")):
            first, *rest = command
            if not separator and first == "rlx":
                yield rest


def typed_commands(page: Path) -> list[list[str]]:
    """All command lines of a page: in code blocks, and in code spans that leave nothing out."""
    text = page.read_text()
    shell = [block for _, language, block in blocks(text) if language in ("", "bash", "console")]
    spans = [span for span in re.findall(r"`(rlx [^`]+)`", text) if not re.search("[…<]", span)]
    return [words for part in [*shell, *spans] for words in command_lines(part)]


def files(page: Path) -> dict[str, str]:
    """The files that a page shows whole: name → text of the blocks whose first line names one.

    Hydra's own header stands before it.
    """
    found = {}
    for _, _, block in blocks(page.read_text()):
        name = re.match(r"(?:# @package \S+\n)?# ([\w/]+\.(py|yaml))\n", block)
        if name:
            found[name[1]] = block + "\n"
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder(page) stands in a folder with the files that the page shows."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)

    def make(page: Path) -> Path:
        for name, text in files(page).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    yield make
    conf.use(None)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


# What can be typed


def combinations(overrides: list[str]) -> list[list[str]]:
    """As many command lines without a sweep as are needed to use each value of one."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = []
    for text, override in zip(overrides, parsed, strict=True):
        key = text.partition("=")[0]
        sweep = override.is_sweep_override()
        choices.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()] if sweep else [text]
        )
    return [
        [each[i % len(each)] for each in choices] for i in range(max(map(len, choices), default=1))
    ]


def own_sweep(overrides: list[str]) -> list[str]:
    """What an experiment sweeps over by itself, where the line does not say otherwise."""
    added = []
    for name in [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]:
        for key in conf.sweeps_of(name):
            first = re.search(rf"{key}: (\w+)", group_files("experiment")[name].read_text())
            if first and not any(key in text for text in overrides):
                added.append(f"{key}={first[1]}")
    return added


TYPED: set[tuple[str, ...]] = set()
"""Command lines of pages without files that could be typed: half of them stand twice."""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_line_can_be_typed(page, folder):
    folder(page)
    known = commands()
    typed_before = set() if files(page) else TYPED
    for words in typed_commands(page):
        command, *rest = words
        if command.startswith("-"):
            continue
        assert command in known, words
        if set(rest) & {"--help", "--cfg"}:
            rest = [word for word in rest if word not in ("--help", "--cfg", "job")]
        line = to_hydra(command, rest)
        typed = [word for word in config_overrides(line) if not word.startswith("hydra")]
        for overrides in combinations(typed + own_sweep(typed)):
            if (command, *overrides) in typed_before:
                continue
            typed_before.add((command, *overrides))
            config = OmegaConf.create(compose_config(command, overrides))
            if command in ("train", "doctor"):
                validated(config)
            elif command != "check":  # which has no keys of its own
                kind: Any = import_module(f"rlx.commands.{command}").Config
                for key in OmegaConf.missing_keys(config):
                    OmegaConf.update(config, key, "x")
                build(kind, config, "")


SHORT = {"train": (*TINY, "seeds=1"), "attack": ("episodes=2",)}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if RUN in p.read_text()], ids=lambda page: page.stem
)
def test_marked_blocks_run(page, folder, rlx):
    folder(page)
    text = page.read_text()
    assert sum(marked for marked, _, _ in blocks(text)) == text.splitlines().count(RUN)
    script: dict[str, Any] = {}  # the Python blocks of a page are one script
    for marked, language, block in blocks(text):
        if marked and language == "python":
            exec(compile(block, str(page), "exec"), script)
        elif marked:
            for command, *rest in command_lines(block):
                result = rlx(command, *rest, *SHORT.get(command, ()))
                assert result.code == 0, result.err


def test_a_key_of_ones_own_reaches_the_run(folder, rlx):
    folder(ROOT / "docs/how-to/own-agent.md")
    result = rlx(
        "train",
        "agent=mine",
        "env=cartpole",
        "tuned=dqn-cartpole",
        *TINY,
        "seeds=1",
        "agent.beta=0.7",
    )
    assert result.code == 0 and "mine-cartpole" in str(result.run)
    assert "beta: 0.7" in (result.run / "config.yaml").read_text()


# What is said


def test_generated_parts_are_those_of_today():
    command = [sys.executable, "docs/generate.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("group", "page"), [("agent", "agents"), ("attack", "attacks")])
def test_every_agent_and_attack_has_a_page_with_the_same_headings(group, page):
    names = sorted(group_files(group))
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / page).glob("*.md")}
    assert sorted(set(pages) - {"index"}) == names
    headings = [
        "What it is",
        "Can I use it",
        "Keys",
        "Logged metrics",
        "Differences from",
        "Results",
    ]
    for name in names:
        found = re.findall(r"^## (.*)$", pages[name], re.MULTILINE)
        assert [
            one if not one.startswith("Differences") else one[:16] for one in found
        ] == headings, name
        assert f"({name}.md)" in pages["index"], name


def test_every_env_command_and_agent_is_mentioned():
    readme, docs = (ROOT / "README.md").read_text(), ROOT / "docs"
    envs = (docs / "envs.md").read_text()
    assert [name for name in group_files("env") if f"`{name}`" not in envs] == []
    lines = (docs / "commands.md").read_text()
    assert [name for name in commands() if f"    rlx {name}" not in lines] == []
    assert [name for name in AGENTS if f"(docs/agents/{name}.md)" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    inside = [link.partition("#")[0] for link in links if not re.match(r"\w+:", link)]
    assert [link for link in inside if link and not (page.parent / link).exists()] == []


TRAINED = {agent: env for agent, env in reversed(PAIRS)}


@pytest.mark.parametrize("agent", TRAINED)
def test_every_logged_metric_is_explained(agent, rlx):
    env = TRAINED[agent]
    result = rlx(
        "train", f"agent={agent}", f"env={env}", *ENVS[env], *TINY, *small(agent), "seeds=1"
    )
    last = json.loads((result.run / "metrics.jsonl").read_text().splitlines()[-1])
    folder = ROOT / "docs/agents"
    page = (folder / f"{agent}.md").read_text()
    linked = [folder / f"{name}.md" for name in re.findall(r"\]\((\w+)\.md\)", page)]
    told = "".join(
        [page, *(path.read_text() for path in [*linked, folder / "index.md"] if path.is_file())]
    )
    metrics = set(last) - {"step", "seed"}
    assert len(metrics) > 4 and {metric for metric in metrics if f"`{metric}`" not in told} == set()


def test_the_python_face_is_documented_whole():
    page = (ROOT / "docs/api.md").read_text()
    listed = re.findall(r"^\.\. auto(?:function|class|exception):: rlx\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(package.__all__)
    assert [name for name in package.__all__ if not own_docstring(getattr(package, name))] == []


def own_docstring(thing: Any) -> str | None:
    """The docstring that a function or a class itself has; an inherited one does not count."""
    return vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__


# README


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert '    pip install -e ".[test]" && pytest -n auto' in lines


@pytest.mark.skipif(not (ROOT / "rlx/api.py").is_file(), reason="rlx/api.py is not there yet")
def test_the_list_of_the_package_is_that_of_its_files():
    (listed,) = [
        block
        for _, _, block in blocks((ROOT / "README.md").read_text())
        if block.startswith("rlx/")
    ]
    named = {
        word.removeprefix("rlx/")
        for line in listed.splitlines()
        for word in line.partition("   ")[0].split()
    }
    there = {path.name for path in (ROOT / "rlx").glob("*.py") if not path.name.startswith("_")}
    folders = [path for path in (ROOT / "rlx").iterdir() if path.is_dir()]
    there |= {f"{path.name}/" for path in folders if not path.name.startswith("_")}
    assert named == there


# The site


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    options = ["-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path / "html")]
    command = [sys.executable, "-m", "sphinx", "-d", str(tmp_path / "trees"), *options]
    result = subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
