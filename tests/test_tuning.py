"""rlx tune: Optuna's trials are jobs of a sweep, and the best is kept only if it is better."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import compose
from omegaconf import OmegaConf

from rlx.conf import group_files
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.sweeps.sweep import Sweep
from rlx.training import tuning
from rlx.training.config import validated
from rlx.training.loop import Training
from rlx.training.space import Space, Span

optuna = pytest.importorskip("optuna", minversion="5", reason="needs the extra tune")

SMALL = (
    "agent=ppo",
    "env=cartpole",
    "agent.hidden=[8]",
    "agent.rollout_steps=16",
    "agent.minibatches=2",
    "agent.epochs=2",
    "steps=512",
    "num_envs=4",
    "eval_every=128",
    "eval_episodes=2",
    "final_episodes=3",
    "checkpoint_every=128",
    "seeds=2",
    "final_seeds=[7,8,9]",
    "search.num_envs=null",
    "search.agent.rollout_steps=null",
)


def the_sweep() -> Path:
    (sweep,) = Path("outputs/sweeps").iterdir()
    return sweep


def trials(sweep: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(sweep / "study.log"))
    )
    return optuna.load_study(study_name=sweep.name, storage=storage).trials


def trial_jobs(sweep: Path) -> dict[str, object]:
    return {job.id: job for job in Sweep(sweep).jobs() if job.settings["stage"] == "trial"}


def states(sweep: Path) -> list[str]:
    return [trial.state.name for trial in trials(sweep)]


def told(sweep: Path) -> dict[int, float | None]:
    return {trial.number: trial.value for trial in trials(sweep) if trial.state.is_finished()}


def test_a_trial_is_a_job_with_a_run(rlx):
    result = rlx("tune", *SMALL, "trials=4", "batch=2", "pruner=none")
    assert result.code == 0, result.err
    sweep = the_sweep()
    assert states(sweep) == ["COMPLETE"] * 4
    jobs = trial_jobs(sweep)
    for trial in trials(sweep):
        job = jobs[trial.user_attrs["job"]]
        run = job.run
        assert job.status == "completed" and str(run.path) == trial.user_attrs["run"]
        assert run.path.is_relative_to(sweep)
        assert run.config.seeds == [0, 1]
        rate = run.config.agent.learning_rate
        assert rate == pytest.approx(trial.params["agent.learning_rate"], rel=1e-3)
        # What is told is what the weights that the run keeps returned when they were kept.
        kept = run.summary()["kept"]["value"]
        assert trial.value == pytest.approx(np.mean(kept))
        assert trial.intermediate_values[512] == trial.value
        steps = sorted(trial.intermediate_values)
        assert steps == [128, 256, 384, 512]
        assert sorted(trial.intermediate_values.values()) == [
            trial.intermediate_values[step] for step in steps
        ]
    # The first is what one has without tuning.
    first = trials(sweep)[0].params
    assert first["agent.learning_rate"] == 3e-4 and first["agent.gae_lambda"] == 0.95
    assert [trial.user_attrs["batch"] for trial in trials(sweep)] == [0, 0, 2, 2]
    best = max(trials(sweep), key=lambda trial: trial.value)
    name = f"trial-{best.number}"
    finals = [job for job in Sweep(sweep).jobs() if job.settings["stage"] == "final"]
    compared = {name, "today"} if best.number else {name}  # the first trial is today's settings
    assert {job.settings["settings"] for job in finals} == compared
    for job in finals:
        assert job.run.config.seeds == [7, 8, 9] and job.run.path.is_relative_to("outputs/train")
        if job.settings["settings"] == name:
            rate = job.run.config.agent.learning_rate
            assert rate == pytest.approx(best.params["agent.learning_rate"], rel=1e-3)
    assert result.run == sweep
    report = rlx("report", sweep)
    jobs = 4 + len(compared)
    assert "stage=final" in report.out and f"{jobs} of {jobs} done" in report.out


def test_the_same_command_again_and_more_trials(rlx):
    assert rlx("tune", *SMALL, "trials=2", "pruner=none").code == 0
    before = told(the_sweep())
    again = rlx("tune", *SMALL, "trials=2", "pruner=none")
    assert again.code == 0 and told(the_sweep()) == before
    assert rlx("resume", the_sweep(), "trials=3").code == 0
    now = told(the_sweep())
    assert len(now) == 3 and before.items() <= now.items()


def pruned_run(rlx, monkeypatch, name: str, numbers: set[int]):
    """The sweep of a tuning in which the trials `numbers` are given up at the first evaluation."""

    def prune(self, study, trial):
        return trial.number in numbers

    monkeypatch.setattr(optuna.pruners.HyperbandPruner, "prune", prune)
    result = rlx("tune", *SMALL, "trials=4", "batch=4", f"sweep={name}")
    assert result.code == 0, result.err
    return result, Path("outputs/sweeps", name)


def test_pruned_trials_leave_the_batch_and_change_nothing_for_the_others(rlx, monkeypatch):
    _, whole = pruned_run(rlx, monkeypatch, "whole", set())
    result, pruned = pruned_run(rlx, monkeypatch, "pruned", {1, 2})
    assert "pruned   2 of the 4 trials" in result.out
    assert states(pruned) == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    jobs = trial_jobs(pruned)
    for trial, other in zip(trials(pruned), trials(whole), strict=True):
        assert trial.params == other.params
        job = jobs[trial.user_attrs["job"]]
        if trial.number in (1, 2):
            assert (job.status, job.run) == ("pruned", None)
            assert list(trial.intermediate_values) == [128]
            continue
        assert job.status == "completed"
        curve = job.run.curve()[2]
        expected = trial_jobs(whole)[job.id].run.curve()[2]
        assert np.allclose(curve, expected, rtol=1e-3) and len(curve) == 4
    assert "2 of them pruned" in result.out
    rows = (pruned / "sweep.csv").read_text()
    assert rows.count("pruned at step 128") == 2


def test_a_batch_ends_where_all_are_pruned(rlx, monkeypatch):
    def prune(self, study, trial):
        return trial.number > 0

    monkeypatch.setattr(optuna.pruners.HyperbandPruner, "prune", prune)
    result = rlx("tune", *SMALL, "trials=3", "batch=1")
    assert result.code == 0, result.err
    assert states(the_sweep()) == ["COMPLETE", "PRUNED", "PRUNED"]


def test_hyperband_prunes(rlx):
    assert rlx("tune", *SMALL, "trials=8", "batch=4").code == 0
    found = states(the_sweep())
    assert found[0] in ("COMPLETE", "PRUNED") and "PRUNED" in found and "COMPLETE" in found


def test_a_killed_tuning_loses_nothing_that_was_told(rlx, request):
    words = [*SMALL, "trials=6", "batch=2", "sweep=killed"]
    command = [sys.executable, "-m", "rlx", "tune", *words]
    moments = random.Random(request.config.getoption("--trials"))
    sweep = Path("outputs/sweeps/killed")
    before: dict[int, float | None] = {}
    runs: dict[str, str] = {}
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (sweep / "study.log").is_file() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.2, 2.5))
        process.kill()
        process.wait()
        if (sweep / "study.log").is_file():
            now = told(sweep)
            assert before.items() <= now.items()
            before = now
            finished = {job.id: str(job.run_path) for job in Sweep(sweep).jobs() if job.finished}
            assert runs.items() <= finished.items()
            runs = finished
    result = rlx("tune", *words)
    assert result.code == 0, result.err
    assert before.items() <= told(sweep).items()
    own = [trial for trial in trials(sweep) if "job" in trial.user_attrs]
    assert len(own) == 6 and all(trial.state.name in ("COMPLETE", "PRUNED") for trial in own)
    finished = {job.id: str(job.run_path) for job in Sweep(sweep).jobs() if job.finished}
    assert runs.items() <= finished.items() and len(finished) == len(Sweep(sweep).jobs())


KILLED = """
import os, sys
from rlx import cli
from rlx.{module} import {name}
{name}.{method} = lambda *arguments: os._exit(9)
sys.argv = ["rlx", *sys.argv[1:]]
cli.main()
"""


def test_a_trial_that_was_killed_in_the_writing_of_its_run_is_made_anew(rlx):
    words = ("tune", *SMALL, "trials=1", "batch=1", "pruner=none", "sweep=killed")
    run = {"module": "runs.run", "name": "Run"}
    for method in ("write_config", "complete"):
        script = KILLED.format(**run, method=method)
        line = [sys.executable, "-c", script, *words]
        assert subprocess.run(line, capture_output=True).returncode == 9
    result = rlx(*words)
    assert result.code == 0, result.err
    assert states(Path("outputs/sweeps/killed")) == ["COMPLETE"]


def test_a_process_that_is_killed_while_it_writes_holds_up_no_other(rlx, monkeypatch):
    lock = optuna.storages.journal.JournalFileSymlinkLock

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lock, "release", killed)
        assert rlx("tune", *SMALL, "trials=2", "batch=2", "sweep=held").code == 130
    assert Path("outputs/sweeps/held/study.log.lock").is_symlink()
    monkeypatch.setattr(lock.__init__, "__defaults__", (3,))  # seconds; Optuna waits for 30
    result = rlx("tune", *SMALL, "trials=2", "batch=2", "sweep=held")
    assert result.code == 0, result.err


class Killed(BaseException):
    """Stands for SIGKILL in a test's own process: nobody catches it."""


