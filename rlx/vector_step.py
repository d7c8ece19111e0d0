"""One vector step: every env copy makes a step, and the agent learns from it."""

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rlx import contract
from rlx.agent import Agent, Carry, Transition
from rlx.env import TensorEnv


class Played(NamedTuple):
    """The outcome of a step of N env copies per seed."""

    transition: Transition
    """The transition that the agent learns from; the next step begins with its carry."""
    obs: Tensor
    """[S, N, *O]: the observations that the next step begins with.

    Where an episode ended, it is the first of a new one.
    """
    first: Tensor
    """bool [S, N]: whether an episode begins with `obs`."""


Lap = Callable[[str], None]
"""Is told what has just been done: "acting", "env" or "learning"."""


class Laps:
    """Seconds that the host spends on the parts of vector steps; a GPU works on meanwhile."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("acting", "env", "learning"), 0.0)
        """What was done → seconds, in all since the first step."""
        self.last = 0.0
        """When the part before ended, by the performance counter."""

    def start(self) -> None:
        """A vector step begins."""
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part `name` is done."""
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now


def play(
    agent: Agent,
    env: TensorEnv,
    obs: Tensor,
    first: Tensor,
    carry: Carry,
    lap: Lap = lambda name: None,
) -> Played:
    """Act and step: one step of all S·N copies of `env`, from `obs`, `first` and `carry`.

    RunError where the agent's actions have a wrong shape.
    """
    action, carry = agent.act(obs, first, carry)
    contract.check_action(agent, action, first.shape)
    lap("acting")
    env_obs, reward, terminated, truncated, info = env.step(action.flatten(0, 1))
    terminated = terminated.unflatten(0, first.shape)
    truncated = truncated.unflatten(0, first.shape)
    transition = Transition(
        obs=obs,
        action=action,
        reward=reward.unflatten(0, first.shape),
        next_obs=info["final_obs"].unflatten(0, first.shape),
        terminated=terminated,
        truncated=truncated,
        carry=carry,
    )
    lap("env")
    return Played(transition, env_obs.unflatten(0, first.shape), terminated | truncated)


class VectorStep(NamedTuple):
    """A vector step: what `Played` holds, and what was learnt."""

    transition: Transition
    obs: Tensor
    first: Tensor
    metrics: dict[str, Tensor]
    """The metrics of what was learnt, name → [S]; empty where nothing was learnt."""


def vector_step(
    agent: Agent,
    env: TensorEnv,
    obs: Tensor,
    first: Tensor,
    carry: Carry,
    lap: Lap = lambda name: None,
) -> VectorStep:
    """Act, step and learn: one step of all S·N copies of `env`, as `play`.

    RunError where the agent's actions or metrics have a wrong shape.
    """
    played = play(agent, env, obs, first, carry, lap)
    metrics = agent.update(played.transition)
    contract.check_metrics(agent, metrics, first.shape)
    lap("learning")
    return VectorStep(*played, metrics)
