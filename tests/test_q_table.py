"""Tabular targets against hand computation, and exact optima."""

import pytest
import torch

from rlx.agent import Transition
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor


def stepped(composed, target, steps):
    """The table [O, A] after hand-made steps of one env copy; learning rate ½, γ 0.9, ε ½.

    A step is (obs, action, reward, next obs, terminated, truncated).
    """
    config = composed(
        "train",
        "agent=q_table",
        "env=frozen_lake",
        f"agent.target={target}",
        "agent.discount=0.9",
        "agent.learning_rate=0.5",
        "agent.learning_rate_end=0.5",
        "agent.initial_value=0",
        "agent.epsilon_start=0.5",
        "agent.epsilon_end=0.5",
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 1)
    agent.online.table.data[0, 1] = torch.tensor([0.0, 4.0, 2.0, 2.0])
    for obs, action, reward, next_obs, terminated, truncated in steps:
        cell = [torch.tensor([[x]]) for x in (obs, action, reward, next_obs, terminated, truncated)]
        agent.update(Transition(*cell, {}))
    return agent.online.table[0].detach()


STEPS = [(0, 3, 1.0, 1, False, False), (1, 2, 0.0, 2, True, False)]


def test_targets_are_the_textbooks(composed):
    best, taken, mean = 4.0, 2.0, 0.5 * 4 + 0.5 * 2  # of state 1, where action 2 is taken next
    for target, value in (("q_learning", best), ("sarsa", taken), ("expected_sarsa", mean)):
        table = stepped(composed, target, STEPS)
        assert float(table[0, 3]) == pytest.approx(0.5 * (1 + 0.9 * value))
        assert float(table[1, 2]) == pytest.approx(1.0)  # halfway from 2 to the terminal 0


def test_sarsa_bootstraps_where_an_episode_is_cut(composed):
    table = stepped(composed, "sarsa", [(0, 3, 1.0, 1, False, True), (5, 0, 0.0, 6, False, False)])
    assert float(table[0, 3]) == pytest.approx(0.5 * (1 + 0.9 * 3)) and float(table[5, 0]) == 0


def test_copies_that_meet_move_an_entry_by_their_mean(composed):
    config = composed(
        "train",
        "agent=q_table",
        "env=frozen_lake",
        "agent.learning_rate=0.5",
        "agent.learning_rate_end=0.5",
        "agent.initial_value=0",
    )
    agent = make_agent(config.agent, env_spec(config.env), seed_tensor([0]), 3)
    obs = torch.tensor([[0, 0, 4]])
    action = torch.ones_like(obs)
    reward = torch.tensor([[1.0, 3.0, 5.0]])
    terminated = torch.ones(1, 3, dtype=torch.bool)
    agent.update(Transition(obs, action, reward, obs, terminated, ~terminated, {}))
    assert agent.online.table[0, :, 1][[0, 4]].tolist() == [1.0, 2.5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "least"),
    [("taxi", 7.5), ("frozen_lake", 0.72), ("frozen_lake_8x8", 0.85), ("cliff_walking", -13)],
)
def test_reaches_the_optimum(env, least, rlx):
    assert rlx("train", "agent=q_table", f"env={env}", "seeds=3").summary["return"]["iqm"] >= least


@pytest.mark.slow
def test_sarsa_takes_the_safer_path(rlx):
    result = rlx("train", "agent=q_table", "env=cliff_walking", "agent.target=sarsa", "seeds=3")
    assert result.summary["return"]["per_seed"] == [-17] * 3
