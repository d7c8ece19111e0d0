"""Torch-native envs are Gymnasium's, step by step; copies are independent; exact values hold."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rlx.envs  # noqa: F401 (registers)
from rlx.conf import conf_dir
from rlx.config import load_class
from rlx.envs import atari
from rlx.envs.batched import BatchedEnv, Dynamics
from rlx.envs.chain import Chain
from rlx.envs.gym import GymEnv
from rlx.envs.maze import _CELLS, _MOVES, Maze
from rlx.errors import ConfigError
from rlx.experiment import make_env

# The attacked env needs victims: tests/test_attacked_env.py.
CONFIGS = sorted({path.stem for path in Path(conf_dir(), "env").glob("*.yaml")} - {"attacked"})
CHOICES = {
    "gym": ["env.id=CartPole-v1"],
    "atari": ["env.game=freeway", "env.max_episode_steps=150"],
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_env_of_rlxs_own_is_registered(name, composed):
    config = composed("train", f"env={name}", *CHOICES.get(name, ())).env
    kind = load_class(config, "env", object)
    if issubclass(kind, Dynamics):
        assert f"rlx/{config.get('id', kind.gymnasium_id)}" in gymnasium.registry


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("Acrobot-v1", [-3.14, -3.14, -6, -10], [3.14, 3.14, 6, 10]),
        ("CartPole-v1", [-2.4, -3, -0.22, -3], [2.4, 3, 0.22, 3]),
        ("MountainCar-v0", [-1.2, -0.07], [0.6, 0.07]),
        ("Pendulum-v1", [-9, -8], [9, 8]),
    ],
)
def test_step_equals_gymnasiums(name, low, high):
    theirs = gymnasium.make(name).unwrapped
    mine = gymnasium.make_vec(f"rlx/{name}", num_envs=1000).unwrapped
    mine.reset(seed=0)
    rng = np.random.default_rng(0)
    states = rng.uniform(low, high, (1000, len(low))).astype(np.float32)
    states[:20, 0] = low[0]  # at the edge
    continuous = isinstance(theirs.action_space, gymnasium.spaces.Box)
    if continuous:
        actions = rng.uniform(-3, 3, (1000, 1)).astype(np.float32)
    else:
        actions = rng.integers(theirs.action_space.n, size=1000)
    assert mine.single_observation_space == theirs.observation_space
    assert mine.single_action_space == theirs.action_space
    mine.state = torch.from_numpy(states)
    _, reward, terminated, truncated, info = mine.step(actions)
    ends = 0
    for i in range(1000):
        theirs.reset()
        theirs.state = states[i].astype(np.float64)
        theirs.last_u = None
        obs, r, done, _, _ = theirs.step(actions[i])
        np.testing.assert_allclose(info["final_obs"][i], obs, rtol=2e-4, atol=2e-4)
        near_edge = False
        if name == "Acrobot-v1":
            theta1, theta2 = theirs.state[:2]
            near_edge = abs(-np.cos(theta1) - np.cos(theta1 + theta2) - 1) < 1e-3
        if not near_edge:
            assert float(reward[i]) == pytest.approx(r, rel=1e-4, abs=1e-4), (states[i], actions[i])
            assert bool(terminated[i]) == done, (states[i], actions[i])
        ends += done
    assert (ends == 0 if continuous else 0 < ends < 1000) and not truncated.any()


class Operations(TorchDispatchMode):
    """How many operations are asked of torch; views, which compute nothing, are none."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation._schema.returns
        is_view = any(result.alias_info and not result.alias_info.is_write for result in results)
        self.count += not is_view
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "most"), [("acrobot", 104), ("cartpole", 41), ("mountain_car", 30)]
)
def test_a_step_takes_few_operations(name, most, composed):
    # A small batch's step takes as long as its operations, a few microseconds each.
    env = make_env(composed("train", f"env={name}").env, 6, CPU)
    env.reset(seed=0)
    action = torch.zeros(env.action_space.shape, dtype=torch.int64)
    with Operations() as operations:
        env.step(action)
    assert operations.count <= most


