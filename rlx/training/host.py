"""What a step reads and changes in Python, beside tensors: a graph would do neither again."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_LEAVES = (torch.Tensor, torch.Generator, type, ModuleType, str, bytes, int, float, type(None))
"""What holds nothing that is looked into."""
_SCALARS = (bool, int, float, str, tuple, type(None))
"""What is compared by its value."""
_READ = (*_SCALARS, torch.Tensor)
"""What an attribute may be, of which it is noted that it was read; tensors at places are fake."""


class HostState:
    """All that can be reached from some objects and is no tensor, as it was when this was made."""

    def __init__(self, roots: Sequence[Any], **named: Any):
        """`named`: more objects, that have no names of their own."""
        self.held: list[tuple[str, Any, Any]] = []
        """(what it is called, a holder of values, what it held)."""
        self._seen: set[int] = set()
        self._draws = (random.getstate(), np.random.get_state())
        for root in roots:
            self._add(type(root).__name__, root)
        for what, value in named.items():
            self._add(what, value)

    def restore(self) -> str | None:
        """Make everything what it was; returns what was something else, or None."""
        changed = None
        for what, holder, before in self.held:
            after = _contents(holder)
            if not _same(before, after):
                changed = changed or _named(what, before, after)
                _fill(holder, before)
        draws = (random.getstate(), np.random.get_state())
        if not _same(self._draws, draws):
            changed = changed or "Python's random stream"
            random.setstate(self._draws[0])
            np.random.set_state(self._draws[1])
        return changed

    def _add(self, what: str, value: Any) -> None:
        """Remember `value`, and all that it holds."""
        if isinstance(value, _LEAVES) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, MethodType):
            self._add(what, value.__self__)
        elif isinstance(value, tuple):
            for one in value:
                self._add(what, one)
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                self._keep(what, cell)
        elif isinstance(value, dict | list | deque | set | np.ndarray | np.random.Generator):
            self._keep(what, value)
        elif hasattr(value, "__dict__"):
            self._keep(type(value).__name__, vars(value))
            for kind in type(value).__mro__:
                for name, shared in vars(kind).items():
                    if isinstance(shared, dict | list | deque | set) and name[:2] != "__":
                        self._add(f"{kind.__name__}.{name}", shared)

    def _keep(self, what: str, holder: Any) -> None:
        """Remember what `holder` holds."""
        contents = _contents(holder)
        self.held.append((what, holder, contents))
        if isinstance(contents, dict):
            for name, value in contents.items():
                self._add(f"{what}.{name}" if isinstance(name, str) else what, value)
        elif isinstance(contents, list):
            for value in contents:
                self._add(what, value)


class Reads:
    """The attributes that functions have read, and what they were: constants of their graphs."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        """(id of the owner, name) → (owner, name, value)."""

    @contextmanager
    def noted(self, owners: Sequence[Any]) -> Iterator[None]:
        """Note what is read of `owners` within the context."""
        known = set(self.values)
        kinds = [type(owner) for owner in owners]
        for owner, kind in zip(owners, kinds, strict=True):
            # Methods of `object` and not of the owner, which may be frozen.
            object.__setattr__(owner, "__class__", self._noting(kind))
        try:
            yield
        finally:
            for owner, kind in zip(owners, kinds, strict=True):
                object.__setattr__(owner, "__class__", kind)
            # What it is outside counts, where a function changes it and changes it back.
            for key in self.values.keys() - known:
                owner, name, _ = self.values[key]
                self.values[key] = (owner, name, getattr(owner, name, None))

    def changed(self) -> str | None:
        """What is no longer as it was read, or None."""
        for owner, name, value in self.values.values():
            now = getattr(owner, name, None)
            if now is not value and not _same(now, value):
                return f"{type(owner).__name__}.{name}"
        return None

    def _noting(self, kind: type) -> type:
        """`kind`, whose instances note what is read of them."""

        def read(owner: Any, name: str) -> Any:
            value = kind.__getattribute__(owner, name)  # type: ignore[call-arg]
            computed = isinstance(getattr(kind, name, None), property)
            known = computed or hasattr(nn.Module, name) or hasattr(object, name)
            if type(value) in _READ and not known:
                self.values.setdefault((id(owner), name), (owner, name, value))
            return value

        return type(kind)(kind.__name__, (kind,), {"__getattribute__": read})


def _contents(holder: Any) -> Any:
    """A copy of what `holder` holds."""
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, list | deque | set):
        return list(holder)
    if isinstance(holder, np.ndarray):
        return holder.copy()
    if isinstance(holder, np.random.Generator):
        return holder.bit_generator.state
    with suppress(ValueError):  # the cell of a function's variable, which is empty at first
        return [holder.cell_contents]
    return []


def _fill(holder: Any, contents: Any) -> None:
    """Let `holder` hold what `_contents` returned."""
    if isinstance(holder, dict | set):
        holder.clear()
        holder.update(contents)
    elif isinstance(holder, list | deque):
        holder.clear()
        holder.extend(contents)
    elif isinstance(holder, np.ndarray):
        holder[...] = contents
    elif isinstance(holder, np.random.Generator):
        holder.bit_generator.state = contents
    elif contents:
        (holder.cell_contents,) = contents
    else:
        del holder.cell_contents


def _same(before: Any, after: Any) -> bool:
    """Whether two values are equal; of tensors and other objects, whether they are one."""
    if before is after:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_same(before[k], after[k]) for k in before)
    if isinstance(before, list | tuple | deque):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    return isinstance(before, (*_SCALARS, set)) and bool(before == after)


def _named(what: str, before: Any, after: Any) -> str:
    """The name of what differs between two contents of the holder `what`."""
    if isinstance(before, dict) and "." not in what:
        for name in {**before, **after}:
            if name not in before or name not in after or not _same(before[name], after[name]):
                return f"{what}.{name}"
    return what
