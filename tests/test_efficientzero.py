"""EfficientZero: its targets are those of a plain reading of the rules; it learns.

A search can be attacked.
"""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from conftest import TINY, compose, small
from gymnasium import spaces
from torch import nn

from rlx.agent import Spec, Transition
from rlx.agents.efficientzero import Config
from rlx.experiment import env_spec, make_agent
from rlx.nn.augmentation import augment
from rlx.nn.networks import SeedBatchNorm
from rlx.nn.rng import seed_tensor
from rlx.world_model import Support

GAMMA = 0.9


def agent_with(episodes, **changes):
    """An agent of one seed and one env copy whose replay holds `episodes`.

    An episode is (rewards, terminated); observations count the steps.
    """
    config = compose(
        "train",
        "agent=efficientzero",
        "env=catch",
        *small("efficientzero", discount=GAMMA, reanalyse=0, **changes),
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([3]), 1)
    step = 0
    for rewards, terminated in episodes:
        for i, reward in enumerate(rewards):
            ends = i == len(rewards) - 1
            obs = torch.full((1, 1, 50), float(step))
            agent.update(
                Transition(
                    obs=obs,
                    action=torch.tensor([[step % 3]]),
                    reward=torch.tensor([[reward]]),
                    next_obs=obs,
                    terminated=torch.tensor([[bool(ends and terminated)]]),
                    truncated=torch.tensor([[bool(ends and not terminated)]]),
                    carry={"policy": torch.tensor([[[0.5, 0.25, 0.25]]])},
                )
            )
            step += 1
    return agent


def one_more(agent, obs):
    """Hand the agent another transition, of reward 1, that ends nothing."""
    no = torch.zeros(1, 1, dtype=torch.bool)
    policy = torch.tensor([[[0.5, 0.25, 0.25]]])
    reward = torch.ones(1, 1)
    agent.update(Transition(obs, no.long(), reward, obs, no, no, {"policy": policy}))


def target_values(obs):
    """What the target network shall say of a state: a tenth of its number."""
    return obs[..., 0] / 10


EPISODES = [
    ([1.0, 2.0, 3.0], True),
    ([4.0, 5.0], False),
    ([6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0], True),
    ([1.0, 1.0], None),
]


@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("value_prefix", [False, True])
@pytest.mark.parametrize("cuts_terminate", [False, True])
def test_targets(n_steps, value_prefix, cuts_terminate, monkeypatch):
    episodes = [*EPISODES[:3], ([1.0, 1.0, 1.0], None)]
    changes = {"n_steps": n_steps, "value_prefix": value_prefix, "cuts_terminate": cuts_terminate}
    agent = agent_with(episodes[:3], off_policy_correction=False, learning_starts=300, **changes)
    monkeypatch.setattr(agent.target, "values", target_values)
    slot, weight = agent._sample_slots(torch.rand(1, 400))
    batch = agent.replay.window(slot, 6 + n_steps)
    value = agent.value_targets(batch)
    prefix = agent._prefixes(batch["reward"])
    rows = [(e, i) for e, (rewards, _) in enumerate(episodes[:3]) for i in range(len(rewards))]
    assert sorted(set(slot[0].tolist())) == list(range(len(rows))), "every row is drawn"
    for b, at in enumerate(slot[0].tolist()):
        episode, begin = rows[at]
        rewards, terminated = episodes[episode]
        offset = at - begin
        for k in range(6):
            t = begin + k
            inside = t < len(rewards)
            assert bool(batch["alive"][0, b, k]) == inside
            expected = 0.0
            if inside:
                last = len(rewards) - 1
                end = min(t + n_steps, len(rewards) if terminated or cuts_terminate else last)
                expected = sum(GAMMA ** (i - t) * rewards[i] for i in range(t, end))
                if end < len(rewards):
                    expected += GAMMA ** (end - t) * (offset + end) / 10
            row = (episode, begin, k)
            assert float(value[0, b, k]) == pytest.approx(expected, rel=1e-4, abs=1e-5), row
            if k < 5 and inside:
                wanted = sum(rewards[begin : t + 1]) if value_prefix else rewards[t]
                assert float(prefix[0, b, k]) == pytest.approx(wanted)
    assert bool((weight <= 1).all()) and float(weight.max()) == 1


def test_priorities():
    """A row is drawn by the power alpha of its priority.

    The weights undo that in full when beta has risen to 1.
    """
    agent = agent_with(
        EPISODES[:1],
        learning_starts=300,
        priority_alpha=0.5,
        priority_beta=0.0,
        priority_beta_steps=10,
    )
    assert agent.priority[0, 0, :3].tolist() == [1, 1, 1], "the first rows"
    agent.priority[0, 0, :3] = torch.tensor([1.0, 4.0, 9.0])
    slot, weight = agent._sample_slots(torch.arange(0.0005, 1, 0.001).unsqueeze(0))
    counts = [int((slot == i).sum()) for i in range(3)]
    assert counts == pytest.approx([1000 / 6, 2000 / 6, 3000 / 6], abs=1)
    assert bool((weight == 1).all())
    agent.updates.fill_(10)
    _, weight = agent._sample_slots(torch.tensor([[0.01, 0.3, 0.9]]))
    torch.testing.assert_close(weight, torch.tensor([[1, 1 / 2, 1 / 3]]))
    one_more(agent, torch.zeros(1, 1, 50))
    assert float(agent.priority[0, 0, 3]) == 9, "a new row is as urgent as the most urgent"


