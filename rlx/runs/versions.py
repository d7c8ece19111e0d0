"""The versions of rlx and its packages, and the machine, that a run was made with."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rlx
from rlx.machine import cpu_name

PACKAGES = ("torch", "gymnasium", "numpy", "hydra-core")


def versions() -> dict[str, Any]:
    """The part of meta.json about rlx, Python, the machine and the packages."""
    return {
        "rlx": rlx.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "cpu": cpu_name(),
        "gpu": _gpu_name(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def origin() -> dict[str, Any]:
    """The part of meta.json on how a run came about: nothing where Hydra has composed nothing.

    `line`: its command line; `choices`: the option of each config group.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    # Hydra escapes 0:5.
    words = [word.lstrip("+").replace("\\:", ":") for word in hydra.overrides.task]
    options = {group: name for group, name in hydra.runtime.choices.items() if "/" not in group}
    return {"line": shlex.join(["rlx", str(hydra.job.config_name), *words]), "choices": options}


def _gpu_name() -> str | None:
    """The model of the GPU; None where there is none, or where nobody has asked for torch yet."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def project_commit() -> str | None:
    """The commit of the checkout in which the user stands, as `_commit` tells rlx's."""
    try:
        # Not what is untracked: outputs/ may be, and grows with every run.
        return _state(Path.cwd(), "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> str | None:
    """The commit of rlx's source, "+" appended where it was changed; None outside a checkout."""
    checkout = Path(rlx.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        return _state(checkout, "--", "rlx", "conf")
    except (OSError, subprocess.CalledProcessError):
        return None


def _state(checkout: Path, *arguments: str) -> str:
    """The commit of a checkout, "+" appended where `git status` with `arguments` names changes."""
    commit = _git(checkout, "rev-parse", "--short", "HEAD")
    changes = _git(checkout, "status", "--porcelain", *arguments)
    return f"{commit}+" if changes else commit


def _git(checkout: Path, *arguments: str) -> str:
    """The output of a git command in the folder `checkout`; raises where it fails."""
    command = ["git", *arguments]
    finished = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return finished.stdout.strip()
