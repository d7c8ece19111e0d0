"""The words of agent.py and env.py, enforced: shapes and types of what somebody's class returns.

A run checks these before its first file is written; rlx/checks/ tries out how a class behaves.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlx.agent import Agent, Spec
from rlx.errors import ConfigError, RunError


def check_policy(agent: Agent, obs: Tensor, spec: Spec) -> None:
    """Let `agent` act greedily on first observations `obs` [S, N, *O].

    ConfigError unless it gives actions as the action space has them, and a carry.
    """
    shape = obs.shape[:2]
    first = torch.ones(shape, dtype=torch.bool, device=obs.device)
    with torch.no_grad():
        result = agent.policy.act(obs, first, agent.policy.initial_carry(shape[1]))
    subject = f"agent: {type(agent.policy).__name__}.act"
    if not isinstance(result, tuple) or len(result) != 2:
        raise ConfigError(f"{subject} returned {type(result).__name__}; expected (action, carry).")
    action, carry = result
    box = isinstance(spec.action_space, spaces.Box)
    wanted = (*shape, *(spec.action_space.shape or ()))
    _expect(subject + "'s action", action, wanted, (torch.float32,) if box else (torch.int64,))
    for name, value in carry.items():
        if not isinstance(value, Tensor) or value.shape[:2] != shape:
            raise ConfigError(
                f"{subject}'s carry '{name}' is {_shown(value)}; "
                f"expected a tensor that starts with {list(shape)}."
            )


def check_env(env: Any, spec: Spec) -> None:
    """Reset and step `env`, one copy; ConfigError unless shapes and types are those of `spec`."""
    subject = f"env: {getattr(env, 'name', type(getattr(env, 'dynamics', env)).__name__)}"
    shape, dtypes = _one_observation(spec.observation_space)

    def observation(name: str, value: Any) -> None:
        _expect(f"{subject}'s {name}", value, shape, dtypes)
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"{subject}'s {name} holds a number that is not finite.")

    action = torch.zeros(1, *(spec.action_space.shape or ()), dtype=torch.int64)
    if isinstance(spec.action_space, spaces.Box):
        low = torch.from_numpy(spec.action_space.low)
        high = torch.from_numpy(spec.action_space.high)
        action = action.float().clamp(low, high)
    observation("first observation", _called(f"{subject}'s reset", lambda: env.reset(seed=0))[0])
    result = _called(f"{subject}'s step", lambda: env.step(action))
    if not isinstance(result, tuple) or len(result) != 5:
        count = len(result) if isinstance(result, tuple) else type(result).__name__
        raise ConfigError(
            f"{subject}'s step returned {count} values; "
            "expected obs, reward, terminated, truncated, info."
        )
    obs, reward, terminated, truncated, info = result
    observation("observation", obs)
    _expect(f"{subject}'s reward", reward, (1,), (torch.float32,))
    if not reward.isfinite().all():
        raise ConfigError(f"{subject}'s reward is {float(reward)}; expected a finite number.")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        _expect(f"{subject}'s '{name}'", flag, (1,), (torch.bool,))
    if "final_obs" not in info:
        raise ConfigError(
            f"{subject}'s info lacks 'final_obs', "
            "the observation that a step led to before any autoreset."
        )
    observation("final_obs", info["final_obs"])


def _one_observation(space: spaces.Space) -> tuple[tuple[int, ...], tuple[torch.dtype, ...]]:
    """(shape [1, *O], dtypes that it may have) of an observation of one env copy."""
    if isinstance(space, spaces.Box):
        return (1, *space.shape), (torch.from_numpy(space.low).dtype,)
    return (1,), (torch.int64, torch.int32)


def check_action(agent: Agent, action: Tensor, shape: torch.Size) -> None:
    """RunError unless an agent's exploring `action` is [S, N, …], with [S, N] = `shape`."""
    if not isinstance(action, Tensor) or action.shape[:2] != shape:
        subject = f"agent: {type(agent).__name__}.act's action is {_shown(action)}"
        raise RunError(f"{subject}; expected a tensor that starts with {list(shape)}")


def check_metrics(agent: Agent, metrics: Mapping[str, Tensor], shape: torch.Size) -> None:
    """RunError unless an agent's metrics are name → [S], with [S, N] = `shape`."""
    subject = f"agent: {type(agent).__name__}"
    if not isinstance(metrics, Mapping):
        raise RunError(f"{subject}.update returned {_shown(metrics)}; expected metrics, name → [S]")
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.shape != shape[:1]:
            raise RunError(
                f"{subject}.update's metric '{name}' is {_shown(value)}; "
                f"expected a tensor [{shape[0]}], one number a seed"
            )


def _called(subject: str, call: Callable[[], Any]) -> Any:
    """The result of `call`; where it raises, a ConfigError that says so.

    ConfigError and RunError pass: they say already what is wrong.
    """
    try:
        return call()
    except (ConfigError, RunError):
        raise
    except Exception as error:
        raise ConfigError(f"{subject} raised {type(error).__name__}: {error}") from error


def _expect(
    subject: str, value: Any, shape: tuple[int, ...], kinds: tuple[torch.dtype, ...]
) -> None:
    """ConfigError unless `value` is a tensor of this shape and one of the dtypes `kinds`."""
    if (
        not isinstance(value, Tensor)
        or tuple(value.shape) != tuple(shape)
        or value.dtype not in kinds
    ):
        kind = str(kinds[0]).removeprefix("torch.")
        raise ConfigError(f"{subject} is {_shown(value)}; expected {kind} {list(shape)}.")


def _shown(value: Any) -> str:
    """The dtype and shape of a tensor, or the type of any other value, as text."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
