"""Files and folders that are whole or absent, tensors in files, and their checksums.

A file or folder `NAME` is written as `.NAME.partial` beside it and then renamed. Where a folder
replaces another, that one is called `.NAME.former` until the new one has the name.
"""

import difflib
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


def hidden_sibling(path: Path, role: str) -> Path:
    """The hidden name `.NAME.role` beside `path`, whose name is NAME."""
    return path.with_name(f".{path.name}.{role}")


def write(file: Path, text: str) -> None:
    """Put `text` into `file`, whole or not at all."""
    partial = hidden_sibling(file, "partial")
    partial.write_text(text)
    partial.replace(file)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Put `content` into `file` as JSON, whole or not at all."""
    write(file, json.dumps(to_json(content), indent=1) + "\n")


def to_json(value: Any) -> Any:
    """`value` as JSON can hold it: null stands for NaN and infinity, a list for a tensor."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`, where all values are numbers, texts and booleans: null is NaN."""
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return math.nan if value is None else value


def save_tensors(tensors: "dict[str, Tensor]", file: Path) -> None:
    """Write a safetensors file; OSError or SafetensorError where there is no room."""
    from safetensors.torch import save_file

    save_file(_separate(tensors), file)


def load_tensors(path: Path, checksum: str | None) -> "dict[str, Tensor]":
    """The tensors of a safetensors file.

    ConfigError where it is missing, truncated or of another checksum.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        is_intact = sha256(path) == checksum
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path}: unreadable, perhaps truncated ({error}).") from None
    if not is_intact:
        raise ConfigError(f"{path}: damaged; its checksum is not the one in state.json.")
    return tensors


def _separate(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors, contiguous and no two in the same memory, as safetensors wants them.

    Only tensors that are not so already are copied.
    """
    addresses: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        address = tensor.data_ptr()
        separate[name] = tensor.clone() if address in addresses else tensor
        addresses.add(address)
    return separate


def sha256(file: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_aside(path: Path) -> Path:
    """A new, empty folder beside `path`, to be filled and then renamed to `path`."""
    partial = hidden_sibling(path, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # a crash may have left it
    partial.mkdir(parents=True)
    return partial


def sync_folder(folder: Path) -> None:
    """Wait until a folder is on the disk, with all that is in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def replace_folder(partial: Path, path: Path) -> None:
    """Give the folder `partial` the name `path`; the folder of that name, if any, is deleted.

    A crash between the two renames leaves no `path`; `put_back` gives one of the two its name.
    """
    former = hidden_sibling(path, "former")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)  # a crash may have left it
        path.rename(former)
    partial.rename(path)
    sync(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def put_back(path: Path) -> None:
    """Mend what a crash in `replace_folder` left: no folder `path`, but two with hidden names.

    A replacement that is a run is whole, and gets the name `path`. Any other may lack files: then
    the folder that was to be replaced gets its name again.
    """
    if path.exists():
        return
    partial = hidden_sibling(path, "partial")
    former = hidden_sibling(path, "former")
    if (partial / "meta.json").exists():
        partial.rename(path)
    elif former.exists():
        former.rename(path)


def inside(run: Path, path: Path) -> Path:
    """`path`, which must lie in the folder `run`, links followed; ConfigError where it does not."""
    if not path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{run}: {path} leads out of the run.")
    return path


def nearest_path(path: Path) -> str:
    """The end of an error message about a `path` that does not exist: the path probably meant."""
    if path.exists():
        return " It is a file."
    parent = next(folder for folder in path.parents if folder.is_dir())
    missing, *names_below = path.relative_to(parent).parts
    names = [child.name for child in parent.iterdir()]
    close = difflib.get_close_matches(missing, names, n=1)
    if not close and parent == Path():  # which everybody knows to be there
        return ""
    if not close:
        return f" '{parent}' exists, '{missing}' in it does not."
    meant = Path(parent, close[0], *names_below)
    if not meant.exists():
        meant = parent / close[0]
    return f" Did you mean '{meant}'?"
