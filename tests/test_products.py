"""Matrix products of compiled steps: exact, the same in every batch, and dispensable."""

import itertools
import shutil

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rlx.training import compiled, products

SIZES = [
    (10, 128, 64, 64),
    (3, 128, 120, 84),
    (2, 5, 300, 68),
    (1, 7, 13, 33),
    (2, 1, 64, 17),
    (2, 64, 50, 1),
    (1, 1, 1, 1),
    (4, 13, 4, 64),
    (3, 6, 2, 5),
    (0, 8, 8, 8),
    (2, 8, 0, 8),
    (2, 0, 8, 8),
    (2, 8, 8, 0),
]
"""(seeds, rows, inner, columns)."""


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """The compiled product."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.CACHE, str(tmp_path_factory.mktemp("compiled")))
        return products._library()


def matrices(size, transposed, sliced):
    """a [S, M, K] and b [S, K, N], as they lie in memory: transposed, or a part of a larger one."""
    seeds, rows, inner, columns = size
    generator = torch.Generator().manual_seed(sum(size))
    pair = []
    for (m, n), across in zip(((rows, inner), (inner, columns)), transposed, strict=True):
        shape = (seeds, n, m) if across else (seeds, m, n)
        larger = torch.randn(*shape[:2], shape[2] * 2 + 1, generator=generator)
        matrix = larger[..., : shape[2]] if sliced else larger[..., : shape[2]].contiguous()
        pair.append(matrix.transpose(1, 2) if across else matrix)
    return pair


def largest_error(result, a, b):
    """Of a product, relative to the sum of the absolute terms."""
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    return ((result - exact).abs() / scale.clamp_min(1e-30)).nan_to_num(0).flatten()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_are_exact(product, size):
    for *transposed, sliced in itertools.product((False, True), repeat=3):
        a, b = matrices(size, transposed, sliced)
        result = product(a, b)
        assert result.shape == (size[0], size[1], size[3])
        assert result.is_contiguous()
        assert (largest_error(result, a, b) < 1e-6).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_stands_for_torchs_products_is_exact(product, size):
    """Narrow ones included, with a bias and without."""
    chosen = products.decompositions()
    for transposed in itertools.product((False, True), repeat=2):
        a, b = matrices(size, transposed, sliced=False)
        bias = torch.randn(size[0], 1, size[3])
        plain = make_fx(torch.bmm, chosen)(a, b)
        added = make_fx(torch.baddbmm, chosen)(bias, a, b)
        names = {str(node.target) for node in (*plain.graph.nodes, *added.graph.nodes)}
        assert not names & {"aten.bmm.default", "aten.baddbmm.default"}
        assert (largest_error(plain(a, b), a, b) < 1e-6).all()
        # A bias is one more row of b, taken once.
        with_one = torch.cat([a, torch.ones(*a.shape[:2], 1)], 2)
        with_bias = torch.cat([b, bias], 1)
        assert (largest_error(added(bias, a, b), with_one, with_bias) < 1e-6).all()


def test_other_products_stay_torchs(product):
    a = torch.randn(2, 8, 8, dtype=torch.float64)
    graph = make_fx(torch.bmm, products.decompositions())(a, a)
    assert any(node.target is torch.ops.aten.bmm.default for node in graph.graph.nodes)


def test_a_seeds_product_is_the_same_in_every_batch(product):
    """Bit for bit, and so is a row's among other rows."""
    a, b = matrices((10, 37, 120, 84), (False, False), sliced=False)
    whole = product(a, b)
    for seed in (0, 3, 9):
        alone = product(a[seed : seed + 1], b[seed : seed + 1])
        assert torch.equal(whole[seed : seed + 1], alone)
    assert torch.equal(product(a[:, 5:12], b), whole[:, 5:12])
    copied = b.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(product(a, copied), whole)


def test_what_is_not_finite_goes_through(product):
    a, b = matrices((2, 9, 33, 20), (False, True), sliced=False)
    a[1, 4, 7] = torch.nan
    b[0, 32, 19] = torch.inf
    result = product(a, b)
    assert torch.equal(result.isfinite(), (a @ b).isfinite())
    assert result[1, 4].isnan().all()


def test_without_a_compiler_torchs_products_are_used(monkeypatch, capsys):
    def fail(source):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load", fail)
    monkeypatch.setattr(products, "_library", products._library.__wrapped__)
    a, b = matrices((2, 8, 8, 8), (False, False), sliced=False)
    graph = make_fx(torch.bmm, products.decompositions())(a, b)
    assert torch.equal(graph(a, b), torch.bmm(a, b))
    printed = capsys.readouterr()
    line = "torch's products are used, rlx's cannot be built: no C++ compiler"
    assert line in " ".join((printed.out + printed.err).split())
