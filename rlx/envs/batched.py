"""Torch-native vector environments: a file of dynamics becomes a gymnasium.vector.VectorEnv of any number of copies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import ConfigError, at_least, nearest
from rlx.env import resize
from rlx.rng import stream_key, uniform


class Dynamics(ABC):
    """What one environment is: spaces, first states, transitions. Pure functions of tensors whose first axis is B copies."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: ClassVar[int]
    reward_threshold: ClassVar[float | None] = None
    """Return from which the task counts as solved."""
    rules: Any = None
    """`rlx.agent.Rules` of a game."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the observations number the cells of a grid, row by row."""
    gymnasium_id: ClassVar[str] = ""
    """Under which Gymnasium may know the same env, with the same state, and draw it."""
    initial_draws: ClassVar[int] = 0
    """Uniform numbers that one first state needs."""
    transition_draws: ClassVar[int] = 0
    """Uniform numbers that one transition needs (0: deterministic)."""
    drawn: ClassVar[tuple[str, ...]] = ()
    """Numbers that its pictures show, and that so cannot drift."""

    @abstractmethod
    def initial(self, draws: Tensor) -> Tensor:
        """First states [B, D] from uniform `draws` [B, initial_draws]."""

    @abstractmethod
    def transition(self, state: Tensor, action: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(next state [B, D], reward [B], terminated bool [B]) of `state` [B, D], `action` int64 [B] or float [B, D], and `draws`."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Observations [B, *O] of `state` [B, D]."""


@dataclass(frozen=True)
class Drift:
    """A number of the Dynamics that changes linearly while an env copy grows older, whatever its episodes."""

    parameter: str
    to: float
    """Its last value; the first is the Dynamics' own."""
    begin: int
    """Steps of a copy after which it begins to change …"""
    end: int
    """… and stops; the same: a sudden change."""

    def __post_init__(self) -> None:
        at_least(self.end, self.begin, "env.drift.end")

    def apply(self, dynamics: Dynamics, age: Tensor) -> Dynamics:
        """`dynamics` for copies that are `age` steps old (int64 [B]); the parameter becomes a tensor [B]."""
        share = ((age - self.begin) / max(1, self.end - self.begin)).clamp(0, 1) if self.end > self.begin else (age >= self.begin).float()
        first = getattr(dynamics, self.parameter)
        return replace(dynamics, **{self.parameter: first + (self.to - first) * share})  # type: ignore[type-var]


class BatchedEnv(VectorEnv):
    """`num_envs` copies of some Dynamics, stepped together on one device; tensors in (arrays too), tensors out.

    SAME_STEP autoreset: the observation returned for a copy that ended is its next episode's first, and
    `info["final_obs"]` ([B, *O], for every copy, ended or not) is the one its transition really led to.
    A copy's episodes depend on its own reset seed alone, not on which other copies run beside it.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(
        self,
        dynamics: Dynamics,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        render_mode: None = None,
        drift: Drift | None = None,
        clock: int = 0,
    ):
        """`drift`: how the dynamics change with the age of a copy, which begins at `clock` steps."""
        numbers = [field.name for field in fields(dynamics) if field.type in (float, "float")]  # type: ignore[arg-type]
        if drift is not None and drift.parameter in dynamics.drawn:
            raise ConfigError(f"env.drift.parameter={drift.parameter}: these pictures show it as it is; drift another.")
        if drift is not None and drift.parameter not in numbers:
            raise ConfigError(f"env.drift.parameter={drift.parameter}: no such number.{nearest(drift.parameter, numbers)}")
        self.dynamics, self.drift = dynamics, drift
        self._age = torch.full((num_envs,), clock, dtype=torch.int64, device=device)
        self.max_episode_steps = max_episode_steps or dynamics.max_episode_steps
        self.device = torch.device(device)
        self.render_mode = render_mode
        self.reward_threshold, self.rules, self.grid = dynamics.reward_threshold, dynamics.rules, dynamics.grid
        self.single_observation_space = dynamics.observation_space
        self.single_action_space = dynamics.action_space
        resize(self, num_envs)

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """First observations [B, *O]. `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if isinstance(seed, int):
            seed = list(range(seed, seed + self.num_envs))
        if len(seed) != self.num_envs:
            raise ValueError(f"reset: {len(seed)} seeds for num_envs={self.num_envs}")
        self._key = stream_key(torch.as_tensor(seed, dtype=torch.int64, device=self.device), "env")
        self._counter = torch.zeros_like(self._key)
        self._steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        self.state = self.dynamics.initial(self._draw(self.dynamics.initial_draws))
        return self.dynamics.observe(self.state), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O]}) of `actions` int64 [B] (Box: [B, D])."""
        actions = torch.as_tensor(actions, device=self.device)
        draws = self._draw(self.dynamics.transition_draws)
        dynamics = self.dynamics if self.drift is None else self.drift.apply(self.dynamics, self._age)
        self.state, reward, terminated = dynamics.transition(self.state, actions, draws)
        self._steps += 1
        self._age += 1
        truncated = (self._steps >= self.max_episode_steps) & ~terminated
        final_obs = obs = self.dynamics.observe(self.state)
        ended = terminated | truncated
        if self.device.type != "cpu" or ended.any():  # asking would make a GPU wait
            fresh = self.dynamics.initial(self._draw(self.dynamics.initial_draws, ended))
            self.state = torch.where(ended.unsqueeze(-1), fresh, self.state)
            self._steps.masked_fill_(ended, 0)
            obs = self.dynamics.observe(self.state)
        return obs, reward, terminated, truncated, {"final_obs": final_obs}

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in self.state_dict():
            setattr(self, name, getattr(self, name)[index])
        resize(self, len(index))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides this env's future: tensors [B, …]."""
        return {name: getattr(self, name) for name in ("state", "_steps", "_key", "_counter", "_age")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True))

    def _draw(self, count: int, where: Tensor | None = None) -> Tensor:
        """The next `count` draws of every copy; only the copies `where` advance."""
        if not count:
            return self._key.new_empty(self.num_envs, 0, dtype=torch.float32)
        draws = uniform(self._key, self._counter, count)
        self._counter = self._counter + (count if where is None else count * where)
        return draws


def register(name: str, dynamics: type[Dynamics]) -> None:
    """Make `dynamics` known to Gymnasium: `gymnasium.make_vec(name, num_envs=…)`."""

    def create(num_envs: int = 1, max_episode_steps: int | None = None, device: str = "cpu", render_mode=None, **kwargs):
        return BatchedEnv(dynamics(**kwargs), num_envs, max_episode_steps, device, render_mode)

    dynamics.gymnasium_id = name.removeprefix("rlx/")
    limit, threshold = dynamics.max_episode_steps, dynamics.reward_threshold
    gymnasium.register(name, vector_entry_point=create, max_episode_steps=limit, reward_threshold=threshold)
