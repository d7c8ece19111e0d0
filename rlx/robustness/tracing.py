"""What each operation of a policy makes of an observation, noted while it is computed."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlx.errors import ConfigError
from rlx.robustness import weights
from rlx.robustness.network import Layer, Network
from rlx.robustness.weights import Linear, Sparse


def unsupported(what: str) -> str:
    """The error of a policy in which is something without bounds: `what`, a main clause."""
    return (
        f"certify: {what}, for which there are no bounds; there are some for discrete choices by "
        "fully connected layers and convolutions with ReLU or tanh, dueling or not, and a GRU."
    )


@dataclass(frozen=True)
class Affine:
    """A tensor [S, B, *F] as an affine function of the n numbers of some blocks."""

    blocks: tuple[int, ...]
    """As `Layer.sources`, ascending; none: it is constant."""
    linear: Linear
    """What it is of these numbers, but for the bias."""
    bias: Tensor
    """float64 [S, B or 1, *F]."""
    size: Linear
    """As `linear`, of the sizes of all terms: it makes of 1s the sums of `Layer.weight_size`."""
    bias_size: Tensor
    """As `Layer.bias_size`, [S, B or 1, *F]."""
    roundings: int
    """As `Layer.roundings`."""

    @classmethod
    def same(cls, block: int, seeds: int, shape: Sequence[int], like: Tensor) -> "Affine":
        """The numbers of a `block` as they are, in a `shape` [*F]."""
        bias = torch.zeros(seeds, 1, *shape, dtype=torch.float64, device=like.device)

        def reshaped(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], *shape)

        return cls((block,), reshaped, bias, reshaped, bias, 0)

    @classmethod
    def constant(cls, value: Tensor) -> "Affine":
        """A constant [S, B or 1, *F]; of Python's numbers, float32 makes others."""

        def zeros(x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:2], *value.shape[2:])

        return cls((), zeros, value, zeros, value.abs(), 1)

    def map(self, function: Linear, roundings: int = 0) -> "Affine":
        """What a linear `function` of [S, R, *F], which has no negative weights, makes of it."""
        return self.mapped(function, function, roundings)

    def mapped(self, function: Linear, of_sizes: Linear, roundings: int) -> "Affine":
        """What a linear `function` makes of it; `of_sizes`: the same with the weights' sizes."""
        return Affine(
            self.blocks,
            lambda x: function(self.linear(x)),
            function(self.bias),
            lambda x: of_sizes(self.size(x)),
            of_sizes(self.bias_size),
            self.roundings + roundings,
        )

    def plus(self, other: "Affine", tracer: "Tracer") -> "Affine":
        """The sum of two, which broadcast."""
        one, two = tracer.of_same_blocks([self, other])
        return Affine(
            one.blocks,
            lambda x: one.linear(x) + two.linear(x),
            one.bias + two.bias,
            lambda x: one.size(x) + two.size(x),
            one.bias_size + two.bias_size,
            max(one.roundings, two.roundings) + 1,
        )


class Unknown(Exception):
    """An operation for which there is no rule, or none with these arguments."""


@dataclass(frozen=True)
class Call:
    """An operation that was computed, of something that depends on the observation."""

    tracer: "Tracer"
    func: Any
    """The operation."""
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    """Its result, [S, B, *F], or a list of such."""

    def whole(self, number: int) -> Affine:
        """The argument of this number as an affine function, though it may be constant."""
        value = self.args[number]
        affine = self.tracer.affine(value)
        if affine is None:
            affine = Affine.constant(self.tracer.constant(value, self.out))
        if affine.bias.dim() != self.out.dim():
            raise Unknown("of tensors with different axes")
        return affine

    def affine(self, number: int) -> Affine:
        """The argument of this number, which depends on the observation; else Unknown."""
        affine = self.tracer.affine(self.args[number])
        if affine is None:
            raise Unknown("of what is constant")
        return affine


