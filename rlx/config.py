"""From YAML nodes to frozen dataclasses, with errors that name the key, the value, what was expected and the nearest name."""

import dataclasses
import difflib
import math
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf

import rlx

T = TypeVar("T")

# What keys of these names may be, whatever they belong to.
_POSITIVE = ("learning_rate", "reward_learning_rate", "replay_ratio", "clip", "max_grad_norm", "max_grad_value", "initial_std", "seconds")
_SHARES = ("discount", "gae_lambda", "epsilon_start", "epsilon_end", "target_tau", "average_tau", "reanalyse", "league_games")
_COUNTS = ("hidden", "batch_size", "buffer_size", "n_steps", "target_every", "epsilon_steps", "priority_beta_steps")


def conf_dir() -> str:
    """Absolute path of the config groups: beside the package in a checkout (also when installed editable), else inside it."""
    package = Path(rlx.__file__).resolve().parent
    checkout = package.parent / "conf"
    return str(checkout if (checkout / "train.yaml").is_file() else package / "conf")


class ConfigError(Exception):
    """The user asked for something impossible; the message says what, where and what would do instead. Exit code 2."""


class RunError(Exception):
    """A run cannot go on; the message says why. Exit code 1, or `code` where it has one."""


def command(name: str) -> "Callable[[Callable[[DictConfig], float | None]], Callable[[], None]]":
    """Decorator of a command's task: composes conf/`name`.yaml with sys.argv by Hydra and runs the task on it.

    In a multirun the other combinations go on when one fails; the first failure is raised at the end.
    """
    import functools

    import hydra

    def decorate(task: "Callable[[DictConfig], float | None]") -> "Callable[[], None]":
        @functools.wraps(task)
        def main() -> None:
            failures: list[Exception] = []

            def guarded(composed: DictConfig) -> float | None:
                _announce()
                try:
                    return task(composed)
                except (ConfigError, RunError) as error:  # Hydra would print a line of its own about it
                    failures.append(error)
                    return None

            hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(guarded)()
            if failures:
                raise failures[0]

        return main

    return decorate


def _announce() -> None:
    """Which combination of a multirun this is."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        from rlx import report

        report.start(sweep=" ".join(hydra.overrides.task))


def chosen(group: str) -> str:
    """Which option of a config group the running command was given."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])


def check_protocol(protocol: str | None) -> None:
    """ConfigError where protocol=source was asked for and no preset says what it means here."""
    if protocol is None:
        wanted, presets = chosen("preset@_global_"), sorted(Path(conf_dir(), "preset").glob("*-source.yaml"))
        have = ", ".join(preset.stem.removesuffix("-source") for preset in presets)
        raise ConfigError(f"protocol=source: no settings for {wanted.removesuffix('-source')}. There are some for: {have}.")


