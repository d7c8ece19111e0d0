"""The contract of agents: a Policy that decides, and an Agent that trains it.

Shapes: S seeds, N env copies of each, B any batch, *O an observation, A choices, D numbers of a
continuous action. Every tensor starts with the seed axis; one seed is S = 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import gymnasium
from torch import Tensor, nn

Carry = dict[str, Tensor]
"""A policy's memory of the running episode: named tensors [S, B, …]; it restarts at `first`."""


class Meter(Protocol):
    """Who counts how often scores are computed."""

    def evaluated(self, obs: Tensor, values: Tensor) -> None:
        """Note that `values` are the scores of the observations `obs` [S, B, *O]."""


@dataclass(frozen=True)
class Scores:
    """The numbers by which a decision is taken, as a differentiable function of `obs` [S, B, *O].

    Discrete choices have preferences [S, B, A], of which the highest is chosen. A continuous action
    (a Box of D numbers) is its own score, [S, B, D].
    """

    function: Callable[[Tensor], Tensor]
    """The observations [S, B, *O] → their scores."""
    bounds: tuple[Tensor, Tensor] | None = None
    """The lowest and the highest continuous action, broadcasting over [S, B, D]; None: discrete."""
    choice: Callable[[Tensor], Tensor] | None = None
    """The observations [S, B, *O] → the choice int64 [S, B], where a search decides.

    None: the highest score decides.
    """
    meter: ClassVar["Meter | None"] = None
    """Who counts what is computed here, while an attack is paid for; None: nobody."""

    @property
    def continuous(self) -> bool:
        """Whether the choice is an action of a Box."""
        return self.bounds is not None

    def __call__(self, obs: Tensor) -> Tensor:
        """The scores [S, B, A] or [S, B, D] of `obs`."""
        values = self.function(obs)
        if self.meter is not None:
            self.meter.evaluated(obs, values)
        return values

    def best(self, obs: Tensor, scores: Tensor | None = None) -> Tensor:
        """The choice at `obs` [S, B, *O], int64 [S, B] or float [S, B, D].

        `scores`: the scores of `obs`, where the caller has them already.
        """
        if self.choice is not None:
            return self.choice(obs)
        if scores is None:
            scores = self(obs)
        return self.decide(scores)

    def decide(self, scores: Tensor) -> Tensor:
        """The choice int64 [S, B] with the highest of `scores` [S, B, A], the first among equals.

        The scores [S, B, D] of a continuous action are the action itself: they are cut to its
        bounds, float [S, B, D].
        """
        if self.bounds is None:
            return scores.argmax(-1)
        low, high = self.bounds
        return scores.maximum(low).minimum(high)


Choose = Callable[[str, Tensor, Scores, Tensor], Tensor]
"""How a decision is taken: (head, obs [S, B, *O], scores, deciding bool [S, B]) → choice [S, B].

Of continuous actions the choice is float [S, B, D]. Exploration, attacks and certificates are all
ways to choose. The policy calls this once for each of its heads, the top level first. `deciding` is
false where an earlier choice still stands; what is returned there is ignored.
"""


