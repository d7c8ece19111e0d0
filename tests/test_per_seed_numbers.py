"""Numbers that may differ between seeds: a row with numbers of its own learns as it does alone."""

import typing

import numpy as np
import pytest
import torch
from conftest import AGENTS, ENVS, PAIRS, apart, compose, small
from test_agents import Learner, calm

from rlx.agent import Agent
from rlx.config import describe, load_class, varying
from rlx.data.writer import Writer
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor

SEED = 7
OFFLINE = ("bc", "bcq")


def config_type(agent: str) -> type:
    """The dataclass of an agent's settings."""
    return load_class(compose("train", f"agent={agent}").agent, "agent", Agent).config_type


FIELDS = [(agent, field) for agent in AGENTS for field in sorted(varying(config_type(agent)))]
VALUES = {
    "max_grad_norm": (0.03, 10.0),
    "max_grad_value": (1e-3, 1.0),
    "clip": (1e-3, 1.0),
    "rater_noise": (0.0, 0.5),
    "weight_decay": (0.1, 1.0),
    "adam_eps": (1e-8, 1e-3),
    "initial_std": (0.1, 0.5),
    "opening": (0, 3),
    "goal_steps": (1, 4),
    "threshold": (0.5, 1.0),
    "entropy_coefficient": (0.0, 20.0),
}
"""Field → two values that make a difference within a few steps."""
BESIDE = {
    "clip": {"epochs": 3},
    "league_games": {"league_every": 1, "epsilon_start": 0},
    "opening": {"epsilon_start": 0},
    "max_grad_norm": {"optimizer": "rmsprop"},
}
"""Field → settings under which it makes a difference."""
SOON = {
    "epsilon_steps": 16,
    "controller_epsilon_steps": 16,
    "learning_rate_steps": 16,
    "goal_steps": 2,
    "q_weight": 1.0,
    "queries": 30,
    "first_queries": 8,
    "round_steps": 16,
    "segment_steps": 4,
    "reward_updates": 3,
    "reward_hidden": "[8]",
}
"""Settings under which all that an agent does begins within a few steps."""
ENV = {"initial_std": "pendulum", "opening": "tic_tac_toe"}
"""Field → the env in which it makes a difference; others do in every env."""


def values(agent: str, field: str) -> tuple[float, float]:
    """Two values of an agent's field that make a difference within a few steps."""
    if field in VALUES:
        return VALUES[field]
    if "learning_rate" in field and not field.endswith("steps"):
        return (3e-4, 1e-3)
    hint = typing.get_type_hints(config_type(agent), include_extras=True)[field]
    return (3, 400) if "a whole number" in describe(hint) else (0.25, 0.75)


class OfflineLearner:
    """An agent that learns from a data set, minibatch by minibatch."""

    def __init__(self, config, seeds, num_envs, data):
        spec = env_spec(config.env)
        data.adapt_to(spec, {})
        self.agent = make_agent(config.agent, spec, seed_tensor(seeds), num_envs, data)

    def step(self):
        self.agent.learn()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Random walks in CartPole's spaces."""
    rng = np.random.default_rng(0)
    writer = Writer(str(tmp_path_factory.mktemp("walks") / "set"))
    for number in range(20):
        obs = rng.uniform(-0.1, 0.1, (12, 4)).astype(np.float32)
        action = rng.choice(2, 11, p=[0.7, 0.3])
        writer.add(obs, action, (action == 1).astype(np.float32), number % 2 == 0)
    return writer.close({}, 1, [])


def learner(data, agent: str, env: str, seeds: list[int], num_envs: int = 4, **settings):
    """An agent in its env; `seeds` may have one twice."""
    overrides = small(agent, **calm(agent) | SOON | settings)
    env_keys = (*ENVS.get(env, ()), "tuned=none")
    config = compose("train", f"agent={agent}", f"env={env}", *env_keys, *overrides)
    if agent in OFFLINE:
        return OfflineLearner(config, seeds, num_envs, data)
    return Learner(config, seeds, num_envs)


def env_of(agent: str, field: str) -> str:
    """An env in which an agent's field makes a difference."""
    if agent in OFFLINE:
        return "cartpole"
    envs = [env for known, env in PAIRS if known == agent]
    return ENV.get(field, envs[0])


def states(agent: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of an agent's state."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def row(state: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """The state [1, …] of one seed."""
    return {name: value[number : number + 1] for name, value in state.items()}


def learn(*learners, times: int = 3) -> None:
    """Step them side by side until the first has learnt in so many steps, and a few steps more."""
    learnt = 0
    while learnt < times:
        before = [parameter.clone() for parameter in learners[0].agent.policy.parameters()]
        for one in learners:
            one.step()
        after = learners[0].agent.policy.parameters()
        learnt += any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.rounding
@pytest.mark.parametrize(("agent", "field"), FIELDS)
def test_a_row_with_a_number_of_its_own_learns_as_alone(agent, field, data):
    env = env_of(agent, field)
    numbers = values(agent, field)

    def with_value(seeds, value):
        return learner(data, agent, env, seeds, **BESIDE.get(field, {}) | {field: value})

    together = with_value([SEED, SEED], "[{},{}]".format(*numbers))
    alone = [with_value([SEED], number) for number in numbers]
    before = states(alone[0].agent)
    learn(together, *alone)
    after = states(together.agent)
    assert after.keys() == before.keys(), "no checkpoint holds the numbers"
    for number, one in enumerate(alone):
        state = states(one.agent)
        assert apart(row(after, number), state, before) < 0.01
    assert apart(row(after, 0), row(after, 1), before) > 0.03, f"{field} changes nothing"
