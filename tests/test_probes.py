"""Every agent of conf/agent learns the known values, and makes the known choices, of the probes."""

from functools import singledispatch
from pathlib import Path

import probes
import pytest
import torch
from conftest import AGENTS, compose
from probes import Probe
from torch import Tensor

from rlx.actor_critic import ActorCritic
from rlx.agent import Agent, OfflineAgent, Policy, Spec
from rlx.agents.actenv import ActEnv, ActPolicy
from rlx.agents.bcq import BCQPolicy
from rlx.agents.dqn import QPolicy
from rlx.agents.efficientzero import SearchPolicy
from rlx.agents.hdqn import GoalPolicy, RegionHDQN
from rlx.agents.q_table import TablePolicy
from rlx.agents.self_play import BoardPolicy
from rlx.config import build, load_class
from rlx.data.writer import Writer
from rlx.experiment import make_env
from rlx.nn.rng import seed_tensor
from rlx.training.config import Config, validated
from rlx.training.loop import Training

SEEDS = 2
NUM_ENVS = 8
STEPS = 2500
MINIBATCHES = 200
"""Of an offline agent."""
DISCOUNT = 0.5
"""So low that one too many or too few changes a value by a third or more, and that bootstrapped
values settle within seconds."""
TOLERANCE = 0.07
"""Of a value. The nearest wrong one is 3/4 in place of 2/3: self-play without the bootstrap. Right
ones were at most 0.035 off, in 24 seeds of each agent."""

QUICK = {
    "discount": DISCOUNT,
    "n_steps": 2,
    "hidden": "[16]",
    "buffer_size": 1000,
    "learning_starts": 64,
    "replay_ratio": 0.125,
    "batch_size": 32,
    "target_tau": 0.1,
    "average_tau": 0.1,
    "epsilon_steps": 500,
    "controller_epsilon_steps": 500,
    # The value of a goal is that of what its controller does, errors and exploration included.
    "controller_epsilon_end": 0.0,
    "normalise_reward": False,
    # Where all observations are equal, a running mean that lags behind the weights is divided by a
    # deviation of next to nothing.
    "norm_tau": 1.0,
    "queries": 64,
    "first_queries": 32,
    "queries_per_round": 32,
    "round_steps": 16,
    "segment_steps": 1,
}
"""To learn in a second. An agent gets those of its own keys; its others are as in conf/agent."""
EPOCHS = {"rollout_steps": 8, "epochs": 4, "minibatches": 2}
SEARCH = {
    "latent": 32,
    "lstm": 16,
    "head": 16,
    "projection": 32,
    "simulations": 4,
    "unroll": 2,
    # Values are those of the actions that were taken: the early ones must leave the memory.
    "buffer_size": 200,
    "replay_ratio": 0.25,
    "target_every": 5,
    "learning_rate": 0.005,
    # Added to the gradient, it shrinks the network to nothing where Adam sees little else: in
    # ChoiceByObs, whose reward correlates with neither the number nor the action alone.
    "weight_decay": 0.0,
}


def kind_of(agent: str) -> type[Agent]:
    """The class of an agent of conf/agent."""
    return load_class(compose("train", f"agent={agent}").agent, "agent", Agent)


def quick(agent: str) -> dict[str, object]:
    """Settings with which the agent learns a probe in a second."""
    own = compose("train", f"agent={agent}").agent
    settings = QUICK | {"learning_rate": max(0.01, own.learning_rate)}
    if own.get("epochs", 1) > 1:
        settings |= EPOCHS
    if "simulations" in own:
        settings |= SEARCH
    return {key: value for key, value in settings.items() if key in own}


def env_node(agent: str, probe: type[Probe]) -> dict[str, object]:
    """The config group `env`: a board for agents that play games, and where moves are illegal."""
    board = kind_of(agent).games or probe is probes.IllegalBait
    return {"_target_": f"probes.{probe.__name__}", "board": board}


@singledispatch
def values(policy: Policy, obs: Tensor) -> Tensor:
    """[S, B]: what a policy says that observations [S, B, *O] are worth."""
    raise NotImplementedError


@values.register(QPolicy)
@values.register(TablePolicy)
@values.register(BoardPolicy)
@values.register(GoalPolicy)
def _largest_score(policy, obs):
    carry = policy.initial_carry(obs.shape[1])
    return policy.scores(obs, carry, policy.heads[0]).amax(-1)


