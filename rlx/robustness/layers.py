"""The network that computes a policy's scores, read off its own operations.

Nothing is asked of a policy but its scores: they are computed once, and each operation of torch
that an observation passes through is noted. Users' agents are read as rlx's own are.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlx.agent import Scores
from rlx.errors import ConfigError
from rlx.robustness import weights
from rlx.robustness.network import Layer, Network
from rlx.robustness.weights import Linear, Sparse

_aten = torch.ops.aten

LERP_ROUNDINGS = 12
"""Roundings for a start + w (end − start) that torch computes as end − (1 − w) (end − start).

It does so for |w| ≥ 1/2, where |1 − w| ≤ 3 |w|: three roundings there count as nine here."""


@torch.no_grad()
def read_network(scores: Scores, obs: Tensor) -> Network:
    """The network that computes `scores` [S, B, A] at and around `obs` float32 [S, B, *O].

    ConfigError where something else than a network of such layers decides.
    """
    check_discrete(scores)
    tracer = _Tracer(obs)
    with tracer:
        values = scores.function(tracer.obs)
    return tracer.network(values)


def check_discrete(scores: Scores) -> None:
    """ConfigError where it is not the highest score of some choices that decides."""
    if scores.choice is not None:
        raise ConfigError(_unsupported("a search decides"))
    if scores.continuous:
        raise ConfigError(_unsupported("actions are continuous"))


def _unsupported(what: str) -> str:
    return (
        f"certify: {what}, for which there are no bounds; there are some for discrete choices by "
        "fully connected layers and convolutions with ReLU or tanh, dueling or not, and a GRU."
    )


@dataclass(frozen=True)
class _Affine:
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
    def same(cls, block: int, seeds: int, shape: Sequence[int], like: Tensor) -> "_Affine":
        """The numbers of a `block` as they are, in a `shape` [*F]."""
        bias = torch.zeros(seeds, 1, *shape, dtype=torch.float64, device=like.device)

        def reshaped(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], *shape)

        return cls((block,), reshaped, bias, reshaped, bias, 0)

    @classmethod
    def constant(cls, value: Tensor) -> "_Affine":
        """A constant [S, B or 1, *F]; of Python's numbers, float32 makes others."""

        def zeros(x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:2], *value.shape[2:])

        return cls((), zeros, value, zeros, value.abs(), 1)

    def map(self, function: Linear, roundings: int = 0) -> "_Affine":
        """What a linear `function` of [S, R, *F], which has no negative weights, makes of it."""
        return self.mapped(function, function, roundings)

    def mapped(self, function: Linear, of_sizes: Linear, roundings: int) -> "_Affine":
        """What a linear `function` makes of it; `of_sizes`: the same with the weights' sizes."""
        return _Affine(
            self.blocks,
            lambda x: function(self.linear(x)),
            function(self.bias),
            lambda x: of_sizes(self.size(x)),
            of_sizes(self.bias_size),
            self.roundings + roundings,
        )

    def plus(self, other: "_Affine", tracer: "_Tracer") -> "_Affine":
        """The sum of two, which broadcast."""
        one, two = tracer.of_same_blocks([self, other])
        return _Affine(
            one.blocks,
            lambda x: one.linear(x) + two.linear(x),
            one.bias + two.bias,
            lambda x: one.size(x) + two.size(x),
            one.bias_size + two.bias_size,
            max(one.roundings, two.roundings) + 1,
        )


class _Unknown(Exception):
    """An operation for which there is no rule, or none with these arguments."""


@dataclass(frozen=True)
class _Call:
    """An operation that was computed, of something that depends on the observation."""

    tracer: "_Tracer"
    func: Any
    """The operation."""
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    """Its result, [S, B, *F], or a list of such."""

    def whole(self, number: int) -> _Affine:
        """The argument of this number as an affine function, though it may be constant."""
        value = self.args[number]
        affine = self.tracer.affine(value)
        if affine is None:
            affine = _Affine.constant(self.tracer.constant(value, self.out))
        if affine.bias.dim() != self.out.dim():
            raise _Unknown("of tensors with different axes")
        return affine

    def affine(self, number: int) -> _Affine:
        """The argument of this number, which depends on the observation; else _Unknown."""
        affine = self.tracer.affine(self.args[number])
        if affine is None:
            raise _Unknown("of what is constant")
        return affine


