"""Large buffers of a module: refused by name where the free memory cannot hold them."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rlx import machine
from rlx.errors import ConfigError

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name → (shape, dtype) of one row."""


def add_buffers(
    module: nn.Module,
    size: Sequence[int],
    fields: Fields,
    device: torch.device | str,
    setting: str,
    *,
    modules: int = 1,
) -> None:
    """Register a buffer of zeros [*size, *shape] in `module` for each of `fields`.

    `setting` ("agent.buffer_size=50000") decides how large they are. The ConfigError names it that
    is raised where the buffers of so many `modules` do not fit into the free memory. The memory is
    asked for first: a system promises more zeros than it has room for, and kills the process that
    writes to them.
    """
    device = torch.device(device)
    rows = torch.Size(size).numel()
    row_bytes = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in fields.values())
    needed = modules * rows * row_bytes
    free = free_memory(device)
    if needed > free:
        kind = "GPU memory" if device.type == "cuda" else "memory"
        raise ConfigError(
            f"{setting}: takes {needed / 1e9:,.1f} GB of {kind} for all seeds, and "
            f"{free / 1e9:,.1f} GB are free; make it smaller, or train fewer seeds at once."
        )
    for name, (shape, dtype) in fields.items():
        module.register_buffer(name, torch.zeros(*size, *shape, dtype=dtype, device=device))


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where the system does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()
