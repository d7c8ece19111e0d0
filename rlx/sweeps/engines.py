"""Hydra's launchers, which carry the jobs of a sweep: what each needs, and how it is stopped.

A launcher is a plugin of Hydra's (https://hydra.cc/docs/plugins/joblib_launcher and its
neighbours). rlx writes no scheduler: it only asks whether the one that was named is there.
"""

import importlib.util
import multiprocessing
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from rlx.errors import ConfigError, Interrupted


class Engine(NamedTuple):
    """What a launcher needs."""

    extra: str
    """The extra of rlx's that installs it."""
    package: str
    """Its package."""
    slurm: bool = False
    """Whether it needs a Slurm that answers."""


_ENGINES = {
    "joblib": Engine("joblib", "hydra_joblib_launcher"),
    "submitit_local": Engine("slurm", "hydra_submitit_launcher"),
    "submitit_slurm": Engine("slurm", "hydra_submitit_launcher", slurm=True),
    "ray": Engine("ray", "hydra_ray_launcher"),
    "ray_aws": Engine("ray", "hydra_ray_launcher"),
}
PING_S = 60
"""Seconds that Slurm's controller has for an answer."""
_KEY = "hydra/launcher="
_stopped = False
"""Whether this process, one of a pool, was told to stop: it begins no more jobs."""


def require(words: Sequence[str]) -> None:
    """ConfigError where the launcher that a command line names cannot be here."""
    name = named(words)
    engine = _ENGINES.get(name)
    if engine is None:
        return
    if not _is_installed(engine.package):
        raise ConfigError(f'{_KEY}{name}: is not installed; pip install "rlx[{engine.extra}]"')
    if engine.slurm:
        _require_slurm(f"{_KEY}{name}")


def _require_slurm(key: str) -> None:
    """ConfigError where the machine has no Slurm, or where its controller does not answer."""
    here = "hydra/launcher=submitit_local runs the jobs here."
    if shutil.which("sbatch") is None:
        raise ConfigError(f"{key}: no Slurm on this machine (sbatch is not on the PATH); {here}")
    said = f"nothing within {PING_S} s"
    with suppress(subprocess.TimeoutExpired):
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=PING_S)
        if ping.returncode == 0:
            return
        said, *_ = [*(ping.stdout + ping.stderr).splitlines(), "nothing"]
    raise ConfigError(f"{key}: Slurm does not answer (scontrol ping: {said}); {here}")


def _is_installed(package: str) -> bool:
    """Whether a plugin of Hydra's is there."""
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # there is no plugin at all
        return False


def named(words: Sequence[str]) -> str:
    """The launcher that a command line names."""
    names = [word.removeprefix(_KEY) for word in words if word.startswith(_KEY)]
    return names[-1] if names else "basic"


def is_elsewhere(name: str) -> bool:
    """Whether the launcher of this name does jobs in other processes, and may fail by itself."""
    return name in _ENGINES


@contextmanager
def stopping(name: str) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the jobs of the launcher `name`, begun within the context.

    The processes of a pool are told, and save what they have; joblib itself would kill them. The
    second signal ends it at once. Slurm's jobs go on, and the message says so.
    """
    if name == "submitit_slurm":
        try:
            yield
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            message = "Slurm goes on with its jobs: squeue --me lists them, scancel stops them"
            raise Interrupted(number, message) from None
        return
    if name != "joblib":
        yield
        return
    told: list[int] = []

    def tell(number: int, frame: Any) -> None:
        if told:
            raise Interrupted(number, "stopped at once: what was learnt since a checkpoint is lost")
        told.append(number)
        for process in multiprocessing.active_children():
            process.terminate()

    former_handlers = {}
    with suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            former_handlers[number] = signal.signal(number, tell)
    try:
        yield
    except Exception:  # a process that was told before it could listen is missing in the pool
        if not told:
            raise
    finally:
        for number, handler in former_handlers.items():
            signal.signal(number, handler)
    if told:
        raise Interrupted(told[0], "")


@contextmanager
def in_pool() -> Iterator[bool]:
    """Whether this process may begin a job, which is begun within the context.

    In a process of a pool, what interrupts the job ends here: raised, it would make joblib kill the
    other processes, which are saving.
    """
    global _stopped
    if not multiprocessing.current_process().name.startswith("LokyProcess-"):
        yield True
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _told_to_stop)
    try:
        yield not _stopped
    except KeyboardInterrupt:
        _stopped = True


def one_line(error: Exception) -> str:
    """What a launcher raised, on one line, without the colours that Ray puts into it."""
    first, *_ = [*re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}"


def _told_to_stop(number: int, frame: Any) -> None:
    """End the job of this process as a signal does; the signal may come once more by the parent."""
    global _stopped
    first = not _stopped
    _stopped = True
    if first:
        raise Interrupted(number, "")


def hand_on(error: Interrupted) -> None:
    """Hand a signal to the handler of a scheduler, which had to wait for the checkpoint.

    submitit's queues the job again, ahead of its time limit, and ends this process; that of a Ray
    worker ends it, and Ray begins the job elsewhere.
    """
    if error.number not in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        return
    handler = signal.getsignal(error.number)
    if callable(handler) and not handler.__module__.startswith("rlx."):
        signal.raise_signal(error.number)
