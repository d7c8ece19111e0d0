"""Data sets: logged episodes on disk, each observation stored once, in arrays that are mapped into memory and never read whole.

data.json        format, env (the config group), stack (observations the policies saw at once), actions, sources
obs.npy          [N + E, *O]   of N transitions in E episodes; each episode's last observation follows its others
action.npy       [N]
reward.npy       [N] float32
length.npy       [E] int64     transitions of each episode
terminated.npy   [E] bool      whether it ended by itself; else it was cut
"""

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.lib import format as npy
from omegaconf import OmegaConf
from torch import Tensor

from rlx.agent import Spec
from rlx.config import ConfigError
from rlx.rng import pick

FORMAT = 1
FILES = ("obs", "action", "reward", "length", "terminated")
_CHECKED_AT_ONCE = 1 << 16
_IDENTITY = ("env._target_", "env.id", "env.game", "env.observe", "env.kwargs.gray", "env.kwargs.continuous")
"""Settings that make another env, not another version of the same."""
_INERT = {"env.stack", "env.workers", "env.threads"}
"""Settings that do not change what is logged."""


class Data(ABC):
    """What offline agents learn from."""

    transitions: int

    @abstractmethod
    def sample(self, number: int, draws: Tensor, n_steps: int, discount: float) -> dict[str, Tensor]:
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

    def fingerprint(self) -> str:
        """Another one for other data, as far as the card tells."""
        return hashlib.sha256(json.dumps(self.card()).encode()).hexdigest()

    def __deepcopy__(self, memo: dict) -> "Data":
        return self  # it does not change


