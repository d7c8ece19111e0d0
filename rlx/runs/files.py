"""Files: text and tensors that are whole or absent, their checksums, the room for them."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def write(file: Path, text: str) -> None:
    """Put `text` into `file`, whole or not at all."""
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text(text)
    aside.replace(file)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """As `write`."""
    write(file, json.dumps(plain(content), indent=1) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON has it, without NaN: null says that there is no such number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def numbers(value: Any) -> Any:
    """The inverse of `plain` where all values are numbers, words and truths: null is NaN."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return math.nan if value is None else value


def save_tensors(tensors: "dict[str, Tensor]", file: Path) -> None:
    """Write a safetensors file; OSError or SafetensorError where there is no room."""
    from safetensors.torch import save_file

    save_file(_separate(tensors), file)


def load_tensors(path: Path, checksum: str | None) -> "dict[str, Tensor]":
    """The tensors of a safetensors file; ConfigError where it is missing, truncated or of another checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        if sha256(path) != checksum:
            raise ConfigError(f"{path}: damaged; its checksum is not the one in state.json.")
        return tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path}: unreadable, perhaps truncated ({error}).") from None


def _separate(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Contiguous tensors of which no two share memory, as safetensors wants them; copies no more than it must."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def sha256(file: Path) -> str:
    """Its checksum, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_memory() -> float:
    """Bytes; infinitely many where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def require_room(root: str, size: int) -> None:
    """ConfigError where the disk of `root` has not `size` bytes free."""
    existing = next(
        folder
        for folder in (Path(root).absolute(), *Path(root).absolute().parents)
        if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    if size > free:
        raise ConfigError(
            f"outputs={root}: checkpoints of this run take {size / 1e9:,.1f} GB of disk, and {free / 1e9:,.1f} GB are free."
        )


def nearest_path(path: Path) -> str:
    """What to say of a `path` that does not exist: which one may have been meant."""
    import difflib

    if path.exists():
        return " It is a file."
    parent = next(p for p in path.parents if p.is_dir())
    missing, *rest = path.relative_to(parent).parts
    close = difflib.get_close_matches(missing, [p.name for p in parent.iterdir()], n=1)
    if not close:
        return f" '{parent}' exists, '{missing}' in it does not."
    whole = Path(parent, close[0], *rest)
    return f" Did you mean '{whole if whole.exists() else parent / close[0]}'?"
