"""Operations on the seed axis: modules and tensors whose first axis is one of S seeds."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def per_seed_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of each seed's slice of all `tensors` ([S, …] each) together: [S]."""
    return torch.stack([t.flatten(1).square().sum(1) for t in tensors]).sum(0).sqrt()


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float | Tensor) -> None:
    """Move `target` by the share `tau` of its distance towards `online` (Polyak & Juditsky 1992).

    `tau`: one number, or [S], one of each seed; n updates of weight τ are one of 1 − (1 − τ)^n.
    Moments of normalisation move too.
    """
    old = (*target.parameters(), *target.buffers())
    new = (*online.parameters(), *online.buffers())
    for slow, fast in zip(old, new, strict=True):
        slow.lerp_(fast, along(tau, slow) if isinstance(tau, Tensor) else tau)


def along(per_seed: Tensor, like: Tensor) -> Tensor:
    """View [S] as [S, 1, …, 1] so that it broadcasts over `like` [S, …]."""
    return per_seed.view(-1, *[1] * (like.dim() - 1))


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x [M, …] at an index of any shape [*]: [*, …]. Several times faster than indexing with a tensor."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def rows_within(x: Tensor, index: Tensor) -> Tensor:
    """x [*, L, …] at `index` [*, K], which counts within each L: [*, K, …]."""
    lead, length = index.shape[:-1], x.shape[index.dim() - 1]
    first = torch.arange(lead.numel(), device=index.device).view(*lead, 1) * length
    return rows_at(x.flatten(0, index.dim() - 1), first + index)


def take(module: M, index: Tensor) -> M:
    """A copy of `module` with only the seeds `index` (int64 [S']), in that order: every parameter and buffer [S, …] → [S', …]."""
    return _rebuild(module, lambda tensors: tensors[0][index.to(tensors[0].device)], [])


def concatenate(modules: Sequence[M]) -> M:
    """Modules of one structure side by side along the seed axis: S = sum of theirs."""
    return _rebuild(modules[0], torch.cat, modules[1:])


def concatenated(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names along their first axis; a shorter second axis is filled with 0 (GymEnv's actions so far)."""
    result = {}
    for name, tensor in first.items():
        if name not in second and name.startswith("log.metrics."):
            continue  # all seeds of one stopped before they learnt
        pair = [tensor, second[name]]
        if pair[0].dim() > 1 and pair[0].shape[1] != pair[1].shape[1]:
            width = max(t.shape[1] for t in pair)
            pair = [
                torch.cat([t, t.new_zeros(len(t), width - t.shape[1], *t.shape[2:])], 1)
                for t in pair
            ]
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
                module._buffers[name] = combine(
                    [value, *(getattr(other[path], name) for other in rest)]
                )
    return result
