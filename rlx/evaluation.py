"""Greedy evaluation on common episodes.

Every seed, radius and attack starts from the same reset seeds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlx.agent import Policy
from rlx.env import TensorEnv
from rlx.nn.exploration import exploring
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import take
from rlx.rollout import Episodes, MakeChoose, rollout

SELECTION = 1_000_000
"""First reset seed of the episodes by which a checkpoint is chosen."""
TRIAL = 3_000_000
"""First reset seed of the episodes on which attacks are tried, before the worst of them counts."""
REPORT = 2_000_000
"""First reset seed of the episodes that are reported; no checkpoint is chosen by these."""

MakeEnv = Callable[[int], TensorEnv]
"""A function of the number of copies, which returns these on the run's device."""


def episode_seeds(first_reset_seed: int, episodes: int, seeds: int, device: torch.device) -> Tensor:
    """int64 [S, episodes]: the reset seeds of episodes, the same for each of S = `seeds`.

    They count up from `first_reset_seed`.
    """
    end = first_reset_seed + episodes
    return torch.arange(first_reset_seed, end, device=device).expand(seeds, -1)


def evaluate(
    policy: Policy,
    make_env: MakeEnv,
    seeds: int,
    episodes: int,
    first_reset_seed: int,
    device: torch.device,
    make_choose: MakeChoose | None = None,
) -> Episodes:
    """Play a policy of S = `seeds` on episodes [S, episodes], from `first_reset_seed` on.

    Greedy, or as `make_choose` says (see `rollout`).
    """
    env = make_env(seeds * episodes)
    return rollout(
        policy, env, episode_seeds(first_reset_seed, episodes, seeds, device), make_choose
    )


def evaluate_random(
    policy: Policy, make_env: MakeEnv, episodes: int, device: torch.device
) -> Episodes:
    """Play episodes [1, episodes] by uniformly random (legal) choices.

    Their mean return is the zero of every robustness score.
    """
    seed_0 = torch.zeros(1, dtype=torch.int64, device=device)
    env = make_env(episodes)
    rng = Streams(seed_0, "random policy")
    choose = exploring(1.0, rng, env.rules)
    resets = episode_seeds(REPORT, episodes, 1, device)
    return rollout(take(policy, seed_0), env, resets, lambda ids: choose)
