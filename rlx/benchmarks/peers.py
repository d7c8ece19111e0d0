"""The same work as others do it: a plain PyTorch loop, and Stable-Baselines3."""

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rlx.agent import Spec
    from rlx.agents.dqn import Config as DQNConfig


def timed(step: Callable[[], int], seconds: float) -> float:
    """Env steps per second of repeated `step()`s, each of which returns how many it made; a fifth of the time is warm-up."""
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end:
        step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        count += step()
    return count / (time.perf_counter() - began)


def plain_training(config: "DQNConfig", spec: "Spec", env_id: str, seconds: float) -> float:
    """The same DQN as one would write it down: Gymnasium's env, nn.Linear, torch.optim, a NumPy replay."""
    import gymnasium
    import torch
    from torch import nn

    from rlx.nn.encoders import obs_features

    env = gymnasium.make(env_id)
    features, choices = obs_features(spec.observation_space), spec.actions
    network = _plain_network(features, config.hidden, choices)
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    size = config.buffer_size
    observations, next_observations = (
        np.zeros((size, features), np.float32),
        np.zeros((size, features), np.float32),
    )
    actions, rewards, terminals = (
        np.zeros(size, np.int64),
        np.zeros(size, np.float32),
        np.zeros(size, np.float32),
    )
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    stored = 0

    def step() -> int:
        nonlocal obs, stored
        if rng.random() < config.epsilon_end:
            action = int(rng.integers(choices))
        else:
            with torch.no_grad():
                action = int(network(torch.as_tensor(obs)).argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        at = stored % size
        observations[at], next_observations[at], actions[at], rewards[at], terminals[at] = (
            obs,
            following,
            action,
            reward,
            terminated,
        )
        stored += 1
        obs = env.reset()[0] if terminated or truncated else following
        if stored >= config.batch_size:
            index = rng.integers(min(stored, size), size=config.batch_size)
            o, n, a, r, t = (
                torch.from_numpy(x[index])
                for x in (observations, next_observations, actions, rewards, terminals)
            )
            with torch.no_grad():
                goal = r + config.discount * (1 - t) * target(n).amax(1)
            loss = nn.functional.smooth_l1_loss(
                network(o).gather(1, a.unsqueeze(1)).squeeze(1), goal
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, config.target_tau)
        return 1

    return timed(step, seconds)


def sb3_training(name: str, config: Any, env_id: str, num_envs: int, seconds: float) -> float:
    """Stable-Baselines3's agent of the same name and settings on `copies` of Gymnasium's env."""
    import stable_baselines3  # type: ignore[import-not-found]
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

    env = make_vec_env(env_id, num_envs)
    common = {"learning_rate": config.learning_rate, "gamma": config.discount, "device": "cpu"}
    common["policy_kwargs"] = {"net_arch": list(config.hidden)}
    steps = 200
    model: Any
    if name == "dqn":
        model = stable_baselines3.DQN(
            "MlpPolicy", env, buffer_size=config.buffer_size, learning_starts=64, batch_size=config.batch_size, tau=config.target_tau,
            target_update_interval=1, train_freq=1, gradient_steps=round(config.replay_ratio * num_envs), **common,
        )  # fmt: skip
    else:
        common |= {
            "n_steps": config.rollout_steps,
            "gae_lambda": config.gae_lambda,
            "ent_coef": config.entropy_coefficient,
        }
        common["normalize_advantage"] = config.normalise_advantage
        steps = config.rollout_steps * num_envs
        if name == "ppo":
            batch = {"batch_size": steps // config.minibatches, "n_epochs": config.epochs}
            model = stable_baselines3.PPO("MlpPolicy", env, **batch, **common)
        else:
            model = stable_baselines3.A2C("MlpPolicy", env, **common)
            steps *= 10

    def step() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return timed(step, seconds)


def plain_attack(spec: "Spec", seconds: float) -> float:
    """FGSM on a goal head and on an action head given the goal, one observation at a time."""
    import torch
    from torch import nn

    meta, controller = _plain_network(6, [128, 128], 3), _plain_network(9, [128, 128], 3)
    high = torch.as_tensor(spec.observation_space.high)  # type: ignore[attr-defined]
    obs = torch.randn(6)

    def fgsm(scores: Callable[[Any], Any]) -> Any:
        at = obs.clone().requires_grad_()
        q = scores(at).unsqueeze(0)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(q, q.argmax(1)), at)
        return (at.detach() + 0.01 * high * slope.sign()).clamp(-high, high)

    def step() -> int:
        seen = fgsm(meta)
        with torch.no_grad():
            goal = meta(seen).argmax()
        one_hot = nn.functional.one_hot(goal, 3).float()
        seen = fgsm(lambda x: controller(torch.cat([one_hot, x])))
        with torch.no_grad():
            controller(torch.cat([one_hot, seen])).argmax()
        return 1

    return timed(step, seconds)


def _plain_network(inputs: int, hidden: list[int], outputs: int) -> Any:
    from torch import nn

    sizes = [inputs, *hidden]
    layers: list[Any] = [
        layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
