"""A trained policy for users of Gymnasium: NumPy observations in, actions out."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch

from rlx import experiment
from rlx.agent import Policy
from rlx.envs.spaces import agent_actions, agent_observations
from rlx.nn.seed_axis import take


class GymPolicy:
    """A trained policy in a Gymnasium env: NumPy observations in, actions of the env out.

    It remembers what the policy remembers (the goal of a hierarchy, a recurrent state, stacked
    observations) from one `act` to the next, until `reset`.
    """

    def __init__(self, policy: Policy, row: int, env: Mapping[str, Any]):
        """The seed in row `row` of `policy`, in the env of the config group `env`."""
        self._policy = take(policy, torch.tensor([row])).requires_grad_(False)
        self.observation_space, self.action_space = raw_spaces(env)
        _, self._agent_obs = agent_observations(self.observation_space)
        _, self._env_actions = agent_actions(self.action_space)
        self._observe: list[int] | None = env.get("observe")
        self._stack = int(env.get("stack", 1))
        self.reset()

    def reset(self) -> None:
        """Begin a new episode: forget what was remembered."""
        self._carry: dict[str, torch.Tensor] | None = None
        self._frames: list[np.ndarray] = []

    def act(self, obs: Any) -> Any:
        """The greedy action at `obs`, an observation as the Gymnasium env gives it.

        Call `reset` when an episode begins. Raises ValueError where `obs` has another shape.
        """
        shown_obs = torch.from_numpy(self._stacked(np.asarray(obs)))[None, None]
        first = torch.full((1, 1), self._carry is None)
        carry = self._policy.initial_carry(1) if self._carry is None else self._carry
        with torch.no_grad():
            action, self._carry = self._policy.act(shown_obs, first, carry)
        return self._env_actions(action[0].numpy())[0]

    def _stacked(self, obs: np.ndarray) -> np.ndarray:
        """`obs` as the policy sees it: converted, its observed components, the last few joined."""
        if obs.shape != (self.observation_space.shape or ()):
            raise ValueError(
                f"act: obs has the shape {obs.shape}; expected {self.observation_space.shape}, "
                "one observation of the env"
            )
        frame = np.asarray(self._agent_obs(obs[None])[0])
        if self._observe is not None:
            frame = frame[self._observe]
        if self._stack == 1:
            return frame
        if not self._frames:
            self._frames = [frame] * self._stack
        self._frames = [*self._frames[1:], frame]
        return np.concatenate(self._frames)


def raw_spaces(env: Mapping[str, Any]) -> tuple[gymnasium.Space, gymnasium.Space]:
    """(observation space, action space) of the config group `env`, as Gymnasium's users know them.

    An env of Gymnasium has spaces of its own, which rlx's copies of it convert.
    """
    made: Any = experiment.make_env({**env, "observe": None, "stack": 1}, 1, "cpu")
    copies = getattr(made, "envs", None)
    if copies:
        return copies[0].observation_space, copies[0].action_space
    return made.single_observation_space, made.single_action_space
