"""Trackers get what metrics.jsonl has, each step once, and none of their faults ends a run."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from rlx.runs.run import Run
from rlx.statistics import iqm

ROOT = Path(__file__).parents[1]
TRAIN = [
    "train",
    "agent=dqn",
    "env=cartpole",
    *TINY,
    "seeds=3",
    "agent.learning_starts=64",
    "agent.hidden=[16]",
    "agent.n_steps=2",
]
FAKE = '''
import json, os, signal, threading, time
from dataclasses import dataclass
from rlx.trackers.tracker import Tracker


@dataclass
class Fake(Tracker):
    """Writes down what it is told, in a file beside the run's."""

    raises: str | None
    """The method that raises."""
    kills: int | None
    """Kills the process as soon as a later step than this one is logged."""

    def tell(self, method, *values):
        if method == self.raises:
            raise ConnectionError("no network")
        with open(self.path / "fake.jsonl", "a") as file:
            file.write(json.dumps([method, *values]) + "\\n")

    def begin(self, run):
        self.path = run.path
        self.tell("begin", run.name, run.command, run.group, dict(run.config))
        if self.kills is not None:
            threading.Thread(target=self.kill, daemon=True).start()
        return "in fake.jsonl"

    def kill(self):
        while True:
            time.sleep(0.001)
            file = self.path / "metrics.jsonl"
            lines = file.read_text().split("\\n")[:-1] if file.exists() else []
            if lines and json.loads(lines[-1])["step"] > self.kills:
                os.kill(os.getpid(), signal.SIGKILL)

    def last_step(self, name):
        if self.raises == "last_step":
            raise ConnectionError("no network")
        told = map(json.loads, (self.path / "fake.jsonl").read_text().splitlines())
        steps = [one[1] for one in told if one[0] == "log" and name in one[2]]
        return max(steps, default=-1)

    def log(self, step, scalars):
        self.tell("log", step, dict(scalars))

    def figure(self, name, file):
        self.tell("figure", name, file.stat().st_size)

    def result(self, numbers, header, rows):
        self.tell("result", dict(numbers), list(header), list(rows))

    def end(self, status):
        self.tell("end", status)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A user's own trackers `fake` and `other`: one Python file, and a YAML file for each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/tracker").mkdir(parents=True)
    (tmp_path / "fake_tracker.py").write_text(FAKE)
    keys = "  _target_: fake_tracker.Fake\n  raises: null\n  kills: null\n"
    (tmp_path / "conf/tracker/fake.yaml").write_text(f"fake:\n{keys}")
    return tmp_path


def told(run: Path, method: str) -> list[list]:
    """What the fake tracker was told by a method."""
    lines = (run / "fake.jsonl").read_text().splitlines()
    return [values for name, *values in map(json.loads, lines) if name == method]


def logged(run: Path) -> dict[tuple[int, str], float]:
    """(step, name) → value of every scalar that trackers should have, from metrics.jsonl."""
    rows = Run(run).metrics()
    values = {}
    for row in rows:
        for name in row.keys() - {"step", "seed"}:
            if np.isfinite(row[name]):
                values[row["step"], f"seed-{row['seed']}/{name}"] = row[name]
    for step in {row["step"] for row in rows}:
        returns = [row["return/mean"] for row in rows if row["step"] == step]
        values[step, "iqm/return/mean"] = float(iqm(np.array(returns)))
    return values


def assert_each_once(scalars: list[tuple[int, str, float]], run: Path, rel: float = 1e-12):
    """`scalars`, as (step, name, value), are those of the run's log, each of them once."""
    values = {(step, name): value for step, name, value in scalars}
    assert len(values) == len(scalars)
    expected = logged(run)
    seeds = {key for key in values if key[1].startswith("seed-")}
    assert seeds == {key for key in expected if key[1].startswith("seed-")}
    for key, value in expected.items():
        if "time/" not in key[1]:  # of a step that was made twice
            assert values[key] == pytest.approx(value, rel=rel), key


def fake_scalars(run: Path) -> list[tuple[int, str, float]]:
    return [(step, name, one[name]) for step, one in told(run, "log") for name in one]


def test_a_users_own_tracker_is_told_all_of_a_training(fake, rlx):
    done = rlx(*TRAIN, "tracker=fake")
    assert done.code == 0 and "in fake.jsonl" in done.out
    assert_each_once(fake_scalars(done.run), done.run)
    ((name, command, group, config),) = told(done.run, "begin")
    assert name == f"train-dqn-cartpole-{done.run.name}-3-seeds"
    assert (command, group) == ("train", "dqn-cartpole")
    assert config["agent"]["hidden"] == [16] and config["steps"] == 600
    assert told(done.run, "figure") == [["learning", (done.run / "learning.png").stat().st_size]]
    ((numbers, header, rows),) = told(done.run, "result")
    assert numbers["final/return"] == done.summary["return"]["iqm"]
    assert header == ["seed", "return", "kept at step"]
    assert [float(row[1]) for row in rows] == done.summary["return"]["per_seed"]
    assert told(done.run, "end") == [["completed"]]


