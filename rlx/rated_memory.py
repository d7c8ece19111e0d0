"""A memory of transitions that knows how successful their episodes were."""

import torch
from torch import Tensor, nn

from rlx.agent import Spec
from rlx.nn.buffers import Fields, add_buffers
from rlx.nn.encoders import obs_field
from rlx.nn.rng import pick
from rlx.nn.seed_axis import rows_at


class RatedMemory(nn.Module):
    """Rings [S, N, T] of transitions, one per seed and env copy, and their episodes' success rates.

    A row knows the number of its episode, and a second ring holds every episode's rate, −1 while it
    runs: so one number rates all its transitions. A ring's unrated rows are those of its running
    episode, its newest ones: the rated ones are an interval, and sampling needs no search. Row k,
    and episode k's rate, lie in slot k modulo T.
    """

    rate: Tensor
    """[S, N, T]: rates of episodes."""
    episode: Tensor
    """int64 [S, N, T]: the number of each row's episode."""
    written: Tensor
    """int64 [S, N]: rows ever stored in each ring."""
    begun: Tensor
    """int64 [S, N]: rows stored before the running episode."""
    finished: Tensor
    """int64 [S, N]: episodes finished."""
    returns: Tensor
    """[S, N]: return of the running episode so far."""
    lowest: Tensor
    """[S]: lowest return of all finished episodes."""
    highest: Tensor
    """[S]: highest return of all finished episodes."""

    def __init__(self, capacity: int, spec: Spec, num_envs: int, seeds: Tensor):
        """ConfigError where it is larger than the free memory."""
        super().__init__()
        self.slots = max(1, capacity // num_envs)
        obs = obs_field(spec.observation_space)
        number = ((), torch.int64)
        fields: Fields = {
            "obs": obs,
            "next_obs": obs,
            "previous": number,
            "action": number,
            "episode": number,
        }
        self.fields = tuple(fields)
        rings = (len(seeds), num_envs, self.slots)
        buffers = {**fields, "rate": ((), torch.float32)}
        add_buffers(self, rings, buffers, seeds.device, f"agent.buffer_size={capacity}")
        self.rate.fill_(-1)
        written = torch.zeros(len(seeds), num_envs, dtype=torch.int64, device=seeds.device)
        self.register_buffer("written", written)
        self.register_buffer("begun", torch.zeros_like(self.written))
        self.register_buffer("finished", torch.zeros_like(self.written))
        self.register_buffer("returns", torch.zeros_like(self.written, dtype=torch.float32))
        infinite = torch.full((len(seeds),), torch.inf, device=seeds.device)
        self.register_buffer("lowest", infinite)
        self.register_buffer("highest", -infinite)

    def rated(self) -> Tensor:
        """int64 [S, N]: rows of each ring that belong to a finished episode.

        There are none where the running episode fills the ring.
        """
        oldest = (self.written - self.slots).clamp(min=0)
        return (self.begun - oldest).clamp(min=0)

    def add(self, reward: Tensor, ended: Tensor, low: float, high: float, **rows: Tensor) -> None:
        """Store one row per ring: each field, `reward` and `ended` are [S, N, …].

        Where the episode `ended` it is rated: 0 for a return of `low` or less, 1 for one of `high`
        or more.
        """
        rings = torch.arange(self.written.numel(), device=reward.device) * self.slots
        row_slot = rings + self.written.flatten().remainder(self.slots)
        rate_slot = rings + self.finished.flatten().remainder(self.slots)
        rows["episode"] = self.finished
        for name in self.fields:
            getattr(self, name).flatten(0, 2).index_copy_(0, row_slot, rows[name].flatten(0, 1))
        self.returns += reward
        rate = ((self.returns - low) / (high - low)).clamp(0, 1)
        rate = torch.where(ended, rate, -1.0)
        self.rate.view(-1).index_copy_(0, rate_slot, rate.flatten())
        lowest = torch.where(ended, self.returns, torch.inf).amin(1)
        highest = torch.where(ended, self.returns, -torch.inf).amax(1)
        self.lowest.copy_(self.lowest.minimum(lowest))
        self.highest.copy_(self.highest.maximum(highest))
        self.returns.masked_fill_(ended, 0)
        self.written += 1
        self.finished += ended
        self.begun.copy_(torch.where(ended, self.written, self.begun))

    def sample(self, draws: Tensor) -> dict[str, Tensor]:
        """Rated rows [S, B, …] and their `rate`, by `draws` (uniform in [0, 1), [S, B + 1]).

        One row of each of B equal parts of the rated ones, after a random rotation: all are equally
        likely, and none comes twice where there are B of them. In a seed without any, the rows mean
        nothing.
        """
        seeds, num_envs = self.written.shape
        batch = draws.shape[1] - 1
        # The rated rows of a seed are numbered through, ring after ring.
        ends = self.rated().cumsum(1)
        total = ends[:, -1:].clamp(min=1)
        edges = torch.arange(batch + 1, device=draws.device) * total // batch
        width = edges[:, 1:] - edges[:, :-1]
        # Where B does not divide the rows, some parts are longer than others, and a row of theirs
        # is drawn less often. The rotation moves every row into every part: so all are equal.
        rotation = pick(draws[:, :1], total)
        number = (edges[:, :-1] + pick(draws[:, 1:], width) + rotation).remainder(total)
        env = torch.searchsorted(ends, number, right=True).clamp_(max=num_envs - 1)
        # A ring's rated rows are the last ones before `begun`.
        row = self.begun.gather(1, env) - ends.gather(1, env) + number
        first_ring = torch.arange(seeds, device=env.device).unsqueeze(1) * num_envs
        ring = (env + first_ring) * self.slots
        row_slot = ring + row.remainder(self.slots)
        rows = {name: self._rows(name, row_slot) for name in self.fields}
        rate_slot = ring + rows["episode"].remainder(self.slots)
        return rows | {"rate": self._rows("rate", rate_slot)}

    def _rows(self, name: str, index: Tensor) -> Tensor:
        """The field `name` [*, …] at `index` [*] into all rings laid one behind the other."""
        return rows_at(getattr(self, name).flatten(0, 2), index)
