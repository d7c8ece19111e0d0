"""Bounds of a network's scores over boxes of observations: IBP and CROWN.

They hold for exact arithmetic and for float32 in any order of summation alike: what float32 can be
off by is bounded beside the values, and taken off. The bounds themselves are computed in float64,
whose own rounding is a millionth of that.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlx.robustness.network import TANH_ERROR, UNIT, Layer, Network
from rlx.robustness.weights import Sparse, back_through, sizes_of, through

TINY = 1e-12
"""By how much the lines beside a tanh are moved outwards, for the rounding of float64."""
NARROW = 1e-9
"""Width of an interval below which the lines beside a tanh are level: a chord would be rounding."""
BISECTIONS = 8
"""Halvings by which the point is found where a line touches a tanh; all of them are valid."""


class Box(NamedTuple):
    """Boxes of flat observations, float64 [S, B, n] each."""

    low: Tensor
    """The lowest corner."""
    high: Tensor
    """The highest corner."""

    @property
    def centre(self) -> Tensor:
        """The middle of each box, [S, B, n]."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half of each box's width, [S, B, n], rounded up."""
        centre = self.centre
        return torch.maximum(self.high - centre, centre - self.low)


class Bounds(NamedTuple):
    """What K linear functions of the scores are at least, in each of B boxes of S seeds."""

    lower: Tensor
    """The bounds, float64 [S, B, K]."""
    slopes: Tensor
    """By how much each number of the observation moves them within the box, [S, B, K, n]."""
    rounding: Tensor
    """What float32 may be off by, which `lower` has allowed for, [S, B, K]."""


def interval(network: Network, box: Box, objective: Tensor) -> Tensor:
    """Lower bounds [S, B, K] of `objective` [S, B, K, A] times the scores, by IBP.

    Interval bound propagation (Gowal et al. 2018): each number by itself, layer by layer. The
    objective is taken into the last layer, so that a difference of scores is bounded as one number.
    """
    middles = [box.centre]
    radii = [box.radius]
    errors = [torch.zeros_like(box.centre)]
    for layer in network.layers[:-1]:
        middle, radius, error = map(layer.inputs, (middles, radii, errors))
        own = _rounding_error(layer, middle.abs() + radius, error)
        error = through(error, sizes_of(layer.weight)) + own
        radius = through(radius, sizes_of(layer.weight)) + error
        middle = through(middle, layer.weight) + layer.bias
        low, high = layer.image(middle - radius, middle + radius)
        middles.append((low + high) / 2)
        radii.append((high - low) / 2)
        errors.append(_error_behind(layer, middle - radius, middle + radius, error))
    last = network.layers[-1]
    middle, radius, error = map(last.inputs, (middles, radii, errors))
    coefficients = _back(objective, last)
    lower = _least_within(coefficients, middle - radius, middle + radius)
    size = middle.abs() + radius
    error = _objective_error(network, objective, coefficients, size, error)
    return lower + _times(objective, last.bias) - error


def crown(network: Network, box: Box, objective: Tensor) -> Bounds:
    """Lower bounds of `objective` [S, B, K, A] times the scores, by CROWN.

    Zhang et al. 2018, arXiv:1811.00866: each activation lies between two lines, of which the
    objective's own coefficients choose one, going backwards from the scores to the observation.
    What goes into the activations is bounded on the way forward; up to two hidden layers that gives
    the same bounds as going backwards from each unit, at a hundredth of the cost, and beyond it
    somewhat wider ones. No bound is below that of `interval`.
    """
    forward = _forward(network, box)
    last = network.layers[-1]
    low, high, error = map(last.inputs, (forward.low, forward.high, forward.error))
    coefficients = _back(objective, last)
    size = torch.maximum(low.abs(), high.abs())
    rounding = _objective_error(network, objective, coefficients, size, error)
    constant = _times(objective, last.bias) - rounding
    by_interval = _least_within(coefficients, low, high) + constant
    lower = constant
    # Those of each block's numbers, as far as they are known.
    parts: dict[int, Tensor] = {}
    _hand_back(parts, last, coefficients, forward.low)
    for number in range(len(network.layers) - 1, 0, -1):
        layer = network.layers[number - 1]
        line = forward.lines[number - 1]
        coefficients = parts.pop(number)
        positive = coefficients.clamp_min(0)
        negative = coefficients - positive
        lower = lower + _times(positive, line.low_offset) + _times(negative, line.high_offset)
        if layer.activation == "product":
            positive = positive.repeat(1, 1, 1, 2)
            negative = negative.repeat(1, 1, 1, 2)
        coefficients = positive * line.low_slope.unsqueeze(2)
        coefficients += negative * line.high_slope.unsqueeze(2)
        lower = lower + _times(coefficients, layer.bias)
        coefficients = _back(coefficients, layer)
        _hand_back(parts, layer, coefficients, forward.low)
    slopes = parts[0] * box.radius.unsqueeze(2)
    lower = lower + _times(parts[0], box.centre) - slopes.abs().sum(-1)
    return Bounds(torch.maximum(lower, by_interval), slopes, rounding)


