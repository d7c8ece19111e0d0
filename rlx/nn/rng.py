"""Counter-based random numbers: one stream per seed, the same on every device, in every batch.

A draw is a pure function of (key, counter): SplitMix64 (Steele, Lea & Flood 2014,
doi:10.1145/2660193.2660195) in counter mode, the idea of Random123 (Salmon et al. 2011). The whole
state of a stream is two integers, so seed 7 of 10 is seed 7 alone, saving is exact, and nothing
waits for the host.
"""

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _signed(bits: int) -> int:
    """A 64-bit pattern as int64: torch has no unsigned arithmetic, but int64 wraps the same way."""
    return (bits + (1 << 63)) % (1 << 64) - (1 << 63)


_WEYL = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's output function, elementwise: a bijection of int64.

    Every bit of the input flips about half of the bits of the output.
    """
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def stream_key(seed: Tensor, name: str) -> Tensor:
    """int64 keys, shaped as `seed`: one unrelated stream per (seed, name)."""
    return mix64(mix64(seed) + _signed(_WEYL * (zlib.crc32(name.encode()) + 1)))


def uniform(key: Tensor, counter: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[*key.shape, count] in [0, 1): draws `counter` … `counter + count − 1` of every key's stream.

    They are multiples of 2^-24 in float32, of 2^-53 in float64 (which `pick` needs for indices).
    """
    number = counter.unsqueeze(-1) + torch.arange(1, count + 1, device=key.device)
    bits = mix64(key.unsqueeze(-1) + number * _WEYL)
    if dtype == torch.float64:
        return _shift(bits, 11).to(torch.float64) * 2.0**-53
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def pick(draws: Tensor, count: Tensor | int) -> Tensor:
    """int64 [*]: which of `count` things uniform `draws` [*] choose; 0 where there are none.

    `count` is int64 and broadcasts. With float64 draws all things are equally likely up to
    2^-53 · `count`. A float32 product would be off by 2^-24 · `count`: of 12 million rows some came
    twice as often as others, of 20 million a fifth never. The product stays below `count`, since no
    float64 below 1 times an integer is rounded up to it.
    """
    return (draws.double() * count).long()


def pick_allowed(draws: Tensor, allowed: Tensor) -> Tensor:
    """int64 [*]: which of the `allowed` things (bool [*, n]) uniform `draws` [*] choose.

    It is 0 where none is allowed.
    """
    rank = pick(draws, allowed.sum(-1))
    return (allowed.cumsum(-1) > rank.unsqueeze(-1)).to(torch.int8).argmax(-1)


def categorical(draws: Tensor, probability: Tensor) -> Tensor:
    """int64 [*]: which of n things uniform `draws` [*] choose, by their `probability` [*, n]."""
    return (draws.unsqueeze(-1) >= probability.cumsum(-1)[..., :-1]).sum(-1)


def seed_tensor(seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """int64 [S] of a run's seeds."""
    return torch.tensor(list(seeds), dtype=torch.int64, device=device)


class Streams(nn.Module):
    """One random stream per seed, under a common name.

    Its state, `key` and `counter` (both int64 [S]), is saved with the module.
    """

    key: Tensor
    """int64 [S]: which stream it is."""
    counter: Tensor
    """int64 [S]: numbers drawn so far."""

    def __init__(self, seeds: Tensor, name: str):
        super().__init__()
        self.register_buffer("key", stream_key(seeds, name))
        self.register_buffer("counter", torch.zeros_like(seeds))

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[S, *shape] in [0, 1): the streams' next numbers, as of the function `uniform`."""
        count = math.prod(shape)
        draws = uniform(self.key, self.counter, count, dtype)
        self.counter += count
        return draws.view(-1, *shape)


def reset_seeds(seeds: Tensor, num_envs: int, name: str) -> Tensor:
    """int64 [S, num_envs] in [0, 2^31), to reset envs with.

    Each seed and each `name` has an unrelated set of its own.
    """
    key = stream_key(seeds, name).unsqueeze(1)
    number = torch.arange(1, num_envs + 1, device=seeds.device)
    return _shift(mix64(key + number * _WEYL), 33)
