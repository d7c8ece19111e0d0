"""What rlx asks of an environment: a gymnasium.vector.VectorEnv of tensors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

Convert = Callable[[np.ndarray], np.ndarray]
"""Of stacked arrays [B, …]."""
_MANY = 1000
"""Discrete actions that no network should tell apart."""
PICTURE = 16
"""Pixels of each side from which observations of three axes count as pictures."""


class TensorEnv(Protocol):
    """B copies with SAME_STEP autoreset; `rlx.envs.batched.BatchedEnv` and `rlx.envs.gym.GymEnv` are the two in rlx."""

    reward_threshold: float | None
    """Return from which the task counts as solved, if it says."""
    single_observation_space: gymnasium.Space
    single_action_space: gymnasium.Space
    num_envs: int

    @property
    def max_episode_steps(self) -> int | None:
        """The time limit."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O]; a copy's episodes depend on its own seed alone."""

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], info) of `actions` [B, …].

        Info: "final_obs" [B, *O], where each transition led to; "_final_obs" [B], who began anew.
        """

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""


def resize(env: VectorEnv, num_envs: int) -> None:
    """Let `env` have so many copies: its number and its batched spaces."""
    env.num_envs = num_envs
    env.observation_space = batch_space(env.single_observation_space, num_envs)
    env.action_space = batch_space(env.single_action_space, num_envs)


def spread(seed: int | Sequence[int] | None, num_envs: int) -> Sequence[int | None]:
    """A reset's seed for each copy."""
    if seed is None:
        return [None] * num_envs
    seeds = range(seed, seed + num_envs) if isinstance(seed, (int, np.integer)) else list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"reset: {len(seeds)} seeds for num_envs={num_envs}")
    return seeds


def shown(space: gymnasium.Space) -> tuple[gymnasium.Space, Convert]:
    """(the space that agents see, how observations [B, *O] of `space` become those [B, *O'] of it).

    Box becomes float32 of one axis at least. Pictures become channels first: H x W x C, stacks of
    them T x H x W x C (as T · C channels), and gray ones H x W, if they are uint8, which they stay.
    Discrete becomes int64. Other spaces stay as they are.
    """
    if isinstance(space, spaces.Discrete):
        return space, lambda obs: obs.astype(np.int64, copy=False)
    if not isinstance(space, spaces.Box):
        return space, np.asarray
    shape = _channels_first(space)
    picture = len(shape) == 3 and min(shape[1:]) >= PICTURE
    dtype = np.uint8 if picture and space.dtype == np.uint8 else np.float32
    last = _is_channels_last(space.shape)

    def convert(obs: np.ndarray) -> np.ndarray:
        if last:
            obs = np.moveaxis(obs, -1, -3)
        obs = obs.reshape(len(obs), *shape)
        return np.ascontiguousarray(obs, dtype)

    low, high = _bounds(space)
    if dtype == np.uint8:
        low, high = space.low, space.high
    return spaces.Box(convert(low[None])[0], convert(high[None])[0], dtype=dtype), convert


def played(space: gymnasium.Space) -> tuple[gymnasium.Space, Convert]:
    """(the space that agents act in, how actions [B, *A] of it become those of an env's `space`).

    Box becomes float32. The env is given its own dtype, within its bounds: of integers the nearest.
    """
    own: Any = space.dtype
    if isinstance(space, spaces.Discrete):
        return space, lambda actions: actions.astype(own, copy=False)
    if not isinstance(space, spaces.Box):
        return space, np.asarray
    low, high = space.low, space.high

    def convert(actions: np.ndarray) -> np.ndarray:
        if own.kind in "iub":
            actions = np.rint(actions.astype(np.float64))
        elif actions.dtype != own:
            actions = actions.astype(own)
        return actions.clip(low, high).astype(own, copy=False)

    return spaces.Box(*_bounds(space), dtype=np.float32), convert


