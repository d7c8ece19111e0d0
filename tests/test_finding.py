"""Finding runs: rlx list, show, compare, clean, and what the tab key offers."""

import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, compose
from omegaconf import OmegaConf

from rlx.errors import ConfigError
from rlx.runs import listing
from rlx.runs import run as rlx_run
from rlx.runs.run import Run
from rlx.show import console
from rlx.training.config import validated


def made(
    name: str = "dqn-cartpole", command: str = "train", root: str = "outputs", **config: object
) -> Run:
    """A run of a made-up config below outputs/, as a command leaves it that is killed early."""
    return Run(Run.create(root, command, name, {"steps": 1, **config}).path)


def finished(made_run: Run, value: float = 1.0, **summary: object) -> Run:
    """The run with a result: 3 seeds that all return `value` in each of 4 episodes."""
    estimate = {"per_seed": [value] * 3, "iqm": value, "ci95": [value, value]}
    returns = {"returns": np.full((3, 4), value)}
    made_run.complete({"seeds": [0, 1, 2], "return": estimate, "wall_s": 1.0, **summary}, returns)
    return made_run


def stopped(run: Run, status: str = "failed", checkpoint: bool = False) -> Run:
    """The run as it is where it came to no end, with or without a checkpoint to go on from."""
    run.write_meta(status=status, error="told so")
    if checkpoint:
        checkpoints(run, "000000300")
    return run


def checkpoints(run: Run, *names: str) -> None:
    """Files that look like checkpoints with these names, and a part of a replay."""
    for name in names:
        folder = run.path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (folder / "training.safetensors").write_text("x" * 1000)
    (run.path / "replay/q").mkdir(parents=True)
    (run.path / "replay/q/1.safetensors").write_text("x" * 1000)


def tree(folder: Path = Path("outputs")) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def rows(result) -> list[dict[str, str]]:
    """The rows of rlx list format=csv."""
    assert result.code == 0, result.err
    return list(csv.DictReader(io.StringIO(result.out)))


# list


def test_trainings_are_listed_with_their_numbers(rlx, tiny_runs):
    listed = rows(rlx("list", tiny_runs / "train", "format=csv"))
    assert [(row["agent"], row["env"], row["seeds"]) for row in listed] == [
        ("hdqn", "acrobot", "3"),
        ("hdqn", "acrobot", "2"),
        ("dqn", "cartpole", "2"),
    ], "the newest last"
    for row in listed:
        summary = Run(Path(row["run"])).summary()["return"]
        assert float(row["return"]) == summary["iqm"]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == summary["ci95"]
        files = [path for path in Path(row["run"]).rglob("*") if path.is_file()]
        assert int(row["size"]) == sum(path.stat().st_size for path in files)
        assert row["kind"] == "train" and row["status"] == "completed"
    printed = rlx("list", tiny_runs / "train").out
    assert all(row["run"] in printed for row in listed) and "listed   3, " in printed
    parsed = json.loads(rlx("list", tiny_runs / "train", "format=json").out)
    assert [row["run"] for row in parsed] == [row["run"] for row in listed]


def test_an_attack_is_listed_with_its_worst_return(rlx):
    run = made("hdqn-acrobot", "attack")
    cells = []
    for head in ("both", "goal"):
        for eps, value in ((0, -80.0), (0.1, -300.0 if head == "both" else -200.0)):
            estimate = {"per_seed": [value], "iqm": value, "ci95": [None, None]}
            cells.append({"head": head, "eps": eps, "return": estimate})
    run.complete({"seeds": [4], "run": "x", "cells": cells})
    (row,) = rows(rlx("list", "format=csv"))
    assert row["return"] == "-300.0" and row["ci95_low"] == "" and row["kind"] == "attack"


FILTERS = {
    "agent=dqn": 2,
    "env=acrobot": 1,
    "status=failed": 1,
    "kind=train": 3,
    "seeds=3": 2,
    "seeds=4:": 0,
    "return=-100:": 1,
    "return=:-100": 1,
    "return=5": 1,
    "age=:2h": 3,
    "age=1d:": 0,
    "size=:1MB": 3,
    "size=1GB:": 0,
}