def nearest(word: object, choices: Iterable[object]) -> str:
    """The end of an error message: the name that was probably meant, or else all of them unless they are many."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Choose from: {', '.join(sorted(names))}." if 0 < len(names) <= 20 else ""


def build(kind: type[T], node: Mapping[str, Any] | DictConfig, key: str) -> T:
    """The dataclass `kind` from `node`, the config group at `key`; unknown, missing and mistyped values raise ConfigError."""
    values = typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node))
    values.pop("_target_", None)
    prefix = f"{key}." if key else ""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            raise ConfigError(f"{prefix}{name}: unknown key.{nearest(name, fields)}")
    for name, field in fields.items():
        value = values.get(name, field.default)
        if (name not in values and field.default is dataclasses.MISSING) or value == MISSING:
            raise ConfigError(f"{prefix}{name}: missing; set {prefix}{name}=… ({_describe(hints[name])}).")
        values[name] = _convert(value, hints[name], f"{prefix}{name}")
        _check_range(name, values[name], f"{prefix}{name}")
    return kind(**values)


def _convert(value: Any, hint: Any, key: str) -> Any:
    if hint is Any:
        return value
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else ()
    if options:
        return None if value is None else _convert(value, next(o for o in options if o is not type(None)), key)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key}={value}: expected {_describe(hint)}.")
        return [_convert(item, typing.get_args(hint)[0], key) for item in value]
    if hint is int and isinstance(value, str) and (match := re.fullmatch(r"(\d+)([kM])", value)):
        return int(match[1]) * {"k": 1_000, "M": 1_000_000}[match[2]]  # steps=200k
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # steps=1e6
    if hint in (float, str) and type(value) is int:
        return hint(value)  # checkpoint=20000
    if type(value) is not hint:
        raise ConfigError(f"{key}={value}: expected {_describe(hint)}, not {_describe(type(value))}.")
    return value


def _check_range(name: str, value: Any, key: str) -> None:
    """ConfigError where a number is one that a key of that name can mean nowhere.

    A flag is no number: `clip` is PPO's range, and of noise it is true or false.
    """
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if name in _POSITIVE and not 0 < number < math.inf:
            raise ConfigError(f"{key}={value}: must be above 0.")
        if name in _SHARES and not 0 <= number <= 1:
            raise ConfigError(f"{key}={value}: must be from 0 to 1.")
        if name in _COUNTS:
            at_least(number, 1, key)
        if name == "learning_starts":
            at_least(number, 0, key)


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    if typing.get_origin(hint) is list:
        return "a list, each " + _describe(typing.get_args(hint)[0])
    if args := typing.get_args(hint):
        return " or ".join(_describe(a) for a in args)
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def choice(value: str, allowed: Iterable[str], key: str) -> str:
    """`value` if it is one of `allowed`, else ConfigError."""
    if value not in (names := list(allowed)):
        raise ConfigError(f"{key}={value}: unknown.{nearest(value, names)}")
    return value


def at_least(value: float, minimum: float, key: str) -> None:
    """ConfigError unless value ≥ minimum."""
    if not value >= minimum:
        raise ConfigError(f"{key}={value}: must be at least {minimum}.")


def load_class(node: Mapping[str, Any], key: str, base: type[T]) -> type[T]:
    """The class that `node._target_` names, which must be a subclass of `base`."""
    target = node.get("_target_")
    if not target:
        raise ConfigError(f"{key}._target_: missing; it names the class, as in 'package.module.Class'.")
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({error}).") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key}._target_={target}: expected a subclass of {base.__module__}.{base.__qualname__}.")
    return found


def parse_grid(value: object, key: str) -> list[float]:
    """Radii from "start:stop:step" (the end included), "a/b", one number, or a list of these; exact fractions inside.

    "0:0.03:0.0025" is 13 numbers. Raises ConfigError on an empty, falling, negative or infinite grid.
    """
    parts = list(value) if isinstance(value, (list, tuple)) or OmegaConf.is_list(value) else [value]  # type: ignore[call-overload]
    radii: list[Fraction] = []
    for part in parts:
        numbers = [_fraction(text, key, value) for text in str(part).split(":")]
        if len(numbers) == 1:
            radii += numbers
        elif len(numbers) == 3:
            start, stop, step = numbers
            if step <= 0 or stop < start:
                raise ConfigError(f"{key}={value}: '{part}' is empty; write start:stop:step with start ≤ stop and step > 0.")
            radii += [start + i * step for i in range(int((stop - start) / step) + 1)]
        else:
            raise ConfigError(f"{key}={value}: expected start:stop:step, a number or a list of numbers; '{part}' is neither.")
    if not radii:
        raise ConfigError(f"{key}={value}: the grid is empty; write for example {key}=0:0.03:0.0025.")
    if min(radii) < 0:
        raise ConfigError(f"{key}={value}: a radius cannot be negative.")
    return [float(r) for r in sorted(set(radii))]


def _fraction(text: str, key: str, value: object) -> Fraction:
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{key}={value}: '{text}' is not a number; write for example {key}=0:0.03:0.0025 or {key}=8/255.") from None


def parse_seeds(value: object, key: str = "seeds") -> list[int]:
    """Seeds from a count (10 → 0…9), a half-open range as in Python ("5:8" → 5, 6, 7), or a list of them."""
    parts = list(value) if isinstance(value, (list, tuple)) or OmegaConf.is_list(value) else [value]  # type: ignore[call-overload]
    seeds: list[int] = []
    for part in parts:
        try:
            numbers = [int(text) for text in str(part).split(":")]
        except ValueError:
            raise ConfigError(f"{key}={value}: '{part}' is not a count, a range like 0:10 or a list.") from None
        if len(numbers) == 2:
            seeds += range(*numbers)
        elif len(numbers) == 1:
            seeds += numbers if isinstance(value, (list, tuple)) or OmegaConf.is_list(value) else range(numbers[0])
        else:
            raise ConfigError(f"{key}={value}: expected a count, a range like 0:10 or a list.")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{key}={value}: expected at least one seed, none negative and none twice.")
    return seeds
