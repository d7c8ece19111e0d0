"""Torch-native vector environments: a file of dynamics becomes a gymnasium.vector.VectorEnv of any number of copies."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import at_least, build
from rlx.env import resize, spread
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.nn.rng import stream_key, uniform


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

    @classmethod
    def from_keywords(cls, **parameters: Any) -> Self:
        """What the keywords of `gymnasium.make` ask for; ConfigError names a wrong one."""
        for name, value in parameters.items():
            if isinstance(value, np.generic):
                parameters[name] = value.item()
        return build(cls, parameters, "env")

    @abstractmethod
    def initial(self, draws: Tensor) -> Tensor:
        """First states [B, D] from uniform `draws` [B, initial_draws]."""

    @abstractmethod
    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        share = (
            ((age - self.begin) / max(1, self.end - self.begin)).clamp(0, 1)
            if self.end > self.begin
            else (age >= self.begin).float()
        )
        first = getattr(dynamics, self.parameter)
        return replace(dynamics, **{self.parameter: first + (self.to - first) * share})  # type: ignore[type-var]


class BatchedEnv(VectorEnv):
    """`num_envs` copies of some Dynamics, stepped together on one device; tensors in (arrays too), tensors out.

    SAME_STEP autoreset, unless `autoreset_mode` says otherwise: the observation returned for a copy
    that ended is its next episode's first, `info["final_obs"]` ([B, *O], for every copy, ended or
    not) is the one its transition really led to, and `info["_final_obs"]` ([B]) says who ended.
    A copy's episodes depend on its own reset seed alone, not on which other copies run beside it.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    _ended: Tensor
    """bool [B]: whose episode is over, where no copy is reset in the step that ends it."""

    def __init__(
        self,
        dynamics: Dynamics,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        render_mode: None = None,
        drift: Drift | None = None,
        clock: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ):
        """`drift`: how the dynamics change with the age of a copy, which begins at `clock` steps."""
        if render_mode is not None:  # a TypeError: Stable-Baselines3 then tries without
            raise TypeError(f"render_mode={render_mode!r}: this env draws no pictures.")
        numbers = [field.name for field in fields(dynamics) if field.type in (float, "float")]  # type: ignore[arg-type]
        if drift is not None and drift.parameter in dynamics.drawn:
            raise ConfigError(
                f"env.drift.parameter={drift.parameter}: these pictures show it as it is; drift another."
            )
        if drift is not None and drift.parameter not in numbers:
            raise ConfigError(
                f"env.drift.parameter={drift.parameter}: no such number.{nearest(drift.parameter, numbers)}"
            )
        at_least(num_envs, 1, "num_envs")
        self.dynamics, self.drift = dynamics, drift
        self._age = torch.full((num_envs,), clock, dtype=torch.int64, device=device)
        self._no_draws = torch.empty(num_envs, 0, dtype=torch.float32, device=device)
        self.max_episode_steps = _limit(max_episode_steps, dynamics)
        self.device = torch.device(device)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.reward_threshold, self.rules, self.grid = (
            dynamics.reward_threshold,
            dynamics.rules,
            dynamics.grid,
        )
        self.single_observation_space = dynamics.observation_space
        self.single_action_space = dynamics.action_space
        self._action_dtype = torch.from_numpy(np.empty(0, self.single_action_space.dtype)).dtype
        self._choices = range(0)
        if isinstance(self.single_action_space, gymnasium.spaces.Discrete):
            first = int(self.single_action_space.start)
            self._choices = range(first, first + int(self.single_action_space.n))
            self._action_dtype = torch.int64
        resize(self, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O]. `seed`: one integer (copy i gets seed + i) or one per copy;
        None goes on with the copies' random streams, or begins fresh ones where there are none.

        `options["reset_mask"]` (bool [B]): the copies to reset; the others go on as they were.
        """
        begun = hasattr(self, "state")
        where = self._asked_for(options)
        if seed is None and not begun:
            seed = _fresh()
        if seed is not None:
            self._seed(seed, where)
        if where is None:
            self.state = self.dynamics.initial(self._draw(self.dynamics.initial_draws))
            self._steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
            where = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        else:
            self._begin(where)
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            self._ended = self._ended & ~where if begun else torch.zeros_like(where)
        return self.dynamics.observe(self.state), {}

    def step(
        self,
        actions: Tensor | np.ndarray,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O], …}) of
        `actions` int64 [B] (Box: [B, D]). ValueError where they do not fit the space."""
        if not hasattr(self, "state"):
            raise gymnasium.error.ResetNeeded("step before the first reset: call reset() first.")
        if self.autoreset_mode == AutoresetMode.DISABLED:
            self._refuse_ended()
        actions = self._checked(actions)
        going_on = None
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            going_on = ~self._ended
        draws = self._draw(self.dynamics.transition_draws, going_on)
        dynamics = (
            self.dynamics if self.drift is None else self.drift.apply(self.dynamics, self._age)
        )
        self.state, reward, terminated = dynamics.transition(self.state, actions, draws)
        self._steps += 1
        self._age += 1
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return self._left_ended(reward, terminated)
        truncated = (self._steps >= self.max_episode_steps) > terminated  # one step less than & ~
        final_obs = obs = self.dynamics.observe(self.state)
        ended = terminated | truncated
        if self.device.type != "cpu" or ended.any():  # asking would make a GPU wait
            self._begin(ended)
            obs = self.dynamics.observe(self.state)
        info = {"final_obs": final_obs, "_final_obs": ended, "final_info": {}, "_final_info": ended}
        return obs, reward, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in (*self.state_dict(), "_no_draws"):
            setattr(self, name, getattr(self, name)[index])
        resize(self, len(index))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides this env's future: tensors [B, …]."""
        names = ["state", "_steps", "_key", "_counter", "_age"]
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            names.append("_ended")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True))

    def _left_ended(
        self,
        reward: Tensor,
        terminated: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What `step` returns where a copy that ended shows its last observation."""
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:  # this step begins the next episode
            self._begin(self._ended)
            reward = reward.masked_fill(self._ended, 0)
            terminated = terminated & ~self._ended
        truncated = (self._steps >= self.max_episode_steps) & ~terminated
        self._ended = terminated | truncated
        return self.dynamics.observe(self.state), reward, terminated, truncated, {}

    def _refuse_ended(self) -> None:
        """ResetNeeded where an episode that is over would be stepped on; on a GPU nobody looks."""
        if self.device.type == "cpu" and self._ended.any():
            over = self._ended.nonzero()[:, 0].tolist()
            raise gymnasium.error.ResetNeeded(f"episodes of copies {over} are over: reset them.")

    def _begin(self, where: Tensor) -> None:
        """New episodes for the copies `where` (bool [B])."""
        fresh = self.dynamics.initial(self._draw(self.dynamics.initial_draws, where))
        self.state = torch.where(where.unsqueeze(-1), fresh, self.state)
        self._steps.masked_fill_(where, 0)

    def _seed(self, seed: int | Sequence[int], where: Tensor | None) -> None:
        """New random streams for the copies `where` (bool [B]; None: all); of several seeds, None is a fresh one."""
        seeds = [_fresh() if own is None else int(own) for own in spread(seed, self.num_envs)]
        if not (min(seeds) >= 0 and max(seeds) < 1 << 63):
            raise ValueError(
                f"reset: seeds from {min(seeds)} to {max(seeds)}: expected whole numbers from 0 to 2⁶³ − 1."
            )
        key = stream_key(torch.tensor(seeds, dtype=torch.int64, device=self.device), "env")
        if where is None:
            self._key, self._counter = key, torch.zeros_like(key)
        else:
            self._key = torch.where(where, key, self._key)
            self._counter = self._counter.masked_fill(where, 0)

    def _asked_for(self, options: Mapping[str, Any] | None) -> Tensor | None:
        """bool [B]: the copies that `reset` was asked for; None: all."""
        given = (options or {}).get("reset_mask")
        if given is None:
            return None
        mask = torch.as_tensor(given, device=self.device)
        if mask.dtype != torch.bool:
            raise TypeError(f"reset_mask={given}: expected booleans, not {mask.dtype}.")
        if mask.shape != (self.num_envs,) or not mask.any():
            expected = f"{self.num_envs} booleans, one or more of them true"
            raise ValueError(f"reset_mask={given}: expected {expected}.")
        if not hasattr(self, "state"):
            raise gymnasium.error.ResetNeeded("reset_mask before the first reset of all copies.")
        return mask

    def _checked(self, actions: Tensor | np.ndarray) -> Tensor:
        """`actions` [B, *A] on the device, in the space's dtype; ValueError where they do not fit.

        On a GPU, values are taken as they are: looking at them would make it wait.
        """
        try:
            given = torch.as_tensor(actions, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"actions {actions}: expected numbers in {self.single_action_space}."
            ) from None
        if given.shape != self.action_space.shape:
            expected = f"{self.action_space.shape}, each in {self.single_action_space}"
            raise ValueError(f"actions of shape {tuple(given.shape)}: expected {expected}.")
        fits = given.dtype == self._action_dtype
        cast = given if fits else given.to(self._action_dtype)
        if self.device.type != "cpu":
            return cast
        if not self._choices:
            if cast.isnan().any():
                raise ValueError(f"actions {given.tolist()}: not in {self.single_action_space}.")
            return cast
        low, high = cast.aminmax()
        outside = int(low) < self._choices[0] or int(high) > self._choices[-1]
        if outside or not (fits or torch.equal(cast.to(given.dtype), given)):
            wrong = next(action for action in given.tolist() if action not in self._choices)
            raise ValueError(f"action {wrong}: not in {self.single_action_space}.")
        return cast

    def _draw(self, count: int, where: Tensor | None = None) -> Tensor:
        """The next `count` draws of every copy; only the copies `where` advance."""
        if not count:
            return self._no_draws
        draws = uniform(self._key, self._counter, count)
        self._counter = self._counter + (count if where is None else count * where)
        return draws


def _limit(given: int | None, dynamics: Dynamics) -> int:
    """The time limit of an episode: the `given` one, or else the env's own."""
    if given is None:
        return dynamics.max_episode_steps
    if not isinstance(given, int | np.integer) or given < 1:
        raise ConfigError(f"env.max_episode_steps={given}: expected a whole number from 1 on.")
    return int(given)


def _fresh() -> int:
    """A seed that nobody has had."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def register(
    name: str,
    dynamics: type[Dynamics],
    max_episode_steps: int | None = None,
    reward_threshold: float | None = None,
    **parameters: Any,
) -> None:
    """Make `dynamics` known to Gymnasium: `gymnasium.make(name)` is one copy, in NumPy, and
    `gymnasium.make_vec(name, num_envs=…)` many, as tensors. All else is where `name` differs from
    the class: its limit, its threshold, its parameters.

    Gymnasium keeps names, no objects: a spec can be written down and made in another process.
    """
    local = "<locals>" in dynamics.__qualname__  # such a class can only be kept itself
    kind = dynamics if local else f"{dynamics.__module__}:{dynamics.__qualname__}"
    if not parameters:
        dynamics.gymnasium_id = name.removeprefix("rlx/")
    if max_episode_steps is None:
        max_episode_steps = dynamics.max_episode_steps
    if reward_threshold is None:
        reward_threshold = dynamics.reward_threshold
    gymnasium.register(
        name,
        "rlx.envs.registered:SingleEnv",
        reward_threshold=reward_threshold,
        max_episode_steps=max_episode_steps,
        kwargs={"dynamics": kind, **parameters},
        vector_entry_point="rlx.envs.registered:make_many",
    )
