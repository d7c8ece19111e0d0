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
REPORT = 2_000_000
"""First reset seed of the episodes that are reported: others than those chosen by."""

MakeEnv = Callable[[int], TensorEnv]
"""Number of copies → env on the run's device."""


def episode_seeds(first: int, episodes: int, seeds: int, device: torch.device) -> Tensor:
    """int64 [S, episodes]: reset seeds from `first` on, the same for each of S = `seeds`."""
    return torch.arange(first, first + episodes, device=device).expand(seeds, -1)


def evaluate(
    policy: Policy,
    make_env: MakeEnv,
    seeds: int,
    episodes: int,
    first: int,
    device: torch.device,
    make_choose: MakeChoose | None = None,
) -> Episodes:
    """[S, episodes] of a policy of S = `seeds`, from reset seed `first` on.

    Greedy, or as `make_choose` says (see `rollout`).
    """
    env = make_env(seeds * episodes)
    return rollout(policy, env, episode_seeds(first, episodes, seeds, device), make_choose)


def evaluate_random(
    policy: Policy, make_env: MakeEnv, episodes: int, device: torch.device
) -> Episodes:
    """[1, episodes] of uniformly random (legal) choices: the zero of every robustness score."""
    seed_0 = torch.zeros(1, dtype=torch.int64, device=device)
    env = make_env(episodes)
    rng = Streams(seed_0, "random policy")
    choose = exploring(1.0, rng, env.rules)
    resets = episode_seeds(REPORT, episodes, 1, device)
    return rollout(take(policy, seed_0), env, resets, lambda ids: choose)
