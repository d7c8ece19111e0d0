"""CarRacing drawn at its own size is Gymnasium's."""

import copy
import inspect
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, small
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import check_env
from test_resume import fingerprint

from rlx.envs.car_racing import ACTIONS, CarRacing
from rlx.experiment import eval_env_config, make_env

DARKER = 2
"""By how much of 255 pygame's scaling darkens Gymnasium's images; a machine without SSE may not."""


def drive(seed: int, frames: int, **options):
    """Gymnasium's env and ours over the same actions: pairs of images, in full colour."""
    theirs = gymnasium.make("CarRacing-v3").unwrapped
    ours = CarRacing(continuous=True, gray=False, **options)
    rng = np.random.default_rng(seed)
    images = [(theirs.reset(seed=seed)[0], ours.reset(seed=seed)[0])]
    for frame in range(frames):
        if frame % 10 == 0:
            action = rng.uniform([-0.5, 0, 0], [0.5, 1, 0.2]).astype(np.float32)
        expected, got = theirs.step(action), ours.step(action)
        assert expected[1:4] == got[1:4]
        images.append((expected[0], got[0]))
    assert theirs.track == ours.track and theirs.car.hull.position == ours.car.hull.position
    return images


def test_tracks_physics_and_rewards_are_gymnasiums_and_images_differ_at_edges_only():
    for seed in (0, 7):
        theirs, ours = zip(*drive(seed, 80), strict=True)
        theirs = np.array(theirs).astype(int)
        ours = np.array(ours).astype(int)
        ours = ours.transpose(0, 2, 3, 1)
        off = np.abs(np.where(theirs > 0, theirs + DARKER, 0) - ours).max(-1)
        assert off.mean() < 2 and (off > 32).mean() < 0.03 and (off <= DARKER).mean() > 0.9
        # Where nothing is drawn but the ground, the colours are the same; so is the score.
        assert np.median(off[:, :84]) == 0 and off[:, 84:, :12].max() <= DARKER + 1


def test_gray_is_the_weighted_mean_of_the_colours():
    coloured, gray = CarRacing(gray=False), CarRacing(dashboard=True)
    for env in (coloured, gray):
        env.reset(seed=3)
    for action in [2] * 30 + [8] * 10:
        rgb, level = coloured.step(action)[0], gray.step(action)[0]
    assert level.shape == (1, 96, 96) and rgb.shape == (3, 96, 96) and level.dtype == np.uint8
    weighted = np.tensordot([0.299, 0.587, 0.114], rgb, 1)
    assert np.abs(weighted - level[0])[:, 12:].max() <= 2.5  # shapes and means are rounded


def test_options():
    repeated, single = CarRacing(repeat=4, continuous=True), CarRacing(continuous=True)
    for env in (repeated, single):
        env.reset(seed=1)
    action = np.array([0.1, 0.5, 0], np.float32)
    for _ in range(5):
        image, reward, *_ = repeated.step(action)
        singles = [single.step(action) for _ in range(4)]
        assert reward == pytest.approx(sum(result[1] for result in singles))
        assert (image == singles[-1][0]).all()
    hidden = CarRacing(dashboard=False)
    assert (hidden.reset(seed=1)[0][:, 84:] == 0).all()
    impatient = CarRacing(patience=10, repeat=4)
    impatient.reset(seed=1)
    ends = [impatient.step(0)[2:4] for _ in range(20)]
    first = ends.index((False, True))
    assert first < 12 and all(end == (False, False) for end in ends[:first])


def test_the_25_actions_stand_in_the_sources_order():
    straight = [(0, 0, 0), (0, 0.5, 0), (0, 1, 0), (0, 0, 0.5), (0, 0, 1)]
    left = [(-0.5, 0, 0), (-1, 0, 0), (-0.5, 0.5, 0), (-1, 0.5, 0), (-0.5, 1, 0), (-1, 1, 0)]
    left += [(-0.5, 0, 0.5), (-1, 0, 0.5), (-0.5, 0, 1), (-1, 0, 1)]
    right = [(-steer, gas, brake) for steer, gas, brake in left]
    np.testing.assert_allclose(ACTIONS, [*straight, *left, *right])
    discrete, continuous = CarRacing(gray=False), CarRacing(gray=False, continuous=True)
    assert (discrete.reset(seed=2)[0] == continuous.reset(seed=2)[0]).all()
    for number in (2, 7, 16, 24):
        a, b = discrete.step(number), continuous.step(ACTIONS[number])
        assert (a[0] == b[0]).all() and a[1] == b[1]


