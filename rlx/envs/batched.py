"""Torch-native envs: a file of dynamics becomes a gymnasium.vector.VectorEnv of many copies."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Feature, Rules
from rlx.config import at_least, build
from rlx.env import resize, spread_fresh
from rlx.errors import ConfigError
from rlx.names import nearest
from rlx.nn.rng import stream_key, uniform

_StepResult = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]
"""(obs [B, *O], reward [B], terminated [B], truncated [B], info)."""


class Dynamics(ABC):
    """What one env is: its spaces, its first states, its transitions, what is seen of a state.

    A subclass is a frozen dataclass whose fields are the env's parameters, the keys of its config
    group; those of type float can drift. It sets `observation_space`, `action_space` and
    `max_episode_steps`, and defines `initial`, `transition` and `observe`. What depends on the
    parameters (a space, `reward_threshold`, `rules`, `lowest_reward`, …) may be a property.

    These three are pure functions of tensors whose first axis is B copies: they write into none of
    their arguments, and no copy's result depends on another copy. All tensors of a call are on one
    device, and the results stay there. States are [B, D], of one dtype throughout. Each `float`
    parameter may be a tensor [B] while it drifts.

    Chance comes from `draws` alone: float32 in [0, 1), uniform and independent, as many for each
    copy as `initial_draws` and `transition_draws` say.
    """

    observation_space: gymnasium.Space
    """Of one copy: a Box of [*O], or a Discrete from 0 on."""
    action_space: gymnasium.Space
    """Of one copy: a Discrete from 0 on, or a bounded Box [A]."""
    max_episode_steps: ClassVar[int]
    """Steps after which an episode is truncated, unless the config says otherwise."""
    reward_threshold: ClassVar[float | None] = None
    """The return from which the task counts as solved; None where nobody has said so."""
    rules: Rules | None = None
    """The rules of a game of two players; None of all else."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the observations number the cells of a grid, row by row, else None."""
    observation_units: tuple[str, ...] | None = None
    """The name of each component of a flat observation, with its unit where it has one, as in
    "angle (rad)"; None where they have no names."""
    angles: tuple[tuple[int, int], ...] = ()
    """Pairs (component with the cosine, component with the sine) of one angle: cos² + sin² = 1."""
    lowest_reward: float | None = None
    """The lowest reward that one step can have; None where it is unknown."""
    truncation_is_harm: bool = False
    """Whether an episode that the time limit cuts has failed, as where a goal was not reached."""
    features: ClassVar[Mapping[str, Feature] | None] = None
    """Numbers of an observation, by name, that are none of its components; None: there are none."""
    gymnasium_id: ClassVar[str] = ""
    """The id under which Gymnasium may know the same env, with the same state."""
    render_fps: ClassVar[float] = 10
    """Images in a second of an episode that is watched: as many steps."""
    initial_draws: ClassVar[int] = 0
    """Random numbers that one first state needs; 0 where all episodes begin alike."""
    transition_draws: ClassVar[int] = 0
    """Random numbers that one transition needs; 0 where transitions are deterministic."""
    image_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that its images show as they are; these cannot drift."""

    @property
    def deterministic(self) -> bool:
        """Whether transitions have no chance in them, whatever the draws are."""
        return self.transition_draws == 0

    @classmethod
    def from_keywords(cls, **parameters: Any) -> Self:
        """The env of which the keywords of `gymnasium.make` are the parameters.

        ConfigError names a keyword that is unknown or of a wrong type.
        """
        for name, value in parameters.items():
            if isinstance(value, np.generic):
                parameters[name] = value.item()
        return build(cls, parameters, "env")

    @abstractmethod
    def initial(self, draws: Tensor) -> Tensor:
        """First states [B, D] of episodes; `draws` is float32 [B, initial_draws]."""

    @abstractmethod
    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(next state [B, D], reward float32 [B], terminated bool [B]).

        `state`: [B, D]. `action`: int64 [B] of a Discrete, or of a Box the space's dtype [B, A],
        not clipped to its bounds. `draws`: float32 [B, transition_draws]. A time limit is not the
        env's: `terminated` is true only where the task itself has ended.
        """

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Observations of `state` [B, D]: [B, *O] in the Box's dtype, or int64 [B] of a Discrete.

        It may be `state` itself.
        """

    def render(self, state: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] of `state` [B, D], all of one size.

        An env that nobody watches need not define this. `rlx.envs.drawing` has shapes.
        """
        raise ConfigError(f"video: {type(self).__name__} draws no images: it has no `render`.")


