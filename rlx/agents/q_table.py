"""Tabular control on Discrete observations: Q-learning (Watkins 1989), SARSA (Rummery & Niranjan 1994), expected SARSA."""

import copy
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Positive, Share, choice
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.schedules import linear
from rlx.nn.seed_axis import polyak_update

TARGETS = ("q_learning", "sarsa", "expected_sarsa")


@dataclass(frozen=True)
class Config:
    """One table and its exploration."""

    target: str
    """What the next state is worth: q_learning: its best action; sarsa: the action taken there; expected_sarsa: the mean over
    the ε-greedy policy (van Seijen et al. 2009)."""
    discount: Share
    learning_rate: Positive
    learning_rate_end: float
    learning_rate_steps: Count
    """Decisions, per seed, over which the learning rate falls linearly."""
    initial_value: float
    """Of every entry; above what can be earned it makes greedy play explore."""
    average_tau: Share
    """Weight of the learning table, per step, in the running average that acts greedily."""
    epsilon_start: Share
    epsilon_end: Share
    epsilon_steps: Count
    """Decisions, per seed, over which exploration falls linearly."""

    def __post_init__(self) -> None:
        choice(self.target, TARGETS, "agent.target")


class TablePolicy(Policy):
    """Acts greedily on a table [S, O, A]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        assert isinstance(spec.observation_space, spaces.Discrete)
        shape = (len(seeds), int(spec.observation_space.n), spec.actions)
        self.table = nn.Parameter(torch.full(shape, config.initial_value, device=seeds.device))

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        return choose("action", obs, Scores(self.values), torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.values(obs)

    def values(self, obs: Tensor) -> Tensor:
        """[S, B, A] of `obs` [S, B]."""
        return (
            self.table.flatten(0, 1).index_select(0, self.rows(obs).flatten()).view(*obs.shape, -1)
        )

    def rows(self, obs: Tensor) -> Tensor:
        """Rows [S, B] of `obs` in the flat table [S · O, A]."""
        seeds, states, _ = self.table.shape
        return obs + torch.arange(seeds, device=obs.device).unsqueeze(1) * states


class QTable(Agent):
    """Every env copy learns from each of its steps; copies that meet in an entry move it by the mean of their errors."""

    config_type = Config
    policy_type = TablePolicy
    observations = (spaces.Discrete,)

    policy: TablePolicy
    obs: Tensor
    action: Tensor
    reward: Tensor
    pending: Tensor

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = TablePolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        exploration = config.epsilon_start, config.epsilon_end, config.epsilon_steps
        self.explore = EpsilonGreedy(*exploration, seeds, "q", spec.rules)
        nothing = torch.zeros(len(seeds), num_envs, dtype=torch.int64, device=seeds.device)
        self.register_buffer(
            "obs", nothing
        )  # SARSA: the step before, which waits for the action that follows it
        self.register_buffer("action", nothing.clone())
        self.register_buffer("reward", nothing.float())
        self.register_buffer("pending", nothing.bool())

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.online.act(obs, first, carry, self.explore)

    @torch.no_grad()
    def update(self, transition: Transition) -> dict[str, Tensor]:
        t, config = transition, self.config
        last = t.terminated | t.truncated
        goes_on = config.discount * (~t.terminated).float()
        if config.target == "sarsa":
            next_value = self.online.values(t.obs).gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
            error = self._learn(
                self.obs, self.action, self.reward + config.discount * next_value, self.pending
            )
            # Nothing follows the last step: where it was cut short, the mean over what could.
            self._learn(t.obs, t.action, t.reward + goes_on * self._expected(t.next_obs), last)
            self.obs, self.action, self.reward, self.pending = t.obs, t.action, t.reward, ~last
        else:
            next_value = (
                self.online.values(t.next_obs).amax(-1)
                if config.target == "q_learning"
                else self._expected(t.next_obs)
            )
            error = self._learn(
                t.obs, t.action, t.reward + goes_on * next_value, torch.ones_like(last)
            )
        polyak_update(self.policy, self.online, config.average_tau)
        return {"loss/td": error}

    def _expected(self, obs: Tensor) -> Tensor:
        """Mean value [S, N] over the ε-greedy policy."""
        q, epsilon = self.online.values(obs), self.explore.epsilon().unsqueeze(1)
        return epsilon * q.mean(-1) + (1 - epsilon) * q.amax(-1)

    def _learn(self, obs: Tensor, action: Tensor, target: Tensor, where: Tensor) -> Tensor:
        """Move the entries towards `target` ([S, N] each) where `where`; returns the mean absolute error [S]."""
        config, table = self.config, self.online.table.view(-1)
        index = (self.online.rows(obs) * self.online.table.shape[-1] + action).flatten()
        error = (target - table[index].view_as(target)) * where
        met = (
            torch.zeros_like(table)
            .index_add_(0, index, where.flatten().to(table.dtype))[index]
            .view_as(target)
        )
        progress = self.explore.decisions / config.learning_rate_steps
        rate = linear(config.learning_rate, config.learning_rate_end, progress)
        table.index_add_(0, index, (rate.unsqueeze(1) * error / met.clamp(min=1)).flatten())
        return error.abs().mean(1)
