"""Checks that an agent does all that agent.py asks of it: `rlx check agent=mine`.

A run itself looks at shapes alone (rlx/contract.py); these checks take seconds.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlx import contract, experiment
from rlx.agent import Agent, OfflineAgent, Policy, Scores, Spec, Transition, greedy
from rlx.checks.envs import random_elements
from rlx.config import load_class
from rlx.data.datasets import Data
from rlx.errors import ConfigError
from rlx.nn.rng import reset_seeds, seed_tensor
from rlx.nn.seed_axis import along, take
from rlx.vector_step import vector_step

SEEDS = (3, 5, 8)
NUM_ENVS = 8
STEPS = 2_000
"""Vector steps after which an agent that has learnt nothing is said to learn nothing."""


def agent_checks(node: Mapping[str, Any], env: Mapping[str, Any]) -> Iterator[str]:
    """Try the agent of the config group `agent` in the env of the config group `env`.

    Yields a sentence about each thing that holds. Raises ConfigError, with what was expected, at
    the first that does not.
    """
    kind = load_class(node, "agent", Agent)
    loop = _Loop(node, env)
    contract.check_policy(loop.agent, loop.obs, loop.spec)
    yield "the policy's actions and its carry have the shapes of the contract"
    _check_heads(loop)
    yield f"every head of {loop.agent.policy.heads} chooses, by scores [S, B, A]"
    if _check_gradient(loop):
        yield "the scores have a gradient by the observation: it can be attacked"
    loop.learn(kind.__name__)
    yield "it acts and learns; its metrics are [S]"
    _check_seed_axis(loop)
    yield "every parameter and buffer starts with the seed axis"
    _check_rows_apart(loop)
    yield "what one env copy shows changes no decision in the others"
    _check_apart(loop)
    yield "what one seed sees changes nothing in the others, to the bit"
    _check_state(loop, node)
    yield "an agent made anew that loads its state goes on as it would have, to the bit"
    _check_take(loop)
    yield "seeds can be taken out of it"


class _Loop:
    """An agent in an env, both as a run makes them, that go on by single vector steps."""

    def __init__(self, node: Mapping[str, Any], env: Mapping[str, Any]):
        seeds = seed_tensor(SEEDS)
        self.spec = experiment.env_spec(env)
        offline = issubclass(load_class(node, "agent", Agent), OfflineAgent)
        self.data = _RandomData(self.spec) if offline else None
        self.agent = experiment.make_agent(node, self.spec, seeds, NUM_ENVS, self.data)
        self.env = experiment.make_env(env, len(SEEDS) * NUM_ENVS, "cpu")
        self.shape = (len(SEEDS), NUM_ENVS)
        resets = reset_seeds(seeds, NUM_ENVS, "env").flatten().tolist()
        self.obs = self.env.reset(seed=resets)[0].unflatten(0, self.shape)
        self.first = torch.ones(self.shape, dtype=torch.bool)
        self.carry = self.agent.policy.initial_carry(NUM_ENVS)

    def step(self) -> tuple[Transition | None, dict[str, Tensor]]:
        """Make one vector step; returns its transition and the metrics.

        An offline agent learns from one minibatch instead, and there is no transition.
        """
        if isinstance(self.agent, OfflineAgent):
            return None, self.agent.learn()
        done = vector_step(self.agent, self.env, self.obs, self.first, self.carry)
        self.obs = done.obs
        self.first = done.first
        self.carry = done.transition.carry
        return done.transition, done.metrics

    def learn(self, name: str) -> None:
        """Step until the agent has learnt once; ConfigError where it does not."""
        for _ in range(STEPS):
            _, metrics = self.step()
            contract.check_metrics(self.agent, metrics, torch.Size(self.shape))
            if metrics:
                return
        raise ConfigError(
            f"agent: {name} learnt nothing in {STEPS * NUM_ENVS:,} steps of each seed; check it "
            "with settings that let it learn sooner, such as a smaller agent.learning_starts."
        )


class _RandomData(Data):
    """A data set of random steps, for agents that learn from data."""

    transitions = 1_000
    files = []

    def __init__(self, spec: Spec):
        self.spec = spec
        self.others_for_first = False
        """Whether the first seed is shown what the second one is shown."""

    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float | Tensor
    ) -> dict[str, Tensor]:
        """Random rows [S, B, …], the same for the same `draws`."""
        if self.others_for_first:
            draws = _others_for_first(draws)
        # The fraction of a multiple of a uniform number is uniform too, and looks unrelated to it.
        next_draws = (draws * 7).frac()
        action_draws = (draws * 11).frac()
        return {
            "obs": random_elements(self.spec.observation_space, draws),
            "next_obs": random_elements(self.spec.observation_space, next_draws),
            "action": random_elements(self.spec.action_space, action_draws),
            "reward": draws.to(torch.float32),
            "discount": torch.ones(draws.shape, device=draws.device) * along(discount, draws),
        }

    def adapt_to(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        """Nothing: random steps fit every env."""
        return []

    def card(self) -> dict[str, Any]:
        """Nothing is to be said of random steps."""
        return {}


def _check_heads(loop: _Loop) -> None:
    """Every head asks `choose` once, in the order of `heads`; what it chooses is what is done."""
    policy: Policy = loop.agent.policy
    asked: list[str] = []
    chosen: dict[str, Tensor] = {}

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        asked.append(head)
        chosen[head] = greedy(head, obs, scores, deciding)
        return chosen[head]

    carry = policy.initial_carry(NUM_ENVS)
    with torch.no_grad():
        action, _ = policy.act(loop.obs, loop.first, carry, choose)
    if tuple(asked) != tuple(policy.heads):
        raise ConfigError(
            f"agent: {type(policy).__name__}.act asked choose for {asked}; expected each of its "
            f"heads {list(policy.heads)} once, the top level first."
        )
    if not torch.equal(action, chosen[policy.heads[-1]]):
        raise ConfigError(
            f"agent: {type(policy).__name__}.act returned another action than choose gave it for "
            f"'{policy.heads[-1]}'."
        )


def _check_gradient(loop: _Loop) -> bool:
    """Whether observations are such that small changes of them make sense.

    If so, every head's scores must have a gradient; ConfigError where they have none.
    """
    policy = loop.agent.policy
    if not isinstance(loop.spec.observation_space, spaces.Box) or loop.spec.rules is not None:
        return False
    obs = loop.obs.float()
    _, carry = policy.act(loop.obs, loop.first, policy.initial_carry(NUM_ENVS))
    for head in policy.heads:
        scores = policy.scores(obs.clone().requires_grad_(), carry, head)
        what = f"agent: {type(policy).__name__}.scores of '{head}'"
        if scores.shape[:2] != loop.shape or scores.dim() != 3:
            raise ConfigError(
                f"{what} is {list(scores.shape)}; expected [{loop.shape[0]}, {loop.shape[1]}, A]."
            )
        if not scores.requires_grad:
            raise ConfigError(f"{what} has no gradient by the observation; attacks need one.")
    return True


def _check_seed_axis(loop: _Loop) -> None:
    """Every tensor of the state has a row for each seed."""
    for name, value in loop.agent.state_dict().items():
        if value.dim() == 0 or value.shape[0] != len(SEEDS):
            raise ConfigError(
                f"agent: its tensor '{name}' is {list(value.shape)}; expected the seed axis "
                f"[{len(SEEDS)}, …] first: register_buffer or Parameter with one row a seed."
            )


def _check_apart(loop: _Loop) -> None:
    """Let the first seed see another episode in a copy: the other seeds may not differ from it."""
    twin = copy.deepcopy(loop)
    learnt = 0
    for _ in range(STEPS):
        obs, first, carry = loop.obs, loop.first, loop.carry
        transition, metrics = loop.step()
        if transition is None:
            assert loop.data is not None
            loop.data.others_for_first = True
            twin.step()
            loop.data.others_for_first = False
        else:
            action, _ = twin.agent.act(_others_for_first(obs), first, carry)
            if not torch.equal(action[1:], transition.action[1:]):
                raise ConfigError(f"agent: an exploring action of one seed {_MIXED}")
            twin.agent.update(
                dataclasses.replace(
                    transition,
                    obs=_others_for_first(transition.obs),
                    next_obs=_others_for_first(transition.next_obs),
                    reward=_others_for_first(transition.reward) + 1.0 * _is_first(transition),
                )
            )
        learnt += bool(metrics)
        if learnt == 3:
            break
    changed = twin.agent.state_dict()
    for name, value in loop.agent.state_dict().items():
        if not torch.equal(value[1:], changed[name][1:]):
            raise ConfigError(f"agent: '{name}' of one seed {_MIXED}")


_MIXED = (
    "depends on what another seed has seen; nothing may mix the seed axis: losses are means within "
    "a seed, summed over seeds, and statistics of observations are kept per seed."
)


def _others_for_first(x: Tensor) -> Tensor:
    """`x` [S, N, …], where the first seed has what the second one has."""
    return torch.cat([x[1:2], x[1:]])


def _is_first(transition: Transition) -> Tensor:
    """1 for the first seed, 0 for the others, [S, 1]."""
    seeds = len(transition.reward)
    return (torch.arange(seeds) == 0).float().unsqueeze(1)


def _check_rows_apart(loop: _Loop) -> None:
    """Let the policy see another observation in one row: the other rows may not change."""
    for seed, env in ((0, 0), (1, 2)):
        obs = loop.obs.clone()
        obs[seed, env] = loop.obs[(seed + 1) % len(SEEDS), (env + 1) % NUM_ENVS]
        same = torch.ones(loop.shape, dtype=torch.bool)
        same[seed, env] = False
        pairs = zip(_all_scores(loop, loop.obs), _all_scores(loop, obs), strict=True)
        for scores, changed in pairs:
            if not torch.equal(scores[same], changed[same]):
                raise ConfigError(
                    f"agent: {type(loop.agent.policy).__name__}.act decides in one env copy by "
                    "what another one shows; its rows [S, B] must not depend on each other."
                )


def _all_scores(loop: _Loop, obs: Tensor) -> list[Tensor]:
    """The scores [S, N, A] of every head by which the policy decides at `obs` [S, N, *O]."""
    found = []

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        found.append(scores(obs))
        return greedy(head, obs, scores, deciding)

    with torch.no_grad():
        loop.agent.policy.act(obs, loop.first, loop.carry, choose)
    return found


def _check_state(loop: _Loop, node: Mapping[str, Any]) -> None:
    """A new agent that loads the state_dict must go on as the old one."""
    twin = copy.deepcopy(loop)
    twin.agent = experiment.make_agent(node, loop.spec, seed_tensor(SEEDS), NUM_ENVS, loop.data)
    try:
        twin.agent.load_state_dict(loop.agent.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"agent: its state_dict does not fit an agent made anew: {error}"
        ) from None
    for _ in range(20):
        transition, _ = loop.step()
        twin_transition, _ = twin.step()
        if transition is None or twin_transition is None:
            continue
        if not torch.equal(transition.action, twin_transition.action):
            raise ConfigError(
                "agent: made anew from its state_dict it acts otherwise; what decides its future "
                "must be parameters and buffers."
            )
    after = twin.agent.state_dict()
    for name, value in loop.agent.state_dict().items():
        if not torch.equal(value, after[name]):
            raise ConfigError(f"agent: made anew from its state_dict, '{name}' learns otherwise.")


def _check_take(loop: _Loop) -> None:
    """The last two seeds can be taken out, and act alone."""
    policy = loop.agent.policy
    _, carry = policy.act(loop.obs, loop.first, loop.carry)
    part = take(policy, torch.tensor([1, 2]))
    part_carry = {name: value[1:] for name, value in carry.items()}
    action, _ = part.act(loop.obs[1:], loop.first[1:], part_carry)
    if action.shape[:2] != (2, NUM_ENVS):
        raise ConfigError(
            f"agent: of two seeds taken out of it the action is {list(action.shape)}; expected "
            f"[2, {NUM_ENVS}, …]."
        )
    take(loop.agent, torch.tensor([1, 2]))


def fitting(node: Mapping[str, Any]) -> str:
    """The first of rlx's small envs that the agent of the config group `agent` can learn in."""
    kind = load_class(node, "agent", Agent)
    if kind.games:
        return "tic_tac_toe"
    if not issubclass(spaces.Box, kind.observations):
        return "chain"
    return "acrobot" if issubclass(spaces.Discrete, kind.actions) else "pendulum"
