"""Partial observation: any env with some components hidden, or its last observations stacked."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Feature, Rules
from rlx.config import at_least
from rlx.env import TensorEnv, resize
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.nn.seed_axis import along


class View(VectorEnv):
    """`env` as a `TensorEnv` that shows some components of its observations, several at once.

    Observations are the last `stack` ones of `env`, the oldest first: [B, stack · components], or
    images [B, stack · C, H, W]. An episode begins with its first observation repeated.

    Two other places stack in the same way, without such an env: `rlx.api.GymPolicy` for the
    observations of a single env, `rlx.robustness.attacker` for perturbed observations.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    rules: Rules | None = None
    grid: tuple[int, int] | None = None
    features: Mapping[str, Feature] | None = None

    def __init__(self, env: TensorEnv, observe: Sequence[int] | None, stack: int):
        """`observe`: the components of a flat observation that are shown; None: all of them."""
        space = env.single_observation_space
        flat = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
        image = isinstance(space, gymnasium.spaces.Box) and is_image(space.shape)
        if not flat and not (image and observe is None):
            expected = "need observations of one axis, env.stack also takes images"
            raise ConfigError(f"env.observe, env.stack: {expected}; this env has {space}.")
        assert isinstance(space, gymnasium.spaces.Box)
        known = list(range(space.shape[0]))
        self.components = known if observe is None else _components(observe, known)
        if not isinstance(stack, int):
            raise ConfigError(f"env.stack={stack}: expected a whole number.")
        at_least(stack, 1, "env.stack")
        if len(set(self.components)) < len(self.components):
            raise ConfigError("env.observe: names a component twice.")
        self.env = env
        self.stack = stack
        dtype: Any = space.dtype
        low = np.concatenate([space.low[self.components]] * stack)
        high = np.concatenate([space.high[self.components]] * stack)
        self.single_observation_space = gymnasium.spaces.Box(low, high, dtype=dtype)
        self.single_action_space = env.single_action_space
        self.max_episode_steps = env.max_episode_steps
        self.reward_threshold = env.reward_threshold
        self.lowest_reward = env.lowest_reward
        self.truncation_is_harm = env.truncation_is_harm
        self.observation_units = self._units()
        self.angles = self._angles()
        self._shown: Tensor
        """int64: the components that are shown, on the device."""
        self.past: Tensor
        """The last observations, [B, stack, components] or [B, stack, C, H, W]."""
        resize(self, self.env.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, stack · components], as `TensorEnv.reset`."""
        obs, info = self.env.reset(seed=seed, options=options)
        # A GPU would wait for a list of indices at every step.
        self._shown = torch.tensor(self.components, device=obs.device)
        past = self._repeated(obs)
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
        newest = info["final_obs"].index_select(1, self._shown).unsqueeze(1)
        final = torch.cat([self.past[:, 1:], newest], 1)
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
        """Go on from where `state_dict()` was taken."""
        inner = {name: value for name, value in state.items() if name != "past"}
        self.env.load_state_dict(inner)
        device = next(iter(self.env.state_dict().values())).device
        self.past = state["past"].to(device, copy=True)

    def _units(self) -> tuple[str, ...] | None:
        """The names of the components that are shown; older ones say how many steps ago."""
        if self.env.observation_units is None:
            return None
        shown = [self.env.observation_units[number] for number in self.components]
        names = []
        for age in reversed(range(1, self.stack)):
            names += [f"{name}, {age} ago" for name in shown]
        return (*names, *shown)

    def _angles(self) -> tuple[tuple[int, int], ...]:
        """The pairs (cosine, sine) of which both are shown, in each observation of the stack."""
        place = {number: index for index, number in enumerate(self.components)}
        pairs = [
            (place[cos], place[sin])
            for cos, sin in self.env.angles
            if cos in place and sin in place
        ]
        starts = range(0, self.stack * len(self.components), len(self.components))
        return tuple((start + cos, start + sin) for start in starts for cos, sin in pairs)

    def _repeated(self, obs: Tensor) -> Tensor:
        """[B, stack, …]: the observations `obs` [B, *O], each repeated `stack` times."""
        return torch.stack([obs.index_select(1, self._shown)] * self.stack, 1)


def _components(observe: Any, known: list[int]) -> list[int]:
    """The components `observe` as a list; ConfigError where they are not some of `known`."""
    numbers = list(observe) if isinstance(observe, Sequence) else [observe]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not numbers or not whole or not set(numbers) <= set(known):
        expected = f"expected a list of some of the components 0 to {known[-1]}, such as [0]"
        raise ConfigError(f"env.observe={observe}: {expected}.")
    return numbers
