"""A Q-learner's step is that of a slow plain loop, one seed and one transition at a time."""

import math
from fractions import Fraction

import pytest
import torch
from conftest import compose
from torch import nn

from rlx.agent import Scores
from rlx.experiment import env_spec, make_agent
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.rng import seed_tensor
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import take

SEEDS = (3, 8)
NUM_ENVS = 2
BATCH = 12
GAMMA = 0.9

BASE = {
    "hidden": "[7,5]",
    "batch_size": BATCH,
    "buffer_size": 60,
    "learning_starts": 1,
    "discount": GAMMA,
    "learning_rate": 0.01,
    "double": False,
    "n_steps": 1,
    "target_tau": 1.0,
    "target_every": 4,
}

CASES = {
    "plain": {},
    "double": {"double": True},
    "several steps": {"n_steps": 3},
    "soft target": {"target_tau": 0.05, "target_every": 1},
    "soft target now and then": {"target_tau": 0.3, "target_every": 3},
    "target of its own": {"target_init": "random"},
    "norm": {"max_grad_norm": 0.5},
    "value": {"max_grad_value": 0.02},
    "norm, then value": {"max_grad_norm": 0.5, "max_grad_value": 0.1},
    "rmsprop": {"optimizer": "rmsprop"},
    "everything": {
        "double": True,
        "n_steps": 4,
        "target_tau": 0.2,
        "target_every": 2,
        "max_grad_norm": 0.4,
        "max_grad_value": 0.1,
        "optimizer": "rmsprop",
    },
}


def agent_of(**settings):
    """A DQN of two seeds and its settings; in double precision, where rounding decides nothing."""
    settings = BASE | settings
    overrides = [f"agent.{key}={str(value).lower()}" for key, value in settings.items()]
    config = compose("train", "agent=dqn", "env=cartpole", *overrides)
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor(SEEDS), NUM_ENVS)
    return agent.double(), config.agent


def fill(replay, steps=50):
    """Random transitions in the rings, some overwritten; the same as lists per (seed, copy)."""
    lists = {(s, n): [] for s in range(len(SEEDS)) for n in range(NUM_ENVS)}
    shape = (len(SEEDS), NUM_ENVS)
    for _ in range(steps):
        last = torch.rand(shape) < 0.2
        rows = {
            "obs": torch.randn(*shape, 4).double(),
            "next_obs": torch.randn(*shape, 4).double(),
            "action": torch.randint(2, shape),
            # Errors on both sides of 1, where the loss bends.
            "reward": 3 * torch.randn(shape).double(),
            "discount": torch.where(last & (torch.rand(shape) < 0.5), 0.0, GAMMA).double(),
            "last": last,
        }
        replay.add(torch.ones(shape, dtype=torch.bool), **rows)
        for (s, n), ring in lists.items():
            ring.append({name: value[s, n] for name, value in rows.items()})
    kept = BASE["buffer_size"] // NUM_ENVS
    return {key: ring[-kept:] for key, ring in lists.items()}


class Plain:
    """One seed's learner, by torch's own layers and optimisers."""

    def __init__(self, settings, network, target, row):
        self.settings = settings
        self.updates = self.shortened = self.cut = 0
        self.online, self.target = self._like(network, row), self._like(target, row)
        kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[settings.optimizer]
        self.optimizer = kind(self.online.parameters(), settings.learning_rate)

    @staticmethod
    def _like(network, row):
        """The network of one seed, from [S, in, out] weights and [S, 1, out] biases."""
        flat = [parameter[row].detach() for parameter in network.parameters()]
        layers = []
        for weight, bias in zip(flat[::2], flat[1::2], strict=True):
            layer = nn.Linear(*weight.shape).double()
            layer.weight.data, layer.bias.data = weight.T.clone(), bias[0].clone()
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def learn(self, chains):
        """One minibatch; returns its loss and mean value.

        `chains`: for each drawn transition, it and those after it in its ring.
        """
        losses, values = [], []
        for rows in chains:
            reward, discount = 0.0, 1.0
            for row in rows[: self.settings.n_steps]:
                reward += discount * float(row["reward"])
                discount *= float(row["discount"])
                if row["last"]:
                    break
            with torch.no_grad():
                chooser = self.online if self.settings.double else self.target
                best = int(chooser(row["next_obs"]).argmax())
                y = reward + discount * float(self.target(row["next_obs"])[best])
            q = self.online(rows[0]["obs"])[int(rows[0]["action"])]
            error = (q - y).abs()
            losses.append(error**2 / 2 if error < 1 else error - 0.5)
            values.append(float(q.detach()))
        loss = sum(losses) / len(losses)
        self.optimizer.zero_grad()
        loss.backward()
        self._clip()
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.settings.target_every == 0:
            tau = self.settings.target_tau
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.data = (1 - tau) * slow.data + tau * fast.data
        return float(loss.detach()), sum(values) / len(values)

    def _clip(self):
        gradients = [parameter.grad for parameter in self.online.parameters()]
        if self.settings.max_grad_norm is not None:
            limit = self.settings.max_grad_norm
            norm = nn.utils.clip_grad_norm_(self.online.parameters(), limit)
            self.shortened += float(norm) > limit
        if self.settings.max_grad_value is not None:
            limit = self.settings.max_grad_value
            self.cut += any(bool((gradient.abs() > limit).any()) for gradient in gradients)
            for gradient in gradients:
                gradient.clamp_(-limit, limit)


