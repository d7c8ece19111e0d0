"""The Control Suite's tasks are dm_control's own, and can stop and go on anywhere."""

import numpy as np
import pytest
import torch
from conftest import TINY, compose, small
from test_resume import fingerprint

from rlx.envs import dmc
from rlx.errors import ConfigError
from rlx.experiment import make_env

assert dmc  # says how to draw before dm_control is imported
suite = pytest.importorskip("dm_control.suite")


def make(*overrides, num_envs=2):
    return make_env(compose("train", "env=dmc", *overrides).env, num_envs, "cpu")


def flat(timestep):
    """The numbers of an observation of the suite's."""
    return np.concatenate([np.ravel(part) for part in timestep.observation.values()])


def test_rewards_and_observations_are_the_suites():
    overrides = ("env.pixels=false", "env.bins=3", "env.repeat=2", "env.task=reacher-easy")
    env = make(*overrides, num_envs=1)
    obs, _ = env.reset(seed=5)
    seed = int(np.random.default_rng(5).integers(2**31))
    theirs = suite.load("reacher", "easy", task_kwargs={"random": seed})
    timestep = theirs.reset()
    actions = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    rng, total, score = np.random.default_rng(0), 0.0, 0.0
    for step in range(500):
        np.testing.assert_allclose(obs[0], flat(timestep), rtol=1e-5, atol=1e-6)
        action = rng.integers(9)
        reward = 0.0
        for _ in range(2):
            timestep = theirs.step(actions[action])
            reward += timestep.reward
        obs, mine, terminated, truncated, info = env.step(torch.tensor([action]))
        assert float(mine) == pytest.approx(reward)
        assert not terminated and bool(truncated) == (step == 499)
        total += float(mine)
        score += reward
    assert total == pytest.approx(score)
    assert info["final_obs"][0].numpy() == pytest.approx(flat(timestep), rel=1e-5, abs=1e-6)


def test_images_show_the_cart_and_copies_depend_on_their_seed_alone():
    try:
        env = make("env.size=64")
    except Exception as error:  # no OpenGL on this machine
        pytest.skip(str(error))
    obs, _ = env.reset(seed=[3, 4])
    assert obs.shape == (2, 3, 64, 64) and obs.dtype == torch.uint8 and obs.float().std() > 10
    alone = make("env.size=64", num_envs=1)
    first, _ = alone.reset(seed=[4])
    for _ in range(5):
        assert torch.equal(first[0], obs[1])
        first, obs = alone.step(torch.tensor([4]))[0], env.step(torch.tensor([0, 4]))[0]
    assert not torch.equal(obs[0], obs[1])


def test_a_run_resumed_is_the_run_uninterrupted(rlx):
    arguments = ["train", "agent=dqn", "env=dmc", "env.pixels=false", "env.repeat=100"]
    arguments += [*TINY, "seeds=2", *small("dqn")]
    arguments += ["steps=120", "eval_every=60", "checkpoint_every=60"]
    arguments += ["eval_episodes=1", "final_episodes=1"]
    whole, shorter = rlx(*arguments), rlx(*arguments, "steps=60")
    assert rlx("resume", shorter.run, "steps=120").code == 0
    assert fingerprint(shorter.run) == fingerprint(whole.run)


def test_mistakes_are_told():
    message = r"cartpole-swingu: no such task\. Did you mean 'cartpole-swingup'"
    with pytest.raises(ConfigError, match=message):
        make("env.task=cartpole-swingu")
    with pytest.raises(ConfigError, match="15,625 actions in 6 dimensions"):
        make("env.task=walker-walk")
