"""PPO's parts against slow definitions."""

import itertools

import pytest
import torch
from test_agents import Learner
from torch.distributions import Categorical, Normal

from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor


def rolled_out(composed, *overrides, env="cartpole", num_envs=4):
    """A PPO agent whose rollout is full, before it learns from it."""
    config = composed(
        "train",
        "agent=ppo",
        f"env={env}",
        "env.max_episode_steps=9",
        "agent.rollout_steps=24",
        "agent.hidden=[8]",
        *overrides,
    )
    learner = Learner(config, [3, 5], num_envs)
    learner.agent.due = lambda: ()
    for _ in range(24):
        learner.step()
    return learner.agent


def test_advantages_equal_a_slow_loop_and_truncation_bootstraps(composed):
    agent = rolled_out(composed, "agent.normalise_reward=false")
    with torch.no_grad():
        values, next_values, _ = agent._evaluate_rollout()
        agent.prepare()
    ended = agent.terminated | agent.truncated
    assert agent.truncated.any()
    assert (agent.next_obs[:, :, :-1] != agent.obs[:, :, 1:]).any()
    for s, n, t in itertools.product(range(2), range(4), range(24)):
        expected, weight = 0.0, 1.0
        for u in range(t, 24):
            bootstrap = 0.0
            if not agent.terminated[s, n, u]:
                bootstrap = 0.99 * float(next_values[s, n, u])
            delta = float(agent.reward[s, n, u]) + bootstrap - float(values[s, n, u])
            expected += weight * delta
            if ended[s, n, u]:
                break
            weight *= 0.99 * 0.95
        assert float(agent.advantage[s, n, t]) == pytest.approx(expected, abs=1e-4)


def test_an_epoch_has_every_row_once_in_any_order(composed):
    agent = rolled_out(composed)
    first_row = torch.tensor([0, 96]).view(2, 1, 1)
    total = torch.zeros(2, 96)
    for _ in range(100):
        order = agent._shuffled() - first_row
        assert (order.sort(-1).values == torch.arange(96)).all()
        total += order.float().mean(1)
    # Of 1000 epochs, the mean row at each place: 47.5, with an error of 0.88.
    assert (total / 100 - 47.5).abs().max() < 5 * 0.88
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0, 0], order[0, 1])


@pytest.mark.rounding
def test_memory_replayed_through_time_is_the_memory_that_acted(composed):
    agent = rolled_out(
        composed, "agent.recurrent=6", "agent.minibatches=2", "env.max_episode_steps=7"
    )
    with torch.no_grad():
        _, _, acted = agent._evaluate_rollout()
        batch = {name: getattr(agent, name) for name in ("obs", "action", "first", "memory")}
        _, log_prob, _ = agent._evaluate_actions(batch)
    torch.testing.assert_close(log_prob.view_as(acted), acted)
    assert agent.first[:, :, 1:].any()
    assert (agent.memory[agent.first] == 0).all()
    assert (agent.memory[~agent.first] != 0).any()


def test_log_probabilities_and_samples_are_those_of_the_distributions(composed):
    for env in ("acrobot", "pendulum"):
        config = composed("train", "agent=ppo", f"env={env}", "agent.initial_std=0.3")
        spec = env_spec(config.env)
        agent = make_agent(config.agent, spec, seed_tensor([0, 1]), 20_000)
        obs = torch.randn(2, 1, spec.observation_space.shape[0]).expand(2, 20_000, -1)
        with torch.no_grad():
            for parameter in agent.policy.actor.layers[-1].parameters():
                parameter.mul_(300)
        action, _ = agent.act(obs, torch.ones(2, 20_000, dtype=torch.bool), {})
        outputs = agent.policy.scores(obs, {}, "action")
        log_prob, entropy = agent.policy.log_prob(outputs, action)
        if env == "acrobot":
            reference = Categorical(logits=outputs)
            shares = torch.stack([(action == a).float().mean(1) for a in range(3)], -1)
            torch.testing.assert_close(shares, reference.probs[:, 0], atol=0.015, rtol=0)
            torch.testing.assert_close(log_prob, reference.log_prob(action))
            torch.testing.assert_close(entropy, reference.entropy())
        else:
            reference = Normal(outputs, torch.tensor(0.3 * 2))  # half of the range −2…2 is 2
            torch.testing.assert_close(action.mean(1), outputs[:, 0], atol=0.02, rtol=0)
            torch.testing.assert_close(action.std(1), torch.full((2, 1), 0.6), atol=0.02, rtol=0)
            torch.testing.assert_close(log_prob, reference.log_prob(action).sum(-1))
            torch.testing.assert_close(entropy, reference.entropy().sum(-1))


def test_minibatches_must_divide_the_rollout(rlx):
    result = rlx(
        "train",
        "agent=ppo",
        "env=cartpole",
        "num_envs=3",
        "agent.rollout_steps=5",
        "agent.minibatches=4",
    )
    expected = "agent.minibatches=4: does not divide num_envs=3 times agent.rollout_steps=5"
    assert result.code == 2
    assert expected in result.err


@pytest.mark.slow
def test_ppo_balances_the_pole(rlx):
    result = rlx("train", "agent=ppo", "env=cartpole", "seeds=3", "steps=60000")
    assert min(result.summary["return"]["per_seed"]) >= 475


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "env", "least"),
    [
        ("a2c", "cartpole", 475),
        ("ppo", "acrobot", -85),
        ("a2c", "acrobot", -85),
        ("ppo", "pendulum", -250),
        ("ppo", "lunar_lander", 200),
    ],
)
def test_reaches_its_bar(agent, env, least, rlx):
    assert rlx("train", f"agent={agent}", f"env={env}", "seeds=3").summary["return"]["iqm"] >= least


@pytest.mark.slow
def test_memory_makes_up_for_hidden_speeds(rlx):
    with_memory = rlx("train", "agent=ppo", "env=cartpole_masked", "seeds=3")
    assert sorted(with_memory.summary["return"]["per_seed"])[1] >= 450
    without = rlx(
        "train",
        "agent=ppo",
        "env=cartpole_masked",
        "seeds=3",
        "agent.recurrent=null",
        "steps=100000",
    )
    assert max(without.summary["return"]["per_seed"]) <= 100