def refused(obs: gymnasium.Space, action: gymnasium.Space, id: str) -> tuple[str, str] | None:
    """(what rlx does not take of the spaces of Gymnasium's env `id`, the wrapper that helps)."""
    for what, empty in (("observations", obs), ("actions", action)):
        if 0 in (empty.shape or ()):
            return (
                f"needs {what} of some numbers, but they are {empty}.",
                "There is nothing to learn from.",
            )
    if not _is_box_or_discrete(obs):
        problem = f"needs Box or Discrete (0…n−1) observations, but they are {obs}."
        if obs.is_np_flattenable:
            return problem, _register("FlattenObservation", id)
        return problem, _register("TransformObservation", id, "function", "space")
    fits = _is_vector(action) if isinstance(action, spaces.Box) else _is_box_or_discrete(action)
    if not fits:
        kinds = "Discrete (0…n−1) or bounded Box actions of one axis"
        function, space = _transformed(action)
        way = _register("TransformAction", id, f"lambda a: {function}", space)
        return f"needs {kinds}, but they are {action}.", way
    return None


def _is_box_or_discrete(space: gymnasium.Space) -> bool:
    if isinstance(space, spaces.Discrete):
        return int(space.start) == 0
    return isinstance(space, spaces.Box)


def _is_vector(space: spaces.Box) -> bool:
    """Whether actions of `space` are vectors with bounds."""
    low, high = _bounds(space)
    return len(space.shape) == 1 and bool(np.isfinite([low, high]).all())


def _register(wrapper: str, id: str, *arguments: str) -> str:
    """How the env `id` within a `wrapper` of Gymnasium gets an id of its own."""
    inside = ", ".join((f'gymnasium.make("{id}", **kwargs)', *arguments))
    entry = f"lambda **kwargs: gymnasium.wrappers.{wrapper}({inside})"
    line = f'import gymnasium, numpy; gymnasium.register("Wrapped-v0", {entry})'
    return f"Use env.id=mine:Wrapped-v0 with a file mine.py of the line: {line}"


def _transformed(space: gymnasium.Space) -> tuple[str, str]:
    """(a function of an action `a`, the space of `a`), both Python, to make actions of `space`."""
    if isinstance(space, spaces.Discrete):
        return f"a + {space.start}", f"gymnasium.spaces.Discrete({space.n})"
    if isinstance(space, spaces.Box):
        function = "a" if len(space.shape) == 1 else f"a.reshape({space.shape})"
        bounds = "low, high"
        if space.is_bounded() and np.ptp(space.low) == np.ptp(space.high) == 0:
            bounds = f"{space.low.flat[0]}, {space.high.flat[0]}"
        return function, f"gymnasium.spaces.Box({bounds}, ({int(np.prod(space.shape))},))"
    if isinstance(space, spaces.MultiBinary):
        function = f"(a > 0.5).astype(numpy.int8).reshape({space.shape})"
        return function, f"gymnasium.spaces.Box(0, 1, ({int(np.prod(space.shape))},))"
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return _transformed_choices(space)
    return "function", "space"


def _transformed_choices(space: spaces.MultiDiscrete) -> tuple[str, str]:
    """As `_transformed`: all combinations numbered, or rounded numbers where they are many."""
    sizes = tuple(space.nvec.tolist())
    combinations = math.prod(sizes)
    if combinations > _MANY:
        low, high = space.start.tolist(), (space.start + space.nvec - 1).tolist()
        bounds = f"numpy.array({low}), numpy.array({high})"
        return "a.round().astype(int)", f"gymnasium.spaces.Box({bounds})"
    function = f"numpy.array(numpy.unravel_index(a, {sizes}))"
    if space.start.any():
        function += f" + {space.start.tolist()}"
    return function, f"gymnasium.spaces.Discrete({combinations})"


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether the last axis is too short for pixels, unlike the two before it."""
    return len(shape) in (3, 4) and shape[-1] < PICTURE <= min(shape[-3:-1])


def _channels_first(space: spaces.Box) -> tuple[int, ...]:
    """The shape that agents see of observations of `space`."""
    shape = space.shape
    if not shape:
        return (1,)
    if _is_channels_last(shape):
        *stack, height, width, channels = shape
        return (int(np.prod(stack)) * channels, height, width)
    if len(shape) == 2 and space.dtype == np.uint8 and min(shape) >= PICTURE:
        return (1, *shape)
    return shape


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values, float32: infinite ones where Gymnasium has the dtype's largest."""
    dtype: Any = space.dtype
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    unbounded_below, unbounded_above = ~space.bounded_below, ~space.bounded_above
    if dtype.kind == "f" or dtype.itemsize >= 4:
        most = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
        unbounded_below = unbounded_below | (space.low <= -most)
        unbounded_above = unbounded_above | (space.high >= most)
    return np.where(unbounded_below, -np.inf, low), np.where(unbounded_above, np.inf, high)
