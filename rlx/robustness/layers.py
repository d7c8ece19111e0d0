"""The scores of a policy as affine maps with activations between, read off its own operations.

Nothing is asked of a policy but its scores: they are computed once, and each operation of torch
that an observation passes through is noted. Users' agents are read as rlx's own are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlx.agent import Scores
from rlx.errors import ConfigError

_aten = torch.ops.aten

UNIT = 2.0**-24
"""The largest relative error of one rounding to float32."""
TANH_ERROR = 2.0**-21
"""More than what float32 libraries are off by in a tanh, which is at most 1."""


@dataclass(frozen=True)
class Layer:
    """An affine map of n numbers into m, float64, and the activation behind it."""

    weight: Tensor
    """[S, n, m]."""
    bias: Tensor
    """[S, B, m], or [S, 1, m] where all B rows have the same."""
    weight_size: Tensor
    """[S, n, m]: the sum of the sizes of all terms that make up `weight`, at least |weight|."""
    bias_size: Tensor
    """[S, B or 1, m]: the same of `bias`."""
    roundings: int
    """The most float32 roundings that a term of the sums goes through."""
    activation: str | None
    """`relu`, `tanh`, or None behind the last layer."""

    def rounding(self) -> float:
        """How far float32 may be off, relative to the sum of the terms' sizes.

        It holds for any order of summation (Higham 2002, Accuracy and Stability, section 3.1).
        """
        return self.roundings * UNIT / (1 - self.roundings * UNIT)

    def activated(self, z: Tensor) -> Tensor:
        """What the activation makes of z, of any shape."""
        if self.activation == "relu":
            return z.relu()
        if self.activation == "tanh":
            return z.tanh()
        return z


@dataclass(frozen=True)
class Network:
    """Scores at B observations of each of S seeds: layers one after another."""

    layers: tuple[Layer, ...]
    """From the observation's numbers to the scores."""

    @property
    def choices(self) -> int:
        """A, the number of scores."""
        return self.layers[-1].weight.shape[-1]

    def __call__(self, obs: Tensor) -> Tensor:
        """The scores [S, B, A] of `obs` [S, B, n], in float64 unless `float` says otherwise."""
        y = obs.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            y = layer.activated(y @ layer.weight + layer.bias)
        return y

    def of_seed(self, seed: int) -> "Network":
        """The network of one seed, of which S is 1."""
        one = slice(seed, seed + 1)
        return self._changed(lambda tensor: tensor[one], lambda bias: bias[one])

    def at(self, rows: Tensor) -> "Network":
        """The network at the observations `rows`, int64 [B'], of the B."""
        return self._changed(lambda weight: weight, lambda bias: _rows(bias, rows))

    def float(self) -> "Network":
        """The network in float32, for attacks; bounds are of the one in float64."""
        return self._changed(Tensor.float, Tensor.float)

    def _changed(
        self, of_weight: Callable[[Tensor], Tensor], of_bias: Callable[[Tensor], Tensor]
    ) -> "Network":
        layers = []
        for layer in self.layers:
            changed = replace(
                layer,
                weight=of_weight(layer.weight),
                weight_size=of_weight(layer.weight_size),
                bias=of_bias(layer.bias),
                bias_size=of_bias(layer.bias_size),
            )
            layers.append(changed)
        return Network(tuple(layers))


def _rows(bias: Tensor, rows: Tensor) -> Tensor:
    """The `rows` [B'] of a bias [S, B, m]; all of [S, 1, m]."""
    return bias if bias.shape[1] == 1 else bias[:, rows]


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
        "fully connected layers with ReLU or tanh, dueling or not, of flat observations."
    )


