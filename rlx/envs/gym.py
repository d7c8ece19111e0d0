"""Any Gymnasium environment as a vector env of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Rules
from rlx.config import Count
from rlx.env import resize, spread
from rlx.envs import gym_checks
from rlx.envs.gym_make import find_spec, make_one
from rlx.envs.spaces import agent_actions, agent_observations
from rlx.errors import ConfigError, RunError
from rlx.names import one_line


@dataclass
class _Episode:
    """How a copy's running episode began and what was done in it.

    An env's state is out of reach, but from here its steps can be taken again, which lead to it.
    """

    generator: np.ndarray = field(default_factory=lambda: np.zeros(6, np.uint64))
    """uint64 [6]: the state of the env's random generator before the episode's reset."""
    seed: int | None = None
    """The seed given to that reset, if one was."""
    options: dict[str, Any] | None = None
    """The options given to that reset."""
    actions: list[np.ndarray] = field(default_factory=list)
    """The actions since, each [*A]."""


class GymEnv(VectorEnv):
    """`num_envs` copies of `gymnasium.make(id)`, stepped one by one: a `TensorEnv`.

    Agents see the spaces that `rlx.envs.spaces.agent_observations` and `agent_actions` make of the
    env's. What the env raises, and what it returns that its spaces do not allow, is a RunError on
    one line that says so (gym_checks.py).
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}
    rules: Rules | None = None
    grid: tuple[int, int] | None = None
    observation_units: tuple[str, ...] | None = None
    angles: tuple[tuple[int, int], ...] = ()
    lowest_reward: float | None = None
    truncation_is_harm: bool = False
    named = ""
    """Key and value by which the user chose the env: the beginning of its errors."""

    def __init__(
        self,
        id: str,
        num_envs: int = 1,
        max_episode_steps: Count | None = None,
        kwargs: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ):
        """The keys of conf/env/gym.yaml; `kwargs` are the arguments of `gymnasium.make`.

        `max_episode_steps` None: the limit that Gymnasium knows.
        """
        if kwargs is not None and not isinstance(kwargs, Mapping):
            expected = "expected names and values, as in env.kwargs={size: 3}"
            raise ConfigError(f"env.kwargs={kwargs}: {expected}.")
        kwargs = kwargs or {}
        self.named = self.named or f"env.id={id}"
        spec = find_spec(str(id), self.named)
        self.envs = [make_one(spec, kwargs, self.named) for _ in range(num_envs)]
        self.render_mode = kwargs.get("render_mode")
        self.device = torch.device(device)
        self._limit = max_episode_steps or spec.max_episode_steps
        # The spec of a made env knows of a limit that the entry point has put around it.
        made_spec = self.envs[0].spec
        made_limit = made_spec.max_episode_steps if made_spec else None
        self.max_episode_steps = self._limit or made_limit
        self.reward_threshold = spec.reward_threshold
        self._obs_space = self.envs[0].observation_space
        self._action_space = self.envs[0].action_space
        self.single_observation_space, self._convert_obs = agent_observations(self._obs_space)
        self.single_action_space, self._convert_actions = agent_actions(self._action_space)
        resize(self, num_envs)
        self._episodes = [_Episode() for _ in range(num_envs)]
        self._running_actions: Sequence[np.ndarray] = ()
        """The actions of the running step; no part of the episodes until all went well."""
        self._infos: list[Any] = [None] * num_envs
        """The newest info of each copy."""
        self._newest_obs: Tensor | None = None
        """The newest observations of all copies, [B, *O]; None before the first reset."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O] and an empty info.

        `seed`: one integer (copy i gets seed + i) or one per copy; None goes on with the envs'
        random generators. `options` are the envs' own, except "reset_mask" (bool [B]): only these
        copies begin anew.
        """
        env_options = dict(options or {})
        mask = env_options.pop("reset_mask", None)
        seeds = spread(seed, self.num_envs)
        if mask is not None and self._newest_obs is None:
            raise ValueError("reset: reset_mask needs a reset of all copies before it")
        copies = list(range(self.num_envs))
        if mask is not None:
            copies = np.flatnonzero(np.asarray(mask, bool)).tolist()
        if copies:
            first = [self._begin_seeded(copy, seeds[copy], env_options) for copy in copies]
            first_obs = self._agent_obs(first, copies)
            obs = first_obs
            if self._newest_obs is not None:
                obs = self._newest_obs.cpu().numpy().copy()
                obs[copies] = first_obs
            self._newest_obs = self._tensor(obs)
        assert self._newest_obs is not None
        return self._newest_obs, {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], info), as `TensorEnv.step`."""
        rows = self._convert_actions(np.asarray(torch.as_tensor(actions).cpu()))
        if len(rows) != self.num_envs:
            raise ValueError(f"step: {len(rows)} actions for num_envs={self.num_envs}")
        self._running_actions = list(rows)
        # An env may write into its action, but what was played is kept.
        env_actions = self._running_actions if rows.ndim == 1 else list(rows.copy())
        results: list[Any] = []
        try:
            for env, action in zip(self.envs, env_actions, strict=True):
                results.append(env.step(action))
        except (Exception, SystemExit) as error:
            raise self._as_run_error(len(results), error) from error
        columns = gym_checks.step_results(results, self._running_call)
        observations, rewards, terminations, truncations, self._infos = columns
        # Before the resets, which may write into the same arrays.
        final = self._agent_obs(observations, range(self.num_envs))
        reward = gym_checks.reward_numbers(rewards, self._running_call)
        terminated = gym_checks.flags(terminations, "terminated", self._running_call)
        truncated = gym_checks.flags(truncations, "truncated", self._running_call)
        for episode, action in zip(self._episodes, self._running_actions, strict=True):
            episode.actions.append(action)
        if self._limit:
            lengths = np.array([len(episode.actions) for episode in self._episodes])
            truncated = truncated | (lengths >= self._limit)
        ended = terminated | truncated
        obs = final
        if ended.any():
            copies = np.flatnonzero(ended).tolist()
            obs = final.copy()
            first = [self._begin(copy, None) for copy in copies]
            obs[copies] = self._agent_obs(first, copies)
        self._newest_obs = self._tensor(obs)
        info = {"final_obs": self._tensor(final), "_final_obs": self._tensor(ended)}
        return (
            self._newest_obs,
            self._tensor(reward),
            self._tensor(terminated),
            self._tensor(truncated & ~terminated),
            info,
        )

    def render(self) -> tuple[Any, ...]:
        """One image uint8 [H, W, 3] per copy, where kwargs has render_mode: rgb_array."""
        images = []
        for env, episode in zip(self.envs, self._episodes, strict=True):
            steps = len(episode.actions)
            call = f"{self.named}: render() after {steps} steps of an episode"
            try:
                image: Any = env.render()
            except (Exception, SystemExit) as error:
                raise gym_checks.as_run_error(error, call) from error
            if self.render_mode == "rgb_array" and np.shape(image)[2:] != (3,):
                returned = "None" if image is None else f"shape {np.shape(image)}"
                raise RunError(f"{call} returned {returned}; expected an image [H, W, 3].")
            images.append(image)
        return tuple(images)

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in ("envs", "_episodes", "_infos"):
            setattr(self, name, [getattr(self, name)[i] for i in index.tolist()])
        if self._newest_obs is not None:
            self._newest_obs = self._newest_obs[index]
        resize(self, len(self.envs))

    def state_dict(self) -> dict[str, Tensor]:
        """How each copy's running episode began and what was done in it.

        "begun": int64 [B, 6], the state of its random generator then. "seed": int64 [B], −1 for
        none. "played": int64 [B], its actions so far, T at most. "actions": [B, T, *A].
        """
        episodes = self._episodes
        if any(episode.options for episode in episodes):
            raise RunError(f"{self.named}: episodes that began with reset options cannot be saved.")
        space: Any = self._action_space
        dtype = np.int64 if space.dtype.kind in "ui" else space.dtype
        lengths = [len(episode.actions) for episode in episodes]
        actions = np.zeros((self.num_envs, max(lengths, default=0), *space.shape), dtype)
        for row, episode, length in zip(actions, episodes, lengths, strict=True):
            row[:length] = np.array(episode.actions).reshape(length, *space.shape)
        seeds = [-1 if episode.seed is None else episode.seed for episode in episodes]
        generators = np.stack([episode.generator for episode in episodes])
        return {
            "begun": torch.from_numpy(generators.view(np.int64)),
            "seed": torch.tensor(seeds),
            "played": torch.tensor(lengths),
            "actions": torch.from_numpy(actions),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Begin each copy's episode again and repeat its actions.

        Exact for every env whose only chance is its `np_random`, which Gymnasium asks of all.
        """
        space: Any = self._action_space
        generators = state["begun"].cpu().numpy().view(np.uint64)
        actions = state["actions"].cpu().numpy().astype(space.dtype)
        lengths = state["played"].tolist()
        observations = []
        for copy, seed in enumerate(state["seed"].tolist()):
            self.envs[copy].unwrapped.np_random = _generator(generators[copy])
            first = self._begin(copy, None if seed < 0 else seed)
            observations.append(self._replay(copy, first, actions[copy, : lengths[copy]]))
        self._newest_obs = self._tensor(self._agent_obs(observations, range(self.num_envs)))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        for env in self.envs:
            env.close()

    def _replay(self, copy: int, obs: Any, actions: np.ndarray) -> Any:
        """Take the steps `actions` [T, *A] in a copy that showed `obs`: what it shows then."""
        for action in actions:
            self._running_actions = [action] * self.num_envs
            try:
                obs, *_, self._infos[copy] = self.envs[copy].step(action.copy())
            except (Exception, SystemExit) as error:
                raise self._as_run_error(copy, error) from error
            self._episodes[copy].actions.append(action)
        return obs

    def _begin_seeded(self, copy: int, seed: int | None, options: dict[str, Any]) -> Any:
        """Reset one copy from `seed`, if there is one: its first observation.

        Before its first seed an env's generator is a matter of chance. `reset` replaces it by this
        same one, if the env passes the seed on; if it does not, its episodes depend on the seed
        all the same, and what is saved of a run is equal from run to run.
        """
        if seed is not None:
            self.envs[copy].unwrapped.np_random, _ = seeding.np_random(int(seed))
        return self._begin(copy, seed, options)

    def _begin(self, copy: int, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        """Reset one copy, and remember how: its first observation."""
        env: Any = self.envs[copy]
        generator = _generator_state(env.unwrapped.np_random)
        self._episodes[copy] = _Episode(generator, seed, options)
        self._running_actions = ()
        try:
            result = env.reset(seed=seed, options=options) if options else env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._as_run_error(copy, error) from error
        obs, self._infos[copy] = gym_checks.reset_result(result, self._running_call(copy))
        return obs

    def _agent_obs(self, observations: Sequence[Any], copies: Sequence[int]) -> np.ndarray:
        """The observations of `copies` as agents see them, [B, *O]; RunError where one is wrong."""
        stacked = gym_checks.stacked_observations(
            observations,
            copies,
            self._obs_space,
            self.single_observation_space,
            self._running_call,
        )
        return self._convert_obs(stacked)

    def _as_run_error(self, copy: int, error: Exception | SystemExit) -> Exception:
        """The RunError that says that the running reset or step of `copy` raised `error`."""
        is_masked = False
        if self._running_actions:
            is_masked = gym_checks.is_masked(self._infos[copy], self._running_actions[copy])
        told = gym_checks.as_run_error(error, self._running_call(copy), is_masked)
        if isinstance(told, RunError):
            told.copy = copy
        return told

    def _running_call(self, copy: int) -> str:
        """The reset or step that `copy` is in, as an error begins with it."""
        episode = self._episodes[copy]
        if self._running_actions:
            action = one_line(self._running_actions[copy].tolist())
            call = f"step({action}), number {len(episode.actions) + 1} of its episode,"
        elif episode.seed is None:
            call = "reset()"
        else:
            call = f"reset(seed={episode.seed})"
        return f"{self.named}: {call}"

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _generator_state(generator: np.random.Generator) -> np.ndarray:
    """The state of a PCG64, the generator of Gymnasium, as uint64 [6]."""
    state: Any = generator.bit_generator.state
    inner = state["state"]
    low_bits = (1 << 64) - 1
    words = [
        inner["state"] & low_bits,
        inner["state"] >> 64,
        inner["inc"] & low_bits,
        inner["inc"] >> 64,
        state["has_uint32"],
        state["uinteger"],
    ]
    return np.array(words, np.uint64)


def _generator(words: np.ndarray) -> np.random.Generator:
    """The generator whose state `_generator_state` has given as `words`, uint64 [6]."""
    state, state_high, inc, inc_high, has_uint32, uinteger = words.tolist()
    bits = np.random.PCG64()
    inner: Any = {"state": state | (state_high << 64), "inc": inc | (inc_high << 64)}
    bits.state = {
        "bit_generator": "PCG64",
        "state": inner,
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
