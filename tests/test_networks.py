"""The seed axis: S networks side by side are S networks."""

import pytest
import torch
from torch import nn

from rlx.nn.networks import MLP, ConvNet, QNetwork, RunningNorm, SeedBatchNorm, SeedConv, SeedGRU
from rlx.nn.optim import Adam, RMSprop
from rlx.nn.rng import Streams, seed_tensor
from rlx.nn.seed_axis import concatenate, per_seed_norm, take


def mlp(seeds) -> MLP:
    return MLP(5, [16, 8], 3, Streams(seed_tensor(seeds), "net"))


@pytest.mark.rounding
def test_a_seed_in_the_batch_is_the_plain_torch_network():
    batched, x = mlp(range(4)), torch.randn(4, 7, 5)
    for seed in range(4):
        plain = nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        for layer, linear in zip(batched.layers, plain[::2], strict=True):
            linear.weight.data = layer.weight[seed].T.detach()
            linear.bias.data = layer.bias[seed, 0].detach()
        torch.testing.assert_close(batched(x)[seed], plain(x[seed]))


def test_seeds_start_from_different_weights_whatever_the_company():
    four, alone = mlp(range(4)), mlp([2])
    weights = four.layers[0].weight
    assert all(not torch.equal(weights[a], weights[b]) for a in range(4) for b in range(a))
    for of_four, of_one in zip(four.parameters(), alone.parameters(), strict=True):
        assert torch.equal(of_four[2:3], of_one)
    bound = 5**-0.5
    assert weights.abs().max() <= bound and weights.std() > 0.8 * bound / 3**0.5


def test_take_and_concatenate_are_inverse():
    four = mlp(range(4))
    again = concatenate([take(four, torch.tensor([0, 1])), take(four, torch.tensor([2, 3]))])
    pairs = zip(four.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    taken = take(four, torch.tensor([3])).layers[0].weight
    assert taken.data_ptr() != four.layers[0].weight.data_ptr(), "a copy"


def convolutions(seeds) -> nn.Module:
    """Images [S, B, 2, 9, 9] → [S, B, 12], normalised by the batch."""
    keys = seed_tensor(seeds)
    net = ConvNet((2, 9, 9), [[4, 3, 2], [3, 3, 2]], True, 1.0, keys, Streams(keys, "conv"))
    return net.train()


@pytest.mark.rounding
@pytest.mark.parametrize(("make", "shape"), [(mlp, (5,)), (convolutions, (2, 9, 9))])
def test_gradients_of_one_seed_do_not_see_another(make, shape):
    net, x = make(range(3)), torch.randn(3, 7, *shape)

    def gradients():
        loss = net(x).pow(3).mean(tuple(range(1, net(x).dim()))).sum()
        return torch.autograd.grad(loss, list(net.parameters()))

    first = gradients()
    x[1] = x[1] * 100 + 7 * torch.randn(7, *shape)
    second = gradients()
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[[0, 2]], b[[0, 2]], rtol=1e-4, atol=1e-6)
    pairs = zip(first, second, strict=True)
    assert any(not torch.allclose(a[1], b[1], rtol=1e-2, atol=1e-4) for a, b in pairs)
    norms = per_seed_norm(first)
    for seed in range(3):
        flat = torch.cat([gradient[seed].flatten() for gradient in first])
        torch.testing.assert_close(norms[seed], flat.norm())


def test_dueling_has_mean_advantage_zero():
    net = QNetwork(5, [16], 3, True, Streams(seed_tensor([0]), "q"))
    x = torch.randn(1, 4, 5)
    torch.testing.assert_close(net(x).mean(-1), net.body(x)[..., 0])


def test_optimisers_are_torchs_and_a_seed_can_sit_out():
    for kind, reference in ((Adam, torch.optim.Adam), (RMSprop, torch.optim.RMSprop)):
        together = torch.randn(3, 5, 4)
        alone = [together[i].clone().requires_grad_() for i in range(3)]
        optimizer = kind([together], 1e-2)
        references = [reference([parameter], lr=1e-2) for parameter in alone]
        for step in range(60):
            gradient = torch.randn(3, 5, 4) * (torch.rand(3, 5, 4) < 0.8)
            before = together.clone()
            where = torch.tensor([True, step % 3 > 0, step >= 20])  # seed 2 begins late
            optimizer.step([together], [gradient], where)
            for i in range(3):
                if where[i]:
                    alone[i].grad = gradient[i].clone()
                    references[i].step()
                else:
                    assert torch.equal(together[i], before[i])
                torch.testing.assert_close(together[i], alone[i].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.rounding
def test_convolutions_recurrence_and_batch_norm_are_torchs():
    streams = Streams(seed_tensor(range(3)), "conv")
    x = torch.randn(3, 7, 2, 12, 12)
    conv = SeedConv(2, 5, 3, 2, streams)
    norm = SeedBatchNorm(5, seed_tensor(range(3)))
    for seed in range(3):
        plain_conv = nn.Conv2d(2, 5, 3, 2)
        plain_norm = nn.BatchNorm2d(5)
        plain_conv.weight.data = conv.weight[seed].detach()
        plain_conv.bias.data = conv.bias[seed].detach()
        norm_of_one = take(norm, torch.tensor([seed]))
        for training in (True, False):  # the batch's moments, then the running ones
            plain_norm.train(training)
            norm_of_one.train(training)
            torch.testing.assert_close(conv(x)[seed], plain_conv(x[seed]))
            y = norm_of_one(conv(x)[seed : seed + 1])[0]
            # torch's running variance is unbiased.
            expected = plain_norm(plain_conv(x[seed]))
            torch.testing.assert_close(y, expected, rtol=2e-3, atol=2e-3)
    gru = SeedGRU(4, 6, streams)
    h = torch.randn(3, 5, 6)
    x = torch.randn(3, 5, 4)
    for seed in range(3):
        cell = nn.GRUCell(4, 6)
        cell.weight_ih.data = gru.input.weight[seed].T.detach()
        cell.weight_hh.data = gru.hidden.weight[seed].T.detach()
        cell.bias_ih.data = gru.input.bias[seed, 0].detach()
        cell.bias_hh.data = gru.hidden.bias[seed, 0].detach()
        torch.testing.assert_close(gru(x, h)[seed], cell(x[seed], h[seed]))


def test_running_moments_are_those_of_all_rows():
    norm = RunningNorm(3, seed_tensor(range(2)))
    rows = torch.randn(2, 90, 3) * 5 + 2
    for part in rows.split([10, 50, 30], 1):
        norm.update(part)
    torch.testing.assert_close(norm.mean, rows.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)
    variance = rows.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(norm.variance, variance, rtol=1e-4, atol=1e-4)