Rule = Callable[[Call], Affine | list[Affine]]
"""An operation → its result, or results, as affine functions; raises Unknown where it is none."""


class Rules(NamedTuple):
    """What is known of operations, by `OpOverloadPacket`."""

    of_rows: Mapping[Any, Rule]
    """Those that work within rows."""
    of_seeds: Mapping[Any, Callable[[Call], None]]
    """Those of convolutions, which are done seed by seed; they note themselves what they make."""
    constants: Collection[Any]
    """Those whose result does not depend on the values that they are given."""


@dataclass(frozen=True)
class Slice:
    """One seed of a tensor [S, B, *F], or what a convolution has made of it."""

    seed: int
    affine: Affine
    """What the whole tensor is."""
    convolution: Sequence[Any] = ()
    """The arguments of the convolution behind its input; none: there was none yet."""


class Tracer(TorchDispatchMode):
    """Notes what each operation makes of an observation, while they are computed as ever."""

    def __init__(self, obs: Tensor, rules: Rules):
        super().__init__()
        self.rules = rules
        self.seeds, self.batch = obs.shape[:2]
        self.obs = obs.clone()
        # The tensors are kept, so that no other one gets their id.
        self.known: dict[int, tuple[Tensor, Affine]] = {}
        self.slices: dict[int, tuple[Tensor, Slice]] = {}
        self.layers: list[Layer] = []
        self.sizes = [obs[0, 0].numel()]
        """How many numbers each block has."""
        self.note(self.obs, Affine.same(0, self.seeds, obs.shape[2:], obs))

    def note(self, tensor: Tensor, affine: Affine) -> None:
        """Remember that `tensor` is this function, unless it is a constant."""
        self.known.pop(id(tensor), None)
        if affine.size(self._ones(affine)).any():
            self.known[id(tensor)] = (tensor, affine)

    def _ones(self, affine: Affine) -> Tensor:
        """[S, 1, n]: 1 for each of the numbers that it is a function of."""
        numbers = sum(self.sizes[block] for block in affine.blocks)
        return affine.bias.new_ones(self.seeds, 1, numbers)

    def affine(self, tensor: Any) -> Affine | None:
        """What `tensor` is as a function of the observation; None: a constant."""
        entry = self.known.get(id(tensor))
        return None if entry is None else entry[1]

    def of_same_blocks(self, affines: Sequence[Affine]) -> list[Affine]:
        """The same as functions of all the blocks that any of them is a function of."""
        blocks = tuple(sorted({block for affine in affines for block in affine.blocks}))
        return [self._of_blocks(affine, blocks) for affine in affines]

    def _of_blocks(self, affine: Affine, blocks: tuple[int, ...]) -> Affine:
        """The same as a function of more `blocks`."""
        if affine.blocks == blocks:
            return affine
        ends = list(itertools.accumulate(self.sizes[block] for block in blocks))
        columns = [
            number
            for block, end in zip(blocks, ends, strict=True)
            if block in affine.blocks
            for number in range(end - self.sizes[block], end)
        ]
        return replace(
            affine,
            blocks=blocks,
            linear=lambda x: affine.linear(x[..., columns]),
            size=lambda x: affine.size(x[..., columns]),
        )

    def layer(self, affine: Affine, activation: str | None) -> Layer:
        """The layer that ends with this, flattened."""
        return Layer(
            affine.blocks,
            self._weight(affine, affine.linear),
            affine.bias.flatten(2),
            self._weight(affine, affine.size),
            affine.bias_size.flatten(2),
            affine.roundings,
            activation,
        )

    def _weight(self, affine: Affine, linear: Linear) -> Tensor | Sparse:
        """The weights of a `linear` function of the numbers that `affine` is one of."""
        numbers = self._ones(affine).shape[-1]
        count = numbers * affine.bias[0, 0].numel()
        if count > weights.MOST:
            most = f"{weights.MOST:,}"
            raise Unknown(f"that makes a layer of {count:,} weights; there may be {most}")
        if count > weights.DENSE:
            return Sparse.of(linear, affine.bias, numbers)
        eye = torch.eye(numbers, dtype=torch.float64, device=affine.bias.device)
        return linear(eye.expand(self.seeds, -1, -1)).flatten(2)

    def behind(self, affine: Affine, activation: str, shape: Sequence[int]) -> Affine:
        """The numbers of one more layer, in a `shape` [*F]."""
        self.layers.append(self.layer(affine, activation))
        self.sizes.append(math.prod(shape))
        return Affine.same(len(self.layers), self.seeds, shape, affine.bias)

    def network(self, values: Tensor) -> Network:
        """The network whose scores are `values` [S, B, A]."""
        affine = self.affine(values)
        if affine is None:
            affine = self._of_blocks(Affine.constant(values.double()), (0,))
        return Network(_needed([*self.layers, self.layer(affine, None)]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ids = [id(leaf) for leaf in tree_leaves((args, kwargs))]
        touched = any(number in self.known or number in self.slices for number in ids)
        out = func(*args, **kwargs)
        if touched and func.overloadpacket in self.rules.of_seeds:
            with self._named(func):
                self.rules.of_seeds[func.overloadpacket](Call(self, func, args, kwargs, out))
        elif touched and func.overloadpacket not in self.rules.constants:
            rule = self.rules.of_rows.get(func.overloadpacket)
            outs = out if isinstance(out, list | tuple) else [out]
            with self._named(func):
                if rule is None or not all(map(self._is_of_rows, outs)):
                    raise Unknown
                self._check_in_place(func, args, out)
                made = rule(Call(self, func, args, kwargs, out))
                affines = made if isinstance(made, list) else [made]
                for one, affine in zip(outs, affines, strict=True):
                    self.note(one, affine)
        return out

    @contextmanager
    def _named(self, func: Any) -> Iterator[None]:
        """ConfigError with the name of an operation that is Unknown within the context."""
        try:
            yield
        except Unknown as unknown:
            name = str(func.overloadpacket).removeprefix("aten.")
            problem = f"a policy's scores go through the operation {name} {unknown}".strip()
            raise ConfigError(unsupported(problem)) from None

    def _is_of_rows(self, out: Any) -> bool:
        """Whether a result is [S, B, *F] in float32 or float64."""
        floating = isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float64)
        return floating and out.shape[:2] == (self.seeds, self.batch)

    def _check_in_place(self, func: Any, args: Any, out: Any) -> None:
        """Unknown where an operation changes a tensor that others look into."""
        if out is not args[0]:
            return
        storage = out.untyped_storage().data_ptr()
        tensors = [tensor for tensor, _ in self.known.values() if tensor is not out]
        if any(tensor.untyped_storage().data_ptr() == storage for tensor in tensors):
            raise Unknown("in place, of a tensor that is part of another")

    def constant(self, value: Any, out: Tensor) -> Tensor:
        """A constant argument, float64 [S, B or 1, *F] for a result `out` [S, B, *F].

        It is [S, 1, *F] where it is the same in all rows.
        """
        tensor = torch.as_tensor(value, dtype=torch.float64, device=out.device)
        tensor = tensor.reshape(*[1] * (out.dim() - tensor.dim()), *tensor.shape)
        tensor = tensor.expand(self.seeds, *tensor.shape[1:])
        first = tensor[:, :1]
        return first if torch.equal(tensor, first.expand_as(tensor)) else tensor


def _needed(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers that the last one depends on, with their sources by their new places."""
    needed = {len(layers)}
    for number in range(len(layers), 0, -1):
        if number in needed:
            needed |= set(layers[number - 1].sources)
    kept = sorted(needed - {0})
    places = {0: 0} | {number: place for place, number in enumerate(kept, 1)}
    return tuple(
        replace(
            layers[number - 1],
            sources=tuple(places[source] for source in layers[number - 1].sources),
        )
        for number in kept
    )
