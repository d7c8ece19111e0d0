"""The manifold that the observations of an env lie on: the circles of its angles."""

import gymnasium
import numpy as np

from rlx.agent import Spec
from rlx.config import choice
from rlx.env import TensorEnv
from rlx.errors import ConfigError

_DIRECTIONS = np.linspace(-np.pi, np.pi, 3601)
"""Angles at which boxes are looked at, rad."""


def kept_angles(manifold: str | None, env: TensorEnv) -> tuple[tuple[int, int], ...]:
    """The pairs (cosine, sine) of components of `env` that an attack keeps on the circle.

    `manifold`: null for the whole box, or "angle". ConfigError where the env names no angles.
    """
    if manifold is None:
        return ()
    choice(manifold, ("angle", "null"), "manifold")
    if not env.angles:
        raise ConfigError(
            f"manifold={manifold}: this env names no angles, of which it shows cosine and sine; "
            "leave it out."
        )
    return env.angles


def off_circle(scale: np.ndarray, eps: float, spec: Spec, env: TensorEnv) -> str | None:
    """A sentence on how far the box of radius `eps` · `scale` [*O] leaves the circles of `env`.

    None where the env names no angles.
    """
    if not env.angles:
        return None
    space = spec.observation_space
    assert isinstance(space, gymnasium.spaces.Box)
    farthest = max(_farthest(pair, eps * scale, space) for pair in env.angles)
    return (
        f"at eps {eps:g} an observation in the box may leave the circle cos² + sin² = 1 "
        f"by up to {farthest:.2g}; manifold=angle keeps it there"
    )


def _farthest(pair: tuple[int, int], radius: np.ndarray, space: gymnasium.spaces.Box) -> float:
    """The largest |cos² + sin² − 1| of a `pair` in the boxes of `radius` [*O] around the circle."""
    largest = np.zeros_like(_DIRECTIONS)
    smallest = np.zeros_like(_DIRECTIONS)
    for component, clean in zip(pair, (np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)), strict=True):
        low = np.maximum(clean - radius[component], space.low[component])
        high = np.minimum(clean + radius[component], space.high[component])
        largest += np.maximum(low**2, high**2)
        smallest += np.where(low * high <= 0, 0.0, np.minimum(low**2, high**2))
    return float(np.maximum(largest - 1, 1 - smallest).max())
