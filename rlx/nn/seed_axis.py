"""Operations on the seed axis: tensors [S, …], and modules of which every tensor is [S, …]."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", bound=float | Tensor)


def along(x: N, like: Tensor) -> N:
    """View x [*] as [*, 1, …, 1], so that it broadcasts over `like` [*, …].

    A plain number stays as it is: x may be a setting, of which each seed may have its own, [S].
    """
    if not isinstance(x, Tensor):
        return x
    return x.view(*x.shape, *[1] * (like.dim() - x.dim()))  # type: ignore[return-value]


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """[*, …]: the rows of x [M, …] at an `index` of any shape [*].

    Several times faster than indexing with a tensor.
    """
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def rows_within(x: Tensor, index: Tensor) -> Tensor:
    """[*, K, …]: the rows of x [*, L, …] at `index` [*, K], which counts within each L."""
    lead = index.shape[:-1]
    length = x.shape[index.dim() - 1]
    first = torch.arange(lead.numel(), device=index.device).view(*lead, 1) * length
    return rows_at(x.flatten(0, index.dim() - 1), first + index)


def per_seed_norm(tensors: Iterable[Tensor]) -> Tensor:
    """[S]: Euclidean norm of each seed's slice of all `tensors` ([S, …] each) together."""
    return torch.stack([tensor.flatten(1).square().sum(1) for tensor in tensors]).sum(0).sqrt()


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float | Tensor) -> None:
    """Move `target` by the share `tau` of its distance towards `online` (Polyak & Juditsky 1992).

    `tau`: one number, or [S], one of each seed; n updates of weight τ are one of 1 − (1 − τ)^n.
    Moments of normalisation move too, and what no checkpoint holds does not.
    """
    old = target.state_dict(keep_vars=True).values()
    new = online.state_dict(keep_vars=True).values()
    for slow, fast in zip(old, new, strict=True):
        slow.lerp_(fast, along(tau, slow))


def take(module: M, index: Tensor) -> M:
    """A copy of `module` with only the seeds `index` (int64 [S']), in that order.

    Every parameter and buffer [S, …] becomes [S', …].
    """
    return _rebuilt([module], lambda tensors: tensors[0][index.to(tensors[0].device)])


def concatenate(modules: Sequence[M]) -> M:
    """Modules of one structure as one, side by side along the seed axis: S is the sum of theirs."""
    return _rebuilt(modules, torch.cat)


def concatenated(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names, side by side along their first axis.

    Where one is shorter along the second axis, as a GymEnv's actions so far may be, it is filled
    with 0.
    """
    result = {}
    for name, tensor in first.items():
        pair = [tensor, second[name]]
        if tensor.dim() > 1:
            width = max(part.shape[1] for part in pair)
            pair = [_widened(part, width) for part in pair]
        result[name] = torch.cat(pair)
    return result


def _widened(x: Tensor, width: int) -> Tensor:
    """x [S, L, …] as [S, width, …], filled with 0 at the end."""
    missing = width - x.shape[1]
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], 1)


def _rebuilt(modules: Sequence[M], combine: Callable[[list[Tensor]], Tensor]) -> M:
    """A copy of the first of `modules`, each of whose tensors is `combine` of all of theirs."""
    result = copy.deepcopy(modules[0])
    parts = [dict(module.named_modules()) for module in modules]
    for path, module in result.named_modules():
        same_part = [part[path] for part in parts]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                data = combine([getattr(part, name).data for part in same_part])
                needed = parameter.requires_grad
                module._parameters[name] = nn.Parameter(data, requires_grad=needed)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = combine([getattr(part, name) for part in same_part])
    return result