@dataclass(frozen=True)
class Drift:
    """A parameter of a Dynamics that changes linearly with the age of an env copy.

    The age is counted in steps over all its episodes.
    """

    parameter: str
    """Name of the parameter, a field of type float. Its own value is the first one."""
    to: float
    """The last value of the parameter."""
    begin: int
    """Age, in steps, from which on the parameter changes."""
    end: int
    """Age, in steps, at which the last value is reached; as `begin`: all at once."""

    def __post_init__(self) -> None:
        at_least(self.end, self.begin, "env.drift.end")

    def check(self, dynamics: Dynamics) -> None:
        """ConfigError where this parameter of `dynamics` cannot drift."""
        key = f"env.drift.parameter={self.parameter}"
        if self.parameter in dynamics.image_parameters:
            raise ConfigError(f"{key}: these images show it as it is; drift another.")
        numbers = [
            field.name
            for field in fields(dynamics)  # type: ignore[arg-type]
            if field.type in (float, "float")
        ]
        if self.parameter not in numbers:
            raise ConfigError(f"{key}: no such number.{nearest(self.parameter, numbers)}")

    def apply(self, dynamics: Dynamics, age: Tensor) -> Dynamics:
        """`dynamics` of copies of the `age` (int64 [B], steps), with a parameter float32 [B]."""
        if self.end > self.begin:
            progress = ((age - self.begin) / (self.end - self.begin)).clamp(0, 1)
        else:
            progress = (age >= self.begin).float()
        first = getattr(dynamics, self.parameter)
        value = first + (self.to - first) * progress
        return replace(dynamics, **{self.parameter: value})  # type: ignore[type-var]


