"""A sweep is a thing on disk: killed at any moment, it goes on, and says the same in the end."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlx import cli, statistics
from rlx.commands import study as studies
from rlx.errors import Interrupted, RunError
from rlx.show import console
from rlx.sweeps.ranking import RETURN, Ranking, Score, rankings
from rlx.sweeps.sweep import Sweep
from rlx.training.loop import Training

SMALL = (
    "agent=ppo",
    "env=cartpole",
    "agent.hidden=[8]",
    "agent.rollout_steps=16",
    "agent.minibatches=2",
    "agent.epochs=1",
    "steps=1024",
    "num_envs=4",
    "eval_every=512",
    "eval_episodes=2",
    "final_episodes=3",
    "seeds=2",
    "checkpoint_every=256",
)
RATES = "agent.learning_rate=1e-2,1e-3"
TWELVE = ("agent.learning_rate=1e-2,1e-3,1e-4", "agent.discount=0.9,0.95,0.98,0.99")


def the_sweep(outputs: str = "outputs") -> Path:
    """The only sweep below a folder."""
    (sweep,) = Path(outputs, "sweeps").iterdir()
    return sweep


def table(sweep: Path) -> list[dict[str, str]]:
    """The rows of sweep.csv."""
    with open(sweep / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def runs() -> list[Path]:
    return sorted(Path("outputs/train").glob("*/*"))


def fail_where(monkeypatch, condition, error):
    learn = Training._learn

    def failing(self, progress):
        if condition(self):
            raise error
        return learn(self, progress)

    monkeypatch.setattr(Training, "_learn", failing)


def is_slow(training: Training) -> bool:
    return training.config.agent["learning_rate"] < 0.005


def test_the_same_command_again_skips_what_is_finished(rlx, done):
    sweep, before = the_sweep(), runs()
    again = rlx("train", "-m", *reversed(SMALL), "agent.learning_rate=0.01,0.001")
    assert again.code == 0 and "2 of 2 done" in again.out
    assert the_sweep() == sweep and runs() == before
    assert rlx("resume", sweep).code == 0 and runs() == before


def test_fresh_trains_anew(rlx, done):
    before = runs()
    first = table(the_sweep())
    assert rlx("train", "-m", *SMALL, RATES, "fresh=true").code == 0
    assert len(runs()) == 4 and set(before) < set(runs())
    assert table(the_sweep()) == first


def test_a_deleted_run_is_trained_again(rlx, done):
    shutil.rmtree(runs()[0])
    assert "1 of 2 done" in rlx("resume", the_sweep()).out
    assert len(runs()) == 2 and {row["state"] for row in table(the_sweep())} == {"completed"}


def test_the_table_ranks_with_intervals_and_effects(rlx, done):
    rows = table(the_sweep())
    assert [row["rank"] for row in rows] == ["1", "2"]
    returns = [float(row["return"]) for row in rows]
    assert returns == sorted(returns, reverse=True)
    for row, value in zip(rows, returns, strict=True):
        job = json.loads((the_sweep() / f"jobs/{row['job']}.json").read_text())
        run = the_sweep() / job["run_path"]
        summary = json.loads((run / "summary.json").read_text())
        assert value == summary["return"]["iqm"]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == summary["return"]["ci95"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert float(row["agent.learning_rate"]) == config["agent"]["learning_rate"]
    assert "a seed of the first is better than one of the second" in done.out
    assert (the_sweep() / "sweep.png").is_file()
    report = rlx("report", the_sweep())
    assert report.code == 0 and done.out.endswith(report.out)


def test_jobs_are_compared_over_seeds_and_episodes(rlx, done):
    """Episodes that are equally hard for every seed leave each of them uncertain."""
    sweep = Sweep(the_sweep())
    hard = np.linspace(0, 100, 12)
    for job, gain in zip(sweep.jobs(), (0.0, 1.0), strict=True):
        returns = np.tile(hard + gain, (4, 1))
        own = statistics.estimate(returns)
        summary = job.run.summary() | {"return": own.as_dict()}
        (job.run.path / "summary.json").write_text(json.dumps(summary, default=np.ndarray.tolist))
        np.savez(job.run.path / "returns.npz", returns=returns)
    (ranking,) = rankings(sweep, RETURN)
    first, second = ranking.scores
    assert first.estimate.iqm == second.estimate.iqm + 1
    for score in ranking.scores:
        low, high = score.iqm.ci95
        own_low, own_high = score.estimate.ci95
        assert high - low == pytest.approx(own_high - own_low, rel=0.1)
        assert high - low > 20
    # All jobs have met the same episodes, so that a better one is better in each resample.
    assert (first.iqm - second.iqm).ci95 == pytest.approx([1.0, 1.0])
    assert ranking.lead is not None and ranking.lead.ci95.tolist() == [1.0, 1.0]


def test_what_failed_is_tried_again(rlx, monkeypatch):
    with monkeypatch.context() as patch:
        fail_where(
            patch,
            lambda training: training.config.agent["learning_rate"] < 0.005,
            RunError("no power"),
        )
        result = rlx("train", "-m", *SMALL, RATES)
        assert result.code == 1 and "1 of 2 jobs failed" in result.err
        assert "no power" in result.out  # in the table
        failed = table(the_sweep())[-1]
        assert failed["state"] == "failed" and "no power" in failed["error"]
        assert "no power" in (the_sweep() / f"jobs/{failed['job']}.log").read_text()
    again = rlx("train", "-m", *SMALL, RATES)
    assert again.code == 0 and "1 of 2 done" in again.out
    assert {row["state"] for row in table(the_sweep())} == {"completed"}
    assert not list(the_sweep().glob("jobs/*.log"))


def test_an_error_in_a_users_code_ends_one_job_alone(rlx, monkeypatch):
    fail_where(monkeypatch, is_slow, ZeroDivisionError("by 0"))
    result = rlx("train", "-m", *SMALL, RATES)
    assert result.code == 1 and "ZeroDivisionError: by 0" in result.err
    assert [row["state"] for row in table(the_sweep())] == ["completed", "failed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_interrupted_goes_on(number, rlx, monkeypatch):
    step = Training._vector_step

    def stopped(self):
        if self.step == 512:
            os.kill(os.getpid(), number)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_vector_step", stopped)
        result = rlx("train", "-m", *SMALL, RATES)
    assert result.code == 128 + number
    sweep = the_sweep()
    assert result.err.strip().endswith(f"0 of 2 done; it goes on with: rlx resume {sweep}")
    (run,) = runs()
    whole = rlx("resume", sweep)
    assert whole.code == 0 and "resumes  at step 516" in whole.out
    assert len(runs()) == 2 and run in runs()


def killed_at_any_moment(
    command: list[str], sweep: Path, seconds: Callable[[], float]
) -> dict[str, str]:
    """The runs of the jobs that are finished after the `command` was killed four times, by job.

    Each time so many `seconds` after the sweep was there; what was finished before must be still.
    """
    finished: dict[str, str] = {}
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not Sweep.is_at(sweep) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds())
        process.kill()
        process.wait()
        if Sweep.is_at(sweep):
            now = {job.id: str(job.run_path) for job in Sweep(sweep).jobs() if job.finished}
            assert finished.items() <= now.items()
            finished = now
    return finished


def test_a_sweep_killed_at_any_moment_says_the_same_in_the_end(rlx, request):
    """SIGKILL, four times: nothing finished is lost or done twice, and the table is the same."""
    assert rlx("train", "-m", *SMALL, *TWELVE, "sweep=whole", "outputs=whole").code == 0
    expected = table(Path("whole/sweeps/whole"))
    command = [sys.executable, "-m", "rlx", "train", "-m", *SMALL, *TWELVE, "sweep=killed"]
    moments = random.Random(request.config.getoption("--trials"))
    sweep = Path("outputs/sweeps/killed")
    finished = killed_at_any_moment(command, sweep, lambda: moments.uniform(0, 1.5))
    assert rlx("train", "-m", *SMALL, *TWELVE, "sweep=killed").code == 0
    now = {job.id: str(job.run_path) for job in Sweep(sweep).jobs()}
    assert finished.items() <= now.items()
    assert table(sweep) == expected
    completed = [run for run in runs() if (run / "summary.json").is_file()]
    assert len(completed) == 12


def test_a_job_of_another_process_is_left_to_it(rlx, done):
    sweep = Sweep(the_sweep())
    sweep.forget()
    first, _ = sweep.jobs()
    with first.lock() as ours:
        assert ours
        result = rlx("resume", the_sweep())
        assert f"another process has {first.label}\n" in result.out
        left = f"rlx: {the_sweep()}: another process has all that is left, 1 of 2 jobs.\n"
        assert (result.code, result.err) == (2, left)
        assert [job.status for job in sweep.jobs()] == ["waiting", "completed"]
        result = rlx("train", "-m", *SMALL, RATES, "fresh=true")
    assert result.code == 2 and "fresh=true: another process is at agent.learn" in result.err
    assert [job.status for job in sweep.jobs()] == ["waiting", "completed"]


def test_sys_exit_in_a_users_code_ends_one_job_alone(rlx, monkeypatch):
    fail_where(monkeypatch, is_slow, SystemExit(3))
    result = rlx("train", "-m", *SMALL, RATES)
    assert result.code == 1 and "SystemExit: 3" in result.err
    assert [row["state"] for row in table(the_sweep())] == ["completed", "failed"]
    result = rlx("train", *SMALL, "agent.learning_rate=1e-3")
    assert result.code == 1 and result.err == "rlx: sys.exit(3) was called while it ran.\n"


CRASHING = """
import os

