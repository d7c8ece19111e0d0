"""What can be wrong, and the nearest valid name.

ConfigError     the user asked for something impossible          exit code 2
RunError        a run cannot go on                               exit code 1
Interrupted     somebody told rlx to stop (a KeyboardInterrupt)  exit code 128 + the signal
"""

import difflib
import signal
from collections.abc import Iterable, Sequence

from rlx.conf import synonyms


class ConfigError(Exception):
    """The user asked for something impossible; the message says what, where, and what would do."""

    code = 2


class RunError(Exception):
    """A run cannot go on; the message says why."""

    code = 1


class Interrupted(KeyboardInterrupt):
    """A signal told rlx to stop: no failure, and nothing that stands behind it is begun.

    It is no Exception, so that Hydra's sweeps end with it too.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + (number or signal.SIGINT)


def nearest(word: object, choices: Iterable[object]) -> str:
    """The end of an error message: the name that was probably meant.

    Where none is near, all of them, unless they are many.
    """
    names = [str(choice) for choice in choices]
    meant = closest(str(word), names)
    if meant is not None:
        return f" Did you mean '{meant}'?"
    return f" Choose from: {', '.join(sorted(names))}." if 0 < len(names) <= 20 else ""


def closest(word: str, names: Sequence[str]) -> str | None:
    """Which of `names` was probably meant by `word`, if any.

    In this order: the same name in another group or case, what another library calls so, the
    same name but for some letters (of dotted names: in the same group, then anywhere).
    """
    group, _, last = word.lower().rpartition(".")
    same = [name for name in names if name.lower().rpartition(".")[2] == last]
    if same:
        return same[0]
    for key in [*synonyms().get(word.lower(), ()), *synonyms().get(last, ())]:
        _, dot, end = key.rpartition(".")
        for name in names:
            if name == key or (dot and group and name == f"{group}.{end}"):
                return name
    if group:
        inside = {name.lower().removeprefix(f"{group}."): name for name in names}
        inside = {rest: name for rest, name in inside.items() if name.lower() != rest}
        near = difflib.get_close_matches(last, inside, n=1)
        return inside[near[0]] if near else None
    lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(last, lower, n=1)
    if not near:
        lower = {name.lower().rpartition(".")[2]: name for name in reversed(names)}
        near = difflib.get_close_matches(last, lower, n=1, cutoff=0.8)
    return lower[near[0]] if near else None