@dataclass(frozen=True)
class _Affine:
    """A tensor [S, B, *F] as an affine function of the n outputs of the layers before."""

    layers: tuple[Layer, ...]
    """The layers before."""
    weight: Tensor
    """float64 [S, n, *F]."""
    bias: Tensor
    """float64 [S, B or 1, *F]."""
    weight_size: Tensor
    """As `Layer.weight_size`, [S, n, *F]."""
    bias_size: Tensor
    """As `Layer.bias_size`, [S, B or 1, *F]."""
    roundings: int
    """As `Layer.roundings`."""

    @classmethod
    def same(
        cls, layers: tuple[Layer, ...], seeds: int, shape: Sequence[int], like: Tensor
    ) -> "_Affine":
        """The outputs of `layers` as they are, in a `shape` [*F]."""
        size = math.prod(shape)
        eye = torch.eye(size, dtype=torch.float64, device=like.device)
        weight = eye.view(1, size, *shape).expand(seeds, -1, *shape)
        bias = weight.new_zeros(seeds, 1, *shape)
        return cls(layers, weight, bias, weight, bias, 0)

    def map(self, function: Callable[[Tensor], Tensor], roundings: int = 0) -> "_Affine":
        """What a linear `function` of [S, rows, *F], which has no negative weights, makes of it."""
        return _Affine(
            self.layers,
            function(self.weight),
            function(self.bias),
            function(self.weight_size),
            function(self.bias_size),
            self.roundings + roundings,
        )

    def layer(self, activation: str | None) -> Layer:
        """The layer that ends with this, flattened."""
        return Layer(
            self.weight.flatten(2),
            self.bias.flatten(2),
            self.weight_size.flatten(2),
            self.bias_size.flatten(2),
            self.roundings,
            activation,
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
    out: Tensor
    """Its result, [S, B, *F]."""

    def affine(self, number: int) -> _Affine:
        """The argument of this number, which depends on the observation; else _Unknown."""
        affine = self.tracer.affine(self.args[number])
        if affine is None:
            raise _Unknown("of what is constant")
        return affine


Rule = Callable[[_Call], _Affine]
"""An operation → its result as an affine function; raises _Unknown where it is none."""


class _Tracer(TorchDispatchMode):
    """Notes what each operation makes of an observation, while they are computed as ever."""

    def __init__(self, obs: Tensor):
        super().__init__()
        self.seeds, self.batch = obs.shape[:2]
        self.obs = obs.clone()
        # The tensors are kept, so that no other one gets their id.
        self.known: dict[int, tuple[Tensor, _Affine]] = {}
        self.note(self.obs, _Affine.same((), self.seeds, obs.shape[2:], obs))

    def note(self, tensor: Tensor, affine: _Affine) -> None:
        """Remember that `tensor` is this function, unless it is a constant."""
        self.known.pop(id(tensor), None)
        if affine.weight_size.any():
            self.known[id(tensor)] = (tensor, affine)

    def affine(self, tensor: Any) -> _Affine | None:
        """What `tensor` is as a function of the observation; None: a constant."""
        entry = self.known.get(id(tensor))
        return None if entry is None else entry[1]

    def network(self, values: Tensor) -> Network:
        """The network whose scores are `values` [S, B, A]."""
        affine = self.affine(values)
        if affine is None:
            constant = values.double()
            zero = constant.new_zeros(self.seeds, self.obs[0, 0].numel(), values.shape[-1])
            return Network((Layer(zero, constant, zero, constant.abs(), 0, None),))
        return Network((*affine.layers, affine.layer(None)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        touched = any(id(leaf) in self.known for leaf in tree_leaves((args, kwargs)))
        out = func(*args, **kwargs)
        if touched and func.overloadpacket not in _CONSTANTS:
            rule = _RULES.get(func.overloadpacket)
            name = str(func.overloadpacket).removeprefix("aten.")
            floating = isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float64)
            if rule is None or not floating or out.shape[:2] != (self.seeds, self.batch):
                raise ConfigError(
                    _unsupported(f"a policy's scores go through the operation {name}")
                )
            try:
                self._check_in_place(func, args, out)
                self.note(out, rule(_Call(self, func, args, kwargs, out)))
            except _Unknown as unknown:
                problem = f"a policy's scores go through the operation {name} {unknown}"
                raise ConfigError(_unsupported(problem)) from None
        return out

    def _check_in_place(self, func: Any, args: Any, out: Tensor) -> None:
        """_Unknown where an operation changes a tensor that others look into."""
        if out is not args[0]:
            return
        storage = out.untyped_storage().data_ptr()
        tensors = [tensor for tensor, _ in self.known.values() if tensor is not out]
        if any(tensor.untyped_storage().data_ptr() == storage for tensor in tensors):
            raise _Unknown("in place, of a tensor that is part of another")

    def constant(self, value: Any, out: Tensor) -> Tensor:
        """A constant argument, float64 [S or 1, B or 1, *F] for a result `out` [S, B, *F].

        It is [S or 1, 1, *F] where it is the same in all rows.
        """
        tensor = torch.as_tensor(value, dtype=torch.float64, device=out.device)
        tensor = tensor.reshape(*[1] * (out.dim() - tensor.dim()), *tensor.shape)
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


def _added(call: _Call) -> _Affine:
    sign = -1.0 if call.func.overloadpacket is _aten.sub else 1.0
    factor = sign * call.kwargs.get("alpha", 1)
    first = call.tracer.affine(call.args[0])
    if first is None:
        return _plus(call.tracer, _times(call.affine(1), factor), call.args[0], call.out)
    second = call.tracer.affine(call.args[1])
    if second is None:
        constant = call.tracer.constant(call.args[1], call.out) * factor
        return _plus(call.tracer, first, constant, call.out)
    if first.layers is not second.layers:
        raise _Unknown("of different depths")
    other = _times(second, factor)
    return _Affine(
        first.layers,
        first.weight + other.weight,
        first.bias + other.bias,
        first.weight_size + other.weight_size,
        first.bias_size + other.bias_size,
        max(first.roundings, other.roundings) + 1,
    )


def _plus(tracer: _Tracer, affine: _Affine, value: Any, out: Tensor) -> _Affine:
    """`affine` plus a constant, as `out` is."""
    constant = tracer.constant(value, out)
    whole = affine.map(lambda x: x.expand(*x.shape[:2], *out.shape[2:]), 2)
    return replace(whole, bias=whole.bias + constant, bias_size=whole.bias_size + constant.abs())


def _times(affine: _Affine, factor: float | Tensor) -> _Affine:
    """`affine` times a number, or times a constant [S or 1, 1, *F]."""
    size = abs(factor) if isinstance(factor, float) else factor.abs()
    return _Affine(
        affine.layers,
        affine.weight * factor,
        affine.bias * factor,
        affine.weight_size * size,
        affine.bias_size * size,
        # The product, and a number of Python's that becomes float32.
        affine.roundings + 2,
    )


def _negated(call: _Call) -> _Affine:
    return _times(call.affine(0), -1.0)


def _multiplied(call: _Call) -> _Affine:
    affine = call.tracer.affine(call.args[0])
    value = call.args[1]
    if affine is None:
        affine = call.affine(1)
        value = call.args[0]
    elif call.tracer.affine(call.args[1]) is not None:
        raise _Unknown("of two numbers that both depend on the observation")
    return _times(affine, _factor(call.tracer, value, call.out))


def _divided(call: _Call) -> _Affine:
    if call.tracer.affine(call.args[1]) is not None or call.kwargs.get("rounding_mode"):
        raise _Unknown("by what is no constant")
    return _times(call.affine(0), 1 / _factor(call.tracer, call.args[1], call.out))


def _factor(tracer: _Tracer, value: Any, out: Tensor) -> Tensor:
    """A constant factor [S or 1, 1, *F]."""
    factor = tracer.constant(value, out)
    if factor.shape[1] > 1:
        raise _Unknown("by a factor that differs from row to row")
    return factor


def _product(call: _Call) -> _Affine:
    affine = call.affine(0)
    if call.tracer.affine(call.args[1]) is not None:
        raise _Unknown("by what is no constant")
    weight = call.args[1].double()
    size = weight.abs()
    return _Affine(
        affine.layers,
        affine.weight @ weight,
        affine.bias @ weight,
        affine.weight_size @ size,
        affine.bias_size @ size,
        # A product and n sums for each term.
        affine.roundings + weight.shape[1] + 1,
    )


def _product_plus(call: _Call) -> _Affine:
    if call.kwargs or call.tracer.affine(call.args[0]) is not None:
        raise _Unknown("with a sum that is no bias")
    product = _product(replace(call, args=call.args[1:]))
    return _plus(call.tracer, product, call.args[0], call.out)


def _joined(call: _Call) -> _Affine:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    axis = given % call.out.dim()
    affines = [call.tracer.affine(part) for part in call.args[0]]
    known = [affine for affine in affines if affine is not None]
    if axis < 2 or any(affine.layers is not known[0].layers for affine in known):
        raise _Unknown("of different depths, or across a batch")
    rows = known[0].weight.shape[1]
    whole = []
    for part, affine in zip(call.args[0], affines, strict=True):
        if affine is None:
            constant = call.tracer.constant(part, call.out)
            bias = constant.expand(call.tracer.seeds, -1, *part.shape[2:])
            weight = bias.new_zeros(call.tracer.seeds, rows, *part.shape[2:])
            affine = _Affine(known[0].layers, weight, bias, weight, bias.abs(), 0)
        whole.append(affine)
    most = max(affine.bias.shape[1] for affine in whole)

    def joined(parts: list[Tensor], size: int) -> Tensor:
        return torch.cat([part.expand(-1, size, *part.shape[2:]) for part in parts], axis)

    return _Affine(
        known[0].layers,
        joined([affine.weight for affine in whole], rows),
        joined([affine.bias for affine in whole], most),
        joined([affine.weight_size for affine in whole], rows),
        joined([affine.bias_size for affine in whole], most),
        max(affine.roundings for affine in whole),
    )


def _behind(tracer: _Tracer, affine: _Affine, activation: str, out: Tensor) -> _Affine:
    """The outputs of one more layer, in the shape of `out`."""
    layers = (*affine.layers, affine.layer(activation))
    return _Affine.same(layers, tracer.seeds, affine.weight.shape[2:], out)


def _relu(call: _Call) -> _Affine:
    return _behind(call.tracer, call.affine(0), "relu", call.out)


def _tanh(call: _Call) -> _Affine:
    return _behind(call.tracer, call.affine(0), "tanh", call.out)


def _clamped(call: _Call) -> _Affine:
    """min(max(z, low), high) = low + relu(z − low) − relu(z − high)."""
    low = call.kwargs.get("min", call.args[1] if len(call.args) > 1 else None)
    high = call.kwargs.get("max", call.args[2] if len(call.args) > 2 else None)
    affine = call.affine(0)
    if not isinstance(low, int | float) or affine.weight.dim() != 3:
        raise _Unknown("without a number as its lower bound")
    above = [replace(affine, bias=affine.bias - low, bias_size=affine.bias_size + abs(low))]
    if high is not None:
        above.append(
            replace(affine, bias=affine.bias - high, bias_size=affine.bias_size + abs(high))
        )
    parts = _Affine(
        affine.layers,
        torch.cat([part.weight for part in above], 2),
        torch.cat([part.bias for part in above], 2),
        torch.cat([part.weight_size for part in above], 2),
        torch.cat([part.bias_size for part in above], 2),
        affine.roundings,
    )
    outputs = _behind(call.tracer, parts, "relu", call.out)
    size = affine.weight.shape[2]
    lower = outputs.map(lambda x: x[..., :size])
    if high is not None:
        lower = replace(
            lower,
            weight=lower.weight - outputs.weight[..., size:],
            weight_size=lower.weight_size + outputs.weight_size[..., size:],
        )
    return replace(lower, bias=lower.bias + low, bias_size=lower.bias_size + abs(low))


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
    _aten.neg: _negated,
    _aten.mul: _multiplied,
    _aten.div: _divided,
    _aten.bmm: _product,
    _aten.baddbmm: _product_plus,
    _aten.cat: _joined,
    _aten.relu: _relu,
    _aten.relu_: _relu,
    _aten.tanh: _tanh,
    _aten.tanh_: _tanh,
    _aten.clamp: _clamped,
    _aten.clamp_min: _clamped,
    _aten.hardtanh: _clamped,
}
