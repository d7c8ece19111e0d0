"""A plain PyTorch loop: Gymnasium's env, nn.Linear, torch.optim and a replay of NumPy arrays.

One env and one seed, as one would write DQN, or hierarchical DQN, on one page.
"""

import copy
from itertools import pairwise
from typing import Any

PROGRAM = "plain loop"
NEEDS = ("torch", "gymnasium")
ONE_SEED = True


def refusal(settings: dict[str, Any]) -> str | None:
    """Why it cannot train this."""
    agent = settings["agent"]
    if agent["_target_"] not in ("rlx.agents.dqn.DQN", "rlx.agents.hdqn.HDQN"):
        return "has DQN and hierarchical DQN alone"
    if agent.get("goals", "actions") != "actions":
        return "has goals that are actions alone"
    if settings["env_id"] is None:
        return "needs an env that Gymnasium has too"
    if len(settings["obs_shape"]) != 1 or settings["choices"] is None:
        return "needs a flat observation and discrete actions"
    return None


def differences(settings: dict[str, Any]) -> list[str]:
    """How its training differs from rlx's."""
    found = ["1 env"]
    if settings["agent"]["n_steps"] > 1:
        found.append("one-step returns")
    if settings["agent"]["optimizer"] != "adam":
        found.append("Adam")
    if settings["agent"]["average_tau"] < 1:
        found.append("no averaged weights")
    return found


def make(settings: dict[str, Any], seeds: int) -> Any:
    """A function that makes 100 environment steps, and learns what is due."""
    import gymnasium
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(settings["threads"])
    torch.set_flush_denormal(True)
    config = settings["agent"]
    choices = settings["choices"]
    features = settings["obs_shape"][0]
    rng = np.random.default_rng(0)

    def network(inputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        sizes = [inputs, *config["hidden"]]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], choices))

    class Learner:
        """A Q-network, its target network, its optimiser and its replay."""

        def __init__(self, inputs: int):
            self.network = network(inputs)
            self.target = copy.deepcopy(self.network)
            self.optimizer = torch.optim.Adam(self.network.parameters(), config["learning_rate"])
            size = config["buffer_size"]
            self.obs = np.zeros((size, inputs), np.float32)
            self.next_obs = np.zeros((size, inputs), np.float32)
            self.action = np.zeros(size, np.int64)
            self.reward = np.zeros(size, np.float32)
            self.discount = np.zeros(size, np.float32)
            self.stored = 0
            self.updates = 0

        def choose(self, obs: Any, epsilon: float) -> int:
            if rng.random() < epsilon:
                return int(rng.integers(choices))
            with torch.no_grad():
                return int(self.network(torch.from_numpy(obs)).argmax())

        def store(self, obs: Any, action: int, reward: float, discount: float, next_obs: Any):
            row = self.stored % config["buffer_size"]
            self.obs[row] = obs
            self.next_obs[row] = next_obs
            self.action[row] = action
            self.reward[row] = reward
            self.discount[row] = discount
            self.stored += 1

        def learn(self) -> None:
            stored = min(self.stored, config["buffer_size"])
            rows = rng.integers(stored, size=config["batch_size"])
            obs = torch.from_numpy(self.obs[rows])
            next_obs = torch.from_numpy(self.next_obs[rows])
            action = torch.from_numpy(self.action[rows]).unsqueeze(1)
            with torch.no_grad():
                next_q = self.target(next_obs)
                chooser = self.network(next_obs) if config["double"] else next_q
                value = next_q.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
                reward = torch.from_numpy(self.reward[rows])
                target = reward + torch.from_numpy(self.discount[rows]) * value
            q = self.network(obs).gather(1, action).squeeze(1)
            loss = nn.functional.smooth_l1_loss(q, target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.updates += 1
            if self.updates % config["target_every"]:
                return
            pairs = zip(self.target.parameters(), self.network.parameters(), strict=True)
            with torch.no_grad():
                for slow, fast in pairs:
                    slow.lerp_(fast, config["target_tau"])

    class Loop:
        """The env and its learners: one, or a controller below a meta-controller."""

        def __init__(self) -> None:
            self.env = gymnasium.make(
                settings["env_id"], max_episode_steps=settings["max_episode_steps"]
            )
            self.hierarchical = "goals" in config
            self.top = Learner(features)
            self.controller = Learner(features + choices) if self.hierarchical else self.top
            self.one_hot = np.eye(choices, dtype=np.float32)
            self.obs: Any = self.env.reset(seed=0)[0]
            self.goal: int | None = None
            self.steps = 0
            self.due = 0.0

        def step(self) -> None:
            if self.hierarchical:
                ended = self._hierarchical_step()
            else:
                action = self.top.choose(self.obs, config["epsilon_end"])
                next_obs, reward, terminated, truncated, _ = self.env.step(action)
                discount = config["discount"] * (not terminated)
                self.top.store(self.obs, action, float(reward), discount, next_obs)
                self.obs = next_obs
                ended = terminated or truncated
            if ended:
                self.obs = self.env.reset()[0]
            self.steps += 1
            if self.steps < max(config["learning_starts"], config["batch_size"]):
                return
            self.due += config["replay_ratio"]
            while self.due >= 1:
                self.due -= 1
                self.controller.learn()
                if self.hierarchical and self.top.stored:
                    self.top.learn()

        def _hierarchical_step(self) -> bool:
            if self.goal is None:
                self.goal = self.top.choose(self.obs, config["epsilon_end"])
                self.began = self.obs
                self.sum = 0.0
                self.factor = 1.0
            joint = np.concatenate([self.one_hot[self.goal], self.obs])
            action = self.controller.choose(joint, config["controller_epsilon_end"])
            next_obs, reward, terminated, truncated, _ = self.env.step(action)
            reached = action == self.goal
            next_joint = np.concatenate([self.one_hot[self.goal], next_obs])
            going_on = not terminated and not (reached and config["goal_terminates"])
            discount = config["controller_discount"] * going_on
            self.controller.store(joint, action, float(reached), discount, next_joint)
            self.sum += self.factor * float(reward)
            self.factor *= config["discount"]
            if reached or terminated or truncated:
                discount = self.factor * (not terminated)
                self.top.store(self.began, self.goal, self.sum, discount, next_obs)
                self.goal = None
            self.obs = next_obs
            return terminated or truncated

    loop = Loop()

    def advance() -> int:
        for _ in range(100):
            loop.step()
        return 100

    while loop.steps <= config["learning_starts"]:
        advance()
    return advance
