"""What Gymnasium makes of a registered Dynamics: one copy, or many, as tensors or as arrays."""

from pkgutil import resolve_name
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from rlx.envs.batched import BatchedEnv, Dynamics

_NEVER = 2**31 - 1
"""A limit that is not reached: one copy has Gymnasium's own, `gymnasium.wrappers.TimeLimit`."""


class SingleEnv(gymnasium.Env[Any, Any]):
    """One copy, with NumPy observations and numbers of Python: a `BatchedEnv` of one.

    `reset(seed=s)` and the steps that follow are those of copy 0 after the same of the batch.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        dynamics: str | type[Dynamics] | Dynamics,
        render_mode: str | None = None,
        **parameters: Any,
    ):
        """`dynamics`: a class or "module:Class", made with `parameters`, or made already."""
        self.batch = BatchedEnv(
            make_dynamics(dynamics, **parameters),
            max_episode_steps=_NEVER,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.batch.dynamics.render_fps}
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """First observation; without a seed, the random stream goes on."""
        if seed is not None:
            # It may be a number of NumPy's, which Gymnasium does not take.
            seed = int(seed)
        super().reset(seed=seed)
        obs, _ = self.batch.reset(seed=seed)
        return self._first(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As gymnasium.Env.step. ValueError where `action` is not in the space."""
        obs, reward, terminated, truncated, _ = self.batch.step(np.asarray(action)[None])
        return self._first(obs), float(reward), bool(terminated), bool(truncated), {}

    def render(self) -> Any:
        """An image uint8 [H, W, 3] of the state; None where `render_mode` is."""
        return self.batch.render()[0] if self.render_mode else None

    def _first(self, obs: Tensor) -> Any:
        """The only row of `obs` [1, *O] as an array of the space, or as a number of NumPy."""
        return obs[0].numpy().astype(self.observation_space.dtype)[()]


class Arrays(VectorWrapper):
    """The copies of a BatchedEnv with NumPy arrays out, as Gymnasium's own vector wrappers need."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As `BatchedEnv.reset`."""
        obs, info = self.env.reset(**kwargs)
        return _array(obs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As `BatchedEnv.step`."""
        *columns, info = self.env.step(actions)
        obs, reward, terminated, truncated = map(_array, columns)
        info = {name: _array(value) for name, value in info.items()}
        return obs, reward, terminated, truncated, info


def make_many(
    dynamics: str | type[Dynamics],
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    render_mode: str | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    numpy: bool = False,
    **parameters: Any,
) -> VectorEnv:
    """Copies of `dynamics`, a class or "module:Class", made with `parameters`.

    `numpy`: what they return is arrays in place of tensors.
    """
    env = BatchedEnv(
        make_dynamics(dynamics, **parameters),
        num_envs,
        max_episode_steps,
        device,
        render_mode,
        autoreset_mode=autoreset_mode,
    )
    return Arrays(env) if numpy else env


def make_dynamics(dynamics: str | type[Dynamics] | Dynamics, **parameters: Any) -> Dynamics:
    """The Dynamics of that name, or class, with `parameters`; or what is made already."""
    if isinstance(dynamics, Dynamics):
        if parameters:
            raise TypeError(f"{type(dynamics).__name__} takes no {', '.join(parameters)} any more")
        return dynamics
    kind = resolve_name(dynamics) if isinstance(dynamics, str) else dynamics
    return kind.from_keywords(**parameters)


def _array(value: Any) -> Any:
    """A tensor as an array of its own; all else as it is."""
    return value.cpu().numpy().copy() if isinstance(value, Tensor) else value
