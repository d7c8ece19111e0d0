"""Tabular control on Discrete observations.

Q-learning (Watkins 1989), SARSA (Rummery & Niranjan 1994), expected SARSA (van Seijen et al. 2009).
"""

import copy
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, PerSeed, Positive, Share, choice
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.schedules import linear
from rlx.nn.seed_axis import along, polyak_update, rows_at

TARGETS = ("q_learning", "sarsa", "expected_sarsa")


@dataclass(frozen=True)
class Config:
    """One table and its exploration."""

    target: str
    """Whose value the next state has: that of its best action (`q_learning`), of the action that is
    taken there (`sarsa`), or the mean over the ε-greedy policy (`expected_sarsa`).
    """
    discount: PerSeed[Share]
    """Factor by which a reward one step later is worth less."""
    learning_rate: PerSeed[Positive]
    """Share of its error by which an entry moves, at the first decision."""
    learning_rate_end: PerSeed[float]
    """The learning rate from `learning_rate_steps` decisions on."""
    learning_rate_steps: PerSeed[Count]
    """Decisions, per seed, over which the learning rate falls linearly."""
    initial_value: PerSeed[float]
    """First value of every entry; above what can be earned it makes greedy play explore."""
    average_tau: PerSeed[Share]
    """Weight of the learning table, per step, in the running average that acts greedily."""
    epsilon_start: PerSeed[Share]
    """Probability of a random action at the first decision."""
    epsilon_end: PerSeed[Share]
    """Probability of a random action from `epsilon_steps` decisions on."""
    epsilon_steps: PerSeed[Count]
    """Decisions, per seed, over which exploration falls linearly."""

    def __post_init__(self) -> None:
        choice(self.target, TARGETS, "agent.target")


class TablePolicy(Policy):
    """Acts greedily on a table [S, O, A]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        assert isinstance(spec.observation_space, spaces.Discrete)
        shape = (len(seeds), int(spec.observation_space.n), spec.actions)
        table = torch.zeros(shape, device=seeds.device)
        self.table = nn.Parameter(table + along(config.initial_value, table))

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        return choose("action", obs, Scores(self.values), torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.values(obs)

    def values(self, obs: Tensor) -> Tensor:
        """Action values [S, B, A] of `obs` [S, B]."""
        return rows_at(self.table.flatten(0, 1), self.rows(obs))

    def rows(self, obs: Tensor) -> Tensor:
        """Rows [S, B] of `obs` in the flat table [S · O, A]."""
        seeds, states, _ = self.table.shape
        return obs + torch.arange(seeds, device=obs.device).unsqueeze(1) * states


class QTable(Agent):
    """A table that every env copy learns from at each of its steps.

    Copies that meet in an entry move it by the mean of their errors.
    """

    config_type = Config
    policy_type = TablePolicy
    observations = (spaces.Discrete,)

    policy: TablePolicy
    obs: Tensor
    """int64 [S, N]: observation of SARSA's step before, which waits for its next action."""
    action: Tensor
    """int64 [S, N]: action of that step."""
    reward: Tensor
    """[S, N]: reward of that step."""
    pending: Tensor
    """bool [S, N]: whether there is such a step."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = TablePolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        self.explore = EpsilonGreedy(
            config.epsilon_start,
            config.epsilon_end,
            config.epsilon_steps,
            seeds,
            "q",
            spec.rules,
        )
        zeros = torch.zeros(len(seeds), num_envs, dtype=torch.int64, device=seeds.device)
        self.register_buffer("obs", zeros)
        self.register_buffer("action", zeros.clone())
        self.register_buffer("reward", zeros.float())
        self.register_buffer("pending", zeros.bool())

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.online.act(obs, first, carry, self.explore)

    @torch.no_grad()
    def update(self, transition: Transition) -> dict[str, Tensor]:
        if self.config.target == "sarsa":
            error = self._sarsa(transition)
        else:
            error = self._one_step(transition)
        polyak_update(self.policy, self.online, self.config.average_tau)
        return {"loss/td": error}

    def _one_step(self, transition: Transition) -> Tensor:
        """Learn from a step by itself; returns the mean absolute error [S]."""
        if self.config.target == "q_learning":
            next_value = self.online.values(transition.next_obs).amax(-1)
        else:
            next_value = self._expected(transition.next_obs)
        discount = along(self.config.discount, next_value) * (~transition.terminated).float()
        target = transition.reward + discount * next_value
        everywhere = torch.ones_like(transition.terminated)
        return self._learn(transition.obs, transition.action, target, everywhere)

    def _sarsa(self, transition: Transition) -> Tensor:
        """Learn from the step before, now that its next action is known, and from final steps.

        Returns the mean absolute error [S] of the former.
        """
        discount = along(self.config.discount, self.reward)
        next_action = transition.action.unsqueeze(-1)
        next_value = self.online.values(transition.obs).gather(-1, next_action).squeeze(-1)
        target = self.reward + discount * next_value
        error = self._learn(self.obs, self.action, target, self.pending)
        # No action follows the last step: where it was cut short, the mean over what could.
        last = transition.terminated | transition.truncated
        not_done = discount * (~transition.terminated).float()
        final_target = transition.reward + not_done * self._expected(transition.next_obs)
        self._learn(transition.obs, transition.action, final_target, last)
        self.obs = transition.obs
        self.action = transition.action
        self.reward = transition.reward
        self.pending = ~last
        return error

    def _expected(self, obs: Tensor) -> Tensor:
        """Mean value [S, N] over the ε-greedy policy."""
        q = self.online.values(obs)
        epsilon = self.explore.epsilon().unsqueeze(1)
        return epsilon * q.mean(-1) + (1 - epsilon) * q.amax(-1)

    def _learn(self, obs: Tensor, action: Tensor, target: Tensor, where: Tensor) -> Tensor:
        """Move entries towards `target` where `where` ([S, N] each).

        Env copies that share an entry move it by the mean of their errors. Returns the mean
        absolute error [S].
        """
        config = self.config
        table = self.online.table.view(-1)
        index = (self.online.rows(obs) * self.online.table.shape[-1] + action).flatten()
        error = (target - table[index].view_as(target)) * where
        visits = torch.zeros_like(table).index_add_(0, index, where.flatten().to(table.dtype))
        sharing = visits[index].view_as(target).clamp(min=1)
        progress = self.explore.decisions / config.learning_rate_steps
        rate = linear(config.learning_rate, config.learning_rate_end, progress)
        table.index_add_(0, index, (rate.unsqueeze(1) * error / sharing).flatten())
        return error.abs().mean(1)
