"""Names in error messages: which was probably meant; dotted keys; a value, an error on one line."""

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx.conf import synonyms

SHOWN = 20
"""The most names that are listed where none is near; more would fill the screen."""

SHORTEST_BEGINNING = 3
"""The fewest letters that count as the beginning of a name."""
MOST_MEANT = 3
"""The most names that are offered as what was probably meant."""


def nearest(word: object, choices: Iterable[object]) -> str:
    """The end of an error message, with the name of `choices` that `word` probably meant.

    Where `word` is a part of it, as "episodes" of "eval_episodes", others too are told.
    Where no name is near, it lists all of them, unless they are many.
    """
    names = [str(choice) for choice in choices]
    meant = closest(str(word), names)
    if meant is not None:
        alike = _with_all_parts(str(word), meant, names)
        return f" Did you mean {' or '.join(repr(name) for name in alike)}?"
    if 0 < len(names) <= SHOWN:
        return f" Choose from: {', '.join(sorted(names))}."
    return ""


def closest(word: str, names: Sequence[str]) -> str | None:
    """The name of `names` that `word` probably meant; None where none is near.

    Tried in this order: the same name in another group or case; a name that another library calls
    `word`; the same name but for some letters (of dotted names: in the same group, then anywhere).
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


def describe_error(error: BaseException) -> str:
    """An exception on one line: its type, where in somebody's own code it was raised, its text."""
    libraries = (
        sysconfig.get_paths()["stdlib"],
        "site-packages",
        "<frozen",
        str(Path(__file__).parent),
    )
    location = ""
    for frame in traceback.extract_tb(error.__traceback__)[1:]:
        if not any(part in frame.filename for part in libraries):
            location = f" ({Path(frame.filename).name}:{frame.lineno})"
    return f"{type(error).__name__}{location}: {one_line(error)}".removesuffix(": ").rstrip(".")


def _with_all_parts(word: str, meant: str, names: Sequence[str]) -> list[str]:
    """`meant`, and the other names in its group with all parts of `word`, if it has them itself."""
    group = meant.rpartition(".")[0]
    parts = set(_last(word).split("_"))
    alike = [
        name
        for name in names
        if name.rpartition(".")[0] == group and parts <= set(_last(name).split("_"))
    ]
    return alike if meant in alike and len(alike) <= MOST_MEANT else [meant]


def _last(name: str) -> str:
    """The part of a dotted name behind its last dot, in lower case."""
    return name.lower().rpartition(".")[2]


def _synonym(word: str, names: Sequence[str]) -> str | None:
    """The name of `names` that another library calls `word`, with or without its group.

    `word` is in lower case. None where there is no such name.
    """
    group, _, last = word.rpartition(".")
    for key in [*synonyms().get(word, ()), *synonyms().get(last, ())]:
        _, dot, end = key.rpartition(".")
        for name in names:
            if name == key or (dot and group and name == f"{group}.{end}"):
                return name
    return None


def _similar(word: str, spellings: dict[str, str], cutoff: float = 0.6) -> str | None:
    """The name whose spelling is most like `word`; None where the likeness is below `cutoff`.

    `spellings`: spelling → name. One that goes on where `word` ends, as "cartpole" behind "cart",
    is nearer than any other; of several the shortest.
    """
    longer = [spelling for spelling in spellings if spelling.startswith(word)]
    if longer and len(word) >= SHORTEST_BEGINNING:
        return spellings[min(longer, key=len)]
    near = difflib.get_close_matches(word, spellings, n=1, cutoff=cutoff)
    return spellings[near[0]] if near else None