@pytest.mark.parametrize("word", FILTERS)
def test_every_column_is_a_filter(word, rlx):
    finished(made("dqn-cartpole"), 5.0)
    finished(made("hdqn-acrobot"), -300.0)
    stopped(made("dqn-cartpole", seeds=2))
    assert len(rows(rlx("list", "format=csv", word))) == FILTERS[word]


def test_filters_are_all_met(rlx):
    finished(made("dqn-cartpole"))
    stopped(made("dqn-cartpole"))
    stopped(made("ppo-cartpole"))
    (row,) = rows(rlx("list", "agent=dqn", "status=failed", "format=csv"))
    assert row["error"] == "told so" and row["return"] == ""


WRONG = [
    (["list", "agnt=dqn"], "agnt: no column of this list. Did you mean 'agent'?"),
    (["list", "agent=dqm"], "agent=dqm: no run has it. Did you mean 'dqn'?"),
    (["list", "status=done"], "status=done: no run has it. Choose from: completed."),
    (["list", "seeds=x"], "seeds=x: expected a number, or a range"),
    (["list", "seeds=1:2:3"], "seeds=1:2:3: expected a number, or a range"),
    (["list", "seeds="], "expected a number, or a range"),
    (["list", "age=3 weeks"], "age=3 weeks: expected a number with a unit of s, min, h, d"),
    (["list", "format=xml"], "format=xml: unknown. Choose from: csv, json, table."),
    (["list", "outputz"], "Did you mean 'outputs'?"),
    (["list", "run=5"], "run=5: expected a run directory"),
    (["show", "nowhere"], "run=nowhere: no such folder."),
    (["show", "outputs", "outputs"], "show takes one run"),
    (["compare", "outputs"], "name two runs"),
    (["compare", "outputs", "nowhere"], "run=nowhere: no such run directory."),
    (["clean", "dry=perhaps"], "dry=perhaps: expected true or false"),
    (["clean", "nowhere"], "run=nowhere: no such folder."),
    (["clean", "dri=false"], "Did you mean 'dry'?"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_bad_input_is_one_line(arguments, message, rlx):
    finished(made())
    before = tree()
    result = rlx(*arguments)
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.splitlines()) == 1 and tree() == before


def test_what_cannot_be_read_is_named_and_stops_nothing(rlx):
    finished(made())
    halves = ["20260101-000000-000000", "20260101-000000-000001", "20260101-000000-000002"]
    for name in halves:
        Path("outputs/train/dqn-cartpole", name).mkdir()
    top = Path("outputs/train/dqn-cartpole")
    (top / halves[1] / "meta.json").write_text('{"format": 3, "sta')
    (top / halves[2] / "meta.json").write_text('{"format": 3, "command": "train"}')
    cut = finished(made())
    (cut.path / "summary.json").write_text("[1")
    odd = finished(made())
    (odd.path / "summary.json").write_text('{"seeds": 3, "return": [1], "cells": [{"head": 1}, 2]}')
    broken = Path("outputs/sweeps/mine")
    broken.mkdir(parents=True)
    (broken / "sweep.json").write_text("{")
    result = rlx("list")
    assert result.code == 0 and result.out.count("unreadable") == 4
    for path in (top / halves[0], top / halves[1], cut.path, broken):
        assert any(
            line.startswith("warning") and str(path) in line for line in result.out.splitlines()
        ), path
    assert len(rows(rlx("list", "format=csv"))) == 7
    (odd.path / "config.yaml").write_text("agent: x\nenv: [1]\nseeds: {}\n")
    for path in (top / halves[0], top / halves[1], odd.path, broken):
        assert rlx("show", path).code == 0
    assert rlx("clean").code == 0


def test_a_killed_run_is_interrupted_and_a_running_one_runs(rlx):
    killed, running = made(), made()
    with running.lock():
        listed = {row["run"]: row["status"] for row in rows(rlx("list", "format=csv"))}
    assert listed == {str(killed.path): "interrupted", str(running.path): "running"}


def test_a_run_runs_from_the_moment_its_folder_is_there(rlx, monkeypatch):
    """Nobody lists it as interrupted, or takes it over, until its command has ended."""
    seen = []
    write_json = rlx_run.write_json

    def look(path, content):
        seen.append(listing.read(path.parent).status)
        write_json(path, content)

    monkeypatch.setattr(rlx_run, "write_json", look)
    run = Run.create("outputs", "train", "dqn-cartpole", {"steps": 1})
    run.write_meta(step=0)
    with run.writing():
        run.write_meta(step=1)
    assert seen == ["running"] * len(seen) and len(seen) > 3
    assert listing.read(run.path).status == "interrupted"
    begun = Run.create("outputs", "train", "dqn-cartpole", {"steps": 1})
    with pytest.raises(ConfigError, match="another process is writing it"), Run(begun.path).lock():
        pass
    os.utime(begun.path, (0, 0))
    assert rlx("clean", "dry=false").code == 0
    assert begun.path.exists() and not run.path.exists()
    path = begun.path
    del begun  # the command has failed before it wrote anything
    assert listing.read(path).status == "interrupted"


@pytest.mark.parametrize("width", [40, 60, 200])
def test_every_path_is_printed_whole(width, rlx, monkeypatch):
    monkeypatch.setattr(console.terminal, "width", width)
    runs = [finished(made()), finished(made("hdqn_regions-acrobot"))]
    out = rlx("list").out
    lines = [line.strip() for line in out.splitlines()]
    if width < 200:
        assert {str(run.path) for run in runs} <= set(lines)
    else:
        assert all(str(run.path) in out for run in runs) and "│ train │" in out


def test_a_list_that_is_cut_short_is_no_error(tmp_path):
    for number in range(500):
        (tmp_path / f"outputs/train/dqn-cartpole/20260101-000000-{number:06}").mkdir(parents=True)
    line = f"{sys.executable} -m rlx list format=json | head -1"
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, **where)
    assert done.stdout == "[\n" and done.stderr == ""


