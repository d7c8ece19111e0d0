"""The Python face does what the command line does, in a Gymnasium env with NumPy in and out."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import hydra
import numpy as np
import pytest
import torch
from conftest import TINY, small

import rlx
from rlx.agents.dqn import DQN
from rlx.envs.cartpole import CartPole
from rlx.evaluation import REPORT
from rlx.experiment import make_env
from rlx.gym_policy import GymPolicy
from rlx.policies import load_policy
from rlx.runs.run import Run
from rlx.training.loop import Training

TINY_KEYS = {key: int(value) for key, _, value in (word.partition("=") for word in TINY)}


def keys(agent: str, **changes: object) -> dict[str, object]:
    """Keywords of a short training of `agent`."""
    words = [word.partition("=") for word in small(agent, **changes)]
    return {"agent": agent, **TINY_KEYS, **{key: value for key, _, value in words}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs lie in an empty folder."""
    monkeypatch.chdir(tmp_path)


def episode(policy: GymPolicy, env: gymnasium.Env, seed: int) -> tuple[float, list]:
    """(return, actions) of an episode from this reset seed."""
    obs, _ = env.reset(seed=seed)
    policy.reset()
    total, actions, over = 0.0, [], False
    while not over:
        actions.append(policy.act(obs))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        total += float(reward)
        over = terminated or truncated
    return total, actions


def test_train_load_attack():
    """A run is trained, found again, played, attacked and drawn."""
    run = rlx.train(**keys("dqn"), env="cartpole", seeds=[4, 6])
    assert run.seeds == [4, 6] and run.config.agent.hidden == [16]
    rows = run.metrics()
    assert {row["seed"] for row in rows} == {4, 6}
    assert {"step", "seed", "return/mean", "loss/q"} <= set(rows[-1])
    again = rlx.load(run.path.parent, seed=6)
    assert again.path.samefile(run.path) and again.summary == run.summary
    study = rlx.attack(run, attack="fgsm", eps="0:0.2:0.1", scale="std", episodes=2)
    table = study.metrics()
    assert [row["eps"] for row in table] == [0, 0.1, 0.2]
    assert all(row["ci95_low"] <= row["iqm"] <= row["ci95_high"] for row in table)
    assert isinstance(rlx.load(study.path), rlx.AttackRun)
    for drawn in (run.figure(), study.figure()):
        assert len(drawn.axes[0].lines) > 2
    summary = run.run.summary()
    assert np.isclose(summary["return"]["iqm"], run.summary["return"]["iqm"])


def test_a_run_that_fails_in_its_header_is_let_go(monkeypatch):
    """Also while somebody keeps the error, as notebooks do."""

    def failing(training: Training) -> None:
        raise BrokenPipeError("nobody reads")

    monkeypatch.setattr(Training, "_header", failing)
    with pytest.raises(BrokenPipeError) as kept:
        rlx.train(**keys("dqn"), env="cartpole", seeds=1)
    (path,) = Path("outputs/train/dqn-cartpole").iterdir()
    assert kept.value and not Run(path).is_busy and Run(path).meta()["status"] == "failed"


def test_a_run_is_attacked_whatever_its_folder_is_called():
    run = rlx.train(**keys("dqn"), env="cartpole", seeds=1, outputs="my (runs), it's=3")
    study = rlx.attack(run, attack="fgsm", eps=[0, 0.1], scale="std", episodes=2)
    assert study.config.run == [str(run.path)]


@pytest.mark.parametrize(
    ("agent", "env", "more"),
    [
        ("dqn", "cartpole", {}),
        ("hdqn", "acrobot", {"env.max_episode_steps": 60}),
        ("ppo", "cartpole_masked", {"agent.recurrent": 8}),
        ("dqn", "cartpole", {"env.stack": 3, "env.observe": [0, 2]}),
        ("ppo", "pendulum", {"env.max_episode_steps": 40}),
        ("dqn", "gym", {"env.id": "CartPole-v1", "env.stack": 2}),
        ("q_table", "frozen_lake", {}),
    ],
)
def test_a_policy_plays_as_it_is_evaluated(agent, env, more):
    """Step by step as `rlx evaluate` plays it, with all that it remembers."""
    run = rlx.train(**{**keys(agent), **more}, env=env, seeds=2)
    policy, spec, _ = load_policy(run.run, "best")
    batch = make_env(run.config.env, 2, "cpu")
    seed = REPORT + 3
    obs, _ = batch.reset(seed=[seed, seed])
    first = torch.ones(2, 1, dtype=torch.bool)
    carry = policy.initial_carry(1)
    played = episode(run.policy, run.make_env(), seed)[1]
    for action in played:
        wanted, carry = policy.act(obs.unsqueeze(1), first, carry)
        np.testing.assert_allclose(action, wanted[0, 0].numpy(), rtol=1e-4, atol=1e-5)
        obs, _, _, _, _ = batch.step(wanted.flatten(0, 1))
        first = torch.zeros(2, 1, dtype=torch.bool)
    assert isinstance(played[0], np.ndarray | np.generic)
    assert run.make_env().action_space.contains(played[0]), (played[0], spec.action_space)


