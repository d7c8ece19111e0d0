"""Discrete BCQ (Fujimoto et al. 2019, "Benchmarking batch deep reinforcement learning algorithms"): double DQN on a data set, whose
greedy action must be one that the data's policy would have taken. Threshold 1 is imitation, threshold 0 Q-learning."""

import copy
import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Carry, Choose, OfflineAgent, Policy, Scores, Spec, greedy
from rlx.config import Count, NonNegative, Positive, Share
from rlx.data.datasets import Data
from rlx.nn.encoders import check_conv, make_encoder
from rlx.nn.networks import MLP, scale_for_relu
from rlx.nn.optim import Adam, descend
from rlx.nn.rng import Streams
from rlx.nn.seed_axis import polyak_update


@dataclass(frozen=True)
class Config:
    """Networks, the two losses, the optimiser."""

    hidden: list[Count]
    """Units of each hidden layer, of both heads."""
    conv: list[list[int]]
    """For observations that are images [C, H, W]: channels, kernel and stride of each layer before them."""
    threshold: Share
    """An action is admissible where its probability under the imitated policy is at least this share of the largest."""
    q_weight: NonNegative
    """Of the Q-learning loss; 0: behaviour cloning alone."""
    imitation_weight: NonNegative
    """Of the imitation loss; 0: Q-learning alone."""
    logit_penalty: NonNegative
    """Weight of the mean squared logit within the imitation loss."""
    n_steps: Count
    discount: Share
    learning_rate: Positive
    adam_eps: float
    batch_size: Count
    target_tau: Share
    """Weight of the online network in a target update; 1 is a hard copy."""
    target_every: Count
    """Minibatches between two target updates."""

    def __post_init__(self) -> None:
        check_conv(self.conv)


class TwoHeads(nn.Module):
    """Observations [S, B, *O] → (action values, imitation logits), [S, B, A] each."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str):
        super().__init__()
        self.encoder = make_encoder(
            spec.observation_space,
            False,
            config.conv,
            False,
            1,
            seeds,
            Streams(seeds, f"{name}/encoder"),
        )
        scale_for_relu(self.encoder)
        sizes = self.encoder.features, config.hidden, spec.actions
        self.q, self.imitation = (
            MLP(*sizes, Streams(seeds, f"{name}/{head}")) for head in ("q", "imitation")
        )

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(obs)
        return self.q(features), self.imitation(features)


class BCQPolicy(Policy):
    """Takes the admissible action of the highest value."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str = "online"):
        super().__init__()
        self.net = TwoHeads(config, spec, seeds, name)
        self.log_threshold = math.log(config.threshold) if config.threshold else -math.inf

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        return choose(
            "action",
            obs,
            Scores(lambda seen: self.scores(seen, carry, "action")),
            torch.ones_like(first),
        ), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.ranked(*self.net(obs))

    def ranked(self, q: Tensor, logits: Tensor) -> Tensor:
        """Scores [S, B, A]: of admissible actions, by how much their value is above the lowest admissible one's; of the others, the
        (negative) distance of their log-probability from the threshold. So no constant is masked in, and the gradient leads to
        actions that are not admissible yet: an attack on a mask would see none, and the policy would look robust."""
        distance = logits - logits.amax(-1, keepdim=True) - self.log_threshold
        admissible = distance >= 0
        return torch.where(
            admissible, q - torch.where(admissible, q, torch.inf).amin(-1, keepdim=True), distance
        )


class BCQ(OfflineAgent):
    """One network and its target, trained on minibatches of the data."""

    config_type = Config
    policy_type = BCQPolicy
    actions = (spaces.Discrete,)

    policy: BCQPolicy
    updates: Tensor

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, data: Data):
        super().__init__()
        # It raises where it has no returns of n steps.
        data.sample(0, torch.zeros(1, 1), config.n_steps, config.discount)
        self.config, self.data = config, data
        self.policy = BCQPolicy(config, spec, seeds)
        self.target = copy.deepcopy(self.policy).requires_grad_(False)
        self.optimizer = Adam(list(self.policy.parameters()), config.learning_rate, config.adam_eps)
        self.rng = Streams(seeds, "minibatch")
        self.register_buffer(
            "updates", torch.zeros(len(seeds), dtype=torch.int64)
        )  # on the CPU: read without a sync

    def learn(self) -> dict[str, Tensor]:
        config = self.config
        draws = self.rng.uniform(config.batch_size, dtype=torch.float64)
        batch = self.data.sample(int(self.updates[0]), draws, config.n_steps, config.discount)
        action = batch["action"].unsqueeze(-1)
        q, logits = self.policy.net(batch["obs"])
        likelihood = logits.log_softmax(-1).gather(-1, action).mean((1, 2))
        imitation = config.logit_penalty * logits.square().mean((1, 2)) - likelihood
        loss = config.imitation_weight * imitation  # [S]: mean within a seed, sum over seeds
        metrics = {"loss/imitation": imitation.detach()}
        if config.q_weight:
            with torch.no_grad():
                best = self.policy.scores(batch["next_obs"], {}, "action").argmax(-1, keepdim=True)
                next_q, _ = self.target.net(batch["next_obs"])
                td_target = batch["reward"] + batch["discount"] * next_q.gather(-1, best).squeeze(
                    -1
                )
            taken = q.gather(-1, action).squeeze(-1)
            q_loss = nn.functional.smooth_l1_loss(taken, td_target, reduction="none").mean(1)
            loss = loss + config.q_weight * q_loss
            metrics |= {"loss/q": q_loss.detach(), "q/mean": taken.detach().mean(1)}
        descend(loss, list(self.policy.parameters()), self.optimizer)
        self.updates += 1
        if int(self.updates[0]) % config.target_every == 0:
            polyak_update(self.target, self.policy, config.target_tau)
        return metrics
