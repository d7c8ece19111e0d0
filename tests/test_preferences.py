"""What the rater is asked, what it answers, and that its answers are all that reaches the learner."""

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


def learner(composed, *overrides):
    return Learner(
        composed(
            "train", "agent=preferences", "env=cartpole", "agent.minibatches=4", *ROUND, *overrides
        ),
        [3, 5],
        8,
    )


def asked(composed, steps, *overrides):
    one = learner(composed, *overrides)
    for _ in range(steps):
        one.step()
    return one.agent


def test_queries_are_segments_of_one_episode_and_the_longer_one_wins(composed):
    agent = asked(composed, 40, "agent.rater_noise=0")
    assert agent.asked.tolist() == [25, 25]
    lengths = agent.inside[:, :25].sum(-1)  # CartPole earns 1 per step
    assert lengths.max() == 10 and 1 <= lengths.min() < 10
    differ = lengths[..., 0] != lengths[..., 1]
    assert differ.any() and torch.equal(
        agent.answers[:, :25][differ] == 1, (lengths[..., 0] > lengths[..., 1])[differ]
    )
    obs = agent.segments[..., 0]
    jumps = (obs[..., 1:] - obs[..., :-1]).abs() * agent.inside[..., 1:]
    assert jumps[:, :25].max() < 0.1, "no reset within a segment"


def test_a_segment_that_the_time_limit_cut_is_no_worse_for_it(composed):
    agent = asked(
        composed, 40, "agent.rater_noise=0", "env.max_episode_steps=7", "agent.first_queries=60"
    )
    obs, inside = agent.segments[..., 0], agent.inside
    assert (inside.sum(-1) < 7).any() and (inside[:, :, 0] == inside[:, :, 1]).all(), (
        "nobody falls within 7 steps: both are as long"
    )
    assert (agent.answers == 0.5).all() and obs.abs().sum() > 0


def test_the_budget_holds_and_noise_is_as_stated(composed):
    assert asked(composed, 200).asked.tolist() == [60, 60]
    clean, noisy = (
        asked(composed, 40, f"agent.rater_noise={noise}", "agent.first_queries=60")
        for noise in (0, 0.3)
    )
    lengths = clean.inside.sum(-1)
    differ = lengths[..., 0] != lengths[..., 1]
    assert float((clean.answers != noisy.answers)[differ].float().mean()) == pytest.approx(
        0.3, abs=0.12
    )


def test_the_envs_reward_does_not_reach_the_learner(composed):
    plain, scaled = learner(composed), learner(composed)
    step = scaled.env.step

    def paid(action):
        obs, reward, *rest = step(action)
        return obs, reward * 100, *rest  # the order of segments stays

    scaled.env.step = paid
    for _ in range(90):
        plain.step(), scaled.step()
    for mine, theirs in zip(
        plain.agent.policy.parameters(), scaled.agent.policy.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


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
