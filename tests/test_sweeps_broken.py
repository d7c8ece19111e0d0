"""Sweeps whose folder was damaged, moved or written by somebody else, and words beside them."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from test_sweeps import RATES, SMALL, runs, table, the_sweep

from rlx.runs.run import Run
from rlx.show.sweep_figures import Panel, figure
from rlx.sweeps.ranking import in_order
from rlx.sweeps.sweep import Sweep


class Killed(BaseException):
    """Stands for SIGKILL in a test's own process: nobody catches it."""


def jobs() -> list[Path]:
    return sorted(the_sweep().glob("jobs/*.json"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ([1], "format None"),
        ({"command": None}, "command=None: expected a word"),
        ({"command": "fly"}, "command=fly: is none of rlx's"),
        ({"words": None}, "words=None: expected a list"),
    ],
)
def test_facts_of_another_kind_are_refused(changes, expected, rlx, done):
    file = the_sweep() / "sweep.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | changes if isinstance(changes, dict) else changes))
    for verb in ("report", "resume"):
        result = rlx(verb, the_sweep())
        assert result.code == 2 and expected in result.err
        assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("number", "x", "expected a whole number"),
        ("run_path", {}, "expected a word or null"),
        ("state", "happy", "unknown"),
        ("overrides", 7, "expected a list"),
        ("colour", "red", "unknown key"),
        ("run_path", "../../../elsewhere/run", "leads out of"),
    ],
)
def test_a_job_of_another_kind_is_refused(key, value, expected, rlx, done, tmp_path):
    """A job that is done anew deletes its run, which must not be somebody else's."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(runs()[0], elsewhere / "run")
    (elsewhere / "run/meta.json").write_text('{"format": 3, "status": "failed"}')
    content = json.loads(jobs()[0].read_text())
    jobs()[0].write_text(json.dumps(content | {key: value}))
    result = rlx("report", the_sweep())
    assert result.code == 2 and expected in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert rlx("train", "-m", *SMALL, RATES).code == 2 and (elsewhere / "run/meta.json").is_file()


@pytest.mark.parametrize("what", ["jobs", "job", "config"])
def test_the_same_command_writes_deleted_jobs_again(what, rlx, done):
    expected = table(the_sweep())
    if what == "jobs":
        shutil.rmtree(the_sweep() / "jobs")
    else:
        jobs()[0].with_suffix({"job": ".json", "config": ".yaml"}[what]).unlink()
    assert rlx("train", "-m", *SMALL, RATES).code == 0
    assert table(the_sweep()) == expected and rlx("resume", the_sweep()).code == 0


def test_a_result_that_cannot_be_ranked_is_named(rlx, done):
    bad, _ = runs()
    (bad / "summary.json").write_text("{}")
    result = rlx("report", the_sweep())
    assert result.code == 0 and f"{bad}: its result has no return" in result.out
    assert [row.get("return", "") != "" for row in table(the_sweep())] == [True, False]


def _damage(file: Path, kind: str) -> None:
    """Damage an npz; "deflate": its compressed bytes, of which zlib says so with its own error."""
    if kind == "missing":
        file.unlink()
    elif kind == "shape":
        np.savez(file, returns=np.zeros((2, 3, 4)))
    else:
        content = file.read_bytes()
        start = content.index(b"returns.npy") + len("returns.npy")
        file.write_bytes(content[: start + 20] + b"\xff" * 9 + content[start + 29 :])


@pytest.mark.parametrize("kind", ["missing", "shape", "deflate"])
def test_returns_that_cannot_be_read_are_named(kind, rlx, done):
    bad, _ = runs()
    _damage(bad / "returns.npz", kind)
    result = rlx("report", the_sweep())
    assert result.code == 0 and f"{bad}: its result has no return" in result.out


@pytest.mark.parametrize("text", ["{", '{"format": 99}', "[]"])
def test_a_run_that_cannot_be_read_stops_nothing_else(text, rlx, done):
    """It may be of a newer rlx: nobody deletes it."""
    bad, good = runs()
    (bad / "meta.json").write_text(text)
    result = rlx("report", the_sweep())
    assert result.code == 0 and "unreadable" in result.out and str(good) in result.out
    shutil.rmtree(good)
    result = rlx("resume", the_sweep())
    assert result.code == 1 and str(bad) in result.err and len(runs()) == 2
    assert (bad / "meta.json").read_text() == text
    states = [row["state"] for row in table(the_sweep())]
    assert sorted(states) == ["completed", "unreadable"]


@pytest.mark.parametrize("moment", ["mkdir", "write_config", "write_meta"])
def test_a_process_that_is_killed_in_making_a_run_leaves_no_folder(moment, rlx, monkeypatch):
    kind = Path if moment == "mkdir" else Run
    made = getattr(kind, moment)

    def killed(self, *arguments, **options):
        made(self, *arguments, **options)
        if "train" in str(getattr(self, "path", self)):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, moment, killed)
        rlx("train", "-m", *SMALL, RATES)
    assert rlx("train", "-m", *SMALL, RATES).code == 0
    assert len(runs()) == 2 and all((run / "summary.json").is_file() for run in runs())


def test_attacks_in_a_project_that_was_moved_are_the_same(rlx, tmp_path, monkeypatch):
    train = ("train", "agent=dqn", "env=cartpole", "seeds=1", *TINY, "agent.hidden=[8]")
    attack = ("attack", "outputs/train", "-m", "attack=noise,fgsm", "eps=[0,0.1]", "episodes=1")
    attack = (*attack, "scale=[1,1,1,1]")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert rlx(*train).code == 0 and rlx(*attack).code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    result = rlx(*attack)
    assert result.code == 0 and "2 of 2 done" in result.out
    shutil.rmtree("outputs/attack")
    monkeypatch.chdir(tmp_path)
    result = rlx("resume", "there/outputs/sweeps/" + os.listdir("there/outputs/sweeps")[0])
    assert result.code == 0, result.err
    (config, _) = (tmp_path / "there").glob("outputs/attack/*/*/config.yaml")
    assert str(tmp_path / "there/outputs/train") in config.read_text()


def test_a_sweep_that_was_moved_trains_where_it_is(rlx, tmp_path, monkeypatch):
    assert rlx("train", "-m", *SMALL, RATES, "outputs=it's ü", "sweep=here").code == 0
    (tmp_path / "it's ü").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/train")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert rlx("resume", "../moved/sweeps/here", "device=cpu").code == 0
    devices = [Run(run).config.device.name for run in (tmp_path / "moved/train").glob("*/*")]
    assert devices == ["cpu", "cpu"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "moved"]
    (tmp_path / "moved/sweeps/here").rename("alone")
    result = rlx("resume", "alone")
    assert result.code == 2 and "expected in the folder outputs/sweeps" in result.err


@pytest.mark.parametrize(
    "word", ["agent.discount=0.5", "seeds=3", "steps=2048", "env=acrobot", "outputs=x", "sweep=x"]
)
def test_resume_takes_no_word_that_makes_other_jobs(word, rlx, done):
    before = runs()
    result = rlx("resume", the_sweep(), word)
    assert result.code == 2 and result.err.startswith(f"rlx: {word}: ") and runs() == before
    assert len(result.err.splitlines()) == 1


def test_resume_takes_fresh_and_help(rlx, done):
    assert rlx("resume", the_sweep(), "fresh=true").code == 0 and len(runs()) == 4
    shutil.rmtree("outputs/train")
    assert "rlx resume" in rlx("resume", the_sweep(), "--help").out and runs() == []


@pytest.mark.parametrize(
    "words, expected",
    [
        (("agent.learning_rate=glob(no*)",), "makes no job"),
        (("hydra/sweeper=fly",), "hydra/sweeper=fly: no such sweeper"),
        ((RATES, f"sweep={'long' * 100}"), "expected the name of a folder"),
        ((RATES, "sweep=two\nlines"), "expected the name of a folder"),
    ],
)
def test_what_is_no_sweep_writes_nothing(words, expected, rlx, tmp_path):
    result = rlx("train", "-m", *SMALL, *words)
    assert result.code == 2 and expected in result.err and list(tmp_path.iterdir()) == []


def test_a_long_list_of_values_is_no_path(rlx):
    values = ",".join(f"{number}.{'0' * 20}e-4" for number in range(1, 13))  # 300 characters
    result = rlx("train", "-m", *SMALL, f"agent.learning_rate={values}", "agent.discount=2")
    assert result.code == 2 and "12 of 12 jobs are wrong" in result.err


def test_a_file_in_the_place_of_a_sweep_is_one_line(rlx):
    Path("outputs/sweeps").mkdir(parents=True)
    Path("outputs/sweeps/mine").touch()
    result = rlx("train", "-m", *SMALL, RATES, "sweep=mine")
    expected = "rlx: sweep=mine: outputs/sweeps/mine is there, and is no sweep.\n"
    assert (result.code, result.err) == (2, expected) and not list(Path("outputs").glob("train"))


def test_what_cannot_be_written_is_one_line(rlx, done):
    (the_sweep() / "sweep.csv").unlink()
    (the_sweep() / "sweep.csv").mkdir()
    result = rlx("report", the_sweep())
    assert result.code == 2 and "Return" in result.out
    assert result.err == f"rlx: sweep: cannot write {the_sweep()} (Is a directory).\n"


def test_looking_at_a_killed_sweep_writes_no_lock(rlx, done):
    (job, _) = Sweep(the_sweep()).jobs()
    shutil.rmtree(runs()[0])
    job.file.with_suffix(".lock").unlink()
    assert job.write(state="running").status == "interrupted"
    assert not job.file.with_suffix(".lock").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("keys", [1, 3])
@pytest.mark.parametrize("scores", [[1.0, math.nan, 3.0], [math.nan] * 3])
def test_what_has_no_score_is_drawn_without_a_warning(keys, scores, tmp_path):
    settings = {f"key{number}": ["1", "a/long/path/to/a/run", "0.5"] for number in range(keys)}
    drawn = figure([Panel("", "area", settings, np.array(scores))], in_order)
    drawn.savefig(tmp_path / "sweep.png")
    texts = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert not any("nan" in text for text in texts)


def test_many_long_names_leave_room():
    names = [f"outputs/train/dqn-cartpole/{number}" for number in range(30)]
    drawn = figure([Panel("", "area", {"run": names}, np.arange(30.0))], in_order)
    labels = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert len(labels) <= 12 and max(map(len, labels)) <= 18
