"""What a radius of 1 means for each component of an observation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from rlx.agent import Spec
from rlx.config import choice
from rlx.env import TensorEnv
from rlx.errors import ConfigError
from rlx.experiment import env_spec
from rlx.policies import Opened, open_runs
from rlx.robustness import reference
from rlx.robustness.manifold import off_circle
from rlx.robustness.observations import play_spread
from rlx.runs.finding import find
from rlx.show import console
from rlx.threat import whole_radius

NAMES = ("bounds", "std", "reference", "std:RUN")
"""What `scale` may be beside numbers."""
EPISODES = 100
"""Clean episodes of each seed over which `scale=std:RUN` is measured."""
SHOWN = 12
"""The most components that are told one by one."""


def unit_scale(
    scale: object, space: gymnasium.Space, visited_std: Callable[[], np.ndarray]
) -> np.ndarray:
    """What eps = 1 means for each component of an observation, [*O], in the component's own units.

    `scale`, as `resolved` returns it, is "bounds" (half of the space's range), "std" (the standard
    deviation over observations visited in clean episodes, which `visited_std` plays) or one number
    for each component. Raises ConfigError where the space has no such scale.
    """
    box = require_box(space)
    if scale == "std":
        return visited_std()
    if scale == "bounds":
        return _half_range(box)
    if isinstance(scale, str):
        choice(scale, NAMES, "scale")
    numbers = scale if isinstance(scale, (list, tuple)) else [scale]
    units = np.asarray(numbers, dtype=np.float64)
    if units.size != box.low.size or not (units >= 0).all():
        raise ConfigError(
            f"scale={scale}: expected {', '.join(NAMES)} or {box.low.size} numbers ≥ 0, "
            "one per component of an observation."
        )
    return units.reshape(box.shape)


def named(scale: object, space: gymnasium.Space, env: Mapping[str, Any]) -> object:
    """`scale`, or where it is None that of the env: "bounds", or "reference" if one is infinite.

    `space`: of the observations of the config group `env`. Where the env has no reference either it
    is "bounds", of which an error says what else there is.
    """
    if scale is not None:
        return scale
    box = require_box(space)
    if np.isfinite(box.low).all() and np.isfinite(box.high).all():
        return "bounds"
    try:
        reference.find(dict(env))
    except ConfigError:
        return "bounds"
    return "reference"


def scale_of_env(scale: object, env: Mapping[str, Any]) -> list[float]:
    """A defence's `scale` of observations of the config group `env` as numbers; nobody plays.

    It is null, "bounds", "reference" or numbers, as of `named`, `unit_scale` and `resolved`.
    ConfigError where the env has no such scale.
    """
    space = require_box(env_spec(env).observation_space, "agent.defence")

    def unplayed() -> np.ndarray:
        raise ConfigError(
            f"scale={scale}: expected bounds, reference, or one number per component."
        )

    try:
        scale = named(scale, space, env)
        if scale == "reference":
            _, found = reference.find(dict(env))
            return list(found.scale)
        return unit_scale(scale, space, unplayed).ravel().tolist()
    except ConfigError as error:
        raise ConfigError(f"agent.defence.{error}") from None


def require_box(space: gymnasium.Space, key: str = "attack") -> gymnasium.spaces.Box:
    """`space` if it is a Box; ConfigError about `key` where nothing is near an observation."""
    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigError(
            f"{key}: needs observations of numbers or images (a Box space), as CartPole's; "
            f"those of this env are {space}, where none is near another."
        )
    return space


def resolved(scale: object, opened: Opened, outputs: str, trusted: bool) -> object:
    """`scale` without names of files and runs: numbers stand for "reference" and "std:RUN".

    "reference" is read from the file of conf/reference about the env of `opened`. The policies of
    RUN play; `outputs` is where runs are, `trusted` whether what RUN's config names may be
    imported. Prints which file or run it was. ConfigError where there is none, or of another env.
    """
    if scale == "reference":
        file, found = reference.find(opened.env)
        console.facts(scale=f"conf/{reference.FOLDER}/{file.name}: {found.policies}")
        return list(found.scale)
    name, colon, path = str(scale).partition(":")
    if not (isinstance(scale, str) and colon and name == "std"):
        return scale
    if not path:
        raise ConfigError("scale=std: write the run behind it, as in scale=std:outputs/train/ppo-…")
    run = find(path, outputs, trusted=trusted)
    other = open_runs([run], "best", opened.device)
    if not reference.is_same(other.env, opened.env):
        raise ConfigError(
            f"scale={scale}: {run.path} is of another env than the attacked policies."
        )
    console.facts(scale=f"std of {run.path}, {EPISODES} clean episodes per seed")
    std, _ = play_spread(other, EPISODES)
    return std.flatten().tolist()


def describe(scale: np.ndarray, eps: float, spec: Spec, units: Sequence[str] | None) -> str:
    """What a radius of `eps` is, as in "angle ±0.03 rad": the numbers `eps` · `scale` [*O].

    `units`: the env's `observation_units`. Of a stack the newest observation is described, which
    alone can be moved. Whole numbers, as gray levels, are those that are played.
    """
    space = require_box(spec.observation_space)
    size = len(scale) // spec.stack
    radius = eps * scale[-size:]
    if np.issubdtype(space.dtype, np.integer):
        return _levels_text(radius)
    flat = radius.flatten()
    names = units[-size:] if units is not None else [f"obs[{i}]" for i in range(flat.size)]
    if radius.ndim == 1 and flat.size <= SHOWN:
        return ", ".join(_component(*pair) for pair in zip(names, flat.tolist(), strict=True))
    return f"{flat.size:,} components, each {_span('±{:.3g}', flat)}"


def _component(name: str, radius: float) -> str:
    """A component's `radius` in its unit, as in "angle ±0.03 rad" of the name "angle (rad)"."""
    plain, bracket, unit = name.partition(" (")
    if not bracket:
        return f"{name} ±{radius:.3g}"
    return f"{plain} ±{radius:.3g} {unit.rstrip(')')}"


