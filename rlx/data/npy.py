"""Arrays of anybody, in npy and npz files: checked before memory is taken, never unpickled."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from rlx.errors import ConfigError
from rlx.machine import free_memory

NUMBERS = "biuf"
"""Kinds of dtypes that are numbers: bool, int, unsigned int, float."""
_HEAD = 1 << 16
"""Bytes that a header may take; numpy would first read as many as the file says."""
_AT_ONCE = 1 << 26
"""Bytes of a mapped array that are looked at together."""


def mapped(path: Path, where: str) -> np.ndarray:
    """The array of a npy file, mapped into memory and not read.

    ConfigError, with `where`, if the file is missing or does not hold the numbers that it claims.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            dtype, shape, order, begin = _header(file.read(_HEAD), path.stat().st_size)
        return np.memmap(path, dtype, "r", begin, shape, order)
    except Exception as error:  # what a broken header does in numpy's parser can be anything
        raise ConfigError(f"{where}: missing, cut or no npy file ({_text(error)}).") from None


def archived(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that a npz file has, read; ConfigError as for `mapped`."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            own = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
            require_memory(2 * sum(member.file_size for member in own.values()), str(path))
            return {name: _member(archive, member, name) for name, member in own.items()}
    except ConfigError:
        raise
    except Exception as error:  # of zipfile, its decompressors or numpy's parser: anything
        raise ConfigError(f"{path}: unreadable, perhaps truncated ({_text(error)}).") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        with archive.open(member) as file:
            _header(file.read(_HEAD), member.file_size)
        with archive.open(member) as file:
            return npy.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None


def _header(head: bytes, size: int) -> tuple[np.dtype, tuple[int, ...], Any, int]:
    """(dtype, shape, order, where the numbers begin) of npy data of `size` bytes.

    It begins with `head`. ValueError unless exactly the numbers that it claims follow.
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
    claimed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 1:
        raise ValueError(f"its shape is {list(shape)}; expected at least one row")
    if claimed != held:
        raise ValueError(f"it claims {list(shape)} {dtype}, {claimed:,} bytes, and has {held:,}")
    return dtype, shape, "F" if fortran else "C", file.tell()


def _text(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_memory(size: int, where: str) -> None:
    """ConfigError, with `where`, unless `size` bytes are free."""
    free = free_memory()
    if size > free:
        sizes = f"{size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        raise ConfigError(f"{where}: reading it takes {sizes}; write it in smaller parts.")


def shown_dtype(dtype: np.dtype) -> np.dtype:
    """What numbers of this dtype are cast to: float32, or integers in this machine's byte order."""
    return np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")


def cast(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """`array` as `dtype`; numbers beyond it become infinite, for `check_finite` to find."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def check_finite(array: np.ndarray, where: str) -> None:
    """ConfigError, with `where`, at the first row of `array` [N, ...] not finite as float32."""
    if array.dtype.kind != "f":
        return
    rows = max(1, _AT_ONCE // array[0].nbytes)
    for begin in range(0, len(array), rows):
        part = cast(array[begin : begin + rows], np.float32)
        good = np.isfinite(part).reshape(len(part), -1).all(1)
        if not good.all():
            row = begin + int(np.argmin(good))
            raise ConfigError(f"{where}: row {row:,} is not finite as float32.")