Rule = Callable[[_Call], _Affine | list[_Affine]]
"""An operation → its result, or results, as affine functions; raises _Unknown where it is none."""


class _Tracer(TorchDispatchMode):
    """Notes what each operation makes of an observation, while they are computed as ever."""

    def __init__(self, obs: Tensor):
        super().__init__()
        self.seeds, self.batch = obs.shape[:2]
        self.obs = obs.clone()
        # The tensors are kept, so that no other one gets their id.
        self.known: dict[int, tuple[Tensor, _Affine]] = {}
        self.slices: dict[int, tuple[Tensor, _Slice]] = {}
        self.layers: list[Layer] = []
        self.sizes = [obs[0, 0].numel()]
        """How many numbers each block has."""
        self.note(self.obs, _Affine.same(0, self.seeds, obs.shape[2:], obs))

    def note(self, tensor: Tensor, affine: _Affine) -> None:
        """Remember that `tensor` is this function, unless it is a constant."""
        self.known.pop(id(tensor), None)
        if affine.size(self._ones(affine)).any():
            self.known[id(tensor)] = (tensor, affine)

    def _ones(self, affine: _Affine) -> Tensor:
        """[S, 1, n]: 1 for each of the numbers that it is a function of."""
        numbers = sum(self.sizes[block] for block in affine.blocks)
        return affine.bias.new_ones(self.seeds, 1, numbers)

    def affine(self, tensor: Any) -> _Affine | None:
        """What `tensor` is as a function of the observation; None: a constant."""
        entry = self.known.get(id(tensor))
        return None if entry is None else entry[1]

    def of_same_blocks(self, affines: Sequence[_Affine]) -> list[_Affine]:
        """The same as functions of all the blocks that any of them is a function of."""
        blocks = tuple(sorted({block for affine in affines for block in affine.blocks}))
        return [self._of_blocks(affine, blocks) for affine in affines]

    def _of_blocks(self, affine: _Affine, blocks: tuple[int, ...]) -> _Affine:
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

    def layer(self, affine: _Affine, activation: str | None) -> Layer:
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

    def _weight(self, affine: _Affine, linear: Linear) -> Tensor | Sparse:
        """The weights of a `linear` function of the numbers that `affine` is one of."""
        numbers = self._ones(affine).shape[-1]
        count = numbers * affine.bias[0, 0].numel()
        if count > weights.MOST:
            most = f"{weights.MOST:,}"
            raise _Unknown(f"that makes a layer of {count:,} weights; there may be {most}")
        if count > weights.DENSE:
            return Sparse.of(linear, affine.bias, numbers)
        eye = torch.eye(numbers, dtype=torch.float64, device=affine.bias.device)
        return linear(eye.expand(self.seeds, -1, -1)).flatten(2)

    def behind(self, affine: _Affine, activation: str, shape: Sequence[int]) -> _Affine:
        """The numbers of one more layer, in a `shape` [*F]."""
        self.layers.append(self.layer(affine, activation))
        self.sizes.append(math.prod(shape))
        return _Affine.same(len(self.layers), self.seeds, shape, affine.bias)

    def network(self, values: Tensor) -> Network:
        """The network whose scores are `values` [S, B, A]."""
        affine = self.affine(values)
        if affine is None:
            affine = self._of_blocks(_Affine.constant(values.double()), (0,))
        return Network(_needed([*self.layers, self.layer(affine, None)]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ids = [id(leaf) for leaf in tree_leaves((args, kwargs))]
        touched = any(number in self.known or number in self.slices for number in ids)
        out = func(*args, **kwargs)
        if touched and func.overloadpacket in _BY_SEED:
            with self._named(func):
                _BY_SEED[func.overloadpacket](_Call(self, func, args, kwargs, out))
        elif touched and func.overloadpacket not in _CONSTANTS:
            rule = _RULES.get(func.overloadpacket)
            outs = out if isinstance(out, list | tuple) else [out]
            with self._named(func):
                if rule is None or not all(map(self._is_of_rows, outs)):
                    raise _Unknown
                self._check_in_place(func, args, out)
                made = rule(_Call(self, func, args, kwargs, out))
                affines = made if isinstance(made, list) else [made]
                for one, affine in zip(outs, affines, strict=True):
                    self.note(one, affine)
        return out

    @contextmanager
    def _named(self, func: Any) -> Iterator[None]:
        """ConfigError with the name of an operation that is _Unknown within the context."""
        try:
            yield
        except _Unknown as unknown:
            name = str(func.overloadpacket).removeprefix("aten.")
            problem = f"a policy's scores go through the operation {name} {unknown}".strip()
            raise ConfigError(_unsupported(problem)) from None

    def _is_of_rows(self, out: Any) -> bool:
        """Whether a result is [S, B, *F] in float32 or float64."""
        floating = isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float64)
        return floating and out.shape[:2] == (self.seeds, self.batch)

    def _check_in_place(self, func: Any, args: Any, out: Any) -> None:
        """_Unknown where an operation changes a tensor that others look into."""
        if out is not args[0]:
            return
        storage = out.untyped_storage().data_ptr()
        tensors = [tensor for tensor, _ in self.known.values() if tensor is not out]
        if any(tensor.untyped_storage().data_ptr() == storage for tensor in tensors):
            raise _Unknown("in place, of a tensor that is part of another")

    def constant(self, value: Any, out: Tensor) -> Tensor:
        """A constant argument, float64 [S, B or 1, *F] for a result `out` [S, B, *F].

        It is [S, 1, *F] where it is the same in all rows.
        """
        tensor = torch.as_tensor(value, dtype=torch.float64, device=out.device)
        tensor = tensor.reshape(*[1] * (out.dim() - tensor.dim()), *tensor.shape)
        tensor = tensor.expand(self.seeds, *tensor.shape[1:])
        first = tensor[:, :1]
        return first if torch.equal(tensor, first.expand_as(tensor)) else tensor


def _identity(call: _Call) -> _Affine:
    return call.affine(0)


def _reshaped(call: _Call) -> _Affine:
    trailing = call.out.shape[2:]
    affine = call.affine(0)
    if call.func.overloadpacket is not _aten.expand:
        return affine.map(lambda x: x.reshape(*x.shape[:2], *trailing))
    if call.out.dim() != call.args[0].dim():
        raise _Unknown("across a batch")
    return affine.map(lambda x: x.expand(*x.shape[:2], *trailing))


def _within_rows(call: _Call) -> _Affine:
    """An operation along given axes, none of which may be that of seeds or rows."""
    axes = _axes(call)
    roundings = 0
    if call.func.overloadpacket in (_aten.mean, _aten.sum):
        roundings = 1 + math.prod(call.args[0].shape[axis] for axis in axes)
    return call.affine(0).map(lambda x: call.func(x, *call.args[1:], **call.kwargs), roundings)


def _axes(call: _Call) -> list[int]:
    """The axes, from 2 on, along which an operation works; _Unknown where it mixes rows."""
    axes: list[int] = []
    for place, argument in enumerate(call.func._schema.arguments):
        if argument.name not in ("dim", "dim0", "dim1"):
            continue
        given = call.kwargs.get(argument.name, argument.default_value)
        if place < len(call.args):
            given = call.args[place]
        if given is None:
            raise _Unknown("over all of a batch")
        axes += given if isinstance(given, Sequence) else [given]
    dims = call.args[0].dim() + (call.func.overloadpacket is _aten.unsqueeze)
    axes = [axis % dims for axis in axes]
    if not axes or min(axes) < 2:
        raise _Unknown("across a batch")
    return axes


def _split(call: _Call) -> list[_Affine]:
    """The parts into which an operation cuts a tensor along one axis."""
    (axis,) = _axes(call)
    start = 0
    parts = []
    for part in call.out:
        length = part.shape[axis]
        parts.append(call.affine(0).map(partial(_narrow, axis=axis, start=start, length=length)))
        start += length
    return parts


def _narrow(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    return x.narrow(axis, start, length)


def _added(call: _Call) -> _Affine:
    first, second = call.whole(0), call.whole(1)
    if call.func.overloadpacket is _aten.rsub:
        first, second = second, first
    sign = 1.0 if call.func.overloadpacket is _aten.add else -1.0
    return first.plus(_times(second, sign * float(call.kwargs.get("alpha", 1))), call.tracer)


def _times(affine: _Affine, factor: float | Tensor) -> _Affine:
    """`affine` times a number, or times what all rows have in common, [S, 1, *F]."""
    # The product, and a number of Python's that becomes float32; a change of sign rounds nothing.
    roundings = 0 if isinstance(factor, float) and abs(factor) == 1 else 2
    size = abs(factor) if isinstance(factor, float) else factor.abs()
    return affine.mapped(lambda x: x * factor, lambda x: x * size, roundings)


def _negated(call: _Call) -> _Affine:
    return _times(call.affine(0), -1.0)


def _multiplied(call: _Call) -> _Affine:
    for affine, value in (call.args, call.args[::-1]):
        known = call.tracer.affine(affine)
        factor = _factor(value, call)
        if known is not None and factor is not None:
            return _times(known, factor)
    return _product_of(call.tracer, call.whole(0), call.whole(1), call.out.shape[2:])


def _divided(call: _Call) -> _Affine:
    if call.tracer.affine(call.args[1]) is not None or call.kwargs.get("rounding_mode"):
        raise _Unknown("by what is no constant")
    factor = _factor(call.args[1], call)
    if factor is not None:
        return _times(call.affine(0), 1 / factor)
    inverse = _Affine.constant(1 / call.tracer.constant(call.args[1], call.out))
    return _product_of(call.tracer, call.affine(0), inverse, call.out.shape[2:])


def _factor(value: Any, call: _Call) -> Tensor | None:
    """A factor that all rows have in common, float64 [S, 1, *F]: a number, or one of each channel.

    None: it counts as a number of each row. A memory, or a goal, is another one in another row and
    at another step, and what a layer multiplies by must not change with them.
    """
    if call.tracer.affine(value) is not None:
        return None
    shape = torch.as_tensor(value).shape
    is_of_channels = len(shape) == 5 and shape[1] == 1 and shape[3:] != call.out.shape[3:]
    if shape and not is_of_channels:
        return None
    return call.tracer.constant(value, call.out)


def _product_of(tracer: _Tracer, one: _Affine, other: _Affine, shape: Sequence[int]) -> _Affine:
    """The product of two, number by number, in a `shape` [*F]."""

    def flat(x: Tensor) -> Tensor:
        return x.expand(*x.shape[:2], *shape).flatten(2)

    parts = [affine.map(flat) for affine in (one, other)]
    return tracer.behind(_cat(tracer, parts, 2), "product", shape)


def _cat(tracer: _Tracer, affines: Sequence[_Affine], axis: int) -> _Affine:
    """Several behind each other along an axis."""
    parts = tracer.of_same_blocks(affines)
    most = max(part.bias.shape[1] for part in parts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.expand(-1, most, *tensor.shape[2:]) for tensor in tensors], axis)

    return _Affine(
        parts[0].blocks,
        lambda x: torch.cat([part.linear(x) for part in parts], axis),
        joined([part.bias for part in parts]),
        lambda x: torch.cat([part.size(x) for part in parts], axis),
        joined([part.bias_size for part in parts]),
        max(part.roundings for part in parts),
    )


def _product(call: _Call) -> _Affine:
    if call.tracer.affine(call.args[1]) is not None:
        raise _Unknown("by what is no constant")
    weight = call.args[1].double()
    size = weight.abs()
    # A product and n sums for each term.
    return call.affine(0).mapped(lambda x: x @ weight, lambda x: x @ size, weight.shape[1] + 1)


def _product_plus(call: _Call) -> _Affine:
    if call.kwargs or call.tracer.affine(call.args[0]) is not None:
        raise _Unknown("with a sum that is no bias")
    bias = call.whole(0)
    return _product(replace(call, args=call.args[1:])).plus(bias, call.tracer)


def _joined(call: _Call) -> _Affine:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    axis = given % call.out.dim()
    if axis < 2:
        raise _Unknown("across a batch")
    parts = []
    for part in call.args[0]:
        affine = call.tracer.affine(part)
        if affine is None:
            affine = _Affine.constant(call.tracer.constant(part, part))
        parts.append(affine)
    return _cat(call.tracer, parts, axis)


@dataclass(frozen=True)
class _Slice:
    """One seed of a tensor [S, B, *F], or what a convolution has made of it."""

    seed: int
    affine: _Affine
    """What the whole tensor is."""
    convolution: Sequence[Any] = ()
    """The arguments of the convolution behind its input; none: there was none yet."""


def _taken_apart(call: _Call) -> None:
    """A tensor cut into its seeds, of which each gets a convolution of its own."""
    if call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) != 0:
        raise _Unknown("across a batch")
    affine = call.affine(0)
    for seed, part in enumerate(call.out):
        call.tracer.slices[id(part)] = (part, _Slice(seed, affine))


