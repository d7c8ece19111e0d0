"""A training's tensors at fixed places, and its steps as graphs of operations on these.

A step is traced once (`torch.fx`), from the agent and env as they are written, into a graph without
Python: what the step would bind anew is copied to where it was before.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rlx.agent import Carry
from rlx.env import TensorEnv
from rlx.envs.batched import BatchedEnv
from rlx.envs.view import View
from rlx.errors import RunError
from rlx.training.host import HostState, Reads

Place = tuple[dict[str, Any], str]
"""Where a tensor is bound: (dictionary, key)."""
Function = Callable[[], Sequence[Tensor]]
"""A function of tensors that lie at fixed places; it may write to them, and returns others."""
Call = Callable[[], Sequence[Tensor]]
"""A function of such tensors in its compiled form."""


class NotTraceable(Exception):
    """A step of this agent in this env is no graph of tensor operations."""


class Memory:
    """All tensors that decide what steps do, each at a place of its own."""

    def __init__(self, module: nn.Module, env: TensorEnv, carry: Carry, places: Sequence[Place]):
        """`module`: an agent or policy, which steps in `env`; `carry`: of the steps, always that.

        `places`: those of all other tensors that steps read or bind anew. NotTraceable where the
        env does not step in torch, or two of the module's tensors overlap.
        """
        self.owners: list[Any] = [*module.modules(), *_envs(env)]
        self.carry = carry
        self.reads = Reads()
        """What traced functions have read of the owners, beside tensors."""
        self.places: list[Place] = []
        for part in module.modules():
            groups: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for group in groups:
                self.places += [(group, name) for name, value in group.items() if value is not None]
        _refuse_overlaps([group[name] for group, name in self.places])
        self.places += _env_places(env)
        self.places += [(carry, name) for name in carry]
        self.places += places
        self.groups = [
            group
            for part in module.modules()
            for group in (part._parameters, part._buffers)
            if group
        ]
        """The module's parameters and buffers."""
        self.tensors: list[Tensor] = []
        """What lies at the places."""
        taken: set[int] = set()
        for group, name in self.places:
            tensor = _own(group[name], taken)
            group[name] = tensor
            self.tensors.append(tensor)
        self.bound = [value for group in self.groups for value in group.values()]
        """What the groups hold."""

    def moved(self) -> bool:
        """Whether the module has bound a parameter or buffer anew; asked at every step."""
        now = chain.from_iterable(group.values() for group in self.groups)
        return not all(map(is_, now, self.bound))

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

    host = HostState(memory.owners, carry=memory.carry)
    try:
        with memory.reads.noted(memory.owners):
            traced = make_fx(pure, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
            graph = traced(*memory.tensors)
    except (NotTraceable, RunError):
        raise
    except Exception as error:
        raise NotTraceable(f"{type(error).__name__}: {error}") from error
    finally:
        memory.put(memory.tensors)
        changed = host.restore()
    if changed is not None:
        raise NotTraceable(f"{changed} changes with a step, and is no buffer")
    _refuse_writes_to_constants(graph)
    return graph


def _refuse_writes_to_constants(graph: fx.GraphModule) -> None:
    """NotTraceable where the graph writes to a tensor that is none of its inputs."""
    constants: set[fx.Node] = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "get_attr":
            constants.add(node)
        elif schema is not None and constants.intersection(node.all_input_nodes):
            if schema.is_mutable and _written(node, schema) & constants:
                raise NotTraceable(f"{node.target} writes to a tensor that is no buffer")
            if any(result.alias_info is not None for result in schema.returns):
                # A view of a constant is one as well.
                constants.add(node)


def _written(node: fx.Node, schema: Any) -> set[fx.Node]:
    """The nodes whose tensors the operation `node` writes to."""
    written: list[Any] = []
    for place, argument in enumerate(schema.arguments):
        if argument.is_write:
            value = node.kwargs.get(argument.name)
            if place < len(node.args):
                value = node.args[place]
            written += value if isinstance(value, list | tuple) else [value]
    return {value for value in written if isinstance(value, fx.Node)}


def _refuse_overlaps(tensors: Sequence[Tensor]) -> None:
    """NotTraceable where two of a module's tensors lie in the same memory.

    What is written to one of them shows in the other, which tensors at places of their own lack.
    """
    storages = [tensor.untyped_storage()._cdata for tensor in tensors if tensor.numel()]
    if len(set(storages)) < len(storages):
        raise NotTraceable("two of the agent's parameters or buffers share their memory")


def _own(tensor: Tensor, taken: set[int]) -> Tensor:
    """`tensor` in memory of its own: a copy, unless it has that; `taken`: storages of others."""
    storage = tensor.untyped_storage()
    alone = storage._cdata not in taken
    taken.add(storage._cdata)
    if alone and tensor.is_contiguous() and storage.nbytes() == tensor.nbytes:
        return tensor
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


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
