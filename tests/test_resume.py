"""A killed run loses nothing: what it ends with is what it would have ended with, bit for bit."""

import hashlib
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
import torch
from conftest import ENVS, PAIRS, TINY, small, stop_rule
from safetensors.torch import load_file

from rlx import cli
from rlx.runs.checkpoints import Checkpoints
from rlx.runs.finding import find
from rlx.runs.run import Run
from rlx.training import state
from rlx.training.journal import replays
from rlx.training.resuming import resumed

LEARN = ("agent.learning_starts=64", "agent.hidden=[16]", "seeds=2", "agent.n_steps=2")


def fingerprint(run: Path) -> dict[str, str]:
    """What must be equal in two runs, name → hash or text.

    Hashes of every tensor that the newest checkpoint restores and of the best weights; the rows of
    metrics.jsonl without wall-clock fields; the result.
    """
    training, warnings = resumed(Run(run), Run(run).config)
    assert not warnings
    tensors = (
        state.tensors(training)
        | training.agent.policy.state_dict()
        | load_file(run / "checkpoints/best/agent.safetensors")
    )
    for path, replay in replays(training.agent).items():
        tensors |= {f"{path}.{name}": rows for name, rows in replay.rows(None).items()}
    prints = {
        name: hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    prints["metrics"] = json.dumps(timeless)
    summary = json.loads((run / "summary.json").read_text())
    prints["return"] = json.dumps(summary["return"])
    return prints | {"step": str(training.step)}


@pytest.mark.parametrize(("agent", "env"), PAIRS)
def test_resumed_equals_uninterrupted(agent, env, rlx):
    arguments = [
        "train",
        f"agent={agent}",
        f"env={env}",
        *ENVS[env],
        *TINY,
        "seeds=2",
        *small(agent, n_steps=2),
    ]
    arguments += ["steps=320", "eval_every=160", "checkpoint_every=160"]
    whole = rlx(*arguments)
    shorter = rlx(*arguments, "steps=160")
    assert rlx("resume", shorter.run, "steps=320").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent=ppo", "env=cartpole_masked", *small("ppo", recurrent=8)],
        ["agent=q_table", "env=chain", "agent.target=sarsa"],
        [
            "agent=dqn",
            "env=cartpole_drift",
            "+env.stack=3",
            "env.drift.begin=10",
            "env.drift.end=60",
            *small("dqn"),
        ],
    ],
    ids=("memory", "sarsa", "drift"),
)
def test_options_resume_as_well(arguments, rlx):
    arguments = [
        "train",
        *arguments,
        *TINY,
        "seeds=2",
        "steps=320",
        "eval_every=160",
        "checkpoint_every=160",
    ]
    whole, shorter = rlx(*arguments), rlx(*arguments, "steps=160")
    assert rlx("resume", shorter.run, "steps=320").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "rlx", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )


LONG = [
    "train",
    "agent=hdqn",
    "env=acrobot",
    "seeds=2",
    "steps=3000",
    "num_envs=4",
    "eval_every=900",
    "eval_episodes=3",
    "env.max_episode_steps=100",
    "final_episodes=5",
    "checkpoint_every=500",
    "agent.learning_starts=64",
    "agent.hidden=[16]",
    "agent.replay_ratio=0.25",
]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "outputs/train/hdqn-acrobot").iterdir()
    return run


