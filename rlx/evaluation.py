"""Greedy evaluation on common episodes: every seed, radius and attack starts from the same reset seeds."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Rules, Scores
from rlx.env import TensorEnv
from rlx.networks import take
from rlx.rng import Streams, pick, pick_allowed
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
    return rollout(policy, make_env(seeds * episodes), episode_seeds(first, episodes, seeds, device), chooser)


def exploring(epsilon: float, rng: Streams, rules: Rules | None = None) -> Choose:
    """Greedy choices of which a share `epsilon` is uniformly random instead, where a game has `rules` among its legal actions."""

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        values = scores(obs)
        whether, *which = rng.uniform(1 + (values.shape[-1] if scores.bounds else 1), values.shape[1]).unbind(1)
        if scores.bounds:
            low, high = scores.bounds
            random, whether = low + torch.stack(which, -1) * (high - low), whether.unsqueeze(-1)
        elif rules is not None and head == "action":
            random = pick_allowed(which[0], rules.legal(obs))
        else:
            random = pick(which[0], values.shape[-1])
        return torch.where(whether < epsilon, random, scores.best(obs, values))

    return choose


def evaluate_random(policy: Policy, make_env: MakeEnv, episodes: int, device: torch.device) -> Episodes:
    """Evaluation with uniformly random choices, of games legal ones: the zero of every robustness score. [1, episodes]"""
    one = take(policy, torch.zeros(1, dtype=torch.int64, device=device))
    env, rng = make_env(episodes), Streams(torch.zeros(1, dtype=torch.int64, device=device), "random policy")
    choose = exploring(1.0, rng, getattr(env, "rules", None))
    return rollout(one, env, episode_seeds(REPORT, episodes, 1, device), lambda ids: choose)
