"""The one evaluation loop: whole episodes of a policy on a batch of env copies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores, greedy
from rlx.env import TensorEnv
from rlx.errors import RunError
from rlx.nn.seed_axis import take

MakeChoose = Callable[[Tensor], Choose]
"""How the copies `ids` choose, which are int64 [S', B'] and number the copies in the flat S·B."""

CHECK_EVERY = 8
"""Steps between two looks at which copies are done: looking makes a GPU wait."""

SHRINK_BELOW = 0.75
"""The batch shrinks when at most this share of it would stay: shrinking copies all that stays."""


@dataclass
class Episodes:
    """Episodes that were played, one on each of S·B env copies: tensors [S, B]."""

    returns: Tensor
    """float64 [S, B]: undiscounted sums of rewards."""
    lengths: Tensor
    """int64 [S, B]: numbers of steps."""
    truncated: Tensor
    """bool [S, B]: whether the episode ended at the time limit."""


@torch.no_grad()
def rollout(
    policy: Policy,
    env: TensorEnv,
    reset_seeds: Tensor,
    make_choose: MakeChoose | None = None,
) -> Episodes:
    """Play one episode on each of env's S·B copies.

    `reset_seeds`: int64 [S, B], from which each copy starts. `make_choose(ids)` gives the way
    to choose of the copies `ids`; None: greedily. RunError where the env gives a reward that is not
    finite.

    Copies that are done drop out of the batch, so that the cost is that of the steps played.
    """
    batch = _Batch(policy, env, reset_seeds, make_choose)
    while True:
        for _ in range(CHECK_EVERY):
            batch.step()
        alive = batch.alive.sum(1)
        most = int(alive.max())
        if most == 0:
            return batch.episodes()
        batch.shrink(alive, most)


class _Batch:
    """The copies that still play, [S', B'] of the S·B, and the episodes of all of them."""

    def __init__(
        self,
        policy: Policy,
        env: TensorEnv,
        reset_seeds: Tensor,
        make_choose: MakeChoose | None,
    ):
        self.policy = policy
        self.env = env
        self.reset_seeds = reset_seeds
        self.make_choose = make_choose
        shape = reset_seeds.shape
        device = reset_seeds.device
        copies = shape.numel()
        # The episodes of all copies, in the flat order of their ids.
        self.returns = torch.zeros(copies, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(copies, dtype=torch.int64, device=device)
        self.truncated = torch.zeros(copies, dtype=torch.bool, device=device)
        # The state of the copies that still play, [S', B', …].
        self.ids = torch.arange(copies, device=device).view(shape)
        self.alive = torch.ones(shape, dtype=torch.bool, device=device)
        self.first = torch.ones(shape, dtype=torch.bool, device=device)
        self.carry = policy.initial_carry(shape[1])
        self.choose = make_choose(self.ids) if make_choose else greedy
        obs, _ = env.reset(seed=reset_seeds.flatten().tolist())
        self.obs = obs.unflatten(0, shape)

    def step(self) -> None:
        """Play one step on every copy; what copies that are done play on does not count."""
        shape = self.ids.shape
        action, self.carry = self.policy.act(self.obs, self.first, self.carry, self._choose)
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action.flatten(0, 1))
        except RunError as error:
            if error.copy is not None:
                error.copy = int(self.ids.flatten()[error.copy])
            raise
        self.obs = obs.unflatten(0, shape)
        reward = reward.unflatten(0, shape)
        terminated = terminated.unflatten(0, shape)
        truncated = truncated.unflatten(0, shape)
        self._count(reward, truncated)
        self.first = terminated | truncated
        self.alive = self.alive & ~self.first

    def _choose(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose as `chooser` says; a copy that is done decides nothing."""
        return self.choose(head, obs, scores, deciding & self.alive)

    def _count(self, reward: Tensor, truncated: Tensor) -> None:
        """Add a step [S', B'] to the episodes of the copies that are alive."""
        ids = self.ids.flatten()
        self.returns.index_add_(0, ids, (reward.double() * self.alive).flatten())
        self.lengths.index_add_(0, ids, self.alive.flatten().long())
        truncated_so_far = self.truncated[self.ids] | (truncated & self.alive)
        self.truncated.index_copy_(0, ids, truncated_so_far.flatten())

    def shrink(self, alive: Tensor, width: int) -> None:
        """Drop copies that are done, where the batch becomes enough smaller.

        `alive`: int64 [S'], how many copies of each seed still play. Every seed that has such a
        copy keeps `width` copies, the most that any seed needs: those that still play, in their
        order, then some that are done.
        """
        rows = torch.nonzero(alive).squeeze(1)
        if len(rows) * width > SHRINK_BELOW * self.ids.numel():
            return
        alive_first = self.alive[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)
        kept = rows.unsqueeze(1) * self.ids.shape[1] + alive_first[:, :width]
        self.env.keep(kept.flatten())
        if len(rows) < len(self.ids):
            self.policy = take(self.policy, rows)
        self.ids = _at(self.ids, kept)
        self.alive = _at(self.alive, kept)
        self.first = _at(self.first, kept)
        self.obs = _at(self.obs, kept)
        self.carry = {name: _at(value, kept) for name, value in self.carry.items()}
        self.choose = self.make_choose(self.ids) if self.make_choose else greedy

    def episodes(self) -> Episodes:
        """All episodes; RunError where one has a reward that is not finite."""
        not_finite = torch.nonzero(~self.returns.isfinite())
        if len(not_finite):
            seed = int(self.reset_seeds.flatten()[not_finite[0]])
            where = f"in the episode of reset seed {seed}"
            raise RunError(f"env: gave a reward that is not finite {where}")
        shape = self.reset_seeds.shape
        return Episodes(
            self.returns.view(shape), self.lengths.view(shape), self.truncated.view(shape)
        )


def _at(values: Tensor, index: Tensor) -> Tensor:
    """`values` [S, B, …] at the flat places `index` [S', B'] of the S·B: [S', B', …]."""
    return values.flatten(0, 1)[index.flatten()].unflatten(0, index.shape)
