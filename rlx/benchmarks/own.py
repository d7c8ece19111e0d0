"""What rlx does itself, in pieces that can be timed: training, and an attack."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rlx import experiment
from rlx.agent import Scores, Spec
from rlx.attacks.fgsm import FGSM
from rlx.benchmarks.timing import wait
from rlx.nn.networks import MLP
from rlx.nn.rng import Streams, seed_tensor
from rlx.threat import Budget
from rlx.vector_step import vector_step


class Training:
    """An agent that learns in its env, one vector step at a time."""

    def __init__(
        self,
        agent: Mapping[str, Any],
        env: Mapping[str, Any],
        spec: Spec,
        *,
        seeds: int,
        num_envs: int,
        device: torch.device,
    ):
        """Make the agent and env of these configs, with the seeds 0 to `seeds` − 1."""
        self.shape = (seeds, num_envs)
        self.agent = experiment.make_agent(agent, spec, seed_tensor(range(seeds), device), num_envs)
        self.env = experiment.make_env(env, seeds * num_envs, device)
        self.device = device
        obs, _ = self.env.reset(seed=0)
        self.obs = obs.unflatten(0, self.shape)
        self.carry = self.agent.policy.initial_carry(num_envs)
        self.first = torch.ones(self.shape, dtype=torch.bool, device=device)

    def step(self) -> int:
        """Act, step the env and learn; returns the environment steps made."""
        done = vector_step(self.agent, self.env, self.obs, self.first, self.carry)
        self.obs = done.obs
        self.first = done.first
        self.carry = done.transition.carry
        wait(self.device)
        return self.first.numel()


class TwoHeadedAttack:
    """FGSM on a goal head and on an action head given the goal, in a batch of seeds × copies.

    `peers.PlainAttack` does the same, one observation at a time.
    """

    def __init__(self, spec: Spec, seeds: int, batch: int, device: torch.device):
        """Attack `batch` observations per seed; `spec` is Acrobot's."""
        assert isinstance(spec.observation_space, Box)
        keys = seed_tensor(range(seeds), device)
        self.device = device
        self.goal_network = MLP(6, [128, 128], 3, Streams(keys, "goal"))
        self.action_network = MLP(9, [128, 128], 3, Streams(keys, "action"))
        high = torch.as_tensor(spec.observation_space.high, device=device)
        self.obs = Streams(keys, "obs").uniform(batch, 6) * 2 - 1
        self.attack = FGSM(loss="ce", target=None)
        self.budget = Budget(torch.full_like(self.obs, 0.01) * high, -high, high)

    def step(self) -> int:
        """Perturb and decide once for each observation; returns how many these are."""
        goal = nn.functional.one_hot(self._choose(Scores(self.goal_network)), 3).float()

        def action_scores(obs: Tensor) -> Tensor:
            return self.action_network(torch.cat([goal, obs], -1))

        self._choose(Scores(action_scores))
        wait(self.device)
        return self.obs[..., 0].numel()

    def _choose(self, scores: Scores) -> Tensor:
        """The choice int64 [S, B] at the perturbed observations."""
        shown = self.attack.perturb(scores, self.obs, self.budget, lambda count: self.obs)
        with torch.no_grad():
            return scores(shown).argmax(-1)
