"""Weights of layers: dense, or of a convolution without its zeros."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

DENSE = 1 << 22
"""The most weights of a layer with its zeros: 32 MB of a seed. Of more, those not 0 are kept."""
MOST = 1 << 28
"""The most weights of a layer, zeros too: all of them are looked at once, part by part."""
Linear = Callable[[Tensor], Tensor]
"""A linear function of [S, R, n], of R rows of n numbers: [S, R, *F]."""


class Sparse:
    """The weights of a linear map [S, n, m], few of which are not 0; made when they are needed."""

    def __init__(self, matrices: Callable[[], list[Tensor]], sample: Tensor):
        """`matrices`: makes the weights of each seed, [n, m]; `sample`: see the attribute."""
        self._make = matrices
        self.sample = sample
        """[S, m]: what it makes of numbers that are always the same: equal maps have equal ones."""

    @classmethod
    def of(cls, linear: Linear, like: Tensor, numbers: int) -> "Sparse":
        """Those of a `linear` function of `numbers`, of as many seeds as `like` [S, …] has."""

        waves = torch.arange(numbers, dtype=like.dtype, device=like.device).cos()
        sample = linear(waves.expand(len(like), 1, -1)).flatten(1)
        width = sample.shape[-1]

        def matrices() -> list[Tensor]:
            parts: list[list[Tensor]] = [[] for _ in like]
            for rows in torch.arange(numbers).split(max(1, DENSE // width)):
                eye = like.new_zeros(len(rows), numbers)
                eye[torch.arange(len(rows)), rows] = 1
                for seed, weight in enumerate(linear(eye.expand(len(like), -1, -1)).flatten(2)):
                    parts[seed].append(weight.to_sparse())
            return [torch.cat(part).coalesce() for part in parts]

        return cls(matrices, sample)

    @cached_property
    def matrices(self) -> list[Tensor]:
        """Those of each seed, sparse [n, m]."""
        return self._make()

    @cached_property
    def transposed(self) -> list[Tensor]:
        """The same as [m, n]: a product with a sparse matrix has it on the left."""
        return [matrix.t().coalesce() for matrix in self.matrices]

    def __getitem__(self, seeds: slice) -> "Sparse":
        return Sparse(lambda: self.matrices[seeds], self.sample[seeds])

    @cached_property
    def sizes(self) -> "Sparse":
        """The sizes of the weights."""
        return Sparse(lambda: [matrix.abs() for matrix in self.matrices], self.sample)

    def float(self) -> "Sparse":
        """The same in float32."""
        return Sparse(lambda: [matrix.float() for matrix in self.matrices], self.sample)


def same_weights(one: Tensor | Sparse, rows: Tensor, other: Tensor | Sparse) -> bool:
    """Whether the seeds `rows` (int64 [S']) of weights of S seeds are those of S' others."""
    if isinstance(one, Sparse) and isinstance(other, Sparse):
        return torch.allclose(one.sample[rows], other.sample, rtol=1e-12, atol=0)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one[rows], other)


def through(x: Tensor, weight: Tensor | Sparse) -> Tensor:
    """x [S, R, n] times a weight [S, n, m]: [S, R, m]."""
    if isinstance(weight, Sparse):
        pairs = zip(x, weight.transposed, strict=True)
        return torch.stack([(matrix @ rows.mT).mT for rows, matrix in pairs])
    return x @ weight


def back_through(x: Tensor, weight: Tensor | Sparse) -> Tensor:
    """x [S, R, m] times a weight [S, n, m] transposed: [S, R, n]."""
    if isinstance(weight, Sparse):
        pairs = zip(x, weight.matrices, strict=True)
        return torch.stack([(matrix @ rows.mT).mT for rows, matrix in pairs])
    return x @ weight.mT


def sizes_of(weight: Tensor | Sparse) -> Tensor | Sparse:
    """The sizes of weights."""
    return weight.sizes if isinstance(weight, Sparse) else weight.abs()