def _convolved(call: _Call) -> None:
    _, part = call.tracer.slices.get(id(call.args[0]), (None, None))
    transposed, _, groups = call.args[6:9]
    if part is None or part.convolution or transposed or groups != 1:
        raise _Unknown("of another form than one for each seed")
    call.tracer.slices[id(call.out)] = (call.out, replace(part, convolution=call.args[1:6]))


def _put_together(call: _Call) -> None:
    """The convolutions of all seeds as one affine function."""
    tracer = call.tracer
    parts = [tracer.slices[id(part)][1] for part in call.args[0] if id(part) in tracer.slices]
    is_along_seeds = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) == 0
    in_order = [part.seed for part in parts] == list(range(tracer.seeds))
    if not is_along_seeds or not in_order or not all(part.convolution for part in parts):
        raise _Unknown("of another form than convolutions of all seeds")
    if any(part.affine is not parts[0].affine for part in parts):
        raise _Unknown("of different tensors")
    kernels, biases, *options = zip(*(part.convolution for part in parts), strict=True)
    if any(one != option[0] for option in options for one in option):
        raise _Unknown("of different convolutions")
    stride, padding, dilation = (option[0] for option in options)
    kernel = torch.stack(kernels).double()

    def convolved(x: Tensor, kernel: Tensor) -> Tensor:
        pairs = zip(x, kernel, strict=True)
        return torch.stack([conv2d(*pair, None, stride, padding, dilation) for pair in pairs])

    affine = parts[0].affine.mapped(
        lambda x: convolved(x, kernel),
        lambda x: convolved(x, kernel.abs()),
        # A product and n sums for each term.
        kernel[0, 0].numel() + 1,
    )
    if biases[0] is not None:
        bias = torch.stack(biases).double()[:, None, :, None, None]
        affine = affine.plus(_Affine.constant(bias), tracer)
    tracer.note(call.out, affine)