def test_older_rows_have_shorter_returns():
    agent = agent_with(
        [([1.0] * 300, False)],
        n_steps=5,
        off_policy_correction=True,
        buffer_size=400,
        learning_starts=399,
    )
    agent.target.values = lambda obs: torch.zeros(obs.shape[:2])
    slot, _ = agent._sample_slots(torch.rand(1, 64))
    batch = agent.replay.window(slot, 11)
    value = agent.value_targets(batch)
    for b in range(64):
        age = int(batch["age"][0, b])
        steps = 5 - age // 120
        if age > 12:
            expected = sum(GAMMA**i for i in range(steps))
            assert float(value[0, b, 0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.rounding
@pytest.mark.parametrize("bootstrap", ["head", "search"])
def test_a_cache_says_what_the_target_network_says(bootstrap):
    """Also when rows have given way to others, and the target to another.

    It is asked once about each row.
    """
    changes = {"learning_starts": 19, "buffer_size": 19, "batch_size": 8, "target_every": 2}
    agent = agent_with(EPISODES[:3], cache=True, bootstrap=bootstrap, **changes)
    agent.config = dataclasses.replace(agent.config, reanalyse=1.0)
    asked = [0]
    agent.target.represent.register_forward_pre_hook(
        lambda module, inputs: asked.append(inputs[0].shape[1])
    )

    def targets(agent):
        batch = agent.replay.window(torch.arange(8).unsqueeze(0), 6 + agent.config.n_steps)
        return agent.value_targets(batch), agent.policy_targets(batch)

    for _ in range(3):
        forgetful = copy.deepcopy(agent)
        for memo in (forgetful.valued, forgetful.searched):
            memo.version.fill_(-1)
        before = sum(asked)
        cached = targets(agent)
        once = sum(asked)
        assert before < once
        for pair in zip(cached, targets(agent), strict=True):
            assert torch.equal(*pair)
        assert sum(asked) == once
        for pair in zip(cached, targets(forgetful), strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
        forgetful.valued = None
        if bootstrap == "head":
            torch.testing.assert_close(cached[0], targets(forgetful)[0], rtol=1e-4, atol=1e-5)
        for _ in range(5):  # other rows in some of the slots, and a target that moves on
            one_more(agent, torch.randn(1, 1, 50))


def test_the_smallest_buffer_has_returns_too():
    changes = {"buffer_size": 2, "learning_starts": 2, "batch_size": 4, "n_steps": 5}
    agent = agent_with(EPISODES[:2], off_policy_correction=True, **changes)
    assert agent._horizon(torch.arange(7).unsqueeze(0)).tolist() == [[5, 4, 3, 2, 1, 1, 1]]
    assert all(value.isfinite().all() for value in agent.learn().values())


def test_supports_give_back_what_they_hold():
    support = Support(20.0, 51, seed_tensor([0, 1]))
    x = torch.tensor([[-300.0, -1.0, 0.0, 0.3, 57.0], [3.0, 1e-4, 120.0, -7.5, 300.0]])
    weights = support.two_hot(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(x))
    assert int((weights > 0).sum(-1).max()) <= 2
    torch.testing.assert_close(support.decode((weights + 1e-12).log()), x, rtol=2e-3, atol=2e-3)


def test_the_contributions_can_be_switched_off():
    for change in (
        {"consistency": 0.0},
        {"value_prefix": False},
        {"off_policy_correction": False},
        {"gumbel": 3},
    ):
        agent = agent_with(EPISODES[:3], batch_size=8, learning_starts=300, **change)
        before = [p.clone() for p in agent.policy.parameters()]
        metrics = agent.learn()
        assert all(value.isfinite().all() for value in metrics.values())
        assert ("loss/consistency" in metrics) == ("consistency" not in change)
        pairs = zip(before, agent.policy.parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs)
    assert Config.__dataclass_params__.frozen


@pytest.mark.rounding
def test_attacks_are_judged_by_the_search(rlx):
    """They turn its decisions, and do not at radius 0."""
    short = (*TINY, "steps=160", "eval_every=160", "checkpoint_every=160")
    run = rlx(
        "train", "agent=efficientzero", "env=catch", *short, *small("efficientzero"), "seeds=2"
    ).run
    result = rlx("attack", run, "eps=[0,1]", "episodes=5", "attack=fgsm")
    assert result.code == 0, result.err
    clean, attacked = result.summary["cells"]
    assert clean["flip_rate"] == 0 < attacked["flip_rate"]
    evaluated = rlx("evaluate", run, "episodes=5")
    assert evaluated.summary["return"] == result.summary["clean"]
    own = np.load(evaluated.run / "returns.npz")["returns"]
    unattacked = np.load(result.run / "returns.npz")["action"][:, 0]
    assert (own == unattacked).sum() >= 8, "of 10, in a larger batch: rounding may break ties"


def test_images_are_kept_once_and_stacked_again(monkeypatch):
    """The learner is shown what the agent saw, an episode's first image repeated before it."""
    space, stack = spaces.Box(0, 255, (6, 8, 8), np.uint8), 3
    config = compose(
        "train",
        "agent=efficientzero",
        *small("efficientzero", stack=stack, learning_starts=20, buffer_size=20),
    )
    agent = make_agent(config.agent, Spec(space, spaces.Discrete(2), 10), seed_tensor([0, 1]), 2)
    monkeypatch.setattr(agent, "learn", dict)
    shown: dict[int, torch.Tensor] = {}
    action = torch.zeros(2, 2, dtype=torch.int64)
    no = torch.zeros(2, 2, dtype=torch.bool)
    carry = {"policy": torch.full((2, 2, 2), 0.5)}
    for step in range(33):
        image = torch.randint(0, 255, (2, 2, 2, 8, 8), dtype=torch.uint8)
        if step % 7 == 0:
            obs = image.repeat(1, 1, stack, 1, 1)
        else:
            obs = torch.cat([obs[:, :, 2:], image], 2)
        reward = torch.full((2, 2), float(step))
        ends = torch.full((2, 2), step % 7 == 6)
        agent.update(Transition(obs, action, reward, obs, no, ends, carry))
        shown[step] = obs
    assert agent.replay.obs.shape[-3:] == (2, 8, 8)
    slot, _ = agent._sample_slots(torch.rand(2, 50))
    batch = agent.replay.window(slot, 4)
    compared = 0
    for s, b, k in itertools.product(range(2), range(50), range(4)):
        first_step = int(batch["reward"][s, b, 0])
        # The oldest ones have lost what was before them.
        if batch["alive"][s, b, k] and first_step >= 33 - 10 + stack:
            candidates = shown[int(batch["reward"][s, b, k])][s]
            assert any(torch.equal(batch["obs"][s, b, k], one) for one in candidates)
            compared += 1
    assert compared > 50


def test_images_are_shifted_as_one():
    images = torch.rand(1, 1, 1, 1, 12, 12).expand(1, 64, 2, 1, 12, 12) + 0.1
    moved = augment(images, torch.rand(1, 64, 4))
    assert torch.equal(moved[:, :, 0], moved[:, :, 1]), "those of a row alike"
    padded = nn.functional.pad(images[0, :, 0], (4,) * 4, mode="replicate")
    crops = {}
    for b in range(64):
        for i, j in itertools.product(range(9), range(9)):
            ratio = moved[0, b, 0] / padded[b, :, i : i + 12, j : j + 12]
            if float(ratio.max() - ratio.min()) < 1e-4:
                crops[b] = (i, j, float(ratio.mean()))
    assert len(crops) == 64 and len({crop[:2] for crop in crops.values()}) > 30
    assert all(0.899 < crop[2] < 1.101 for crop in crops.values())
    assert len({round(crop[2], 4) for crop in crops.values()}) > 30


@pytest.mark.parametrize(("size", "one_hot"), [(10, True), (10, False), (96, True)])
def test_images_are_learnt_from(size, one_hot):
    """Every part of the image networks gets a gradient.

    The statistics of normalisation move with the learner alone.
    """
    space = spaces.Box(0, 255, (3, size, size), np.uint8)
    sizes = {
        "latent": 8,
        "lstm": 8,
        "head": 8,
        "projection": 16,
        "learning_starts": 90,
        "batch_size": 4,
        "one_hot_actions": one_hot,
    }
    config = compose(
        "train",
        "agent=efficientzero",
        *small("efficientzero", **sizes, optimizer="sgd", learning_rate=0.02, warmup=2),
    )
    agent = make_agent(config.agent, Spec(space, spaces.Discrete(2), 10), seed_tensor([0]), 1)
    for step in range(8):
        obs = torch.randint(0, 255, (1, 1, 3, size, size), dtype=torch.uint8)
        action = torch.tensor([[step % 2]])
        no = torch.zeros(1, 1, dtype=torch.bool)
        carry = {"policy": torch.tensor([[[0.7, 0.3]]])}
        agent.update(Transition(obs, action, torch.ones(1, 1), obs, no, no, carry))
    state = agent.policy.model.represent(obs)
    assert state.shape == (1, 1, 8, *[6 if size == 96 else size] * 2)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    assert agent.policy.search(obs).action.shape == (1, 1)
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(before[name], value), "acting changes nothing"
    # The heads begin at 0, and what is behind them moves from the second step on.
    for _ in range(3):
        agent.learn()
    after = agent.policy.state_dict()
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert [name for name in unmoved if "support" not in name] == []
    norms = [module for module in agent.policy.modules() if isinstance(module, SeedBatchNorm)]
    assert not any(norm.training for norm in norms)


@pytest.mark.slow
def test_it_learns_to_catch(rlx):
    result = rlx("train", "agent=efficientzero", "env=catch", "seeds=1")
    assert result.summary["return"]["per_seed"][0] >= 0.9
