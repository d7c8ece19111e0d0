"""The agent of own_agent.py: a DQN that repeats its last action now and then while it learns."""

from dataclasses import dataclass

import torch

from rlx.agents import dqn
from rlx.config import Share
from rlx.nn.rng import Streams


@dataclass(frozen=True)
class Config(dqn.Config):
    """A DQN, and how patient it is."""

    patience: Share
    """Probability that an action of learning is the one before it."""


class Patient(dqn.DQN):
    """Repeats itself: what it tries lasts longer."""

    config_type = Config

    def __init__(self, config, spec, seeds, num_envs):
        super().__init__(config, spec, seeds, num_envs)
        self.patience = Streams(seeds, "patience")
        last = torch.zeros(len(seeds), num_envs, dtype=torch.int64, device=seeds.device)
        self.register_buffer("last", last)

    def act(self, obs, first, carry):
        """As DQN.act; of the last actions [S, N] some are kept, but none over an episode's end."""
        action, carry = super().act(obs, first, carry)
        draws = self.patience.uniform(1, action.shape[1])[:, 0]
        repeats = (draws < self.config.patience) & ~first
        self.last.copy_(torch.where(repeats, self.last, action))
        return self.last.clone(), carry
