"""Whether logged observations and actions are those of an env, and how its settings differ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from omegaconf import OmegaConf

from rlx.agent import Spec
from rlx.errors import ConfigError
from rlx.names import flatten_keys
from rlx.nn.encoders import is_image

IDENTITY = (
    "env._target_",
    "env.id",
    "env.game",
    "env.observe",
    "env.kwargs.gray",
    "env.kwargs.continuous",
)
"""Settings that make another env, not another version of the same."""
_NOT_LOGGED = {"env.stack", "env.workers", "env.threads"}
"""Settings that do not change what is logged."""


class Difference(NamedTuple):
    """A setting in which the env of a data set differs from the one that learns from it."""

    key: str
    logged: Any
    """Its value in the data."""
    wanted: Any
    """Its value in the env that learns."""


def differences(logged: Mapping[str, Any], env: Mapping[str, Any]) -> list[Difference]:
    """In what two config groups `env` differ; empty where it is unknown what was logged."""
    if not logged:
        return []
    # As it is: an interpolation in somebody's file is not for us to resolve.
    flat_logged = flatten_keys(logged, "env")
    resolved = OmegaConf.to_container(OmegaConf.create(dict(env)), resolve=True)
    flat_env = flatten_keys(resolved, "env")
    keys = sorted((flat_logged.keys() | flat_env.keys()) - _NOT_LOGGED)
    pairs = [Difference(key, flat_logged.get(key), flat_env.get(key)) for key in keys]
    return [pair for pair in pairs if pair.logged != pair.wanted]


def obs_dtype(
    spec: Spec,
    dtype: np.dtype,
    shape: tuple[int, ...],
    bounds: Callable[[], tuple[float, float]],
    location: str,
) -> np.dtype:
    """The dtype in which observations are those of the env; ConfigError where they are not.

    `dtype`: of the observations in the data; `shape`: of one, as the env would show it; `bounds`:
    gives the lowest and the highest of their numbers; `location`: the name of the data in errors.
    """
    space: Any = spec.observation_space
    wanted = np.dtype(space.dtype)
    is_whole = dtype.kind in "iu"
    if isinstance(space, gymnasium.spaces.Discrete):
        wanted = np.dtype(np.int64)
        fits = shape == () and is_whole and _within(bounds(), 0, int(space.n) - 1)
    elif wanted.kind == "f":
        # Whole numbers in images could be of any scale.
        fits = dtype.kind == "f" or not is_image(shape)
    else:
        limits = np.iinfo(wanted)
        fits = dtype == wanted or (is_whole and _within(bounds(), limits.min, limits.max))
    if not fits or shape != space.shape:
        logged = f"{dtype} {list(shape)}"
        raise ConfigError(f"{location}: its observations are {logged}; this env has {space}.")
    return wanted


def _within(bounds: tuple[float, float], low: float, high: float) -> bool:
    return low <= bounds[0] and bounds[1] <= high


def check_actions(action: np.ndarray, spec: Spec, location: str) -> None:
    """ConfigError where one of the actions [N, …] is none of the env's."""
    space = spec.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        is_numbered = action.ndim == 1 and action.dtype.kind in "iu"
        fits = is_numbered and int(action.min()) >= 0 and int(action.max()) < space.n
    else:
        fits = action.shape[1:] == space.shape
    if not fits:
        logged = f"{action.dtype} {list(action.shape[1:])} up to {action.max()}"
        raise ConfigError(f"{location}: its actions are {logged}; this env has {space}.")
