"""The contract of envs: a gymnasium.vector.VectorEnv of tensors."""

from collections.abc import Sequence
from typing import Protocol

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rlx.agent import Rules

IMAGE_SIDE = 16
"""Pixels of each side from which observations of three axes count as images."""


class TensorEnv(Protocol):
    """B copies of an env that are stepped together, in tensors; all that rlx asks of an env.

    A copy whose episode ends is reset within the same step (SAME_STEP of Gymnasium). `rlx.envs` has
    one class for each way to make such copies: `BatchedEnv` of a file of dynamics, `GymEnv` of any
    env of Gymnasium, `AtariEnv` of emulators; `View` and `Workers` are made around another.
    """

    num_envs: int
    """The number B of copies."""
    single_observation_space: gymnasium.Space
    """The observation space of one copy: Box, or Discrete from 0 on."""
    single_action_space: gymnasium.Space
    """The action space of one copy: Discrete from 0 on, or a bounded Box of one axis."""
    reward_threshold: float | None
    """The return from which the task counts as solved; None where nobody has said so."""
    rules: Rules | None
    """The rules of a game of two players; None where the env is no such game."""
    grid: tuple[int, int] | None
    """(rows, columns) where the observations number the cells of a grid, row by row, else None."""
    observation_units: tuple[str, ...] | None
    """The name of each component of a flat observation, with its unit where it has one, as in
    "angle (rad)"; None where nobody has said so."""
    angles: tuple[tuple[int, int], ...]
    """Pairs (component with the cosine, component with the sine) of one angle: cos² + sin² = 1."""
    lowest_reward: float | None
    """The lowest reward that one step can have; None where nobody has said so."""
    truncation_is_harm: bool
    """Whether an episode that the time limit cuts has failed, as where a goal was not reached."""

    @property
    def max_episode_steps(self) -> int | None:
        """The time limit of an episode, in steps; None where there is none."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, object] | None = None
    ) -> tuple[Tensor, dict]:
        """The first observations [B, *O] and an info.

        `seed`: one integer (copy i gets seed + i) or one per copy. What happens in a copy depends
        on its own seed and actions alone, not on the other copies.
        """

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward float32 [B], terminated bool [B], truncated bool [B], info).

        `actions`: int64 [B], or float32 [B, A] of a Box. `obs` of a copy whose episode has ended is
        the first of its next. `info["final_obs"]`, [B, *O], is for every copy what its transition
        led to; `info["_final_obs"]`, bool [B], says whose episode has ended.
        """

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) alone, in that order."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict()` was taken."""


def time_limit_words(env: TensorEnv) -> str | None:
    """What it means that an episode of `env` ended at the time limit; None where nobody knows."""
    if env.truncation_is_harm:
        return "an episode at the time limit has failed"
    if env.lowest_reward is not None and env.lowest_reward > 0:
        return "every step earns a reward: an episode at the time limit is one of the best"
    return None


def resize(env: VectorEnv, num_envs: int) -> None:
    """Let `env` have `num_envs` copies: set their number and the batched spaces."""
    env.num_envs = num_envs
    env.observation_space = batch_space(env.single_observation_space, num_envs)
    env.action_space = batch_space(env.single_action_space, num_envs)


def spread(seed: int | Sequence[int] | None, num_envs: int) -> Sequence[int | None]:
    """One seed for each copy, from the `seed` that `reset` was given; None: a copy has none."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, (int, np.integer)):
        seeds: Sequence[int] = range(seed, seed + num_envs)
    else:
        seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"reset: {len(seeds)} seeds for num_envs={num_envs}")
    return seeds


def spread_fresh(seed: int | Sequence[int] | None, num_envs: int) -> list[int]:
    """One seed for each copy, as by `spread`; a copy that has none gets a random one."""
    seeds = spread(seed, num_envs)
    return [_fresh() if copy_seed is None else int(copy_seed) for copy_seed in seeds]


def _fresh() -> int:
    """A seed from the operating system's entropy."""
    return int(np.random.SeedSequence().generate_state(1)[0])
