"""The spaces of other people's envs: how agents see them, and which of them rlx does not take."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlx.env import IMAGE_SIDE

Convert = Callable[[np.ndarray], np.ndarray]
"""From an array of observations or actions [B, …] to another of as many rows."""
_MOST_ACTIONS = 1000
"""More discrete actions than this are too many for a network to tell apart."""


def agent_observations(space: gymnasium.Space) -> tuple[gymnasium.Space, Convert]:
    """(the space that agents see, a function from observations of `space` to observations of it).

    `space`: that of an env. The function takes arrays [B, *O] and returns arrays [B, *O'].

    A Box becomes float32, of one axis at least. Images become channels first: H x W x C, stacks of
    them T x H x W x C (as T · C channels), and gray ones H x W, if they are uint8, which they stay.
    A Discrete becomes int64. Other spaces stay as they are.
    """
    if isinstance(space, spaces.Discrete):
        return space, lambda obs: obs.astype(np.int64, copy=False)
    if not isinstance(space, spaces.Box):
        return space, np.asarray
    shape = _channels_first(space)
    is_image = len(shape) == 3 and min(shape[1:]) >= IMAGE_SIDE
    dtype = np.uint8 if is_image and space.dtype == np.uint8 else np.float32
    channels_last = _is_channels_last(space.shape)

    def convert(obs: np.ndarray) -> np.ndarray:
        if channels_last:
            obs = np.moveaxis(obs, -1, -3)
        obs = obs.reshape(len(obs), *shape)
        return np.ascontiguousarray(obs, dtype)

    low, high = _bounds(space)
    if dtype == np.uint8:
        low, high = space.low, space.high
    return spaces.Box(convert(low[None])[0], convert(high[None])[0], dtype=dtype), convert


def agent_actions(space: gymnasium.Space) -> tuple[gymnasium.Space, Convert]:
    """(the space that agents act in, a function from actions of it to actions of `space`).

    `space`: that of an env. The function takes arrays [B, *A]. A Box becomes float32. The env is
    given actions of its own dtype within its bounds; where these are whole numbers, the nearest
    ones.
    """
    dtype: Any = space.dtype
    if isinstance(space, spaces.Discrete):
        return space, lambda actions: actions.astype(dtype, copy=False)
    if not isinstance(space, spaces.Box):
        return space, np.asarray
    low, high = space.low, space.high

    def convert(actions: np.ndarray) -> np.ndarray:
        if dtype.kind in "iub":
            actions = np.rint(actions.astype(np.float64))
        elif actions.dtype != dtype:
            actions = actions.astype(dtype)
        return actions.clip(low, high).astype(dtype, copy=False)

    return spaces.Box(*_bounds(space), dtype=np.float32), convert


def refused(obs: gymnasium.Space, action: gymnasium.Space, id: str) -> tuple[str, str] | None:
    """(what rlx does not take of the spaces of Gymnasium's env `id`, the wrapper that helps).

    None where rlx takes both.
    """
    for name, space in (("observations", obs), ("actions", action)):
        if 0 in (space.shape or ()):
            problem = f"needs {name} of some numbers, but they are {space}."
            return problem, "There is nothing to learn from."
    if not _is_box_or_discrete(obs):
        problem = f"needs Box or Discrete (0…n−1) observations, but they are {obs}."
        if obs.is_np_flattenable:
            return problem, _register("FlattenObservation", id)
        return problem, _register("TransformObservation", id, "function", "space")
    if isinstance(action, spaces.Box):
        allowed = _is_bounded_vector(action)
    else:
        allowed = _is_box_or_discrete(action)
    if allowed:
        return None
    expected = "Discrete (0…n−1) or bounded Box actions of one axis"
    function, simple_space = _transformed(action)
    wrapper = _register("TransformAction", id, f"lambda a: {function}", simple_space)
    return f"needs {expected}, but they are {action}.", wrapper


def _is_box_or_discrete(space: gymnasium.Space) -> bool:
    """Whether `space` is a Box, or a Discrete from 0 on."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) == 0
    return isinstance(space, spaces.Box)


def _is_bounded_vector(space: spaces.Box) -> bool:
    """Whether `space` has one axis, and bounds on every side."""
    low, high = _bounds(space)
    return len(space.shape) == 1 and bool(np.isfinite([low, high]).all())


def _register(wrapper: str, id: str, *arguments: str) -> str:
    """What a user does to give the env `id` within a `wrapper` of Gymnasium an id of its own."""
    inside = ", ".join((f'gymnasium.make("{id}", **kwargs)', *arguments))
    entry = f"lambda **kwargs: gymnasium.wrappers.{wrapper}({inside})"
    line = f'import gymnasium, numpy; gymnasium.register("Wrapped-v0", {entry})'
    return f"Use env.id=mine:Wrapped-v0 with a file mine.py of the line: {line}"


def _transformed(space: gymnasium.Space) -> tuple[str, str]:
    """(Python of an action of `space` as a function of `a`, Python of a simpler space of `a`)."""
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
    """(Python of an action of `space` as a function of `a`, Python of a simpler space of `a`).

    All combinations of choices are numbered; where they are too many, `a` has a number for each
    choice, which is rounded.
    """
    sizes = tuple(space.nvec.tolist())
    combinations = math.prod(sizes)
    if combinations > _MOST_ACTIONS:
        low = space.start.tolist()
        high = (space.start + space.nvec - 1).tolist()
        bounds = f"numpy.array({low}), numpy.array({high})"
        return "a.round().astype(int)", f"gymnasium.spaces.Box({bounds})"
    function = f"numpy.array(numpy.unravel_index(a, {sizes}))"
    if space.start.any():
        function += f" + {space.start.tolist()}"
    return function, f"gymnasium.spaces.Discrete({combinations})"


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether the last axis is too short for pixels, unlike the two before it."""
    return len(shape) in (3, 4) and shape[-1] < IMAGE_SIDE <= min(shape[-3:-1])


def _channels_first(space: spaces.Box) -> tuple[int, ...]:
    """The shape in which agents see observations of `space`."""
    shape = space.shape
    if not shape:
        return (1,)
    if _is_channels_last(shape):
        *stack, height, width, channels = shape
        return (int(np.prod(stack)) * channels, height, width)
    if len(shape) == 2 and space.dtype == np.uint8 and min(shape) >= IMAGE_SIDE:
        return (1, *shape)
    return shape


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest values of `space`, float32 of its shape.

    They are infinite where a bound is the largest number of the dtype, as Gymnasium writes "none".
    """
    dtype: Any = space.dtype
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    unbounded_below, unbounded_above = ~space.bounded_below, ~space.bounded_above
    if dtype.kind == "f" or dtype.itemsize >= 4:
        largest = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
        unbounded_below = unbounded_below | (space.low <= -largest)
        unbounded_above = unbounded_above | (space.high >= largest)
    return np.where(unbounded_below, -np.inf, low), np.where(unbounded_above, np.inf, high)
