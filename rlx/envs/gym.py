"""Any Gymnasium environment as a vector env of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.agent import Rules
from rlx.config import Count
from rlx.env import resize, spread
from rlx.envs.gym_make import describe_error, find_spec, make_one, one_line
from rlx.envs.spaces import played, shown
from rlx.errors import ConfigError, RunError

_LARGEST = float(np.finfo(np.float32).max)
_STEP = ("observation", "reward", "terminated", "truncated", "info")
_MASKED = (
    " Its info's action_mask rules this action out. rlx does not take masks yet: register the env "
    "within a wrapper that makes such actions harmless (another action instead, or a penalty)."
)


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

    Agents see the spaces of `rlx.envs.spaces.shown` and `.played`. What the env raises, and what
    it returns that its spaces do not allow, is a RunError on one line that says so.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}
    rules: Rules | None = None
    grid: tuple[int, int] | None = None
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
        # The spec of an env knows of a limit that the entry point has put around it.
        own_spec = self.envs[0].spec
        self.max_episode_steps = self._limit or (own_spec.max_episode_steps if own_spec else None)
        self.reward_threshold = spec.reward_threshold
        self._obs_space = self.envs[0].observation_space
        self._action_space = self.envs[0].action_space
        self.single_observation_space, self._shown = shown(self._obs_space)
        self.single_action_space, self._played = played(self._action_space)
        resize(self, num_envs)
        self._episodes = [_Episode() for _ in range(num_envs)]
        self._playing: Sequence[np.ndarray] = ()
        """The actions of the running step; no part of the episodes until all went well."""
        self._infos: list[Any] = [None] * num_envs
        """The newest info of each copy."""
        self._last: Tensor | None = None
        """The newest observations."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:
        """First observations [B, *O] and an empty info.

        `seed`: one integer (copy i gets seed + i) or one per copy; None goes on with the envs'
        random generators. `options` are the envs' own, except "reset_mask" (bool [B]): only these
        copies begin anew.
        """
        own = dict(options or {})
        mask = own.pop("reset_mask", None)
        seeds = spread(seed, self.num_envs)
        if mask is not None and self._last is None:
            raise ValueError("reset: reset_mask needs a reset of all copies before it")
        copies = list(range(self.num_envs))
        if mask is not None:
            copies = np.flatnonzero(np.asarray(mask, bool)).tolist()
        if copies:
            first = [self._begin_seeded(copy, seeds[copy], own) for copy in copies]
            fresh = self._observed(first, copies)
            obs = fresh if self._last is None else self._last.cpu().numpy().copy()
            obs[copies] = fresh
            self._last = self._tensor(obs)
        assert self._last is not None
        return self._last, {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(obs [B, *O], reward [B], terminated [B], truncated [B], info), as `TensorEnv.step`."""
        rows = self._played(np.asarray(torch.as_tensor(actions).cpu()))
        if len(rows) != self.num_envs:
            raise ValueError(f"step: {len(rows)} actions for num_envs={self.num_envs}")
        self._playing = list(rows)
        # An env may write into its action, but what was played is kept.
        given = self._playing if rows.ndim == 1 else list(rows.copy())
        steps: list[Any] = []
        try:
            for env, action in zip(self.envs, given, strict=True):
                steps.append(env.step(action))
        except (Exception, SystemExit) as error:
            raise self._raised(len(steps), error) from error
        observed, rewards, terminations, truncations, self._infos = self._columns(steps)
        # Before the resets, which may write into the same arrays.
        final = self._observed(observed)
        reward = self._rewards(rewards)
        terminated = self._flags(terminations, "terminated")
        truncated = self._flags(truncations, "truncated")
        for episode, action in zip(self._episodes, self._playing, strict=True):
            episode.actions.append(action)
        if self._limit:
            lengths = np.array([len(episode.actions) for episode in self._episodes])
            truncated = truncated | (lengths >= self._limit)
        ended = terminated | truncated
        obs = final
        if ended.any():
            copies = np.flatnonzero(ended).tolist()
            obs = final.copy()
            obs[copies] = self._observed([self._begin(copy, None) for copy in copies], copies)
        self._last = self._tensor(obs)
        info = {"final_obs": self._tensor(final), "_final_obs": self._tensor(ended)}
        return (
            self._last,
            self._tensor(reward),
            self._tensor(terminated),
            self._tensor(truncated & ~terminated),
            info,
        )

    def render(self) -> tuple[Any, ...]:
        """One image uint8 [H, W, 3] per copy, where kwargs has render_mode: rgb_array."""
        images = []
        for copy, env in enumerate(self.envs):
            try:
                image: Any = env.render()
            except (Exception, SystemExit) as error:
                raise self._raised(copy, error, "render()") from error
            if self.render_mode == "rgb_array" and np.shape(image)[2:] != (3,):
                returned = "None" if image is None else f"shape {np.shape(image)}"
                problem = f"returned {returned}; expected an image [H, W, 3]."
                raise self._broken(copy, problem, "render()")
            images.append(image)
        return tuple(images)

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in ("envs", "_episodes", "_infos"):
            setattr(self, name, [getattr(self, name)[i] for i in index.tolist()])
        if self._last is not None:
            self._last = self._last[index]
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
        observed = []
        for copy, seed in enumerate(state["seed"].tolist()):
            self.envs[copy].unwrapped.np_random = _generator(generators[copy])
            first = self._begin(copy, None if seed < 0 else seed)
            observed.append(self._replay(copy, first, actions[copy, : lengths[copy]]))
        self._last = self._tensor(self._observed(observed))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        for env in self.envs:
            env.close()

    def _replay(self, copy: int, obs: Any, actions: np.ndarray) -> Any:
        """Take the steps `actions` [T, *A] in a copy that showed `obs`: what it shows then."""
        for action in actions:
            self._playing = [action] * self.num_envs
            try:
                obs, *_, self._infos[copy] = self.envs[copy].step(action.copy())
            except (Exception, SystemExit) as error:
                raise self._raised(copy, error) from error
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
        self._playing = ()
        try:
            result = env.reset(seed=seed, options=options) if options else env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._raised(copy, error) from error
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise self._broken(copy, f"returned {_count(result)}; expected 2, (observation, info).")
        self._infos[copy] = result[1]
        return result[0]

    def _columns(self, steps: Sequence[Any]) -> list[Any]:
        """What `env.step` of all copies returned, one list for each of the five values."""
        for copy, result in enumerate(steps):
            if not isinstance(result, (tuple, list)) or len(result) != len(_STEP):
                expected = f"expected {len(_STEP)}, ({', '.join(_STEP)})"
                raise self._broken(copy, f"returned {_count(result)}; {expected}.")
        return [list(column) for column in zip(*steps, strict=True)]

    def _observed(self, observed: Sequence[Any], copies: Sequence[int] | None = None) -> np.ndarray:
        """Observations of the `copies` (None: all), stacked as agents see them, [B, *O]."""
        try:
            stacked = np.stack(observed)
            fits = stacked.shape[1:] == self._obs_space.shape and self._is_allowed(stacked)
        except (TypeError, ValueError):
            fits = False
        if fits:
            return self._shown(stacked)
        for copy, obs in zip(copies or range(self.num_envs), observed, strict=True):
            problem = self._problem(obs)
            if problem:
                expected = f"expected {one_line(self._obs_space)}"
                raise self._broken(copy, f"returned an observation {problem}; {expected}.")
        return self._shown(np.stack([np.asarray(obs, self._obs_space.dtype) for obs in observed]))

    def _is_allowed(self, obs: np.ndarray) -> bool:
        """Whether the values `obs` [..., *O] are numbers that agents can be shown as they are."""
        if obs.dtype.kind not in "biuf":
            return False
        space = self.single_observation_space
        if isinstance(space, spaces.Discrete) or space.dtype == np.uint8:
            if obs.dtype != space.dtype:
                with np.errstate(invalid="ignore"):
                    if not (obs == obs.astype(space.dtype)).all():
                        return False
            if not isinstance(space, spaces.Discrete):
                return True
            return bool(((obs >= 0) & (obs < space.n)).all())
        if obs.dtype.kind != "f":
            return True
        if obs.dtype.itemsize > 4:
            with np.errstate(over="ignore"):
                obs = obs.astype(np.float32)
        return bool(np.isfinite(obs).all())

    def _problem(self, obs: Any) -> str | None:
        """What is wrong with one observation; None: nothing."""
        try:
            array = np.asarray(obs)
        except (TypeError, ValueError):
            return f"of type {type(obs).__name__}"
        if array.dtype.kind not in "biuf":
            return f"{one_line(obs)} of type {type(obs).__name__}"
        if array.shape != self._obs_space.shape:
            return f"of shape {array.shape}"
        if self._is_allowed(array):
            return None
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            index = np.argwhere(~np.isfinite(array))[0].tolist()
            return f"with {array[tuple(index)]} at {index}" if index else f"{array}"
        if array.size == 1:
            return f"{array.item()}"
        return f"of dtype {array.dtype} with values from {array.min()} to {array.max()}"

    def _rewards(self, rewards: Sequence[Any]) -> np.ndarray:
        """The rewards of all copies, float32 [B]; RunError where one is no finite number."""
        try:
            numbers = np.array(rewards, np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.shape != (self.num_envs,) or not (np.abs(numbers) <= _LARGEST).all():
            numbers = np.array([self._number(copy, reward) for copy, reward in enumerate(rewards)])
        return numbers.astype(np.float32)

    def _number(self, copy: int, reward: Any) -> float:
        """The reward of one copy; RunError where it is no finite number."""
        try:
            number = float(np.asarray(reward, np.float64).reshape(()))
        except (TypeError, ValueError):
            number = np.nan
        if abs(number) <= _LARGEST:
            return number
        raise self._broken(copy, f"returned reward {one_line(reward)}; expected a finite number.")

    def _flags(self, flags: Sequence[Any], name: str) -> np.ndarray:
        """The flags of all copies, bool [B]; RunError where one is neither true nor false."""
        values = np.array(flags)
        if values.dtype == bool and values.shape == (self.num_envs,):
            return values
        for copy, flag in enumerate(flags):
            if np.size(flag) != 1 or flag not in (0, 1):
                raise self._broken(
                    copy, f"returned {name} {one_line(flag)}; expected true or false."
                )
        return np.array([bool(flag) for flag in flags])

    def _raised(self, copy: int, error: Exception | SystemExit, call: str = "") -> Exception:
        """The RunError that says that `call` (else the running reset or step) raised `error`."""
        if isinstance(error, (ConfigError, RunError)):
            return error
        problem = f"raised {describe_error(error)}."
        if not call and self._is_masked(copy):
            problem += _MASKED
        return self._broken(copy, problem, call)

    def _is_masked(self, copy: int) -> bool:
        """Whether a copy's newest info ruled out the action that it was given."""
        info = self._infos[copy]
        if not self._playing or not isinstance(info, Mapping) or "action_mask" not in info:
            return False
        try:
            return not np.ravel(info["action_mask"])[int(self._playing[copy])]
        except (TypeError, ValueError, IndexError):
            return False

    def _broken(self, copy: int, problem: str, call: str = "") -> RunError:
        """The RunError that says that `call` (else the running reset or step) did `problem`."""
        episode = self._episodes[copy]
        steps = len(episode.actions)
        if call:
            call = f"{call} after {steps} steps of an episode"
        elif self._playing:
            action = one_line(self._playing[copy].tolist())
            call = f"step({action}), number {steps + 1} of its episode,"
        elif episode.seed is None:
            call = "reset()"
        else:
            call = f"reset(seed={episode.seed})"
        return RunError(f"{self.named}: {call} {problem}")

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _count(result: Any) -> str:
    """How many values were returned."""
    if isinstance(result, (tuple, list)):
        return f"{len(result)} values"
    return "None" if result is None else f"one {type(result).__name__}"


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
    state, state_high, inc, inc_high, has_uint32, uinteger = (int(word) for word in words)
    bits = np.random.PCG64()
    inner: Any = {"state": state | (state_high << 64), "inc": inc | (inc_high << 64)}
    bits.state = {
        "bit_generator": "PCG64",
        "state": inner,
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
