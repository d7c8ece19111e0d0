"""Whole episodes of a policy, logged."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Policy
from rlx.data.datasets import Writer
from rlx.env import TensorEnv


@torch.no_grad()
def play(
    policy: Policy,
    env: TensorEnv,
    resets: Tensor,
    choose: Choose,
    least: int,
    stack: int,
    writer: Writer,
) -> list[float]:
    """Whole episodes of every copy until it has made `least` steps; their returns. Of stacked observations the newest is logged."""
    shape = resets.shape

    def frames(obs: Tensor) -> np.ndarray:
        return (obs if stack == 1 else obs.unflatten(1, (stack, -1))[:, -1]).cpu().numpy()

    obs, _ = env.reset(seed=resets.flatten().tolist())
    first, carry = (
        torch.ones(shape, dtype=torch.bool, device=resets.device),
        policy.initial_carry(shape[1]),
    )
    episodes: list[list[tuple[np.ndarray, Any, float]]] = [[] for _ in range(env.num_envs)]
    made, returns = np.zeros(env.num_envs, int), []
    while (made < least).any():
        action, carry = policy.act(obs.unflatten(0, shape), first, carry, choose)
        seen = frames(obs)
        obs, reward, terminated, truncated, info = env.step(action.flatten(0, 1))
        first = (terminated | truncated).view(shape)
        final, actions, rewards = (
            frames(info["final_obs"]),
            action.flatten(0, 1).cpu().numpy(),
            reward.cpu().numpy(),
        )
        for i, (over, ended) in enumerate(
            zip((terminated | truncated).tolist(), terminated.tolist(), strict=True)
        ):
            if made[i] >= least:
                continue
            episodes[i].append((seen[i], actions[i], rewards[i]))
            if over:
                steps, episodes[i] = episodes[i], []
                each = [np.array(column) for column in zip(*steps, strict=True)]
                writer.add(np.concatenate([each[0], final[i : i + 1]]), each[1], each[2], ended)
                made[i] += len(steps)
                returns.append(float(each[2].sum()))
    return returns
