"""A search space: which values of which keys a tuning tries."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlx.agent import Agent
from rlx.config import build, load_class, plain, varying
from rlx.errors import ConfigError
from rlx.training.config import validated

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 4
"""Significant digits of a number that is tried: more say nothing about an agent."""


@dataclass(frozen=True)
class Span:
    """A range of numbers, as conf/search has it."""

    low: float
    """The lowest number."""
    high: float
    """The highest number."""
    log: bool = False
    """Whether each order of magnitude is as likely as another."""


@dataclass(frozen=True)
class Space:
    """The keys that a tuning tries values of: a range of each, or a list of choices."""

    axes: dict[str, Span | list[Any]]
    """By dotted key, as in "agent.learning_rate"."""
    whole: frozenset[str]
    """The keys that take whole numbers."""
    shaping: tuple[str, ...]
    """The keys that two trials of one batch must agree on, since they change shapes."""

    @classmethod
    def of(cls, node: Mapping[str, Any], config: DictConfig) -> "Space":
        """The config group `search` for trainings of the validated `config`.

        ConfigError where it names a key that they do not have, or a value that a key does not take.
        """
        if not isinstance(node, Mapping):
            raise ConfigError(f"search={node}: expected keys with values.")
        axes: dict[str, Span | list[Any]] = {}
        whole = set()
        for key, leaf in _leaves(plain(node), ""):
            if not key.startswith("agent.") and key != "num_envs":
                raise ConfigError(
                    f"search.{key}: is not searched; keys of the agent and num_envs are."
                )
            axis = _axis(leaf, key)
            axes[key] = axis
            ends = axis if isinstance(axis, list) else [axis.low, axis.high]
            typed = [OmegaConf.select(_with(config, {key: end}, "search."), key) for end in ends]
            if not isinstance(axis, list) and all(type(value) is int for value in typed):
                whole.add(key)
        if not axes:
            raise ConfigError("search: names no key; for example search.agent.discount=[0.9,0.99].")
        per_seed = varying(load_class(config.agent, "agent", Agent).config_type)
        shaping = [key for key in axes if key.removeprefix("agent.") not in per_seed]
        return cls(axes, frozenset(whole), tuple(shaping))

    def distributions(self) -> "dict[str, BaseDistribution]":
        """The space in Optuna's words."""
        from optuna import distributions as optuna

        found: dict[str, BaseDistribution] = {}
        for key, axis in self.axes.items():
            if isinstance(axis, list):
                found[key] = optuna.CategoricalDistribution([_word(value) for value in axis])
            elif key in self.whole:
                low, high = int(axis.low), int(axis.high)
                found[key] = optuna.IntDistribution(low, high, log=axis.log)
            else:
                found[key] = optuna.FloatDistribution(axis.low, axis.high, log=axis.log)
        return found

    def start(self, config: DictConfig) -> dict[str, Any]:
        """The values of `config` in Optuna's words, where the space has them."""
        found = {}
        for key, axis in self.axes.items():
            value = plain(config)["num_envs"] if key == "num_envs" else _of_agent(config, key)
            if isinstance(axis, list):
                inside = _word(value) in [_word(choice) for choice in axis]
            else:
                inside = isinstance(value, int | float) and axis.low <= value <= axis.high
            if inside:
                found[key] = _word(value)
        return found

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial of these `params`, which are Optuna's."""
        values: dict[str, Any] = {}
        for key, axis in self.axes.items():
            value = params[key]
            if isinstance(axis, list):
                value = next(choice for choice in axis if _word(choice) == value)
            elif key not in self.whole:
                value = min(max(float(f"{value:.{DIGITS}g}"), axis.low), axis.high)
            values[key] = value
        return values

    def config(self, base: DictConfig, params: Mapping[str, Any]) -> DictConfig:
        """The validated config of a trial of these `params`; ConfigError where it has none."""
        return _with(base, self.values(params))


def _of_agent(config: DictConfig, key: str) -> Any:
    """The value of a key of the agent."""
    return plain(config.agent).get(key.removeprefix("agent."))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Each dotted key of a search space, with its range or its choices."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not {"low", "high"} & set(value):
            yield from _leaves(value, f"{key}.")
        elif value is not None:  # null takes a key out
            yield key, value


def _axis(leaf: Any, key: str) -> Span | list[Any]:
    """A range or the choices of a key; ConfigError where it is neither."""
    if isinstance(leaf, list | tuple) and leaf:
        return list(leaf)
    if not isinstance(leaf, Mapping):
        raise ConfigError(f"search.{key}={leaf}: expected a list, or {{low: …, high: …}}.")
    span = build(Span, leaf, f"search.{key}")
    if not span.low < span.high:
        raise ConfigError(f"search.{key}.high={span.high:g}: must be above low={span.low:g}.")
    if span.log and not span.low > 0:
        raise ConfigError(f"search.{key}.low={span.low:g}: must be above 0 where log=true.")
    return span


def _with(config: DictConfig, values: Mapping[str, Any], prefix: str = "") -> DictConfig:
    """The validated config with other `values`; what is wrong is said of `prefix` and the key."""
    other = config.copy()
    for key, value in values.items():
        OmegaConf.update(other, key, value, force_add=True)
    try:
        return validated(other)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _word(value: Any) -> Any:
    """A choice as Optuna stores it: it knows numbers and words."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
