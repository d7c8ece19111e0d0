"""What a radius of 1 means for each component of an observation."""

from collections.abc import Callable

import gymnasium
import numpy as np

from rlx.config import choice
from rlx.errors import ConfigError


def unit_scale(
    scale: object, space: gymnasium.Space, visited_std: Callable[[], np.ndarray]
) -> np.ndarray:
    """What eps = 1 means for each component of an observation, [*O], in the component's own units.

    `scale` is "bounds" (half of the space's range), "std" (the standard deviation over observations
    visited in clean episodes, which `visited_std` plays) or one number for each component. Raises
    ConfigError where the space has no such scale.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigError(
            f"attack: needs continuous observations (a Box space); this env has {space}."
        )
    if isinstance(scale, str):
        choice(scale, ("bounds", "std"), "scale")
        return visited_std() if scale == "std" else _half_range(space)
    numbers = scale if isinstance(scale, (list, tuple)) else [scale]
    units = np.asarray(numbers, dtype=np.float64)
    if units.size != space.low.size or not (units >= 0).all():
        raise ConfigError(
            f"scale={scale}: expected bounds, std or {space.low.size} numbers ≥ 0, "
            "one per component of an observation."
        )
    return units.reshape(space.shape)


def _half_range(space: gymnasium.spaces.Box) -> np.ndarray:
    """Half of the range of each component; ConfigError where one of them has no finite bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    if not bounded.all():
        unbounded = np.flatnonzero(~bounded).tolist()
        raise ConfigError(
            f"scale=bounds: components {unbounded} of this env's observations have no finite "
            "bounds; use scale=std or one number each."
        )
    return (space.high.astype(np.float64) - space.low) / 2