def _back(coefficients: Tensor, layer: Layer) -> Tensor:
    """The coefficients [S, B, K, n] of what a layer maps, of those [S, B, K, m] of its results."""
    if isinstance(layer.weight, Sparse):
        flat = back_through(coefficients.flatten(1, 2), layer.weight)
        return flat.unflatten(1, coefficients.shape[1:3])
    return coefficients @ layer.weight.mT.unsqueeze(1)


def _hand_back(
    parts: dict[int, Tensor], layer: Layer, coefficients: Tensor, blocks: list[Tensor]
) -> None:
    """Add `coefficients` [S, B, K, n] of what a layer maps to those of its sources' numbers.

    `blocks`: any numbers of each block, [S, B, m].
    """
    sizes = [blocks[source].shape[-1] for source in layer.sources]
    for source, own in zip(layer.sources, coefficients.split(sizes, -1), strict=True):
        parts[source] = parts[source] + own if source in parts else own


def score_error(network: Network, box: Box) -> Tensor:
    """By how much float32 may be off in each score at any point of the boxes, [S, B, A]."""
    forward = _forward(network, box)
    last = network.layers[-1]
    low, high, error = map(last.inputs, (forward.low, forward.high, forward.error))
    size = torch.maximum(low.abs(), high.abs())
    return through(error, sizes_of(last.weight)) + _rounding_error(last, size, error)


def margins_of(choice: Tensor, choices: int) -> Tensor:
    """The objective [S, B, A, A] whose A numbers are the score of `choice` [S, B] minus each."""
    eye = torch.eye(choices, dtype=torch.float64, device=choice.device)
    return eye[choice].unsqueeze(2) - eye


@dataclass(frozen=True)
class _Lines:
    """Two lines, one below and one above an activation between its bounds, [S, B, m] each.

    Of a product they are planes, whose slopes are those of the first numbers, then of the second.
    """

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor


@dataclass(frozen=True)
class _Forward:
    """What is known of a network's numbers: those of the observation, and of each hidden layer."""

    lines: list[_Lines]
    """The lines beside the activations of each hidden layer."""
    low: list[Tensor]
    """The lowest of each block's numbers, [S, B, m] each."""
    high: list[Tensor]
    """The highest."""
    error: list[Tensor]
    """How far float32 may be off."""


def _forward(network: Network, box: Box) -> _Forward:
    """The lines beside every activation, and bounds of all numbers.

    No unit is enclosed wider than by IBP; with convolutions by this alone, for their images have
    too many numbers for `_Enclosing` (CROWN-IBP, Zhang et al. 2020, arXiv:1906.06316).
    """
    enclosing = None if network.has_convolutions else _Enclosing(box)
    found = _Forward([], [box.low], [box.high], [torch.zeros_like(box.low)])
    for layer in network.layers[:-1]:
        low, high, error = map(layer.inputs, (found.low, found.high, found.error))
        own = _rounding_error(layer, torch.maximum(low.abs(), high.abs()), error)
        error = through(error, sizes_of(layer.weight)) + own
        # IBP of the same layer.
        middle = through((low + high) / 2, layer.weight) + layer.bias
        radius = through((high - low) / 2, sizes_of(layer.weight))
        low = middle - radius
        high = middle + radius
        if enclosing is not None:
            least, most = enclosing.mapped(layer)
            low = torch.maximum(least, low)
            high = torch.minimum(most, high)
        low = low - error
        high = high + error
        line = _beside(layer, low, high)
        if enclosing is not None:
            enclosing.activated(layer, line)
        image = layer.image(low, high)
        found.lines.append(line)
        found.low.append(image[0])
        found.high.append(image[1])
        found.error.append(_error_behind(layer, low, high, error))
    return found


