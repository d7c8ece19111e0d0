"""Data sets: logged episodes on disk, each observation stored once, in arrays that are mapped into memory and never read whole.

data.json        format, env (the config group), stack (observations shown at once), sources
obs.npy          [N + E, *O]   of N transitions in E episodes; each episode's last observation follows its others
action.npy       [N]
reward.npy       [N] float32
length.npy       [E] int64     transitions of each episode
terminated.npy   [E] bool      whether it ended by itself; else it was cut

Files of others may have other dtypes of numbers; they are cast where they are read.
"""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from numpy.lib import format as npy
from omegaconf import OmegaConf
from torch import Tensor

from rlx.agent import Spec
from rlx.data.npy import cast, check_finite, mapped, require_memory, shown_dtype
from rlx.errors import ConfigError
from rlx.nn.encoders import is_image
from rlx.nn.rng import pick
from rlx.runs.files import sha256, sync

FORMAT = 1
FILES = ("obs", "action", "reward", "length", "terminated")
MOST_ACTIONS = 1 << 16
"""Of a Discrete space; larger numbers would be counted in as large a table."""
_KINDS = {"obs": "iuf", "action": "iuf", "reward": "biuf", "length": "iu", "terminated": "biuf"}
"""Of the dtypes that the arrays may have."""
_IDENTITY = (
    "env._target_",
    "env.id",
    "env.game",
    "env.observe",
    "env.kwargs.gray",
    "env.kwargs.continuous",
)
"""Settings that make another env, not another version of the same."""
_INERT = {"env.stack", "env.workers", "env.threads"}
"""Settings that do not change what is logged."""


