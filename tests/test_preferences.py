"""What the rater is asked and answers, and that its answers are all that reaches the learner."""

import pytest
import torch
from test_agents import Learner

ROUND = (
    "agent.round_steps=40",
    "agent.segment_steps=10",
    "agent.queries=60",
    "agent.first_queries=25",
    "agent.queries_per_round=25",
    "agent.rollout_steps=20",
)


def make_learner(composed, *overrides):
    given = ("agent.minibatches=4", *ROUND, *overrides)
    config = composed("train", "agent=preferences", "env=cartpole", *given)
    return Learner(config, [3, 5], 8)


def asked(composed, steps, *overrides):
    """The agent after so many vector steps."""
    learner = make_learner(composed, *overrides)
    for _ in range(steps):
        learner.step()
    return learner.agent


def test_queries_are_segments_of_one_episode_and_the_longer_one_wins(composed):
    agent = asked(composed, 40, "agent.rater_noise=0")
    assert agent.asked.tolist() == [25, 25]
    lengths = agent.inside[:, :25].sum(-1)  # CartPole earns 1 per step
    assert lengths.max() == 10
    assert 1 <= lengths.min() < 10
    differ = lengths[..., 0] != lengths[..., 1]
    first_preferred = agent.answers[:, :25][differ] == 1
    first_longer = (lengths[..., 0] > lengths[..., 1])[differ]
    assert differ.any()
    assert torch.equal(first_preferred, first_longer)
    obs = agent.segments[..., 0]
    jumps = (obs[..., 1:] - obs[..., :-1]).abs() * agent.inside[..., 1:]
    assert jumps[:, :25].max() < 0.1, "no reset within a segment"


def test_a_segment_that_the_time_limit_cut_is_no_worse_for_it(composed):
    agent = asked(
        composed, 40, "agent.rater_noise=0", "env.max_episode_steps=7", "agent.first_queries=60"
    )
    obs, inside = agent.segments[..., 0], agent.inside
    assert (inside.sum(-1) < 7).any()
    # Nobody falls within 7 steps: both are as long.
    assert (inside[:, :, 0] == inside[:, :, 1]).all()
    assert (agent.answers == 0.5).all()
    assert obs.abs().sum() > 0


def test_the_budget_holds_and_noise_is_as_stated(composed):
    assert asked(composed, 200).asked.tolist() == [60, 60]
    clean = asked(composed, 40, "agent.rater_noise=0", "agent.first_queries=60")
    noisy = asked(composed, 40, "agent.rater_noise=0.3", "agent.first_queries=60")
    lengths = clean.inside.sum(-1)
    differ = lengths[..., 0] != lengths[..., 1]
    wrong = (clean.answers != noisy.answers)[differ]
    assert float(wrong.float().mean()) == pytest.approx(0.3, abs=0.12)


def test_the_envs_reward_does_not_reach_the_learner(composed):
    plain = make_learner(composed)
    scaled = make_learner(composed)
    step = scaled.env.step

    def step_scaled(action):
        obs, reward, *rest = step(action)
        return obs, reward * 100, *rest  # the order of segments stays

    scaled.env.step = step_scaled
    for _ in range(90):
        plain.step()
        scaled.step()
    policies = plain.agent.policy.parameters(), scaled.agent.policy.parameters()
    for plain_parameter, scaled_parameter in zip(*policies, strict=True):
        assert torch.equal(plain_parameter, scaled_parameter)


def test_the_envs_reward_does_not_choose_the_weights(rlx):
    result = rlx(
        "train",
        "agent=preferences",
        "env=cartpole",
        "seeds=3",
        "steps=2048",
        "eval_every=512",
        "eval_episodes=2",
    )
    assert result.summary["kept"]["step"] == [2048] * 3


@pytest.mark.slow
def test_learns_to_balance_from_300_comparisons(rlx):
    result = rlx("train", "agent=preferences", "env=cartpole", "seeds=3")
    assert min(result.summary["return"]["per_seed"]) >= 450
