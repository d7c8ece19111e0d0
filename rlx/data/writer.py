"""Writing data sets: whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy

from rlx.data.episodes import Episodes
from rlx.data.facts import FORMAT
from rlx.data.npy import cast, check_finite
from rlx.errors import ConfigError
from rlx.runs.files import hidden_sibling, make_aside, sync, sync_folder


class Writer:
    """Writes our own format (episodes.py), an episode at a time; the folder appears at the end.

    As a context manager it removes what is half-written, should anything end before.
    """

    def __init__(self, out: str, source: str | None = None):
        """`source`: the name of the set in errors, where `out` would tell nobody anything.

        ConfigError where the folder `out` exists or cannot be made.
        """
        self.out = Path(out)
        self.source = source
        self.key = f"{source}, a copy of it" if source else f"out={out}"
        check_new(out, self.key)
        self._open = ExitStack()
        self.partial = self._open.enter_context(new_folder(self.out, self.key))
        self.arrays: dict[str, _GrowingArray] = {}
        self.transitions = 0
        self.episodes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(
        self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: bool
    ) -> None:
        """One episode of T steps: obs [T + 1, *O], action [T, …], reward [T]."""
        rows = {
            "obs": obs,
            "action": action,
            "reward": cast(reward, np.float32),
            "length": np.array([len(action)], np.int64),
            "terminated": np.array([terminated]),
        }
        self.transitions += len(action)
        for name in ("obs", "action", "reward"):
            location = f"{self.source or 'the env'}: {name} of episode {self.episodes}"
            check_finite(rows[name], location)
        self.episodes += 1
        with disk_errors(self.key):
            for name, values in rows.items():
                if name not in self.arrays:
                    self.arrays[name] = _GrowingArray(self.partial / f"{name}.npy", values)
                self.arrays[name].append(values)

    def close(self, env: Mapping[str, Any], stack: int, sources: list[str]) -> Episodes:
        """Finish the data set, and open it. The arguments go to data.json."""
        facts = {"format": FORMAT, "env": env, "stack": stack, "sources": sources}
        with disk_errors(self.key):
            for array in self.arrays.values():
                array.close()
            (self.partial / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
        self._open.close()
        return Episodes(self.out, self.source)


class _GrowingArray:
    """A npy file that is appended to.

    Numpy's header leaves room for the number of rows, which is known at the end only.
    """

    def __init__(self, path: Path, like: np.ndarray):
        """`like`: rows [N, …] of the file's shape and dtype; they are not written."""
        self.file = path.open("wb")
        self.rows = 0
        self.row_shape = like.shape[1:]
        self.dtype = like.dtype
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        assert values.shape[1:] == self.row_shape and values.dtype == self.dtype
        self.file.write(np.ascontiguousarray(values))  # type: ignore[arg-type]
        self.rows += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        header = {
            "descr": npy.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.row_shape),
        }
        npy.write_array_header_1_0(self.file, header)


def check_new(out: str, key: str) -> None:
    """ConfigError where a data set cannot be collected into the folder `out`, since it exists."""
    if out.startswith("minari:"):
        raise ConfigError(f"out={out}: collect into a folder, then: rlx data FOLDER out={out}")
    if os.path.lexists(out):
        raise ConfigError(f"{key}: exists already; choose another name or delete it.")


@contextmanager
def new_folder(out: Path, key: str) -> Iterator[Path]:
    """An empty folder to write in: it takes the name `out` at the end, and is removed on any error.

    `key`: the setting that errors name, such as "out=set". ConfigError where `out` exists or cannot
    be made.
    """
    check_new(str(out), key)
    target = Path(os.path.abspath(out))
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        with disk_errors(key):
            partial = make_aside(target)
        yield partial
        with disk_errors(key):
            sync_folder(partial)
            partial.rename(target)
            sync(target.parent)
    except BaseException:
        shutil.rmtree(hidden_sibling(target, "partial"), ignore_errors=True)
        for folder in missing:  # parents that were made for it, the innermost first
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def disk_errors(key: str) -> Iterator[None]:
    """Within it an error of the disk is a ConfigError that names `key`, the setting to change."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}: cannot be written ({reason}).") from None