class _Enclosing:
    """Affine functions of the place in the box that enclose every number, layer by layer.

    The place is from −1 to 1 in each of the n numbers of the observation: [S, B, n + 1, m] each,
    the constant last.
    """

    def __init__(self, box: Box):
        start = torch.cat([box.radius.diag_embed(), box.centre.unsqueeze(2)], 2)
        self.below = [start]
        """Those below each block's numbers."""
        self.above = [start]
        """Those above."""
        self.mapped_below = start
        """Those below what goes into the activation of the layer that is looked at."""
        self.mapped_above = start

    def mapped(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Go through the affine map of a layer; returns the least and most of it, [S, B, m]."""
        assert isinstance(layer.weight, Tensor)
        below, above = map(layer.inputs, (self.below, self.above))
        positive = layer.weight.clamp_min(0).unsqueeze(1)
        negative = layer.weight.unsqueeze(1) - positive
        constant = layer.bias.unsqueeze(2)
        self.mapped_below = below @ positive + above @ negative
        self.mapped_above = above @ positive + below @ negative
        self.mapped_below[:, :, -1:] += constant
        self.mapped_above[:, :, -1:] += constant
        return _least(self.mapped_below), -_least(-self.mapped_above)

    def activated(self, layer: Layer, line: _Lines) -> None:
        """Go through the activation of the layer, which is between lines."""
        below, above = _between(layer, line, self.mapped_below, self.mapped_above)
        self.below.append(below)
        self.above.append(above)


def _between(layer: Layer, line: _Lines, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Affine functions [S, B, n + 1, m] that enclose what is behind the activation of a layer.

    `below` and `above` enclose what goes into it.
    """
    low_slope = line.low_slope.unsqueeze(2)
    high_slope = line.high_slope.unsqueeze(2)
    if layer.activation == "product":
        # A slope is the other number, which may be negative; both planes have the same.
        positive = low_slope.clamp_min(0)
        negative = low_slope - positive
        parts = (below * positive + above * negative, above * positive + below * negative)
        below, above = (torch.stack(part.chunk(2, -1)).sum(0) for part in parts)
    else:
        below = below * low_slope
        above = above * high_slope
    below[:, :, -1] += line.low_offset
    above[:, :, -1] += line.high_offset
    return below, above


def _least(affine: Tensor) -> Tensor:
    """The least value [S, B, m] of affine functions [S, B, n + 1, m] in the box."""
    return affine[:, :, -1] - affine[:, :, :-1].abs().sum(2)


def _times(objective: Tensor, values: Tensor) -> Tensor:
    """`objective` [S, B, K, m] times `values` [S, B or 1, m], [S, B, K]."""
    return (objective @ values.unsqueeze(-1)).squeeze(-1)


def _least_within(objective: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The least `objective` [S, B, K, m] times what is between `low` and `high`, [S, B, K]."""
    positive = objective.clamp_min(0)
    return _times(positive, low) + _times(objective - positive, high)


def _rounding_error(layer: Layer, size: Tensor, error: Tensor) -> Tensor:
    """What float32 may be off by in an affine map of given numbers, [S, B, m].

    These are [S, B, n], of a `size` of at most this, and are off by at most `error` themselves.
    """
    rounding = layer.rounding()
    return through((size + error) * rounding, layer.weight_size) + layer.bias_size * rounding


def _objective_error(
    network: Network, objective: Tensor, coefficients: Tensor, size: Tensor, error: Tensor
) -> Tensor:
    """What float32 may be off by in `objective` [S, B, K, A] times the scores, [S, B, K].

    `coefficients` [S, B, K, m] are those of the last hidden units, which are of at most a `size`
    and off by at most `error`, [S, B, m] each. What a unit is off by, all scores have in common.
    """
    own = _rounding_error(network.layers[-1], size, error)
    return _times(coefficients.abs(), error) + _times(objective.abs(), own)


def _error_behind(layer: Layer, low: Tensor, high: Tensor, error: Tensor) -> Tensor:
    """What float32 may be off by behind the activation of a layer, [S, B, m].

    What goes into it is between `low` and `high`, in float32 too, and off by at most `error`.
    """
    if layer.activation == "tanh":
        return error + TANH_ERROR
    if layer.activation == "product":
        one, other = torch.maximum(low.abs(), high.abs()).chunk(2, -1)
        own, others = error.chunk(2, -1)
        return one * others + other * own + UNIT * one * other
    # Of a ReLU; 0 is 0 however it rounds.
    return error.masked_fill(high <= 0, 0.0)


def _beside(layer: Layer, low: Tensor, high: Tensor) -> _Lines:
    """The lines beside the activation of `layer` between `low` and `high`, [S, B, m] each."""
    if layer.activation == "relu":
        return _beside_relu(low, high)
    if layer.activation == "product":
        return _beside_product(low, high)
    return _beside_tanh(low, high)


def _beside_product(low: Tensor, high: Tensor) -> _Lines:
    """The planes of the slopes in the middle: x y is off by at most the product of both radii.

    They are the means of the two planes below, and of the two above, of McCormick (1976).
    """
    one, other = ((low + high) / 2).chunk(2, -1)
    radius = torch.maximum(high - (low + high) / 2, (low + high) / 2 - low)
    most = radius.chunk(2, -1)[0] * radius.chunk(2, -1)[1]
    slope = torch.cat([other, one], -1)
    return _Lines(slope, -one * other - most, slope, most - one * other)


def _beside_relu(low: Tensor, high: Tensor) -> _Lines:
    """Exact where the sign is known; else the chord above, and below whichever wastes less area."""
    above = high.clamp_min(0)
    below = low.clamp_max(0)
    # 1 where low ≥ 0, and 0 where high ≤ 0.
    high_slope = torch.where(low >= 0, 1.0, above / (above - below).clamp_min(1e-300))
    low_slope = (high > -low).double()
    zero = torch.zeros_like(low)
    high_offset = torch.where(low >= 0, 0.0, -high_slope * below)
    return _Lines(low_slope, zero, high_slope, high_offset)


def _beside_tanh(low: Tensor, high: Tensor) -> _Lines:
    """Tangents and chords of tanh, which is convex below 0 and concave above."""
    high_slope, high_offset = _above_tanh(low, high)
    low_slope, low_offset = _above_tanh(-high, -low)
    return _Lines(low_slope, -low_offset - TINY, high_slope, high_offset + TINY)


def _above_tanh(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The slope and the offset of a line above tanh between `low` and `high`, [S, B, m] each.

    Where tanh is convex it is the chord. Where it is concave, the tangent in the middle. In between
    it is a tangent in the concave part that is not below tanh at `low`, if there is one.
    """
    tanh_low = low.tanh()
    width = high - low
    narrow = width < NARROW
    chord = (high.tanh() - tanh_low) / torch.where(narrow, 1.0, width)
    right = high.clamp_min(0)
    left = torch.zeros_like(low)
    touches = _tangent_at(right, low) >= tanh_low
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        valid = _tangent_at(middle, low) >= tanh_low
        right = torch.where(valid, middle, right)
        left = torch.where(valid, left, middle)
    point = torch.where(low >= 0, (low + high) / 2, right)
    is_tangent = ((low >= 0) | touches) & (high > 0)
    tangent = 1 - point.tanh().square()
    slope = torch.where(is_tangent, tangent, chord)
    offset = torch.where(is_tangent, point.tanh() - tangent * point, tanh_low - chord * low)
    return slope.masked_fill(narrow, 0.0), torch.where(narrow, high.tanh(), offset)


def _tangent_at(point: Tensor, x: Tensor) -> Tensor:
    """The tangent of tanh that touches it at `point`, at `x`."""
    value = point.tanh()
    return value + (1 - value.square()) * (x - point)
