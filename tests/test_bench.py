"""rlx bench: any training that acts, in turn with other programs; its stages; what it refuses."""

import csv
import json
import re
import subprocess
import sys

import pytest
from conftest import compose, small

from rlx.benchmarks import own, peers
from rlx.benchmarks.timing import clock
from rlx.experiment import env_spec
from rlx.training import compiled

QUICK = ("seconds=0.02", "rounds=2", "device.compile=false")


def rows(path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def timed(*overrides: str, seeds: int = 2) -> own.Timed:
    """A training as it is timed."""
    config = own.config_of(compose("bench", *overrides), seeds, compiled=False)
    return own.Timed(config, "test", clock("cpu"))


@pytest.mark.parametrize("agent", ["dqn", "hdqn"])
def test_ratios_are_to_the_plain_loop(rlx, agent):
    overrides = small(agent, learning_starts=100)
    result = rlx("bench", f"agent={agent}", "env=acrobot", *QUICK, "seeds=[1,3]", *overrides)
    assert result.code == 0, result.err
    table = rows(result.run / "speed.csv")
    plain, *ours = [row for row in table if row["program"] != "SB3"]
    assert plain["program"] == "plain loop" and float(plain["x plain loop"]) == 1
    assert [row["seeds"] for row in ours] == ["1", "3"]
    for row in ours:
        low, high = float(row["lowest"]), float(row["highest"])
        assert low <= float(row["steps_per_s"]) <= high
        lowest = low / float(plain["highest"])
        assert lowest <= float(row["x plain loop"]) <= high / float(plain["lowest"])
        assert float(row["tensors_mb"]) > 0
    assert result.summary["rows"][0]["program"] == "plain loop"


@pytest.mark.parametrize(
    "agent, env, learning",
    [("q_table", "frozen_lake", {"store, learn"}), ("ppo", "pendulum", {"store", "learn"})],
)
def test_any_agent_that_acts_is_timed(rlx, agent, env, learning):
    result = rlx("bench", f"agent={agent}", f"env={env}", *QUICK, "seeds=[2]", *small(agent))
    assert result.code == 0, result.err
    *stages, whole = rows(result.run / "stages.csv")
    assert {stage["stage"] for stage in stages} == {"act", "env", "log"} | learning
    assert sum(float(stage["share"]) for stage in stages) < 1 == float(whole["share"])
    kernels = sum(float(stage["kernels"]) for stage in stages)
    assert 0 < kernels <= float(whole["kernels"])


def test_a_measurement_ends_behind_what_was_learnt():
    rollout = 16
    training = timed("agent=ppo", "env=cartpole", *small("ppo", rollout_steps=rollout))
    for _ in range(3):
        steps, _ = training.cycles(0.01)
        assert steps % rollout == 0
    assert training.training.step % (rollout * training.training.num_envs) == 0


def test_stages_count_operations_and_what_they_move():
    tables = {}
    for batch in (8, 16):
        overrides = small("dqn", batch_size=batch, replay_ratio=1)
        training = timed("agent=dqn", "env=cartpole", "num_envs=4", *overrides)
        stages = own.Stages(training, []).measure(0.01)
        tables[batch] = {stage.name: stage for stage in stages}
    for name in ("act", "env", "store", "log"):
        assert tables[8][name].kernels == tables[16][name].kernels > 0
        assert tables[8][name].megabytes == pytest.approx(tables[16][name].megabytes)
    # Four minibatches per vector step: as many operations on larger minibatches.
    assert tables[8]["learn"].kernels == tables[16]["learn"].kernels > 4 * 20
    assert tables[8]["learn"].megabytes < tables[16]["learn"].megabytes


def test_a_large_memory_is_not_moved_when_a_step_is_stored():
    stored = []
    for size in (400, 4000):
        training = timed("agent=dqn", "env=cartpole", *small("dqn", buffer_size=size))
        stages = own.Stages(training, []).measure(0.01)
        stored += [stage.megabytes for stage in stages if stage.name == "store"]
    assert stored[0] == pytest.approx(stored[1]) and stored[0] > 0


def test_memory_grows_with_the_seeds():
    sizes = [
        timed("agent=dqn", "env=cartpole", *small("dqn"), seeds=seeds).tensors()
        for seeds in (1, 2, 4)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)


def test_parts_of_a_search_are_watched(rlx):
    sizes = {"latent": 4, "lstm": 4, "head": 4, "projection": 4, "simulations": 2, "batch_size": 4}
    overrides = [f"agent.{key}={value}" for key, value in sizes.items()]
    watch = "watch=[policy_targets,value_targets]"
    result = rlx(
        "bench", "agent=efficientzero", *QUICK, "seeds=[1]", "num_envs=4", watch, *overrides
    )
    assert result.code == 0, result.err
    ms = {row["stage"]: float(row["ms"]) for row in rows(result.run / "stages.csv")}
    parts = ms["within: policy_targets"] + ms["within: value_targets"]
    assert 0 < parts < ms["learn"]


def test_car_racing_beside_gymnasiums(rlx):
    result = rlx("bench", "env=car_racing", "drawing=true", "seconds=0.05", "num_envs=2")
    assert result.code == 0, result.err
    labels = [line.split("│")[1].strip() for line in result.out.splitlines() if "│" in line]
    assert labels[0] == "Gymnasium, 1 env" and len(labels) == 5


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("agent=bcq", "env=cartpole"), "agent: BCQ learns from a data set"),
        (("peer_python=/no/such/python",), "peer_python=/no/such/python: is no Python interpreter"),
        (("agent.learning_rate=[0.1,0.2]",), "expected one value for all seeds"),
        (("peer_python={a: 1}",), "expected the path of an interpreter, or a list"),
        (("drawing=true",), "drawing=true: is for env=car_racing alone"),
        (("agent=ppo", "env=cartpole", "steps=1", *QUICK), "steps=1: ppo-cartpole learns nothing"),
        (("watch=[act,no_such]",), "watch=no_such: HDQN has no such method"),
    ],
)
def test_what_cannot_be_timed_is_said_on_one_line(rlx, overrides, message):
    result = rlx("bench", *overrides)
    assert result.code == 2
    assert message in result.err and len(result.err.strip().splitlines()) == 1