class Data(ABC):
    """What offline agents learn from."""

    transitions: int
    files: list[Path]
    """All that it is read from."""

    @abstractmethod
    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float
    ) -> dict[str, Tensor]:
        """Minibatch `number` [S, B, …], its rows chosen by `draws` (uniform in [0, 1), [S, B]),
        with the fields of `Replay.sample`:
        obs, action, reward (Σ_{i<k} γ^i r_i), discount (γ^k, 0 behind a terminal), next_obs; k ≤ `n_steps`, less at an episode's end."""

    @abstractmethod
    def fit(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        """Show observations as the env of this `spec`, the config group `env`, does. Returns in which settings the one that it was
        collected in differs, one line each; ConfigError where it is another env."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Its facts, name → value, in the order in which they are told."""

    @cached_property
    def fingerprint(self) -> str:
        """Another one for other data: of the names and all bytes of its files."""
        lines = [f"{file.name} {sha256(file)}\n" for file in self.files]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def is_of(self, fingerprint: object) -> bool:
        """Whether `fingerprint`, as saved in a checkpoint, is that of this data.

        Runs of rlx 0.1.0 saved one of the card alone: it has no prefix.
        """
        if isinstance(fingerprint, str) and ":" not in fingerprint:
            return fingerprint == hashlib.sha256(json.dumps(self.card()).encode()).hexdigest()
        return fingerprint == self.fingerprint

    def __deepcopy__(self, memo: dict) -> "Data":
        return self  # it does not change


class Episodes(Data):
    """Our own format, above."""

    def __init__(self, folder: Path, source: str | None = None):
        """`source`: what errors call the set, where `folder` would tell nobody anything.

        ConfigError, with the file, where one is missing, cut or has other numbers than it should.
        """
        self.folder, self.source, self.stack = folder, source, 1
        self.files = [*(folder / f"{name}.npy" for name in FILES), folder / "data.json"]
        self.temporary: object = None
        """Keeps the folder while the data is used, if it is to vanish with it."""
        self.facts = _facts(folder / "data.json")
        arrays = {name: mapped(folder / f"{name}.npy", self._place(name)) for name in FILES}
        for name, array in arrays.items():
            vector = name not in ("obs", "action")
            if array.dtype.kind not in _KINDS[name] or (vector and array.ndim != 1):
                raise ConfigError(f"{self._place(name)}: holds {array.dtype} {list(array.shape)}.")
        self.obs, self.action, self.reward = (arrays[name] for name in ("obs", "action", "reward"))
        self.transitions, self.episodes = len(self.action), len(arrays["length"])
        self.length = self._lengths(arrays["length"])
        self.begin = np.concatenate([[0], self.length.cumsum()])
        """Number of each episode's first transition; its observation lies in row `begin[e] + e`."""
        rows = self.transitions + self.episodes
        expected = {"obs": rows, "reward": self.transitions, "terminated": self.episodes}
        for name, rows in expected.items():
            has = len(arrays[name])
            if has != rows:
                place = self._place(name)
                raise ConfigError(f"{place}: {has:,} rows where {rows:,} were expected.")
        self.terminated = flags(arrays["terminated"], self._place("terminated"))
        self._check_numbers()
        self.dtype = shown_dtype(self.obs.dtype)
        """Of the observations, as they are shown."""
        self._action_dtype = np.dtype(np.int64 if self.action.ndim == 1 else np.float32)

    def _place(self, name: str) -> str:
        """What errors call one of the arrays."""
        return f"{self.source}, {name}" if self.source else str(self.folder / f"{name}.npy")

    def _lengths(self, array: np.ndarray) -> np.ndarray:
        """int64 [E]: `array`, of which each is looked at: a sum of large numbers may overflow."""
        place, most = self._place("length"), self.transitions
        require_memory(32 * len(array), place)
        length = array.astype(np.int64)
        if length.min() < 1 or length.max() > most or length.sum() != most:
            raise ConfigError(f"{place}: does not add up to the {most:,} rows of action.npy.")
        return length

    def _check_numbers(self) -> None:
        for name in ("obs", "action", "reward"):
            check_finite(getattr(self, name), self._place(name))
        if self.action.ndim > 1:
            return
        place, dtype = self._place("action"), self.action.dtype
        if dtype.kind == "f":
            expected = "whole numbers [N], or numbers [N, D] of a Box space"
            raise ConfigError(f"{place}: {dtype} [N]; expected {expected}.")
        check_numbered(self.action, place)

    def fit(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        where, own = f"data={self.source or self.folder}", self.obs.shape[1:]
        stack, differences = env.get("stack", 1), _differences(self.facts["env"], env)
        for name, (logged, here) in differences.items():
            if name in _IDENTITY:
                raise ConfigError(f"{where}: collected with {name}={logged}; this env has {here}.")
        shape = (stack * own[0], *own[1:]) if own else ()
        self.dtype = observed(spec, self.obs.dtype, shape, self._bounds, where)
        self.stack = stack
        check_actions(self.action, spec, where)
        return [
            f"{name}: {logged} in the data, {here} here"
            for name, (logged, here) in differences.items()
        ]

    def _bounds(self) -> tuple[float, float]:
        return float(self.obs.min()), float(self.obs.max())

    def sample(
        self, number: int, draws: Tensor, n_steps: int, discount: float
    ) -> dict[str, Tensor]:
        first = pick(draws, self.transitions).cpu().numpy()
        episode = self.episode_of(first)
        end = np.minimum(first + n_steps, self.begin[episode + 1])
        taken = first[..., None] + np.arange(n_steps)
        weight = np.where(taken < end[..., None], discount ** np.arange(n_steps), 0.0)
        reward = (self.reward[np.minimum(taken, end[..., None] - 1)] * weight).sum(-1)
        terminal = self.terminated[episode] & (end == self.begin[episode + 1])
        batch = {
            "obs": self.stacked(first, episode, self.stack),
            "action": cast(self.action[first], self._action_dtype),
            "reward": reward.astype(np.float32),
            "discount": (discount ** (end - first) * ~terminal).astype(np.float32),
            "next_obs": self.stacked(end, episode, self.stack),
        }
        return {name: torch.from_numpy(value).to(draws.device) for name, value in batch.items()}

    def episode_of(self, number: np.ndarray) -> np.ndarray:
        """Which episode each transition belongs to."""
        return np.searchsorted(self.begin, number, side="right") - 1

    def stacked(self, number: np.ndarray, episode: np.ndarray, stack: int) -> np.ndarray:
        """The last `stack` observations before transition `number` [S, B] of `episode` (behind its last one: the end's), its first one
        repeated before it: [S, B, stack · C, …]."""
        back = np.arange(stack - 1, -1, -1)
        of, begin = episode[..., None], self.begin[episode][..., None]
        row = np.maximum(number[..., None] - back, begin) + of
        seen = cast(self.obs[row], self.dtype)
        shape = self.obs.shape[1:]
        return seen.reshape(*number.shape, stack * shape[0], *shape[1:]) if shape else seen[..., 0]

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(np.asarray(self.reward, np.float64), self.begin[:-1])

    def episode(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """(obs [T + 1, *O], action [T], reward [T], terminated) of one episode."""
        a, b = self.begin[number], self.begin[number + 1]
        obs = cast(self.obs[a + number : b + number + 1], self.dtype)
        action = cast(self.action[a:b], self._action_dtype)
        return obs, action, cast(self.reward[a:b], np.float32), bool(self.terminated[number])

    def card(self) -> dict[str, Any]:
        returns = self.returns()
        low, *quartiles, high = np.quantile(returns, [0, 0.25, 0.5, 0.75, 1])
        size = sum((self.folder / f"{name}.npy").stat().st_size for name in FILES)
        if self.action.ndim == 1:
            actions = histogram(np.bincount(cast(self.action, np.int64)))
        else:
            actions = f"continuous, {self.action.shape[1]} numbers"
        facts = {
            "transitions": f"{self.transitions:,}",
            "episodes": f"{self.episodes:,}, {self.length.mean():,.1f} transitions long on average",
            "returns": f"mean {returns.mean():.1f}; from {low:.1f} to {high:.1f}, quartiles "
            + " ".join(f"{q:.1f}" for q in quartiles),
            "ended": f"{self.terminated.mean():.0%} terminated, {1 - self.terminated.mean():.0%} truncated",
            "obs": f"{self.obs.dtype} {list(self.obs.shape[1:])}, shown {self.facts['stack']} at a time",
            "actions": actions,
            "size": f"{size / 1e6:,.1f} MB on disk",
        }
        return facts | {f"source {i}": text for i, text in enumerate(self.facts["sources"])}


def histogram(counts: np.ndarray) -> str:
    """The share of each action of a Discrete space."""
    return " ".join(f"{i}: {share:.1%}" for i, share in enumerate(counts / counts.sum()))


def check_actions(action: np.ndarray, spec: Spec, where: str) -> None:
    """ConfigError where an action [N] is not one of the env's."""
    space = spec.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        fits = (
            action.ndim == 1
            and action.dtype.kind in "iu"
            and int(action.min()) >= 0
            and int(action.max()) < space.n
        )
    else:
        fits = action.shape[1:] == space.shape
    if not fits:
        raise ConfigError(
            f"{where}: its actions are {action.dtype} {list(action.shape[1:])} up to {action.max()}; this env has {space}."
        )


def check_numbered(action: np.ndarray, where: str) -> None:
    """ConfigError where an action, a whole number [N], is none of a Discrete space."""
    low, high = int(action.min()), int(action.max())
    if low < 0 or high >= MOST_ACTIONS:
        most = f"{MOST_ACTIONS - 1:,}"
        raise ConfigError(f"{where} reaches from {low} to {high}; expected 0 to {most}.")


def flags(array: np.ndarray, where: str) -> np.ndarray:
    """bool [N] of numbers [N] that are 0 or 1; ConfigError where others are among them."""
    if not np.isin(array, (0, 1)).all():
        raise ConfigError(f"{where} has other numbers than 0 and 1 in it.")
    return array.astype(bool)


def observed(
    spec: Spec,
    own: np.dtype,
    shape: tuple[int, ...],
    bounds: Callable[[], tuple[float, float]],
    where: str,
) -> np.dtype:
    """The dtype in which observations are those of the env; ConfigError where they are not.

    `own`: theirs in the data; `shape`: as the env would show them; `bounds`: lowest and highest.
    """
    space: Any = spec.observation_space
    wanted, whole = np.dtype(space.dtype), own.kind in "iu"
    if isinstance(space, gymnasium.spaces.Discrete):
        fits = shape == () and whole and _within(bounds(), 0, int(space.n) - 1)
        wanted = np.dtype(np.int64)
    elif wanted.kind == "f":
        fits = own.kind == "f" or not is_image(shape)  # whole numbers in pictures: of what scale?
    else:
        limits = np.iinfo(wanted)
        fits = own == wanted or (whole and _within(bounds(), limits.min, limits.max))
    if not fits or shape != space.shape:
        seen = f"{own} {list(shape)}"
        raise ConfigError(f"{where}: its observations are {seen}; this env has {space}.")
    return wanted


def _within(bounds: tuple[float, float], low: float, high: float) -> bool:
    return low <= bounds[0] and bounds[1] <= high


class Writer:
    """Writes our own format, an episode at a time; the folder appears when it is closed.

    As a context manager it removes what is half-written, should anything end before.
    """

    def __init__(self, out: str, source: str | None = None):
        """`source`: what errors call it, where `out` would tell nobody anything.

        ConfigError where the folder `out` exists or cannot be made.
        """
        if out.startswith("minari:"):
            raise ConfigError(f"out={out}: collect into a folder, then: rlx data FOLDER out={out}")
        self.out, self.source = Path(out), source
        self.key = f"{source}, a copy of it" if source else f"out={out}"
        self._open = ExitStack()
        self.partial = self._open.enter_context(whole(self.out, self.key))
        self.arrays: dict[str, _Growing] = {}
        self.transitions, self.episodes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(
        self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: bool
    ) -> None:
        """One episode of T steps: obs [T + 1, *O], action [T], reward [T]."""
        self.transitions += len(action)
        rows = {"obs": obs, "action": action, "reward": cast(reward, np.float32)}
        rows |= {"length": np.array([len(action)], np.int64), "terminated": np.array([terminated])}
        for name in ("obs", "action", "reward"):
            place = f"{self.source or 'the env'}: {name} of episode {self.episodes}"
            check_finite(rows[name], place)
        self.episodes += 1
        with writing(self.key):
            for name, values in rows.items():
                if name not in self.arrays:
                    self.arrays[name] = _Growing(self.partial / f"{name}.npy", values)
                self.arrays[name].append(values)

    def close(self, env: Mapping[str, Any], stack: int, sources: list[str]) -> Episodes:
        """The data set."""
        facts = {"format": FORMAT, "env": env, "stack": stack, "sources": sources}
        with writing(self.key):
            for array in self.arrays.values():
                array.close()
            (self.partial / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
        self._open.close()
        return Episodes(self.out, self.source)


@contextmanager
def whole(out: Path, key: str) -> Iterator[Path]:
    """An empty folder to write in: it takes the name `out` at the end, and is removed on any error.

    `key`: what errors call `out`. ConfigError where it exists or cannot be made.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{key}: exists already; choose another name or delete it.")
    target = Path(os.path.abspath(out))
    partial = target.with_name(f".{target.name}.partial")
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        with writing(key):
            shutil.rmtree(partial, ignore_errors=True)  # of a crash
            partial.mkdir(parents=True)
        yield partial
        with writing(key):
            for path in (*partial.rglob("*"), partial):
                sync(path)
            partial.rename(target)
            sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:  # made for it, the innermost first
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def writing(key: str) -> Iterator[None]:
    """Say of a disk that is full or closed to us which key is to be changed."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}: cannot be written ({reason}).") from None


class _Growing:
    """A npy file that is appended to: numpy's header leaves room for the number of rows, which is known at the end."""

    def __init__(self, path: Path, like: np.ndarray):
        self.file, self.rows, self.tail, self.dtype = path.open("wb"), 0, like.shape[1:], like.dtype
        self._header()

    def append(self, values: np.ndarray) -> None:
        assert values.shape[1:] == self.tail and values.dtype == self.dtype
        self.file.write(np.ascontiguousarray(values))  # type: ignore[arg-type]
        self.rows += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        shape = (self.rows, *self.tail)
        npy.write_array_header_1_0(
            self.file,
            {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape},
        )


def _differences(logged: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key → the two values where they differ; nothing where it is unknown what was logged."""
    own = _flat(logged)  # as it is: an interpolation in somebody's file is not for us to resolve
    other = _flat(OmegaConf.to_container(OmegaConf.create(dict(here)), resolve=True))
    names = sorted((own.keys() | other.keys()) - _INERT) if logged else []
    return {
        name: (own.get(name), other.get(name)) for name in names if own.get(name) != other.get(name)
    }


def _flat(node: Any, prefix: str = "env") -> dict[str, Any]:
    """Dotted keys of nested ones."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {
        name: value
        for key, item in node.items()
        for name, value in _flat(item, f"{prefix}.{key}").items()
    }


def _facts(file: Path) -> dict[str, Any]:
    """The content of data.json; ConfigError where it is not what it should be."""
    try:
        if not file.is_file():
            raise ValueError("it is no file")
        require_memory(4 * file.stat().st_size, str(file))
        facts = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{file}: expected the keys format, env, stack and sources.")
    if facts.get("format") != FORMAT:
        own = _short(facts.get("format"))
        raise ConfigError(f"{file}: format {own}; this rlx reads format {FORMAT}.")
    expected = {
        "env": (_is_env, "a config group env, or {}"),
        "stack": (_is_count, "a whole number from 1 on"),
        "sources": (_is_texts, "a list of texts"),
    }
    for name, (fits, what) in expected.items():
        if name not in facts:
            raise ConfigError(f"{file}: {name} is missing; expected {what}.")
        if not fits(facts[name]):
            raise ConfigError(f"{file}: {name}={_short(facts[name])}; expected {what}.")
    return facts


def _constant(name: str) -> float:
    """Of what Python's JSON has beyond the standard, infinite parameters of an env may be meant."""
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_env(value: Any) -> bool:
    return isinstance(value, dict) and (value == {} or isinstance(value.get("_target_"), str))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_texts(value: Any) -> bool:
    """Printed as they are, so without the codes that would move a terminal's cursor."""
    texts = value if isinstance(value, list) else [None]
    return all(isinstance(text, str) and text.isprintable() for text in texts)
