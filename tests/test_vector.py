"""A vector sweep: jobs trained as one batch, each of which ends as if it had been trained alone."""

import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import AGENTS, ENVS, small, stop_rule
from safetensors.torch import load_file
from test_agents import calm
from test_per_seed_numbers import OFFLINE, SOON, config_type, env_of, values
from test_sweeps import killed_at_any_moment, table, the_sweep

from rlx import cli
from rlx.config import varying
from rlx.data.writer import Writer
from rlx.policies import open_runs
from rlx.runs.checkpoints import Checkpoints
from rlx.runs.run import Run
from rlx.sweeps.sweep import Job, Sweep
from rlx.training import compiled
from rlx.training.log import Log
from rlx.training.loop import Training
from rlx.training.vector import Batch

VECTOR = "hydra/launcher=vector"
SIZES = (
    "steps=320",
    "eval_every=160",
    "checkpoint_every=160",
    "eval_episodes=2",
    "final_episodes=3",
    "num_envs=4",
    "seeds=2",
    "tuned=none",
)


def jobs(outputs: str = "outputs") -> list[Job]:
    """The jobs of the only sweep below a folder."""
    return Sweep(the_sweep(outputs)).jobs()


def rows(run: Path) -> list[dict]:
    """The rows of metrics.jsonl, without the wall clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not key.startswith("time/")} for row in lines]


def close(one: object, other: object) -> bool:
    """Whether two numbers, or lists of them, are equal up to rounding; None is NaN."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    pair = [np.asarray(value, dtype=float) for value in (one, other)]
    return np.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True)


def assert_same(one: Path, other: Path) -> None:
    """Both runs say the same, but for rounding and the folder that they are in."""
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (one, other)]
    assert configs[0] | {"outputs": ""} == configs[1] | {"outputs": ""}
    assert len(rows(one)) == len(rows(other)) > 0
    for row, twin in zip(rows(one), rows(other), strict=True):
        assert row.keys() == twin.keys()
        for key in row:
            assert close(row[key], twin[key]), (key, row, twin)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for key in ("seeds", "steps"):
        assert summaries[0][key] == summaries[1][key]
    assert close(*[summary["return"]["per_seed"] for summary in summaries])
    for key in ("step", "value", "solved"):
        assert close(*[summary["kept"][key] for summary in summaries]), key
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    for name in names:
        files = [run / "checkpoints" / name / "agent.safetensors" for run in (one, other)]
        policies = [load_file(file) for file in files]
        assert policies[0].keys() == policies[1].keys()
        for key in policies[0]:
            assert close(policies[0][key], policies[1][key]), (name, key)


def assert_same_sweeps(one: str, other: str) -> None:
    """The finished jobs of two sweeps, of the same identities, are the same."""
    runs = {job.id: job.run for job in jobs(one)}
    twins = {job.id: job.run for job in jobs(other)}
    assert runs.keys() == twins.keys()
    for job_id, run in runs.items():
        assert run is not None and twins[job_id] is not None
        assert_same(run.path, twins[job_id].path)


def swept(agent: str) -> list[str]:
    """Two values of up to two numbers of an agent, as one types them in a sweep."""
    names = varying(config_type(agent))
    fields = [name for name in ("learning_rate", "n_steps", "discount") if name in names]
    fields = (fields or sorted(names))[:2]
    return ["agent.{}={},{}".format(name, *values(agent, name)) for name in fields]


def walks(folder: Path) -> Path:
    """A data set of random walks in CartPole's spaces."""
    rng = np.random.default_rng(0)
    writer = Writer(str(folder / "walks"))
    for number in range(20):
        obs = (rng.uniform(-1, 1, (12, 4)) * [4, 4, 0.4, 4]).astype(np.float32)
        action = rng.choice(2, 11, p=[0.7, 0.3])
        writer.add(obs, action, (action == 1).astype(np.float32), number % 2 == 0)
    writer.close({}, 1, [])
    return folder / "walks"


