"""The machine: its CPU, free memory, free disk, compiler."""

import math
import os
import shlex
import shutil
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


def cpu_name() -> str | None:
    """The model of the CPU; None where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def require_disk(root: str, size: int) -> None:
    """ConfigError unless the disk of the folder `root` has `size` bytes free."""
    folder = Path(root).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise ConfigError(
            f"outputs={root}: checkpoints of this run take {size / 1e9:,.1f} GB of disk, "
            f"and {free / 1e9:,.1f} GB are free."
        )


def compiler() -> list[str]:
    """The C++ compiler and its options, as `CXX` names them."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]
