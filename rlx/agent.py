"""What every agent is: a Policy that decides, and an Agent that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import gymnasium
from torch import Tensor, nn

Carry = dict[str, Tensor]
"""A policy's memory of the running episode: named tensors [S, B, …]. It starts anew where `first` is true."""


@dataclass(frozen=True)
class Scores:
    """What one decision is taken by, as a differentiable function of the observation.

    Discrete choices: preferences [S, B, *O] → [S, B, A]. Continuous ones (a Box of D numbers): the action itself, [S, B, D].
    """

    function: Callable[[Tensor], Tensor]
    bounds: tuple[Tensor, Tensor] | None = None
    """Lowest and highest continuous action, broadcasting over [S, B, D]; None: discrete choices."""
    choice: Callable[[Tensor], Tensor] | None = None
    """Observation → the choice [S, B], where it is not the best-scored one (a search decides)."""

    @property
    def continuous(self) -> bool:
        """Whether the choice is an action of a Box."""
        return self.bounds is not None

    def __call__(self, obs: Tensor) -> Tensor:
        return self.function(obs)

    def best(self, obs: Tensor, values: Tensor | None = None) -> Tensor:
        """The choice at `obs`; `values`: its scores, where they are known."""
        if self.choice:
            return self.choice(obs)
        return self.decide(self(obs) if values is None else values)

    def decide(self, values: Tensor) -> Tensor:
        """The choice int64 [S, B] that `values` [S, B, A] stand for, the first one among equals; continuous: themselves, cut."""
        return (
            values.argmax(-1)
            if self.bounds is None
            else values.maximum(self.bounds[0]).minimum(self.bounds[1])
        )


Choose = Callable[[str, Tensor, Scores, Tensor], Tensor]
"""How a decision is taken: (head, obs [S, B, *O], scores, deciding bool [S, B]) → choice int64 [S, B] (continuous: float [S, B, D]).

Exploration, attacks and certificates are all ways to choose; the policy calls this once per head, top level first.
`deciding` is false where an earlier choice still stands, and the result there is ignored."""


def greedy(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
    """The best choice."""
    return scores.best(obs)


class Rules(Protocol):
    """What players of a game of two know beforehand. Observations [..., *O]: first the stones of the player to move, then the other's."""

    def legal(self, obs: Tensor) -> Tensor:
        """bool [..., A]: which actions are allowed."""

    def after(self, obs: Tensor) -> Tensor:
        """[..., A, *O]: with the stone that each action adds; unchanged where it may not."""

    def line(self, obs: Tensor) -> Tensor:
        """bool [...]: whether the player to move has won."""


@dataclass(frozen=True)
class Spec:
    """What an agent may know of an environment."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int
    reward_threshold: float | None = None
    """Return from which the task counts as solved, if it says; for people, not for learning."""
    rules: Rules | None = None
    """Of a game."""
    stack: int = 1
    """Last observations that one of the env's shows at once, along the first axis, the newest last."""

    @property
    def actions(self) -> int:
        """Number of discrete actions."""
        assert isinstance(self.action_space, gymnasium.spaces.Discrete)
        return int(self.action_space.n)


@dataclass(frozen=True)
class Transition:
    """One step of N env copies per seed; every tensor [S, N, …]."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    """The observation the transition led to, before any autoreset."""
    terminated: Tensor
    truncated: Tensor
    carry: Carry
    """As `Agent.act` returned it with this action."""


class Policy(nn.Module, ABC):
    """The deciding half of an agent, and all that evaluation, attack and export need. Parameters and buffers are [S, …]."""

    heads: ClassVar[tuple[str, ...]] = ("action",)
    """Levels at which it decides, top level first; the last one is the action."""

    @abstractmethod
    def initial_carry(self, batch: int) -> Carry:
        """A carry for `batch` copies per seed; its content does not matter, since the first step has `first` true."""

    @abstractmethod
    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        """(action int64 [S, B] or float [S, B, D], carry) for `obs` [S, B, *O]; `first` (bool [S, B]): a new episode begins."""

    @abstractmethod
    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        """Preferences [S, B, A] of one head, differentiable in `obs`."""


class Agent(nn.Module, ABC):
    """The learning half: owns targets, optimisers, memory and random streams as parameters and buffers [S, …].

    So `state_dict()` is everything, `rlx.nn.seed_axis.take` picks seeds out of it, and checkpoints need no code of the agent's.
    Constructed as `Agent(config, spec, seeds, num_envs)`: `seeds` int64 [S] on the run's device, `num_envs` envs per seed.
    """

    observations: ClassVar[tuple[type[gymnasium.Space], ...]] = (
        gymnasium.spaces.Box,
        gymnasium.spaces.Discrete,
    )
    """Spaces that it can learn from …"""
    actions: ClassVar[tuple[type[gymnasium.Space], ...]] = (gymnasium.spaces.Discrete,)
    """… and act in."""
    games: ClassVar[bool] = False
    """Whether it can only play games of two players in turn, whose rules say which moves are legal."""
    keeps_newest: ClassVar[bool] = False
    """Whether a run keeps its newest weights: its best evaluation's would be chosen by what the agent must not know, the env's reward."""

    policy: Policy

    @abstractmethod
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """As `Policy.act`, exploring."""

    @abstractmethod
    def update(self, transition: Transition) -> dict[str, Tensor]:
        """Store a transition, learn when due; metrics name → [S] (empty when nothing was learnt)."""

    def warnings(self) -> list[str]:
        """What it met that its settings do not fit: a sentence each, with the key to change.

        It asks the device; a run calls it once, at its end.
        """
        return []


class OfflineAgent(Agent):
    """One that learns from a data set: constructed as `OfflineAgent(config, spec, seeds, data)`. It never acts to learn."""

    keeps_newest = True

    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Greedily."""
        return self.policy.act(obs, first, carry)

    def update(self, transition: Transition) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @abstractmethod
    def learn(self) -> dict[str, Tensor]:
        """One minibatch; metrics name → [S]."""