def test_a_batch_that_ends_its_process_is_given_up(rlx, monkeypatch):
    step = Training._vector_step

    def dying(self):
        if self.step == 64 and len(trials(the_sweep())) == 2:
            raise Killed
        return step(self)

    monkeypatch.setattr(Training, "_vector_step", dying)
    words = ("tune", *SMALL, "trials=4", "batch=2", "pruner=none")
    for _ in range(tuning.DEATHS):
        with pytest.raises(Killed):
            rlx(*words)
    result = rlx(*words)
    assert result.code == 0, result.err
    assert states(the_sweep()) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert "without a word (killed, out of memory, or a crash), 3 times" in result.out


def test_two_processes_share_a_tuning(rlx):
    words = [*SMALL, "trials=6", "batch=2", "sweep=shared"]
    command = [sys.executable, "-m", "rlx", "tune", *words]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    sweep = Path("outputs/sweeps/shared")
    assert len(trials(sweep)) == 6
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials(sweep))
    # Each trained batches of its own.
    assert all(" 4 env copies each" in out for out in outs)
    assert sum("stage=final" in out for out in outs) >= 1
    assert all(job.finished for job in Sweep(sweep).jobs())


def test_one_of_two_processes_compares_the_best(rlx):
    words = ("tune", *SMALL, "trials=2", "batch=2", "sweep=shared")
    assert rlx(*words).code == 0
    final = next(job for job in Sweep(the_sweep()).jobs() if job.settings["stage"] == "final")
    shutil.rmtree(final.read().run.path)
    with final.lock() as is_own:
        assert is_own
        beside = rlx(*words)
    assert beside.code == 0 and "another process compares the best" in beside.out
    assert "trial-" in rlx(*words).out


