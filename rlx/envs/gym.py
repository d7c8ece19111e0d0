"""Any Gymnasium environment as a vector env of tensors."""

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlx.config import Count
from rlx.env import played, resize, shown, spread
from rlx.errors import ConfigError, RunError
from rlx.names import nearest

_LARGEST = float(np.finfo(np.float32).max)
_STEP = ("observation", "reward", "terminated", "truncated", "info")
_MASKED = (
    " Its info's action_mask rules this action out. rlx does not take masks yet: register the env "
    "within a wrapper that makes such actions harmless (another action instead, or a penalty)."
)


class GymEnv(VectorEnv):
    """`num_envs` copies of `gymnasium.make(id)`, stepped one by one; the interface of `BatchedEnv`.

    Agents see the spaces of `rlx.env.shown` and `rlx.env.played`. What the env raises, and what it
    returns that its spaces do not allow, is a RunError on one line that says so.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}
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
        if kwargs is not None and not isinstance(kwargs, Mapping):
            expected = "expected names and values, as in env.kwargs={size: 3}"
            raise ConfigError(f"env.kwargs={kwargs}: {expected}.")
        self.named = self.named or f"env.id={id}"
        spec = _registered(str(id), self.named)
        self.envs = [_make(spec, kwargs or {}, self.named) for _ in range(num_envs)]
        self.render_mode = (kwargs or {}).get("render_mode")
        self.device = torch.device(device)
        self._limit = max_episode_steps or spec.max_episode_steps
        own = self.envs[0].spec  # knows of a limit that the entry point has put around the env
        self.max_episode_steps = self._limit or (own.max_episode_steps if own else None)
        self.reward_threshold = spec.reward_threshold
        self._obs_space = self.envs[0].observation_space
        self._action_space = self.envs[0].action_space
        self.single_observation_space, self._shown = shown(self._obs_space)
        self.single_action_space, self._played = played(self._action_space)
        resize(self, num_envs)
        self._begun = [np.zeros(6, np.uint64)] * num_envs
        """Per copy, the state of its random generator before the running episode's reset …"""
        self._seeds: list[int | None] = [None] * num_envs
        """… the seed given to that reset, if one was …"""
        self._options: list[dict[str, Any] | None] = [None] * num_envs
        """… its options …"""
        self._actions: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
        """… and the actions since: an env's state is out of reach, but these lead to it again."""
        self._playing: Sequence[np.ndarray] = ()
        """The actions of the running step; no part of the episodes until all went well."""
        self._infos: list[Any] = [None] * num_envs
        """The newest info of each copy."""
        self._last: Tensor | None = None
        """The newest observations."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict]:  # fmt: skip
        """First observations [B, *O].

        `seed`: one integer (copy i gets seed + i) or one per copy; None draws fresh ones.
        `options` are the envs' own, but "reset_mask" (bool [B]): only these copies begin anew.
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
            fresh = self._observed([self._begin(i, seeds[i], own) for i in copies], copies)
            obs = fresh if self._last is None else self._last.cpu().numpy().copy()
            obs[copies] = fresh
            self._last = self._tensor(obs)
        assert self._last is not None
        return self._last, {}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        """(obs [B, *O], reward [B], terminated [B], truncated [B], info) of `actions`.

        Info: "final_obs" [B, *O], where each transition led to; "_final_obs" [B], who began anew.
        """
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
        observed, rewarded, ended, cut, self._infos = self._columns(steps)
        final = self._observed(observed)  # before the resets, which may write into the same arrays
        reward = self._rewards(rewarded)
        terminated = self._flags(ended, "terminated")
        truncated = self._flags(cut, "truncated")
        for past, action in zip(self._actions, self._playing, strict=True):
            past.append(action)
        if self._limit and max(map(len, self._actions)) >= self._limit:
            truncated = truncated | np.array([len(past) >= self._limit for past in self._actions])
        over = terminated | truncated
        obs = final
        if over.any():
            copies = np.flatnonzero(over).tolist()
            obs = final.copy()
            obs[copies] = self._observed([self._begin(i, None) for i in copies], copies)
        self._last = self._tensor(obs)
        flags = self._tensor(terminated), self._tensor(truncated & ~terminated)
        info = {"final_obs": self._tensor(final), "_final_obs": self._tensor(over)}
        return self._last, self._tensor(reward), *flags, info

    def render(self) -> tuple[Any, ...]:
        """One picture uint8 [H, W, 3] per copy, where kwargs has render_mode: rgb_array."""
        pictures = []
        for copy, env in enumerate(self.envs):
            try:
                picture: Any = env.render()
            except (Exception, SystemExit) as error:
                raise self._raised(copy, error, "render()") from error
            if self.render_mode == "rgb_array" and np.shape(picture)[2:] != (3,):
                what = _told(picture) if picture is None else f"shape {np.shape(picture)}"
                wrong = f"returned {what}; expected a picture [H, W, 3]."
                raise self._broken(copy, wrong, "render()")
            pictures.append(picture)
        return tuple(pictures)

    def keep(self, index: Tensor) -> None:
        """Go on with the copies `index` (int64 [B']) only, in that order."""
        for name in ("envs", "_begun", "_seeds", "_options", "_actions", "_infos"):
            setattr(self, name, [getattr(self, name)[i] for i in index.tolist()])
        if self._last is not None:
            self._last = self._last[index]
        resize(self, len(self.envs))

    def state_dict(self) -> dict[str, Tensor]:
        """How each copy's running episode began and what was done in it, tensors [B, …]."""
        if any(self._options):
            raise RunError(f"{self.named}: episodes that began with reset options cannot be saved.")
        space: Any = self._action_space
        dtype = np.int64 if space.dtype.kind in "ui" else space.dtype
        longest = max([len(past) for past in self._actions], default=0)
        actions = np.zeros((self.num_envs, longest, *space.shape), dtype)
        for row, past in zip(actions, self._actions, strict=True):
            row[: len(past)] = np.array(past).reshape(len(past), *space.shape)
        return {
            "begun": torch.from_numpy(np.stack(self._begun).view(np.int64)),
            "seed": torch.tensor([-1 if seed is None else seed for seed in self._seeds]),
            "played": torch.tensor([len(past) for past in self._actions]),
            "actions": torch.from_numpy(actions),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Begin each copy's episode again and repeat its actions.

        Exact for every env whose only chance is its `np_random`, which Gymnasium asks of all.
        """
        space: Any = self._action_space
        begun = state["begun"].cpu().numpy().view(np.uint64)
        actions = state["actions"].cpu().numpy().astype(space.dtype)
        episodes = zip(state["seed"].tolist(), state["played"].tolist(), strict=True)
        newest = []
        for i, (seed, count) in enumerate(episodes):
            self.envs[i].unwrapped.np_random = _generator(begun[i])
            obs = self._begin(i, None if seed < 0 else seed)
            for action in actions[i, :count]:
                self._playing = [action] * self.num_envs
                try:
                    obs, *_, self._infos[i] = self.envs[i].step(action.copy())
                except (Exception, SystemExit) as error:
                    raise self._raised(i, error) from error
                self._actions[i].append(action)
            newest.append(obs)
        self._last = self._tensor(self._observed(newest))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the single environments."""
        for env in self.envs:
            env.close()

    def _begin(self, copy: int, seed: int | None, options: dict[str, Any] | None = None) -> Any:
        """Reset one copy, and remember how: its first observation."""
        env: Any = self.envs[copy]
        self._begun[copy] = _generator_state(env.unwrapped.np_random)
        self._seeds[copy], self._options[copy], self._actions[copy] = seed, options, []
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
                expected = f"expected {_told(self._obs_space)}"
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
        """What is wrong with one observation."""
        try:
            array = np.asarray(obs)
        except (TypeError, ValueError):
            return f"of type {type(obs).__name__}"
        if array.dtype.kind not in "biuf":
            return f"{_told(obs)} of type {type(obs).__name__}"
        if array.shape != self._obs_space.shape:
            return f"of shape {array.shape}"
        if self._is_allowed(array):
            return None
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            return f"with {array[tuple(where)]} at {where}" if where else f"{array}"
        if array.size == 1:
            return f"{array.item()}"
        return f"of dtype {array.dtype} with values from {array.min()} to {array.max()}"

    def _rewards(self, rewarded: Sequence[Any]) -> np.ndarray:
        """float32 [B]."""
        try:
            rewards = np.array(rewarded, np.float64)
        except (TypeError, ValueError):
            rewards = np.empty(0)
        if rewards.shape != (self.num_envs,) or not (np.abs(rewards) <= _LARGEST).all():
            rewards = np.array([self._number(copy, reward) for copy, reward in enumerate(rewarded)])
        return rewards.astype(np.float32)

    def _number(self, copy: int, reward: Any) -> float:
        """A finite reward."""
        try:
            number = float(np.asarray(reward, np.float64).reshape(()))
        except (TypeError, ValueError):
            number = np.nan
        if abs(number) <= _LARGEST:
            return number
        raise self._broken(copy, f"returned reward {_told(reward)}; expected a finite number.")

    def _flags(self, flags: Sequence[Any], name: str) -> np.ndarray:
        """bool [B]."""
        values = np.array(flags)
        if values.dtype == bool and values.shape == (self.num_envs,):
            return values
        for copy, flag in enumerate(flags):
            if np.size(flag) != 1 or flag not in (0, 1):
                raise self._broken(copy, f"returned {name} {_told(flag)}; expected true or false.")
        return np.array([bool(flag) for flag in flags])

    def _raised(self, copy: int, error: Exception | SystemExit, call: str = "") -> Exception:
        """The RunError that says that `call` (else the running reset or step) raised `error`."""
        if isinstance(error, (ConfigError, RunError)):
            return error
        masked = not call and self._is_masked(copy)
        return self._broken(copy, f"raised {_what(error)}.{_MASKED if masked else ''}", call)

    def _is_masked(self, copy: int) -> bool:
        """Whether a copy's newest info ruled out the action that it was given."""
        info = self._infos[copy]
        if not self._playing or not isinstance(info, Mapping) or "action_mask" not in info:
            return False
        try:
            return not np.ravel(info["action_mask"])[int(self._playing[copy])]
        except (TypeError, ValueError, IndexError):
            return False

    def _broken(self, copy: int, what: str, call: str = "") -> RunError:
        """The RunError of a copy that did `what` when it was called."""
        past, seed = len(self._actions[copy]), self._seeds[copy]
        if call:
            call = f"{call} after {past} steps of an episode"
        elif self._playing:
            action = _told(self._playing[copy].tolist())
            call = f"step({action}), number {past + 1} of its episode,"
        else:
            call = "reset()" if seed is None else f"reset(seed={seed})"
        return RunError(f"{self.named}: {call} {what}")

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _registered(id: str, named: str) -> EnvSpec:
    """What Gymnasium knows of `id`; ConfigError where it knows nothing, or its module fails."""
    module, _, name = id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            what = f"the module {module} cannot be imported"
            raise ConfigError(f"{named}: {what}: {_what(error)}.") from error
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    if not module:
        near = nearest(name, gymnasium.registry)
        own = f"Ids of a module of yours are written module:Id, as in env.id=myenv:{name}"
        raise ConfigError(f"{named}: not registered with Gymnasium.{near} {own}.")
    package = module.partition(".")[0]
    theirs = [key for key, spec in gymnasium.registry.items() if _package(spec) == package]
    more = nearest(name, theirs) if theirs else " Call gymnasium.register in it."
    raise ConfigError(f"{named}: the module {module} does not register {name}.{more}")


def _package(spec: EnvSpec) -> str:
    """Where an env's class lies."""
    entry: Any = spec.entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.partition(":")[0].partition(".")[0]


def _make(spec: EnvSpec, kwargs: Mapping[str, Any], named: str) -> gymnasium.Env:
    """One copy, without the time limit and the checks of Gymnasium, since GymEnv has its own."""
    try:
        env: Any = gymnasium.make(spec.id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
        generator = env.unwrapped.np_random
        for space in (env.observation_space, env.action_space):
            if not isinstance(space, gymnasium.Space):
                raise TypeError(f"its spaces are {env.observation_space} and {env.action_space}")
    except (ConfigError, RunError):
        raise
    except Exception as raised:
        error: BaseException = raised
        wrong = _wrong_argument(spec, kwargs, named) if isinstance(error, TypeError) else None
        if wrong:
            raise ConfigError(wrong) from error
        if error.__cause__ and "was raised from the environment creator" in str(error):
            error = error.__cause__  # Gymnasium has added all of kwargs to it
        raise ConfigError(f"{named}: Gymnasium cannot make it: {_what(error)}.") from error
    if not isinstance(getattr(generator, "bit_generator", None), np.random.PCG64):
        expected = "expected what gymnasium.Env.reset(seed=…) makes, a PCG64"
        raise ConfigError(f"{named}: its np_random is {_told(generator)}; {expected}.")
    return env


def _wrong_argument(spec: EnvSpec, kwargs: Mapping[str, Any], named: str) -> str | None:
    """What does not fit the parameters of an env's class, if they are known."""
    try:
        entry: Any = spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError, ImportError, AttributeError):
        return None
    keyed = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in keyed]
    given = {**spec.kwargs, **kwargs}
    for p in keyed:
        if p.default is p.empty and p.name not in given:
            return f"env.kwargs.{p.name}: missing; {spec.id} needs it."
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    if "render_mode" in kwargs and "render_mode" not in names:
        return f"{named}: cannot be drawn, since its class takes no render_mode."
    for key in kwargs:
        if key not in names:
            return f"env.kwargs.{key}: {spec.id} has no such parameter.{nearest(key, names)}"
    return None


