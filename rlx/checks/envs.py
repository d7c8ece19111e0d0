"""Checks that an env does all that env.py asks of it: `rlx check env=mine`."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx import contract, experiment
from rlx.agent import Spec
from rlx.env import TensorEnv
from rlx.errors import ConfigError

NUM_ENVS = 4
LONGEST = 2_000
"""Steps that are played at most while an end of an episode is waited for."""


def env_checks(node: Mapping[str, Any]) -> Iterator[str]:
    """Try the env of the config group `env`.

    Yields a sentence about each thing that holds. Raises ConfigError, with what was expected, at
    the first that does not.
    """
    spec = experiment.env_spec(node)
    contract.check_env(experiment.make_env(node, 1, "cpu"), spec)
    yield "observations, rewards and flags have the shapes and types of the contract"
    script = _Script(node, spec)
    _check_same(script.play(), script.play(), "two plays from the same reset seeds differ")
    yield "the same reset seeds and actions give the same episodes"
    _check_same(
        [row[1:] for row in script.play()],
        script.play_some(torch.arange(1, NUM_ENVS)),
        "copies that go on alone go on otherwise",
    )
    yield "copies can be dropped; the others go on as they would have"
    _check_same(
        script.play(),
        script.play(reload=True),
        "from its state_dict it goes on otherwise",
    )
    yield "its state can be saved and loaded at any step"
    _check_ends(script)
    yield "episodes end by themselves or at the time limit, and begin anew in the same step"
    _check_statements(script)
    yield "what it says of its observations and rewards holds in the steps that were played"


class _Script:
    """Plays of an env from fixed reset seeds, by fixed random actions."""

    def __init__(self, node: Mapping[str, Any], spec: Spec):
        self.node = node
        self.spec = spec
        self.steps = 40
        self.middle = self.steps // 2
        draws = torch.rand(self.steps, NUM_ENVS, generator=torch.Generator().manual_seed(0))
        self.actions = random_elements(spec.action_space, draws)
        if isinstance(spec.action_space, spaces.Box):
            low = torch.from_numpy(spec.action_space.low)
            high = torch.from_numpy(spec.action_space.high)
            self.actions = low + self.actions * (high - low)

    def begin(self) -> tuple[TensorEnv, Tensor]:
        """A new env of `NUM_ENVS` copies, and its first observations."""
        env = experiment.make_env(self.node, NUM_ENVS, "cpu")
        obs, _ = env.reset(seed=list(range(7, 7 + NUM_ENVS)))
        return env, obs

    def play(self, reload: bool = False) -> list[Tensor]:
        """The first observations, then what `_record` returns of every step, [B, …] each.

        `reload`: from the middle on in an env made anew, from the state of the first env.
        """
        env, obs = self.begin()
        rows = [obs]
        for step, actions in enumerate(self.actions):
            if reload and step == self.middle:
                state = copy.deepcopy(env.state_dict())
                env, _ = self.begin()
                env.load_state_dict(state)
            rows += _record(env, actions)
        return rows

    def play_some(self, copies: Tensor) -> list[Tensor]:
        """The rows of `play` of the copies `copies` (int64 [B']) alone, [B', …] each.

        From the middle on the env has no other copies.
        """
        env, obs = self.begin()
        rows = [obs[copies]]
        for actions in self.actions[: self.middle]:
            rows += [row[copies] for row in _record(env, actions)]
        env.keep(copies)
        for actions in self.actions[self.middle :]:
            rows += _record(env, actions[copies])
        return rows


def _record(env: TensorEnv, actions: Tensor) -> list[Tensor]:
    """Step `env`; returns observations, rewards, both flags and final observations, [B, …] each."""
    obs, reward, terminated, truncated, info = env.step(actions)
    return [obs, reward, terminated, truncated, info["final_obs"]]


def _check_same(rows: list[Tensor], other_rows: list[Tensor], what: str) -> None:
    """ConfigError unless two plays are the same, but for rounding."""
    for number, (row, other_row) in enumerate(zip(rows, other_rows, strict=True)):
        if not torch.allclose(row.double(), other_row.double(), rtol=1e-4, atol=1e-5):
            raise ConfigError(f"env: {what}, at step {max(0, number - 1) // 5}.")


def _check_ends(script: _Script) -> None:
    """Play until an episode has ended, and see that the next one has begun in the same step."""
    env, obs = script.begin()
    limit = min(script.spec.max_episode_steps, LONGEST)
    for step in range(limit):
        actions = script.actions[step % script.steps]
        obs, _, terminated, truncated, info = env.step(actions)
        ended = terminated | truncated
        if bool((terminated & truncated).any()):
            raise ConfigError("env: a step was both terminated and truncated.")
        if not torch.equal(obs[~ended], info["final_obs"][~ended]):
            raise ConfigError("env: 'final_obs' of a running episode is not its observation.")
        if bool(ended.any()):
            return
    if limit == script.spec.max_episode_steps:
        raise ConfigError(f"env: no episode was truncated at the time limit of {limit} steps.")


def _check_statements(script: _Script) -> None:
    """ConfigError unless what the env says of itself holds in a play: names, angles, rewards."""
    env, _ = script.begin()
    rows = script.play()
    size = _flat_size(env.single_observation_space)
    units = env.observation_units
    if units is not None and (size is None or len(units) != size):
        expected = "one text for each component of a flat observation"
        raise ConfigError(
            f"env: observation_units={units}: expected {expected} ({size or 'none'})."
        )
    obs = torch.cat([rows[0], *rows[5::5]]).double()
    for pair in env.angles:
        if size is None or len(pair) != 2 or not set(pair) <= set(range(size)):
            raise ConfigError(f"env: angles={pair}: expected two components of a flat observation.")
        off = (obs[:, list(pair)].square().sum(-1) - 1).abs().max()
        if off > 1e-4:
            raise ConfigError(
                f"env: angles={pair}: expected cos² + sin² = 1, and it is off by {off:.2g}."
            )
    lowest = env.lowest_reward
    reward = float(torch.cat(rows[2::5]).min())
    if lowest is not None and reward < lowest - 1e-5 * (1 + abs(lowest)):
        raise ConfigError(f"env: lowest_reward={lowest:g}, and a step had a reward of {reward:g}.")


def _flat_size(space: spaces.Space) -> int | None:
    """The number of components of a flat observation; None of all other observations."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    return None


def random_elements(space: spaces.Space, draws: Tensor) -> Tensor:
    """Elements [S, B, …] of `space`, by uniform `draws` [S, B]."""
    if isinstance(space, spaces.Discrete):
        return (draws * int(space.n)).long()
    size = torch.Size(space.shape or ())
    factors = torch.arange(1, size.numel() + 1, dtype=draws.dtype)
    values = (draws.unsqueeze(-1) * factors).frac().unflatten(-1, size)
    if np.issubdtype(space.dtype, np.integer):
        return (values * 256).to(torch.uint8)
    return values.to(torch.float32)
