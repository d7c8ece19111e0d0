"""rlx's own envs as users of Gymnasium meet them: made by id, one copy or many, checked, copied."""

import copy
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit
from omegaconf import OmegaConf

import rlx.envs  # noqa: F401 (registers)
from rlx.conf import conf_dir
from rlx.envs.batched import BatchedEnv, Dynamics, register
from rlx.envs.cartpole import CartPole
from rlx.envs.tabular import Tabular
from rlx.errors import ConfigError

OURS = {name: spec for name, spec in gymnasium.registry.items() if name.startswith("rlx/")}
NAMES = sorted(name for name, spec in OURS.items() if spec.vector_entry_point is not None)
UNAVOIDABLE = ("is -infinity", "is infinity", "For Box action spaces, we recommend")
"""What Gymnasium's checker says of the spaces of its own CartPole and Pendulum too."""


@dataclass(frozen=True)
class HeavyPole(CartPole):
    """An env of a user's own module."""

    pole_mass: float = 0.5

    max_episode_steps = 30


class Unseen(HeavyPole):
    """An env of a user's own that draws no images."""

    render = Dynamics.render


register("test/HeavyPole-v3", HeavyPole)
register("test/Unseen-v0", Unseen)


def play(env, seed: int, steps: int = 40) -> list:
    """What a copy returns to random actions, begun anew where an episode ends."""
    env.action_space.seed(seed)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        seen.append(result)
        if result[2] or result[3]:
            seen.append(env.reset()[0])
    return seen


