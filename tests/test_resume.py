"""A killed run loses nothing: what it ends with is what it would have ended with, bit for bit."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from safetensors.torch import load_file
from test_agents import AGENTS

ENVS = [("acrobot",), ("chain",), ("gym", "env.id=CartPole-v1")]
LEARN = ("agent.learning_starts=64", "agent.hidden=[16]", "seeds=2", "agent.n_steps=2")


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of every tensor of the newest checkpoint and of the best weights, and of metrics.jsonl without wall-clock fields."""
    newest = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())[-1]
    prints = {"step": newest.name}
    for file in (newest / "agent.safetensors", newest / "training.safetensors", run / "checkpoints/best/agent.safetensors"):
        for name, tensor in load_file(file).items():
            prints[f"{file.parent.name}/{file.stem}/{name}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    prints["metrics"] = json.dumps([{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows])
    prints["return"] = json.dumps(json.loads((run / "summary.json").read_text())["return"])
    return prints


@pytest.mark.parametrize("env", ENVS, ids=lambda e: e[0])
@pytest.mark.parametrize("agent", AGENTS)
def test_resumed_equals_uninterrupted(agent, env, rlx):
    arguments = ["train", f"agent={agent}", f"env={env[0]}", *env[1:], *TINY, *LEARN]
    whole = rlx(*arguments)
    shorter = rlx(*arguments, "steps=300")
    assert rlx("resume", shorter.run, "steps=600").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "rlx", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


LONG = ["train", "agent=hdqn", "env=acrobot", "seeds=2", "steps=12000", "copies=4", "eval_every=900", "eval_episodes=3"]
LONG += ["final_episodes=5", "checkpoint_every=500", "agent.learning_starts=64", "agent.hidden=[16]", "agent.replay_ratio=0.5"]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "outputs/train/hdqn-acrobot").iterdir()
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_killed_at_a_random_moment_and_resumed(number, rlx, tmp_path):
    whole = rlx(*LONG)
    killed = tmp_path / "killed"
    killed.mkdir()
    process = start(LONG, killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("outputs/train/*/*/checkpoints/*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(random.Random(str(number)).uniform(0, 2))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    run = only_run(killed)
    status = json.loads((run / "meta.json").read_text())["status"]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and status == "running"
    else:
        assert process.returncode == 128 + number and status == "interrupted" and f"rlx resume {run.relative_to(killed)}" in err
    assert rlx("resume", run).code == 0
    assert fingerprint(run) == fingerprint(whole.run)


def test_a_damaged_checkpoint_is_recognised_and_the_former_one_used(rlx):
    arguments = ["train", "agent=dqn", "env=cartpole", *TINY, *LEARN]
    whole, run = rlx(*arguments), rlx(*arguments).run
    for damage, file in (("flip", "training.safetensors"), ("cut", "training.safetensors"), ("cut", "state.json")):
        newest = sorted(run.glob("checkpoints/[0-9]*/training.safetensors"))[-1].with_name(file)
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data if damage == "flip" else data[:100])
        result = rlx("resume", run)
        assert result.code == 0 and "Using the checkpoint before it" in result.out and "at step 300" in result.out
        assert fingerprint(run) == fingerprint(whole.run)


def test_a_full_disk_stops_the_run_and_the_last_checkpoint_survives(rlx, monkeypatch):
    import safetensors.torch

    arguments = ["train", "agent=dqn", "env=cartpole", *TINY, *LEARN]
    whole, save, saves = rlx(*arguments), safetensors.torch.save_file, []

    def full(tensors, file):
        saves.append(file)
        if len(saves) > 3:
            Path(file).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        save(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        result = rlx(*arguments)
    assert result.code == 1 and "No space left on device" in result.err
    (run,) = set(whole.run.parent.iterdir()) - {whole.run}
    assert not list(run.glob("checkpoints/.*"))
    assert rlx("resume", run).code == 0
    assert fingerprint(run) == fingerprint(whole.run)


def test_two_processes_on_one_run_are_refused(rlx, tiny_runs):
    import fcntl

    run = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())[1]
    folder = os.open(run, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.jsonl", "meta.json")}
    result = rlx("resume", run, "steps=900")
    os.close(folder)
    assert before == {name: (run / name).read_bytes() for name in before}, "a refused resume changes nothing"
    assert result.code == 2 and "another process" in result.err


def test_what_may_not_change_and_a_finished_run_are_explained(rlx, tiny_runs):
    run = sorted((tiny_runs / "train/hdqn-acrobot").iterdir())[0]
    result = rlx("resume", run)
    assert result.code == 2 and "steps=" in result.err
    result = rlx("resume", run, "agent.learning_rate=1")
    assert result.code == 2 and "agent.learning_rate" in result.err