def test_an_interpreter_must_have_a_program_that_can_train_this(tmp_path):
    empty = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    python = str(empty / "bin" / "python")
    composed = compose("bench", "agent=ppo", "env=cartpole")
    spec = env_spec(composed.env)
    settings = peers.settings(composed.agent, composed.env, spec, 8)
    with pytest.raises(peers.ConfigError, match="has none of torch, rejax, stable_baselines3"):
        peers.find(settings, [python])
    with pytest.raises(peers.ConfigError, match="plain loop has DQN and hierarchical DQN alone"):
        peers.find(settings, [sys.executable])


@pytest.mark.parametrize(
    "env, expected",
    [
        ("env=cartpole", "CartPole-v1"),
        ("env=chain", None),
        ("env=cartpole +env.stack=2", None),
        ("env=gym env.id=CartPole-v1", "CartPole-v1"),
    ],
)
def test_an_env_has_gymnasiums_id_where_it_is_the_same(env, expected):
    assert peers.env_id(compose("bench", *env.split()).env) == expected


def test_a_peer_imports_nothing_of_rlx(tmp_path):
    composed = compose("bench", "agent=dqn", "env=cartpole", *small("dqn"))
    spec = env_spec(composed.env)
    settings = peers.settings(composed.agent, composed.env, spec, 1) | {
        "seeds": [1],
        "threads": 1,
        "clock": "cpu",
        "core": None,
    }
    script = peers.SCRIPTS[0]
    told = f"{json.dumps(settings)}\n{json.dumps({'seeds': 1, 'seconds': 0.02})}\n"
    # -P: this folder's rlx is not found.
    process = subprocess.run(
        [sys.executable, "-P", peers.SERVER, script],
        input=told,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    facts, speed = map(json.loads, process.stdout.splitlines())
    assert facts["version"] and speed["steps_per_s"] > 0
    for file in (peers.SERVER, *peers.SCRIPTS):
        assert not re.search(r"^ *(from|import) rlx", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("agent", ["dqn", "q_table"])
def test_what_is_compiled_has_a_row_of_its_own(agent, rlx, monkeypatch):
    """An agent of `store` and `due`, and one of `update`: neither is kept from compiling by it."""
    monkeypatch.setattr(compiled, "inductor", compiled.interpreted)
    env = {"dqn": "cartpole", "q_table": "chain"}[agent]
    words = ("seconds=0.02", "rounds=1", "device.compile=true", "seeds=[2]", *small(agent))
    result = rlx("bench", f"agent={agent}", f"env={env}", *words)
    assert result.code == 0, result.err
    assert "rlx, compiled" in {row["program"] for row in rows(result.run / "speed.csv")}
