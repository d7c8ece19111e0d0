"""How fast something is: steps per second, and milliseconds of single calls."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def steps_per_s(step: Callable[[], int], seconds: float) -> float:
    """How many environment steps per second repeated calls of `step` make.

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


def watch(owner: Any, names: Sequence[str], device: "torch.device") -> dict[str, list[float]]:
    """The milliseconds that each call of the methods `names` of `owner` takes from now on."""
    times: dict[str, list[float]] = {}
    for name in names:
        times[name] = []
        setattr(owner, name, _watched(getattr(owner, name), times[name], device))
    return times


def _watched(
    method: Callable[..., Any], times: list[float], device: "torch.device"
) -> Callable[..., Any]:
    """`method`, which adds the milliseconds that it took to `times`."""

    def call(*args: Any) -> Any:
        wait(device)
        began = time.perf_counter()
        result = method(*args)
        wait(device)
        times.append(1e3 * (time.perf_counter() - began))
        return result

    return call
