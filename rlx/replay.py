"""Experience replay: one ring of transitions per seed and env copy."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.buffers import Fields, add_buffers
from rlx.nn.per_seed import add_numbers
from rlx.nn.rng import pick
from rlx.nn.seed_axis import along, rows_at

REDRAWS = 2
"""How often a row that is not usable is drawn anew; 53 bits do not last for many more."""


class Rows(NamedTuple):
    """One row of a ring for each draw: int64 [S, B] each."""

    ring: Tensor
    """Slot at which its ring begins, among the slots of all rings."""
    row: Tensor
    """Its number in the ring."""
    written: Tensor
    """Rows ever stored in that ring."""


class Replay(nn.Module):
    """Rings [S, N, T, …] of transitions: one ring for each of the N env copies of S seeds.

    A ring per copy keeps consecutive transitions consecutive, which n-step returns need. It also
    lets copies store at different times (options may last differently long) without a ragged batch:
    a row of every copy is written to its ring's spare slot, and only some rings advance. Row k of a
    ring lies in slot k modulo T.

    Rows have the fields `obs`, `action`, `reward`, `discount` (γ^k, 0 where the target must not
    bootstrap), `next_obs` and `last` (the chain breaks behind this row: termination or truncation).

    With `stack` k there is no `next_obs`: frames are stored once, and `sample` puts the last k of
    them on top of each other. Each ring then holds k − 1 rows more, which are not drawn, so that
    the oldest row that is drawn still has all its frames.

    Its whole state are buffers. A checkpoint does not hold the rings but the rows that were stored
    since the checkpoint before (`rows`, `restore`).
    """

    written: Tensor
    """Rows ever stored in each ring, int64 [S, N]."""
    n_steps: int | Tensor
    """Rewards that are summed at most; or those of each seed, int64 [S]."""

    def __init__(
        self,
        seeds: int,
        num_envs: int,
        capacity: int,
        fields: Fields,
        device: torch.device | str,
        stack: int | None = None,
        *,
        n_steps: int | Tensor = 1,
        replays: int = 1,
    ):
        """`capacity`: transitions of one seed, in equal parts for its env copies.

        `n_steps`: rewards that `sample` sums at most, or those of each seed, int64 [S].
        ConfigError where so many `replays` of this size do not fit into the free memory.
        """
        super().__init__()
        add_numbers(self, n_steps=n_steps)
        self.longest = int(torch.as_tensor(n_steps).max())
        """The highest of `n_steps`."""
        self.stack = stack
        # Of frames, the newest row is no transition before the next one is there.
        least = 1 if stack is None else 2
        self.drawn = max(least, capacity // num_envs)
        """Most rows of a ring that can be drawn: its newest ones."""
        history = 0 if stack is None else stack - 1
        self.slots = self.drawn + history + 1
        if stack is not None:
            fields = {name: field for name, field in fields.items() if name != "next_obs"}
        self.fields = tuple(fields)
        rings = (seeds, num_envs, self.slots)
        add_buffers(self, rings, fields, device, f"agent.buffer_size={capacity}", modules=replays)
        written = torch.zeros(seeds, num_envs, dtype=torch.int64, device=device)
        self.register_buffer("written", written)

    @property
    def capacity(self) -> int:
        """Most transitions of one seed that it can hold."""
        return self.written.shape[1] * self.drawn

    def check_start(self, learning_starts: int) -> None:
        """ConfigError where it can never hold the transitions that learning begins with."""
        if learning_starts > self.capacity:
            raise ConfigError(
                f"agent.learning_starts={learning_starts}: more than the replay can hold, "
                f"{self.capacity:,} transitions (agent.buffer_size in equal parts for "
                f"num_envs={self.written.shape[1]})."
            )

    @property
    def size(self) -> Tensor:
        """Rows that each ring holds, int64 [S, N], with those that are drawn no more."""
        return self.written.clamp(max=self.slots - 1)

    def stored(self) -> Tensor:
        """Transitions that each seed can draw from, int64 [S]."""
        return self.written.clamp(max=self.drawn).sum(1)

    def expired(self) -> Tensor:
        """Slots [S, N] of the rows that are drawn no more since the newest ones were stored."""
        return (self.written - self.drawn - 1).remainder(self.slots)

    def add(self, where: Tensor, **rows: Tensor) -> None:
        """Store one row of each env copy in the rings `where` (bool [S, N]).

        `rows`: every field, [S, N, …].
        """
        number = torch.arange(self.written.numel(), device=self.written.device)
        index = self._ring(number) + self.written.view(-1).remainder(self.slots)
        for name in self.fields:
            ring = getattr(self, name).flatten(0, 2)
            ring.index_copy_(0, index, rows[name].flatten(0, 1).to(ring.dtype))
        self.written.add_(where)

    def sample(self, draws: Tensor) -> dict[str, Tensor]:
        """Rows [S, B, …], evenly over what a seed has stored, with replacement.

        `draws` [S, B], uniform in [0, 1), choose them; they must be float64 for more than a million
        rows. Where `n_steps` > 1, `reward` is Σ_i (Π_{j<i} discount_j) reward_i, `discount` the
        product and `next_obs` the observation behind the last row used; a chain stops early at
        `last` and at the newest row.
        """
        if self.stack is not None:
            return self._sample_frames(draws, self.stack)
        rows = self._pick(draws, self.written.clamp(max=self.drawn))
        index = rows.ring + rows.row.remainder(self.slots)
        batch = {name: self._rows(name, index) for name in self.fields}
        if self.longest > 1:
            batch |= self._chains(rows)
        return batch

    def window(self, slot: Tensor, length: int) -> dict[str, Tensor]:
        """The rows in `slot` and the length − 1 that were stored behind each: [S, B, length, …].

        `slot` is int64 [S, B], n · T + t for place t in ring n of a seed. With `stack`, `obs` are
        stacked. Besides the fields there are `alive` (bool, which rows are of the same episode as
        the first), `slot` (the slots they lie in), both [S, B, length], and `age` [S, B], how many
        rows the ring was given since the first.
        """
        num_envs = self.written.shape[1]
        env = slot // self.slots
        place = slot % self.slots
        ring = self._rings_of(env).unsqueeze(-1)
        newest = self.written.gather(1, env) - 1
        age = (newest - place).remainder(self.slots)
        offset = torch.arange(length, device=slot.device)
        # Behind the newest row it is repeated.
        row = newest.unsqueeze(-1) - (age.unsqueeze(-1) - offset).clamp(min=0)
        index = ring + row.remainder(self.slots)
        fields = list(self.fields)
        batch = {}
        if self.stack is not None:
            fields.remove("obs")
            batch["obs"] = self._stacked(ring, row, self.stack)
        batch |= {name: self._rows(name, index) for name in fields}
        last = batch["last"].long()
        same_episode = last.cumsum(-1) == last
        batch["alive"] = (offset <= age.unsqueeze(-1)) & same_episode
        batch["slot"] = index % (num_envs * self.slots)
        batch["age"] = age
        return batch

    def rows(self, since: Tensor | None) -> dict[str, Tensor]:
        """The rows from number `since` (int64 [S, N]) on, as far as the rings still hold them.

        None: all rows that they hold. Each field is [R, …], ring after ring; `since` and `until`,
        [S, N], are the numbers of each ring's first row and of the one behind its last.
        """
        oldest = self.written - self.size
        if since is None:
            since = oldest
        since = torch.maximum(since, oldest)
        index = self._slots_of(since, self.written)
        numbers = {"since": since, "until": self.written.clone()}
        return numbers | {name: self._rows(name, index) for name in self.fields}

    def restore(self, rows: Mapping[str, Tensor]) -> None:
        """Store the `rows` that the method of this name returned, call after call in its order."""
        index = self._slots_of(rows["since"], rows["until"])
        for name in self.fields:
            getattr(self, name).flatten(0, 2).index_copy_(0, index, rows[name])
        self.written.copy_(rows["until"])

    def _pick(self, draws: Tensor, counts: Tensor) -> Rows:
        """The rows that `draws` [S, B] choose.

        They are among the oldest `counts` (int64 [S, N]) of those that may be drawn of each ring.
        """
        num_envs = self.written.shape[1]
        # All these rows of a seed are numbered through, ring after ring.
        ends = counts.cumsum(1)
        starts = ends - counts
        number = pick(draws, ends[:, -1:])
        env = torch.searchsorted(ends, number, right=True).clamp_(max=num_envs - 1)
        # The row `number` is the (number − start)-th from its ring's oldest one on.
        oldest = (self.written - self.drawn).clamp(min=0)
        row = number + (oldest - starts).gather(1, env)
        return Rows(self._rings_of(env), row, self.written.gather(1, env))

    def _chains(self, rows: Rows) -> dict[str, Tensor]:
        """`reward`, `discount` and `next_obs` [S, B, …] of chains of `n_steps` from `rows` on."""
        offset = torch.arange(self.longest, device=rows.row.device)
        row = rows.row.unsqueeze(-1) + offset  # [S, B, n]
        index = rows.ring.unsqueeze(-1) + row.remainder(self.slots)
        within = row[..., 1:] < self._end(rows).unsqueeze(-1)
        continued = ~self._rows("last", index[..., :-1]) & within
        alive = torch.cat([torch.ones_like(continued[..., :1]), continued.cumprod(-1).bool()], -1)
        discount = torch.where(alive, self._rows("discount", index), 1.0)
        # The product of the discounts before each row.
        weight = torch.cat([torch.ones_like(discount[..., :1]), discount[..., :-1].cumprod(-1)], -1)
        reward = self._rows("reward", index)
        final = index.gather(-1, alive.sum(-1, keepdim=True) - 1).squeeze(-1)
        return {
            "reward": (reward * weight * alive).sum(-1),
            "discount": discount.prod(-1),
            "next_obs": self._rows("next_obs", final),
        }

    def _sample_frames(self, draws: Tensor, stack: int) -> dict[str, Tensor]:
        """What `sample` returns, where an observation's next one is that of the next row.

        A ring of two episodes, a and b, of which the time limit cut the first:

            row                 0     1     2     3     4
            obs                 a0    a1    b0    b1    b2
            last                no    yes   no    no    no
            next observation    a1    –     b1    b2    –

        Row 1 shows no next observation, since a2 was not stored, and row 4, the newest, none yet.
        Rows that would bootstrap from it are not usable: others are drawn in their place, and
        chains end before them. Those that are still in the batch then have the discount 0, as if
        they were terminal. A row that is terminal needs no next observation, and is usable.
        """
        rows = self._draw_usable(draws)
        reward, discount, final = self._frame_chains(rows)
        next_row = (final + 1).minimum(rows.written - 1)
        return {
            "action": self._rows("action", rows.ring + rows.row.remainder(self.slots)),
            "obs": self._stacked(rows.ring, rows.row, stack),
            "reward": reward,
            "discount": discount,
            "next_obs": self._stacked(rows.ring, next_row, stack),
        }

    def _draw_usable(self, draws: Tensor) -> Rows:
        """The rows that `draws` [S, B] choose, and others where those are not usable.

        A draw says which of n rows it is by the whole part of n · draw; what is behind the point is
        uniform too, and is the next draw.
        """
        number = torch.arange(self.written.numel(), device=draws.device)
        newest = self._ring(number) + (self.written.flatten() - 1).remainder(self.slots)
        # The newest row of a ring is usable only if it is terminal.
        bootstraps = (self._rows("discount", newest) != 0).view_as(self.written)
        counts = (self.written.clamp(max=self.drawn) - bootstraps.long()).clamp(min=0)
        total = counts.sum(1, keepdim=True)
        rows = self._pick(draws, counts)
        for _ in range(REDRAWS):
            draws = (draws.double() * total).frac()
            redrawn = self._pick(draws, counts)
            usable = self._usable(rows)
            rows = Rows(
                ring=torch.where(usable, rows.ring, redrawn.ring),
                row=torch.where(usable, rows.row, redrawn.row),
                written=torch.where(usable, rows.written, redrawn.written),
            )
        return rows

    def _frame_chains(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """(reward, discount, number of the last row) [S, B] of chains of usable rows."""
        end = self._end(rows)
        ring, row, written = rows
        usable = self._usable(rows)
        reward = torch.zeros(row.shape, device=row.device)
        discount = torch.ones_like(reward)
        final = row
        alive = torch.ones_like(usable)
        for i in range(self.longest):
            step = (row + i).minimum(written - 1)
            index = ring + step.remainder(self.slots)
            if i > 0:
                before = ring + (step - 1).remainder(self.slots)
                continued = ~self._rows("last", before) & (row + i < end)
                alive = alive & continued & self._usable(Rows(ring, step, written))
            reward = reward + torch.where(alive, discount * self._rows("reward", index), 0.0)
            discount = torch.where(alive, discount * self._rows("discount", index), discount)
            final = torch.where(alive, step, final)
        return reward, discount * usable, final

    def _end(self, rows: Rows) -> Tensor:
        """int64 [S, B]: the number of the row that chains from `rows` on end before."""
        return rows.written.minimum(rows.row + along(self.n_steps, rows.row))

    def _usable(self, rows: Rows) -> Tensor:
        """bool [S, B]: which rows are terminal, or followed by one of the same episode.

        So it is where frames are stored once, as `_sample_frames` says.
        """
        index = rows.ring + rows.row.remainder(self.slots)
        followed = ~self._rows("last", index) & (rows.row + 1 < rows.written)
        return (self._rows("discount", index) == 0) | followed

    def _stacked(self, ring: Tensor, row: Tensor, stack: int) -> Tensor:
        """The `stack` frames up to the rows `row` [*] of the rings at `ring`: [*, stack · C, …].

        An episode's first frame is repeated where the episode has fewer. The frames of rows that
        may be drawn are all still there.
        """
        rows = [row]
        same_episode = torch.ones_like(row, dtype=torch.bool)
        for back in range(1, stack):
            before = (row - back).clamp(min=0)
            last = self._rows("last", ring + before.remainder(self.slots))
            same_episode = same_episode & (row >= back) & ~last
            rows.append(torch.where(same_episode, before, rows[-1]))
        index = ring + torch.stack(rows[::-1]).remainder(self.slots)
        return self._rows("obs", index).movedim(0, row.dim()).flatten(row.dim(), row.dim() + 1)

    def _slots_of(self, since: Tensor, until: Tensor) -> Tensor:
        """Flat slots [R] of the rows number `since` … `until` − 1 of every ring ([S, N] each)."""
        since = since.flatten()
        counts = until.flatten() - since
        ring = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        starts = counts.cumsum(0) - counts
        within = torch.arange(len(ring), device=counts.device) - starts[ring]
        return self._ring(ring) + (since[ring] + within).remainder(self.slots)

    def _rings_of(self, env: Tensor) -> Tensor:
        """Flat slots [S, B] at which the rings of each seed's env copies `env` [S, B] begin."""
        seeds, num_envs = self.written.shape
        return self._ring(env + torch.arange(seeds, device=env.device).unsqueeze(1) * num_envs)

    def _ring(self, number: Tensor) -> Tensor:
        """Flat slot at which the ring of this number, of all S · N, begins."""
        return number * self.slots

    def _rows(self, name: str, index: Tensor) -> Tensor:
        """A field of the rows in the flat slots `index` [*]: [*, …]."""
        return rows_at(getattr(self, name).flatten(0, 2), index)