@values.register
def _value_of_the_action_taken(policy: BCQPolicy, obs):
    q, logits = policy.net(obs)
    action = policy.ranked(q, logits).argmax(-1, keepdim=True)
    return q.gather(-1, action).squeeze(-1)


@values.register
def _value_head(policy: SearchPolicy, obs):
    return policy.model.values(obs)


@values.register
def _critic(policy: ActorCritic, obs):
    core, _ = policy.core(obs, policy.initial_carry(obs.shape[1]))
    return policy.critic(core).squeeze(-1)


@values.register
def _success_rate(policy: ActPolicy, obs):
    previous = torch.zeros(obs.shape[:2], dtype=torch.int64)
    return policy.network(obs, previous)[1].sigmoid()


def has_values(agent: str) -> bool:
    """Whether the agent learns what observations are worth in the env's own reward.

    `preferences` learns its reward, in no known unit, and `bc` imitates only.
    """
    kind = kind_of(agent)
    blind = kind.keeps_newest and not issubclass(kind, OfflineAgent)
    imitates = compose("train", f"agent={agent}").agent.get("q_weight") == 0
    known = values.dispatch(kind.policy_type) is not values.dispatch(object)
    return known and not blind and not imitates


def knows_the_rules(agent: str) -> bool:
    """Whether the agent's policy holds a game's rules, and so must not break them."""
    kind = kind_of(agent)
    game = probes.IllegalBait(board=True)
    spec = Spec(game.observation_space, game.action_space, game.max_episode_steps, rules=game)
    if not isinstance(spec.observation_space, kind.observations):
        return False
    config = build(kind.config_type, compose("train", f"agent={agent}").agent, "agent")
    modules = kind.policy_type(config, spec, seed_tensor([0])).modules()
    return any(getattr(module, "rules", None) is not None for module in modules)


def fits(agent: str, probe: type[Probe]) -> bool:
    """Whether the probe says something of the agent."""
    if kind_of(agent) is RegionHDQN:
        return False  # its goals are regions of a Box of one axis, which no probe has
    if probe is probes.IllegalBait:
        return not issubclass(kind_of(agent), OfflineAgent) and knows_the_rules(agent)
    if probe is probes.Truncation and kind_of(agent) is ActEnv:
        return False  # it rates the episodes that were played, and never asks what would follow
    return probe.best is not None or has_values(agent)


PROBES = [
    probes.ConstantReward,
    probes.RewardIsObs,
    probes.Discounting,
    probes.Truncation,
    probes.Choice,
    probes.ChoiceByObs,
    probes.IllegalBait,
]
PAIRS = [(probe, agent) for probe in PROBES for agent in AGENTS if fits(agent, probe)]
RECURRENT = [
    agent
    for agent in AGENTS
    if "recurrent" in compose("train", f"agent={agent}").agent and has_values(agent)
]


def trained(agent: str, probe: type[Probe], folder: Path, **changes: object) -> Policy:
    """The policy of `agent` after it learnt `probe`, by the steps of `rlx train` itself."""
    kind, node = kind_of(agent), env_node(agent, probe)
    settings = quick(agent) | changes
    if kind is ActEnv:
        settings |= {"return_low": probe.lowest, "return_scale": probe.highest}
    steps = MINIBATCHES if issubclass(kind, OfflineAgent) else STEPS
    run = (f"seeds={SEEDS}", f"num_envs={NUM_ENVS}", f"steps={steps}", "tuned=none")
    keys = [f"agent.{key}={value}" for key, value in settings.items()]
    composed = compose("train", f"agent={agent}", "env=chain", *run, *keys)
    composed.env = node
    if issubclass(kind, OfflineAgent):
        composed.data = str(folder / "data")
        collect(probe, node, composed.data)
    training = Training(build(Config, validated(composed), ""), agent)
    while training.step < steps:
        training._vector_step()
    return training.agent.policy