from rlx.agents.ppo import PPO


class Crashing(PPO):
    def learn(self):
        if self.config.learning_rate < 0.005:
            os._exit(3)
        return super().learn()
"""


def test_a_job_that_ends_its_process_holds_up_no_other(rlx):
    Path("crashing.py").write_text(CRASHING)
    Path("conf/agent").mkdir(parents=True)
    option = "defaults: [ppo, _self_]\n_target_: crashing.Crashing\n"
    Path("conf/agent/crashing.yaml").write_text(option)
    rlx_line = [sys.executable, "-m", "rlx"]
    words = ("agent=crashing", *SMALL[1:], "agent.learning_rate=1e-3,1e-2", "sweep=mine")
    assert subprocess.run([*rlx_line, "train", "-m", *words]).returncode == 3
    sweep = Path("outputs/sweeps/mine")
    lost = "agent.learning_rate=0.001: its process ended without a word"
    assert lost in rlx("report", sweep).out
    again = subprocess.run([*rlx_line, "resume", sweep], capture_output=True, text=True)
    assert again.returncode == 3 and lost in again.stdout
    assert [job.status for job in Sweep(sweep).jobs()] == ["interrupted", "completed"]


def test_a_signal_within_a_destructor_comes_once_more():
    told = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    lost = types.SimpleNamespace(exc_value=Interrupted(signal.SIGTERM, ""))
    try:
        cli._not_lost(lost)
        time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert told == [signal.SIGTERM]


def test_another_commit_is_named(rlx, done):
    file = the_sweep() / "sweep.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"commit": "0000000"}))
    assert "begun with commit 0000000 of rlx" in rlx("train", "-m", *SMALL, RATES).out


def test_a_swept_run_can_go_on_by_itself(rlx, done):
    assert rlx("resume", runs()[0], "steps=1536").code == 0


def test_two_ways_to_write_a_job_are_one_job(rlx):
    assert rlx("train", "-m", *SMALL, "steps=1024,1k", "agent.learning_rate=0.01,1e-2").code == 0
    assert len(runs()) == 2  # 1k is 1,000


def test_attacks_over_many_runs_are_one_sweep(rlx, tiny_runs):
    victims = sorted((tiny_runs / "train").glob("*/*"))
    line = ("attack", *victims, "-m", "attack=noise,fgsm", "eps=0:0.1:0.1", "episodes=2")
    result = rlx(*line, "scale=bounds")
    assert result.code == 2 and "none was begun" in result.err  # CartPole has no bounds
    acrobots = [run for run in victims if "acrobot" in run.parent.name]
    line = ("attack", *acrobots, "-m", "attack=noise,fgsm", "eps=0:0.1:0.1", "episodes=2")
    result = rlx(*line)
    assert result.code == 0, result.err
    rows = table(the_sweep())
    assert len(rows) == 2 * len(acrobots) and {row["attack"] for row in rows} == {"noise", "fgsm"}
    areas = [float(row["area"]) for row in rows]
    assert areas == sorted(areas, reverse=True)
    before = sorted(Path("outputs/attack").glob("*/*"))
    assert "done" in rlx(*line).out and sorted(Path("outputs/attack").glob("*/*")) == before


@pytest.mark.parametrize(
    "words, expected",
    [
        (("sweep=a/b",), "sweep=a/b: expected the name of a folder"),
        (("sweep=..",), "sweep=..: expected the name of a folder"),
        (("fresh=perhaps",), "fresh=perhaps: expected true or false"),
        (("agent.discount=0.9,2",), "agent.discount=2"),
        (("agent.learning_rat=1,2",), "agent.learning_rat"),
    ],
)
def test_bad_sweeps_are_refused_and_nothing_is_written(words, expected, rlx, tmp_path):
    result = rlx("train", "-m", *SMALL, RATES, *words)
    assert result.code == 2 and expected in result.err and list(tmp_path.iterdir()) == []


def test_sweep_options_need_a_sweep(rlx, tmp_path):
    for word in ("sweep=mine", "fresh=true"):
        result = rlx("train", *SMALL, word)
        assert result.code == 2 and "-m" in result.err and list(tmp_path.iterdir()) == []


def test_a_sweep_of_another_command_is_refused(rlx, done):
    before = {file: file.read_bytes() for file in the_sweep().rglob("*") if file.is_file()}
    name = f"sweep={the_sweep().name}"
    result = rlx("train", "-m", *SMALL, "agent.learning_rate=0.5,0.25", name)
    assert result.code == 2 and "is of another command, rlx train" in result.err
    assert {file: file.read_bytes() for file in the_sweep().rglob("*") if file.is_file()} == before


def test_a_changed_sweep_is_not_gone_on_with(rlx, done):
    file = the_sweep() / "sweep.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"words": [*facts["words"], "agent._target_=evil.Agent"]}))
    result = rlx("resume", the_sweep())
    assert result.code == 2 and "was not begun by you" in result.err


STUDY = """# @package _global_
# A small study.
lines:
  train: >-
    train agent=ppo,dqn agent.hidden=[8] env=cartpole tuned=none seeds=2 steps=600 eval_every=300
    eval_episodes=2 final_episodes=3
  attack: attack {train} attack=noise,fgsm eps=0:0.1:0.1 episodes=2 scale=reference
  report: report {train}