def pytest_generate_tests(metafunc):
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("--trials")))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert cli.run([*LONG, f"outputs={folder}/outputs"]) == 0
    return fingerprint(only_run(folder))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name
)
def test_killed_at_a_random_moment_and_resumed(number, trial, uninterrupted, rlx, tmp_path):
    killed = tmp_path / "killed"
    killed.mkdir()
    process = start(LONG, killed)
    deadline = time.monotonic() + 120
    saved = "outputs/train/*/*/checkpoints/[0-9]*/state.json"
    while not list(killed.glob(saved)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(random.Random(f"{number} {trial}").uniform(0, 1))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    run = only_run(killed)
    status = json.loads((run / "meta.json").read_text())["status"]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and status == "running"
    else:
        assert process.returncode == 128 + number and status == "interrupted"
        assert f"rlx resume {run.relative_to(killed)}" in err
    assert rlx("resume", run).code == 0
    assert fingerprint(run) == uninterrupted


SHORT = ["train", "agent=dqn", "env=cartpole", *TINY, *LEARN]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run of SHORT ends with where nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert cli.run([*SHORT, f"outputs={folder}"]) == 0
    (run,) = folder.glob("train/*/*")
    return fingerprint(run)


def test_a_damaged_checkpoint_is_recognised_and_the_former_one_used(rlx, undisturbed):
    run = rlx(*SHORT).run
    for damage, file in (
        ("flip", "training.safetensors"),
        ("cut", "training.safetensors"),
        ("cut", "state.json"),
        ("flip", "replay"),
    ):
        newest = sorted(run.glob("checkpoints/[0-9]*/training.safetensors"))[-1].with_name(file)
        if file == "replay":
            newest = sorted(run.glob("replay/*/*"))[-1]
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data if damage == "flip" else data[:100])
        result = rlx("resume", run)
        assert result.code == 0
        assert "Using the checkpoint before it" in result.out
        assert "at step 300" in result.out
        assert fingerprint(run) == undisturbed