def test_a_tracker_is_told_all_of_an_attack(fake, rlx):
    rlx(*TRAIN)
    done = rlx("attack", "attack=fgsm", "eps=[0,0.5]", "episodes=4", "scale=std", "tracker=fake")
    assert done.code == 0, done
    curve = {name: value for step, name, value in fake_scalars(done.run) if step == 1}
    (cell,) = [cell for cell in done.summary["cells"] if cell["eps"] == 0.5]
    assert curve["iqm/eps"] == 0.5
    assert curve[f"iqm/return/{cell['head']}"] == pytest.approx(cell["return"]["iqm"])
    assert curve[f"seed-2/return/{cell['head']}"] == cell["return"]["per_seed"][2]
    ((numbers, header, rows),) = told(done.run, "result")
    area = done.summary["area"][cell["head"]]  # null: the policy is no better than random play
    assert numbers == ({} if area is None else {f"area/{cell['head']}": area})
    assert "eps" in header and len(rows) == 2
    assert [name for name, _ in told(done.run, "figure")] == ["robustness"]


@pytest.mark.parametrize("method", ["begin", "last_step", "log", "figure", "result", "end"])
def test_a_tracker_that_raises_ends_nothing_and_is_told_once(method, fake, rlx):
    text = (fake / "conf/tracker/fake.yaml").read_text()
    (fake / "conf/tracker/other.yaml").write_text(
        text.replace("fake:", "other:").replace("raises: null", f"raises: {method}")
    )
    done = rlx(*TRAIN, "tracker=[other,fake]")
    assert done.code == 0
    assert done.out.count("no network") == 1
    assert "warning  tracker other failed and is left out" in done.out
    wanted = [one for one in fake_scalars(done.run) if one[0] == 600]
    assert wanted and told(done.run, "end")[-1] == ["completed"]


def start(arguments: list[str], folder: Path) -> int:
    """Run a command in a process of its own; returns its exit code."""
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "rlx", *arguments]
    environment = os.environ | {"PYTHONPATH": places}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode


def killed(fake: Path, trackers: str) -> Path:
    """A run that was killed behind its first checkpoint, when later steps had been logged."""
    line = [*TRAIN, "checkpoint_every=300", "eval_every=100", f"tracker=[fake,{trackers}]"]
    code = start([*line, "tracker.fake.kills=400"], fake)
    assert code == -signal.SIGKILL
    (run,) = (fake / "outputs/train/dqn-cartpole").iterdir()
    return run


def test_a_killed_run_that_goes_on_has_each_step_once(fake, rlx):
    run = killed(fake, "none")
    before = {step for step, _, _ in fake_scalars(run)}
    assert before == {step for step, _ in logged(run) if step <= 300}  # behind it nothing is final
    done = rlx("resume", run, "tracker=fake")
    assert done.code == 0, done
    assert_each_once(fake_scalars(run), run)


def test_a_tracker_may_come_later_and_go(fake, rlx):
    run = rlx(*TRAIN).run
    done = rlx("resume", run, "steps=900", "tracker=fake")
    assert done.code == 0, done
    assert_each_once(fake_scalars(run), run)
    assert rlx("resume", run, "steps=1200", "tracker=none").code == 0
    assert max(step for step, _, _ in fake_scalars(run)) == 900