def _relu(call: _Call) -> _Affine:
    return call.tracer.behind(call.affine(0), "relu", call.out.shape[2:])


def _tanh(call: _Call) -> _Affine:
    return call.tracer.behind(call.affine(0), "tanh", call.out.shape[2:])


def _sigmoid(call: _Call) -> _Affine:
    """σ(z) = 1/2 + tanh(z / 2) / 2, whose error is no more than half that of a tanh."""
    half = call.tracer.behind(_times(call.affine(0), 0.5), "tanh", call.out.shape[2:])
    middle = _Affine.constant(torch.full_like(half.bias, 0.5))
    return _times(half, 0.5).plus(middle, call.tracer)


def _interpolated(call: _Call) -> _Affine:
    """start + w (end − start)."""
    start, end = call.whole(0), call.whole(1)
    way = end.plus(_times(start, -1.0), call.tracer)
    way = replace(way, roundings=way.roundings + LERP_ROUNDINGS)
    shape = call.out.shape[2:]
    factor = _factor(call.args[2], call)
    if factor is not None:
        part = _times(way, factor)
    else:
        part = _product_of(call.tracer, call.whole(2), way, shape)
    return start.plus(part, call.tracer)


def _clamped(call: _Call) -> _Affine:
    """min(max(z, low), high) = low + relu(z − low) − relu(z − high)."""
    low = call.kwargs.get("min", call.args[1] if len(call.args) > 1 else None)
    high = call.kwargs.get("max", call.args[2] if len(call.args) > 2 else None)
    affine = call.affine(0)
    if not isinstance(low, int | float) or affine.bias.dim() != 3:
        raise _Unknown("without a number as its lower bound")
    size = affine.bias.shape[2]
    ends = [end for end in (low, high) if end is not None]
    above = [_shifted(affine, -end) for end in ends]
    outputs = call.tracer.behind(_cat(call.tracer, above, 2), "relu", [size * len(ends)])
    if high is None:
        return _shifted(outputs, low)
    within = outputs.mapped(
        lambda x: x[..., :size] - x[..., size:], lambda x: x[..., :size] + x[..., size:], 0
    )
    return _shifted(within, low)


