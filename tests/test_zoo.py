"""The zoo: every agent that comes with rlx plays as its card says, and no command changes it."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

import rlx as package
from rlx.runs.finding import ZOO
from rlx.runs.listing import read

NAMES = sorted(path.name for path in (ZOO / "train").iterdir())
FEWER = {"efficientzero-catch": 4, "self_play-connect_four": 1, "self_play-tic_tac_toe": 3}
"""The agents of fewer than ten seeds."""
FILES = {
    "config.yaml",
    "meta.json",
    "metrics.jsonl",
    "summary.json",
    "returns.npz",
    "checkpoints/best/agent.safetensors",
    "checkpoints/best/state.json",
}


def tree() -> dict[str, tuple[int, int]]:
    """Every file and folder of the zoo → when it was changed, and its size."""
    facts = {str(path): path.stat() for path in [ZOO, *ZOO.rglob("*")]}
    return {path: (fact.st_mtime_ns, fact.st_size) for path, fact in facts.items()}


UNATTACKED = [
    name for name in NAMES if name.startswith("q_table") or name.endswith(("chain", "maze"))
]
"""Those whose observations are the number of a place."""


@pytest.fixture(autouse=True)
def unchanged():
    """No test, whatever it does, changes the zoo."""
    before = tree()
    yield
    assert tree() == before


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Somebody who has not made the zoo's runs."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


# What is in it


def test_the_zoo_is_small():
    sizes = [path.stat().st_size for path in ZOO.rglob("*") if path.is_file()]
    assert max(sizes) <= 1_000_000 and sum(sizes) <= 10_000_000


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_plays_as_its_card_says(name, rlx, stranger, recwarn):
    card, run = sorted((ZOO / "train" / name).iterdir(), key=lambda path: path.is_dir())
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == FILES
    entry = read(run)
    assert entry.name == name and entry.config()["outputs"] == "outputs"
    few = FEWER.get(name, 10)
    assert entry.seeds == few
    text = card.read_text()
    assert f"{entry.value:.3g}" in text and f"commit {entry.meta['commit']}," in text
    assert f"`rlx train agent={entry.agent} env={entry.env}" in text
    played = rlx("evaluate", f"zoo:{name}", "episodes=20")
    assert played.code == 0 and not played.err
    assert ("warning" in played.out) == (1 < few < 5)  # of which an interval is too narrow
    warned = [str(warning.message) for warning in recwarn]
    # Box2D warns of its own binding.
    assert not [text for text in warned if not text.startswith("builtin type")]
    value = read(Path(played.out.splitlines()[-1])).value
    with np.load(run / "returns.npz") as episodes:
        error = episodes["returns"].std() / math.sqrt(20 * few)
    assert abs(value - entry.value) <= 4 * error + 0.02 * abs(entry.value)


# The commands


def test_an_agent_is_attacked_and_shown(rlx, stranger):
    keys = ("attack=fgsm", "episodes=2", "seeds=0:2", "scale=std", "eps=[0,0.3]")
    attacked = rlx("attack", "zoo:dqn-cartpole", *keys)
    assert attacked.code == 0
    path = attacked.out.splitlines()[-1]
    assert path.startswith("outputs/attack/dqn-cartpole/")
    clean, harmed = [cell["return"]["iqm"] for cell in read(Path(path)).summary["cells"]]
    assert clean > 480 and harmed < 400
    assert path in rlx("show", "zoo:dqn-cartpole", "outputs=outputs").out
    shown = rlx("show", path).out
    assert "\nline     rlx attack zoo:dqn-cartpole attack=fgsm " in shown and "nan" not in shown
    reported = rlx("report", path)
    assert reported.code == 0 and Path(reported.out.splitlines()[-1], "report.png").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_to_come_next_can_be_done(name, rlx):
    shown = rlx("show", f"zoo:{name}").out
    (line,) = [line for line in shown.splitlines() if line.startswith("next ")]
    _, _, command, agent = line.split()
    assert agent == f"zoo:{name}"
    assert command == ("evaluate" if name in UNATTACKED else "attack")
    if command == "evaluate":
        refused = rlx("attack", agent)
        assert refused.code == 2 and "where none is near another" in refused.err


def test_an_agent_collects_data(rlx):
    """Its kept weights play: the zoo has no other checkpoints."""
    collected = rlx("collect", "zoo:dqn-cartpole", "out=data", "steps=20")
    assert collected.code == 0, collected.err
    assert "dqn-cartpole, best: 40 episodes" in collected.out


def test_adversaries_are_not_kept_in_the_zoo(rlx):
    learner = {
        "agent_keys": "{hidden: [16], learning_starts: 100, replay_ratio: 0.25}",
        "adversary_steps": 400,
        "adversary_envs": 4,
        "restarts": 1,
        "selection_episodes": 1,
        "steps": 1,
        "samples": 0,
    }
    keys = [f"attack.{key}={value}" for key, value in learner.items()]
    words = ("attack=learned", *keys, "seeds=1", "scale=std", "eps=[0,0.3]", "episodes=2")
    assert rlx("attack", "zoo:dqn-cartpole", *words).code == 0
    assert list(Path("outputs/adversaries").glob("*/train/dqn-attacked/*/summary.json"))


def test_trainings_are_compared_and_certified(rlx):
    both = ("zoo:dqn-cartpole", "zoo:ppo-cartpole")
    assert "probability" in rlx("report", *both).out
    assert "probability" in rlx("compare", *both).out
    keys = ("episodes=1", "seeds=0:2", "scale=std", "eps=[0,0.01]", "max_boxes=10")
    certified = rlx("certify", "zoo:dqn-cartpole", *keys)
    assert certified.code == 0 and "outputs/certify/dqn-cartpole/" in certified.out


def test_the_zoo_is_listed(rlx):
    out = rlx("list", "zoo:", "format=csv").out
    assert all(f"/{name}/" in out for name in NAMES)
    assert f"/{NAMES[0]}/" in rlx("list", f"zoo:{NAMES[0]}", "format=csv").out


def test_the_zoo_from_python(rlx):
    run = package.load("zoo:ppo-cartpole")
    assert run.seeds == list(range(10)) and len(run.metrics()) > 10


@pytest.mark.parametrize("words", [(), ("steps=1000000",), ("seeds=12",)])
def test_an_agent_of_the_zoo_does_not_go_on(words, rlx):
    """Neither by its name nor by its path."""
    folder = ZOO / "train/dqn-cartpole"
    for run in ("zoo:dqn-cartpole", folder, *folder.glob("2*")):
        refused = rlx("resume", run, *words)
        assert refused.code == 2 and "train your own" in refused.err
        assert len(refused.err.splitlines()) == 1 and not os.listdir()


@pytest.mark.parametrize("command", ["attack", "evaluate", "show", "list", "report", "resume"])
def test_an_unknown_name_is_answered_with_the_nearest(command, rlx):
    wrong = rlx(command, "zoo:hdqn-acrobt")
    assert wrong.code == 2 and "Did you mean 'zoo:hdqn-acrobot'?" in wrong.err
    assert len(wrong.err.splitlines()) == 1 and not os.listdir()


def test_the_tab_key_offers_names(rlx, monkeypatch):
    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        return rlx("-sc", "query=bash").out.split()

    assert complete("rlx attack zoo:") == [f"zoo:{name}" for name in NAMES]
    assert complete("rlx evaluate zoo:hdqn-a") == ["zoo:hdqn-acrobot"]
    assert "zoo:" in complete("rlx attack z")
    assert "zoo:" not in complete("rlx train z")
    assert "COMP_WORDBREAKS//:}" in rlx("--completion", "bash").out
