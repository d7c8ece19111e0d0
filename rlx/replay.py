"""Experience replay: one ring of transitions per seed and env copy; what a network said of them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rlx import machine
from rlx.errors import ConfigError
from rlx.nn.networks import rows_at, rows_within
from rlx.nn.rng import pick

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name → (shape, dtype) of one row."""
REDRAWS = 2
"""How often a row that is no transition is drawn anew; 53 bits do not last for many more."""


class Replay(nn.Module):
    """Rings [S, N, T, …] for N env copies of S seeds: capacity / N transitions each, and some slots.

    A ring per copy keeps consecutive transitions consecutive, which n-step returns need, and lets copies store at different
    times (options that last differently long) without a ragged batch: every row is written to its ring's spare slot, and
    only some rings advance. Row k of a ring lies in slot k modulo T.
    Rows have the fields `obs`, `action`, `reward`, `discount` (γ^k, 0 where the target must not bootstrap), `next_obs` and
    `last` (the chain breaks behind this row: termination or truncation). With `stack` k there is no `next_obs`: frames are stored
    once, and `sample` puts the last k of them on top of each other. Each ring then holds k − 1 rows
    more, which are not drawn: so the oldest row that is still has all the frames seen with it. All
    state are buffers. A checkpoint does not hold the rings but the rows stored since the last one
    (`rows`, `restore`).
    """

    written: Tensor
    """Rows ever stored in each ring, int64 [S, N]."""

    def __init__(
        self,
        seeds: int,
        num_envs: int,
        capacity: int,
        fields: Fields,
        device,
        stack: int | None = None,
        alike: int = 1,
    ):
        """ConfigError where so many replays `alike` are larger than the free memory."""
        super().__init__()
        self.stack = stack
        # Of frames, the newest row is no transition before the next one is there.
        self.drawn = max(1 if stack is None else 2, capacity // num_envs)
        """Most rows of a ring that can be drawn: its newest ones."""
        history = 0 if stack is None else stack - 1
        self.slots = self.drawn + history + 1
        fields = {
            name: field for name, field in fields.items() if stack is None or name != "next_obs"
        }
        self.fields = tuple(fields)
        rings = (seeds, num_envs, self.slots)
        add_buffers(self, rings, fields, device, f"agent.buffer_size={capacity}", alike)
        self.register_buffer(
            "written", torch.zeros(seeds, num_envs, dtype=torch.int64, device=device)
        )

    @property
    def capacity(self) -> int:
        """Most transitions of one seed that it can hold."""
        return self.written.shape[1] * self.drawn

    def check_start(self, learning_starts: int) -> None:
        """ConfigError where it can never hold the transitions that learning begins with."""
        if learning_starts > self.capacity:
            raise ConfigError(
                f"agent.learning_starts={learning_starts}: more than the replay can hold, {self.capacity:,} transitions "
                f"(agent.buffer_size in equal parts for num_envs={self.written.shape[1]})."
            )

    @property
    def size(self) -> Tensor:
        """Rows that each ring holds, int64 [S, N], those among them that are not drawn any more."""
        return self.written.clamp(max=self.slots - 1)

    def stored(self) -> Tensor:
        """Number of transitions stored: int64 [S]."""
        return self.written.clamp(max=self.drawn).sum(1)

    def left(self) -> Tensor:
        """Slots [S, N] of the rows that are drawn no more since the newest ones were stored."""
        return (self.written - self.drawn - 1).remainder(self.slots)

    def add(self, where: Tensor, **rows: Tensor) -> None:
        """Store one row per seed and copy (each field [S, N, …]) in the places `where` (bool [S, N])."""
        at = self._ring(
            torch.arange(self.written.numel(), device=self.written.device)
        ) + self.written.view(-1).remainder(self.slots)
        for name in self.fields:
            ring = getattr(self, name).flatten(0, 2)
            ring.index_copy_(0, at, rows[name].flatten(0, 1).to(ring.dtype))
        self.written.add_(where)

    def sample(self, draws: Tensor, n_steps: int = 1) -> dict[str, Tensor]:
        """Rows [S, B, …] chosen by `draws` (uniform in [0, 1), [S, B]; float64 for more than a
        million rows), evenly over what a seed has stored, with replacement.

        With `n_steps` > 1, `reward` is Σ_i (Π_{j<i} discount_j) reward_i, `discount` the product and `next_obs` the
        observation behind the last row used; a chain stops early at `last` and at the newest row.
        """
        if self.stack is not None:
            return self._sample_frames(draws, n_steps, self.stack)
        ring, row, written = self._pick(draws, self.written.clamp(max=self.drawn))
        first = ring + row.remainder(self.slots)
        batch = {name: self._rows(name, first) for name in self.fields}
        if n_steps > 1:
            row = row.unsqueeze(-1) + torch.arange(n_steps, device=row.device)  # [S, B, n]
            index = ring.unsqueeze(-1) + row.remainder(self.slots)
            followed = row[..., 1:] < written.unsqueeze(-1)
            goes_on = ~self._rows("last", index[..., :-1]) & followed
            alive = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on.cumprod(-1).bool()], -1)
            discount = torch.where(alive, self._rows("discount", index), 1.0)
            weight = torch.cat(
                [torch.ones_like(discount[..., :1]), discount[..., :-1].cumprod(-1)], -1
            )
            batch["reward"] = (self._rows("reward", index) * weight * alive).sum(-1)
            batch["discount"] = discount.prod(-1)
            final = index.gather(-1, alive.sum(-1, keepdim=True) - 1).squeeze(-1)
            batch["next_obs"] = self._rows("next_obs", final)
        return batch

    def window(self, slot: Tensor, length: int) -> dict[str, Tensor]:
        """The rows in `slot` (int64 [S, B], ring · T + t of a seed) and the length − 1 behind each, fields [S, B, length, …]; with
        `stack`, `obs` are stacked. `alive` says which of them are of the same episode, `slot` in which they lie, `age` [S, B] how many
        rows the ring got since."""
        seeds, num_envs = self.written.shape
        copy, place = slot // self.slots, slot % self.slots
        ring = self._ring(
            copy + torch.arange(seeds, device=slot.device).unsqueeze(1) * num_envs
        ).unsqueeze(-1)
        newest = self.written.gather(1, copy) - 1
        age = (newest - place).remainder(self.slots)
        offset = torch.arange(length, device=slot.device)
        row = newest.unsqueeze(-1) - (age.unsqueeze(-1) - offset).clamp(min=0)
        index = ring + row.remainder(self.slots)
        batch = {
            name: self._rows(name, index)
            for name in self.fields
            if name != "obs" or self.stack is None
        }
        if self.stack is not None:
            batch["obs"] = self._stacked(ring, row, self.stack)
        last = batch["last"].long()
        alive, slots = (
            (offset <= age.unsqueeze(-1)) & (last.cumsum(-1) == last),
            index % (num_envs * self.slots),
        )
        return batch | {"alive": alive, "slot": slots, "age": age}

    def _pick(self, draws: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows by `draws` among the oldest `counts` (int64 [S, N]) of those that may be drawn: (flat
        place of the ring, number of the row, rows ever written in the ring), [S, B] each."""
        seeds, num_envs = self.written.shape
        ends = counts.cumsum(1)
        number = pick(draws, ends[:, -1:])
        copy = torch.searchsorted(ends, number, right=True).clamp_(max=num_envs - 1)
        ring = self._ring(copy + torch.arange(seeds, device=copy.device).unsqueeze(1) * num_envs)
        before = (self.written - self.drawn).clamp(min=0) + counts - ends
        return ring, number + before.gather(1, copy), self.written.gather(1, copy)

    def _sample_frames(self, draws: Tensor, n_steps: int, stack: int) -> dict[str, Tensor]:
        """As `sample`, where the next observation is the next row's. A row that has none and would
        bootstrap from it (the newest one, and the last before a truncation) is no transition:
        another is drawn by what is left of the draw, and chains end before it. The few that are
        none even so end as if terminated."""
        # The newest row of a ring is no transition yet, unless it is terminal.
        newest = self._ring(torch.arange(self.written.numel(), device=draws.device))
        newest = newest + (self.written.flatten() - 1).remainder(self.slots)
        open_ended = (self._rows("discount", newest) != 0).view_as(self.written)
        counts = (self.written.clamp(max=self.drawn) - open_ended.long()).clamp(min=0)
        total = counts.sum(1, keepdim=True)

        def usable(ring: Tensor, row: Tensor, written: Tensor) -> Tensor:
            here = ring + row.remainder(self.slots)
            followed = ~self._rows("last", here) & (row + 1 < written)
            return (self._rows("discount", here) == 0) | followed

        picked = list(self._pick(draws, counts))
        for _ in range(REDRAWS):
            draws = (draws.double() * total).frac()
            good, again = usable(*picked), self._pick(draws, counts)
            picked = [torch.where(good, *pair) for pair in zip(picked, again, strict=True)]
        ring, row, written = picked
        whole = usable(ring, row, written)
        batch = {"action": self._rows("action", ring + row.remainder(self.slots))}
        batch["obs"] = self._stacked(ring, row, stack)
        reward = torch.zeros(row.shape, device=row.device)
        discount = torch.ones_like(reward)
        end, alive = row, torch.ones_like(whole)
        for i in range(n_steps):
            step = (row + i).minimum(written - 1)
            here = ring + step.remainder(self.slots)
            if i:
                before = ring + (step - 1).remainder(self.slots)
                goes_on = ~self._rows("last", before) & (row + i < written)
                alive = alive & goes_on & usable(ring, step, written)
            reward = reward + torch.where(alive, discount * self._rows("reward", here), 0.0)
            discount = torch.where(alive, discount * self._rows("discount", here), discount)
            end = torch.where(alive, step, end)
        batch |= {"reward": reward, "discount": discount * whole}
        batch["next_obs"] = self._stacked(ring, (end + 1).minimum(written - 1), stack)
        return batch

    def _stacked(self, ring: Tensor, row: Tensor, stack: int) -> Tensor:
        """The `stack` frames up to the rows `row` [*] of the rings at `ring`, [*, stack · C, …];
        before an episode's first one that is repeated. Drawn rows' frames are all still there."""
        rows, same = [row], torch.ones_like(row, dtype=torch.bool)
        for back in range(1, stack):
            before = (row - back).clamp(min=0)
            begins = self._rows("last", ring + before.remainder(self.slots))
            same = same & (row >= back) & ~begins
            rows.append(torch.where(same, before, rows[-1]))
        index = ring + torch.stack(rows[::-1]).remainder(self.slots)
        return self._rows("obs", index).movedim(0, row.dim()).flatten(row.dim(), row.dim() + 1)

    def rows(self, since: Tensor | None) -> dict[str, Tensor]:
        """The rows that it still holds of those stored after the first `since` (int64 [S, N]; None: all it holds): each field
        [R, …], ring after ring, and their numbers `since` and `until` [S, N]."""
        oldest = self.written - self.size
        since = oldest if since is None else torch.maximum(since, oldest)
        index = self._slots_of(since, self.written)
        return {"since": since, "until": self.written.clone()} | {
            name: self._rows(name, index) for name in self.fields
        }

    def restore(self, rows: Mapping[str, Tensor]) -> None:
        """Take up what `rows` gave; in the order in which they were stored."""
        index = self._slots_of(rows["since"], rows["until"])
        for name in self.fields:
            getattr(self, name).flatten(0, 2).index_copy_(0, index, rows[name])
        self.written.copy_(rows["until"])

    def _slots_of(self, since: Tensor, until: Tensor) -> Tensor:
        """Flat places [R] of the rows number `since` … `until` − 1 of every ring ([S, N] each)."""
        since, counts = since.flatten(), (until - since).flatten()
        ring = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        within = torch.arange(len(ring), device=counts.device) - (counts.cumsum(0) - counts)[ring]
        return self._ring(ring) + (since[ring] + within).remainder(self.slots)

    def _ring(self, number: Tensor) -> Tensor:
        return number * self.slots

    def _rows(self, name: str, index: Tensor) -> Tensor:
        return rows_at(getattr(self, name).flatten(0, 2), index)


class Memo(nn.Module):
    """What the target network said of the rows of a replay [S, slots], to be asked again only when it has changed."""

    said: Tensor
    version: Tensor

    def __init__(self, seeds: int, slots: int, features: int, device: torch.device, setting: str):
        """ConfigError, as in `add_buffers`."""
        super().__init__()
        fields = {"said": ((features,), torch.float32), "version": ((), torch.int64)}
        add_buffers(self, (seeds, slots), fields, device, setting)
        self.version.fill_(-1)

    def forget(self, slot: Tensor) -> None:
        """The rows in `slot` [S, N] are others now."""
        self.version.scatter_(1, slot, -1)

    def ask(
        self, who: Callable[[Tensor], Tensor], slot: Tensor, obs: Tensor, version: int
    ) -> Tensor:
        """`who` (observations [S, R, *O] → [S, R, F]) on the `obs` [S, B, K, *O] that lie in `slot` [S, B, K]: [S, B, K, F]."""
        flat, obs = slot.flatten(1), obs.flatten(1, 2)
        old = self.version.gather(1, flat) != version
        count = int(old.sum(1).max())  # a sync: what is not asked costs more
        if count:
            row = old.to(torch.int8).argsort(stable=True, dim=1, descending=True)[
                :, :count
            ]  # where a seed has fewer, it repeats some
            said = who(rows_within(obs, row))
            at = flat.gather(1, row)
            self.said.scatter_(1, at.unsqueeze(-1).expand_as(said), said)
            self.version.scatter_(1, at, version)
        return self.said.gather(
            1, flat.unsqueeze(-1).expand(-1, -1, self.said.shape[-1])
        ).unflatten(1, slot.shape[1:])


def add_buffers(
    module: nn.Module,
    size: Sequence[int],
    fields: Fields,
    device: torch.device | str,
    setting: str,
    alike: int = 1,
) -> None:
    """Register a buffer of zeros [*size, *shape] in `module` for each of `fields`.

    ConfigError, which names the `setting` ("agent.buffer_size=50000") that decides how large they
    are, where so many of them `alike` do not fit into the free memory. That must be asked before: a
    system promises more zeros than it has room for, and kills the process that writes to them.
    """
    device, rows = torch.device(device), torch.Size(size).numel()
    row = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in fields.values())
    needed, free = alike * rows * row, free_memory(device)
    if needed > free:
        what = "GPU memory" if device.type == "cuda" else "memory"
        raise ConfigError(
            f"{setting}: takes {needed / 1e9:,.1f} GB of {what} for all seeds, and "
            f"{free / 1e9:,.1f} GB are free; make it smaller, or train fewer seeds at once."
        )
    for name, (shape, dtype) in fields.items():
        module.register_buffer(name, torch.zeros(*size, *shape, dtype=dtype, device=device))


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where the system does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()
