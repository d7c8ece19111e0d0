"""rlx new: what it writes can be checked, trained, resumed and attacked; nothing is overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

from rlx import conf

ROOT = Path(__file__).parents[1]
LEARNS = ("agent.learning_starts=100", "agent.hidden=[8]", "agent.replay_ratio=0.25", "seeds=2")
RADII = ("eps=[0,0.5]", "scale=std", "episodes=3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, whose modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    conf.use(None)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def files(top: Path) -> dict[str, str]:
    """Name → text of the files below a folder."""
    found = [path for path in top.rglob("*") if path.suffix in (".py", ".yaml")]
    return {str(path.relative_to(top)): path.read_text() for path in found}


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("agent", ["agent=my_own", "env=cartpole", "agent.reward_scale=0.5"]),
        ("env", ["agent=dqn", "env=my_own", "env.step=0.2"]),
    ],
)
def test_a_new_agent_and_env_do_all_that_rlxs_own_do(group, words, rlx, folder):
    result = rlx("new", group, "my_own")
    assert result.code == 0, result.err
    assert set(files(folder)) == {"my_own.py", f"conf/{group}/my_own.yaml"}
    checked = rlx("check", f"{group}=my_own", *(LEARNS[:1] if group == "agent" else ()))
    assert checked.code == 0 and checked.out.count("ok: ") >= 6, checked.err
    trained = rlx("train", *words, *TINY, *LEARNS)
    assert trained.code == 0, trained.err
    resumed = rlx("resume", trained.run, "steps=900")
    assert resumed.code == 0 and resumed.summary["steps"] >= 900, resumed.err
    attacked = rlx("attack", trained.run, "attack=fgsm", *RADII)
    assert attacked.code == 0, attacked.err


def test_a_new_agent_learns_from_what_its_key_makes_of_rewards(rlx, folder):
    assert rlx("new", "agent", "my_own").code == 0
    words = ("env=cartpole", "tuned=none", *TINY, *LEARNS)
    plain, same, scaled = (
        rlx("train", f"agent={agent}", *words, *more)
        for agent, more in (
            ("dqn", ()),
            ("my_own", ()),
            ("my_own", ("agent.reward_scale=100",)),
        )
    )
    losses = [(result.run / "metrics.jsonl").read_text() for result in (plain, same, scaled)]
    means = [
        [line.partition('"q/mean": ')[2].split(",")[0] for line in text.splitlines()]
        for text in losses
    ]
    assert means[0] == means[1] and means[0] != means[2]


def test_a_new_attack_attacks(rlx, folder):
    assert rlx("new", "attack", "my_own").code == 0
    run = rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARNS).run
    cells = {
        words: rlx("attack", run, *words, *RADII).summary["cells"]
        for words in (("attack=my_own",), ("attack=fgsm",), ("attack=my_own", "attack.part=0"))
    }
    own, fgsm, nothing = ([cell["flip_rate"] for cell in each] for each in cells.values())
    assert own == fgsm and own[1] > 0 and nothing == [0, 0]
    refused = rlx("attack", run, "attack=my_own", "attack.part=2", *RADII)
    assert refused.code == 2 and "attack.part=2" in refused.err


WRONG = {
    "agent mine-x": "is no name in Python",
    "agent 1st": "is no name in Python",
    "agent é": "is no name in Python",
    "agent _": "is no name in Python",
    "agent a/b": "is no name in Python",
    "agent ../x": "is no name in Python",
    "agent class": "is a word of Python's",
    "agent true": "is a word of Python's",
    "agent dqn": "there is agent=dqn already",
    "env cartpole": "there is env=cartpole already",
    "attack pgd": "there is attack=pgd already",
    "agent random": "there is a Python module random already",
    "agent torch": "there is a Python module torch already",
    "agent config": "its file imports Config already",
    "env dynamics": "its file imports Dynamics already",
    "attack attack": "its file imports Attack already",
    "agnt mine": "what=agnt: unknown. Did you mean 'agent'?",
    "agent": "name a kind and a name",
    "agent a b": "name a kind and a name",
    "": "name a kind and a name",
}


@pytest.mark.parametrize("words", WRONG)
def test_names_that_cannot_be_are_refused(words, rlx, folder):
    result = rlx("new", *words.split())
    assert result.code == 2 and WRONG[words] in result.err, result.err
    assert len(result.err.splitlines()) == 1 and list(folder.iterdir()) == []


@pytest.mark.parametrize("there", ["my_own.py", "conf/env/my_own.yaml"])
def test_nothing_is_overwritten(there, rlx, folder):
    (folder / there).parent.mkdir(parents=True, exist_ok=True)
    (folder / there).write_text("# mine\n")
    result = rlx("new", "env", "my_own")
    assert result.code == 2 and "already" in result.err
    assert files(folder) == {there: "# mine\n"}


def test_files_go_beside_the_conf_that_is_named(rlx, folder):
    (folder / "study/conf").mkdir(parents=True)
    assert rlx("new", "env", "my_own", "-cd", "study/conf").code == 0
    assert set(files(folder)) == {"study/my_own.py", "study/conf/env/my_own.yaml"}
    assert rlx("check", "env=my_own", "-cd", "study/conf").code == 0


def test_nothing_half_written_is_left(rlx, folder):
    (folder / "conf").mkdir()
    (folder / "conf/env").write_text("a file where a folder must be\n")
    result = rlx("new", "env", "my_own")
    assert result.code == 2 and "cannot be written" in result.err
    assert files(folder) == {}


@pytest.mark.parametrize("group", ["agent", "env", "attack"])
def test_what_is_new_is_formatted_and_typed_as_rlx_is(group, rlx, folder):
    assert rlx("new", group, "my_own").code == 0
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check", "--select", "E,F,B,UP,SIM,RUF"], ["format", "--check"]):
        line = [*ruff, *words, "--line-length", "100", "my_own.py"]
        done = subprocess.run(line, capture_output=True, text=True)
        if "No module named ruff" in done.stderr:
            pytest.skip("ruff is not installed")
        assert done.returncode == 0, done.stdout
