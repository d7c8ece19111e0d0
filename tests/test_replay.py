"""The replay against a slow list of transitions."""

import numpy as np
import pytest
import torch

from rlx.errors import ConfigError
from rlx.replay import Replay
from rlx.training.journal import Journal

FIELDS = {
    "obs": ((2,), torch.float32),
    "next_obs": ((2,), torch.float32),
    "action": ((), torch.int64),
    "last": ((), torch.bool),
    "reward": ((), torch.float32),
    "discount": ((), torch.float32),
}


def filled(seeds=2, num_envs=3, capacity=30, steps=37, seed=0, n_steps=1):
    """A replay, and the same transitions as lists per (seed, copy)."""
    generator = torch.Generator().manual_seed(seed)
    replay = Replay(seeds, num_envs, capacity, FIELDS, "cpu", n_steps=n_steps)
    lists = {(s, n): [] for s in range(seeds) for n in range(num_envs)}
    for t in range(steps):
        where = torch.rand(seeds, num_envs, generator=generator) < 0.7
        last = torch.rand(seeds, num_envs, generator=generator) < 0.2
        terminated = last & (torch.rand(seeds, num_envs, generator=generator) < 0.5)
        rows = {
            "obs": torch.rand(seeds, num_envs, 2, generator=generator),
            "next_obs": torch.rand(seeds, num_envs, 2, generator=generator),
            "action": torch.full((seeds, num_envs), t),
            "last": last,
            "reward": torch.rand(seeds, num_envs, generator=generator),
            "discount": torch.where(terminated, 0.0, 0.9),
        }
        replay.add(where, **rows)
        for (s, n), rows_of in lists.items():
            if where[s, n]:
                rows_of.append({name: value[s, n] for name, value in rows.items()})
    slots = capacity // num_envs
    return replay, {key: rows[-slots:] for key, rows in lists.items()}


def test_holds_the_newest_rows_and_samples_all_of_them_evenly():
    replay, lists = filled()
    stored = [[(n, int(row["action"])) for n in range(3) for row in lists[s, n]] for s in range(2)]
    assert replay.stored().tolist() == [len(rows) for rows in stored]
    even = (torch.arange(3000) + 0.5) / 3000
    batch = replay.sample(even.expand(2, -1))
    for s in range(2):
        actions, counts = batch["action"][s].unique(return_counts=True)
        expected = sorted(a for _, a in stored[s])
        assert actions.tolist() == sorted(set(expected))
        per_row = {a: expected.count(a) * 3000 / len(expected) for a in expected}
        assert all(abs(int(c) - per_row[int(a)]) <= 3 for a, c in zip(actions, counts, strict=True))