def alike(one, other) -> bool:
    """Whether two rows, computed in batches of two sizes, are equal to rounding."""
    if one.dtype == torch.uint8:  # a drawn level may round to its neighbour
        off = (one.int() - other.int()).abs()
        return bool(off.max() <= 1) and bool((off > 0).float().mean() < 1e-3)
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.rounding
@pytest.mark.parametrize("name", CONFIGS)
def test_copies_depend_on_their_own_seed_alone(name, composed):
    config = composed("train", f"env={name}", *CHOICES.get(name, ())).env
    if config._target_ == "rlx.envs.atari.AtariEnv":
        pytest.importorskip("ale_py")
    together, alone = make_env(config, 6, CPU), make_env(config, 1, CPU)
    assert alike(together.reset(seed=[3, 1, 4, 1, 5, 9])[0][4:5], alone.reset(seed=[5])[0])
    space = together.single_action_space
    space.seed(0)
    half = 20 if name == "dmc" else 200  # its images take 10 ms
    for step in range(2 * half):
        action = np.stack([space.sample() for _ in range(6)])
        if step == half:
            together.keep(torch.tensor([4, 0]))
        now = together.step(action if step < half else action[[4, 0]])
        one = alone.step(action[4:5])
        row = 4 if step < half else 0
        for a, b in zip(now[:4], one[:4], strict=True):
            assert alike(a[row : row + 1], b)
        assert alike(now[4]["final_obs"][row : row + 1], one[4]["final_obs"])
        if isinstance(alone, BatchedEnv):  # rounding would grow in chaotic dynamics
            torch.testing.assert_close(
                alone.state, together.state[row : row + 1], rtol=1e-4, atol=1e-5
            )
            alone.state = together.state[row : row + 1].clone()


def test_time_limit_truncates_and_the_fall_terminates():
    env = gymnasium.make_vec("rlx/Acrobot-v1", num_envs=2, max_episode_steps=7).unwrapped
    first, _ = env.reset(seed=0)
    for step in range(1, 15):
        obs, _, terminated, truncated, info = env.step(torch.tensor([1, 1]))
        assert not terminated.any() and truncated.tolist() == [step % 7 == 0] * 2
        assert torch.equal(obs, info["final_obs"]) == (step % 7 != 0)
        if step % 7 == 0:  # a new episode from other start states
            assert not torch.equal(obs, first)
    env = gymnasium.make_vec("rlx/CartPole-v1", num_envs=1).unwrapped
    env.reset(seed=0)
    flags = [env.step(torch.tensor([1]))[2:4] for _ in range(12)]
    assert any(bool(t) for t, _ in flags) and not any(bool(t) for _, t in flags)


def test_a_perfect_paddle_catches_every_ball_and_a_resting_one_a_fifth():
    env = make_env({"_target_": "rlx.envs.catch.Catch"}, 500, CPU)
    for follow, share in ((True, 1.0), (False, 0.2)):
        obs, _ = env.reset(seed=0)
        for step in range(1, 10):
            board = obs.view(-1, 10, 5)
            ball, paddle = board[:, step - 1].argmax(1), board[:, 9].argmax(1)
            obs, reward, terminated, truncated, _ = env.step(1 + (ball - paddle).sign() * follow)
            assert bool((terminated == (step == 9)).all()) and not truncated.any()
            assert step == 9 or not reward.any()
        assert abs(float((reward == 1).float().mean()) - share) < 0.05
        assert set(reward.tolist()) <= {1.0, -1.0}


def chain_value(right: float) -> float:
    """Expected return of moving right with probability `right`, by solving the linear system."""
    p = right * 0.5
    states = [(place, visited) for place in range(1, 6) for visited in (0, 1)]
    index = {state: i for i, state in enumerate(states)}
    a, b = np.eye(len(index)), np.zeros(len(index))
    for (place, visited), i in index.items():
        for step, probability in ((1, p), (-1, 1 - p)):
            following = min(place + step, 5)
            visited_now = int(visited or following == 5)
            if following == 0:
                b[i] += probability * (1.0 if visited_now else 0.01)
            else:
                a[i, index[following, visited_now]] -= probability
    return float(np.linalg.solve(a, b)[index[1, 0]])