def test_images_are_stacked(composed):
    overrides = ("env=car_racing", "+env.stack=3", "env.max_episode_steps=4")
    env = make_env(composed("train", *overrides).env, 2, "cpu")
    obs, _ = env.reset(seed=5)
    assert obs.shape == (2, 3, 96, 96) and obs.dtype == torch.uint8
    assert (obs[:, 0] == obs[:, 2]).all()
    for _ in range(4):
        before = obs
        obs, _, _, truncated, info = env.step(torch.tensor([2, 2]))
    assert truncated.all() and (info["final_obs"][:, :2] == before[:, 1:]).all()
    assert (obs[:, 0] == obs[:, 2]).all()


def test_ppo_trains_on_it_and_goes_on_exactly(rlx):
    arguments = ["train", "agent=ppo", "env=car_racing", "env.max_episode_steps=12"]
    arguments += [*TINY, *small("ppo"), "agent.conv=[[4,8,8]]", "seeds=1", "num_envs=2"]
    arguments += ["steps=96", "eval_every=32", "checkpoint_every=32"]
    arguments += ["final_episodes=1", "eval_episodes=1"]
    whole, part = rlx(*arguments), rlx(*arguments, "steps=64")
    assert whole.code == 0 and rlx("resume", part.run, "steps=96").code == 0
    assert fingerprint(part.run) == fingerprint(whole.run)


def test_evaluation_changes_only_the_keys_it_names(composed):
    config = composed("train", "agent=ppo", "env=car_racing")
    assert config.env.kwargs.patience == 150
    assert eval_env_config(config)["kwargs"] == dict(config.env.kwargs) | {"patience": None}


OTHERS = {
    "render_mode": "rgb_array",
    "lap_complete_percent": 0.5,
    "domain_randomize": True,
    "continuous": True,
    "repeat": 3,
    "gray": False,
    "dashboard": False,
    "patience": 40,
}
"""A value of each argument that is not its default."""


@pytest.mark.parametrize("arguments", [{}, OTHERS], ids=["defaults", "others"])
def test_a_pickled_or_copied_env_is_the_same_env(arguments):
    defaults = inspect.signature(CarRacing).parameters
    assert OTHERS.keys() == defaults.keys()
    assert all(value != defaults[name].default for name, value in OTHERS.items())
    env = gymnasium.make("rlx/CarRacing-v3", **arguments).unwrapped
    kept = [name for name in OTHERS if name != "continuous"]  # the physics always are
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert [getattr(twin, name) for name in kept] == [getattr(env, name) for name in kept]
        assert twin.action_space == env.action_space
        assert twin.observation_space == env.observation_space
        env.reset(seed=3), twin.reset(seed=3)
        action = np.array([0.3, 1, 0], np.float32) if arguments else 12
        for _ in range(3):
            one, other = env.step(action), twin.step(action)
            assert (one[0] == other[0]).all() and one[1:4] == other[1:4]


@pytest.mark.parametrize("gray", [True, False])
def test_state_pixels_are_the_image_seen(gray):
    env = CarRacing(render_mode="state_pixels", gray=gray)
    assert env.render() is None  # as Gymnasium's before the first reset
    for move in (lambda: env.reset(seed=1), lambda: env.step(2)):
        seen, image = move()[0], env.render()
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert (image == seen.transpose(1, 2, 0)).all() and image.std() > 10


def test_gymnasiums_checker_finds_nothing_and_other_actions_are_refused():
    env = gymnasium.make("rlx/CarRacing-v3")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(env.unwrapped, skip_render_check=True)
    for action in (-1, 25, 0.5):
        env.reset(seed=0)
        with pytest.raises(InvalidAction, match=r"not in Discrete\(25\)"):
            env.step(action)
