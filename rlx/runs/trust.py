"""Signatures of runs' configs, as Jupyter signs notebooks: they tell the runs that were made here.

A run that somebody else made is data. A class that it names is imported only where it is rlx's own,
where the user's conf/ names it too, where the run carries this user's signature, or by trust=true.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlx.conf import user_dir

OWN = tuple(
    f"rlx.{part}." for part in ("agents", "envs", "attacks", "robustness", "defences", "trackers")
)
"""The beginnings of the names of rlx's own classes."""


def signature(text: str) -> str | None:
    """The signature of `text` by this user's secret; None where no secret can be kept."""
    secret = _secret()
    if secret is None:
        return None
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def is_signed(text: str, given: object) -> bool:
    """Whether `given` is this user's signature of `text`."""
    expected = signature(text)
    if expected is None or not isinstance(given, str):
        return False
    return hmac.compare_digest(expected.encode(), given.encode())


def imports(config: Any) -> Iterator[str]:
    """The names that a config makes Python import, those of rlx's own classes left out.

    These are the classes that `_target_` names, the modules of Gymnasium ids ("module:Env-v0"), and
    the Python files of victims.
    """
    if isinstance(config, list):
        for value in config:
            yield from imports(value)
    if not isinstance(config, Mapping):
        return
    for key, value in config.items():
        if key == "_target_":
            if not str(value).startswith(OWN):
                yield str(value)
        elif key == "id" and isinstance(value, str) and ":" in value:
            if not value.startswith(OWN):
                yield value.partition(":")[0]
        elif key == "victim":
            names = value if isinstance(value, list) else [value]
            yield from (str(name) for name in names if ".py:" in str(name))
        else:
            yield from imports(value)


def users_imports() -> set[str]:
    """The names in the files of the user's conf/: classes, and modules of Gymnasium ids."""
    folder = user_dir()
    if folder is None:
        return set()
    text = "\n".join(file.read_text() for file in folder.rglob("*.yaml"))
    # At the beginning of a line, or within braces.
    targets = re.findall(r"(?:^\s*|[{,]\s*)_target_:\s*['\"]?([\w.:]+)", text, re.MULTILINE)
    modules = re.findall(r"(?:^\s*|[{,]\s*)id:\s*['\"]?([\w.]+):", text, re.MULTILINE)
    return {*targets, *modules}


def _secret() -> bytes | None:
    """32 bytes that only this user knows, made when first asked for."""
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    file = Path(home, "rlx", "secret")
    try:
        if not file.exists():
            _make_secret(file)
        return file.read_bytes()
    except OSError:
        return None


def _make_secret(file: Path) -> None:
    """Write new random bytes to `file`, which nobody else may read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".secret.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(secrets.token_bytes(32))
    try:
        with suppress(FileExistsError):
            os.link(aside, file)  # the first of two processes wins
    finally:
        aside.unlink()