def greedy(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
    """The choice [S, B] with the best score, or the continuous action [S, B, D]."""
    return scores.best(obs)


class Rules(Protocol):
    """The rules of a game of two players, which the players know beforehand.

    An observation [..., *O] has two planes: the stones of the player to move, then the other's.
    """

    def legal(self, obs: Tensor) -> Tensor:
        """Which actions are allowed, bool [..., A]."""

    def after(self, obs: Tensor) -> Tensor:
        """The boards [..., A, *O] with the stone that each action adds; unchanged if forbidden."""

    def has_won(self, obs: Tensor) -> Tensor:
        """Whether the player to move has won, bool [...]."""


Feature = Callable[[Tensor], Tensor]
"""A number that an env computes from an observation: obs [..., *O] → float [...]."""


@dataclass(frozen=True)
class Spec:
    """The facts about an env that an agent may know."""

    observation_space: gymnasium.Space
    """The space of one observation, *O: a Box, or Discrete."""
    action_space: gymnasium.Space
    """The space of one action: Discrete, or a Box of one axis."""
    max_episode_steps: int
    """The time limit of an episode, in steps."""
    reward_threshold: float | None = None
    """Return from which the task counts as solved, for people, not for learning; None: unknown."""
    rules: Rules | None = None
    """The rules of a game of two players in turn; None: the env is no such game."""
    stack: int = 1
    """The number of observations that the env shows at once, along the first axis, newest last."""
    features: Mapping[str, Feature] = field(default_factory=dict)
    """Numbers of an observation that mean something to people and are none of its components."""

    @property
    def actions(self) -> int:
        """The number of discrete actions."""
        assert isinstance(self.action_space, gymnasium.spaces.Discrete)
        return int(self.action_space.n)


@dataclass(frozen=True)
class Transition:
    """One step of N env copies per seed; every tensor is [S, N, …]."""

    obs: Tensor
    """The observation that was acted on, [S, N, *O]."""
    action: Tensor
    """The action, int64 [S, N] or float [S, N, D]."""
    reward: Tensor
    """The reward, float32 [S, N]."""
    next_obs: Tensor
    """The observation that the step led to, before any autoreset, [S, N, *O]."""
    terminated: Tensor
    """Whether the episode ended in a terminal state, bool [S, N]."""
    truncated: Tensor
    """Whether the episode was cut short, by a time limit for instance, bool [S, N]."""
    carry: Carry
    """The carry that `Agent.act` returned with this action."""


class Policy(nn.Module, ABC):
    """The deciding half of an agent, and all that evaluation, attack and export need.

    Its parameters and buffers are [S, …]. It is constructed as `Policy(config, spec, seeds)`, with
    `seeds` int64 [S] on the device where it shall live.
    """

    heads: ClassVar[tuple[str, ...]] = ("action",)
    """The levels at which it decides, top level first; the last one is the action."""
    scores_are_values: ClassVar[bool] = False
    """Whether the top level's scores are expected returns, as Q-values are.

    They then tell an adversary which states are bad, without anything to learn."""

    @abstractmethod
    def initial_carry(self, batch: int) -> Carry:
        """A carry [S, `batch`, …] of any content: in the first step `first` is true."""

    @abstractmethod
    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        """The action for `obs` [S, B, *O], int64 [S, B] or float [S, B, D], and the next carry.

        `first` is bool [S, B]: a new episode begins. Each head's decision is taken by `choose`.
        """

    @abstractmethod
    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        """The scores [S, B, A] by which `head` decides at `obs`, differentiable in `obs`."""

    def memory(self, obs: Tensor, carry: Carry) -> Carry:
        """What of `carry` its decisions from `obs` [S, B, *O] on depend on, [S, B, …] each.

        Courses of which this is the same are one to a search.
        """
        return carry


Part = Callable[[], dict[str, Tensor]]
"""A part of learning, all of whose tensors are the agent's own; returns metrics, name → [S].

A bound method, or a `functools.partial` of one with constants, asks the device nothing, and a run
may compile it; any other function is called as it is.
"""


class Agent(nn.Module, ABC):
    """The learning half: all that learning needs, as parameters and buffers [S, …].

    Targets, optimisers, memory and random streams are modules of it. So `state_dict()` is the whole
    agent, `rlx.nn.seed_axis.take` picks seeds out of it, and checkpoints need no code of the
    agent's own. It is constructed as `Agent(config, spec, seeds, num_envs)`: `config` is a
    `config_type`, `seeds` int64 [S] on the run's device, `num_envs` the env copies of each seed.
    """

    config_type: ClassVar[type]
    """The frozen dataclass of its settings: the keys of its YAML file."""
    policy_type: ClassVar[type[Policy]]
    """The class of its policy."""
    observations: ClassVar[tuple[type[gymnasium.Space], ...]] = (
        gymnasium.spaces.Box,
        gymnasium.spaces.Discrete,
    )
    """Observation spaces that it can learn from."""
    actions: ClassVar[tuple[type[gymnasium.Space], ...]] = (gymnasium.spaces.Discrete,)
    """Action spaces that it can act in."""
    games: ClassVar[bool] = False
    """Whether it plays only games of two players in turn, whose rules say which moves are legal."""
    keeps_newest: ClassVar[bool] = False
    """Whether a run keeps its newest weights, and not those of its best evaluation.

    It must where the best would be chosen by what the agent must not know, the env's reward.
    """

    traceable: ClassVar[bool] = True
    """Whether `act` and `store` are tensor operations; if not, only what is due is compiled."""

    policy: Policy
    """The policy that decides when the agent is evaluated."""

    @abstractmethod
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """The exploring action for `obs` [S, N, *O], and the next carry; else as `Policy.act`."""

    def store(self, transition: Transition) -> None:
        """Take in a transition, to learn from when learning is due.

        As `act`, it asks the device nothing: a run may compile both together with the env's step.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither `store` nor `update`")

    def due(self) -> Sequence[Part]:
        """Count a vector step; returns what is to be learnt after it, part by part, in order.

        The host calls this, between device functions: clocks live here.
        """
        return ()

    def update(self, transition: Transition) -> dict[str, Tensor]:
        """Store a transition and learn what is due; returns metrics, name → [S].

        The metrics are empty where nothing was learnt. An agent that has no clock may define this
        alone, instead of `store` and `due`.
        """
        self.store(transition)
        metrics: dict[str, Tensor] = {}
        for part in self.due():
            metrics |= part()
        return metrics

    def warnings(self) -> list[str]:
        """Sentences about what the agent met that its settings do not fit, with the key to change.

        Reading this from the device makes it wait: a run calls this once, at its end.
        """
        return []


class OfflineAgent(Agent):
    """An agent that learns from a data set and never acts to learn.

    It is constructed as `OfflineAgent(config, spec, seeds, data)`.
    """

    keeps_newest = True

    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Act greedily."""
        return self.policy.act(obs, first, carry)

    def store(self, transition: Transition) -> None:
        """Leave it: transitions are no part of the data set."""

    @abstractmethod
    def learn(self) -> dict[str, Tensor]:
        """Learn from one minibatch; returns metrics, name → [S]."""