class Episodes(Data):
    """Our own format, above."""

    def __init__(self, folder: Path):
        """ConfigError, with the file, where one is missing, cut or has other numbers than it should."""
        self.folder, self.stack = folder, 1
        self.temporary: object = None
        """Keeps the folder while the data is used, if it is to vanish with it."""
        try:
            self.facts = json.loads((folder / "data.json").read_text())
        except ValueError as error:
            raise ConfigError(f"{folder / 'data.json'}: not valid JSON ({error}).") from None
        if self.facts.get("format") != FORMAT:
            raise ConfigError(f"{folder}: format {self.facts.get('format')}; this rlx reads format {FORMAT}.")
        self.obs, self.action, self.reward, length, terminated = (_mapped(folder / f"{name}.npy") for name in FILES)
        self.length, self.terminated = np.array(length), np.array(terminated)
        self.transitions, self.episodes = len(self.action), len(self.length)
        self.begin = np.concatenate([[0], self.length.cumsum()])
        """Number of each episode's first transition; its observation lies in row `begin[e] + e`."""
        expected = {"obs": self.transitions + self.episodes, "reward": self.transitions, "terminated": self.episodes}
        for name, rows in expected.items():
            if len(getattr(self, name)) != rows:
                raise ConfigError(f"{folder / name}.npy: {len(getattr(self, name)):,} rows where {rows:,} were expected.")
        if self.begin[-1] != self.transitions or (self.length < 1).any():
            raise ConfigError(f"{folder / 'length.npy'}: does not add up to the {self.transitions:,} rows of action.npy.")
        for name in ("obs", "reward"):
            _check_finite(getattr(self, name), folder / f"{name}.npy")

    def fit(self, spec: Spec, env: Mapping[str, Any]) -> list[str]:
        where, own = f"data={self.folder}", self.obs.shape[1:]
        stack, differences = env.get("stack", 1), _differences(self.facts["env"], env)
        for name, (logged, here) in differences.items():
            if name in _IDENTITY:
                raise ConfigError(f"{where}: collected with {name}={logged}; this env has {here}.")
        space: Any = spec.observation_space
        shape = tuple(space.shape or ())
        if isinstance(space, gymnasium.spaces.Box):
            fits = own != () and shape == (stack * own[0], *own[1:]) and space.dtype == self.obs.dtype
        else:
            fits = own == () and self.obs.dtype.kind in "iu" and int(self.obs.max()) < space.n
        if not fits:
            raise ConfigError(f"{where}: its observations are {self.obs.dtype} {list(own)}; this env has {space}.")
        self.stack = stack
        check_actions(self.action, spec, where)
        return [f"{name}: {logged} in the data, {here} here" for name, (logged, here) in differences.items()]

    def sample(self, number: int, draws: Tensor, n_steps: int, discount: float) -> dict[str, Tensor]:
        first = pick(draws, self.transitions).cpu().numpy()
        episode = self.episode_of(first)
        end = np.minimum(first + n_steps, self.begin[episode + 1])
        taken = first[..., None] + np.arange(n_steps)
        weight = np.where(taken < end[..., None], discount ** np.arange(n_steps), 0.0)
        reward = (self.reward[np.minimum(taken, end[..., None] - 1)] * weight).sum(-1)
        terminal = self.terminated[episode] & (end == self.begin[episode + 1])
        batch = {
            "obs": self.stacked(first, episode, self.stack),
            "action": self.action[first],
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
        seen = self.obs[np.maximum(number[..., None] - back, self.begin[episode][..., None]) + episode[..., None]]
        shape = self.obs.shape[1:]
        return seen.reshape(*number.shape, stack * shape[0], *shape[1:]) if shape else seen[..., 0]

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 [E]."""
        return np.add.reduceat(np.asarray(self.reward, np.float64), self.begin[:-1])

    def episode(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """(obs [T + 1, *O], action [T], reward [T], terminated) of one episode."""
        a, b = self.begin[number], self.begin[number + 1]
        return self.obs[a + number : b + number + 1], self.action[a:b], self.reward[a:b], bool(self.terminated[number])

    def card(self) -> dict[str, Any]:
        returns = self.returns()
        low, *quartiles, high = np.quantile(returns, [0, 0.25, 0.5, 0.75, 1])
        size = sum((self.folder / f"{name}.npy").stat().st_size for name in FILES)
        facts = {
            "transitions": f"{self.transitions:,}",
            "episodes": f"{self.episodes:,}, {self.length.mean():,.1f} transitions long on average",
            "returns": f"mean {returns.mean():.1f}; from {low:.1f} to {high:.1f}, quartiles " + " ".join(f"{q:.1f}" for q in quartiles),
            "ended": f"{self.terminated.mean():.0%} terminated, {1 - self.terminated.mean():.0%} truncated",
            "obs": f"{self.obs.dtype} {list(self.obs.shape[1:])}, shown {self.facts['stack']} at a time",
            "actions": histogram(np.bincount(self.action)) if self.action.ndim == 1 else f"continuous, {self.action.shape[1]} numbers",
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
        fits = action.ndim == 1 and action.dtype.kind in "iu" and int(action.min()) >= 0 and int(action.max()) < space.n
    else:
        fits = action.shape[1:] == space.shape
    if not fits:
        raise ConfigError(f"{where}: its actions are {action.dtype} {list(action.shape[1:])} up to {action.max()}; this env has {space}.")


class Writer:
    """Writes our own format, an episode at a time; the folder appears when it is closed."""

    def __init__(self, out: str):
        """ConfigError where the folder `out` exists or cannot be made."""
        if out.startswith("minari:"):
            raise ConfigError(f"out={out}: collect into a folder, then: rlx data FOLDER out={out}")
        self.out = Path(out)
        self.partial = aside(self.out)
        self.arrays: dict[str, _Growing] = {}
        self.transitions = 0

    def add(self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: bool) -> None:
        """One episode of T steps: obs [T + 1, *O], action [T], reward [T]."""
        self.transitions += len(action)
        rows = {"obs": obs, "action": action, "reward": reward.astype(np.float32)}
        rows |= {"length": np.array([len(action)], np.int64), "terminated": np.array([terminated])}
        for name, values in rows.items():
            if name not in self.arrays:
                self.arrays[name] = _Growing(self.partial / f"{name}.npy", values)
            self.arrays[name].append(values)

    def close(self, env: Mapping[str, Any], stack: int, sources: list[str]) -> Episodes:
        """The data set."""
        for array in self.arrays.values():
            array.close()
        facts = {"format": FORMAT, "env": env, "stack": stack, "sources": sources}
        (self.partial / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
        self.partial.rename(self.out)
        return Episodes(self.out)


def aside(out: Path) -> Path:
    """An empty folder to write in, which takes the name `out` when it is whole; ConfigError where `out` exists or cannot be made."""
    if out.exists():
        raise ConfigError(f"out={out}: exists already; choose another name or delete it.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a crash
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}).") from None
    return partial


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
        npy.write_array_header_1_0(self.file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})


def _differences(logged: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key → the two values where they differ; nothing where it is unknown what was logged."""
    own, other = (_flat(OmegaConf.to_container(OmegaConf.create(dict(node)), resolve=True)) for node in (logged, here))
    names = sorted((own.keys() | other.keys()) - _INERT) if logged else []
    return {name: (own.get(name), other.get(name)) for name in names if own.get(name) != other.get(name)}


def _flat(node: Any, prefix: str = "env") -> dict[str, Any]:
    """Dotted keys of nested ones."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {name: value for key, item in node.items() for name, value in _flat(item, f"{prefix}.{key}").items()}


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: missing, cut or no npy file ({error}).") from None


def _check_finite(array: np.ndarray, path: Path) -> None:
    """ConfigError where a number is NaN or infinite; reads a part at a time."""
    if array.dtype.kind != "f":
        return
    for begin in range(0, len(array), _CHECKED_AT_ONCE):
        good = np.isfinite(array[begin : begin + _CHECKED_AT_ONCE]).reshape(-1, array[0].size).all(1)
        if not good.all():
            raise ConfigError(f"{path}: row {begin + int(np.argmin(good)):,} is not finite.")
