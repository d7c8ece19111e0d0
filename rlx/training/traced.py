"""A training's tensors at fixed places, and its steps as graphs of operations on these.

A step is traced once (`torch.fx`), from the agent and env as they are written, into a graph without
Python: what the step would bind anew is copied to where it was before.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rlx.envs.batched import BatchedEnv
from rlx.envs.view import View

if TYPE_CHECKING:
    from rlx.training.loop import Training

Place = tuple[dict[str, Any], str]
"""Where a tensor is bound: (dictionary, key)."""
Function = Callable[[], Sequence[Tensor]]
"""A function of tensors that lie at fixed places; it may write to them, and returns others."""

_MODULE = set(vars(nn.Module()))
"""Attributes that every module has."""


class NotTraceable(Exception):
    """A step of this agent in this env is no graph of tensor operations."""


class Memory:
    """All tensors that decide a training's future, each at a place of its own."""

    def __init__(self, training: "Training", counter: Place):
        """`counter`: the place of a counter, on the device, of each seed's environment steps."""
        self.owners: list[Any] = [*training.agent.modules(), *_envs(training.env)]
        self.places: list[Place] = [counter]
        for module in training.agent.modules():
            groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for group in groups:
                self.places += [(group, name) for name, value in group.items() if value is not None]
        self.places += _env_places(training.env)
        self.places += [(vars(training.log), name) for name in ("running", "sum", "count", "bad")]
        self.places += [(vars(training), name) for name in ("obs", "first")]
        self.places += [(training.carry, name) for name in training.carry]
        self.tensors: list[Tensor] = []
        """What lies at the places."""
        taken: set[int] = set()
        for group, name in self.places:
            tensor = _own(group[name], taken)
            group[name] = tensor
            self.tensors.append(tensor)

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Bind every place to one of `tensors`."""
        for (group, name), tensor in zip(self.places, tensors, strict=True):
            group[name] = tensor

    @torch.no_grad()
    def settle(self, tensors: Sequence[Tensor]) -> None:
        """Copy what a function has bound to the places into `tensors`, which lay there before.

        NotTraceable where a tensor has another shape than before.
        """
        moved = []
        inside = {tensor.untyped_storage()._cdata for tensor in tensors}
        for (group, name), tensor in zip(self.places, tensors, strict=True):
            new = group[name]
            if new is tensor:
                continue
            if new.shape != tensor.shape or new.dtype != tensor.dtype:
                raise NotTraceable(f"{name} changes its shape or dtype with a step")
            # What lies at another place is read before anything is written there.
            held = new.untyped_storage()._cdata in inside
            moved.append((tensor, new.clone() if held else new))
        for tensor, new in moved:
            tensor.copy_(new)
        self.put(tensors)


def trace(memory: Memory, function: Function, decompositions: dict | None = None) -> fx.GraphModule:
    """The graph of `function`, whose inputs are `memory.tensors`; NotTraceable where it has none.

    `decompositions`: what stands for an operation in the graph, as `make_fx` takes them.
    """

    def pure(*inputs: Tensor) -> list[Tensor]:
        memory.put(inputs)
        outputs = [output.clone() for output in function()]
        memory.settle(inputs)
        return outputs

    before = [_attributes(owner) for owner in memory.owners]
    try:
        traced = make_fx(pure, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = traced(*memory.tensors)
    except NotTraceable:
        raise
    except Exception as error:
        raise NotTraceable(f"{type(error).__name__}: {error}") from error
    finally:
        memory.put(memory.tensors)
        changed = [*map(_restore, memory.owners, before)]
    for owner, name in zip(memory.owners, changed, strict=True):
        if name is not None:
            what = f"{type(owner).__name__}.{name}"
            raise NotTraceable(f"{what} changes with a step, and is no buffer")
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            written = node.args[0]
            if isinstance(written, fx.Node) and written.op == "get_attr":
                raise NotTraceable(f"{node.target} writes to a tensor that is no buffer")
    return graph


def _own(tensor: Tensor, taken: set[int]) -> Tensor:
    """`tensor` in memory of its own: a copy, unless it has that; `taken`: storages of others.

    NotTraceable where a parameter is another one's as well.
    """
    storage = tensor.untyped_storage()
    alone = storage._cdata not in taken
    taken.add(storage._cdata)
    if isinstance(tensor, nn.Parameter) and not alone:
        raise NotTraceable("a parameter is registered twice")
    if alone and tensor.is_contiguous() and storage.nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _envs(env: Any) -> Iterator[Any]:
    """`env` and what it is made around; NotTraceable where its steps are not torch's alone."""
    while isinstance(env, View):
        yield env
        env = env.env
    if not isinstance(env, BatchedEnv):
        raise NotTraceable(f"{type(env).__name__} does not step in torch")
    yield env


def _env_places(env: Any) -> list[Place]:
    """The places of an env's tensors."""
    places = []
    envs = list(_envs(env))
    for name in env.state_dict():
        owner = next(env for env in envs if name in vars(env))
        places.append((vars(owner), name))
    return places


def _attributes(owner: Any) -> dict[str, Any]:
    """The attributes of a module or env that are no modules, parameters or buffers."""
    kinds = (Tensor, bool, int, float, str, tuple, dict, list, type(None))
    return {
        name: copy.copy(value) if isinstance(value, dict | list) else value
        for name, value in vars(owner).items()
        if isinstance(value, kinds) and name not in _MODULE
    }


def _restore(owner: Any, before: dict[str, Any]) -> str | None:
    """Give `owner` the attributes back that it had; the name of one that was another, or None."""
    changed = None
    for name, value in _attributes(owner).items():
        if name not in before:
            delattr(owner, name)
            changed = name
        elif not _same(before[name], value):
            setattr(owner, name, before[name])
            changed = name
    return changed


def _same(before: Any, after: Any) -> bool:
    """Whether an attribute is what it was."""
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return before is after
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[k], after[k]) for k in before)
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return before is after or bool(before == after)
