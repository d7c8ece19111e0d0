"""The network that computes a policy's scores, read off its own operations.

Nothing is asked of a policy but its scores: they are computed once, and each operation of torch
that an observation passes through is noted. Users' agents are read as rlx's own are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from rlx.agent import Scores
from rlx.errors import ConfigError
from rlx.robustness.network import Network
from rlx.robustness.tracing import (
    Affine,
    Call,
    Rule,
    Rules,
    Slice,
    Tracer,
    Unknown,
    unsupported,
)

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
    tracer = Tracer(obs, Rules(_OF_ROWS, _OF_SEEDS, _CONSTANTS))
    with tracer:
        values = scores.function(tracer.obs)
    return tracer.network(values)


def check_discrete(scores: Scores) -> None:
    """ConfigError where it is not the highest score of some choices that decides."""
    if scores.choice is not None:
        raise ConfigError(unsupported("a search decides"))
    if scores.continuous:
        raise ConfigError(unsupported("actions are continuous"))


def _identity(call: Call) -> Affine:
    return call.affine(0)


def _reshaped(call: Call) -> Affine:
    trailing = call.out.shape[2:]
    affine = call.affine(0)
    if call.func.overloadpacket is not _aten.expand:
        return affine.map(lambda x: x.reshape(*x.shape[:2], *trailing))
    if call.out.dim() != call.args[0].dim():
        raise Unknown("across a batch")
    return affine.map(lambda x: x.expand(*x.shape[:2], *trailing))


def _within_rows(call: Call) -> Affine:
    """An operation along given axes, none of which may be that of seeds or rows."""
    axes = _axes(call)
    roundings = 0
    if call.func.overloadpacket in (_aten.mean, _aten.sum):
        roundings = 1 + math.prod(call.args[0].shape[axis] for axis in axes)
    return call.affine(0).map(lambda x: call.func(x, *call.args[1:], **call.kwargs), roundings)


def _axes(call: Call) -> list[int]:
    """The axes, from 2 on, along which an operation works; Unknown where it mixes rows."""
    axes: list[int] = []
    for place, argument in enumerate(call.func._schema.arguments):
        if argument.name not in ("dim", "dim0", "dim1"):
            continue
        given = call.kwargs.get(argument.name, argument.default_value)
        if place < len(call.args):
            given = call.args[place]
        if given is None:
            raise Unknown("over all of a batch")
        axes += given if isinstance(given, Sequence) else [given]
    dims = call.args[0].dim() + (call.func.overloadpacket is _aten.unsqueeze)
    axes = [axis % dims for axis in axes]
    if not axes or min(axes) < 2:
        raise Unknown("across a batch")
    return axes


def _split(call: Call) -> list[Affine]:
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


def _added(call: Call) -> Affine:
    first, second = call.whole(0), call.whole(1)
    if call.func.overloadpacket is _aten.rsub:
        first, second = second, first
    sign = 1.0 if call.func.overloadpacket is _aten.add else -1.0
    return first.plus(_times(second, sign * float(call.kwargs.get("alpha", 1))), call.tracer)


def _times(affine: Affine, factor: float | Tensor) -> Affine:
    """`affine` times a number, or times what all rows have in common, [S, 1, *F]."""
    # The product, and a number of Python's that becomes float32; a change of sign rounds nothing.
    roundings = 0 if isinstance(factor, float) and abs(factor) == 1 else 2
    size = abs(factor) if isinstance(factor, float) else factor.abs()
    return affine.mapped(lambda x: x * factor, lambda x: x * size, roundings)


def _negated(call: Call) -> Affine:
    return _times(call.affine(0), -1.0)


def _multiplied(call: Call) -> Affine:
    for affine, value in (call.args, call.args[::-1]):
        known = call.tracer.affine(affine)
        factor = _factor(value, call)
        if known is not None and factor is not None:
            return _times(known, factor)
    return _product_of(call.tracer, call.whole(0), call.whole(1), call.out.shape[2:])


def _divided(call: Call) -> Affine:
    if call.tracer.affine(call.args[1]) is not None or call.kwargs.get("rounding_mode"):
        raise Unknown("by what is no constant")
    factor = _factor(call.args[1], call)
    if factor is not None:
        return _times(call.affine(0), 1 / factor)
    inverse = Affine.constant(1 / call.tracer.constant(call.args[1], call.out))
    return _product_of(call.tracer, call.affine(0), inverse, call.out.shape[2:])


def _factor(value: Any, call: Call) -> Tensor | None:
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


def _product_of(tracer: Tracer, one: Affine, other: Affine, shape: Sequence[int]) -> Affine:
    """The product of two, number by number, in a `shape` [*F]."""

    def flat(x: Tensor) -> Tensor:
        return x.expand(*x.shape[:2], *shape).flatten(2)

    parts = [affine.map(flat) for affine in (one, other)]
    return tracer.behind(_cat(tracer, parts, 2), "product", shape)


def _cat(tracer: Tracer, affines: Sequence[Affine], axis: int) -> Affine:
    """Several behind each other along an axis."""
    parts = tracer.of_same_blocks(affines)
    most = max(part.bias.shape[1] for part in parts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.expand(-1, most, *tensor.shape[2:]) for tensor in tensors], axis)

    return Affine(
        parts[0].blocks,
        lambda x: torch.cat([part.linear(x) for part in parts], axis),
        joined([part.bias for part in parts]),
        lambda x: torch.cat([part.size(x) for part in parts], axis),
        joined([part.bias_size for part in parts]),
        max(part.roundings for part in parts),
    )


def _product(call: Call) -> Affine:
    if call.tracer.affine(call.args[1]) is not None:
        raise Unknown("by what is no constant")
    weight = call.args[1].double()
    size = weight.abs()
    # A product and n sums for each term.
    return call.affine(0).mapped(lambda x: x @ weight, lambda x: x @ size, weight.shape[1] + 1)


def _product_plus(call: Call) -> Affine:
    if call.kwargs or call.tracer.affine(call.args[0]) is not None:
        raise Unknown("with a sum that is no bias")
    bias = call.whole(0)
    return _product(replace(call, args=call.args[1:])).plus(bias, call.tracer)


def _joined(call: Call) -> Affine:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    axis = given % call.out.dim()
    if axis < 2:
        raise Unknown("across a batch")
    parts = []
    for part in call.args[0]:
        affine = call.tracer.affine(part)
        if affine is None:
            affine = Affine.constant(call.tracer.constant(part, part))
        parts.append(affine)
    return _cat(call.tracer, parts, axis)


def _taken_apart(call: Call) -> None:
    """A tensor cut into its seeds, of which each gets a convolution of its own."""
    if call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) != 0:
        raise Unknown("across a batch")
    affine = call.affine(0)
    for seed, part in enumerate(call.out):
        call.tracer.slices[id(part)] = (part, Slice(seed, affine))


def _convolved(call: Call) -> None:
    _, part = call.tracer.slices.get(id(call.args[0]), (None, None))
    transposed, _, groups = call.args[6:9]
    if part is None or part.convolution or transposed or groups != 1:
        raise Unknown("of another form than one for each seed")
    call.tracer.slices[id(call.out)] = (call.out, replace(part, convolution=call.args[1:6]))


def _put_together(call: Call) -> None:
    """The convolutions of all seeds as one affine function."""
    tracer = call.tracer
    parts = [tracer.slices[id(part)][1] for part in call.args[0] if id(part) in tracer.slices]
    is_along_seeds = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) == 0
    in_order = [part.seed for part in parts] == list(range(tracer.seeds))
    if not is_along_seeds or not in_order or not all(part.convolution for part in parts):
        raise Unknown("of another form than convolutions of all seeds")
    if any(part.affine is not parts[0].affine for part in parts):
        raise Unknown("of different tensors")
    kernels, biases, *options = zip(*(part.convolution for part in parts), strict=True)
    if any(one != option[0] for option in options for one in option):
        raise Unknown("of different convolutions")
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
        affine = affine.plus(Affine.constant(bias), tracer)
    tracer.note(call.out, affine)


def _relu(call: Call) -> Affine:
    return call.tracer.behind(call.affine(0), "relu", call.out.shape[2:])


def _tanh(call: Call) -> Affine:
    return call.tracer.behind(call.affine(0), "tanh", call.out.shape[2:])


def _sigmoid(call: Call) -> Affine:
    """σ(z) = 1/2 + tanh(z / 2) / 2, whose error is no more than half that of a tanh."""
    half = call.tracer.behind(_times(call.affine(0), 0.5), "tanh", call.out.shape[2:])
    middle = Affine.constant(torch.full_like(half.bias, 0.5))
    return _times(half, 0.5).plus(middle, call.tracer)


def _interpolated(call: Call) -> Affine:
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


def _clamped(call: Call) -> Affine:
    """min(max(z, low), high) = low + relu(z − low) − relu(z − high)."""
    low = call.kwargs.get("min", call.args[1] if len(call.args) > 1 else None)
    high = call.kwargs.get("max", call.args[2] if len(call.args) > 2 else None)
    affine = call.affine(0)
    if not isinstance(low, int | float) or affine.bias.dim() != 3:
        raise Unknown("without a number as its lower bound")
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


def _shifted(affine: Affine, number: float) -> Affine:
    """`affine` plus a number, without a rounding: a clamp adds none."""
    return replace(affine, bias=affine.bias + number, bias_size=affine.bias_size + abs(number))


_OF_SEEDS = {
    _aten.unbind: _taken_apart,
    _aten.convolution: _convolved,
    _aten.stack: _put_together,
}
_CONSTANTS = {_aten.zeros_like, _aten.ones_like, _aten.empty_like, _aten.full_like, _aten.new_zeros}
_OF_ROWS: dict[Any, Rule] = {
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
