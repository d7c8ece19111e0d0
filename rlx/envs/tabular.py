"""Gymnasium's grids (Taxi, FrozenLake, CliffWalking, …) in batches, from their own tables."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.envs.batched import Dynamics, register
from rlx.errors import ConfigError
from rlx.names import nearest

_MAX_STEPS = 500
"""The time limit where Gymnasium has none, as for CliffWalking."""


class Table(NamedTuple):
    """The transitions of O states under A actions, each with K outcomes at most, as tensors."""

    bounds: Tensor
    """float32 [O, A, K − 1]: the cumulative probabilities of the outcomes, but for the last 1."""
    next_state: Tensor
    """int64 [O, A, K]."""
    reward: Tensor
    """float32 [O, A, K]."""
    terminated: Tensor
    """bool [O, A, K]."""
    initial: Tensor
    """float32 [O − 1]: the cumulative probabilities of first states, but for the last 1."""


@dataclass(frozen=True)
class Tabular(Dynamics):
    """Any env with the transition table `P` of Gymnasium's toy_text family.

    State int64 [B, 1]: the number of the state, which is the observation.
    """

    id: str
    """The id of the env at Gymnasium."""
    kwargs: Any
    """Arguments of `gymnasium.make`, names and values; null: none."""

    render_fps = 4
    initial_draws = 1
    transition_draws = 1

    def __post_init__(self) -> None:
        # Errors of the id and of its arguments appear here.
        self.table(torch.device("cpu"))

    @classmethod
    def from_keywords(cls, table: str, **kwargs: Any) -> "Tabular":  # type: ignore[override]
        """Gymnasium's env `table`, with its own keywords."""
        return cls(table, kwargs)

    @property
    def observation_space(self) -> gymnasium.Space:  # type: ignore[override]
        """The observation space of Gymnasium's env: Discrete(O)."""
        return self._env.observation_space

    @property
    def action_space(self) -> gymnasium.Space:  # type: ignore[override]
        """The action space of Gymnasium's env: Discrete(A)."""
        return self._env.action_space

    @property
    def max_episode_steps(self) -> int:  # type: ignore[override]
        """The time limit of Gymnasium's env, or 500 steps where it has none."""
        spec = self._env.spec
        limit = spec.max_episode_steps if spec else None
        return limit or _MAX_STEPS

    @property
    def reward_threshold(self) -> float | None:  # type: ignore[override]
        """The return from which Gymnasium's env counts as solved; None where it says nothing."""
        spec = self._env.spec
        return spec.reward_threshold if spec else None

    @property
    def lowest_reward(self) -> float | None:  # type: ignore[override]
        """The lowest reward of the table."""
        return float(self.table(torch.device("cpu")).reward.min())

    @property
    def deterministic(self) -> bool:
        """Whether each action has one outcome in each state."""
        return self.table(torch.device("cpu")).bounds.shape[-1] == 0

    @property
    def grid(self) -> tuple[int, int] | None:  # type: ignore[override]
        """The rows and columns of Gymnasium's env, where it says them."""
        model: Any = self._env.unwrapped
        if hasattr(model, "shape"):
            return model.shape
        if hasattr(model, "nrow"):
            return model.nrow, model.ncol
        return None

    @cached_property
    def _env(self) -> gymnasium.Env:
        """Gymnasium's env; ConfigError where there is none, or none with a table."""
        key = f"env.id={self.id}"
        if self.id not in gymnasium.registry:
            near = nearest(self.id, gymnasium.registry)
            raise ConfigError(f"{key}: not registered with Gymnasium.{near}")
        try:
            env = gymnasium.make(self.id, **(self.kwargs or {}))
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"{key}: Gymnasium cannot make it ({error}).") from None
        if not hasattr(env.unwrapped, "P") or not hasattr(env.unwrapped, "initial_state_distrib"):
            raise ConfigError(f"{key}: has no transition table; use env=gym env.id={self.id}.")
        return env

    @cached_property
    def _tables(self) -> dict[str, Table]:
        """The table on each device where it was wanted."""
        return {"cpu": _read(self._env)}

    def table(self, device: torch.device) -> Table:
        """The transitions, on `device`."""
        tables = self._tables
        if str(device) not in tables:
            tables[str(device)] = Table(*(value.to(device) for value in tables["cpu"]))
        return tables[str(device)]

    def initial(self, draws: Tensor) -> Tensor:
        bounds = self.table(draws.device).initial
        return torch.searchsorted(bounds, draws[:, 0].contiguous(), right=True).unsqueeze(-1)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        table = self.table(state.device)
        state_number = state[:, 0]
        outcome = (draws >= table.bounds[state_number, action]).sum(-1)
        index = (state_number, action, outcome)
        return table.next_state[index].unsqueeze(-1), table.reward[index], table.terminated[index]

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 0]

    def render(self, state: Tensor) -> Tensor:
        model = self._drawn
        images = []
        for number in state[:, 0].tolist():
            model.s = number
            images.append(torch.from_numpy(np.array(model.render())))
        return torch.stack(images)

    @cached_property
    def _drawn(self) -> Any:
        """Gymnasium's env, which draws the states."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window
        env: Any = gymnasium.make(self.id, render_mode="rgb_array", **(self.kwargs or {}))
        env.reset()
        return env.unwrapped


def _read(env: gymnasium.Env) -> Table:
    """The transition table of an env of Gymnasium's toy_text family."""
    model: Any = env.unwrapped
    states, actions = int(env.observation_space.n), int(env.action_space.n)  # type: ignore[attr-defined]
    outcomes = max(len(branch) for row in model.P.values() for branch in row.values())
    # Of each outcome its probability, next state, reward, and whether it ends the episode.
    columns = np.zeros((4, states, actions, outcomes))
    for state, row in model.P.items():
        for action, branch in row.items():
            columns[:, state, action, : len(branch)] = np.array(branch, dtype=np.float64).T
    probability, next_state, reward, terminated = columns
    bounds = probability.cumsum(-1)[..., :-1]
    initial = np.cumsum(model.initial_state_distrib)[:-1]
    return Table(
        torch.from_numpy(bounds.astype(np.float32)),
        torch.from_numpy(next_state.astype(np.int64)),
        torch.from_numpy(reward.astype(np.float32)),
        torch.from_numpy(terminated.astype(bool)),
        torch.from_numpy(initial.astype(np.float32)),
    )


for _spec in list(gymnasium.registry.values()):
    if _spec.name != "Blackjack" and str(_spec.entry_point).startswith("gymnasium.envs.toy_text."):
        _steps = _spec.max_episode_steps or _MAX_STEPS
        register(f"rlx/{_spec.id}", Tabular, _steps, _spec.reward_threshold, table=_spec.id)
