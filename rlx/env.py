"""What rlx asks of an environment: a gymnasium.vector.VectorEnv of tensors."""

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor


class TensorEnv(Protocol):
    """B copies with SAME_STEP autoreset; `rlx.envs.batched.BatchedEnv` and `rlx.envs.gym.GymEnv` are the two in rlx."""

    reward_threshold: float | None
    """Return from which the task counts as solved, if it says."""
    single_observation_space: gymnasium.Space
    single_action_space: gymnasium.Space
    num_envs: int

    @property
    def max_episode_steps(self) -> int | None:
        """The time limit."""

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """First observations [B, *O]; a copy's episodes depend on its own seed alone."""

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O]})."""

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""


def resize(env: VectorEnv, num_envs: int) -> None:
    """Let `env` have so many copies: its number and its batched spaces."""
    env.num_envs = num_envs
    env.observation_space = batch_space(env.single_observation_space, num_envs)
    env.action_space = batch_space(env.single_action_space, num_envs)