def test_chain_has_its_exact_values():
    assert chain_value(1) == pytest.approx(0.208)
    assert chain_value(0) == pytest.approx(0.01)
    assert chain_value(0.5) == pytest.approx(2 / 110)
    for right, expected in ((1.0, 0.208), (0.5, 2 / 110)):
        env = gymnasium.make_vec("rlx/Chain-v0", num_envs=40_000).unwrapped
        env.reset(seed=0)
        value, alive = torch.zeros(40_000), torch.ones(40_000, dtype=torch.bool)
        draws = torch.Generator().manual_seed(0)
        while alive.any():
            actions = (torch.rand(40_000, generator=draws) < right).long()
            _, reward, terminated, truncated, _ = env.step(actions)
            value += reward * alive
            alive &= ~(terminated | truncated)
        assert float(value.mean()) == pytest.approx(expected, abs=4 * float(value.std()) / 200)
    assert Chain.observation_space.n == 6


def test_maze_shortest_way_returns_what_it_says():
    distance, edge, steps = {_CELLS.index("S"): 0}, [_CELLS.index("S")], 0
    while edge:
        steps += 1
        edge = [
            c + m
            for c in edge
            for m in _MOVES
            if _CELLS[c + m] != "#" and distance.setdefault(c + m, steps) == steps
        ]
    assert distance[_CELLS.index("G")] == 10
    env = gymnasium.make_vec("rlx/Maze-v0", num_envs=1).unwrapped
    env.reset(seed=0)
    cell, total = _CELLS.index("G"), 0.0
    way = []
    while cell != _CELLS.index("S"):
        move = next(m for m in range(4) if distance.get(cell - _MOVES[m], 99) == distance[cell] - 1)
        way.insert(0, move)
        cell -= _MOVES[move]
    for move in way:
        _, reward, terminated, _, _ = env.step(torch.tensor([move]))
        total += float(reward)
    assert bool(terminated) and total == pytest.approx(0.9)
    assert Maze.action_space.n == 4


def test_adapter_plays_what_gymnasium_plays():
    mine, theirs = GymEnv("CartPole-v1", num_envs=3), gymnasium.make("CartPole-v1")
    obs, _ = mine.reset(seed=[5, 6, 7])
    single, _ = theirs.reset(seed=6)
    rng = np.random.default_rng(0)
    for _ in range(100):
        np.testing.assert_array_equal(obs[1], single)
        actions = torch.from_numpy(rng.integers(2, size=3))
        obs, reward, terminated, truncated, info = mine.step(actions)
        single, r, done, cut, _ = theirs.step(int(actions[1]))
        assert (float(reward[1]), bool(terminated[1]), bool(truncated[1])) == (r, done, cut)
        np.testing.assert_array_equal(info["final_obs"][1], single)
        if done or cut:
            single, _ = theirs.reset()


def test_adapter_names_the_nearest_id():
    with pytest.raises(ConfigError, match="CartPole-v1"):
        GymEnv("CartPol-v1")


def test_atari_names_its_extra(composed, monkeypatch):
    atari._emulator.cache_clear()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match=r'pip install "rlx\[atari\]"'):
        make_env(composed("train", "env=pong").env, 1, CPU)


GRIDS = {"taxi": 7.930, "frozen_lake": 0.7442, "frozen_lake_8x8": 0.9132, "cliff_walking": -13}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_gymnasiums_transitions_and_the_exact_optimum_of_its_tables(name, composed):
    config = composed("train", f"env={name}").env
    env, table = make_env(config, 6000, CPU), gymnasium.make(config.id, **config.kwargs).unwrapped
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    states = rng.integers(len(table.P), size=6000)
    actions = rng.integers(table.action_space.n, size=6000)
    env.state = torch.from_numpy(states).unsqueeze(1)
    _, reward, terminated, _, info = env.step(actions)
    expected = 0.0
    for i in range(6000):
        branch = table.P[states[i]][actions[i]]
        assert any(
            (n, bool(t)) == (int(info["final_obs"][i]), bool(terminated[i]))
            and float(reward[i]) == pytest.approx(r)
            for _, n, r, t in branch
        )
        expected += sum(p * n for p, n, _, _ in branch)
    assert float(info["final_obs"].sum()) == pytest.approx(expected, rel=0.02)
    # Finite-horizon dynamic programming: value[s] with t steps left.
    value = np.zeros(len(table.P))
    for _ in range(config.max_episode_steps):
        value = np.array(
            [
                max(sum(p * (r + value[n] * (not t)) for p, n, r, t in b) for b in row.values())
                for row in table.P.values()
            ]
        )
    assert float(value @ table.initial_state_distrib) == pytest.approx(GRIDS[name], abs=6e-4)