@pytest.mark.rounding
@pytest.mark.parametrize("agent", AGENTS)
def test_a_vector_sweep_is_the_sweep_of_one_job_after_the_other(agent, rlx, tmp_path):
    env = env_of(agent, "discount")
    words = [f"agent={agent}", f"env={env}", *ENVS.get(env, ()), *SIZES]
    if agent in OFFLINE:
        words += [f"data={walks(tmp_path)}", "steps=40", "eval_every=20", "checkpoint_every=20"]
    words += small(agent, **SOON | calm(agent)) + swept(agent)
    alone = rlx("train", "-m", *words, "outputs=alone")
    assert alone.code == 0, alone.err
    batch = rlx("train", "-m", *words, VECTOR, "outputs=batch")
    assert batch.code == 0, batch.err
    number = 2 ** len(swept(agent))
    assert f"{number} jobs in one batch" in batch.out
    assert_same_sweeps("alone", "batch")
    assert not list(Path("batch/sweeps").glob("*/batches"))


PPO = (
    "agent=ppo",
    "env=cartpole",
    "agent.hidden=[8]",
    "agent.rollout_steps=16",
    "agent.minibatches=2",
    "agent.epochs=2",
    *SIZES,
    "steps=1024",
    "eval_every=512",
    "checkpoint_every=256",
)
STOP = stop_rule(10, 15)
RATES = "agent.learning_rate=1e-2,1e-3"
TWELVE = ("agent.learning_rate=1e-2,1e-3,1e-4", "agent.discount=0.9,0.95,0.98,0.99")


def run_with(outputs: str = "outputs", **settings: object) -> Path:
    """The run of the job with these settings of the agent."""
    runs = [job.run.path for job in jobs(outputs) if job.run is not None]
    found = [run for run in runs if settings.items() <= agent_of(run).items()]
    assert len(found) == 1
    return found[0]


def agent_of(run: Path) -> dict:
    """The config group `agent` of a run."""
    return yaml.safe_load((run / "config.yaml").read_text())["agent"]


def trained_runs(outputs: str = "outputs") -> list[Path]:
    """All runs of a folder."""
    return sorted(Path(outputs, "train").glob("*/*"))


def stop_at(monkeypatch, step: int, stop: Callable[[], object], kind: type = Training) -> None:
    """Call `stop` before a training of this kind makes the vector step from `step` on."""
    make = kind._vector_step

    def stopped(self):
        if self.step == step:
            stop()
        return make(self)

    monkeypatch.setattr(kind, "_vector_step", stopped)


class Killed(BaseException):
    """Stands for SIGKILL in a test's own process: nobody catches it."""


def kill() -> None:
    raise Killed


def send(number: int) -> Callable[[], None]:
    """What sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


THREE = "agent.learning_rate=1e-2,1e-3,1e-4"


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory):
    """A folder with sweeps of two and of three learning rates, one job after the other."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rates, outputs in ((RATES, "two/alone"), (THREE, "three/alone")):
            assert cli.run(["train", "-m", *PPO, rates, f"outputs={outputs}"]) == 0
    return folder


@pytest.fixture
def alone(rlx, trained_alone, tmp_path):
    """The sweep of two learning rates, below the folder "alone"."""
    shutil.copytree(trained_alone / "two", tmp_path, dirs_exist_ok=True)


@pytest.fixture
def three_alone(rlx, trained_alone, tmp_path):
    """The sweep of three learning rates, below the folder "alone"."""
    shutil.copytree(trained_alone / "three", tmp_path, dirs_exist_ok=True)


# What fits in a batch.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("agent.hidden=[8],[6]", RATES), "4 jobs in 2 batches of 2, 2; they differ in agent.hid"),
        (("steps=320,192", RATES), "4 jobs in 2 batches of 2, 2; they differ in steps"),
        (("env=cartpole,acrobot", RATES), "4 jobs in 2 batches of 2, 2; they differ in env"),
        (
            ("agent.max_grad_norm=null,1,2",),
            "3 jobs in 2 batches of 1, 2; they differ in agent.max",
        ),
        (("seeds=0:2,2:4",), "2 jobs in one batch"),
        (("seeds=1,[4,2,0]", RATES), "4 jobs in one batch"),
        ((RATES,), "2 jobs in one batch"),
    ],
)
def test_jobs_fall_into_few_batches(words, expected, rlx):
    line = ("train", "-m", *PPO, *SIZES, *words)
    batch = rlx(*line, VECTOR, "outputs=batch")
    assert batch.code == 0, batch.err
    assert expected in batch.out
    assert rlx(*line, "outputs=alone").code == 0
    assert_same_sweeps("alone", "batch")


