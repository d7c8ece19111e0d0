"""Any Gymnasium environment as a vector env of tensors."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rlx.config import ConfigError, nearest


class GymEnv(VectorEnv):
    """`num_envs` copies of `gymnasium.make(id)`, stepped one after the other; the interface of `rlx.envs.batched.BatchedEnv`."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(
        self,
        id: str,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        kwargs: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ):
        if id not in gymnasium.registry and ":" not in id:
            raise ConfigError(f"env.id={id}: not registered with Gymnasium.{nearest(id, gymnasium.registry)}")
        try:
            self.envs = [gymnasium.make(id, max_episode_steps=max_episode_steps, **(kwargs or {})) for _ in range(num_envs)]
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(f"env.id={id}: Gymnasium cannot make it ({error}).") from None
        self.device = torch.device(device)
        spec = self.envs[0].spec
        self.max_episode_steps = max_episode_steps or (spec.max_episode_steps if spec else None)
        self.reward_threshold = spec.reward_threshold if spec else None
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self._resize()

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """First observations [B, *O]. `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones."""
        seeds: Sequence[int | None] = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        return self._tensor([env.reset(seed=s, options=options)[0] for env, s in zip(self.envs, seeds, strict=True)]), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O]}) of `actions` int64 [B]."""
        steps = [env.step(action) for env, action in zip(self.envs, np.asarray(torch.as_tensor(actions).cpu()), strict=True)]
        final, reward, terminated, truncated, _ = zip(*steps, strict=True)
        obs = [env.reset()[0] if s[2] or s[3] else s[0] for env, s in zip(self.envs, steps, strict=True)]
        flags = [torch.tensor(flag, dtype=torch.bool, device=self.device) for flag in (terminated, truncated)]
        rewards = torch.tensor([float(r) for r in reward], device=self.device)
        return self._tensor(obs), rewards, flags[0], flags[1] & ~flags[0], {"final_obs": self._tensor(final)}

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        self.envs = [self.envs[i] for i in index.tolist()]
        self._resize()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        for env in self.envs:
            env.close()

    def _resize(self) -> None:
        self.num_envs = len(self.envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _tensor(self, obs: Sequence[Any]) -> Tensor:
        array = np.stack([np.asarray(o) for o in obs])
        return torch.as_tensor(array if array.dtype.kind in "iu" else array.astype(np.float32), device=self.device)
