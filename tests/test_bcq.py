"""Discrete BCQ: admissible actions, its two extremes, traps that others fell into, exact resume."""

import math

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from gymnasium import spaces
from omegaconf import OmegaConf
from torch import nn

from rlx.agent import Spec
from rlx.agents.bcq import BCQ, BCQPolicy, Config
from rlx.config import build
from rlx.data.writer import Writer
from rlx.nn.rng import Streams, seed_tensor
from rlx.nn.seed_axis import take
from rlx.runs.run import Run

SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), 100)


def config(**changes) -> Config:
    settings = OmegaConf.to_container(compose("train", "agent=bcq").agent)
    return build(Config, settings | {"hidden": [16], "batch_size": 32} | changes, "agent")


def policy(threshold) -> BCQPolicy:
    return BCQPolicy(config(threshold=threshold), SPEC, seed_tensor([0]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random walks whose best action is 2, which the logs choose least often."""
    rng, writer = np.random.default_rng(0), Writer(str(tmp_path_factory.mktemp("walks") / "set"))
    for number in range(40):
        obs = rng.uniform(-1, 1, (12, 3)).astype(np.float32)
        action = rng.choice(4, 11, p=[0.5, 0.3, 0.05, 0.15])
        writer.add(obs, action, (action == 2).astype(np.float32), number % 2 == 0)
    data = writer.close({}, 1, [])
    data.adapt_to(SPEC, {})
    return data


def test_admissible_are_those_near_the_most_probable():
    q, p = torch.tensor([[[5.0, 1.0, 9.0, 3.0]]]), torch.tensor([[[0.5, 0.3, 0.05, 0.15]]])
    for threshold, best in ((0.0, 2), (0.1, 2), (0.100001, 0), (0.3, 0), (0.31, 0), (1.0, 0)):
        assert policy(threshold).ranked(q, p.log()).argmax() == best, threshold
    assert policy(0.31).ranked(torch.tensor([[[1.0, 5.0, 9.0, 8.0]]]), p.log()).argmax() == 1


def test_threshold_1_admits_the_most_probable_action():
    """Trap 2: with > in place of ≥ no action is admissible, and arg max answers 0.

    Trap 4: values times the mask choose 0.
    """
    q = torch.tensor([[[9.0, 8.0, 7.0, -50.0]]])
    logits = torch.tensor([[[-3.0, -2.0, -1.0, 0.5]]])
    assert policy(1.0).ranked(q, logits).argmax() == 3


def test_half_precision_does_not_overflow():
    """Trap 3: a mask of −1e8 is −inf there, or NaN."""
    q = torch.tensor([[[900.0, -800.0, 3.0, 4.0]]]).half()
    logits = torch.tensor([[[-20.0, 0.0, -1.0, -15.0]]]).half()
    scores = policy(0.3).ranked(q, logits)
    assert scores.isfinite().all() and scores.argmax() == 2


def test_imitation_logits_may_be_negative():
    """Trap 5: a ReLU on them."""
    _, logits = policy(0.3).net(torch.randn(1, 64, 3))
    assert (logits < 0).any() and (logits > 0).any()


def test_gradients_lead_to_actions_that_are_not_admissible():
    net = policy(1.0)
    obs = torch.randn(1, 8, 3, requires_grad=True)
    scores = net.scores(obs, {}, "action")
    others = scores.masked_fill(nn.functional.one_hot(scores.argmax(-1), 4).bool(), -math.inf)
    (slope,) = torch.autograd.grad((others.amax(-1) - scores.amax(-1)).sum(), obs)
    assert (slope.abs().amax(-1) > 0).all()


def test_the_score_margin_of_cloning_is_that_of_its_logits():
    net, obs = policy(1.0), torch.randn(1, 8, 3)
    scores, (_, logits) = net.scores(obs, {}, "action"), net.net(obs)
    torch.testing.assert_close(scores, logits - logits.amax(-1, keepdim=True))


def learn(data, seeds, steps, **changes):
    agent = BCQ(config(**changes), SPEC, seed_tensor(seeds), data)
    metrics = [agent.learn() for _ in range(steps)]
    assert all(value.shape == (len(seeds),) for values in metrics for value in values.values())
    return agent


@pytest.mark.rounding
def test_threshold_0_without_imitation_is_double_dqn(data):
    """Against a plain loop with torch's own layers and optimiser, on the same minibatches."""
    agent = learn(
        data,
        [3],
        0,
        threshold=0.0,
        imitation_weight=0.0,
        learning_rate=1e-2,
        target_every=5,
        target_tau=1.0,
    )
    plain = [nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(2)]
    for network in plain:
        layers = agent.policy.net.q.layers
        for linear, layer in zip((network[0], network[2]), layers, strict=True):
            linear.weight.data = layer.weight[0].T.clone()
            linear.bias.data = layer.bias[0, 0].clone()
    online, target = plain
    optimizer = torch.optim.Adam(online.parameters(), 1e-2)
    rng = Streams(seed_tensor([3]), "minibatch")
    for step in range(1, 41):
        drawn = data.sample(step - 1, rng.uniform(32, dtype=torch.float64), 1, 0.99)
        batch = {name: value[0] for name, value in drawn.items()}
        with torch.no_grad():
            best = online(batch["next_obs"]).argmax(1, keepdim=True)
            next_q = target(batch["next_obs"]).gather(1, best)[:, 0]
            y = batch["reward"] + batch["discount"] * next_q
        q = online(batch["obs"]).gather(1, batch["action"][:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(q, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            target.load_state_dict(online.state_dict())
        agent.learn()
        obs = torch.randn(64, 3)
        q = agent.policy.net.q(obs[None])[0]
        torch.testing.assert_close(q, online(obs), rtol=1e-4, atol=1e-4)


def test_threshold_1_is_behaviour_cloning(data):
    bcq = learn(data, [0], 300, threshold=1.0, learning_rate=3e-3)
    obs = torch.randn(1, 200, 3)
    _, logits = bcq.policy.net(obs)
    assert torch.equal(bcq.policy.scores(obs, {}, "action").argmax(-1), logits.argmax(-1))
    shares = logits.softmax(-1).mean((0, 1))
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.05, 0.15]), rtol=0, atol=0.12)
    cloning = build(Config, compose("train", "agent=bc").agent, "agent")
    assert (cloning.threshold, cloning.q_weight) == (1.0, 0.0)


def test_only_low_thresholds_find_the_rare_best_action(data):
    obs = torch.rand(1, 200, 3) * 2 - 1
    chosen = {}
    for threshold in (0.0, 0.3):
        agent = learn(data, [0], 400, threshold=threshold, learning_rate=3e-3, discount=0.5)
        chosen[threshold] = (agent.policy.scores(obs, {}, "action").argmax(-1) == 2).float().mean()
    assert chosen[0.0] > 0.9 and chosen[0.3] < 0.3


@pytest.mark.rounding
def test_seeds_are_independent(data):
    together, alone = learn(data, [1, 7, 4], 30), learn(data, [7], 30)
    one = take(together, torch.tensor([1]))
    assert one.data is data, "data sets are not copied"
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    values = together.policy.state_dict().values()
    assert any(not torch.equal(value[0], value[1]) for value in values)


def random_logs(folder):
    """A data set of CartPole's spaces, with random content, in `folder`/set."""
    rng = np.random.default_rng(0)
    writer = Writer(str(folder / "set"))
    for _ in range(20):
        obs = rng.normal(size=(30, 4)).astype(np.float32)
        writer.add(obs, rng.integers(0, 2, 29), np.ones(29), True)
    return writer.close({}, 1, [])


@pytest.mark.parametrize("shards", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(shards, tmp_path, rlx):
    from rlx.data.shards import write

    data = random_logs(tmp_path)
    if shards:
        write(data, tmp_path / "shards", 1, rows=100)
    where = f"data={tmp_path / ('shards' if shards else 'set')}"
    line = (
        "train",
        "agent=bcq",
        "env=cartpole",
        where,
        "seeds=3",
        *TINY[1:],
        "agent.hidden=[16]",
        "agent.batch_size=16",
        f"agent.n_steps={1 if shards else 3}",
    )
    whole = rlx(*line, "steps=60", "eval_every=20")
    half = rlx(*line, "steps=37", "eval_every=20", "outputs=half")
    assert whole.code == half.code == 0, whole.err + half.err
    resumed = rlx("resume", half.run, "steps=60")
    assert resumed.code == 0, resumed.err
    newest = "checkpoints/000000060/agent.safetensors"
    assert (whole.run / newest).read_bytes() == (half.run / newest).read_bytes()
    assert whole.summary["return"] == resumed.summary["return"]


@pytest.mark.rounding
@pytest.mark.parametrize("agent", ["bcq", "bc"])
def test_offline_runs_can_be_evaluated_attacked_and_grown(agent, tmp_path, rlx):
    random_logs(tmp_path)
    line = (
        "train",
        f"agent={agent}",
        "env=cartpole",
        f"data={tmp_path}/set",
        *TINY[1:],
        "steps=40",
        "agent.hidden=[16]",
    )
    run = rlx(*line, "seeds=2").run
    assert rlx("evaluate", run, "episodes=3").code == 0
    attacked = rlx("attack", run, "eps=[0,0.5]", "episodes=5", "scale=[1,1,1,1]", "attack=fgsm")
    assert attacked.code == 0, attacked.err
    assert [cell["flip_rate"] > 0.1 for cell in attacked.summary["cells"]] == [False, True]
    old, new = (
        Run(run).checkpoints.load("best"),
        Run(rlx(*line, "seeds=[2]").run).checkpoints.load("best"),
    )
    assert rlx("resume", run, "seeds=3").code == 0
    whole = Run(rlx(*line, "seeds=3", "outputs=whole").run).checkpoints.load("best")
    for name, value in Run(run).checkpoints.load("best").items():
        assert torch.equal(value, torch.cat([old[name], new[name]])), (
            "to the bit: trained in the same shapes"
        )
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5)