def test_finding_imports_no_torch(tiny_runs):
    code = "import sys; from rlx import cli; cli.run({!r}); sys.exit('torch' in sys.modules)"
    run = str(tiny_runs / "train/dqn-cartpole")
    lines = [["list", run], ["show", run], ["clean", run], ["compare", run, run]]
    for arguments in lines:
        line = [sys.executable, "-c", code.format(arguments)]
        assert subprocess.run(line, capture_output=True).returncode == 0, arguments


# show


def test_show_tells_the_line_that_makes_the_run_again(rlx, tiny_runs):
    run = tiny_runs / "train/dqn-cartpole"
    shown = rlx("show", run).out
    (line,) = [text for text in shown.splitlines() if text.startswith("line ")]
    program, command, *words = shlex.split(line.partition(" ")[2])
    assert (program, command) == ("rlx", "train")
    assert "eval_every=300" in words and "seeds=2" in words
    assert not any(word.startswith(("agent.double", "outputs")) for word in words)
    (folder,) = run.iterdir()
    kept = OmegaConf.load(folder / "config.yaml")
    again = validated(compose("train", *words, "tuned=dqn-cartpole"))
    assert {**again, "outputs": ""} == {**kept, "outputs": ""}
    (next_line,) = [text for text in shown.splitlines() if text.startswith("next ")]
    assert next_line.split() == ["next", "rlx", "attack", str(folder)]
    assert shown.splitlines()[-1] == str(folder)


def test_show_tells_what_was_made_of_a_run(rlx):
    source = finished(made(), 7.0)
    attack = made("dqn-cartpole", "attack", run=[str(source.path)])
    cell = {"head": "action", "eps": 0.1, "return": {"per_seed": [2.0], "iqm": 2.0, "ci95": [1, 3]}}
    area = {"area": {"action": 0.5}, "area_ci95": {"action": [0.4, 0.6]}}
    attack.complete({"run": [str(source.path)], "seeds": [0], "cells": [cell], **area})
    other = finished(made("dqn-cartpole", "evaluate"), run=["elsewhere"])
    shown = rlx("show", source.path).out
    assert str(attack.path) in shown and str(other.path) not in shown
    assert "7 [7, 7], the worst seed 7" in shown
    shown = rlx("show", attack.path).out
    assert "│ 0.1 │ 2 [1, 3] │" in shown and "area of action 0.5 [0.4, 0.6]" in shown


def test_show_says_how_a_stopped_training_goes_on(rlx):
    run = stopped(made(), "interrupted", checkpoint=True)
    shown = rlx("show").out
    assert f"next     rlx resume {run.path}\n" in shown and "interrupted (told so)" in shown
    assert "next" not in rlx("show", stopped(made()).path).out


