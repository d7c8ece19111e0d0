"""The machine: its CPU, free memory and free disk, and the compiler."""

import math
import os
import platform
import re
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from rlx.errors import ConfigError


def free_memory() -> float:
    """Free bytes of memory; infinitely many where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    available = next(line for line in lines if line.startswith("MemAvailable"))
    kibibytes = int(available.split()[1])
    return kibibytes * 1024


def cpu_name() -> str:
    """The CPU as the system names it."""
    with suppress(OSError):  # not Linux
        name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if name:
            return name[1]
    return platform.processor() or platform.machine()


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def existing_folder(root: str) -> Path:
    """The folder `root`, or the nearest of its parents that is there."""
    folder = Path(root).absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def memory_text() -> str:
    """The memory that this process has taken, and that torch has on a GPU, as in "1.2 GB"."""
    texts = []
    with suppress(OSError):  # not Linux
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        texts.append(f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB")
    torch = sys.modules.get("torch")  # this file is imported before torch is
    if torch is not None and torch.cuda.is_initialized():
        texts.append(f"GPU {torch.cuda.memory_reserved() / 1e9:.1f} GB")
    return ", ".join(texts)


def require_disk(root: str, size: int) -> None:
    """ConfigError unless the disk of the folder `root` has `size` bytes free."""
    free = shutil.disk_usage(existing_folder(root)).free
    if size > free:
        raise ConfigError(
            f"outputs={root}: checkpoints of this run take {size / 1e9:,.1f} GB of disk, "
            f"and {free / 1e9:,.1f} GB are free."
        )


def compiler() -> list[str]:
    """The C++ compiler and its options, as `CXX` names them."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]