def test_a_view_shows_some_components_and_remembers(composed):
    whole = make_env(composed("train", "env=cartpole").env, 3, CPU)
    shown = composed("train", "env=cartpole", "+env.observe=[2,0]", "+env.stack=3").env
    part = make_env(shown, 3, CPU)
    full, seen = whole.reset(seed=[1, 2, 3])[0], part.reset(seed=[1, 2, 3])[0]
    past = [full[:, [2, 0]]] * 3
    for _ in range(60):
        assert torch.equal(seen, torch.cat(past, 1)) and part.single_observation_space.shape == (6,)
        action = torch.randint(2, (3,))
        (full, reward, ended, _, info), (seen, r, e, _, i) = whole.step(action), part.step(action)
        final = [*past[1:], info["final_obs"][:, [2, 0]]]
        assert torch.equal(i["final_obs"], torch.cat(final, 1))
        assert torch.equal(reward, r) and torch.equal(ended, e)
        past = [torch.where(ended[:, None], full[:, [2, 0]], frame) for frame in final]
    for bad, message in (("+env.observe=[4]", "components 0 to 3"), ("+env.stack=0", "at least 1")):
        with pytest.raises(ConfigError, match=message):
            make_env(composed("train", "env=cartpole", bad).env, 1, CPU)


def test_a_drifting_number_follows_its_line_and_the_physics_follow_it(composed):
    drift = "+env.drift={parameter: half_length, to: 2.5, begin: 10, end: 30}"
    old = make_env(composed("train", "env=cartpole", drift).env, 4, CPU, age=20)
    half = make_env(composed("train", "env=cartpole", "env.half_length=1.5").env, 4, CPU)
    for env in (old, half):
        env.reset(seed=0)
    torch.testing.assert_close(old.step(torch.ones(4))[4], half.step(torch.ones(4))[4])
    young = make_env(composed("train", "env=cartpole", drift).env, 4, CPU)
    plain = make_env(composed("train", "env=cartpole").env, 4, CPU)
    young.reset(seed=0), plain.reset(seed=0)
    for step in range(14):
        pair = (env.step(torch.ones(4))[4]["final_obs"] for env in (young, plain))
        equal = torch.allclose(*pair, rtol=1e-5, atol=1e-6)
        assert equal == (step <= 10) or step > 10
    assert not equal
    with pytest.raises(ConfigError, match="Did you mean 'half_length'"):
        wrong = drift.replace("half_length", "half_lenth")
        make_env(composed("train", "env=cartpole", wrong).env, 1, CPU)
    with pytest.raises(ConfigError, match="images show it"):
        make_env(composed("train", "env=cartpole_frames", drift).env, 1, CPU)


def test_workers_give_what_one_process_gives(composed):
    """Steps, autoresets, copies dropped and put in another order, saved and loaded."""
    config = composed("train", "env=gym", "env.id=MountainCar-v0", "env.max_episode_steps=12").env
    one, many = (make_env({**config, "workers": workers}, 5, "cpu") for workers in (1, 2))
    assert len(many.pipes) == 2
    envs, rng = [one, many], np.random.default_rng(0)

    first = [env.reset(seed=[3, 1, 4, 1, 5])[0] for env in envs]
    assert torch.equal(*first)
    for step in range(40):
        if step == 17:
            for env in envs:
                env.keep(torch.tensor([4, 0, 3]))
        if step == 25:
            saved = [env.state_dict() for env in envs]
            assert saved[0].keys() == saved[1].keys()
            envs = [make_env({**config, "workers": workers}, 3, "cpu") for workers in (1, 3)]
            for env, state in zip(envs, saved[::-1], strict=True):
                env.reset(seed=0)
                env.load_state_dict(state)
        if step == 33:
            for env in envs:
                env.keep(torch.tensor([2]))
        actions = rng.integers(0, 3, envs[0].num_envs)
        (*columns, info), (*others, other) = (env.step(actions) for env in envs)
        mine, theirs = (*columns, info["final_obs"]), (*others, other["final_obs"])
        assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


def test_only_envs_of_gymnasium_take_workers(composed):
    with pytest.raises(ConfigError, match="env.workers=2"):
        make_env({**composed("train", "env=cartpole").env, "workers": 2}, 4, "cpu")
