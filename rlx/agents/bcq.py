"""Discrete BCQ (Fujimoto et al. 2019, "Benchmarking batch deep reinforcement learning algorithms").

Double DQN on a data set, whose greedy action must be one that the data's policy would have taken.
Threshold 1 is imitation, threshold 0 Q-learning.
"""

import copy
import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Carry, Choose, OfflineAgent, Policy, Scores, Spec, greedy
from rlx.config import Count, NonNegative, PerSeed, Positive, Share
from rlx.data.datasets import Data
from rlx.nn.encoders import check_conv, make_encoder
from rlx.nn.networks import MLP, scale_for_relu
from rlx.nn.optim import Adam, descend
from rlx.nn.per_seed import add_numbers
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import along, polyak_update


@dataclass(frozen=True)
class Config:
    """Networks, the two losses, the optimiser."""

    hidden: list[Count]
    """Units of each hidden layer, of both heads."""
    conv: list[list[int]]
    """Channels, kernel and stride of each convolution, where observations are images [C, H, W]."""
    threshold: PerSeed[Share]
    """Share of the most probable action's probability that an admissible action has at least.

    Probabilities are those of the imitated policy.
    """
    q_weight: NonNegative
    """Weight of the Q-learning loss; 0: behaviour cloning alone."""
    imitation_weight: PerSeed[NonNegative]
    """Weight of the imitation loss; 0: Q-learning alone."""
    logit_penalty: PerSeed[NonNegative]
    """Weight of the mean squared logit within the imitation loss."""
    n_steps: Count
    """Rewards that are summed before the target network's value is added."""
    discount: PerSeed[Share]
    """Factor by which a reward one step later is worth less."""
    learning_rate: PerSeed[Positive]
    """Step size of Adam."""
    adam_eps: PerSeed[float]
    """Adam's ε, which is added to its denominator."""
    batch_size: Count
    """Transitions in a minibatch of one seed."""
    target_tau: PerSeed[Share]
    """Weight of the online network in a target update; 1 is a hard copy."""
    target_every: Count
    """Minibatches between two target updates."""

    def __post_init__(self) -> None:
        check_conv(self.conv)


class TwoHeads(nn.Module):
    """Observations [S, B, *O] → (action values, imitation logits), [S, B, A] each."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str):
        super().__init__()
        rng = Streams(seeds, f"{name}/encoder")
        self.encoder = make_encoder(spec.observation_space, config.conv, seeds, rng)
        scale_for_relu(self.encoder)
        sizes = (self.encoder.features, config.hidden, spec.actions)
        self.q = MLP(*sizes, Streams(seeds, f"{name}/q"))
        self.imitation = MLP(*sizes, Streams(seeds, f"{name}/imitation"))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(obs)
        return self.q(features), self.imitation(features)


class BCQPolicy(Policy):
    """Takes the admissible action of the highest value."""

    log_threshold: float | Tensor
    """Logarithm of `config.threshold`: one number, or [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str = "online"):
        super().__init__()
        self.net = TwoHeads(config, spec, seeds, name)
        add_numbers(self, log_threshold=_log(config.threshold))

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        scores = Scores(lambda obs: self.scores(obs, carry, "action"))
        return choose("action", obs, scores, torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.ranked(*self.net(obs))

    def ranked(self, q: Tensor, logits: Tensor) -> Tensor:
        """Scores [S, B, A] of values `q` and imitation `logits`, [S, B, A] each.

        Those of admissible actions say by how much their value is above the lowest admissible one;
        those of others are the (negative) distance of their log-probability from the threshold. So
        no constant is masked in, and the gradient leads to actions that are not admissible yet: an
        attack on a mask would find no gradient, and the policy would look robust.
        """
        log_threshold = along(self.log_threshold, logits)
        distance = logits - logits.amax(-1, keepdim=True) - log_threshold
        admissible = distance >= 0
        lowest = torch.where(admissible, q, torch.inf).amin(-1, keepdim=True)
        return torch.where(admissible, q - lowest, distance)


def _log(x: float | Tensor) -> float | Tensor:
    """The logarithm of x, −∞ of 0; of a tensor, elementwise."""
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x else -math.inf


class BCQ(OfflineAgent):
    """One network and its target, trained on minibatches of the data."""

    config_type = Config
    policy_type = BCQPolicy
    actions = (spaces.Discrete,)

    policy: BCQPolicy
    updates: Tensor
    """Minibatches so far, int64 [S], all equal, and on the CPU: it is read without a sync."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, data: Data):
        super().__init__()
        # It raises where it has no returns of n steps.
        data.sample(0, torch.zeros(1, 1), config.n_steps, config.discount)
        self.config = config
        self.data = data
        self.policy = BCQPolicy(config, spec, seeds)
        self.target = copy.deepcopy(self.policy).requires_grad_(False)
        self.optimizer = Adam(list(self.policy.parameters()), config.learning_rate, config.adam_eps)
        self.rng = Streams(seeds, "minibatch")
        self.register_buffer("updates", torch.zeros(len(seeds), dtype=torch.int64))

    def learn(self) -> dict[str, Tensor]:
        config = self.config
        draws = self.rng.uniform(config.batch_size, dtype=torch.float64)
        batch = self.data.sample(int(self.updates[0]), draws, config.n_steps, config.discount)
        q, logits = self.policy.net(batch["obs"])
        action = batch["action"].unsqueeze(-1)
        imitation = self._imitation_loss(logits, action)
        loss = config.imitation_weight * imitation
        metrics = {"loss/imitation": imitation.detach()}
        if config.q_weight:
            q_taken = q.gather(-1, action).squeeze(-1)
            target = self._target(batch)
            q_loss = nn.functional.smooth_l1_loss(q_taken, target, reduction="none").mean(1)
            loss = loss + config.q_weight * q_loss
            metrics |= {"loss/q": q_loss.detach(), "q/mean": q_taken.detach().mean(1)}
        descend(loss, list(self.policy.parameters()), self.optimizer)
        self.updates += 1
        if int(self.updates[0]) % config.target_every == 0:
            polyak_update(self.target, self.policy, config.target_tau)
        return metrics

    def _imitation_loss(self, logits: Tensor, action: Tensor) -> Tensor:
        """Cross-entropy of the `action` [S, B, 1] that was taken, and the logits' penalty: [S]."""
        likelihood = logits.log_softmax(-1).gather(-1, action).mean((1, 2))
        return self.config.logit_penalty * logits.square().mean((1, 2)) - likelihood

    @torch.no_grad()
    def _target(self, batch: dict[str, Tensor]) -> Tensor:
        """reward + discount · the target's value of the policy's next action, [S, B]."""
        best = self.policy.scores(batch["next_obs"], {}, "action").argmax(-1, keepdim=True)
        next_q, _ = self.target.net(batch["next_obs"])
        return batch["reward"] + batch["discount"] * next_q.gather(-1, best).squeeze(-1)