# compare


def test_compare_tells_the_keys_that_differ_and_the_difference(rlx):
    first = finished(made(agent={"_target_": "x", "lr": 1, "same": 2}), 5.0)
    second = finished(made(agent={"_target_": "x", "lr": 3, "same": 2}), 2.0)
    second.write_meta(commit="abc")
    out = rlx("compare", first.path, second.path).out
    assert "agent.lr │" in out and "agent.same" not in out and "abc │" in out
    line = next(line for line in out.splitlines() if line.startswith("│            return"))
    assert [cell.strip() for cell in line.split("│")[2:5]] == ["5 [5, 5]", "2 [2, 2]", "3 [3, 3]"]
    assert "probability 1 [1, 1]" in out
    assert "differs  nothing" in rlx("compare", first.path, first.path).out


def test_trainings_are_told_apart_by_their_defence(rlx):
    words = ("agent=dqn", "env=cartpole", "defence=sa", "agent.defence.scale=[1,1,1,1]")
    config = OmegaConf.to_container(validated(compose("train", *words, "agent.defence.eps=0.2")))
    plain = config | {"agent": config["agent"] | {"defence": None}}
    first = finished(made(**config))
    second = finished(made(**plain))
    defences = {row["run"]: row["defence"] for row in rows(rlx("list", "format=csv"))}
    assert defences == {str(first.path): "sa", str(second.path): ""}
    assert len(rows(rlx("list", "format=csv", "defence=sa"))) == 1
    assert "sa (eps 0.2)" in rlx("list").out
    lines = rlx("compare", first.path, second.path).out.splitlines()
    (line,) = [line for line in lines if "defence" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "agent.defence",
        "sa (eps 0.2)",
        "none",
    ]
    shown = rlx("show", first.path).out
    assert "train dqn cartpole defence=sa (eps 0.2)" in shown
    (line,) = [text for text in shown.splitlines() if text.startswith("line ")]
    assert " defence=sa " in line and "agent.defence.eps=0.2" in line and "_target_" not in line


def test_compare_draws_the_seeds_of_one_training_together(rlx):
    returns = np.array([[1.0], [5.0], [9.0], [2.0], [7.0]]).repeat(4, 1)
    runs = []
    for shift in (0.0, 1.0):
        run = finished(made("dqn-cartpole", "evaluate"), run=["a"], seeds=[0, 1, 2, 3, 4])
        np.savez(run.path / "returns.npz", returns=returns + shift)
        runs.append(run)
    out = rlx("compare", *(run.path for run in runs)).out
    assert "-1 [-1, -1]" in out, "the spread of the seeds is none of the difference"
    (runs[1].path / "summary.json").write_text(
        (runs[1].path / "summary.json").read_text().replace('"a"', '"b"')
    )
    assert "-1 [-1, -1]" not in rlx("compare", *(run.path for run in runs)).out


def test_compare_takes_two_of_a_kind(rlx):
    training = finished(made())
    attack = finished(made("dqn-cartpole", "attack"))
    report = finished(made("cartpole", "report"))
    assert "made by rlx attack" in rlx("compare", training.path, attack.path).err
    assert "made by rlx report" in rlx("compare", report.path, training.path).err
    failed = rlx("compare", training.path, stopped(made()).path)
    assert failed.code == 2 and "has no result" in failed.err


# clean


def test_clean_removes_what_came_to_no_end(rlx):
    good = finished(made())
    failed = stopped(made())
    killed = made("ppo-cartpole")
    resumable = stopped(made(), "interrupted", checkpoint=True)
    orphan = Path("outputs/train/dqn-cartpole/20260101-000000-000000")
    young = Path("outputs/train/dqn-cartpole/20260101-000000-000001")
    for folder in (orphan, young):
        folder.mkdir()
    for path in (orphan, killed.path):
        os.utime(path, (0, 0))
    beginning = Run.create("outputs", "train", "a2c-cartpole", {"steps": 1})
    before = tree()
    dry = rlx("clean")
    assert dry.code == 0 and tree() == before
    for path in (failed.path, killed.path, orphan):
        assert f"can go   {path}, " in dry.out
    assert f"kept     {resumable.path}: interrupted, and can go on" in dry.out
    assert "dry=false removes it" in dry.out
    done = rlx("clean", "dry=false")
    assert done.code == 0
    assert good.path.exists() and resumable.path.exists()
    assert young.exists() and beginning.path.exists(), "a run may just be beginning in them"
    assert not failed.path.exists() and not orphan.exists() and not killed.path.parent.exists()
    assert rlx("clean", "dry=false", "resumable=true").code == 0
    assert not resumable.path.exists() and good.path.exists()