def test_ctrl_c_says_how_to_go_on(rlx, monkeypatch):
    step = Training._vector_step

    def stopped(self):
        if self.step == 256:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_vector_step", stopped)
        result = rlx("tune", *SMALL, "trials=2", "pruner=none")
    assert result.code == 130
    assert result.err.strip().endswith(f"goes on with: rlx resume {the_sweep()}")
    whole = rlx("resume", the_sweep())
    assert whole.code == 0 and "resumes  at step 260" in whole.out
    assert states(the_sweep()) == ["COMPLETE"] * 2


def tuned_for(steps: int) -> None:
    """A file of the user's, of settings for so many steps."""
    Path("conf/tuned").mkdir(parents=True)
    Path("conf/tuned/ppo-cartpole.yaml").write_text(f"# @package _global_\nsteps: {steps}\n")


def compared(rlx, monkeypatch, better: bool, steps: int = 512):
    """A tuning of which the best trial returns much more, or much less, than today's settings.

    These were tuned for so many steps.
    """
    returns = Run.returns

    def changed(run: Run, name: str = "returns") -> np.ndarray:
        is_best = run.config.agent.learning_rate == 0.005
        return returns(run, name) + (1000.0 if is_best == better else 0.0)

    def prune(self, study, trial):
        return trial.number == 0

    tuned_for(steps)
    monkeypatch.setattr(Run, "returns", changed)
    monkeypatch.setattr(optuna.pruners.HyperbandPruner, "prune", prune)
    others = ("discount", "gae_lambda", "clip", "entropy_coefficient", "value_coefficient")
    nulls = [f"search.agent.{key}=null" for key in (*others, "max_grad_norm", "initial_std")]
    rate = "search.agent.learning_rate=[0.0003,0.005]"
    return rlx("tune", *SMALL, *nulls, rate, "trials=6", "batch=1", "sampler=random")


def test_better_settings_are_written_and_used(rlx, monkeypatch):
    result = compared(rlx, monkeypatch, better=True)
    assert result.code == 0, result.err
    file = Path("conf/tuned/ppo-cartpole.yaml")
    assert f"wrote {file.absolute()}" in result.out
    text = file.read_text()
    assert "rlx tune agent=ppo env=cartpole" in text and "6 trials on seeds 0–1" in text
    values = yaml.safe_load(text)
    assert values["steps"] == 512 and values["num_envs"] == 4
    assert values["agent"]["learning_rate"] == 0.005 and "anneal_steps" not in values["agent"]
    # With the file alone, which hides rlx's of this name, a training is the one that was compared.
    again = rlx("train", "agent=ppo", "env=cartpole", "seeds=[7,8,9]")
    assert again.code == 0, again.err
    assert f"{file.absolute()}, instead of rlx's" in again.out
    (best,) = [
        job.run
        for job in Sweep(the_sweep()).jobs()
        if job.settings.get("settings", "today") != "today"
    ]
    left_out = ("outputs", "device", "checkpoint_every", "checkpoint_seconds")
    one, other = (
        {key: value for key, value in OmegaConf.to_container(run.config).items()}
        for run in (best, Run(again.run))
    )
    for key in one.keys() - set(left_out):
        assert one[key] == other[key], key


