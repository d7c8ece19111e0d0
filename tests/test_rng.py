"""The random streams: a published generator, even, and each seed's own."""

import numpy as np
import torch

from rlx.nn.rng import Streams, categorical, mix64, reset_seeds, seed_tensor, stream_key, uniform


def reference_splitmix64(state: int, count: int) -> list[int]:
    """Steele, Lea & Flood 2014, in plain integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_is_splitmix64_and_its_published_first_outputs():
    # Vigna's published values for seed 1234567.
    assert reference_splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    draws = uniform(torch.tensor(1234567), torch.tensor(0), 5)
    expected = [(z >> 40) / 2**24 for z in reference_splitmix64(1234567, 5)]
    assert draws.tolist() == expected
    assert uniform(torch.tensor(1234567), torch.tensor(3), 2).tolist() == expected[3:]


def test_numbers_are_uniform_and_streams_unrelated():
    draws = Streams(seed_tensor(range(20)), "x").uniform(50_000).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    from scipy.stats import kstest

    assert all(kstest(row, "uniform").pvalue > 1e-4 for row in draws)
    others = Streams(seed_tensor(range(20)), "y").uniform(50_000).numpy()
    correlation = np.corrcoef(np.concatenate([draws, others]))
    assert np.abs(correlation - np.eye(40)).max() < 0.025  # 5.6 standard errors
    lagged = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in draws]
    assert np.abs(lagged).max() < 0.025


def test_seed_seven_of_ten_is_seed_seven_alone():
    ten, alone = Streams(seed_tensor(range(10)), "x"), Streams(seed_tensor([7]), "x")
    for shape in ((3,), (2, 5), (1,)):
        assert torch.equal(ten.uniform(*shape)[7:8], alone.uniform(*shape))


def test_keys_and_reset_seeds_do_not_collide():
    keys = torch.cat([stream_key(torch.arange(10_000), name) for name in ("a", "b")])
    assert len(keys.unique()) == len(keys)
    assert len(mix64(torch.arange(100_000)).unique()) == 100_000
    seeds = reset_seeds(seed_tensor(range(50)), 64, "env")
    assert seeds.min() >= 0 and len(seeds.unique()) == seeds.numel()


def test_categorical():
    probability = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 0.25, 0.25, 0.5]])
    draws = (torch.arange(1000) + 0.5) / 1000
    chosen = categorical(draws, probability.unsqueeze(1).expand(-1, 1000, -1))
    counts = [[int((row == i).sum()) for i in range(4)] for row in chosen]
    assert counts == [[100, 0, 600, 300], [0, 250, 250, 500]]
    # What has probability 0 is not drawn.
    assert categorical(torch.zeros(1), torch.tensor([[0.0, 1.0]])).tolist() == [1]
