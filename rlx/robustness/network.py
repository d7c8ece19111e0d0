"""A policy's scores as a network of layers, which bounds are computed of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlx.robustness.weights import Sparse, through

UNIT = 2.0**-24
"""The largest relative error of one rounding to float32."""
TANH_ERROR = 2.0**-21
"""More than what float32 libraries are off by in a tanh, which is at most 1."""


@dataclass(frozen=True)
class Layer:
    """An affine map of n numbers into m, float64, and the activation behind it.

    A product takes two numbers into one: of its m numbers the first half times the second.
    """

    sources: tuple[int, ...]
    """Whose numbers it maps, behind each other: 0 are the observation's, k those of the k-th layer
    of the network, which is before this one."""
    weight: Tensor | Sparse
    """[S, n, m]."""
    bias: Tensor
    """[S, B, m], or [S, 1, m] where all B rows have the same."""
    weight_size: Tensor | Sparse
    """[S, n, m]: the sum of the sizes of all terms that make up `weight`, at least |weight|."""
    bias_size: Tensor
    """[S, B or 1, m]: the same of `bias`."""
    roundings: int
    """The most float32 roundings that a term of the sums goes through."""
    activation: str | None
    """`relu`, `tanh`, `product`, or None behind the last layer."""

    def inputs(self, blocks: Sequence[Tensor]) -> Tensor:
        """The n numbers that it maps: those of its sources, along the last axis.

        `blocks`: the numbers of the observation, and of each layer before this one.
        """
        if len(self.sources) == 1:
            return blocks[self.sources[0]]
        return torch.cat([blocks[source] for source in self.sources], -1)

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
        if self.activation == "product":
            first, second = z.chunk(2, -1)
            return first * second
        return z

    def image(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest that the activation makes of numbers between `low` and `high`."""
        if self.activation != "product":
            return self.activated(low), self.activated(high)
        lows = low.chunk(2, -1)
        highs = high.chunk(2, -1)
        corners = [one * other for one in (lows[0], highs[0]) for other in (lows[1], highs[1])]
        stacked = torch.stack(corners)
        return stacked.amin(0), stacked.amax(0)


@dataclass(frozen=True)
class Network:
    """Scores at B observations of each of S seeds: layers, each of which maps others' numbers."""

    layers: tuple[Layer, ...]
    """In an order in which each comes after its sources; the last makes the scores."""

    @property
    def choices(self) -> int:
        """A, the number of scores."""
        return self.layers[-1].bias.shape[-1]

    @property
    def has_convolutions(self) -> bool:
        """Whether a layer has so many weights that those which are 0 are left out."""
        return any(isinstance(layer.weight, Sparse) for layer in self.layers)

    @property
    def rows_at_once(self) -> int:
        """The rows whose bounds are computed at once: their numbers then fit a CPU's cache."""
        return 64 if self.has_convolutions else 4096

    def __call__(self, obs: Tensor) -> Tensor:
        """The scores [S, B, A] of `obs` [S, B, n], in float64 unless `float` says otherwise."""
        blocks = [obs.to(self.layers[0].bias.dtype)]
        for layer in self.layers:
            z = through(layer.inputs(blocks), layer.weight) + layer.bias
            blocks.append(layer.activated(z))
        return blocks[-1]

    def of_seed(self, seed: int) -> "Network":
        """The network of one seed, of which S is 1."""
        one = slice(seed, seed + 1)
        return self._changed(lambda tensor: tensor[one], lambda bias: bias[one])

    def at(self, rows: Tensor) -> "Network":
        """The network at the observations `rows`, int64 [B'], of the B."""
        return self._changed(lambda weight: weight, lambda bias: _rows(bias, rows))

    def float(self) -> "Network":
        """The network in float32, for attacks; bounds are of the one in float64."""
        return self._changed(lambda weight: weight.float(), Tensor.float)

    def _changed(
        self,
        of_weight: Callable[[Tensor | Sparse], Tensor | Sparse],
        of_bias: Callable[[Tensor], Tensor],
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
