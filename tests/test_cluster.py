"""Sweeps on Hydra's launchers: what is stopped goes on, and the table is as if nobody had.

The tests marked `slurm` start a Slurm of one node (tests/slurm.sh), those marked `ray` a local Ray.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlx.sweeps import engines

SHORT = (
    "-m",
    "agent=dqn",
    "seeds=1",
    "steps=3000",
    "eval_every=500",
    "checkpoint_every=500",
    "eval_episodes=5",
    "final_episodes=5",
    "device=cpu",
    "device.compile=false",
)
SWEEP = (
    *SHORT,
    "env=cartpole",
    "agent.learning_rate=1e-3,3e-4,1e-4",
    "agent.discount=0.99,0.95",
)
"""Six jobs of some seconds each."""
SCRIPT = Path(__file__).with_name("slurm.sh")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test where a plugin of Hydra's is not installed."""
    try:
        missing = importlib.util.find_spec(f"hydra_plugins.{package}") is None
    except ModuleNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


class Launched:
    """A sweep that runs in a process of its own, and session, as one from a terminal would."""

    def __init__(self, folder: Path, *words: str | Path):
        self.folder = folder
        self.output = folder / "output"
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlx", "train", *words],
                cwd=folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"},
            )

    @property
    def path(self) -> Path:
        """The folder of the sweep."""
        (path,) = self.folder.glob("outputs/sweeps/*")
        return path

    def jobs(self) -> list[dict]:
        """The jobs as they are on disk, in order."""
        files = self.folder.glob("outputs/sweeps/*/jobs/*.json")
        return sorted((json.loads(file.read_text()) for file in files), key=lambda j: j["number"])

    def at_work(self) -> list[int]:
        """The numbers of the jobs that are being trained, and have a checkpoint."""
        running = [job for job in self.jobs() if job["state"] == "running" and job["run_path"]]
        return [
            job["number"]
            for job in running
            if any((self.path / job["run_path"] / "checkpoints").glob("0*"))
        ]

    def wait_for(self, what: Callable[[], object], seconds: float = 60) -> object:
        """What `what` returns once that is true; the sweep goes on meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = what()
            if value:
                return value
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {self.output.read_text()}")

    def end(self, seconds: float = 180) -> int:
        """Wait until it has ended; returns the exit code."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def launched(tmp_path):
    """launched("hydra/launcher=joblib") starts the sweep in a folder of its own."""
    sweeps = []

    def launch(*words: str | Path) -> Launched:
        folder = tmp_path / f"sweep-{len(sweeps)}"
        folder.mkdir()
        sweeps.append(Launched(folder, *words))
        return sweeps[-1]

    yield launch
    for sweep in sweeps:
        sweep.kill()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    """The table of the sweep that nobody stops, one job after the other."""
    sweep = Launched(tmp_path_factory.mktemp("uninterrupted"), *SWEEP)
    assert sweep.end() == 0, sweep.output.read_text()
    return table(sweep)


def table(sweep: Launched) -> str:
    """The text of sweep.csv, of which every job is trained once."""
    assert [job["state"] for job in sweep.jobs()] == ["completed"] * 6
    assert len(list(sweep.folder.glob("outputs/train/*/*"))) == 6, "no job has been begun anew"
    return (sweep.path / "sweep.csv").read_text()


