"""The batched search is a slow, obvious one, node by node; and does what is known of it."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlx.nn.rng import uniform
from rlx.search import RecurrentOutput, Settings, _gamma, draws_needed, halving, search

BASE = {
    "simulations": 20,
    "discount": 0.9,
    "horizon": 3,
    "gumbel": None,
    "dirichlet_alpha": 0.3,
    "dirichlet_fraction": 0.25,
    "c_base": 19652.0,
    "c_init": 1.25,
    "c_visit": 50.0,
    "c_scale": 0.1,
    "value_floor": 0.01,
    "noise": True,
    "first_visit_by_prior": False,
}


class RandomModel:
    """An arbitrary game: everything is a hash of the path.

    `memory` counts the steps since the prefix began.
    """

    def __init__(self, actions):
        self.actions = actions

    def output(self, code, memory):
        bits = uniform(code, torch.zeros_like(code), 2 + self.actions)
        return RecurrentOutput(
            latent={"code": code, "memory": memory},
            prefix=2 * bits[..., 0] - 1 + memory,
            value=4 * bits[..., 1] - 2,
            logits=3 * bits[..., 2:],
            memory=("memory",),
        )

    def root(self, seeds, batch, first=0):
        code = torch.arange(first, first + seeds * batch).view(seeds, batch) * 7919
        zeros = torch.zeros(seeds, batch)
        return dataclasses.replace(self.output(code, zeros), prefix=zeros)

    def __call__(self, latent, action):
        return self.output(latent["code"] * 31 + action + 1, latent["memory"] + 1)


class Node:
    """One node of a slow tree: visited `n` times, with `w` as the sum of its values."""

    def __init__(self, output, parent=None, depth=0, horizon=3):
        self.latent = output.latent
        self.parent = parent
        self.children = {}
        self.prefix = float(output.prefix)
        self.value = float(output.value)
        self.logits = output.logits.flatten()
        self.prior = self.logits.softmax(0)
        self.fresh = depth > 0 and depth % horizon == 0
        if self.fresh:
            self.latent["memory"] = torch.zeros_like(self.latent["memory"])
        self.n = 1 if parent is None else 0
        self.w = 0.0

    def reward(self):
        return self.prefix - (0.0 if self.parent.fresh else self.parent.prefix)

    def q(self, discount):
        return self.reward() + discount * self.w / self.n


def reference(model, root, c, draws):
    """(visits of each action, value, action, nodes) of one root, searched in plain Python.

    `draws(simulation)` breaks ties, and `draws(None)` is the root's noise.
    """
    top, nodes, low, high = Node(root), [], math.inf, -math.inf
    actions = range(model.actions)
    if c.gumbel is not None:
        noise = []
        for draw in draws(None)[0]:
            draw = min(max(float(draw), 1e-7), 1 - 1e-7)
            noise.append(-c.noise * math.log(-math.log(draw)))
        schedule = halving(min(c.gumbel, model.actions), c.simulations)
    elif c.noise:
        gammas = _gamma(c.dirichlet_alpha, draws(None))
        own = (1 - c.dirichlet_fraction) * top.prior
        top.prior = own + c.dirichlet_fraction * gammas / gammas.sum()

    def normal(q):
        if high > low:
            q = (q - low) / max(high - low, c.value_floor)
        return min(1.0, max(0.0, q))

    def visits(node, a):
        return node.children[a].n if a in node.children else 0

    def improved(node):
        q = {a: child.q(c.discount) for a, child in node.children.items()}
        policy = node.logits.softmax(0)
        total = sum(child.n for child in node.children.values())
        share = sum(float(policy[a]) for a in q)
        known = sum(float(policy[a]) * q[a] for a in q) / max(1e-12, share)
        mixed = (node.value + total * known) / (1 + total)
        most = max([child.n for child in node.children.values()], default=0)
        scale = (c.c_visit + most) * c.c_scale
        return [float(node.logits[a]) + scale * normal(q.get(a, mixed)) for a in actions], total

    def select_gumbel(node, number, depth):
        scores, total = improved(node)
        if depth == 0:
            open_ = [a for a in actions if visits(node, a) == schedule[number - 1]]
            return max(open_, key=lambda a: noise[a] + scores[a])
        policy = torch.tensor(scores).softmax(0)
        return max(actions, key=lambda a: float(policy[a]) - visits(node, a) / (1 + total))

    def select_puct(node, number, depth, above):
        known = [child.q(c.discount) for child in node.children.values()]
        if depth == 0:
            mean = sum(known) / max(1, len(known))
        else:
            mean = (above + sum(known)) / (1 + len(known))
        n = node.n - (0 if c.first_visit_by_prior else 1)
        exploration = (math.log((n + c.c_base + 1) / c.c_base) + c.c_init) * math.sqrt(n)
        scores = []
        for a in actions:
            q = node.children[a].q(c.discount) if a in node.children else mean
            weight = exploration / (visits(node, a) + 1)
            scores.append(normal(q) + float(node.prior[a]) * weight)
        tied = [a for a in actions if scores[a] >= max(scores) - 1e-6]
        return max(tied, key=lambda a: float(draws(number)[a])), mean

    for number in range(1, c.simulations + 1):
        node, mean, depth = top, 0.0, 0
        while True:
            if c.gumbel is None:
                action, mean = select_puct(node, number, depth, mean)
            else:
                action = select_gumbel(node, number, depth)
            if action not in node.children:
                break
            node, depth = node.children[action], depth + 1
        latent = {name: value.clone() for name, value in node.latent.items()}
        leaf = Node(model(latent, torch.tensor([[action]])), node, depth + 1, c.horizon)
        node.children[action] = leaf
        nodes.append(leaf)
        gain, walk = leaf.value, leaf
        while walk is not None:
            walk.w += gain
            walk.n += 1
            if walk.parent:
                gain = walk.reward() + c.discount * gain
            walk = walk.parent
        values = [node.q(c.discount) for node in nodes]
        low, high = min(values), max(values)
    counts = [visits(top, a) for a in actions]
    if c.gumbel is None:
        return counts, top.w / c.simulations, counts.index(max(counts)), nodes
    scores, _ = improved(top)
    survivors = [a for a in actions if counts[a] == max(counts)]
    best = max(survivors, key=lambda a: noise[a] + scores[a])
    return counts, (top.w + top.value) / top.n, best, nodes


CASES = {
    "muzero": {},
    "prior first": {"first_visit_by_prior": True},
    "rewards": {"horizon": 1},
    "no noise": {"noise": False},
    "gumbel alone": {"gumbel": 4, "noise": False},
    "long prefix": {"horizon": 5, "simulations": 40},
    "gumbel": {"gumbel": 4},
    "gumbel all": {"gumbel": 16, "horizon": 5},
}


@pytest.mark.rounding
@pytest.mark.parametrize("actions", [2, 3, 6])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_obvious_search(case, actions):
    settings = Settings(**(BASE | CASES[case]))
    model = RandomModel(actions)
    seeds, batch = 3, 30
    key, counter = torch.tensor([11, 12, 13]), torch.tensor([5, 0, 900])
    root = model.root(seeds, batch)
    output = search(model, root, settings, key, counter)
    zero = torch.zeros((), dtype=torch.int64)
    quiet = uniform(zero, zero, settings.simulations * actions).view(-1, actions)
    noisy = uniform(key, counter, batch * actions * (17 + settings.simulations))
    noisy = noisy.view(seeds, batch, -1, actions)
    differ = 0
    for s in range(seeds):
        for b in range(batch):

            def draws(number, own=noisy[s, b]):
                if number is None:
                    return own[:17]
                return own[16 + number] if settings.noise else quiet[number - 1]

            at = slice(s, s + 1), slice(b, b + 1)
            one = RecurrentOutput(
                latent={name: value[at] for name, value in root.latent.items()},
                prefix=root.prefix[at],
                value=root.value[at],
                logits=root.logits[at],
                memory=root.memory,
            )
            counts, value, action, _ = reference(model, one, settings, draws)
            if output.visits[s, b].tolist() != counts:
                differ += 1  # single precision has broken a tie
                continue
            assert float(output.value[s, b]) == pytest.approx(value, abs=1e-4)
            assert int(output.action[s, b]) == action
    assert differ <= 2, "of 90 trees"


@pytest.mark.rounding
def test_a_seed_searches_as_alone_and_rows_do_not_mix():
    settings, model = Settings(**BASE), RandomModel(4)
    key, counter = torch.tensor([3, 4]), torch.tensor([0, 50])
    both = search(model, model.root(2, 6), settings, key, counter)
    alone = search(model, model.root(1, 6, first=6), settings, key[1:], counter[1:])
    torch.testing.assert_close(both.value[1:], alone.value, rtol=1e-4, atol=1e-5)
    assert (both.visits[1:] == alone.visits).all(-1).sum() >= 5, "of 6; rounding may break a tie"
    assert draws_needed(settings, 6, 4) == 6 * 4 * (17 + 20)


class NothingAsked(TorchDispatchMode):
    """Fails where the host asks a tensor for a value, or for how many are true."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["muzero", "gumbel"])
