"""Act/Env: its memory of rated episodes, its losses, its two protocols, and that it learns."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

from rlx.agent import Transition
from rlx.agents.actenv import better
from rlx.errors import ConfigError
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import take
from rlx.rated_memory import RatedMemory

SMALL = (
    "agent.learning_starts=8",
    "agent.hidden=[6]",
    "agent.batch_size=16",
    "agent.buffer_size=200",
    "agent.replay_ratio=1",
)


def agent_of(composed, *overrides, env="cartpole", seeds=(0,), num_envs=1):
    config = composed("train", "agent=actenv", f"env={env}", *overrides)
    return make_agent(config.agent, env_spec(config.env), seed_tensor(seeds), num_envs)


def play(agent, lengths, unfinished=False):
    """Hand one seed and env copy episodes of reward 1 with these `lengths`.

    Returns the metrics of every step.
    """
    carry = agent.policy.initial_carry(1)
    obs = torch.zeros(1, 1, 4)
    reward = torch.ones(1, 1)
    truncated = torch.tensor([[False]])
    metrics = []
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        for t in range(length):
            action, carry = agent.act(obs, torch.tensor([[t == 0]]), carry)
            next_obs = torch.randn(1, 1, 4, generator=generator)
            terminated = torch.tensor([[t == length - 1 and not unfinished]])
            step = Transition(obs, action, reward, next_obs, terminated, truncated, carry)
            metrics.append(agent.update(step))
            obs = next_obs
    return metrics


def memory_of(composed, capacity, num_envs=1, seeds=1):
    spec = env_spec(composed("train", "env=cartpole").env)
    return RatedMemory(capacity, spec, num_envs, torch.arange(seeds))


def store(memory, number, ended, reward=1.0):
    """One row in every ring, marked with `number` in all its observations."""
    shape = memory.written.shape
    zeros = torch.zeros(shape, dtype=torch.int64)
    rows = {
        "obs": torch.full((*shape, 4), float(number)),
        "next_obs": torch.zeros(*shape, 4),
        "previous": zeros,
        "action": zeros,
    }
    memory.add(torch.full(shape, reward), torch.as_tensor(ended).expand(shape), 0.0, 10.0, **rows)


def sampled(memory, batch=64):
    """{row number: rate} of many rows drawn from its first seed."""
    generator = torch.Generator().manual_seed(1)
    rows = memory.sample(torch.rand(len(memory.written), batch + 1, generator=generator))
    return dict(zip(rows["obs"][0, :, 0].int().tolist(), rows["rate"][0].tolist(), strict=True))


def test_all_transitions_of_a_finished_episode_get_its_rate_and_unrated_ones_are_never_sampled(
    composed,
):
    memory = memory_of(composed, 100)
    store(memory, 0, False)
    store(memory, 1, False)
    assert memory.rated().item() == 0
    first = {0: 0.3, 1: 0.3, 2: 0.3}
    store(memory, 2, True)
    assert memory.rated().item() == 3
    assert sampled(memory) == pytest.approx(first)
    store(memory, 3, False)
    assert memory.rated().item() == 3
    assert sampled(memory) == pytest.approx(first)
    store(memory, 4, True)
    store(memory, 5, False)
    assert memory.rated().item() == 5
    assert sampled(memory) == pytest.approx(first | {3: 0.2, 4: 0.2})


@pytest.mark.parametrize(("reward", "rate"), [(-1.0, 0.0), (0.5, 0.1), (60.0, 1.0)])
def test_rates_lie_between_0_and_1(reward, rate, composed):
    memory = memory_of(composed, 10)
    store(memory, 0, False, reward)
    store(memory, 1, True, reward)
    assert sampled(memory) == pytest.approx({0: rate, 1: rate})


def test_an_episode_longer_than_the_ring(composed):
    memory = memory_of(composed, 4)
    store(memory, 0, True)
    for number in range(1, 7):
        store(memory, number, False)
        assert memory.rated().item() == (1 if number < 4 else 0)
        if number < 4:
            assert sampled(memory) == pytest.approx({0: 0.1})
    store(memory, 7, True)
    # By the whole episode's return, rows 1 to 7.
    assert sampled(memory) == pytest.approx(dict.fromkeys(range(4, 8), 0.7))
    store(memory, 8, False)
    assert sampled(memory) == pytest.approx(dict.fromkeys(range(5, 8), 0.7))
    for number in range(9, 19):  # more episodes than slots
        store(memory, number, True)
    assert sampled(memory) == pytest.approx(dict.fromkeys(range(15, 19), 0.1))


def test_copies_finish_their_episodes_at_different_times(composed):
    memory = memory_of(composed, 60, num_envs=3, seeds=2)
    ends = torch.zeros(12, 3, dtype=torch.bool)
    ends[4, 0] = ends[9, 2] = ends[11, 2] = True
    for number in range(12):
        store(memory, number, ends[number])
    assert memory.rated().tolist() == [[5, 0, 12]] * 2
    rows = memory.sample(torch.rand(2, 18, generator=torch.Generator().manual_seed(0)))
    drawn = sorted(zip(rows["obs"][1, :, 0].int().tolist(), rows["rate"][1].tolist(), strict=True))
    first_env = [(n, 0.5) for n in range(5)]
    last_env = [(n, 1.0) for n in range(10)] + [(n, 0.2) for n in (10, 11)]
    expected = sorted(first_env + last_env)
    # 17 of 17: every row once.
    assert [n for n, _ in drawn] == [n for n, _ in expected]
    assert [rate for _, rate in drawn] == pytest.approx([rate for _, rate in expected])


def test_sampling_is_even_and_without_replacement(composed):
    memory = memory_of(composed, 100)
    for number in range(25):
        store(memory, number, number % 5 == 4)
    draws = torch.rand(20000, 11, generator=torch.Generator().manual_seed(0))
    batches = [memory.sample(draw.unsqueeze(0)) for draw in draws[:4000]]
    numbers = torch.stack([batch["obs"][0, :, 0].long() for batch in batches])
    assert all(len(set(batch)) == 10 for batch in numbers.tolist())
    share = numbers.flatten().bincount(minlength=25) / numbers.numel()
    assert share.tolist() == pytest.approx([1 / 25] * 25, rel=0.1)  # 4 σ


def batch_of(agent, size=5):
    generator = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, 1, size, 4, generator=generator)
    action, previous = torch.randint(2, (2, 1, size), generator=generator)
    rate = torch.tensor([[0.1, 0.2, 0.9, 0.4, 0.4]])
    return {"obs": obs, "next_obs": next_obs, "action": action, "previous": previous, "rate": rate}


@pytest.mark.parametrize("imitate", ["all", "better"])
def test_losses_are_those_of_the_definition(imitate, composed):
    agent = agent_of(composed, f"agent.imitate={imitate}", "agent.normalise=false")
    batch = batch_of(agent)
    where = torch.tensor([True])
    next_obs, action, rate = (batch[name][0] for name in ("next_obs", "action", "rate"))
    with torch.no_grad():
        logits, q_a = agent.online.network(batch["obs"], batch["previous"])
        next_logits, q_e = agent.env(batch["obs"], batch["action"])
    logits, q_a, next_logits, q_e = logits[0], q_a[0], next_logits[0], q_e[0]
    weight = torch.ones(5)
    if imitate == "better":
        # The mean of the rates is 0.4: only one exceeds it.
        weight = torch.tensor([0, 0, 5.0, 0, 0])
    a_loss = (weight * cross_entropy(logits, action, reduction="none")).mean() + bce(q_a, rate)
    e_loss = bce(next_logits, torch.sigmoid(next_obs)) + bce(q_e, rate)
    # The other two are taken after the first pair of steps.
    agent.act_optimizer.learning_rate = agent.env_optimizer.learning_rate = 0.0
    losses = agent._learn(batch, where)
    expected = {
        "loss/a": float(a_loss),
        "loss/e": float(e_loss),
        "loss/a2": float(-q_a.mean()),
        "loss/e2": float((q_e - q_a).square().mean()),
        "rate": float(rate.mean()),
    }
    values = {name: float(value) for name, value in losses.items()}
    assert values == pytest.approx(expected, rel=1e-5)


def test_the_second_pair_of_losses_raises_q_a_and_pulls_q_e_to_it(composed):
    agent = agent_of(composed, "agent.normalise=false", "agent.learning_rate2=1e-2")
    agent.act_optimizer.learning_rate = agent.env_optimizer.learning_rate = 0.0
    batch = batch_of(agent)
    where = torch.tensor([True])
    losses = [agent._learn(batch, where) for _ in range(50)]
    assert all(b["loss/a2"] < a["loss/a2"] for a, b in pairwise(losses))
    agent.act_optimizer2.learning_rate = 0.0
    still = [agent._learn(batch, where)["loss/e2"] for _ in range(200)]
    assert still[-1] < 0.2 * still[0]


def test_weights_of_better_episodes():
    weights = better(torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0], [0.0, 0.4, 0.5]]))
    torch.testing.assert_close(weights, torch.tensor([[0, 0, 3], [0, 0, 0], [0, 1, 2.0]]))


def test_nothing_is_learnt_before_an_episode_has_ended(composed):
    agent = agent_of(composed, *SMALL)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    learning = [name for name in before if name.startswith(("policy", "online", "env"))]
    metrics = play(agent, [20], unfinished=True)
    assert not any(metrics[:7]) and all(metrics[7:])  # minibatches are due, but no seed takes one
    assert all(torch.equal(before[name], agent.state_dict()[name]) for name in learning)
    play(agent, [2])
    for name in ("policy.network.layers.0.weight", "env.layers.0.weight"):
        assert not torch.equal(before[name], agent.state_dict()[name])


def test_the_carry_is_the_previous_action_and_0_at_the_start(composed):
    policy = agent_of(composed).policy
    carry, obs = policy.initial_carry(3), torch.randn(1, 3, 4)
    taken = torch.tensor([[1, 0, 1]])
    action, carry = policy.act(obs, torch.tensor([[True, False, False]]), carry | {"action": taken})
    assert carry["previous"].tolist() == [[0, 0, 1]]
    assert torch.equal(carry["action"], action)
    logits, _ = policy.network(obs, carry["previous"])
    assert torch.equal(policy.scores(obs, carry, "action"), logits)


OUTPUTS = ("logits.weight", "logits.bias", "q.weight", "q.bias", "norms.0.mean", "norms.0.variance")
INNER = ("layers.0.weight", "layers.1.weight", "norms.0.scale", "norms.1.shift")


@pytest.mark.parametrize("network", ["online.network", "env"])
@pytest.mark.parametrize(("protocol", "learns"), [("source", False), ("corrected", True)])
def test_outputs_and_statistics_are_frozen_in_the_source_and_learnt_in_the_corrected_protocol(
    protocol, learns, network, composed
):
    agent = agent_of(composed, f"protocol={protocol}", *SMALL)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    play(agent, [10, 20, 10])
    after = agent.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"{network}.{name}" for name in INNER} <= changed
    for name in OUTPUTS:
        assert (f"{network}.{name}" in changed) == learns, name


def test_the_source_protocols_sizes_exploration_and_stop_rule(composed):
    config = composed("train", "agent=actenv", "env=cartpole", "protocol=source")
    assert config.agent.learning_starts == config.agent.buffer_size == 100_000
    assert config.agent.batch_size == 1000
    assert config.stop.solved == 500
    assert config.stop.window == 100
    assert config.num_envs == 1
    agent = agent_of(composed, "protocol=source")
    network = agent.policy.network
    layers = (*network.layers, network.logits, network.q)
    shapes = [tuple(layer.weight.shape) for layer in layers]
    assert shapes == [(1, 4, 2), (1, 4, 8), (1, 8, 2), (1, 8, 1)]
    assert agent.env.logits.weight.shape == (1, 8, 4)
    one_decay = 0.01 + 0.99 / 2.718282
    for steps, epsilon in ((0, 1.0), (100_000, 1.0), (110_000, one_decay), (10**6, 0.01)):
        agent.steps.fill_(steps)
        assert float(agent.epsilon()) == pytest.approx(epsilon)


def test_normalised_layers_have_mean_0_and_variance_1_per_seed(composed):
    agent = agent_of(composed, seeds=(0, 1))
    norm = agent.env.norms[0]
    units = agent.config.obs_units
    x = torch.randn(2, 500, units) * torch.tensor([[[3.0]], [[0.5]]]) + 2
    out = norm(x, torch.tensor([True, False]))
    torch.testing.assert_close(out.mean(1), torch.zeros(2, units), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(1), torch.ones(2, units), atol=1e-2, rtol=0)
    assert (norm.mean[0] != 0).all()
    assert (norm.mean[1] == 0).all(), "a seed that sits out keeps its statistics"
    for _ in range(1000):
        norm(x, torch.tensor([True, False]))
    torch.testing.assert_close(norm(x)[0], out[0], atol=1e-2, rtol=1e-2)


def test_sampled_actions_follow_the_logits(composed):
    agent = agent_of(
        composed, "agent.learning_starts=0", "agent.epsilon_end=0", "agent.epsilon_steps=1"
    )
    agent.steps.fill_(10**6)
    obs = torch.randn(1, 1, 4).expand(1, 20000, 4)
    carry = agent.policy.initial_carry(20000)
    action, carry = agent.act(obs, torch.ones(1, 20000, dtype=torch.bool), carry)
    wanted = agent.online.scores(obs, carry, "action").softmax(-1)[0, 0, 1].detach()
    assert float(action.float().mean()) == pytest.approx(float(wanted), abs=0.015)


@pytest.mark.rounding
def test_a_seed_in_the_batch_learns_as_alone_in_double_precision(composed):
    """In float32, rounding grows too soon to tell.

    Adam follows gradients of any size, and norms divide by small deviations.
    """
    together = agent_of(composed, *SMALL, seeds=(1, 7, 4)).double()
    alone = agent_of(composed, *SMALL, seeds=(7,)).double()
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(3, 16, generator=generator).double()
    obs = torch.randn(2, 3, 16, 4, generator=generator).double()
    actions = torch.randint(2, (2, 3, 16), generator=generator)
    batch = {
        "obs": obs[0],
        "next_obs": obs[1],
        "action": actions[0],
        "previous": actions[1],
        "rate": rates,
    }
    for _ in range(50):
        together._learn(batch, torch.tensor([True, True, False]))
        alone._learn({name: value[1:2] for name, value in batch.items()}, torch.tensor([True]))
    one = take(together, torch.tensor([1])).state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(one[name], value, rtol=1e-6, atol=1e-8, msg=name)
    untouched = agent_of(composed, *SMALL, seeds=(4,)).double().online.state_dict()
    third = take(together.online, torch.tensor([2])).state_dict()
    for name, value in untouched.items():
        assert torch.equal(value, third[name])


@pytest.mark.parametrize("env", ["acrobot", "chain"])
def test_other_spaces(env, composed):
    agent = agent_of(composed, "agent.hidden=[6, 5]", env=env, num_envs=3)
    obs = torch.zeros(1, 3, 6) if env == "acrobot" else torch.zeros(1, 3, dtype=torch.int64)
    first = torch.ones(1, 3, dtype=torch.bool)
    action, carry = agent.act(obs, first, agent.policy.initial_carry(3))
    actions = 3 if env == "acrobot" else 2
    assert agent.policy.scores(obs, carry, "action").shape == (1, 3, actions)
    assert agent.env(obs, action)[0].shape == (1, 3, agent.env.encoder.features)


def test_learning_that_could_never_start_is_refused(composed):
    with pytest.raises(ConfigError, match="the memory can hold, 96 transitions"):
        agent_of(composed, "agent.buffer_size=110", "agent.learning_starts=105", num_envs=16)


@pytest.mark.slow
def test_actenv_balances_the_pole(rlx):
    result = rlx("train", "agent=actenv", "env=cartpole", "seeds=3")
    assert sorted(result.summary["return"]["per_seed"])[1] >= 475
