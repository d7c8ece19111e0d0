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

STATE = ("obs", "first", "alive", "returns", "lengths", "truncated")
"""The tensors [S', B', …] of a `Batch`, beside its carry and what its env keeps."""


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
    batch = Batch(policy, env, reset_seeds, make_choose)
    while True:
        for _ in range(CHECK_EVERY):
            batch.step()
        alive = batch.alive.sum(1)
        most = int(alive.max())
        if most == 0:
            return batch.episodes()
        batch.shrink(alive, most)


class Batch:
    """The copies that still play, [S', B'] of the S·B, and the episodes of all of them."""

    def __init__(
        self,
        policy: Policy,
        env: TensorEnv,
        reset_seeds: Tensor,
        make_choose: MakeChoose | None = None,
    ):
        """As of `rollout`; all copies of `env` begin their episode."""
        self.policy = policy
        self.env = env
        self.reset_seeds = reset_seeds
        self.make_choose = make_choose
        shape = reset_seeds.shape
        device = reset_seeds.device
        # All below is [S', B', …], of the copies that still play.
        self.ids = torch.arange(shape.numel(), device=device).view(shape)
        self.returns = torch.zeros(shape, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=device)
        self.truncated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.alive = torch.ones(shape, dtype=torch.bool, device=device)
        self.first = torch.ones(shape, dtype=torch.bool, device=device)
        self.carry = policy.initial_carry(shape[1])
        self.choose = make_choose(self.ids) if make_choose else greedy
        obs, _ = env.reset(seed=reset_seeds.flatten().tolist())
        self.obs = obs.unflatten(0, shape)
        self.played = Episodes(self.returns.clone(), self.lengths.clone(), self.truncated.clone())
        """The episodes of the copies that have dropped out; of the others, nothing yet."""

    def step(self) -> None:
        """Play one step on every copy; what copies that are done play on does not count."""
        shape = self.alive.shape
        action, self.carry = self.policy.act(self.obs, self.first, self.carry, self._choose)
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action.flatten(0, 1))
        except RunError as error:
            if error.copy is not None:
                error.copy = int(self.ids.flatten()[error.copy])
            raise
        truncated = truncated.unflatten(0, shape)
        self.returns += reward.unflatten(0, shape).double() * self.alive
        self.lengths += self.alive
        self.truncated |= truncated & self.alive
        self.obs = obs.unflatten(0, shape)
        self.first = terminated.unflatten(0, shape) | truncated
        self.alive = self.alive & ~self.first

    def _choose(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose as `chooser` says; a copy that is done decides nothing."""
        return self.choose(head, obs, scores, deciding & self.alive)

    def shrink(self, alive: Tensor, width: int) -> None:
        """Drop copies that are done, where the batch becomes enough smaller.

        `alive`: int64 [S'], how many copies of each seed still play. Every seed that has such a
        copy keeps `width` copies, the most that any seed needs: those that still play, in their
        order, then some that are done.
        """
        rows = torch.nonzero(alive).squeeze(1)
        if len(rows) * width > SHRINK_BELOW * self.ids.numel():
            return
        self._bank()
        alive_first = self.alive[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)
        kept = rows.unsqueeze(1) * self.ids.shape[1] + alive_first[:, :width]
        self.env.keep(kept.flatten())
        if len(rows) < len(self.ids):
            self.policy = take(self.policy, rows)
        for name in ("ids", *STATE):
            setattr(self, name, _at(getattr(self, name), kept))
        self.carry = {name: _at(value, kept) for name, value in self.carry.items()}
        self.choose = self.make_choose(self.ids) if self.make_choose else greedy

    def _bank(self) -> None:
        """Note the episodes, as far as they have come, of the copies in the batch."""
        for name, value in vars(self.played).items():
            value.view(-1)[self.ids] = getattr(self, name)

    def episodes(self) -> Episodes:
        """All episodes; RunError where one has a reward that is not finite."""
        self._bank()
        check_rewards(self.played, self.reset_seeds)
        return self.played


def check_rewards(episodes: Episodes, reset_seeds: Tensor) -> None:
    """RunError where one of the `episodes` has a reward that is not finite."""
    not_finite = torch.nonzero(~episodes.returns.flatten().isfinite())
    if len(not_finite):
        seed = int(reset_seeds.flatten()[not_finite[0]])
        where = f"in the episode of reset seed {seed}"
        raise RunError(f"env: gave a reward that is not finite {where}")


def _at(values: Tensor, index: Tensor) -> Tensor:
    """`values` [S, B, …] at the flat places `index` [S', B'] of the S·B: [S', B', …]."""
    return values.flatten(0, 1)[index.flatten()].unflatten(0, index.shape)