def test_it_asks_the_device_nothing(case):
    settings = Settings(**(BASE | CASES[case]))
    model = RandomModel(3)
    root = model.root(2, 5)
    key, counter = torch.tensor([3, 4]), torch.tensor([0, 50])
    with NothingAsked():
        search(model, root, settings, key, counter)


class Bandit:
    """One step, known rewards, then nothing: the model of a bandit with a value of 0 behind it."""

    def __init__(self, rewards):
        self.rewards = torch.tensor(rewards)

    def root(self, batch, logits):
        latent = {"step": torch.zeros(1, batch)}
        zero = torch.zeros(1, batch)
        return RecurrentOutput(latent, zero, zero, torch.tensor(logits).expand(1, batch, -1))

    def __call__(self, latent, action):
        reward = torch.where(latent["step"] == 0, self.rewards[action], 0.0)
        return RecurrentOutput(
            latent={"step": latent["step"] + 1},
            prefix=reward,
            value=torch.zeros_like(reward),
            logits=torch.zeros(1, action.shape[1], len(self.rewards)),
        )


def test_no_action_is_favoured_where_all_are_equal():
    settings = Settings(**(BASE | {"noise": False, "simulations": 60}))
    bandit = Bandit([0.0] * 6)
    taken = []

    def model(latent, action):
        taken.append(int(action))
        return bandit(latent, action)

    zero = torch.zeros(1, dtype=torch.int64)
    output = search(model, bandit.root(1, [0.0] * 6), settings, zero, zero)
    assert output.visits.flatten().tolist() == [10] * 6
    assert torch.tensor(taken).bincount(minlength=6).max() <= 20, "also below the root"