@needs("hydra_joblib_launcher")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_joblib_is_stopped_and_goes_on(number, launched, uninterrupted, tmp_path):
    words = (*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep = launched(*words)
    sweep.wait_for(lambda: len(sweep.at_work()) == 2)
    if number == signal.SIGINT:  # Ctrl-C reaches the workers too
        os.killpg(sweep.process.pid, number)
    else:
        sweep.process.send_signal(number)
    assert sweep.end() == 128 + number
    assert "goes on with: rlx resume outputs/sweeps/" in sweep.output.read_text()
    stopped = [job for job in sweep.jobs() if job["state"] == "interrupted"]
    assert len(stopped) == 2
    for job in stopped:
        run = sweep.path / job["run_path"]
        step = json.loads((run / "meta.json").read_text())["step"]
        assert (run / "checkpoints" / f"{step:09d}").is_dir(), "what it had learnt is saved"
    again = Launched(sweep.folder, *words)
    assert again.end() == 0, again.output.read_text()
    assert again.output.read_text().count("resumes") == 2
    assert table(again) == uninterrupted


FAULTY = """
import itertools
from dataclasses import dataclass

from rlx.envs.cartpole import CartPole

steps = itertools.count()


@dataclass(frozen=True)
class Faulty(CartPole):
    fails: bool = False

    def transition(self, state, action, draws):
        if self.fails and next(steps) == 100:
            raise RuntimeError("the cart is broken")
        return super().transition(state, action, draws)
"""


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=needs("hydra_joblib_launcher")),
        pytest.param("submitit_local", marks=needs("hydra_submitit_launcher")),
    ],
)
def test_jobs_elsewhere_know_the_users_folder_and_their_failures_are_told(
    launcher, launched, tmp_path
):
    (tmp_path / "project/conf/env").mkdir(parents=True)
    (tmp_path / "project/faulty.py").write_text(FAULTY)
    node = "_target_: faulty.Faulty\nmax_episode_steps: 500\nfails: false\n"
    (tmp_path / "project/conf/env/faulty.yaml").write_text(node)
    words = ("-cd", tmp_path / "project/conf", f"hydra/launcher={launcher}")
    sweep = launched(*SHORT, *words, "env=faulty", "env.fails=false,true")
    assert sweep.end() == 1
    assert [job["state"] for job in sweep.jobs()] == ["completed", "failed"]
    told = sweep.output.read_text()
    assert "the cart is broken" in told and "1 of 2 jobs failed" in told


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """A Slurm of one node."""
    if shutil.which("sbatch") is None or shutil.which("munged", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want root")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=60)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


def asked(*words: str) -> list[str]:
    """The lines that a command of Slurm's prints."""
    return subprocess.run(words, capture_output=True, text=True).stdout.splitlines()


def begin_at_once() -> None:
    """Let jobs that were queued again begin, for which Slurm waits two minutes."""
    for job in asked("squeue", "--noheader", "--states=PENDING", "--format=%i"):
        if "[" not in job:  # which is the rest of an array
            asked("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.slow
@pytest.mark.slurm
@needs("hydra_submitit_launcher")
def test_a_slurm_array_goes_on_after_its_jobs_were_queued_again(slurm, launched, uninterrupted):
    sweep = launched(*SWEEP, "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    first, second = sweep.wait_for(lambda: sweep.at_work()[:2] if len(sweep.at_work()) > 1 else [])
    array = asked("squeue", "--noheader", "--format=%F")[0]
    # An operator's or a preemption's way; SIGTERM comes first.
    asked("scontrol", "requeue", f"{array}_{first}")
    # What comes ahead of a time limit.
    ahead = subprocess.Popen(["scancel", "--signal=USR2", f"{array}_{second}"])
    deadline = time.monotonic() + 180  # scancel tries again and again while the job is queued
    while sweep.process.poll() is None and time.monotonic() < deadline:
        begin_at_once()
        time.sleep(1)
    ahead.kill()
    ahead.wait()
    assert sweep.end(1) == 0, sweep.output.read_text()
    assert table(sweep) == uninterrupted
    logs = [
        (sweep.path / f".submitit/{array}_{number}/{array}_{number}_0_log.out").read_text()
        for number in (first, second)
    ]
    assert "Requeued job" in logs[1] and all("resumes  at step" in log for log in logs)


@needs("hydra_submitit_launcher")
def test_no_slurm_on_this_machine(rlx, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = rlx("train", *SWEEP, "hydra/launcher=submitit_slurm")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "hydra/launcher=submitit_slurm: no Slurm on this machine" in result.err
    assert not Path("outputs").exists()


@needs("hydra_submitit_launcher")
@pytest.mark.parametrize(
    ("script", "said"),
    [("echo Slurmctld is DOWN; exit 1", "Slurmctld is DOWN"), ("exec sleep 60", "nothing within")],
)
def test_a_slurm_that_does_not_answer(script, said, rlx, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "PING_S", 1)
    for program in ("sbatch", "scontrol"):
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = rlx("train", *SWEEP, "hydra/launcher=submitit_slurm")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"Slurm does not answer (scontrol ping: {said}" in result.err
    assert not Path("outputs").exists()


@needs("hydra_joblib_launcher")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=jobs"], "hydra/launcher=jobs: no such launcher. There are: basic, "),
        (["hydra.launcher.cpus=2"], "hydra.launcher.cpus: unknown key of this launcher. All: rlx "),
        (["hydra.launcher.n_jobs=many"], "hydra.launcher.n_jobs=many: Value 'many' of type 'str'"),
    ],
)
def test_wrong_keys_of_a_launcher(words, message, rlx):
    if not words[0].startswith("hydra/launcher"):
        words = ["hydra/launcher=joblib", *words]
    result = rlx("train", *SWEEP, *words)
    assert result.code == 2 and result.err.count("\n") == 1
    assert message in result.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")]
)
def test_a_launcher_that_is_not_installed_names_its_extra(launcher, extra, rlx, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = rlx("train", *SWEEP, f"hydra/launcher={launcher}")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f'hydra/launcher={launcher}: is not installed; pip install "rlx[{extra}]"' in result.err
    assert not Path("outputs").exists()


def workers_of_ray() -> list[int]:
    """The processes in which Ray does jobs of a sweep."""
    result = subprocess.run(["pgrep", "-f", "ray::_run_job"], capture_output=True, text=True)
    return [int(line) for line in result.stdout.split()]


@pytest.mark.slow
@pytest.mark.ray
@needs("hydra_ray_launcher")
def test_ray_goes_on_after_its_workers_were_killed(launched, uninterrupted):
    sweep = launched(*SWEEP, "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
    sweep.wait_for(lambda: len(sweep.at_work()) == 2 and len(workers_of_ray()) == 2)
    gentle, hard = workers_of_ray()
    os.kill(gentle, signal.SIGTERM)
    os.kill(hard, signal.SIGKILL)
    assert sweep.end() == 0, sweep.output.read_text()
    assert sweep.output.read_text().count("resumes") == 2
    assert table(sweep) == uninterrupted
