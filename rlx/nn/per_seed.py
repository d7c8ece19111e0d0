"""Settings that may differ between the seeds of a batch: one number, or a tensor [S].

A tensor [S] is a buffer that no checkpoint holds. So it goes wherever its module goes: seeds are
taken out of it and put beside others, and a compiled step reads it as it does any state.
"""

import dataclasses
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rlx.config import varying
from rlx.errors import ConfigError

C = TypeVar("C")


def add_numbers(module: nn.Module, **numbers: float | Tensor | None) -> None:
    """Give `module` an attribute for each of `numbers`, of which some may be of each seed, [S]."""
    for name, number in numbers.items():
        if isinstance(number, Tensor):
            # A copy: no two modules may write to the same memory.
            module.register_buffer(name, number.clone(), persistent=False)
        else:
            setattr(module, name, number)


def settings_of_seeds(config: C, seeds: Tensor, key: str) -> C:
    """The settings `config`, those at `key`, as an agent of `seeds` (int64 [S]) sees them.

    Lists with a number for each seed become tensors [S], float32 or int64, on the seeds' device.
    ConfigError where a list is of another length.
    """
    numbers = {}
    for name in varying(type(config)):
        value = getattr(config, name)
        if not isinstance(value, list):
            continue
        if len(value) != len(seeds):
            counts = f"{len(value)} values for {len(seeds)} seeds"
            raise ConfigError(f"{key}.{name}={value}: {counts}; give one number, or one for each.")
        numbers[name] = torch.tensor(value, device=seeds.device)
    return cast(C, _Settings(config, numbers)) if numbers else config


class _Settings(nn.Module):
    """A config dataclass, of which some fields are tensors [S]."""

    def __init__(self, config: Any, numbers: dict[str, Tensor]):
        super().__init__()
        self.kind = type(config)
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        add_numbers(self, **values | numbers)

    def __getattr__(self, name: str) -> Any:
        """What is no plain field: a tensor [S], or a method of the dataclass, on these settings."""
        if name in vars(self)["_buffers"]:
            return super().__getattr__(name)
        found = getattr(self.kind, name)
        return found.__get__(self) if hasattr(found, "__get__") else found
