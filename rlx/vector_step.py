"""One vector step: every env copy makes a step, and the agent learns from it."""

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


def play(agent: Agent, env: TensorEnv, obs: Tensor, first: Tensor, carry: Carry) -> Played:
    """Act and step: one step of all S·N copies of `env`, from `obs`, `first` and `carry`.

    RunError where the agent's actions have a wrong shape.
    """
    action, carry = agent.act(obs, first, carry)
    contract.check_action(agent, action, first.shape)
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
    return Played(transition, env_obs.unflatten(0, first.shape), terminated | truncated)


class VectorStep(NamedTuple):
    """A vector step: what `Played` holds, and what was learnt."""

    transition: Transition
    obs: Tensor
    first: Tensor
    metrics: dict[str, Tensor]
    """The metrics of what was learnt, name → [S]; empty where nothing was learnt."""


def vector_step(
    agent: Agent, env: TensorEnv, obs: Tensor, first: Tensor, carry: Carry
) -> VectorStep:
    """Act, step and learn: one step of all S·N copies of `env`, as `play`.

    RunError where the agent's actions or metrics have a wrong shape.
    """
    played = play(agent, env, obs, first, carry)
    metrics = agent.update(played.transition)
    contract.check_metrics(agent, metrics, first.shape)
    return VectorStep(*played, metrics)
