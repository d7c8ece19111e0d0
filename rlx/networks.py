"""Layers with a seed axis: S independent networks of one shape, evaluated and trained as one."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from rlx.rng import Streams

M = TypeVar("M", bound=nn.Module)


class SeedLinear(nn.Module):
    """S affine maps side by side: [S, B, in] → [S, B, out]. `weight` is [S, in, out], `bias` [S, 1, out]."""

    def __init__(self, inputs: int, outputs: int, rng: Streams):
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # nn.Linear's own initialisation
        self.weight = nn.Parameter((rng.uniform(inputs, outputs) * 2 - 1) * bound)
        self.bias = nn.Parameter((rng.uniform(1, outputs) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    """ReLU network [S, B, inputs] → [S, B, outputs]."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, rng: Streams):
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        self.layers = nn.ModuleList(SeedLinear(a, b, rng) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        return self.layers[-1](x)


class QNetwork(nn.Module):
    """Action values [S, B, inputs] → [S, B, A]; `dueling` splits them into value and advantage (Wang et al. 2016, eq. 9)."""

    def __init__(self, inputs: int, hidden: Sequence[int], actions: int, dueling: bool, rng: Streams):
        super().__init__()
        self.dueling = dueling
        self.body = MLP(inputs, hidden, actions + dueling, rng)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if not self.dueling:
            return out
        value, advantage = out[..., :1], out[..., 1:]
        return value + advantage - advantage.mean(-1, keepdim=True)


def per_seed_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of each seed's slice of all `tensors` ([S, …] each) together: [S]."""
    return torch.stack([t.flatten(1).square().sum(1) for t in tensors]).sum(0).sqrt()


def along(per_seed: Tensor, like: Tensor) -> Tensor:
    """View [S] as [S, 1, …, 1] so that it broadcasts over `like` [S, …]."""
    return per_seed.view(-1, *[1] * (like.dim() - 1))


def take(module: M, index: Tensor) -> M:
    """A copy of `module` with only the seeds `index` (int64 [S']), in that order: every parameter and buffer [S, …] → [S', …]."""
    return _rebuild(module, lambda tensors: tensors[0][index.to(tensors[0].device)], [])


def concatenate(modules: Sequence[M]) -> M:
    """Modules of one structure side by side along the seed axis: S = sum of theirs."""
    return _rebuild(modules[0], torch.cat, modules[1:])


def concatenated(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names along their first axis; a shorter second axis is filled with −1 (GymEnv's actions so far)."""
    result = {}
    for name, tensor in first.items():
        pair = [tensor, second[name]]
        if tensor.dim() > 1 and pair[0].shape[1] != pair[1].shape[1]:
            width = max(t.shape[1] for t in pair)
            pair = [nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in pair]
        result[name] = torch.cat(pair)
    return result


def _rebuild(first: M, combine, others: Sequence[M]) -> M:
    result = copy.deepcopy(first)
    rest = [dict(other.named_modules()) for other in others]
    for path, module in result.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                data = combine([value.data, *(getattr(other[path], name).data for other in rest)])
                module._parameters[name] = nn.Parameter(data, requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = combine([value, *(getattr(other[path], name) for other in rest)])
    return result