def _what(error: BaseException) -> str:
    """An exception on one line, with the place in the env's own code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    others = (sysconfig.get_paths()["stdlib"], "site-packages", "<frozen")
    own = [frame for frame in frames if not any(other in frame.filename for other in others)]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{place}: {_told(error)}".removesuffix(": ").rstrip(".")


def _told(value: Any) -> str:
    """Any value on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def _count(result: Any) -> str:
    """How many values were returned."""
    if isinstance(result, (tuple, list)):
        return f"{len(result)} values"
    return "None" if result is None else f"one {type(result).__name__}"


def _generator_state(generator: np.random.Generator) -> np.ndarray:
    """uint64 [6] of a PCG64, the generator of Gymnasium."""
    state: Any = generator.bit_generator.state
    inner, low = state["state"], (1 << 64) - 1
    words = [
        inner["state"] & low,
        inner["state"] >> 64,
        inner["inc"] & low,
        inner["inc"] >> 64,
        state["has_uint32"],
        state["uinteger"],
    ]
    return np.array(words, np.uint64)


def _generator(words: np.ndarray) -> np.random.Generator:
    """The inverse."""
    state, state_high, inc, inc_high, has_uint32, uinteger = (int(word) for word in words)
    bits = np.random.PCG64()
    inner: Any = {"state": state | state_high << 64, "inc": inc | inc_high << 64}
    bits.state = {
        "bit_generator": "PCG64",
        "state": inner,
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