def test_clean_leaves_alone_what_is_running(rlx):
    begun = made()
    going_on = stopped(made())
    os.utime(begun.path, (0, 0))
    with begun.lock(), going_on.lock():
        result = rlx("clean", "dry=false")
        assert result.code == 0 and begun.path.exists() and going_on.path.exists()
        assert f"{going_on.path} stays: " in result.out


def test_clean_passes_over_a_run_with_a_link_out_of_it(rlx, tmp_path):
    linked = stopped(made())
    other = stopped(made())
    (tmp_path / "elsewhere").mkdir()
    (linked.path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    result = rlx("clean", "dry=false")
    assert result.code == 0 and f"{linked.path} stays: " in result.out
    assert linked.path.exists() and not other.path.exists()
    assert (tmp_path / "elsewhere").exists()


def test_clean_leaves_alone_what_others_were_made_of(rlx):
    attacked, free, swept = stopped(made()), stopped(made()), stopped(made())
    attack = made("dqn-cartpole", "attack", run=None)
    attack.complete({"run": [f"../elsewhere/{attacked.path}"], "seeds": [0]})
    jobs = Path("outputs/sweeps/mine/jobs")
    jobs.mkdir(parents=True)
    (jobs / "1.json").write_text(json.dumps({"run_path": f"../../{swept.path}"}))
    (jobs.parent / "sweep.json").write_text("{}")
    assert rlx("clean", "outputs/train", "dry=false").code == 0
    assert attacked.path.exists() and swept.path.exists() and not free.path.exists()


def test_clean_takes_from_a_superseded_training_what_only_going_on_needs(rlx):
    older, newer = made(seeds=3), made(seeds=3)
    other = made(seeds=4)
    for run in (older, newer, other):
        checkpoints(run, "000000300", "best")
        finished(run)
    assert rlx("clean", "dry=false").code == 0
    assert "checkpoints/best/state.json" in tree(older.path) and older.summary()
    assert not (older.path / "checkpoints/000000300").exists()
    assert not (older.path / "replay").exists()
    for run in (newer, other):
        assert {"checkpoints/000000300/state.json", "replay/q/1.safetensors"} <= tree(run.path)
    assert "total    0 B\n" in rlx("clean").out


def test_clean_takes_from_adversaries_what_only_going_on_needs(rlx):
    """Those in a run, which list does not show, and those beside all runs, as of the zoo."""
    victim = finished(made())
    learnt, stuck = (
        made("dqn-attacked", root=f"{victim.path}/adversaries/{number}") for number in (1, 2)
    )
    beside = made("dqn-attacked", root="outputs/adversaries/3", steps=2)
    for run in (learnt, beside):
        checkpoints(run, "000000300", "best")
        finished(run)
    stopped(stuck)
    before = tree()
    dry = rlx("clean").out
    assert tree() == before
    for path, why in (
        (learnt.path, "all but the weights kept; an adversary that has learnt"),
        (beside.path, "all but the weights kept; an adversary that has learnt"),
        (stuck.path, "failed (told so)"),
    ):
        (line,) = [line for line in dry.splitlines() if line.startswith(f"can go   {path}, ")]
        assert line.endswith(why)
    assert rlx("clean", "dry=false").code == 0
    assert not stuck.path.exists() and "total    0 B\n" in rlx("clean").out
    for run in (learnt, beside):
        assert "checkpoints/best/state.json" in tree(run.path) and run.summary()
        assert not (run.path / "checkpoints/000000300").exists()


def test_a_run_that_is_named_twice_does_not_supersede_itself(rlx):
    run = made(seeds=3)
    checkpoints(run, "000000300", "best")
    finished(run)
    Path("link").symlink_to("outputs")
    before = tree()
    assert rlx("clean", "outputs", "outputs/train", "link", run.path, "dry=false").code == 0
    assert tree() == before
    assert len(rows(rlx("list", "outputs", "link", run.path, "format=csv"))) == 1


def test_a_copy_elsewhere_is_shown_and_cleaned_by_itself(rlx):
    copy = Path(shutil.copytree(stopped(made()).path, "copy"))
    assert "failed (told so)" in rlx("show", copy).out
    assert rlx("clean", copy, "dry=false").code == 0 and not copy.exists()
    assert len(rows(rlx("list", "format=csv"))) == 1


def test_a_superseded_training_that_was_attacked_stays_whole(rlx):
    older, newer = made(seeds=3), made(seeds=3)
    for run in (older, newer):
        checkpoints(run, "000000300", "best")
        finished(run)
    made("dqn-cartpole", "attack").complete({"run": [str(older.path)]})
    before = tree()
    assert rlx("clean", "dry=false").code == 0 and tree() == before


def test_sweeps_are_listed_and_stay(rlx):
    words = ("agent=dqn", "env=cartpole", *TINY, "seeds=1", "agent.hidden=[8]")
    assert rlx("train", "-m", *words, "agent.double=true,false", "sweep=mine").code == 0
    jobs = [run for run in Path("outputs/train/dqn-cartpole").iterdir()]
    Run(jobs[0]).write_meta(status="failed", error="told so")
    (row,) = rows(rlx("list", "kind=sweep", "format=csv"))
    assert row["agent"] == "dqn" and row["env"] == "cartpole" and row["run"].endswith("mine")
    assert "1 of 2 jobs" in rlx("list", "kind=sweep").out
    shown = rlx("show", "outputs/sweeps/mine").out
    assert "rlx resume outputs/sweeps/mine" in shown and "1 completed" in shown
    shutil.rmtree(jobs[0] / "checkpoints")
    before = tree()
    assert rlx("clean", "dry=false").code == 0 and tree() == before


# The tab key


def test_the_tab_key_offers_runs(rlx, monkeypatch):
    runs = [str(finished(made()).path), str(finished(made("ppo-acrobot")).path)]

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        return rlx("-sc", "query=bash").out.split()

    assert complete("rlx attack outputs/") == runs
    assert set(runs) < set(complete("rlx attack "))
    assert set(runs) < set(complete("rlx resume out"))
    assert complete("rlx report outputs/train/dqn") == runs[:1]
    assert complete(f"rlx compare {runs[0]} outputs/train/p") == runs[1:]
    assert complete("rlx show nowhere/") == []
    assert not set(runs) & set(complete("rlx train "))
    assert not set(runs) & set(complete("rlx attack attack="))
    for number in range(60):
        Path(runs[0]).with_name(f"20260101-000000-{number:06}").mkdir()
    assert complete("rlx attack outputs/") == [
        "outputs/train/dqn-cartpole",
        "outputs/train/ppo-acrobot",
    ], "the folders of many"


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", "{}"), ("returns.npz", "rubbish"), ("summary.json", '{"return": 3}')],
)
def test_a_training_that_cannot_be_read_is_refused_and_nothing_is_written(
    name, content, rlx, tiny_runs, tmp_path
):
    shutil.copytree(tiny_runs / "train" / "dqn-cartpole", tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    (run / name).write_text(content)
    for words in (("report", run, run), ("compare", run, run)):
        result = rlx(*words)
        assert result.code == 2 and name in result.err, result
        assert len(result.err.strip().splitlines()) == 1 and "pickle" not in result.err
    assert not (tmp_path / "outputs").exists()


def test_compare_shows_the_intervals_that_the_runs_have(rlx, tiny_runs):
    """Those of list, of report and of summary.json: none is drawn anew."""
    runs = sorted((tiny_runs / "train" / "hdqn-acrobot").iterdir())
    returns = [json.loads((run / "summary.json").read_text())["return"] for run in runs]
    texts = [console.interval_text(one["iqm"], one["ci95"]) for one in returns]
    line = next(line for line in rlx("compare", *runs).out.splitlines() if "return │" in line)
    assert [cell.strip() for cell in line.split("│")[2:4]] == texts
