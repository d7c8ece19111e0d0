"""Greedy evaluation on common episodes: every seed, radius and attack starts from the same reset seeds."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlx.agent import Choose, Policy
from rlx.env import TensorEnv
from rlx.nn.exploration import exploring
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import take
from rlx.rollout import Episodes, rollout

SELECTION = 1_000_000
"""First reset seed of the episodes by which a checkpoint is chosen."""
REPORT = 2_000_000
"""First reset seed of the episodes that are reported: others than those chosen by."""

MakeEnv = Callable[[int], TensorEnv]
"""Number of copies → env on the run's device."""


def episode_seeds(first: int, episodes: int, seeds: int, device: torch.device) -> Tensor:
    """Reset seeds [S, episodes]: the same for every training seed."""
    return torch.arange(first, first + episodes, device=device).expand(seeds, -1)


def evaluate(
    policy: Policy, make_env: MakeEnv, seeds: int, episodes: int, first: int, device: torch.device,
    chooser: Callable[[Tensor], Choose] | None = None,
) -> Episodes:  # fmt: skip
    """`episodes` episodes (greedy, or as `chooser` says) of each of the policy's `seeds`, from reset seed `first` on."""
    return rollout(
        policy, make_env(seeds * episodes), episode_seeds(first, episodes, seeds, device), chooser
    )


def evaluate_random(
    policy: Policy, make_env: MakeEnv, episodes: int, device: torch.device
) -> Episodes:
    """[1, episodes] of uniformly random (legal) choices: the zero of every robustness score."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    one, env = take(policy, zero), make_env(episodes)
    choose = exploring(1.0, Streams(zero, "random policy"), env.rules)
    return rollout(one, env, episode_seeds(REPORT, episodes, 1, device), lambda ids: choose)
