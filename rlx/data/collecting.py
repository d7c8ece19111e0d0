"""Collecting: whole episodes of a policy, logged."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Policy
from rlx.data.writer import Writer
from rlx.env import TensorEnv


class _Step(NamedTuple):
    """One step of one env copy."""

    obs: np.ndarray
    """The observation before the step, [*O]."""
    action: Any
    reward: float


@torch.no_grad()
def play(
    policy: Policy,
    env: TensorEnv,
    resets: Tensor,
    choose: Choose,
    *,
    least: int,
    stack: int,
    writer: Writer,
) -> list[float]:
    """Log whole episodes of every env copy until it has made `least` steps; returns their returns.

    `resets`: int64 [S, N], the seed of each copy's first reset. Of `stack` stacked observations
    the newest is logged.
    """
    shape = resets.shape
    obs, _ = env.reset(seed=resets.flatten().tolist())
    first = torch.ones(shape, dtype=torch.bool, device=resets.device)
    carry = policy.initial_carry(shape[1])
    episodes: list[list[_Step]] = [[] for _ in range(env.num_envs)]
    steps_made = np.zeros(env.num_envs, int)
    returns = []
    while (steps_made < least).any():
        action, carry = policy.act(obs.unflatten(0, shape), first, carry, choose)
        action = action.flatten(0, 1)
        newest_obs = _newest(obs, stack)
        obs, reward, terminated, truncated, info = env.step(action)
        ended = terminated | truncated
        first = ended.view(shape)
        final_obs = _newest(info["final_obs"], stack)
        actions = action.cpu().numpy()
        rewards = reward.cpu().numpy()
        has_ended = ended.tolist()
        has_terminated = terminated.tolist()
        for i in np.flatnonzero(steps_made < least):
            episodes[i].append(_Step(newest_obs[i], actions[i], rewards[i]))
            if not has_ended[i]:
                continue
            returns.append(_write(episodes[i], final_obs[i], has_terminated[i], writer))
            steps_made[i] += len(episodes[i])
            episodes[i] = []
    return returns


def _write(steps: list[_Step], final_obs: np.ndarray, terminated: bool, writer: Writer) -> float:
    """Log one whole episode, which ended with `final_obs`; its return."""
    obs = np.array([step.obs for step in steps] + [final_obs])
    action = np.array([step.action for step in steps])
    reward = np.array([step.reward for step in steps])
    writer.add(obs, action, reward, terminated)
    return float(reward.sum())


def _newest(obs: Tensor, stack: int) -> np.ndarray:
    """The newest [S · N, *O] of stacked observations [S · N, stack · C, …]."""
    if stack > 1:
        obs = obs.unflatten(1, (stack, -1))[:, -1]
    return obs.cpu().numpy()
