"""What a radius means: names and units, scales that belong to an env, the circle of an angle."""

import pytest
import torch
from conftest import compose

from rlx.checks.envs import env_checks
from rlx.env import time_limit_words
from rlx.experiment import make_env


def env(*overrides: str, num_envs: int = 1):
    """Copies of the env of these overrides."""
    return make_env(compose("train", *overrides).env, num_envs, "cpu")


def test_what_envs_say_of_their_components():
    acrobot = env("env=acrobot")
    assert acrobot.observation_units[4:] == ("θ1' (rad/s)", "θ2' (rad/s)")
    assert acrobot.angles == ((0, 1), (2, 3)) and acrobot.lowest_reward == -1
    assert env("env=cartpole").observation_units[2] == "angle (rad)"
    assert env("env=cartpole").angles == ()
    assert env("env=cartpole_frames").observation_units is None
    assert env("env=pendulum").lowest_reward == pytest.approx(-16.2736, abs=1e-4)
    assert env("env=taxi").lowest_reward == -10
    known_to_gymnasium = env("env=gym", "env.id=Acrobot-v1")
    assert known_to_gymnasium.observation_units is None and known_to_gymnasium.angles == ()


def test_a_view_names_what_it_shows():
    view = env("env=acrobot", "+env.observe=[3,4,2]", "+env.stack=2")
    shown = ("sin θ2", "θ1' (rad/s)", "cos θ2")
    assert view.observation_units == (*(f"{name}, 1 ago" for name in shown), *shown)
    assert view.angles == ((2, 0), (5, 3))
    obs, _ = view.reset(seed=3)
    torch.testing.assert_close(obs[:, 2].square() + obs[:, 0].square(), torch.ones(1))


@pytest.mark.parametrize("overrides", [["env=acrobot", "+env.stack=2"], ["env=pendulum"]])
def test_the_check_of_an_env_looks_at_what_it_says(overrides):
    holds = list(env_checks(compose("train", *overrides).env))
    assert holds[-1].startswith("what it says of its observations and rewards holds")


def test_the_time_limit_is_harm_only_where_the_env_says_so():
    assert "has failed" in time_limit_words(env("env=acrobot"))
    assert "one of the best" in time_limit_words(env("env=cartpole"))
    # Pendulum has no other end, and of Gymnasium's envs nobody has said anything.
    assert time_limit_words(env("env=pendulum")) is None
    assert time_limit_words(env("env=gym", "env.id=CartPole-v1")) is None
