"""The programs that rlx is timed against: a plain PyTorch loop, and Stable-Baselines3."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rlx.agent import Spec
from rlx.agents.dqn import Config as DQNConfig
from rlx.nn.encoders import obs_features


class PlainDQN:
    """The same DQN in plain PyTorch, in one env for one seed.

    It has Gymnasium's env, nn.Linear, torch.optim and a replay of NumPy arrays.
    """

    def __init__(self, config: DQNConfig, spec: Spec, env_id: str):
        self.config = config
        self.env = gymnasium.make(env_id)
        self.choices = spec.actions
        features = obs_features(spec.observation_space)
        self.network = _network(features, config.hidden, self.choices)
        self.target = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        size = config.buffer_size
        self.observations = np.zeros((size, features), np.float32)
        self.next_observations = np.zeros((size, features), np.float32)
        self.actions = np.zeros(size, np.int64)
        self.rewards = np.zeros(size, np.float32)
        self.terminals = np.zeros(size, np.float32)
        self.stored = 0
        self.rng = np.random.default_rng(0)
        self.obs, _ = self.env.reset(seed=0)

    def step(self) -> int:
        """Act, step the env, store and learn; returns the environment steps made."""
        action = self._act()
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        row = self.stored % self.config.buffer_size
        self.observations[row] = self.obs
        self.next_observations[row] = next_obs
        self.actions[row] = action
        self.rewards[row] = reward
        self.terminals[row] = terminated
        self.stored += 1
        self.obs = self.env.reset()[0] if terminated or truncated else next_obs
        if self.stored >= self.config.batch_size:
            self._learn()
        return 1

    def _act(self) -> int:
        if self.rng.random() < self.config.epsilon_end:
            return int(self.rng.integers(self.choices))
        with torch.no_grad():
            return int(self.network(torch.as_tensor(self.obs)).argmax())

    def _learn(self) -> None:
        stored = min(self.stored, self.config.buffer_size)
        rows = self.rng.integers(stored, size=self.config.batch_size)
        obs = torch.from_numpy(self.observations[rows])
        next_obs = torch.from_numpy(self.next_observations[rows])
        action = torch.from_numpy(self.actions[rows])
        reward = torch.from_numpy(self.rewards[rows])
        terminal = torch.from_numpy(self.terminals[rows])
        with torch.no_grad():
            next_value = self.target(next_obs).amax(1)
            target = reward + self.config.discount * (1 - terminal) * next_value
        q = self.network(obs).gather(1, action.unsqueeze(1)).squeeze(1)
        loss = nn.functional.smooth_l1_loss(q, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        parameters = zip(self.target.parameters(), self.network.parameters(), strict=True)
        with torch.no_grad():
            for slow, fast in parameters:
                slow.lerp_(fast, self.config.target_tau)


class PlainAttack:
    """FGSM on a goal head and on an action head given the goal, one observation at a time."""

    def __init__(self, spec: Spec):
        """`spec` is Acrobot's."""
        assert isinstance(spec.observation_space, Box)
        self.goal_network = _network(6, [128, 128], 3)
        self.action_network = _network(9, [128, 128], 3)
        self.high = torch.as_tensor(spec.observation_space.high)
        self.obs = torch.randn(6)

    def step(self) -> int:
        """Perturb the observation of one step and decide; returns 1, the steps decided."""
        shown = self._perturbed(self.goal_network)
        with torch.no_grad():
            goal = self.goal_network(shown).argmax()
        one_hot = nn.functional.one_hot(goal, 3).float()

        def action_scores(obs: Tensor) -> Tensor:
            return self.action_network(torch.cat([one_hot, obs]))

        shown = self._perturbed(action_scores)
        with torch.no_grad():
            action_scores(shown).argmax()
        return 1

    def _perturbed(self, scores: Callable[[Tensor], Tensor]) -> Tensor:
        """The observation [6] after one step up the cross-entropy of the clean choice."""
        at = self.obs.clone().requires_grad_()
        q = scores(at).unsqueeze(0)
        loss = nn.functional.cross_entropy(q, q.argmax(1))
        (gradient,) = torch.autograd.grad(loss, at)
        moved = at.detach() + 0.01 * self.high * gradient.sign()
        return moved.clamp(-self.high, self.high)


class StableBaselines3:
    """Stable-Baselines3's agent of the same name and settings, on copies of Gymnasium's env."""

    def __init__(self, name: str, config: Any, env_id: str, num_envs: int):
        """`name`: dqn, ppo or a2c; `config`: the settings of rlx's agent of that name."""
        import stable_baselines3  # type: ignore[import-not-found]
        from stable_baselines3.common.env_util import (  # type: ignore[import-not-found]
            make_vec_env,
        )

        self.env = make_vec_env(env_id, num_envs)
        kind = getattr(stable_baselines3, name.upper())
        options = {
            "learning_rate": config.learning_rate,
            "gamma": config.discount,
            "device": "cpu",
            "policy_kwargs": {"net_arch": list(config.hidden)},
        }
        if name == "dqn":
            self.steps = 200
            options |= {
                "buffer_size": config.buffer_size,
                "learning_starts": 64,
                "batch_size": config.batch_size,
                "tau": config.target_tau,
                "target_update_interval": 1,
                "train_freq": 1,
                "gradient_steps": round(config.replay_ratio * num_envs),
            }
        else:
            rollout = config.rollout_steps * num_envs
            # A rollout of A2C is short: ten of them are timed at once.
            self.steps = rollout if name == "ppo" else 10 * rollout
            options |= {
                "n_steps": config.rollout_steps,
                "gae_lambda": config.gae_lambda,
                "ent_coef": config.entropy_coefficient,
                "normalize_advantage": config.normalise_advantage,
            }
        if name == "ppo":
            options |= {
                "batch_size": config.rollout_steps * num_envs // config.minibatches,
                "n_epochs": config.epochs,
            }
        self.model = kind("MlpPolicy", self.env, **options)

    def step(self) -> int:
        """Learn for `steps` environment steps; returns their number."""
        self.model.learn(self.steps, reset_num_timesteps=False)
        return self.steps


def _network(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """A multi-layer perceptron with ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], outputs))
