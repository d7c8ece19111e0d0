"""Numbers that may differ between seeds: a row with numbers of its own learns as it does alone."""

import typing

import numpy as np
import pytest
import torch
from conftest import AGENTS, ENVS, PAIRS, TINY, apart, compose, small
from test_agents import Learner, calm
from test_compiled import NEEDS_COMPILER, TRACED, assert_equal, training
from test_resume import fingerprint

from rlx.agent import Agent
from rlx.config import describe, load_class, varying
from rlx.data.writer import Writer
from rlx.experiment import env_spec, make_agent
from rlx.nn.rng import seed_tensor
from rlx.nn.seed_axis import concatenate, take
from rlx.policies import open_runs
from rlx.runs.run import Run
from rlx.training.compiled import CompiledSteps, compile_steps, interpreted

SEED = 7
OFFLINE = ("bc", "bcq")


def config_type(agent: str) -> type:
    """The dataclass of an agent's settings."""
    return load_class(compose("train", f"agent={agent}").agent, "agent", Agent).config_type


FIELDS = [(agent, field) for agent in AGENTS for field in sorted(varying(config_type(agent)))]
VALUES = {
    "n_steps": (1, 4),
    "max_grad_norm": (0.03, 10.0),
    "max_grad_value": (1e-3, 1.0),
    "clip": (1e-3, 1.0),
    "rater_noise": (0.0, 0.5),
    "weight_decay": (0.1, 1.0),
    "adam_eps": (1e-8, 1e-3),
    "initial_std": (0.1, 0.5),
    "opening": (0, 3),
    "league_games": (0.0, 1.0),
    "goal_steps": (1, 4),
    "threshold": (0.5, 1.0),
    "entropy_coefficient": (0.0, 20.0),
}
"""Field → two values that make a difference within a few steps."""
BESIDE = {
    "clip": {"epochs": 3},
    "league_games": {"epsilon_start": 0, "epsilon_end": 0, "opening": 0},
    "opening": {"epsilon_start": 0},
    "initial_std": {"round_steps": 256},
    "learning_rate": {"learning_rate_steps": 400},
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


def double(values):
    """float64 for float32, also within tuples and dictionaries."""
    if isinstance(values, dict):
        return {name: double(value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(map(double, values))
    return values.double() if torch.is_floating_point(values) else values


class PreciseLearner(Learner):
    """In double precision: in float32 norms of few and Adam make whole steps of rounding."""

    def __init__(self, config, seeds, num_envs):
        super().__init__(config, seeds, num_envs)
        self.agent.double()
        self.obs = double(self.obs)
        self.carry = double(self.carry)
        env_step = self.env.step
        self.env.step = lambda action: double(env_step(action))


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
        obs = (rng.uniform(-1, 1, (12, 4)) * [4, 4, 0.4, 4]).astype(np.float32)
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
    return PreciseLearner(config, seeds, num_envs)


def env_of(agent: str, field: str) -> str:
    """An env in which an agent's field makes a difference."""
    if agent in OFFLINE:
        return "cartpole"
    envs = [env for known, env in PAIRS if known == agent]
    # Of segments as long as each other answers leave the reward's constant to rounding.
    usual = "chain" if agent == "preferences" else envs[0]
    return ENV.get(field, usual)


def states(agent: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of an agent's state."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def row(state: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """The state [1, …] of one seed."""
    return {name: value[number : number + 1] for name, value in state.items()}


def learn(*learners, times: int = 3) -> None:
    """Step them side by side, until the first has learnt in so many of at least 12 steps."""
    learnt = 0
    made = 0
    while learnt < times or made < 12:
        made += 1
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


def all_values(agent: str) -> dict[str, tuple[float, float]]:
    """Two values of each of an agent's fields that may differ between seeds."""
    return {field: values(agent, field) for field in varying(config_type(agent))}


def lists(agent: str) -> dict[str, str]:
    """All fields of an agent that may differ between two seeds, as their keys are written."""
    return {field: "[{},{}]".format(*pair) for field, pair in all_values(agent).items()}


@pytest.mark.rounding
@pytest.mark.parametrize("agent", AGENTS)
def test_all_numbers_at_once_where_every_axis_has_the_length_of_the_seeds(agent, data):
    """[S] against [S, B] would broadcast along the wrong axis; then one seed is taken out."""
    env = env_of(agent, "discount")
    sizes = {"batch_size": 2, "rollout_steps": 2, "reward_batch": 2}
    second = {field: pair[1] for field, pair in all_values(agent).items()}
    both = learner(data, agent, env, [SEED, SEED], 2, **sizes | lists(agent))
    alone = learner(data, agent, env, [SEED], 2, **sizes | second)
    before = states(alone.agent)
    learn(both, alone)
    assert apart(row(states(both.agent), 1), states(alone.agent), before) < 0.01
    take_out(both, 1)
    learn(both, alone)
    assert apart(states(both.agent), states(alone.agent), before) < 0.01


def take_out(both, number: int) -> None:
    """Go on with one seed of two."""
    rows = torch.tensor([number])
    both.agent = take(both.agent, rows)
    if isinstance(both, Learner):
        copies = torch.arange(both.shape[1])
        both.env.keep(number * len(copies) + copies)
        both.shape = (1, len(copies))
        both.obs = both.obs[rows]
        both.first = both.first[rows]
        both.carry = {name: value[rows] for name, value in both.carry.items()}


@pytest.mark.parametrize("agent", AGENTS)
def test_agents_are_put_side_by_side_with_their_numbers(agent, data):
    env = env_of(agent, "discount")
    both = learner(data, agent, env, [SEED, SEED], **lists(agent)).agent
    parts = [take(both, torch.tensor([number])) for number in (1, 0)]
    swapped = concatenate(parts)
    for field, pair in all_values(agent).items():
        assert getattr(both.config, field).tolist() == pytest.approx(pair)
        assert getattr(swapped.config, field).tolist() == pytest.approx(pair[::-1])


@pytest.mark.parametrize("agent", sorted({agent for agent, _ in TRACED}))
def test_a_traced_step_reads_the_numbers(agent):
    env = env_of(agent, "discount")
    keys = [f"agent.{field}={pair}" for field, pair in lists(agent).items()]
    written = training(agent, env, *keys)
    traced = training(agent, env, *keys)
    traced.compiles = True
    traced.compiled = CompiledSteps(traced, interpreted, strict=True)
    for _ in range(40):
        written._vector_step()
        traced._vector_step()
    assert written.log.metrics, "nothing was learnt: the case says nothing"
    assert_equal(written, traced)


@NEEDS_COMPILER
@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_a_compiled_step_reads_the_numbers(agent):
    keys = [f"agent.{field}={pair}" for field, pair in lists(agent).items()]
    written = training(agent, "cartpole", *keys)
    done = training(agent, "cartpole", *keys)
    done.compiles = True
    done.compiled = compile_steps(done, strict=True)
    before = states(done.agent)
    for _ in range(24):
        written._vector_step()
        done._vector_step()
    assert written.log.metrics, "nothing was learnt: the case says nothing"
    assert apart(states(done.agent), states(written.agent), before) < 0.01


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("agent=dqn agent.discount=[0.9,0.99]", "agent.discount=[0.9, 0.99]: 2 values for 3 seeds"),
        ("agent=dqn agent.discount=[0.9,0.99,2]", "agent.discount=2: must be from 0 to 1"),
        ("agent=dqn agent.discount=[0.9,a,1]", "agent.discount=a: expected a number"),
        ("agent=dqn agent.target_every=[1,2.5,3]", "agent.target_every=2.5: expected a whole"),
        ("agent=dqn agent.discount=[]", "agent.discount=[]: expected a number"),
        ("agent=dqn agent.max_grad_norm=[1,2]", "agent.max_grad_norm=[1.0, 2.0]: 2 values for 3"),
        ("agent=dqn agent.batch_size=[8,16,32]", "agent.batch_size=[8, 16, 32]: expected a whole"),
        ("agent=ppo agent.epochs=[1,2,3]", "agent.epochs=[1, 2, 3]: expected a whole number"),
    ],
)
def test_a_wrong_list_is_one_line(keys, message, rlx, tmp_path):
    result = rlx("train", *keys.split(), "env=cartpole", "seeds=3", "tuned=none")
    assert result.code == 2 and message in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_run_of_lists_is_resumed_and_evaluated_with_them(rlx):
    """What the policy knows of them is in no checkpoint: the config has it."""
    keys = ("agent=hdqn", "env=acrobot", "env.max_episode_steps=20", "agent.goal_steps=[1,7]")
    sizes = (*TINY, *small("hdqn"), "seeds=2", "tuned=none")
    whole = rlx("train", *keys, *sizes)
    part = rlx("train", *keys, *sizes, "steps=300")
    assert rlx("resume", part.run, "steps=600").code == 0
    assert fingerprint(part.run) == fingerprint(whole.run)
    assert rlx("evaluate", whole.run, "episodes=2").code == 0
    opened = open_runs([Run(whole.run)], "best", torch.device("cpu"))
    assert opened.policy.goal_steps.tolist() == [1, 7]