def _levels_text(radius: np.ndarray) -> str:
    """The gray levels that a `radius` of any shape plays, and of what they are the whole part."""
    played = whole_radius(torch.from_numpy(radius)).numpy()
    levels = _span("±{:g}", played)
    levels += " gray level" if levels == "±1" else " gray levels"
    if np.allclose(played, radius, atol=1e-3):
        return levels
    return f"{levels} ({_span('{:.3g}', radius)} rounded down)"


def _span(form: str, numbers: np.ndarray) -> str:
    """The smallest and the largest of `numbers` in a format, once where they are the same text."""
    low = form.format(float(numbers.min()))
    high = form.format(float(numbers.max()))
    return low if low == high else f"{low} to {high}"


def rounding(eps: Sequence[float], scale: np.ndarray, spec: Spec) -> str | None:
    """What was really played at radii that are no whole numbers, where observations are whole.

    None where nothing was rounded.
    """
    if not np.issubdtype(spec.observation_space.dtype, np.integer):
        return None
    rounded = []
    for radius in eps:
        asked = radius * scale
        played = whole_radius(torch.from_numpy(asked)).numpy()
        if not np.allclose(played, asked, atol=1e-3):
            levels = f"{_span('{:g}', played)} of {_span('{:.3g}', asked)}"
            rounded.append(f"{radius:g} plays {levels}")
    if not rounded:
        return None
    return f"gray levels are whole: eps {', '.join(rounded)}"


def tell_radii(
    eps: Sequence[float],
    scale: np.ndarray,
    spec: Spec,
    env: TensorEnv,
    angles: tuple[tuple[int, int], ...],
) -> None:
    """Print what eps = 1 and the largest of the radii `eps` are in the units of `env`.

    Also what was rounded, and how far the box leaves the circles of angles unless `angles` are kept
    on them.
    """
    for radius in dict.fromkeys((1.0, eps[-1])):
        described = describe(scale, radius, spec, env.observation_units)
        console.facts(**{f"eps {radius:g}": described})
    rounded = rounding(eps, scale, spec)
    if rounded is not None:
        console.facts(rounded=rounded)
    off = off_circle(scale, eps[-1], spec, env)
    if off is not None and not angles:
        console.facts(manifold=off)


def _half_range(space: gymnasium.spaces.Box) -> np.ndarray:
    """Half of the range of each component; ConfigError where one of them has no finite bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    if not bounded.all():
        unbounded = np.flatnonzero(~bounded).tolist()
        raise ConfigError(
            f"scale=bounds: components {unbounded} of this env's observations have no finite "
            "bounds; use scale=reference, one number each or, for attacks, scale=std."
        )
    return (space.high.astype(np.float64) - space.low) / 2