def same(one: object, other: object) -> bool:
    """Whether two results are equal to the bit, of the same types."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and np.array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_checker_finds_nothing_in_any_env(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(name)
        check_env(env.unwrapped)
        play(env, 0)  # what make has wrapped it in checks too
    said = [str(warning.message) for warning in caught]
    assert not [text for text in said if not any(known in text for known in UNAVOIDABLE)]


@pytest.mark.parametrize("name", NAMES)
def test_one_copy_returns_what_its_spaces_say_and_the_same_for_the_same_seed(name):
    env = gymnasium.make(name)
    first = play(env, 3)
    assert same(play(env, 3), first) and same(play(gymnasium.make(name), 3), first)
    for result in first:
        obs, *rest = result if isinstance(result, tuple) else (result,)
        assert obs in env.observation_space and obs.dtype == env.observation_space.dtype
        assert [type(value) for value in rest] in ([], [float, bool, bool, dict])
    starts = [(env.reset(seed=seed)[0], env.reset()[0]) for seed in (0, 0)]
    assert same(*starts)
    assert same(env.reset(seed=np.int64(5)), env.reset(seed=5))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_before_the_first_reset_is_refused(name):
    one, many = gymnasium.make(name), gymnasium.make_vec(name, num_envs=2)
    for env in (one, one.unwrapped, many):
        with pytest.raises(ResetNeeded):
            env.step(env.action_space.sample())


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("name", NAMES)
def test_many_copies_are_gymnasiums_vector_of_single_ones_in_every_mode(name, mode):
    limit = {"max_episode_steps": 7}
    ours = gymnasium.make_vec(name, num_envs=3, autoreset_mode=mode.value, numpy=True, **limit)
    kwargs = {"vector_kwargs": {"autoreset_mode": mode}, **limit}
    theirs = gymnasium.make_vec(name, num_envs=3, vectorization_mode="sync", **kwargs)
    assert ours.metadata["autoreset_mode"] == mode == theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    ours.action_space.seed(0)

    def compare(got, expected, space=ours.observation_space):
        assert got.dtype == expected.dtype and got in space
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    compare(ours.reset(seed=11)[0], theirs.reset(seed=11)[0])
    ends = 0
    for _ in range(40):
        action = ours.action_space.sample()
        obs, reward, terminated, truncated, info = ours.step(action)
        expected, their_reward, their_terminated, their_truncated, their_info = theirs.step(action)
        compare(obs, expected)
        np.testing.assert_allclose(reward, their_reward, rtol=1e-4, atol=1e-4)
        ended = terminated | truncated
        assert terminated.tolist() == their_terminated.tolist()
        assert ended.tolist() == (their_terminated | their_truncated).tolist()
        ends += ended.sum()
        if mode == AutoresetMode.SAME_STEP:
            assert info["_final_obs"].tolist() == ended.tolist()
            for i in ended.nonzero()[0]:
                final, their_final = info["final_obs"][i], their_info["final_obs"][i]
                compare(final, their_final, ours.single_observation_space)
        if mode == AutoresetMode.SAME_STEP and ended.any():
            assert info.keys() == their_info.keys()
        if mode == AutoresetMode.DISABLED and ended.any():
            with pytest.raises(ResetNeeded):
                ours.step(action)
            one, other = ({"reset_mask": ended.copy()} for _ in range(2))
            compare(ours.reset(options=one)[0], theirs.reset(options=other)[0])
    assert ends > 9


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_written_down_and_an_env_copied_in_the_middle_of_an_episode(name):
    env = gymnasium.make(name)
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert same(play(gymnasium.make(spec), 1), play(env, 1))
    assert pickle.loads(pickle.dumps(env.spec)) == env.spec == copy.deepcopy(env.spec)
    many = gymnasium.make_vec(name, num_envs=2)
    spec = gymnasium.envs.registration.EnvSpec.from_json(many.spec.to_json())
    assert torch.equal(gymnasium.make_vec(spec).reset(seed=1)[0], many.reset(seed=1)[0])
    for played in (env, many):
        played.reset(seed=2)
        terminated = played.step(played.action_space.sample())[2]
        if terminated is True:  # Chain's first step may
            played.reset()
        twins = [copy.deepcopy(played)]
        twins += [pickle.loads(module.dumps(played)) for module in (pickle, cloudpickle)]
        for twin in twins:
            action = twin.action_space.sample()
            played_on = copy.deepcopy(played)
            for step in range(3):
                one, other = twin.step(action), played_on.step(action)
                assert same(list(map(np.asarray, one[:4])), list(map(np.asarray, other[:4]))), step
                if np.asarray(one[2]).any():
                    break


def test_a_spec_makes_its_env_in_a_process_that_has_not_heard_of_rlx():
    env = gymnasium.make("rlx/CartPole-v1", gravity=5.0, max_episode_steps=9)
    code = "import sys, gymnasium; from gymnasium.envs.registration import EnvSpec\n"
    code += "env = gymnasium.make(EnvSpec.from_json(sys.argv[1]))\n"
    code += "limit, first = env.spec.max_episode_steps, env.reset(seed=4)[0]\n"
    code += "print(limit, first.tolist(), env.step(1)[0].tolist())"
    command = [sys.executable, "-c", code, env.spec.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = f"9 {env.reset(seed=4)[0].tolist()} {env.step(1)[0].tolist()}"
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_time_limit_truncates_and_gymnasiums_wrappers_go_round(name):
    env = RecordEpisodeStatistics(gymnasium.make(name, max_episode_steps=2))
    assert isinstance(env.env, TimeLimit)
    for seed in range(20):
        env.reset(seed=seed)
        steps = 1
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        while not (terminated or truncated):
            assert "episode" not in info
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            steps += 1
        assert steps == 2 if truncated else terminated
        assert info["episode"]["l"] == steps
    bare = gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True)
    checked = PassiveEnvChecker(bare)
    checked.reset(seed=0)
    assert not checked.step(checked.action_space.sample())[3]


def test_parameters_reach_the_env_and_wrong_ones_are_named():
    light = gymnasium.make("rlx/CartPole-v1", pole_mass=0.1)
    heavy = gymnasium.make("rlx/CartPole-v1", pole_mass=np.float64(0.5))
    own = gymnasium.make("test/HeavyPole-v3")
    for env in (light, heavy, own):
        env.reset(seed=0)
    assert same(heavy.step(1)[0], own.step(1)[0]) and not same(light.step(1)[0], heavy.step(1)[0])
    assert own.spec.max_episode_steps == 30
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ConfigError, match="gravit: unknown key. Did you mean 'env.gravity'"):
            make("rlx/CartPole-v1", gravit=3.0)
        with pytest.raises(ConfigError, match="gravity=much: expected a number"):
            make("rlx/CartPole-v1", gravity="much")
        with pytest.raises(ConfigError, match="is_slipery"):
            make("rlx/FrozenLake-v1", is_slipery=False)
        # Stable-Baselines3 asks for images first, and after a TypeError without.
        with pytest.raises(TypeError, match="draws no images"):
            make("test/Unseen-v0", render_mode="rgb_array")
        assert make("rlx/CartPole-v1", render_mode="rgb_array").reset(seed=0)
    for limit in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="max_episode_steps"):
            gymnasium.make_vec("rlx/CartPole-v1", max_episode_steps=limit)


def test_a_dynamics_of_ones_own_is_registered_by_one_line_wherever_it_stands():
    @dataclass(frozen=True)
    class Local(HeavyPole):
        """Without an importable name."""

    register("test/Local-v0", Local)
    register("test/FloatingPole-v0", CartPole, max_episode_steps=5, gravity=0.0)
    try:
        local, importable = gymnasium.make("test/Local-v0"), gymnasium.make("test/HeavyPole-v3")
        assert same(play(local, 0), play(importable, 0))
        floating = gymnasium.make("test/FloatingPole-v0").unwrapped
        assert floating.batch.dynamics == CartPole(gravity=0.0)
        assert gymnasium.make_vec("test/FloatingPole-v0").max_episode_steps == 5
        assert gymnasium.make_vec("test/FloatingPole-v0", gravity=1.0).dynamics.gravity == 1
        assert CartPole.gymnasium_id == "CartPole-v1"
    finally:
        for name in ("test/Local-v0", "test/FloatingPole-v0"):
            del gymnasium.registry[name]


def test_the_tables_of_conf_have_their_own_names_limits_and_keywords():
    nodes = [OmegaConf.load(path) for path in Path(conf_dir(), "env").glob("*.yaml")]
    tables = [node for node in nodes if str(node.get("_target_", "")).endswith(".Tabular")]
    assert len(tables) >= 4
    for node in tables:
        env = gymnasium.make_vec(f"rlx/{node.id}")
        assert env.max_episode_steps == node.max_episode_steps
        assert env.spec.reward_threshold == env.reward_threshold
        by_config = BatchedEnv(Tabular(node.id, dict(node.kwargs)))
        assert env.observation_space == by_config.observation_space
    for slippery, places in ((True, 3), (False, 1)):
        env = gymnasium.make_vec("rlx/FrozenLake-v1", num_envs=50, is_slippery=slippery)
        env.reset(seed=0)
        assert len(env.step(torch.full((50,), 2))[0].unique()) == places


def cartpoles(**kwargs) -> BatchedEnv:
    """Four of them, reset and a few steps on."""
    env = gymnasium.make_vec("rlx/CartPole-v1", num_envs=4, **kwargs)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.ones(4, int))
    return env


def test_reset_mask_resets_those_copies_alone():
    env, other = cartpoles(), cartpoles()
    before = env.state.clone()
    obs, _ = env.reset(options={"reset_mask": np.array([True, False, False, True])})
    assert torch.equal(obs[1:3], before[1:3]) and (obs[[0, 3]] != before[[0, 3]]).all()
    assert env._steps.tolist() == [0, 3, 3, 0]
    # A seed counts for them alone; the others' streams and time limits go on.
    obs, _ = env.reset(seed=7, options={"reset_mask": torch.tensor([True, False, False, False])})
    assert torch.equal(obs[0], other.reset(seed=7)[0][0])
    untouched = cartpoles()
    for _ in range(60):
        action = np.random.default_rng(0).integers(2, size=4)
        assert torch.equal(env.step(action)[0][1:3], untouched.step(action)[0][1:3])
    wrong = [(np.array([1, 0, 0, 0]), TypeError)]
    wrong += [(np.ones(3, bool), ValueError), (np.zeros(4, bool), ValueError)]
    for mask, error in wrong:
        with pytest.raises(error, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ResetNeeded):
        gymnasium.make_vec("rlx/CartPole-v1").reset(options={"reset_mask": np.ones(1, bool)})


def test_random_streams_go_on_and_only_the_first_is_fresh():
    env = cartpoles()
    runs = []
    for seed in (0, np.int64(0), np.array([0, 1, 2, 3]), range(4)):
        runs.append([env.reset(seed=seed)[0], env.reset()[0], env.reset()[0]])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1]) and not torch.equal(runs[0][1], runs[0][2])
    fresh = [gymnasium.make_vec("rlx/CartPole-v1", num_envs=4).reset()[0] for _ in range(2)]
    assert not torch.equal(*fresh)
    with pytest.raises(ValueError, match="3 seeds for num_envs=4"):
        env.reset(seed=[1, 2, 3])


@pytest.mark.parametrize("action", [2, -1, 0.5, np.nan, 2**40])
def test_actions_outside_the_space_are_refused(action):
    given = np.array([0, 1, action, 1])
    with pytest.raises(ValueError, match=rf"action {given[2]}: not in Discrete\(2\)"):
        cartpoles().step(given)
    one = gymnasium.make("rlx/CartPole-v1")
    one.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        one.step(action)
    for shape in ((3,), (4, 1), ()):
        with pytest.raises(ValueError, match=r"expected \(4,\), each in Discrete\(2\)"):
            cartpoles().step(np.ones(shape, int))


def test_actions_are_cast_to_the_spaces_dtype():
    wanted = cartpoles().step(torch.tensor([0, 1, 1, 0]))[0]
    for dtype in (torch.int32, torch.uint8, torch.float32, torch.float64, torch.bool):
        assert torch.equal(cartpoles().step(torch.tensor([0, 1, 1, 0]).to(dtype))[0], wanted)
    assert torch.equal(cartpoles().step([0, 1, 1, 0])[0], wanted)
    env = gymnasium.make_vec("rlx/Pendulum-v1", num_envs=4)
    env.reset(seed=0)
    for dtype in (np.float64, np.float32, np.float16, int):
        obs, reward, *_ = env.step(np.ones((4, 1), dtype))
        assert obs.dtype == reward.dtype == torch.float32
    with pytest.raises(ValueError, match=r"shape \(4,\): expected \(4, 1\)"):
        env.step(np.ones(4))


def episodes(envs) -> list:
    """(return, length) of the episodes that RecordEpisodeStatistics notes; 1 per step."""
    envs.reset(seed=0)
    for _ in range(100):
        *_, info = envs.step(np.ones(envs.num_envs, int))
        if "episode" in info:
            assert (info["_episode"] == info["_final_obs"]).all()
    return list(zip(envs.return_queue, envs.length_queue, strict=True))


def test_gymnasiums_vector_wrappers_go_round_the_arrays():
    envs = gymnasium.make_vec("rlx/CartPole-v1", num_envs=4, numpy=True)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    noted = episodes(envs)
    assert len(noted) > 30 and all(total == length and 7 < length < 13 for total, length in noted)
    kept = envs.step(np.ones(4, int))[0]
    before = kept.copy()
    kept[:] = 0  # an array of its own, not the env's state
    assert (envs.unwrapped.state != 0).all() and (before != 0).all()


def test_gymnasiums_conversion_goes_round_the_tensors():
    pytest.importorskip("array_api_compat")
    envs = gymnasium.make_vec("rlx/CartPole-v1", num_envs=4)
    envs = gymnasium.wrappers.vector.ArrayConversion(envs, env_xp=torch, target_xp=np)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    arrays = gymnasium.make_vec("rlx/CartPole-v1", num_envs=4, numpy=True)
    assert episodes(envs) == episodes(gymnasium.wrappers.vector.RecordEpisodeStatistics(arrays))
