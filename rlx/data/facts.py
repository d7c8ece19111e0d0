"""data.json: what a data set of ours says of itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlx.data.npy import require_memory
from rlx.errors import ConfigError

FORMAT = 1
"""Version of the format; written to data.json."""


class _Rule(NamedTuple):
    """What a value of data.json must be."""

    fits: Callable[[Any], bool]
    expected: str
    """In words, for errors."""


def read_facts(file: Path) -> dict[str, Any]:
    """The content of data.json; ConfigError where it is not what it should be."""
    try:
        if not file.is_file():
            raise ValueError("it is no file")
        require_memory(4 * file.stat().st_size, str(file))
        facts = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{file}: expected the keys format, env, stack and sources.")
    if facts.get("format") != FORMAT:
        version = _short(facts.get("format"))
        raise ConfigError(f"{file}: format {version}; this rlx reads format {FORMAT}.")
    for name, rule in _RULES.items():
        if name not in facts:
            raise ConfigError(f"{file}: {name} is missing; expected {rule.expected}.")
        if not rule.fits(facts[name]):
            value = _short(facts[name])
            raise ConfigError(f"{file}: {name}={value}; expected {rule.expected}.")
    return facts


def _constant(name: str) -> float:
    """A number that only Python's JSON has: an env may have infinite parameters, but no NaN."""
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_env(value: Any) -> bool:
    return isinstance(value, dict) and (value == {} or isinstance(value.get("_target_"), str))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_texts(value: Any) -> bool:
    """Whether it is a list of texts without the codes that would move a terminal's cursor."""
    if not isinstance(value, list):
        return False
    return all(isinstance(text, str) and text.isprintable() for text in value)


_RULES = {
    "env": _Rule(_is_env, "a config group env, or {}"),
    "stack": _Rule(_is_count, "a whole number from 1 on"),
    "sources": _Rule(_is_texts, "a list of texts"),
}