class BatchedEnv(VectorEnv):
    """`num_envs` copies of a Dynamics, stepped together on one device: a `TensorEnv`.

    Actions may be tensors or arrays; all that comes back is tensors. Autoreset is SAME_STEP unless
    `autoreset_mode` says otherwise, and `info["final_obs"]` is then of every copy, ended or not.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}
    final_state: Tensor
    """[B, D]: where the newest step has led, before any reset; kept where the env is to draw."""
    _ended: Tensor
    """bool [B]: whose episode is over. SAME_STEP, which resets these at once, does without it."""

    def __init__(
        self,
        dynamics: Dynamics,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
        drift: Drift | None = None,
        age: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ):
        """`drift`: how the dynamics change with the age of a copy, which begins at `age` steps.

        `max_episode_steps` None: the limit of `dynamics`.
        """
        if render_mode is not None:
            _check_render_mode(render_mode, dynamics)
        if drift is not None:
            drift.check(dynamics)
        at_least(num_envs, 1, "num_envs")
        self.dynamics = dynamics
        self.drift = drift
        self.device = torch.device(device)
        self._age = torch.full((num_envs,), age, dtype=torch.int64, device=device)
        self._no_draws = torch.empty(num_envs, 0, dtype=torch.float32, device=device)
        self.max_episode_steps = _limit(max_episode_steps, dynamics)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {
            **self.metadata,
            "autoreset_mode": self.autoreset_mode,
            "render_fps": dynamics.render_fps,
        }
        self.reward_threshold = dynamics.reward_threshold
        self.rules = dynamics.rules
        self.grid = dynamics.grid
        self.observation_units = dynamics.observation_units
        self.angles = dynamics.angles
        self.lowest_reward = dynamics.lowest_reward
        self.truncation_is_harm = dynamics.truncation_is_harm
        self.features = dynamics.features
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
        """First observations [B, *O] and an empty info.

        `seed`: one integer (copy i gets seed + i) or one per copy; None goes on with the copies'
        random streams, or begins fresh ones where there are none.
        `options["reset_mask"]`: bool [B], the copies to reset; the others go on as they were.
        """
        begun = hasattr(self, "state")
        where = self._reset_mask(options)
        if seed is not None or not begun:
            self._seed(seed, where)
        if where is None:
            self.state = self.dynamics.initial(self._draw(self.dynamics.initial_draws))
            self._steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
            where = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        else:
            self._begin(where)
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            if begun:
                self._ended = self._ended & ~where
            else:
                self._ended = torch.zeros_like(where)
        if self.render_mode is not None:
            self.final_state = self.state
        return self.dynamics.observe(self.state), {}

    def step(self, actions: Tensor | np.ndarray) -> _StepResult:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], info), as `TensorEnv.step`.

        `actions`: int64 [B], or [B, A] of a Box. ValueError where they do not fit the space.
        """
        if not hasattr(self, "state"):
            raise gymnasium.error.ResetNeeded("step before the first reset: call reset() first.")
        if self.autoreset_mode == AutoresetMode.DISABLED:
            self._refuse_ended()
        actions = self._checked(actions)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            return self._finish_same_step(*self._transition(actions))
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            return self._finish_next_step(*self._transition(actions, ~self._ended))
        return self._finish_disabled(*self._transition(actions))

    def render(self, state: Tensor | None = None) -> tuple[np.ndarray, ...]:
        """One image uint8 [H, W, 3] per copy, of `state` [B, D]; None: the copies' own."""
        dynamics = self.dynamics
        if self.drift is not None:
            dynamics = self.drift.apply(dynamics, self._age)
        return tuple(dynamics.render(self.state if state is None else state).cpu().numpy())

    @property
    def deterministic(self) -> bool:
        """Whether what a copy does depends on its state and its actions alone."""
        if self.drift is not None:
            return self.dynamics.transition_draws == 0
        return self.dynamics.deterministic

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in (*self.state_dict(), "_no_draws"):
            setattr(self, name, getattr(self, name)[index])
        resize(self, len(index))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        names = ["state", "_steps", "_key", "_counter", "_age"]
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            names.append("_ended")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict()` was taken."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True))

    def _transition(self, actions: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reward [B], terminated [B]) of `actions`; all copies are in their next state then.

        Only in the copies of `mask` (bool [B]; None: all) do the random streams advance.
        """
        draws = self._draw(self.dynamics.transition_draws, mask)
        dynamics = self.dynamics
        if self.drift is not None:
            dynamics = self.drift.apply(dynamics, self._age)
        self.state, reward, terminated = dynamics.transition(self.state, actions, draws)
        if self.render_mode is not None:
            self.final_state = self.state
        self._steps += 1
        self._age += 1
        return reward, terminated

    def _finish_same_step(self, reward: Tensor, terminated: Tensor) -> _StepResult:
        """What `step` returns where a copy whose episode ended shows the first of its next."""
        truncated = self._truncated(terminated)
        ended = terminated | truncated
        final_obs = self.dynamics.observe(self.state)
        obs = final_obs
        if not _readable(ended) or ended.any():
            self._begin(ended)
            obs = self.dynamics.observe(self.state)
        info = {"final_obs": final_obs, "_final_obs": ended, "final_info": {}, "_final_info": ended}
        return obs, reward, terminated, truncated, info

    def _finish_next_step(self, reward: Tensor, terminated: Tensor) -> _StepResult:
        """What `step` returns where the step after an episode's last one is a reset."""
        # Copies that ended before have made a transition, like all others; it counts for nothing.
        self._begin(self._ended)
        reward = reward.masked_fill(self._ended, 0)
        terminated = terminated & ~self._ended
        return self._finish_disabled(reward, terminated)

    def _finish_disabled(self, reward: Tensor, terminated: Tensor) -> _StepResult:
        """What `step` returns where a copy whose episode ended waits for a reset."""
        truncated = self._truncated(terminated)
        self._ended = terminated | truncated
        return self.dynamics.observe(self.state), reward, terminated, truncated, {}

    def _truncated(self, terminated: Tensor) -> Tensor:
        """bool [B]: where the time limit has cut an episode that has not `terminated`."""
        # a > b is a & ~b in one operation instead of two.
        return (self._steps >= self.max_episode_steps) > terminated

    def _refuse_ended(self) -> None:
        """ResetNeeded where an episode that is over would be stepped on, if that can be read."""
        if _readable(self._ended) and self._ended.any():
            copies = self._ended.nonzero()[:, 0].tolist()
            raise gymnasium.error.ResetNeeded(f"episodes of copies {copies} are over: reset them.")

    def _begin(self, where: Tensor) -> None:
        """New episodes for the copies `where` (bool [B])."""
        fresh = self.dynamics.initial(self._draw(self.dynamics.initial_draws, where))
        self.state = torch.where(where.unsqueeze(-1), fresh, self.state)
        self._steps.masked_fill_(where, 0)

    def _seed(self, seed: int | Sequence[int] | None, where: Tensor | None) -> None:
        """New random streams for the copies `where` (bool [B]; None: all)."""
        seeds = spread_fresh(seed, self.num_envs)
        if not (min(seeds) >= 0 and max(seeds) < 1 << 63):
            expected = "expected whole numbers from 0 to 2⁶³ − 1"
            raise ValueError(f"reset: seeds from {min(seeds)} to {max(seeds)}: {expected}.")
        key = stream_key(torch.tensor(seeds, dtype=torch.int64, device=self.device), "env")
        if where is None:
            self._key = key
            self._counter = torch.zeros_like(key)
        else:
            self._key = torch.where(where, key, self._key)
            self._counter = self._counter.masked_fill(where, 0)

    def _reset_mask(self, options: Mapping[str, Any] | None) -> Tensor | None:
        """bool [B]: the copies that `reset` is asked for; None: all."""
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

        Values that are not `_readable` are taken as they are.
        """
        try:
            given = torch.as_tensor(actions, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            expected = f"expected numbers in {self.single_action_space}"
            raise ValueError(f"actions {actions}: {expected}.") from None
        if given.shape != self.action_space.shape:
            expected = f"{self.action_space.shape}, each in {self.single_action_space}"
            raise ValueError(f"actions of shape {tuple(given.shape)}: expected {expected}.")
        cast = given.to(self._action_dtype)
        if not _readable(cast):
            return cast
        if not self._choices:
            if cast.isnan().any():
                raise ValueError(f"actions {given.tolist()}: not in {self.single_action_space}.")
            return cast
        low, high = cast.aminmax()
        outside = int(low) < self._choices[0] or int(high) > self._choices[-1]
        whole = cast is given or torch.equal(cast.to(given.dtype), given)
        if outside or not whole:
            wrong = next(action for action in given.tolist() if action not in self._choices)
            raise ValueError(f"action {wrong}: not in {self.single_action_space}.")
        return cast

    def _draw(self, count: int, where: Tensor | None = None) -> Tensor:
        """The next random numbers, float32 [B, count], of every copy.

        Only in the copies `where` (bool [B]; None: all) do their streams advance.
        """
        if not count:
            return self._no_draws
        draws = uniform(self._key, self._counter, count)
        advance = count if where is None else count * where
        self._counter = self._counter + advance
        return draws


def _readable(x: Tensor) -> bool:
    """Whether the host may look at the values of `x`.

    On a GPU that would make it wait, and a tensor that a compiler traces with has none.
    """
    return x.device.type == "cpu" and type(x) is Tensor


def _check_render_mode(render_mode: str, dynamics: Dynamics) -> None:
    """TypeError, after which Stable-Baselines3 tries without, where that cannot be drawn."""
    if type(dynamics).render is Dynamics.render:
        raise TypeError(f"render_mode={render_mode!r}: this env draws no images.")
    if render_mode != "rgb_array":
        raise TypeError(f"render_mode={render_mode!r}: expected 'rgb_array'.")


def _limit(given: int | None, dynamics: Dynamics) -> int:
    """The time limit of an episode: the `given` one, or else the env's own."""
    if given is None:
        return dynamics.max_episode_steps
    if not isinstance(given, int | np.integer) or given < 1:
        raise ConfigError(f"env.max_episode_steps={given}: expected a whole number from 1 on.")
    return int(given)


def register(
    name: str,
    dynamics: type[Dynamics],
    max_episode_steps: int | None = None,
    reward_threshold: float | None = None,
    **parameters: Any,
) -> None:
    """Make `dynamics` known to Gymnasium under `name`.

    Then `gymnasium.make(name)` is one copy, in NumPy, and `gymnasium.make_vec(name, num_envs=…)`
    are many, as tensors. The other arguments say where `name` differs from the class: its time
    limit, its threshold, its parameters.
    """
    # Of the class Gymnasium keeps the name: so a spec can be saved, and made in another process.
    kind: str | type[Dynamics] = f"{dynamics.__module__}:{dynamics.__qualname__}"
    if "<locals>" in dynamics.__qualname__:
        kind = dynamics  # of a class within a function no name leads back to it
    if not parameters:
        dynamics.gymnasium_id = name.removeprefix("rlx/")
    if max_episode_steps is None:
        max_episode_steps = dynamics.max_episode_steps
    if reward_threshold is None and not isinstance(dynamics.reward_threshold, property):
        reward_threshold = dynamics.reward_threshold
    gymnasium.register(
        name,
        "rlx.envs.registered:SingleEnv",
        reward_threshold=reward_threshold,
        max_episode_steps=max_episode_steps,
        kwargs={"dynamics": kind, **parameters},
        vector_entry_point="rlx.envs.registered:make_many",
    )
