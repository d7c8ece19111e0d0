"""Checks of what an env of Gymnasium raises and returns: a RunError says on one line what is wrong.

An error begins with the call that went wrong. So the checks take a function `call_of`: the number
of an env copy → the call that it is in, in words. An `obs_space` is the env's, an `agent_space`
that which `rlx.envs.spaces.agent_observations` makes of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlx.errors import ConfigError, RunError
from rlx.names import describe_error, one_line

CallOf = Callable[[int], str]
"""The number of a copy → the call that it is in, as in "env.id=Maze-v0: reset(seed=3)"."""

_LARGEST = float(np.finfo(np.float32).max)
_STEP = ("observation", "reward", "terminated", "truncated", "info")
_MASKED = (
    " Its info's action_mask rules this action out. rlx does not take masks yet: register the env "
    "within a wrapper that makes such actions harmless (another action instead, or a penalty)."
)


def as_run_error(error: Exception | SystemExit, call: str, is_masked: bool = False) -> Exception:
    """The RunError that says that `call` raised `error`; one of rlx's errors stays as it is.

    `is_masked`: whether the env had ruled out the action that it was given.
    """
    if isinstance(error, (ConfigError, RunError)):
        return error
    hint = _MASKED if is_masked else ""
    return RunError(f"{call} raised {describe_error(error)}.{hint}")


def is_masked(info: Any, action: Any) -> bool:
    """Whether `info` has an action mask that rules out `action`."""
    if not isinstance(info, Mapping) or "action_mask" not in info:
        return False
    try:
        return not np.ravel(info["action_mask"])[int(action)]
    except (TypeError, ValueError, IndexError):
        return False


def reset_result(result: Any, call: str) -> tuple[Any, Any]:
    """(observation, info): what the reset of a copy returned."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        count = _number_of_values(result)
        raise RunError(f"{call} returned {count}; expected 2, (observation, info).")
    obs, info = result
    return obs, info


def step_results(results: Sequence[Any], call_of: CallOf) -> list[list[Any]]:
    """What the steps of all copies returned, one list [B] for each of the five values."""
    for copy, result in enumerate(results):
        if not isinstance(result, (tuple, list)) or len(result) != len(_STEP):
            expected = f"expected {len(_STEP)}, ({', '.join(_STEP)})"
            count = _number_of_values(result)
            raise RunError(f"{call_of(copy)} returned {count}; {expected}.")
    return [list(column) for column in zip(*results, strict=True)]


def stacked_observations(
    observations: Sequence[Any],
    copies: Sequence[int],
    obs_space: gymnasium.Space,
    agent_space: gymnasium.Space,
    call_of: CallOf,
) -> np.ndarray:
    """The observations of `copies` as one array [B, *O] of the env's own shape."""
    try:
        stacked = np.stack(observations)
        fits = stacked.shape[1:] == obs_space.shape and _is_allowed(stacked, agent_space)
    except (TypeError, ValueError):
        fits = False
    if fits:
        return stacked
    for copy, obs in zip(copies, observations, strict=True):
        problem = _observation_problem(obs, obs_space, agent_space)
        if problem:
            expected = f"expected {one_line(obs_space)}"
            raise RunError(f"{call_of(copy)} returned an observation {problem}; {expected}.")
    return np.stack([np.asarray(obs, obs_space.dtype) for obs in observations])


def reward_numbers(rewards: Sequence[Any], call_of: CallOf) -> np.ndarray:
    """The rewards of all copies, float32 [B]; RunError where one is no finite number."""
    try:
        numbers = np.array(rewards, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (len(rewards),) or not (np.abs(numbers) <= _LARGEST).all():
        numbers = np.array([_reward(reward, copy, call_of) for copy, reward in enumerate(rewards)])
    return numbers.astype(np.float32)


def flags(values: Sequence[Any], name: str, call_of: CallOf) -> np.ndarray:
    """The flags `name` of all copies, bool [B]; RunError where one is neither true nor false."""
    array = np.array(values)
    if array.dtype == bool and array.shape == (len(values),):
        return array
    for copy, value in enumerate(values):
        if np.size(value) != 1 or value not in (0, 1):
            problem = f"returned {name} {one_line(value)}; expected true or false."
            raise RunError(f"{call_of(copy)} {problem}")
    return np.array([bool(value) for value in values])


def _is_allowed(obs: np.ndarray, agent_space: gymnasium.Space) -> bool:
    """Whether the values `obs` [..., *O] are numbers that agents can be shown as they are."""
    if obs.dtype.kind not in "biuf":
        return False
    if isinstance(agent_space, spaces.Discrete) or agent_space.dtype == np.uint8:
        if obs.dtype != agent_space.dtype:
            with np.errstate(invalid="ignore"):
                if not (obs == obs.astype(agent_space.dtype)).all():
                    return False
        if not isinstance(agent_space, spaces.Discrete):
            return True
        return bool(((obs >= 0) & (obs < agent_space.n)).all())
    if obs.dtype.kind != "f":
        return True
    if obs.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            obs = obs.astype(np.float32)
    return bool(np.isfinite(obs).all())


def _observation_problem(
    obs: Any, obs_space: gymnasium.Space, agent_space: gymnasium.Space
) -> str | None:
    """What is wrong with the observation of a copy; None where it is as it should be."""
    try:
        array = np.asarray(obs)
    except (TypeError, ValueError):
        return f"of type {type(obs).__name__}"
    if array.dtype.kind not in "biuf":
        return f"{one_line(obs)} of type {type(obs).__name__}"
    if array.shape != obs_space.shape:
        return f"of shape {array.shape}"
    if _is_allowed(array, agent_space):
        return None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0].tolist()
        return f"with {array[tuple(index)]} at {index}" if index else f"{array}"
    if array.size == 1:
        return f"{array.item()}"
    return f"of dtype {array.dtype} with values from {array.min()} to {array.max()}"


def _reward(reward: Any, copy: int, call_of: CallOf) -> float:
    """The reward of a copy as a number; RunError where it is no finite one."""
    try:
        number = float(np.asarray(reward, np.float64).reshape(()))
    except (TypeError, ValueError):
        number = np.nan
    if abs(number) <= _LARGEST:
        return number
    problem = f"returned reward {one_line(reward)}; expected a finite number."
    raise RunError(f"{call_of(copy)} {problem}")


def _number_of_values(result: Any) -> str:
    """How many values an env returned, in words."""
    if isinstance(result, (tuple, list)):
        return f"{len(result)} values"
    return "None" if result is None else f"one {type(result).__name__}"
