"""How fast something is: clocks, and how often a step is made in so many seconds."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Clock = Callable[[], float]
"""Seconds since some moment."""


def clock(name: str) -> Clock:
    """The clock `cpu`, which counts this process's work alone, or `wall`."""
    return time.process_time if name == "cpu" else time.perf_counter


def steps_per_s(step: Callable[[], int], seconds: float) -> float:
    """How many steps per second repeated calls of `step` make.

    Each call returns how many steps it made. They are timed for so many `seconds`, after a fifth of
    these as a warm-up.
    """
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end:
        step()
    count = 0
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        count += step()
    return count / (time.perf_counter() - began)


def wait(device: "torch.device") -> None:
    """Wait until a GPU has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
