"""Arrays of anybody, in npy and npz files: checked before memory is taken, never unpickled."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from rlx.errors import ConfigError
from rlx.machine import free_memory
from rlx.names import one_line

NUMBERS = "biuf"
"""Kinds of dtypes that are numbers: bool, int, unsigned int, float."""
_HEAD = 1 << 16
"""Bytes that a header may take; numpy would first read as many as the file says."""
_AT_ONCE = 1 << 26
"""Bytes of a mapped array that are looked at together."""
MOST_ACTIONS = 1 << 16
"""Actions of a Discrete space; larger numbers would be counted in as large a table."""


def mapped(path: Path, location: str) -> np.ndarray:
    """The array of a npy file, mapped into memory and not read.

    `location`: the name of the array in errors. ConfigError if the file is missing or does not hold
    the numbers that it claims.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            header = _read_header(file.read(_HEAD), path.stat().st_size)
        return np.memmap(path, header.dtype, "r", header.size, header.shape, header.order)
    except Exception as error:  # numpy's parser raises anything at a broken header
        raise ConfigError(f"{location}: missing, cut or no npy file ({in_words(error)}).") from None


def archived(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that a npz file has, read into memory.

    ConfigError if the file is missing or does not hold the numbers that it claims.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            held = [name for name in names if f"{name}.npy" in members]
            size = sum(members[f"{name}.npy"].file_size for name in held)
            require_memory(2 * size, str(path))
            return {name: _member(archive, members[f"{name}.npy"], name) for name in held}
    except ConfigError:
        raise
    except Exception as error:  # of zipfile, its decompressors or numpy's parser: anything
        raise ConfigError(f"{path}: unreadable, perhaps truncated ({in_words(error)}).") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        with archive.open(member) as file:
            _read_header(file.read(_HEAD), member.file_size)
        with archive.open(member) as file:
            return npy.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None


class _Header(NamedTuple):
    """What npy data says of its numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]
    order: Any
    """C or F: in which order they lie."""
    size: int
    """Bytes before the numbers."""


def _read_header(head: bytes, size: int) -> _Header:
    """The header of npy data of `size` bytes that begins with `head`.

    ValueError unless exactly the numbers that it claims follow.
    """
    file = io.BytesIO(head)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"npy format {version[0]}.{version[1]}; numbers have 1.0")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which rlx does not load; save it as numbers")
    if dtype.kind not in NUMBERS:
        raise ValueError(f"it holds {dtype}, not numbers")
    claimed = math.prod(shape) * dtype.itemsize
    held = size - file.tell()
    if min(shape, default=0) < 1:
        raise ValueError(f"its shape is {list(shape)}; expected at least one row")
    if claimed != held:
        raise ValueError(f"it claims {list(shape)} {dtype}, {claimed:,} bytes, and has {held:,}")
    return _Header(dtype, shape, "F" if fortran else "C", file.tell())


def in_words(error: Exception) -> str:
    """The text of an error on one line, or its type where it has no text."""
    return one_line(error) or type(error).__name__


def require_memory(size: int, location: str) -> None:
    """ConfigError, with `location`, unless `size` bytes are free."""
    free = free_memory()
    if size > free:
        sizes = f"{size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        raise ConfigError(f"{location}: reading it takes {sizes}; write it in smaller parts.")


def batch_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that logged numbers of `dtype` have in a batch.

    It is float32 for floats; integers keep theirs, in this machine's byte order.
    """
    return np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")


def cast(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """`array` as `dtype`; numbers beyond it become infinite, for `check_finite` to find."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def check_finite(array: np.ndarray, location: str) -> None:
    """ConfigError, with `location`, at the first row of `array` [N, …] not finite as float32."""
    if array.dtype.kind != "f":
        return
    rows = max(1, _AT_ONCE // array[0].nbytes)
    for begin in range(0, len(array), rows):
        part = cast(array[begin : begin + rows], np.float32)
        is_finite = np.isfinite(part).reshape(len(part), -1).all(1)
        if not is_finite.all():
            row = begin + int(np.argmin(is_finite))
            raise ConfigError(f"{location}: row {row:,} is not finite as float32.")


def check_action_numbers(action: np.ndarray, location: str) -> None:
    """ConfigError, with `location`, if a whole number [N] is no action of a Discrete space."""
    low, high = int(action.min()), int(action.max())
    if low < 0 or high >= MOST_ACTIONS:
        raise ConfigError(
            f"{location} reaches from {low} to {high}; expected 0 to {MOST_ACTIONS - 1:,}."
        )


def flags(array: np.ndarray, location: str) -> np.ndarray:
    """bool [N] of numbers [N]; ConfigError, with `location`, where one is neither 0 nor 1."""
    if not np.isin(array, (0, 1)).all():
        raise ConfigError(f"{location} has other numbers than 0 and 1 in it.")
    return array.astype(bool)