@pytest.mark.parametrize("gumbel", [None, 4])
def test_it_finds_the_best_arm_against_its_prior(gumbel):
    bandit = Bandit([0.1, 0.2, 0.9, 0.0])
    changes = {"simulations": 64, "horizon": 1, "gumbel": gumbel, "noise": False}
    settings = Settings(**(BASE | changes))
    root = bandit.root(32, [1.0, 1.0, 0.0, 1.0])
    output = search(bandit, root, settings, torch.tensor([1]), torch.tensor([0]))
    assert (output.action == 2).float().mean() > 0.9
    assert (output.policy.argmax(-1) == 2).all()
    assert output.visits.sum(-1).unique().tolist() == [64]


def test_halving_visits_as_published():
    """Danihelka et al. (2022), figure 1: 16 actions and 200 simulations; mctx's table for few."""
    assert halving(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert halving(1, 5) == [0, 1, 2, 3, 4]
    assert halving(16, 200)[:48] == [0] * 16 + [1] * 16 + [2] * 16
    for considered in (2, 3, 4, 8, 16):
        for simulations in (4, 16, 50, 200):
            counts = [0] * considered
            for wanted in halving(considered, simulations):
                counts[counts.index(wanted)] += 1  # there is always such an action
            assert sum(counts) == simulations


def test_gumbel_with_one_simulation_samples_from_the_policy():
    """The Gumbel-max trick: with no search to speak of, actions follow the prior."""
    bandit = Bandit([0.0, 0.0, 0.0])
    prior = torch.tensor([0.6, 0.3, 0.1])
    settings = Settings(**(BASE | {"simulations": 1, "horizon": 1, "gumbel": 3}))
    root = bandit.root(20_000, prior.log().tolist())
    output = search(bandit, root, settings, torch.tensor([2]), torch.tensor([0]))
    shares = torch.bincount(output.action[0], minlength=3) / 20_000
    torch.testing.assert_close(shares, prior, rtol=0, atol=0.015)


def test_gamma_variates_have_their_moments():
    draws = uniform(torch.tensor(5), torch.tensor(0), 17 * 200_000).view(17, -1)
    for shape in (0.3, 0.8):
        values = _gamma(shape, draws)
        assert float(values.mean()) == pytest.approx(shape, rel=0.02)
        assert float(values.var()) == pytest.approx(shape, rel=0.04)
