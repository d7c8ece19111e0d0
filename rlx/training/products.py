"""Matrix products of compiled steps on the CPU: batches of small ones, one for each seed.

torch leaves them to Intel's MKL, which gives an AMD CPU half of what it can do (AVX2 where there is
AVX-512): 100 GFLOP/s where `products.cpp` makes 225, for ten products [256, 64] times [64, 64].
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rlx.names import one_line
from rlx.show import console

NARROW = 4
"""Sizes up to this are not worth a vector of columns."""
LARGE = 1024
"""Inner sizes above this are torch's: what is read again and again no longer fits the caches."""


def decompositions() -> dict:
    """What stands for torch's products in a graph, as `make_fx` takes them."""
    product = _library()

    def bmm(a: Tensor, b: Tensor) -> Tensor:
        if product is None or a.dtype != torch.float32 or a.device.type != "cpu":
            return NotImplemented
        rows, inner = a.shape[1:]
        columns = b.shape[2]
        if inner > LARGE:
            return NotImplemented
        if 0 < inner <= NARROW and b.stride(2) == 1:
            return sum_of_outer_products(a, b)
        if columns <= NARROW < rows:
            return product(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
        return product(a, b)

    def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        plain = beta == 1 and alpha == 1
        result = bmm(a, b) if plain else NotImplemented
        return result if result is NotImplemented else c + result

    aten = torch.ops.aten
    return {aten.bmm.default: bmm, aten.baddbmm.default: baddbmm}


def sum_of_outer_products(a: Tensor, b: Tensor) -> Tensor:
    """[S, M, K] times [S, K, N] is [S, M, N]; the compiler fuses it with what is around it."""
    terms = [a[:, :, k : k + 1] * b[:, k : k + 1] for k in range(a.shape[2])]
    return sum(terms[1:], terms[0])


@cache
def _library() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The product of `products.cpp`; None where it cannot be built, and a line says so.

    inductor builds it as its own code, and keeps it in its cache: once for each source, compiler,
    CPU and torch. Another process that needs it meanwhile waits.
    """
    import torch._inductor.codecache

    source = Path(__file__).with_suffix(".cpp").read_text()
    try:
        torch._inductor.codecache.CppCodeCache.load(source)
    except Exception as error:
        console.warning(f"torch's products are used, rlx's cannot be built: {one_line(error)}")
        return None
    torch.library.register_fake("rlx::product", _empty_product)
    return torch.ops.rlx.product.default


def _empty_product(a: Tensor, b: Tensor) -> Tensor:
    """What the product returns, without its values."""
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])
