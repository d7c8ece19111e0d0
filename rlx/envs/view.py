"""Partial observation: any env through a narrower window, or with a memory of the last observations."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import at_least
from rlx.env import TensorEnv, resize
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.nn.seed_axis import along


class View(VectorEnv):
    """`env` of which the components `observe` of a flat Box observation are seen (None: all), the last `stack` times in a row.

    Observations are [B, stack · components], or images [B, stack · C, H, W], the oldest first; an episode begins with its first
    observation repeated.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, env: TensorEnv, observe: Sequence[int] | None, stack: int):
        space = env.single_observation_space
        if not isinstance(space, gymnasium.spaces.Box) or not (
            len(space.shape) == 1 or (is_image(space.shape) and observe is None)
        ):
            raise ConfigError(
                f"env.observe, env.stack: need observations of one axis, env.stack also takes images; this env has {space}."
            )
        known = list(range(space.shape[0]))
        self.components = known if observe is None else _components(observe, known)
        if not isinstance(stack, int):
            raise ConfigError(f"env.stack={stack}: expected a whole number.")
        at_least(stack, 1, "env.stack")
        if len(set(self.components)) < len(self.components):
            raise ConfigError("env.observe: names a component twice.")
        self.env, self.stack = env, stack
        low, high = (
            np.concatenate([bound[self.components]] * stack) for bound in (space.low, space.high)
        )
        self.single_observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype)  # type: ignore[arg-type]
        self.single_action_space = env.single_action_space
        self.max_episode_steps, self.reward_threshold = env.max_episode_steps, env.reward_threshold
        self.past: Tensor
        resize(self, self.env.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, stack · components]."""
        obs, info = self.env.reset(seed=seed, options=options)
        past: Tensor = self._repeated(obs)
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            begun = along(torch.as_tensor(mask, device=past.device), past)
            past = torch.where(begun, past, self.past)
        self.past = past
        return self.past.flatten(1, 2), info

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As `TensorEnv.step`."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        final = torch.cat([self.past[:, 1:], info["final_obs"][:, None, self.components]], 1)
        ended = along(terminated | truncated, final)
        self.past = torch.where(ended, self._repeated(obs), final)
        info = {**info, "final_obs": final.flatten(1, 2)}
        return self.past.flatten(1, 2), reward, terminated, truncated, info

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        self.env.keep(index)
        self.past = self.past[index]
        resize(self, self.env.num_envs)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the copies' future: tensors [B, …]."""
        return self.env.state_dict() | {"past": self.past}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict()` was taken."""
        self.env.load_state_dict({name: value for name, value in state.items() if name != "past"})
        self.past = state["past"].clone()

    def _repeated(self, obs: Tensor) -> Tensor:
        return torch.stack([obs[:, self.components]] * self.stack, 1)


def _components(observe: Any, known: list[int]) -> list[int]:
    """The numbers `observe` as a list; ConfigError where they are not some of `known`."""
    numbers = list(observe) if isinstance(observe, Sequence) else [observe]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not numbers or not whole or not set(numbers) <= set(known):
        expected = f"expected a list of some of the components 0 to {known[-1]}, such as [0]"
        raise ConfigError(f"env.observe={observe}: {expected}.")
    return numbers