@pytest.mark.parametrize(
    "words, axis",
    [
        (["search.agent.discount={low: 0.9, high: 0.99}"], {"low": 0.9, "high": 0.99}),
        (["search.agent.learning_rate=[1e-3,1e-2]"], [1e-3, 1e-2]),
        # A range keeps what the line does not say of it.
        (["search.agent.learning_rate={high: 0.5}"], {"low": 1e-4, "high": 0.5, "log": True}),
        (["search.agent.discount=[0.5]"], [0.5]),
        (["search.agent.clip=[0.5]"], [0.5]),
        (["search.agent.learning_rate=[1]", "search.agent.learning_rate={low: 1, high: 2}"],
         {"low": 1, "high": 2}),
    ],
)  # fmt: skip
def test_choices_replace_a_range_and_a_range_choices(words, axis, rlx):
    key = words[0].partition("=")[0]
    result = rlx("tune", "agent=dqn", *words, "--cfg", "job", "--package", key)
    assert result.code == 0, result.err
    assert yaml.safe_load("\n".join(result.out.splitlines()[1:])) == axis


MINE = """
defaults: [dqn, _self_]
agent:
  learning_rate: [1.0e-3, 1.0e-2]
  discount: {low: 0.9, high: 0.99}
  target_tau: {high: 0.5}
  n_steps: null
"""


def test_a_users_space_replaces_choices_and_ranges_of_rlxs(rlx):
    Path("conf/search").mkdir(parents=True)
    Path("conf/search/mine.yaml").write_text(MINE)
    line = ("tune", "agent=dqn", "search=mine", "search.agent.epsilon_end=[0.1]")
    result = rlx(*line, "--cfg", "job", "--package", "search")
    assert result.code == 0, result.err
    space = yaml.safe_load("\n".join(result.out.splitlines()[1:]))
    assert space["num_envs"] == [8, 16, 32]
    expected = {
        "learning_rate": [1e-3, 1e-2],
        "discount": {"low": 0.9, "high": 0.99},
        # A range keeps what the file does not say of it.
        "target_tau": {"low": 1e-3, "high": 0.5, "log": True},
        "n_steps": None,
        "epsilon_end": [0.1],
    }
    assert expected.items() <= space["agent"].items() and len(space["agent"]) == 7


def test_a_space_without_keys_is_one_line(rlx):
    Path("conf/search").mkdir(parents=True)
    Path("conf/search/mine.yaml").write_text("- 1\n")
    result = rlx("tune", *SMALL[:2], "search=mine")
    assert (result.code, result.err) == (2, "rlx: search=[1]: expected keys with values.\n")


def test_a_key_below_choices_is_one_line(rlx):
    result = rlx("tune", "agent=dqn", "search.agent.discount.low=0.5")
    assert result.code == 2 and result.err.startswith("rlx: search.agent.discount.low: is no key")


def test_settings_that_are_no_better_are_not_written(rlx, monkeypatch):
    result = compared(rlx, monkeypatch, better=False)
    assert result.code == 0, result.err
    assert "nothing better was found, nothing is written: the interval of" in result.out
    assert "learning_rate" not in Path("conf/tuned/ppo-cartpole.yaml").read_text()


def test_a_short_tuning_does_not_replace_the_settings_of_a_long_training(rlx, monkeypatch):
    result = compared(rlx, monkeypatch, better=True, steps=1024)
    assert result.code == 0, result.err
    expected = "better after 512 steps, but nothing is written: tuned/ppo-cartpole is for 1,024"
    assert expected in result.out
    assert "learning_rate" not in Path("conf/tuned/ppo-cartpole.yaml").read_text()


