"""Names in error messages: which one was probably meant; dotted keys; a value on one line."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlx.conf import synonyms

SHOWN = 20
"""So many names are listed where none is near; more would fill the screen."""


def nearest(word: object, choices: Iterable[object]) -> str:
    """The end of an error message: the one of `choices` that was probably meant by `word`.

    Where none is near, all of them, unless they are many.
    """
    names = [str(choice) for choice in choices]
    meant = closest(str(word), names)
    if meant is not None:
        return f" Did you mean '{meant}'?"
    if 0 < len(names) <= SHOWN:
        return f" Choose from: {', '.join(sorted(names))}."
    return ""


def closest(word: str, names: Sequence[str]) -> str | None:
    """Which of `names` was probably meant by `word`, if any.

    In this order: the same name in another group or case, what another library calls so, the
    same name but for some letters (of dotted names: in the same group, then anywhere).
    """
    group, _, last = word.lower().rpartition(".")
    same = [name for name in names if _last(name) == last]
    if same:
        return same[0]
    synonym = _synonym(word.lower(), names)
    if synonym is not None:
        return synonym
    if group:
        inside = [name for name in names if name.lower().startswith(f"{group}.")]
        return _similar(last, {name.lower().removeprefix(f"{group}."): name for name in inside})
    # Of several names in one spelling the first one counts.
    whole = {name.lower(): name for name in reversed(names)}
    ends = {_last(name): name for name in reversed(names)}
    return _similar(last, whole) or _similar(last, ends, cutoff=0.8)


def flatten_keys(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: {"agent": {"double": True}} becomes {"agent.double": True}.

    `prefix`: what each dotted key begins with.
    """
    if not isinstance(node, Mapping):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        dotted_key = f"{prefix}.{key}" if prefix else str(key)
        flat |= flatten_keys(value, dotted_key)
    return flat


def one_line(value: Any) -> str:
    """Any value as text of one line, cut after 300 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def _last(name: str) -> str:
    """The part of a dotted name behind its last dot, in lower case."""
    return name.lower().rpartition(".")[2]


def _synonym(word: str, names: Sequence[str]) -> str | None:
    """Which of `names` another library calls `word` (in lower case), with or without its group."""
    group, _, last = word.rpartition(".")
    for key in [*synonyms().get(word, ()), *synonyms().get(last, ())]:
        _, dot, end = key.rpartition(".")
        for name in names:
            if name == key or (dot and group and name == f"{group}.{end}"):
                return name
    return None


def _similar(word: str, spellings: dict[str, str], cutoff: float = 0.6) -> str | None:
    """The name of the spelling most like `word`; None where none is as like as `cutoff`."""
    near = difflib.get_close_matches(word, spellings, n=1, cutoff=cutoff)
    return spellings[near[0]] if near else None