def collect(probe: type[Probe], node: dict[str, object], out: str) -> None:
    """The data set `out`: 64 actors, who take the best action at 3 of 10 steps, else a random one.

    So the best action is the most frequent one, and the others are frequent enough for BCQ.
    """
    actors = 64
    env = make_env(node, actors, "cpu")
    obs, _ = env.reset(seed=0)
    best = torch.tensor(probe.best or (0,) * probe.numbers)
    generator = torch.Generator().manual_seed(0)
    steps: list[list] = [[] for _ in range(actors)]
    writer = Writer(out)
    for _ in range(16):
        random = torch.randint(probe.actions, (actors,), generator=generator)
        knows = torch.rand(actors, generator=generator) < 0.3
        action = torch.where(knows, best[obs], random)
        next_obs, reward, terminated, truncated, info = env.step(action)
        for actor in range(actors):
            steps[actor].append((obs[actor], action[actor], reward[actor]))
            if terminated[actor] or truncated[actor]:
                shown, taken, paid = (torch.stack(x) for x in zip(*steps[actor], strict=True))
                shown = torch.cat([shown, info["final_obs"][actor : actor + 1]])
                rows = (shown.numpy(), taken.numpy(), paid.numpy())
                writer.add(*rows, terminated=bool(terminated[actor]))
                steps[actor] = []
        obs = next_obs
    writer.close(node, 1, [])


@torch.no_grad()
@pytest.mark.parametrize(("probe", "agent"), PAIRS, ids=lambda x: getattr(x, "__name__", x))
def test_values_and_choices_are_the_known_ones(probe, agent, tmp_path):
    with torch.enable_grad():
        policy = trained(agent, probe, tmp_path)
    board = env_node(agent, probe)["board"]
    obs = probe(board=board).observe(torch.arange(probe.numbers).unsqueeze(1))
    obs = obs.expand(SEEDS, *obs.shape)
    first = torch.ones(obs.shape[:2], dtype=torch.bool)
    if probe.best is not None:
        action, _ = policy.act(obs, first, policy.initial_carry(probe.numbers))
        assert action.tolist() == [list(probe.best)] * SEEDS
    if not has_values(agent) or (kind_of(agent) is ActEnv and probe.best is not None):
        return  # Act/Env's rate is that of what it tried, the bad choices too
    learnt, discount = values(policy, obs), DISCOUNT
    if kind_of(agent).games:
        discount = -DISCOUNT
    if kind_of(agent) is ActEnv:
        learnt = probe.lowest + (probe.highest - probe.lowest) * learnt
        discount = 1.0
    known = torch.tensor(probe.values(discount)).expand_as(learnt)
    torch.testing.assert_close(learnt, known, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("agent", RECURRENT)
@pytest.mark.parametrize(("units", "mean_return"), [(16, 1.0), ("null", 0.0)])
def test_what_was_shown_before_is_remembered_by_recurrent_agents_alone(
    agent, units, mean_return, tmp_path
):
    """A greedy agent without memory answers the same to both cues, and is right about one: 0."""
    with torch.enable_grad():
        policy = trained(agent, probes.Memory, tmp_path, recurrent=units)
    probe = probes.Memory()
    state = torch.tensor([[0, 0], [1, 1]])
    carry, first = policy.initial_carry(2), torch.ones(SEEDS, 2, dtype=torch.bool)
    _, carry = policy.act(probe.observe(state).expand(SEEDS, -1), first, carry)
    state, _, _ = probe.transition(state, torch.zeros(2, dtype=torch.int64), torch.empty(2, 0))
    action, _ = policy.act(probe.observe(state).expand(SEEDS, -1), ~first, carry)
    for own in action:
        _, reward, terminated = probe.transition(state, own, torch.empty(2, 0))
        assert terminated.all()
        assert reward.mean() == mean_return


def test_probes_are_tried_by_every_agent():
    assert {agent for _, agent in PAIRS} == set(AGENTS) - {"hdqn_regions"}
    masked = {agent for probe, agent in PAIRS if probe is probes.IllegalBait}
    assert masked >= {"dqn", "hdqn", "self_play"}, "an agent has lost the rules of games"
    assert RECURRENT


def test_the_command_line_learns_a_probe(rlx):
    """All of `rlx train`, its evaluation and report too: the best of three actions pays 1."""
    settings = (
        "agent=q_table",
        "agent.epsilon_steps=500",
        "seeds=2",
        "steps=1000",
        "eval_every=500",
    )
    result = rlx("train", "env=chain", "env._target_=probes.Choice", "~env.success", *settings)
    assert result.code == 0, result.err
    assert result.summary["return"]["per_seed"] == [1.0, 1.0]