@pytest.mark.parametrize(
    "words, expected",
    [
        (("search.agent.learning_rat=[1,2]",), "search.agent.learning_rat: unknown key. Did you"),
        (("search.agent.clip.high=-1",), "search.agent.clip.high=-1: must be above low=0.1"),
        (("search.agent.gae_lambda.high=1.5",), "search.agent.gae_lambda=1.5: must be from 0 to 1"),
        (("search.agent.epochs=[0.5]",), "search.agent.epochs=0.5: expected a whole number"),
        (("search.agent.learning_rate.low=0",), "must be above 0"),
        (("search.agent.learning_rate=3",), "expected a list, or {low: …, high: …}"),
        (("search.env.x=[1]",), "search.env.x: is not searched"),
        (("final_seeds=[1,2]",), "1 is one of seeds"),
        (("sampler=cma",), "sampler=cma: unknown"),
        (("pruner=median",), "pruner=median: unknown"),
        (("storage=missing/study.log",), "storage=missing/study.log: cannot be written"),
        (("env=pendulum", "agent=dqn"), "DQN needs Discrete actions"),
        (("agent=bc",), "search=bc: no such option"),
        (("-m",), "a sweep by itself"),
        (("fresh=true",), "fresh=true"),
        (("minute=3",), "minute: unknown key. Did you mean 'minutes'?"),
    ],
)
def test_bad_tunings_are_refused_and_nothing_is_written(words, expected, rlx, tmp_path):
    own = SMALL if "agent=bc" not in words and "agent=dqn" not in words else ()
    result = rlx("tune", *own, *words)
    assert result.code == 2 and expected in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["garbage\n", "[]\n", '{"op_code": 99}\n'])
def test_a_storage_that_is_no_journal_is_refused_and_nothing_is_written(text, rlx):
    Path("mine.log").write_text(text)
    result = rlx("tune", *SMALL, "storage=mine.log")
    assert result.code == 2 and "rlx: storage=mine.log: cannot be used (" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert Path("mine.log").read_text() == text and not Path("outputs").exists()


def test_another_tuning_under_the_name_is_refused(rlx):
    assert rlx("tune", *SMALL, "trials=1", "sweep=mine").code == 0
    result = rlx("tune", *SMALL, "trials=1", "sweep=mine", "steps=2048")
    assert result.code == 2 and "is of another command, rlx tune" in result.err


def test_without_optuna_the_extra_is_named(rlx, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = rlx("tune", *SMALL)
    assert result.code == 2 and 'pip install "rlx[tune]"' in result.err
    assert list(tmp_path.iterdir()) == []


ENVS = {"ppo": ("cartpole", "pendulum"), "a2c": ("cartpole",)}


@pytest.mark.parametrize("agent", sorted(group_files("search")))
def test_every_search_space_is_one_of_its_agent(agent):
    for env in ENVS.get(agent, ("acrobot",)):
        composed = compose("tune", f"agent={agent}", f"env={env}")
        train = {key: composed[key] for key in compose("train")}
        base = validated(OmegaConf.create(train))
        space = Space.of(composed.search, base)
        # The agent's own settings are one of the points, so that the first trial can be they.
        assert space.start(base).keys() == space.axes.keys()
        assert len(space.shaping) < len(space.axes)


def test_values_are_short_and_within_the_range():
    base = validated(compose("train", "agent=dqn", "env=acrobot"))
    node = {"agent": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}
    node["agent"] |= {"hidden": [[64], [64, 64]], "epsilon_steps": {"low": 10, "high": 1000}}
    space = Space.of(node, base)
    assert space.axes["agent.learning_rate"] == Span(1e-4, 1e-2, True)
    assert space.shaping == ("agent.hidden",)
    kinds = {key: type(each).__name__ for key, each in space.distributions().items()}
    assert kinds == {
        "agent.learning_rate": "FloatDistribution",
        "agent.hidden": "CategoricalDistribution",
        "agent.epsilon_steps": "IntDistribution",
    }
    params = {"agent.learning_rate": 0.00123456, "agent.hidden": "[64]", "agent.epsilon_steps": 17}
    config = space.config(base, params)
    assert (config.agent.learning_rate, config.agent.epsilon_steps) == (0.001235, 17)
    assert config.agent.hidden == [64]
    with pytest.raises(ConfigError, match=r"search.agent.discount=1.2: must be from 0 to 1"):
        Space.of({"agent": {"discount": [0.9, 1.2]}}, base)


def test_the_storage_can_be_another_file(rlx):
    assert rlx("tune", *SMALL, "trials=1", "storage=mine.log").code == 0
    assert Path("mine.log").is_file() and not (the_sweep() / "study.log").exists()
    line = json.loads((the_sweep() / "sweep.json").read_text())["line"]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("mine.log"))
    study = optuna.load_study(study_name=the_sweep().name, storage=storage)
    assert study.user_attrs["command"] == line
