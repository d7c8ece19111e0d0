"""The one evaluation loop: whole episodes of a policy on a batch of env copies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores, greedy
from rlx.env import TensorEnv
from rlx.errors import RunError
from rlx.nn.seed_axis import take

CHECK_EVERY = 8
"""Steps between two looks at which copies are done: looking makes a GPU wait."""


@dataclass
class Episodes:
    """What was played: tensors [S, B], one episode per copy."""

    returns: Tensor
    """Undiscounted, float64."""
    lengths: Tensor
    truncated: Tensor
    """Whether it ended at the time limit."""


@torch.no_grad()
def rollout(
    policy: Policy,
    env: TensorEnv,
    reset_seeds: Tensor,
    chooser: Callable[[Tensor], Choose] | None = None,
) -> Episodes:
    """Play one episode on each of env's S·B copies, copy [s, b] from `reset_seeds[s, b]` (int64 [S, B]).

    `chooser(ids)` gives the way to choose for the copies `ids` (int64 [S', B'], numbers in the flat S·B); greedy without.
    Copies that are done drop out: the batch shrinks when a quarter of it is idle, so the cost is that of the steps played.
    """
    seeds, batch = reset_seeds.shape
    device = reset_seeds.device
    ids = torch.arange(seeds * batch, device=device).view(seeds, batch)
    returns = torch.zeros(seeds * batch, dtype=torch.float64, device=device)
    lengths = torch.zeros(seeds * batch, dtype=torch.int64, device=device)
    cut = torch.zeros(seeds * batch, dtype=torch.bool, device=device)
    alive = torch.ones_like(ids, dtype=torch.bool)
    first = torch.ones_like(alive)
    carry = policy.initial_carry(batch)
    choose = chooser(ids) if chooser else greedy
    obs, _ = env.reset(seed=reset_seeds.flatten().tolist())
    obs = obs.unflatten(0, (seeds, batch))
    for step in range(1, 1 << 62):

        def choose_alive(head: str, seen: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            return choose(head, seen, scores, deciding & alive)  # noqa: B023 (called within this step)

        action, carry = policy.act(obs, first, carry, choose_alive)
        obs, reward, terminated, truncated, _ = env.step(action.flatten(0, 1))
        obs, reward, terminated, truncated = (
            x.unflatten(0, ids.shape) for x in (obs, reward, terminated, truncated)
        )
        returns.index_add_(0, ids.flatten(), (reward.double() * alive).flatten())
        lengths.index_add_(0, ids.flatten(), alive.flatten().long())
        cut.index_copy_(0, ids.flatten(), (cut[ids] | (truncated & alive)).flatten())
        first = terminated | truncated
        alive = alive & ~first
        if step % CHECK_EVERY:
            continue
        counts = alive.sum(1)
        width = int(counts.max())
        if width == 0:
            if not returns.isfinite().all():
                row = int(torch.nonzero(~returns.isfinite())[0])
                raise RunError(
                    f"env: gave a reward that is not finite in the episode of reset seed {int(reset_seeds.flatten()[row])}"
                )
            return Episodes(*(x.view(seeds, batch) for x in (returns, lengths, cut)))
        rows = torch.nonzero(counts).squeeze(1)
        if len(rows) * width <= 0.75 * ids.numel():
            columns = (
                alive[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
            )
            picked = rows.unsqueeze(1) * ids.shape[1] + columns
            env.keep(picked.flatten())
            if len(rows) < len(ids):
                policy = take(policy, rows)

            def pick(x: Tensor) -> Tensor:
                return x.flatten(0, 1)[picked.flatten()].unflatten(0, picked.shape)  # noqa: B023 (called at once)

            ids, alive, first, obs = pick(ids), pick(alive), pick(first), pick(obs)
            carry = {name: pick(value) for name, value in carry.items()}
            choose = chooser(ids) if chooser else greedy
    raise AssertionError("unreachable")