def test_jobs_that_are_trained_as_one_batch_are_told_one_by_one(fake, rlx):
    line = [*TRAIN, "-m", "agent.learning_rate=1e-3,1e-4", "hydra/launcher=vector", "sweep=batch"]
    assert rlx(*line, "tracker=fake").code == 0
    runs = list(Path("outputs/train/dqn-cartpole").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert_each_once(fake_scalars(run), run)
        assert told(run, "end") == [["completed"]]
    # It is the same sweep, and done, with another tracker.
    again = rlx(*line, "tracker=none")
    assert again.code == 0 and len(list(Path("outputs/train/dqn-cartpole").iterdir())) == 2


def test_a_run_that_gets_more_seeds_is_another_run_for_trackers(fake, rlx):
    run = rlx(*TRAIN, "tracker=fake").run
    assert rlx("resume", run, "seeds=4").code == 0
    assert_each_once(fake_scalars(run), run)
    ((name, *_),) = told(run, "begin")
    assert name == f"train-dqn-cartpole-{run.name}-4-seeds"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tracker=tensorbord"], "Did you mean 'tensorboard'?"),
        (["tracker=[fake,tensorbord]"], "tracker=tensorbord: no such option"),
        (["tracker=fake", "tracker.fake.raisses=log"], "tracker.fake.raisses: unknown key"),
        (["tracker=fake", "tracker.fake.kills=many"], "tracker.fake.kills=many: expected a whole"),
        (["tracker=fake", "tracker.fake=3"], "tracker.fake=3: expected keys with values"),
        (["tracker=fake", "tracker.fake._target_=json.JSONDecoder"], "expected a subclass of"),
        (["tracker=missing"], 'nothing_of_this_name is not installed; pip install "rlx[missing]"'),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_written(words, message, fake, rlx):
    text = FAKE.replace("    raises: str", '    package = "nothing_of_this_name"\n    raises: str')
    (fake / "missing_tracker.py").write_text(text)
    (fake / "nothing_of_this_name").mkdir()
    (fake / "conf/tracker/missing.yaml").write_text(
        "missing:\n  _target_: missing_tracker.Fake\n  raises: null\n  kills: null\n"
    )
    for command in (TRAIN, ["attack"]):
        done = rlx(*command, *words)
        assert done.code == 2 and message in done.err, done
        assert done.err.count("\n") == 1
        assert not Path("outputs").exists()


# The services, with their local stores, where their extras are installed.


def test_tensorboard_reads_each_step_once(fake, rlx):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = killed(fake, "tensorboard")
    assert rlx("resume", run, "tracker=tensorboard").code == 0
    scalars = []
    for folder in (run / "tensorboard").iterdir():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                scalars.append((event.step, f"{folder.name}/{tag}", event.value))
    final = [value for _, name, value in scalars if name == "iqm/final/return"]
    assert final == [pytest.approx(json.loads((run / "summary.json").read_text())["return"]["iqm"])]
    assert_each_once(scalars, run, rel=1e-6)  # they are float32
    events = EventAccumulator(str(run / "tensorboard/iqm")).Reload()
    assert events.Tags()["images"] == ["learning"]
    texts = events.Tags()["tensors"]
    assert "config/text_summary" in texts and "result/text_summary" in texts


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format behind a header of 7 bytes."""
    block = 32768
    place = 7
    parts = []
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left  # no header fits in the rest of a block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb_keeps_one_offline_run_with_each_step_once(fake, rlx, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = killed(fake, "wandb")
    done = rlx("resume", run, "tracker=wandb")
    assert done.code == 0 and "left out" not in done.out, done.out
    wandb.teardown()  # as the end of the process does: waits until the file is written
    (folder,) = (fake / "outputs/wandb").glob("offline-run-*")
    assert f"wandb sync {folder.absolute()}" in done.out
    (file,) = folder.glob("*.wandb")
    scalars = []
    summary = {}
    for record in map(Record.FromString, records(file.read_bytes())):
        items = [
            (item.key or "/".join(item.nested_key), json.loads(item.value_json))
            for item in record.history.item
        ]
        step = record.history.step.num
        scalars += [(step, *item) for item in items if item[0].startswith(("seed-", "iqm/"))]
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert_each_once(scalars, run)
    returns = json.loads((run / "summary.json").read_text())["return"]
    assert summary["final/return"] == pytest.approx(returns["iqm"])


def test_mlflow_has_each_step_once_in_its_local_store(fake, rlx, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = killed(fake, "mlflow")
    assert rlx("resume", run, "tracker=mlflow").code == 0
    client = MlflowClient(f"sqlite:///{fake}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("rlx")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["agent.hidden"] == "[16]"
    names = [name for name in found.data.metrics if not name.startswith("final/")]
    scalars = [
        (metric.step, name, metric.value)
        for name in names
        for metric in client.get_metric_history(found.info.run_id, name)
    ]
    assert_each_once(scalars, run)
    returns = json.loads((run / "summary.json").read_text())["return"]
    assert found.data.metrics["final/return"] == returns["iqm"]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.yaml", "learning.png", "result.csv"}


def test_trackio_has_each_step_once_in_its_local_store(fake, rlx, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    # In Trackio this is read once, when it is imported.
    monkeypatch.setenv("TRACKIO_DIR", str(fake / "trackio"))
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", fake / "trackio")
    run = killed(fake, "trackio")
    done = rlx("resume", run, "tracker=trackio")
    assert done.code == 0 and done.run == run
    logs = SQLiteStorage.get_logs("rlx", f"train-dqn-cartpole-{run.name}-3-seeds")
    scalars = [
        (log["step"], name, log[name])
        for log in logs
        for name in log
        if name.startswith(("seed-", "iqm/"))
    ]
    assert_each_once(scalars, run)
    returns = json.loads((run / "summary.json").read_text())["return"]
    assert [log["final/return"] for log in logs if "final/return" in log] == [returns["iqm"]]
    assert [log for log in logs if "learning" in log] and [log for log in logs if "result" in log]
