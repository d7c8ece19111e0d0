"""Experience replay: one ring of transitions per seed and env copy."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Replay(nn.Module):
    """Rings [S, N, T, …] for N env copies of S seeds: capacity / N transitions each, and one spare slot.

    A ring per copy keeps consecutive transitions consecutive, which n-step returns need, and lets copies store at different
    times (options that last differently long) without a ragged batch: every row is written to its ring's spare slot, and
    only some cursors advance.
    Rows have the fields `obs`, `action`, `reward`, `discount` (γ^k, 0 where the target must not bootstrap), `next_obs` and
    `last` (the chain breaks behind this row: termination or truncation). All state are buffers and save with the module.
    """

    cursor: Tensor
    size: Tensor

    def __init__(self, seeds: int, copies: int, capacity: int, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device):
        """`fields`: name → (shape, dtype) of one row."""
        super().__init__()
        self.slots = max(1, capacity // copies) + 1
        self.fields = tuple(fields)
        for name, (shape, dtype) in fields.items():
            self.register_buffer(name, torch.zeros(seeds, copies, self.slots, *shape, dtype=dtype, device=device))
        self.register_buffer("cursor", torch.zeros(seeds, copies, dtype=torch.int64, device=device))
        self.register_buffer("size", torch.zeros(seeds, copies, dtype=torch.int64, device=device))

    @property
    def capacity(self) -> int:
        """Most transitions of one seed that it can hold."""
        return self.cursor.shape[1] * (self.slots - 1)

    def stored(self) -> Tensor:
        """Number of transitions stored: int64 [S]."""
        return self.size.sum(1)

    def add(self, where: Tensor, **rows: Tensor) -> None:
        """Store one row per seed and copy (each field [S, N, …]) in the places `where` (bool [S, N])."""
        at = self._ring(torch.arange(self.cursor.numel(), device=self.cursor.device)) + self.cursor.view(-1)
        for name in self.fields:
            ring = getattr(self, name).flatten(0, 2)
            ring.index_copy_(0, at, rows[name].flatten(0, 1).to(ring.dtype))
        self.cursor.add_(where).remainder_(self.slots)
        self.size.add_(where).clamp_(max=self.slots - 1)

    def sample(self, draws: Tensor, n_steps: int = 1) -> dict[str, Tensor]:
        """Rows [S, B, …] chosen by `draws` (uniform in [0, 1), [S, B]), evenly over what a seed has stored, with replacement.

        With `n_steps` > 1, `reward` is Σ_i (Π_{j<i} discount_j) reward_i, `discount` the product and `next_obs` the
        observation behind the last row used; a chain stops early at `last` and at the newest row.
        """
        seeds, copies = self.size.shape
        ends = self.size.cumsum(1)
        pick = (draws * ends[:, -1:]).to(torch.int64)
        copy = torch.searchsorted(ends, pick, right=True).clamp_(max=copies - 1)
        size = self.size.gather(1, copy)
        age = pick - ends.gather(1, copy) + size  # 0 is the oldest row of its ring
        ring = self._ring(copy + torch.arange(seeds, device=copy.device).unsqueeze(1) * copies)
        oldest = self.cursor.gather(1, copy) - size
        first = ring + (oldest + age).remainder(self.slots)
        batch = {name: self._rows(name, first) for name in self.fields}
        if n_steps > 1:
            offsets = torch.arange(n_steps, device=first.device)
            index = ring.unsqueeze(-1) + ((oldest + age).unsqueeze(-1) + offsets).remainder(self.slots)  # [S, B, n]
            goes_on = ~self._rows("last", index[..., :-1]) & ((age + 1).unsqueeze(-1) + offsets[:-1] < size.unsqueeze(-1))
            alive = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on.cumprod(-1).bool()], -1)
            discount = torch.where(alive, self._rows("discount", index), 1.0)
            weight = torch.cat([torch.ones_like(discount[..., :1]), discount[..., :-1].cumprod(-1)], -1)
            batch["reward"] = (self._rows("reward", index) * weight * alive).sum(-1)
            batch["discount"] = discount.prod(-1)
            final = index.gather(-1, alive.sum(-1, keepdim=True) - 1).squeeze(-1)
            batch["next_obs"] = self._rows("next_obs", final)
        return batch

    def _ring(self, number: Tensor) -> Tensor:
        return number * self.slots

    def _rows(self, name: str, index: Tensor) -> Tensor:
        # index_select is several times faster than indexing with a tensor.
        ring = getattr(self, name).flatten(0, 2)
        return ring.index_select(0, index.flatten()).view(*index.shape, *ring.shape[1:])