def _shifted(affine: _Affine, number: float) -> _Affine:
    """`affine` plus a number, without a rounding: a clamp adds none."""
    return replace(affine, bias=affine.bias + number, bias_size=affine.bias_size + abs(number))


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


_BY_SEED = {
    _aten.unbind: _taken_apart,
    _aten.convolution: _convolved,
    _aten.stack: _put_together,
}
"""Operations of convolutions, which are done seed by seed."""
_CONSTANTS = {_aten.zeros_like, _aten.ones_like, _aten.empty_like, _aten.full_like, _aten.new_zeros}
"""Operations whose result does not depend on the values that they are given."""
_RULES: dict[Any, Rule] = {
    _aten.alias: _identity,
    _aten.clone: _identity,
    _aten.detach: _identity,
    _aten._to_copy: _identity,
    _aten.view: _reshaped,
    _aten._unsafe_view: _reshaped,
    _aten.expand: _reshaped,
    _aten.unsqueeze: _within_rows,
    _aten.squeeze: _within_rows,
    _aten.slice: _within_rows,
    _aten.select: _within_rows,
    _aten.transpose: _within_rows,
    _aten.mean: _within_rows,
    _aten.sum: _within_rows,
    _aten.add: _added,
    _aten.sub: _added,
    _aten.rsub: _added,
    _aten.neg: _negated,
    _aten.mul: _multiplied,
    _aten.div: _divided,
    _aten.bmm: _product,
    _aten.baddbmm: _product_plus,
    _aten.cat: _joined,
    _aten.split: _split,
    _aten.split_with_sizes: _split,
    _aten.lerp: _interpolated,
    _aten.sigmoid: _sigmoid,
    _aten.sigmoid_: _sigmoid,
    _aten.relu: _relu,
    _aten.relu_: _relu,
    _aten.tanh: _tanh,
    _aten.tanh_: _tanh,
    _aten.clamp: _clamped,
    _aten.clamp_min: _clamped,
    _aten.hardtanh: _clamped,
}