"""


@pytest.fixture
def study(rlx, tmp_path):
    """A folder with the study "small"."""
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(STUDY)
    return rlx


def test_a_study_that_is_killed_goes_on(study):
    command = [sys.executable, "-m", "rlx", "study", "experiment=small"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    attacks = Path("outputs/sweeps/small-attack")
    while not list(attacks.glob("sweep.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    trained = runs()
    assert len(trained) == 2 and not list(Path("outputs").glob("report/*/*"))
    assert study("study", "experiment=small").code == 0
    assert runs() == trained and len(list(Path("outputs/attack").glob("*/*"))) == 4
    (report,) = Path("outputs").glob("report/*/*")
    assert (report / "report.png").is_file()


@pytest.mark.parametrize(
    "line, expected",
    [
        ("  late: attack {later}", "is no earlier line"),
        ("  late: fly {train}", "expected a command of rlx's"),
        ("  late: 7", "expected a command of rlx's"),
    ],
)
def test_a_study_with_a_wrong_line_is_refused(line, expected, study, tmp_path):
    file = tmp_path / "conf/experiment/small.yaml"
    file.write_text(file.read_text() + line + "\n")
    result = study("study", "experiment=small")
    assert result.code == 2 and expected in result.err and not Path("outputs").exists()
    assert study("study").code == 2


def test_what_asks_in_a_study_gets_no_answer(tmp_path):
    (tmp_path / "conf/env").mkdir(parents=True)
    (tmp_path / "conf/env/asking.yaml").write_text("_target_: asking.Asking\n")
    (tmp_path / "asking.py").write_text("input('Which env? ')\n")
    (tmp_path / "conf/experiment").mkdir()
    study = "# @package _global_\nlines:\n  train: train env=asking\n"
    (tmp_path / "conf/experiment/asks.yaml").write_text(study)
    command = [sys.executable, "-m", "rlx", "study", "experiment=asks"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE)
    try:
        assert process.wait(60) == 2
    finally:
        process.kill()


def test_what_is_not_defined_is_ranked_last(rlx, tiny_runs):
    """The area of an agent that is no better than random play is NaN."""
    (victim,) = (tiny_runs / "train").glob("dqn-cartpole/*")
    line = ("attack", victim, "-m", "attack=noise,fgsm", "eps=0,0.1", "episodes=2")
    assert rlx(*line, "scale=[1,1,1,1]").code == 0
    areas = [row["area"] for row in table(the_sweep())]
    assert areas == sorted(areas, key=lambda area: (area == "nan", -float(area)))


def test_the_lead_is_among_jobs_that_have_a_score():
    """What is no number is no better and no worse than anything."""
    levels = [[3.0, 3.0], [1.0, 2.0], [np.nan, np.nan]]
    scores = [
        Score.of(
            statistics.Estimate(np.array(level), float(np.mean(level)), (0, 0)), np.array([level])
        )
        for level in levels
    ]
    lead = Ranking("", "area", [], scores, []).lead
    assert lead is not None and lead.value == 1
    assert Ranking("", "area", [], scores[1:], []).lead is None


def test_a_table_wider_than_the_screen_is_whole(capsys):
    header = [f"agent.a_long_name_of_a_key_{number}" for number in range(14)]
    console.table("Jobs", header, [["0.000123456"] * 14])
    out = capsys.readouterr().out
    assert all(name in out for name in header)


@pytest.mark.parametrize(
    "line, expected",
    [
        (("evaluate", "checkpoint=best,77"), "77"),
        (("evaluate", "seeds=[0],[77]"), "77"),
        (("collect", "out=one,two,three/../one"), "one: two jobs would write it"),
        (("collect", "out=one,there"), "out=there: exists already"),
        (("collect", "out=one", "mix=0,2"), "mix=2"),
        (("drift", "episodes=1,2"), "drift takes one run, of an env that drifts"),
        (("scale", "out=one.yaml,two.txt"), "out=two.txt: expected a new file"),
        (("scale", "out=one.yaml", "seeds=[0],[1]"), "one.yaml: two jobs would write it"),
        (("export", "run=[RUN,one.onnx]", "seed=0,77"), "seed=77"),
        (("export", "run=[RUN,one.onnx]", "seed=0,1"), "one.onnx: two jobs would write it"),
    ],
)
def test_every_command_checks_all_jobs_before_the_first(line, expected, rlx, tiny_runs, tmp_path):
    (victim,) = (tiny_runs / "train").glob("dqn-cartpole/*")
    (tmp_path / "there").mkdir()
    verb, *words = [word.replace("RUN", str(victim)) for word in line]
    paths = [] if verb == "export" else [victim]
    result = rlx(verb, *paths, "-m", *words)
    assert result.code == 2 and expected in result.err and "none was begun" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_lines_of_a_study_name_its_sweeps(rlx, monkeypatch):
    """Without an experiment: the same lines are the same study, others another one."""
    named = []
    monkeypatch.setattr(studies, "_run", lambda words: named.extend(words) or 0)
    for episodes in (2, 2, 3):
        lines = f'lines={{a: "evaluate zoo:dqn-cartpole episodes={episodes}"}}'
        assert rlx("study", lines).code == 0
    first, again, other = [word for word in named if word.startswith("sweep=")]
    assert first == again != other
    assert first.startswith("sweep=study-") and first.endswith("-a")