@pytest.mark.parametrize("n_steps", [[1, 1], [3, 3], [3, 1]])
def test_frames_stored_once_are_stacked_as_they_were_seen(n_steps):
    seeds, num_envs, stack, steps = 2, 3, 3, 60
    fields = FIELDS | {"obs": ((1, 1, 1), torch.uint8)}
    replay = Replay(seeds, num_envs, 45, fields, "cpu", stack, n_steps=torch.tensor(n_steps))
    assert "next_obs" not in replay.fields
    rng = np.random.default_rng(0)
    frame = 0
    # Per ring: (frame, action, reward, terminated, last).
    episodes = {(s, n): [] for s in range(seeds) for n in range(num_envs)}
    for t in range(steps):
        terminated = rng.random((seeds, num_envs)) < 0.1
        truncated = rng.random((seeds, num_envs)) < 0.1
        last = terminated | truncated
        frames = np.arange(frame, frame + seeds * num_envs).reshape(seeds, num_envs) % 251
        frame += seeds * num_envs
        reward = rng.random((seeds, num_envs)).astype(np.float32)
        replay.add(
            torch.ones(seeds, num_envs, dtype=torch.bool),
            obs=torch.from_numpy(frames).view(seeds, num_envs, 1, 1, 1).byte(),
            next_obs=None,
            action=torch.full((seeds, num_envs), t),
            last=torch.from_numpy(last),
            reward=torch.from_numpy(reward),
            discount=torch.from_numpy(0.9 * ~terminated),
        )
        for (s, n), ring in episodes.items():
            ends = bool(terminated[s, n]), bool(last[s, n])
            ring.append((int(frames[s, n]), t, float(reward[s, n]), *ends))
    draws = torch.rand(seeds, 800, generator=torch.Generator().manual_seed(0))
    batch = replay.sample(draws)
    bootstrapped = 0
    for s in range(seeds):
        for b in range(800):
            t, newest = int(batch["action"][s, b]), int(batch["obs"][s, b, -1, 0, 0])
            rings = [ring for (seed, _), ring in episodes.items() if seed == s]
            (ring,) = [ring for ring in rings if ring[t][0] == newest]

            def stack_at(t, ring=ring):
                frames = [ring[t][0]]
                for back in range(1, stack):
                    fits = t - back >= 0 and not any(ring[j][4] for j in range(t - back, t))
                    frames.insert(0, ring[t - back][0] if fits else frames[0])
                return frames

            assert batch["obs"][s, b, :, 0, 0].tolist() == stack_at(t)
            if ring[t][4] and not ring[t][3]:
                continue  # an episode of one step that was cut: nothing else to take
            reward, discount, i = 0.0, 1.0, t
            while True:
                reward += discount * ring[i][2]
                discount *= 0.0 if ring[i][3] else 0.9
                usable = i + 1 < steps
                if usable and not ring[i + 1][3]:
                    usable = i + 2 < steps and not ring[i + 1][4]
                if ring[i][4] or i + 1 == t + n_steps[s] or not usable:
                    break
                i += 1
            assert float(batch["reward"][s, b]) == pytest.approx(reward, rel=1e-5)
            assert float(batch["discount"][s, b]) == pytest.approx(discount)
            if discount:
                bootstrapped += 1
                assert batch["next_obs"][s, b, :, 0, 0].tolist() == stack_at(i + 1)
    assert bootstrapped > 500


def test_rows_written_in_parts_are_the_replay_again():
    whole, parts = filled(steps=0)[0], []
    journal, agent = Journal(), torch.nn.ModuleDict({"replay": whole})
    source = filled(steps=100, capacity=1000)[0]
    for t in range(40):
        where = torch.rand(2, 3, generator=torch.Generator().manual_seed(t)) < 0.6
        whole.add(where, **{name: getattr(source, name)[:, :, t] for name in source.fields})
        if t % 7 == 6:
            parts += journal.take_new_parts(agent, t).items()
    parts += journal.take_new_parts(agent, 40).items()
    assert 1 < len(journal.parts) < len(parts) == 6, "what was overwritten has expired"
    again = filled(steps=0)[0]
    for name, rows in parts:
        if name in journal.parts:
            again.restore(rows)
    before, after = whole.rows(None), again.rows(None)
    assert len(before["reward"]) == 2 * 30
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert journal.take_new_parts(agent, 41) == {}, "nothing new"


def test_a_replay_larger_than_the_memory_is_refused_with_the_numbers():
    fields = {"action": ((), torch.int64), "obs": ((19,), torch.uint8)}
    with pytest.raises(ConfigError, match=r"takes 27,000\.0 GB of memory .*GB are free"):
        Replay(1000, 1, 999_999_999, fields, "cpu")


@pytest.mark.parametrize("n_steps", [1, 3, 5, [1, 5], [5, 3]])
def test_n_step_returns_equal_a_slow_loop_and_stop_at_episode_ends(n_steps):
    replay, lists = filled(n_steps=torch.tensor(n_steps) if isinstance(n_steps, list) else n_steps)
    draws = torch.rand(2, 500, generator=torch.Generator().manual_seed(1))
    batch = replay.sample(draws)
    for s in range(2):
        length = n_steps[s] if isinstance(n_steps, list) else n_steps
        rows = {
            tuple(row["obs"].tolist()): (key, i)
            for key, of in lists.items()
            if key[0] == s
            for i, row in enumerate(of)
        }
        for b in range(500):
            key, i = rows[tuple(batch["obs"][s, b].tolist())]
            reward, discount = 0.0, 1.0
            for row in lists[key][i : i + length]:
                reward += discount * float(row["reward"])
                discount *= float(row["discount"])
                if row["last"]:
                    break
            assert abs(float(batch["reward"][s, b]) - reward) < 1e-5
            assert abs(float(batch["discount"][s, b]) - discount) < 1e-6
            assert torch.equal(batch["next_obs"][s, b], row["next_obs"])