def state_of(agent, row):
    """All that learning may change in one seed: weights, target, optimiser, counters."""
    parts = {"online": agent.online.state_dict(), "learner": agent.learner.state_dict()}
    return {
        f"{part}.{name}": value[row].clone()
        for part, values in parts.items()
        for name, value in values.items()
        if not name.startswith("replay.")
    }


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_a_plain_loop(case):
    agent, settings = agent_of(**CASES[case])
    network, learner = agent.online.q, agent.learner
    lists = fill(learner.replay)
    found = {
        tuple(row["obs"].tolist()): (key, i)
        for key, ring in lists.items()
        for i, row in enumerate(ring)
    }
    plain = [Plain(settings, network, learner.target, row) for row in range(len(SEEDS))]
    for step in range(24):
        draws = torch.rand(len(SEEDS), BATCH)
        # The second seed sits out now and then, the first time at once.
        where = torch.tensor([True, step % 3 > 0])
        before = [state_of(agent, row) for row in range(len(SEEDS))]
        drawn = learner.replay.sample(draws)["obs"]
        loss, q = learner.learn(network, draws, where)
        for row, one in enumerate(plain):
            if not where[row]:
                after = state_of(agent, row)
                assert all(torch.equal(after[name], value) for name, value in before[row].items())
                continue
            positions = [found[tuple(obs.tolist())] for obs in drawn[row]]
            assert all(key[0] == row for key, _ in positions)
            expected_loss, expected_q = one.learn([lists[key][i:] for key, i in positions])
            assert float(loss[row]) == pytest.approx(expected_loss, rel=1e-8)
            assert float(q[row]) == pytest.approx(expected_q, rel=1e-8)
            for batched, plainly in ((network, one.online), (learner.target, one.target)):
                of_row = Plain._like(batched, row)
                for a, b in zip(of_row.parameters(), plainly.parameters(), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert learner.updates.tolist() == [24, 16]
    for one in plain:
        met = (one.shortened > 0, one.cut > 0)
        bounded = (settings.max_grad_norm is not None, settings.max_grad_value is not None)
        assert met == bounded, "bounds were met"


def test_a_target_starts_as_a_copy_or_from_weights_of_its_own():
    for start, same in (("copy", True), ("random", False)):
        agent, _ = agent_of(target_init=start)
        pairs = zip(agent.learner.target.parameters(), agent.online.q.parameters(), strict=True)
        assert all(torch.equal(slow, fast) == same for slow, fast in pairs)


@Scores
def third(obs):
    """Of five choices, the one numbered 2 is the best everywhere: obs [S, B, F] → [S, B, 5]."""
    return torch.tensor([0.0, 1.0, 3.0, 2.0, -1.0]).expand(*obs.shape[:2], 5)


def choices(explore, num_envs, deciding=None):
    obs = torch.zeros(len(explore.decisions), num_envs, 4)
    deciding = torch.ones(obs.shape[:2], dtype=torch.bool) if deciding is None else deciding
    return explore("action", obs, third, deciding)


def test_epsilon_0_is_greedy_and_1_is_uniform():
    assert (choices(EpsilonGreedy(0.0, 0.0, 1, seed_tensor(SEEDS), "q"), 1000) == 2).all()
    chosen = choices(EpsilonGreedy(1.0, 1.0, 1, seed_tensor(SEEDS), "q"), 20_000)
    for row in chosen:
        share = row.bincount(minlength=5) / 20_000
        assert share.tolist() == pytest.approx([0.2] * 5, abs=0.012)  # four standard errors
    assert not torch.equal(*chosen), "each seed has a stream of its own"


def test_epsilon_falls_with_the_decisions_that_each_seed_has_taken():
    explore = EpsilonGreedy(1.0, 0.2, 100, seed_tensor(SEEDS), "q")
    deciding = torch.tensor([[True] * 10, [True] * 3 + [False] * 7])
    for turn in range(15):
        expected = [1 - 0.8 * min(1, turn * taken / 100) for taken in (10, 3)]
        assert explore.epsilon().tolist() == pytest.approx(expected)
        choices(explore, 10, deciding)
    assert explore.decisions.tolist() == [150, 45]


def test_a_seed_explores_as_alone():
    together = EpsilonGreedy(0.9, 0.1, 400, seed_tensor([3, 8, 5]), "q")
    alone = EpsilonGreedy(0.9, 0.1, 400, seed_tensor([8]), "q")
    taken = take(together, torch.tensor([1]))
    for _ in range(20):
        chosen = choices(together, 30)
        assert torch.equal(chosen[1:2], choices(alone, 30))
        assert torch.equal(chosen[1:2], choices(taken, 30))


@pytest.mark.parametrize(
    ("num_envs", "ratio"),
    [(8, "1/4"), (8, "3/64"), (1, "1"), (4, "5/8"), (3, "7/2"), (1, "1/1024")],
)
def test_minibatches_are_due_as_often_as_the_ratio_says(num_envs, ratio):
    ratio = Fraction(ratio)
    schedule = UpdateSchedule(seed_tensor(SEEDS), num_envs, float(ratio))
    total = 0
    for tick in range(1, 3000):
        due = schedule.advance()
        assert math.floor(num_envs * ratio) <= due <= math.ceil(num_envs * ratio)
        total += due
        assert total == math.floor(tick * num_envs * ratio), "never early, never late"


def test_a_schedule_continues_where_it_was_saved():
    whole, again = (UpdateSchedule(seed_tensor(SEEDS), 3, 0.1) for _ in range(2))
    first = [whole.advance() for _ in range(17)]
    again.load_state_dict(whole.state_dict())
    rest = [whole.advance() for _ in range(83)]
    assert [again.advance() for _ in range(83)] == rest
    assert sum(first) + sum(rest) == 30