def test_a_stop_rule_is_trained_alone(rlx):
    words = (
        "steps=512",
        "num_envs=1",
        "eval_every=64",
        STOP.replace("=", "=null,", 1),
        "agent.learning_rate=1e-3,1e-4",
    )
    batch = rlx("train", "-m", *PPO, *words, VECTOR, "outputs=batch")
    assert batch.code == 0, batch.err
    assert "4 jobs in 3 batches of 2, 1, 1; they differ in stop; with a stop rule" in batch.out
    assert rlx("train", "-m", *PPO, *words, "outputs=alone").code == 0
    assert_same_sweeps("alone", "batch")


def test_lists_of_numbers_are_packed(rlx):
    """Each member has one list for its two seeds; together they have four."""
    words = ("agent.learning_rate=[1e-2,1e-3]", "seeds=0:2,2:4")
    batch = rlx("train", "-m", *PPO, *words, VECTOR, "outputs=batch")
    assert batch.code == 0, batch.err
    assert rlx("train", "-m", *PPO, *words, "outputs=alone").code == 0
    assert_same_sweeps("alone", "batch")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("agent.hidden=[8],[6]",), "they differ in agent.hidden)"),
        (("steps=512,1024", "agent.discount=0.9"), "they differ in steps)"),
        ((RATES, STOP, "num_envs=1"), "(with a stop rule, which takes seeds out of"),
    ],
)
def test_a_sweep_without_a_batch_is_refused(words, reason, rlx, tmp_path):
    result = rlx("train", "-m", *PPO, *words, VECTOR)
    assert result.code == 2 and "no two of the 2 jobs fit in one batch" in result.err
    assert reason in result.err and len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_only_trainings_are_batched(rlx, tiny_runs, tmp_path):
    run = sorted((tiny_runs / "train").glob("*acrobot/*"))[0]
    result = rlx("attack", run, "-m", "attack=noise,fgsm", "eps=0:0.1:0.1", VECTOR)
    assert result.code == 2 and "rlx attack is none" in result.err
    assert len(result.err.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_lists_of_lists_of_seeds_are_not_typed(rlx, tmp_path):
    for words in (("seeds=[[0,1],[0,1]]",), ("-m", "seeds=[[0,1],[0,1]],2"), ("seeds=[[0]]",)):
        result = rlx("train", *PPO, *words)
        assert result.code == 2 and "seeds=[[0" in result.err, result.err
        assert list(tmp_path.iterdir()) == []


# Members that drop out.


def assert_one_dropped(outputs: str, alone: str) -> None:
    """Of two jobs the one whose learning rate is no number failed; the other is as alone."""
    good = run_with(outputs, learning_rate=1e-3)
    assert_same(run_with(alone, learning_rate=1e-3), good)
    last = table(the_sweep(outputs))[-1]
    assert last["state"] == "failed" and "became non-finite" in last["error"]
    assert not list(the_sweep(outputs).glob("batches")) and len(trained_runs(outputs)) == 1


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_a_member_that_is_no_number_drops_out_alone(agent, env, rlx):
    if (agent, env) == ("dqn", "pendulum"):
        pytest.skip("DQN's actions are discrete")
    words = [f"agent={agent}", f"env={env}", *SIZES, *small(agent), "agent.max_grad_norm=null"]
    assert rlx("train", *words, "agent.learning_rate=1e-3", "outputs=alone").code == 0
    (single,) = trained_runs("alone")
    batch = rlx("train", "-m", *words, "agent.learning_rate=1e-3,1e30", VECTOR)
    assert batch.code == 1 and "became non-finite" in batch.err and "1 of 2 jobs" in batch.err
    assert "one of the batch drops out" in batch.out
    assert_same(single, run_with(learning_rate=1e-3))
    last = table(the_sweep())[-1]
    assert last["state"] == "failed" and "became non-finite" in last["error"]
    assert not list(the_sweep().glob("batches")) and len(trained_runs()) == 1
    log = the_sweep() / f"jobs/{last['job']}.log"
    assert "became non-finite" in log.read_text()


def test_a_sweep_of_which_all_drop_out(rlx):
    words = ("agent.max_grad_norm=null", "agent.learning_rate=1e30,1e31")
    result = rlx("train", "-m", *PPO, *words, VECTOR)
    assert result.code == 1 and "2 of 2 jobs failed" in result.err
    assert all("became non-finite" in row["error"] for row in table(the_sweep()))
    assert not list(the_sweep().glob("batches")) and not trained_runs()


def break_from(monkeypatch, step: int) -> None:
    """Make a metric of the first member NaN from a step on, while there are two."""
    note = Log.note

    def noting(self, metrics, now):
        if metrics and now >= step and len(self.bad) == 4:
            name, value = next(iter(metrics.items()))
            metrics[name] = torch.where(
                torch.arange(len(value), device=value.device) < 2, torch.nan, value
            )
        return note(self, metrics, now)

    monkeypatch.setattr(Log, "note", noting)


@pytest.mark.parametrize("killed_at", [None, 600, 800])
def test_a_member_that_dropped_out_after_a_checkpoint(killed_at, rlx, alone, monkeypatch):
    """The first member, at step 400; the next checkpoint, without it, is at 512."""
    break_from(monkeypatch, 400)
    words = ("train", "-m", *PPO, RATES, VECTOR)
    if killed_at is not None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            stop_at(patch, killed_at, kill)
            rlx(*words)
    result = rlx(*words)
    assert result.code == 1, result.err
    assert_same(run_with("alone", learning_rate=1e-3), run_with(learning_rate=1e-3))
    first, second = table(the_sweep())
    assert first["state"] == "completed" and second["state"] == "failed"
    assert "of seed 0 became non-finite at step 4" in second["error"]
    assert not list(the_sweep().glob("batches")) and len(trained_runs()) == 1
    # What failed is tried again, alone now.
    again = rlx(*words)
    assert again.code == 0 and "1 of 2 done" in again.out
    assert {row["state"] for row in table(the_sweep())} == {"completed"}
    assert {row["error"] for row in table(the_sweep())} == {""}
    assert_same_sweeps("alone", "outputs")


def test_a_compiled_batch_goes_on_without_a_member(rlx, monkeypatch):
    monkeypatch.setattr(compiled, "inductor", compiled.interpreted)
    words = (*PPO, "agent.max_grad_norm=null", "device.compile=true")
    assert rlx("train", *words, "agent.learning_rate=1e-3", "outputs=alone").code == 0
    result = rlx("train", "-m", *words, "agent.learning_rate=1e-3,1e30", VECTOR)
    assert result.code == 1 and "1 of 2 jobs failed" in result.err
    assert "compiled step" in result.out
    (single,) = trained_runs("alone")
    assert_same(single, run_with(learning_rate=1e-3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_behind_the_last_step_stops_a_sweep(number, rlx, monkeypatch):
    """Nothing would look at it any more, and the next job would begin."""
    close = Training._close

    def closing(self, progress):
        send(number)()
        close(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_close", closing)
        result = rlx("train", "-m", *PPO, RATES)
    assert result.code == 128 + number
    assert [job.status for job in jobs()] == ["interrupted", "waiting"]
    assert rlx("resume", the_sweep()).code == 0


# Batches that are stopped.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_batch_goes_on(number, rlx, alone, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 512, send(number))
        result = rlx("train", "-m", *PPO, RATES, VECTOR)
    assert result.code == 128 + number
    line = f"0 of 2 done; it goes on with: rlx resume {the_sweep()}"
    assert result.err.strip().endswith(line)
    assert [job.status for job in jobs()] == ["interrupted", "interrupted"]
    assert not trained_runs()
    whole = rlx("resume", the_sweep())
    assert whole.code == 0 and "resumes  at step 516" in whole.out
    assert_same_sweeps("alone", "outputs")
    assert not list(the_sweep().glob("batches"))


def test_a_batch_that_ends_its_process_holds_up_no_other(rlx, monkeypatch):
    words = ("train", "-m", *PPO, RATES, "steps=192,128", VECTOR)
    stop_at(monkeypatch, 160, kill)
    for _ in range(2):
        with pytest.raises(Killed):
            rlx(*words)
    done = {job.settings["steps"]: job.status for job in jobs()}
    assert done == {"192": "interrupted", "128": "completed"}


@pytest.mark.parametrize("stop", [kill, send(signal.SIGTERM)])
@pytest.mark.parametrize("place", ["Run.log", "Checkpoints.save", "Run.complete", "Job.write"])
def test_a_batch_stopped_while_it_is_taken_apart(place, stop, rlx, three_alone, monkeypatch):
    """Of three jobs, one is done, one is half done, one has no run."""
    words = ("train", "-m", *PPO, THREE)
    kind = {"Run": Run, "Checkpoints": Checkpoints, "Job": Job}[place.partition(".")[0]]
    name = place.partition(".")[2]
    act = getattr(kind, name)

    def stopping(self, *arguments, **options):
        result = act(self, *arguments, **options)
        if len(trained_runs()) == 2:
            stop()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, stopping)
        if stop is kill:
            with pytest.raises(Killed):
                rlx(*words, VECTOR)
        else:
            assert rlx(*words, VECTOR).code == 128 + signal.SIGTERM
    done = {job.id: job.run_path for job in jobs() if job.finished}
    assert done
    result = rlx(*words, VECTOR)
    assert result.code == 0, result.err
    assert done.items() <= {job.id: job.run_path for job in jobs()}.items()
    assert_same_sweeps("alone", "outputs")
    assert len(trained_runs()) == 3 and not list(the_sweep().glob("batches"))


def test_a_vector_sweep_killed_at_any_moment_says_the_same_in_the_end(rlx, request):
    """SIGKILL, four times: nothing finished is lost or done twice, and the table is the same."""
    words = (*PPO, *TWELVE)
    assert rlx("train", "-m", *words, VECTOR, "sweep=s", "outputs=whole").code == 0
    expected = table(Path("whole/sweeps/s"))
    command = [sys.executable, "-m", "rlx", "train", "-m", *words, VECTOR, "sweep=s"]
    moments = random.Random(request.config.getoption("--trials"))
    sweep = Path("outputs/sweeps/s")
    finished = killed_at_any_moment(command, sweep, lambda: moments.uniform(1, 4))
    assert rlx("train", "-m", *words, VECTOR, "sweep=s").code == 0
    now = {job.id: str(job.run_path) for job in Sweep(sweep).jobs()}
    assert finished.items() <= now.items()
    assert table(sweep) == expected
    assert len(trained_runs()) == 12 and not list(sweep.glob("batches"))


def test_a_batch_of_another_process_is_left_to_it(rlx):
    words = ("train", "-m", *PPO, "seeds=0:2,2:4", VECTOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "do", lambda *_: None)
        assert rlx(*words).code == 1
    with jobs()[0].lock(), jobs()[1].lock():
        result = rlx(*words)
    assert result.code == 2 and "another process has all that is left, 2 of 2" in result.err
    assert len(result.err.splitlines()) == 1 and not trained_runs()


def test_fresh_begins_a_batch_anew(rlx, alone, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 512, send(signal.SIGINT))
        assert rlx("train", "-m", *PPO, RATES, VECTOR).code == 130
    result = rlx("train", "-m", *PPO, RATES, VECTOR, "fresh=true")
    assert result.code == 0 and "resumes" not in result.out
    assert_same_sweeps("alone", "outputs")
    assert not list(the_sweep().glob("batches"))


def test_a_stopped_batch_is_no_run_of_its_own(rlx, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 512, send(signal.SIGINT))
        assert rlx("train", "-m", *PPO, RATES, VECTOR).code == 130
    (batch,) = the_sweep().glob("batches/train/*/*")
    for words in (("resume",), ("evaluate",), ("attack",), ("export", "policy.onnx")):
        result = rlx(words[0], batch, *words[1:])
        assert result.code == 2 and f"rlx resume {the_sweep().absolute()}" in result.err
        assert len(result.err.strip().splitlines()) == 1
    found = rlx("resume", "outputs")
    assert found.code == 2 and "neither a run nor a folder" in found.err


# Vector sweeps and other sweeps.


def test_the_basic_launcher_ends_what_a_batch_began(rlx, alone, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 512, send(signal.SIGINT))
        assert rlx("train", "-m", *PPO, RATES, VECTOR).code == 130
    result = rlx("train", "-m", *PPO, RATES)
    assert result.code == 0, result.err
    assert_same_sweeps("alone", "outputs")
    assert len(trained_runs()) == 2 and not list(the_sweep().glob("batches"))


@pytest.mark.parametrize("stop", [kill, send(signal.SIGINT)])
def test_a_batch_ends_what_the_basic_launcher_began(stop, rlx, monkeypatch):
    """Of four jobs one is done and one half done: it goes on alone, the others are a batch."""
    words = ("train", "-m", *PPO, "agent.learning_rate=1e-2,1e-3", "agent.discount=0.9,0.99")
    assert rlx(*words, "outputs=alone").code == 0
    step = Training._vector_step

    def stopped(self):
        if self.step == 512 and len(trained_runs()) == 2:
            stop()
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_vector_step", stopped)
        with suppress(Killed):
            assert rlx(*words).code == 130
    begun = trained_runs()
    result = rlx(*words, VECTOR)
    assert result.code == 0, result.err
    order = "2, 1" if stop is kill else "1, 2"  # what ended its process comes last
    assert f"3 jobs in 2 batches of {order}; 1 of them" in result.out
    assert "resumes  at step 512" in result.out or "resumes  at step 516" in result.out
    assert set(begun) < set(trained_runs()) and len(trained_runs()) == 4
    assert_same_sweeps("alone", "outputs")


# A job's run is one like any other.


def test_the_runs_of_a_batch_are_runs_like_any_other(rlx, alone):
    words = ("agent=dqn", "env=cartpole", *SIZES, *small("dqn"), "agent.discount=0.9,0.99")
    for launch, outputs in (((), "one"), ((VECTOR,), "two")):
        assert rlx("train", "-m", *words, *launch, f"outputs={outputs}").code == 0
    runs = [run_with(outputs, discount=0.99) for outputs in ("one", "two")]
    for words in (("steps=640",), ("seeds=3",), ("steps=800",)):
        for run in runs:
            result = rlx("resume", run, *words)
            assert result.code == 0, result.err
        assert_same(*runs)
    for command in ("evaluate", "attack"):
        keys = {
            "evaluate": ("checkpoint=160",),
            "attack": ("attack=noise", "eps=0:0.1:0.1", "scale=std"),
        }
        results = [rlx(command, run, "episodes=2", *keys[command]) for run in runs]
        assert [result.code for result in results] == [0, 0], results[1].err
    if importlib.util.find_spec("onnx"):
        assert rlx("export", runs[1], "policy.onnx").code == 0
    summary = json.loads((runs[1] / "summary.json").read_text())
    assert math.isfinite(summary["wall_s"]) and summary["seeds"] == [0, 1, 2]


def test_numbers_of_each_seed_and_new_seeds(rlx):
    run = rlx("train", *PPO, "agent.learning_rate=[1e-3,1e-2]").run
    before = sorted(run.rglob("*"))
    result = rlx("resume", run, "seeds=3")
    assert result.code == 2 and "agent.learning_rate has a number for each seed" in result.err
    assert len(result.err.strip().splitlines()) == 1 and sorted(run.rglob("*")) == before


def test_numbers_of_each_seed_and_a_stop_rule(rlx):
    """Seeds stop one after the other; each checkpoint is of those that still learnt."""
    words = ("agent=hdqn", "env=cartpole", *SIZES, *small("hdqn"), "steps=1600", "num_envs=1")
    words += ("agent.goal_steps=[1,7]", "checkpoint_every=200", stop_rule(5, 30))
    result = rlx("train", *words)
    assert result.code == 0, result.err
    checkpoints = Checkpoints(result.run)
    numbers = set()
    for name in [*checkpoints.steps(), "best"]:
        rows = checkpoints.counters(name).get("rows", [])
        numbers.add(tuple(rows))
        evaluated = rlx("evaluate", result.run, f"checkpoint={name}", "episodes=2")
        assert evaluated.code == (0 if rows else 2), evaluated.err
        if rows:
            opened = open_runs([Run(result.run)], name, torch.device("cpu"))
            assert opened.policy.goal_steps.tolist() == [(1, 7)[row] for row in rows]
    assert {(0, 1), (0,)} <= numbers or {(0, 1), (1,)} <= numbers