@pytest.mark.parametrize("after", [4, 5])  # within a part of the replay, within the checkpoint
def test_a_full_disk_stops_the_run_and_the_last_checkpoint_survives(
    after, rlx, undisturbed, monkeypatch
):
    import safetensors.torch

    save, saves = safetensors.torch.save_file, []

    def full(tensors, file):
        saves.append(file)
        if len(saves) > after:
            Path(file).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        save(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        result = rlx(*SHORT)
    assert result.code == 1 and "No space left on device" in result.err
    (run,) = Path("outputs/train/dqn-cartpole").iterdir()
    assert not list(run.glob("checkpoints/.*")) and not list(run.glob("replay/*/.*"))
    assert rlx("resume", run).code == 0
    assert fingerprint(run) == undisturbed


def test_a_disk_that_is_full_between_checkpoints_stops_the_run_too(rlx, undisturbed, monkeypatch):
    write = Path.write_text

    def full(path, text, *rest):
        if path.name == ".summary.json.partial":
            raise OSError(28, "No space left on device")
        return write(path, text, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        result = rlx(*SHORT)
    assert result.code == 1
    assert "No space left on device" in result.err and "rlx resume" in result.err
    (run,) = Path("outputs/train/dqn-cartpole").iterdir()
    assert rlx("resume", run).code == 0 and fingerprint(run) == undisturbed


def test_a_checkpoint_that_cannot_fit_the_disk_is_refused_before_the_start(
    rlx, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    )
    result = rlx("train", "agent=dqn", "env=cartpole", "seeds=1")
    assert result.code == 2
    assert "GB of disk, and 0.0 GB are free" in result.err
    assert not list(tmp_path.iterdir())


def test_checkpoints_by_wall_time_are_replaced_and_those_by_step_stay(rlx):
    arguments = [
        "train",
        "agent=dqn",
        "env=cartpole",
        *TINY,
        *LEARN,
        "steps=400",
        "checkpoint_every=200",
    ]
    result = rlx(*arguments, "checkpoint_seconds=0")
    assert Run(result.run).checkpoints.steps() == ["000000200", "000000396", "000000400"]
    assert fingerprint(result.run) == fingerprint(rlx(*arguments).run)
    needed = json.loads((result.run / "checkpoints/000000400/state.json").read_text())["replay"]
    assert len(needed) >= 20 and {
        f"{p.parent.name}/{p.stem}" for p in result.run.glob("replay/*/*")
    } == set(needed)


def everything(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: training, policy, replays, the kept weights."""
    training, warnings = resumed(Run(run), Run(run).config)
    assert not warnings
    tensors = state.tensors(training) | training.agent.policy.state_dict()
    tensors |= {f"best.{name}": value for name, value in Run(run).checkpoints.load("best").items()}
    for path, replay in replays(training.agent).items():
        rows = replay.rows(None)
        tensors |= {f"{path}.{name}": rows[name] for name in replay.fields}
        tensors |= {f"{path}.written": rows["until"]}
    return {name: value for name, value in tensors.items() if name != "loop.running"}


def side_by_side(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors [S, …] of two runs as those of one."""
    assert old.keys() == new.keys()
    return {name: torch.cat([value, new[name]]) for name, value in old.items()}


def logged(run: Path) -> list[dict]:
    """metrics.jsonl without wall-clock fields, in the order of steps and seeds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return sorted(rows, key=lambda row: (row["step"], row["seed"]))


@pytest.mark.parametrize(
    ("agent", "env"), {agent: (agent, env) for agent, env in reversed(PAIRS)}.values()
)  # one env of each agent
def test_a_grown_run_is_the_old_seeds_and_the_new_ones_side_by_side(agent, env, rlx):
    """To the bit: both trained in the same shapes.

    That a seed learns beside others as alone, to rounding, says test_agents.py.
    """
    arguments = [
        "train",
        f"agent={agent}",
        f"env={env}",
        *ENVS[env],
        *TINY,
        *small(agent, n_steps=2),
    ]
    arguments += ["steps=320", "eval_every=160", "checkpoint_every=160"]
    run, new = rlx(*arguments, "seeds=2").run, rlx(*arguments, "seeds=2:4").run
    halves = [everything(run), everything(new)]
    rows = logged(run) + logged(new)
    first = [Run(path).checkpoints.load("000000160") for path in (run, new)]
    resumed = rlx("resume", run, "seeds=4")
    assert resumed.code == 0 and "growing" not in resumed.out, "of folders that are gone now"
    assert resumed.run == run
    expected = side_by_side(*halves)
    grown = everything(run)
    assert grown.keys() == expected.keys()
    assert [
        name for name in grown if not torch.equal(grown[name].cpu(), expected[name].cpu())
    ] == []
    middle = Run(run).checkpoints.load("000000160")
    assert all(torch.equal(value, side_by_side(*first)[name]) for name, value in middle.items())
    assert logged(run) == sorted(rows, key=lambda row: (row["step"], row["seed"]))
    assert not (run / "growing").exists()
    assert np.load(run / "returns.npz")["returns"].shape == (4, 5)
    assert rlx("resume", run, "steps=480").code == 0
    assert [row["seed"] for row in logged(run) if row["step"] == 480] == [0, 1, 2, 3]


def test_seeds_whose_training_was_killed_are_taken_up_again(rlx, tmp_path):
    whole, run = rlx(*LONG, "seeds=1").run, rlx(*LONG, "seeds=1").run
    assert rlx("resume", whole, "seeds=3").code == 0
    process = start(["resume", str(run), "seeds=3"], tmp_path)
    while (
        not list(run.glob("growing/train/*/*/checkpoints/[0-9]*/state.json"))
        and process.poll() is None
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    (younger,) = run.glob("growing/train/*/*")
    shutil.copytree(younger, younger.with_name("20990101-000000-000000"))
    shutil.rmtree(
        younger.with_name("20990101-000000-000000") / "checkpoints"
    )  # another, killed before its first checkpoint
    assert json.loads((run / "meta.json").read_text())["status"] == "completed"
    assert find(None, "outputs").path == run
    result = rlx("resume", run, "seeds=3")
    assert result.code == 0 and "resumes" in result.out
    assert fingerprint(run) == fingerprint(whole)


def test_two_processes_on_one_run_are_refused(rlx, tiny_runs):
    import fcntl

    run = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())[1]
    folder = os.open(run, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    names = ("config.yaml", "metrics.jsonl", "meta.json")
    before = [(run / name).read_bytes() for name in names]
    result = rlx("resume", run, "steps=900")
    os.close(folder)
    after = [(run / name).read_bytes() for name in names]
    assert after == before, "a refused resume changes nothing"
    assert result.code == 2 and "another process" in result.err


def test_what_may_not_change_and_a_finished_run_are_explained(rlx, tiny_runs):
    run = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())[0]
    result = rlx("resume", run)
    assert result.code == 2 and "steps=" in result.err
    for key in ("agent.learning_rate", "num_envs"):
        result = rlx("resume", run, f"{key}=1")
        assert result.code == 2
        assert f"{key}: may not change when a run is resumed" in result.err
        assert "eval_every" in result.err
    for override, message in (
        ("seeds=3", "has them all"),
        ("seeds=2", "has [2] too"),
        ("device=gpu", "device=gpu: no such option"),
    ):
        result = rlx("resume", run, override)
        assert result.code == 2 and message in result.err
    changed = rlx("resume", run, "steps=900", "checkpoint_seconds=30", "device=cpu")
    assert changed.code == 0 and "600 → 900" in changed.out and "'auto'" in changed.out


def test_what_a_crash_leaves_behind_does_no_harm(rlx):
    arguments = ["train", "agent=dqn", "env=cartpole", *TINY, *LEARN]
    whole, run = rlx(*arguments), rlx(*arguments).run
    newest, best = run / "checkpoints/000000600", run / "checkpoints/best"
    shutil.copytree(best, best.with_name(".best.former"))  # killed before it was deleted
    newest.rename(newest.with_name(".000000600.former"))  # killed between two renames
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 600, "se')  # killed in the middle of a line
    assert rlx("resume", run, "steps=900").code == 0
    assert rlx("resume", whole.run, "steps=900").code == 0
    assert fingerprint(run) == fingerprint(whole.run)
    run.rename(run.with_name(f".{run.name}.former"))  # killed while a grown run took its place
    assert rlx("evaluate", run, "episodes=2").code == 0


@pytest.mark.parametrize("named", [True, False])
def test_kept_weights_that_a_crash_left_under_a_hidden_name_are_found(named, rlx, tiny_runs):
    (run,) = (tiny_runs / "train/dqn-cartpole").iterdir()
    copied = Path(shutil.copytree(run, Path("outputs/train/dqn-cartpole") / run.name))
    best = copied / "checkpoints/best"
    paths = [copied] if named else []
    for command in (("evaluate",), ("attack", "attack=fgsm", "eps=0", "scale=std")):
        best.rename(best.with_name(".best.former"))  # killed between two renames
        assert rlx(*command, *paths, "episodes=2").code == 0
        assert best.is_dir() and not best.with_name(".best.former").exists()


def test_best_weights_are_on_disk_before_the_checkpoint_that_counts_on_them(rlx, monkeypatch):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, name, *rest, **parts: saved.append(name) or save(self, name, *rest, **parts),
    )
    rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN)
    assert saved == ["best", "000000300", "best", "000000600"]


def test_a_damaged_checkpoint_is_forgotten_when_training_goes_on_from_the_former_one(rlx):
    run = rlx("train", "agent=dqn", "env=cartpole", *TINY, *LEARN).run
    (run / "checkpoints/000000600/training.safetensors").write_bytes(b"")
    assert rlx("resume", run, "steps=400", "checkpoint_every=50").code == 0
    assert Run(run).checkpoints.steps() == ["000000300", "000000352", "000000400"]
    assert Run(run).checkpoints.counters("last")["step"] == 400


def test_seeds_are_added_to_a_run_with_a_stop_rule(rlx):
    rule = stop_rule(window=5, solved=25)
    arguments = [
        "train",
        "agent=dqn",
        "env=cartpole",
        *TINY,
        *LEARN,
        "num_envs=1",
        "steps=1500",
        "eval_every=500",
        rule,
    ]
    old, new = rlx(*arguments, "seeds=2"), rlx(*arguments, "seeds=2:4")
    parts = [one.summary["kept"] for one in (old, new)]
    weights = side_by_side(*(Run(one.run).checkpoints.load("best") for one in (old, new)))
    assert len(set(parts[0]["step"] + parts[1]["step"])) > 1
    assert rlx("resume", old.run, "seeds=4").code == 0
    grown = json.loads((old.run / "summary.json").read_text())
    assert grown["kept"] == {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert all(
        torch.equal(value, weights[name])
        for name, value in Run(old.run).checkpoints.load("best").items()
    )


def test_a_schedule_that_has_ended_is_told(rlx):
    run = rlx("train", "agent=ppo", "env=cartpole", *TINY, "seeds=1", *small("ppo")).run
    assert "the learning rate stays" in rlx("resume", run, "steps=700").out


def test_runs_of_before_offline_agents_go_on(rlx):
    """Their configs lack the keys `data` and `skip_bad`."""
    run = rlx("train", *TINY, "agent=dqn", "env=cartpole", *small("dqn"), "seeds=1").run
    config = run / "config.yaml"
    lines = [
        line
        for line in config.read_text().splitlines()
        if not line.startswith(("data:", "skip_bad:"))
    ]
    config.write_text("\n".join(lines) + "\n")
    result = rlx("resume", run, "steps=700")
    assert result.code == 0, result.err
