"""From YAML nodes to frozen dataclasses.

Every error names the key, the value, what was expected and the nearest valid name.
"""

import dataclasses
import inspect
import math
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from rlx.conf import group_files, options_with, renamed
from rlx.errors import ConfigError
from rlx.names import describe_error, nearest

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers that a value may be: from `low` to `high`, or above `low` where it is `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, number: float) -> bool:
        if self.open:
            return self.low < number < self.high
        return self.low <= number <= self.high

    def __str__(self) -> str:
        if self.open:
            return f"above {self.low:g}"
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"


Positive = Annotated[float, Range(0, open=True)]
"""A number above 0, as a learning rate."""
NonNegative = Annotated[float, Range(0)]
"""A number from 0 on, as the weight of a loss."""
Share = Annotated[float, Range(0, 1)]
"""A number from 0 to 1, as a discount or a probability."""
Count = Annotated[int, Range(1)]
"""A whole number from 1 on, as a batch size."""
Index = Annotated[int, Range(0)]
"""A whole number from 0 on, as the number of a choice or of steps before something."""


class _Varies:
    """The mark of a number that may differ between the seeds that are trained as one batch."""

    def __str__(self) -> str:
        return "or one per seed"


VARIES = _Varies()
if TYPE_CHECKING:
    PerSeed: TypeAlias = T | Tensor
else:
    PerSeed = Annotated[T, VARIES]
"""`PerSeed[Share]` is a share, or a list of one share for each seed, which agents see as [S]."""


def rename_keys(config: DictConfig, overrides: Iterable[str] = ()) -> None:
    """Give keys of earlier versions their names of today, in place.

    A key that `overrides` set under its name of today keeps that value: what is typed wins over
    what an older file says.
    """
    typed_keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    with open_dict(config):
        for old_name, name in renamed().items():
            if old_name in config:
                value = config.pop(old_name)
                if name not in typed_keys:
                    config[name] = value


def plain(node: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """`node` as a dict of plain values, its interpolations resolved."""
    if isinstance(node, DictConfig):
        return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return dict(node)


def build(kind: type[T], node: Mapping[str, Any] | DictConfig, key: str) -> T:
    """The dataclass `kind` from `node`, the config group at `key`.

    Unknown, missing and mistyped values, and those out of range, raise ConfigError.
    """
    return kind(**typed(kind, node, key))


def typed(
    kind: Callable[..., Any],
    node: Mapping[str, Any] | DictConfig,
    key: str,
    *,
    given: Iterable[str] = (),
    beside: Iterable[str] = (),
    partial: bool = False,
) -> dict[str, Any]:
    """The arguments of `kind` (a dataclass, or any class with annotated parameters) from `node`.

    `given`: parameters that the caller passes itself. `beside`: keys beside these that error
    messages may suggest. `partial`: leave out keys that `node` does not have. Raises ConfigError.
    """
    if not isinstance(node, Mapping | DictConfig):
        raise ConfigError(f"{key}={node}: expected keys with values.")
    values = {name: value for name, value in plain(node).items() if name != "_target_"}
    parameters, open_ended = _parameters(kind)
    for name in given:
        parameters.pop(name, None)
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in parameters and not open_ended:
            hint = _hint(key, name, [*parameters, *beside])
            raise ConfigError(f"{prefix}{name}: unknown key.{hint}")
    for name, parameter in parameters.items():
        if partial and name not in values:
            continue
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty or value == MISSING:
            expected = describe(parameter.hint)
            raise ConfigError(f"{prefix}{name}: missing; set {prefix}{name}=… ({expected}).")
        values[name] = convert(value, parameter.hint, f"{prefix}{name}")
    return values


class _Parameter(NamedTuple):
    """A parameter of a class or function."""

    hint: Any
    """The annotated type; Any where there is no annotation."""
    default: Any
    """The default value; `inspect.Parameter.empty` where there is none."""


def varying(kind: type) -> set[str]:
    """The fields of the config dataclass `kind` that may differ between seeds: its `PerSeed`."""
    parameters, _ = _parameters(kind)
    return {name for name, parameter in parameters.items() if _varies(parameter.hint)}


def _varies(hint: Any) -> bool:
    """Whether the type `hint`, or one of a union, is `PerSeed`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(map(_varies, arguments))
    return VARIES in arguments


def _parameters(kind: Callable[..., Any]) -> tuple[dict[str, _Parameter], bool]:
    """The parameters of `kind` by name, and whether it takes any other keyword too."""
    function = kind.__init__ if isinstance(kind, type) else kind  # type: ignore[misc]
    annotated = kind if dataclasses.is_dataclass(kind) else function
    hints = typing.get_type_hints(annotated, include_extras=True)
    found = {}
    open_ended = False
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = _Parameter(hints.get(name, Any), parameter.default)
    return found, open_ended


def _hint(key: str, name: str, names: list[str]) -> str:
    """The end of the message about the unknown key `name` of the config group at `key`.

    It names the nearest of `names`, or else the options of the group that have such a key.
    """
    prefix = f"{key}." if key else ""
    if not key and group_files(name):
        header = "'# @package _global_'"
        return f" A file of conf/{name} begins with the line {header}; its keys are elsewhere."
    near = nearest(f"{prefix}{name}", [f"{prefix}{known}" for known in names])
    if near.startswith(" Did you mean"):
        return near
    options = options_with(key, name) if key else []
    if options:
        return f" It is a key of {', '.join(f'{key}={option}' for option in options[:3])}."
    return near


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as a value of the type `hint`; ConfigError where it has none.

    200k and 1e6 are whole numbers, and 8/255 is a number.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    kind = origin or hint
    if origin is Annotated:
        return _convert_ranged(value, hint, key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, key)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        kind = typing.cast(type, hint)
        return _named(kind, value, key) if "_target_" in value else build(kind, value, key)
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        (item_hint, *_) = typing.get_args(hint)
        return [convert(item, item_hint, key) for item in value]
    if kind in (list, tuple):
        raise ConfigError(f"{key}={value}: expected {describe(hint)}.")
    if hint is int and not isinstance(value, bool):
        value = _whole(value, key)
    if hint in (float, str) and type(value) is int:
        return hint(value)  # checkpoint=20000
    if hint is float:
        value = _fraction(value)
    if isinstance(kind, type) and type(value) is not kind:
        raise ConfigError(f"{key}={value}: expected {describe(hint)}, not {describe(type(value))}.")
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: expected a finite number.")
    return value


def _named(base: type[T], node: Mapping[str, Any], key: str) -> T:
    """The dataclass that `node._target_` names, a subclass of `base`, from `node`."""
    kind = load_class(node, key, base)
    try:
        return build(kind, node, key)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's class raises
        problem = f"cannot be made: {describe_error(error)}"
        raise ConfigError(f"{key}._target_={node['_target_']}: {problem}.") from error


def _whole(value: Any, key: str) -> Any:
    """A number, or text like 200k, as a whole number; any other value unchanged."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)([kM])", value)
        if match:
            return int(match[1]) * {"k": 1_000, "M": 1_000_000}[match[2]]  # steps=200k
    if not isinstance(value, (int, float)):
        return value
    if abs(value) >= 1 << 53:
        raise ConfigError(f"{key}={value:g}: too large a number.")
    if not float(value).is_integer():
        raise ConfigError(f"{key}={value}: expected a whole number.")
    return int(value)  # steps=1e6


def _fraction(value: Any) -> Any:
    """Text like 8/255 as a number; any other value unchanged."""
    if isinstance(value, str) and re.fullmatch(r"\d+/0*[1-9]\d*", value):
        return float(Fraction(value))
    return value


def _convert_union(value: Any, hint: Any, key: str) -> Any:
    """`value` as a value of the first type of the union `hint` that can be made of it."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    optional = len(options) < len(typing.get_args(hint))
    if value is None and optional:
        return None
    only = options[0]
    has_keys = dataclasses.is_dataclass(only) and isinstance(value, Mapping)
    is_of_numbers = only is float or typing.get_origin(only) is Annotated
    has_range = is_of_numbers and isinstance(value, int | float)
    if len(options) == 1 and (has_keys or has_range):
        # Its message is about one of the keys, or about the range.
        return convert(value, only, key)
    same_kind = [option for option in options if typing.get_origin(option) is type(value)]
    if same_kind:
        return convert(value, same_kind[0], key)  # a list: its message is about one of the items
    for option in options:
        with suppress(ConfigError):
            return convert(value, option, key)
    raise ConfigError(f"{key}={value}: expected {describe(hint)}, not {describe(type(value))}.")


def _convert_ranged(value: Any, hint: Any, key: str) -> Any:
    """`value` as a value of the annotated type `hint`, within the ranges of the annotation.

    Where the number may differ between seeds, a list of them is converted one by one.
    """
    kind, *marks = typing.get_args(hint)
    if VARIES in marks and isinstance(value, (list, tuple)) and value:
        return [_convert_ranged(number, hint, key) for number in value]
    number = convert(value, kind, key)
    for allowed in marks:
        if allowed is not VARIES and number not in allowed:
            raise ConfigError(f"{key}={value}: must be {allowed}.")
    return number


def describe(hint: Any) -> str:
    """The type `hint` in words, as in "a whole number, at least 1"."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a word",
        type(None): "null",
        dict: "keys with values",
        list: "a list",
    }
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Annotated:
        kind, *marks = arguments
        return ", ".join([describe(kind), *map(str, marks)])
    if origin is dict:
        return names[dict]
    if origin in (list, tuple):
        return "a list, each " + describe(arguments[0])
    if arguments:
        return " or ".join(describe(argument) for argument in arguments)
    if dataclasses.is_dataclass(hint):
        return names[dict]
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def choice(value: str, allowed: Iterable[str], key: str) -> str:
    """`value` if it is one of `allowed`, else ConfigError."""
    names = list(allowed)
    if value not in names:
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
        raise ConfigError(
            f"{key}._target_: missing; it names the class, as in 'package.module.Class'."
        )
    try:
        found = pkgutil.resolve_name(str(target))
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"{key}._target_={target}: cannot be imported ({type(error).__name__}: {error})."
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        expected = f"{base.__module__}.{base.__qualname__}"
        raise ConfigError(f"{key}._target_={target}: expected a subclass of {expected}.")
    return found
