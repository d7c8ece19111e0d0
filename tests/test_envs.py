"""Torch-native environments are Gymnasium's, step by step; copies are independent; the exact values hold."""

import gymnasium
import numpy as np
import pytest
import torch

import rlx.envs  # noqa: F401 (registers)
from rlx.config import ConfigError
from rlx.envs.chain import Chain
from rlx.envs.gym import GymEnv
from rlx.envs.maze import _CELLS, _MOVES, Maze

NATIVE = sorted(name for name in gymnasium.registry if name.startswith("rlx/"))


def test_all_are_registered():
    assert NATIVE == ["rlx/Acrobot-v1", "rlx/CartPole-v1", "rlx/Chain-v0", "rlx/Maze-v0", "rlx/MountainCar-v0"]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("Acrobot-v1", [-3.14, -3.14, -6, -10], [3.14, 3.14, 6, 10]),
        ("CartPole-v1", [-2.4, -3, -0.22, -3], [2.4, 3, 0.22, 3]),
        ("MountainCar-v0", [-1.2, -0.07], [0.6, 0.07]),
    ],
)
def test_step_equals_gymnasiums(name, low, high):
    theirs = gymnasium.make(name).unwrapped
    mine = gymnasium.make_vec(f"rlx/{name}", num_envs=1000).unwrapped
    mine.reset(seed=0)
    rng = np.random.default_rng(0)
    states = rng.uniform(low, high, (1000, len(low))).astype(np.float32)
    states[:20, 0] = low[0]  # at the edge
    actions = rng.integers(theirs.action_space.n, size=1000)
    assert mine.single_observation_space == theirs.observation_space and mine.single_action_space == theirs.action_space
    mine.state = torch.from_numpy(states)
    _, reward, terminated, truncated, info = mine.step(actions)
    ends = 0
    for i in range(1000):
        theirs.reset()
        theirs.state = states[i].astype(np.float64)
        obs, r, done, _, _ = theirs.step(int(actions[i]))
        np.testing.assert_allclose(info["final_obs"][i], obs, rtol=2e-4, atol=2e-4)
        near_edge = name == "Acrobot-v1" and abs(-np.cos(theirs.state[0]) - np.cos(theirs.state[0] + theirs.state[1]) - 1) < 1e-3
        if not near_edge:
            assert (float(reward[i]), bool(terminated[i])) == (r, done), (states[i], actions[i])
        ends += done
    assert 0 < ends < 1000 and not truncated.any()


@pytest.mark.parametrize("name", NATIVE)
def test_copies_depend_on_their_own_seed_alone(name):
    together, alone = gymnasium.make_vec(name, num_envs=6).unwrapped, gymnasium.make_vec(name, num_envs=1).unwrapped
    assert torch.equal(together.reset(seed=[3, 1, 4, 1, 5, 9])[0][4:5], alone.reset(seed=5)[0])
    rng = np.random.default_rng(0)
    for step in range(1200):
        action = rng.integers(together.single_action_space.n, size=6)
        if step == 700:
            together.keep(torch.tensor([4, 0]))
        now = together.step(action if step < 700 else action[[4, 0]])
        one = alone.step(action[4:5])
        row = 4 if step < 700 else 0
        for a, b in zip(now[:4], one[:4], strict=True):
            assert torch.equal(a[row : row + 1], b)
        assert torch.equal(now[4]["final_obs"][row : row + 1], one[4]["final_obs"])


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


def chain_value(right: float) -> float:
    """Expected return of moving right with probability `right` everywhere, by solving the linear system."""
    p = right * 0.5
    index = {(place, visited): i for i, (place, visited) in enumerate((p_, v) for p_ in range(1, 6) for v in (0, 1))}
    a, b = np.eye(len(index)), np.zeros(len(index))
    for (place, visited), i in index.items():
        for step, probability in ((1, p), (-1, 1 - p)):
            following = min(place + step, 5)
            seen = int(visited or following == 5)
            if following == 0:
                b[i] += probability * (1.0 if seen else 0.01)
            else:
                a[i, index[following, seen]] -= probability
    return float(np.linalg.solve(a, b)[index[1, 0]])


def test_chain_has_its_exact_values():
    assert chain_value(1) == pytest.approx(0.208) and chain_value(0) == pytest.approx(0.01) and chain_value(0.5) == pytest.approx(2 / 110)
    for right, expected in ((1.0, 0.208), (0.5, 2 / 110)):
        env = gymnasium.make_vec("rlx/Chain-v0", num_envs=40_000).unwrapped
        env.reset(seed=0)
        value, alive = torch.zeros(40_000), torch.ones(40_000, dtype=torch.bool)
        draws = torch.Generator().manual_seed(0)
        while alive.any():
            _, reward, terminated, truncated, _ = env.step((torch.rand(40_000, generator=draws) < right).long())
            value += reward * alive
            alive &= ~(terminated | truncated)
        assert float(value.mean()) == pytest.approx(expected, abs=4 * float(value.std()) / 200)
    assert Chain.observation_space.n == 6


def test_maze_shortest_way_returns_what_it_says():
    distance, edge, steps = {_CELLS.index("S"): 0}, [_CELLS.index("S")], 0
    while edge:
        steps += 1
        edge = [c + m for c in edge for m in _MOVES if _CELLS[c + m] != "#" and distance.setdefault(c + m, steps) == steps]
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