def test_gymnasiums_own_env_is_played():
    """What gymnasium.make gives is what the policy takes."""
    run = rlx.train(**keys("dqn"), env="cartpole", seeds=1)
    total, actions = episode(run.policy, gymnasium.make("CartPole-v1"), 0)
    assert total == len(actions) > 5


def test_weights_are_those_that_were_asked_for():
    run = rlx.train(**keys("dqn"), env="cartpole", seeds=[3, 5])
    obs = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    policy, _, seeds = load_policy(run.run, "000000300")
    for seed in seeds:
        own = rlx.load(run.path, checkpoint=300, seed=seed).policy
        tensors = own._policy.state_dict()
        for name, value in policy.state_dict().items():
            assert torch.equal(tensors[name][0], value[seeds.index(seed)])
        assert own.act(obs) in (0, 1)


ERRORS = {
    "agent": ({"agent": "dqm"}, "Did you mean 'dqn'"),
    "key": ({"agent": "dqn", "lr": 3}, "agent.learning_rate"),
    "value": ({"agent": "dqn", "steps": 0}, "steps=0: must be at least 1"),
    "group": ({"agent": {"discount": 0.9}, "env": "cartpole"}, "expected a name of conf/agent"),
    "none": ({"agent": None}, "expected a name of conf/agent"),
    "sweep": ({"experiment": "atari100k"}, "is a sweep"),
    "class": ({"agent": DQN, "env": "cartpole"}, "expected a name of conf/agent"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_exceptions_with_the_command_lines_words(case, tmp_path):
    overrides, message = ERRORS[case]
    with pytest.raises(rlx.ConfigError, match=message):
        rlx.train(**overrides)
    assert not (tmp_path / "outputs").exists()


def test_what_is_not_there_is_said():
    with pytest.raises(rlx.ConfigError, match="no such run"):
        rlx.load("outputs/train/nothing")
    run = rlx.train(**keys("dqn"), env="cartpole", seeds=1)
    with pytest.raises(rlx.ConfigError, match=r"seed=7: not in .*, which has \[0\]"):
        _ = rlx.load(run.path, seed=7).policy
    with pytest.raises(rlx.ConfigError, match="no checkpoint"):
        _ = rlx.load(run.path, checkpoint=123).policy
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        run.policy.act(np.zeros(3, np.float32))


def test_a_users_own_hydra_goes_on(tmp_path):
    """The config of a program that calls rlx is what it was."""
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        rlx.train(**keys("dqn"), env="cartpole", seeds=1)
        rlx.check_env("cartpole")
        assert hydra.compose("mine").a == 1


def test_several_runs_are_attacked_together():
    """As on the command line; what is no training is refused."""
    runs = [rlx.train(**keys("dqn"), env="cartpole", seeds=[seed]) for seed in (1, 2)]
    study = rlx.attack(runs, attack="fgsm", eps=[0], scale="std", episodes=1)
    assert study.summary["seeds"] == [1, 2]
    for wrong in (study, None, [runs[0], 3]):
        with pytest.raises(rlx.ConfigError, match="expected a training"):
            rlx.attack(wrong)


def test_import_is_light_and_names_are_those_of_all():
    """`import rlx` does not import torch, and every name of __all__ is there."""
    code = (
        "import rlx, sys; print('torch' in sys.modules, all(hasattr(rlx, n) for n in rlx.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_checks_from_python():
    rlx.check_agent("ppo", rollout_steps=8)
    rlx.check_env("cartpole", gravity=5.0)
    with pytest.raises(rlx.ConfigError, match="learnt nothing"):
        rlx.check_agent("dqn", learning_starts=20_000)


class Mine(DQN):
    """An agent of somebody's."""


def test_classes_are_checked_without_files():
    """With the settings of the class that they derive from."""
    rlx.check_agent(Mine, learning_starts=64)
    rlx.check_env(CartPole, gravity=5.0)
    with pytest.raises(rlx.ConfigError, match="gravity=heavy"):
        rlx.check_env(CartPole, gravity="heavy")
