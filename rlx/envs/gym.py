"""Any Gymnasium environment as a vector env of tensors."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import ConfigError, nearest
from rlx.env import resize


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
        space = self.envs[0].observation_space
        if isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f":
            space = gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))  # as `_tensor` gives it
        self.single_observation_space = space
        self.single_action_space = self.envs[0].action_space
        resize(self, len(self.envs))
        self._begun = [np.zeros(6, np.uint64)] * num_envs
        """Per copy, the state of its random generator before the running episode's reset …"""
        self._seeds: list[int | None] = [None] * num_envs
        """… the seed given to that reset, if one was …"""
        self._actions: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        """… and the actions since: an environment's own state is out of reach, but these lead to it again."""

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict]:
        """First observations [B, *O]. `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones."""
        seeds: Sequence[int | None] = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        return self._tensor([self._begin(i, seed) for i, seed in enumerate(seeds)]), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], {"final_obs": [B, *O]}); Box `actions` are cut at their bounds."""
        rows = np.asarray(torch.as_tensor(actions).cpu())
        if isinstance(self.single_action_space, gymnasium.spaces.Box):
            rows = rows.clip(self.single_action_space.low, self.single_action_space.high)
        steps = [env.step(action) for env, action in zip(self.envs, rows, strict=True)]
        for past, action in zip(self._actions, rows, strict=True):
            past.append(action)
        final, reward, terminated, truncated, _ = zip(*steps, strict=True)
        final_obs = self._tensor(final)  # before the resets, which may write into the same arrays
        obs = [self._begin(i, None) if s[2] or s[3] else s[0] for i, s in enumerate(steps)]
        flags = [torch.tensor(flag, dtype=torch.bool, device=self.device) for flag in (terminated, truncated)]
        rewards = torch.tensor([float(r) for r in reward], device=self.device)
        return self._tensor(obs), rewards, flags[0], flags[1] & ~flags[0], {"final_obs": final_obs}

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in ("envs", "_begun", "_seeds", "_actions"):
            setattr(self, name, [getattr(self, name)[i] for i in index.tolist()])
        resize(self, len(self.envs))

    def state_dict(self) -> dict[str, Tensor]:
        """How each copy's running episode began and what was done in it, tensors [B, …]."""
        space: Any = self.single_action_space
        longest = max([len(past) for past in self._actions], default=0)
        actions = np.zeros((self.num_envs, longest, *space.shape), space.dtype)
        for row, past in zip(actions, self._actions, strict=True):
            row[: len(past)] = np.array(past).reshape(len(past), *space.shape)
        return {
            "begun": torch.from_numpy(np.stack(self._begun).view(np.int64)),
            "seed": torch.tensor([-1 if seed is None else seed for seed in self._seeds]),
            "played": torch.tensor([len(past) for past in self._actions]),
            "actions": torch.from_numpy(actions),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Begin each copy's episode again and repeat its actions: exact for every environment whose only chance is its
        `np_random`, which Gymnasium asks of all."""
        begun, actions = state["begun"].cpu().numpy().view(np.uint64), state["actions"].cpu().numpy()
        for i, (seed, played) in enumerate(zip(state["seed"].tolist(), state["played"].tolist(), strict=True)):
            self.envs[i].unwrapped.np_random = _generator(begun[i])
            self._begin(i, None if seed < 0 else seed)
            self._actions[i] = list(actions[i, :played])
            for action in self._actions[i]:
                self.envs[i].step(action)

    def _begin(self, copy: int, seed: int | None) -> Any:
        """Reset one copy; remembers how."""
        self._begun[copy] = _generator_state(self.envs[copy].unwrapped.np_random)
        self._seeds[copy], self._actions[copy] = seed, []
        return self.envs[copy].reset(seed=seed)[0]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        for env in self.envs:
            env.close()

    def _tensor(self, obs: Sequence[Any]) -> Tensor:
        array = np.stack([np.asarray(o) for o in obs])
        return torch.as_tensor(array if array.dtype.kind in "iu" else array.astype(np.float32), device=self.device)


def _generator_state(generator: np.random.Generator) -> np.ndarray:
    """uint64 [6] of a PCG64, the generator of Gymnasium."""
    state: Any = generator.bit_generator.state
    inner, low = state["state"], (1 << 64) - 1
    words = [inner["state"] & low, inner["state"] >> 64, inner["inc"] & low, inner["inc"] >> 64, state["has_uint32"], state["uinteger"]]
    return np.array(words, np.uint64)


def _generator(words: np.ndarray) -> np.random.Generator:
    """The inverse."""
    state, state_high, inc, inc_high, has_uint32, uinteger = (int(word) for word in words)
    bits = np.random.PCG64()
    inner: Any = {"state": state | state_high << 64, "inc": inc | inc_high << 64}
    bits.state = {"bit_generator": "PCG64", "state": inner, "has_uint32": has_uint32, "uinteger": uinteger}
    return np.random.Generator(bits)
