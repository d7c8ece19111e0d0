"""Lists that a user writes short: radii as "0:0.03:0.0025", seeds as "0:10"."""

from fractions import Fraction
from typing import Any

from omegaconf import OmegaConf

from rlx.errors import ConfigError

MOST = 100_000
"""The most seeds, or radii, in a list."""


def parse_grid(value: object, key: str) -> list[float]:
    """Radii from "start:stop:step" (the end included), "a/b", one number, or a list of these.

    "0:0.03:0.0025" is 13 numbers: until the end they are exact fractions. Raises ConfigError on an
    empty, falling, negative or infinite grid.
    """
    radii: list[Fraction] = []
    for item in _items(value):
        numbers = [_fraction(text, key, value) for text in str(item).split(":")]
        if len(numbers) == 1:
            radii += numbers
        elif len(numbers) == 3:
            start, stop, step = numbers
            if step <= 0 or stop < start:
                raise ConfigError(
                    f"{key}={value}: '{item}' is empty; "
                    "write start:stop:step with start ≤ stop and step > 0."
                )
            count = int((stop - start) / step) + 1
            _check_count(count, f"{key}={value}", "radii")
            radii += [start + i * step for i in range(count)]
        else:
            raise ConfigError(
                f"{key}={value}: expected start:stop:step, a number or a list of numbers; "
                f"'{item}' is neither."
            )
    if not radii:
        raise ConfigError(
            f"{key}={value}: the grid is empty; write for example {key}=0:0.03:0.0025."
        )
    if min(radii) < 0:
        raise ConfigError(f"{key}={value}: a radius cannot be negative.")
    return [float(radius) for radius in sorted(set(radii))]


def parse_seeds(value: object, key: str = "seeds") -> list[int]:
    """Seeds from a count (10 → 0…9), a half-open range as in Python ("5:8" → 5, 6, 7), or a list.

    A list holds seeds and ranges. Raises ConfigError.
    """
    seeds: list[int] = []
    for item in _items(value):
        try:
            numbers = [int(text) for text in str(item).split(":")]
        except ValueError:
            raise ConfigError(
                f"{key}={value}: '{item}' is not a count, a range like 0:10 or a list."
            ) from None
        if len(numbers) > 2:
            raise ConfigError(f"{key}={value}: expected a count, a range like 0:10 or a list.")
        if len(numbers) == 1 and _is_list(value):
            seeds += numbers
            continue
        if len(numbers) == 1:
            numbers = [0, *numbers]
        first, end = numbers
        _check_count(end - first, f"{key}={value}", "seeds")
        seeds += range(first, end)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{key}={value}: expected at least one seed, none negative and none twice."
        )
    return seeds


def parse_rows(value: object) -> list[int]:
    """The seed of each row of a batch: those of `parse_seeds`, or of a list of such lists.

    The lists are those of the members of a vector sweep, which may have seeds in common.
    """
    if _is_list(value) and value and all(_is_list(item) for item in value):  # type: ignore
        return [seed for item in value for seed in parse_seeds(item)]  # type: ignore
    return parse_seeds(value)


def _is_list(value: Any) -> bool:
    """Whether `value` is a list, of Python or of OmegaConf."""
    return isinstance(value, (list, tuple)) or OmegaConf.is_list(value)


def _items(value: Any) -> list[Any]:
    """The items of a list; a value that is no list is the only item."""
    return list(value) if _is_list(value) else [value]


def _check_count(count: int, what: str, things: str) -> None:
    """ConfigError where a list would be too long to be meant, before it is made."""
    if count > MOST:
        raise ConfigError(f"{what}: {count:,} {things}; at most {MOST:,}.")


def _fraction(text: str, key: str, value: object) -> Fraction:
    """`text` as an exact number; ConfigError where it is none."""
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"{key}={value}: '{text}' is not a number; "
            f"write for example {key}=0:0.03:0.0025 or {key}=8/255."
        ) from None
