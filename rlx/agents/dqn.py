"""DQN (Mnih et al. 2015): one Q-learner that explores ε-greedily, with dueling networks and images if asked for."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.agent import (
    Agent,
    Carry,
    Choose,
    Policy,
    Scores,
    Spec,
    Transition,
    greedy,
)
from rlx.config import Count
from rlx.nn.encoders import check_conv, is_image, make_encoder, obs_field
from rlx.nn.exploration import EpsilonGreedy
from rlx.nn.networks import QNetwork
from rlx.nn.rng import Streams
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import polyak_update
from rlx.q_learning import LearnerConfig, Legal, QLearner


@dataclass(frozen=True)
class Config(LearnerConfig):
    """A Q-learner, its exploration and its network."""

    conv: list[list[int]]
    """For observations that are images [C, H, W]: channels, kernel and stride of each layer before them."""
    batch_norm: bool
    """Of images, and behind each convolution."""
    stack: Count
    """Last images that are seen together: the newest, and how it differs from each of the others."""
    dueling: bool
    bootstrap_truncated: bool
    """False treats the time limit as a terminal state."""
    scale_obs: bool
    """Divide observations by the space's bound where that is finite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conv(self.conv)


class QPolicy(Policy):
    """Acts greedily on one Q-network; of images it remembers the last `stack` − 1."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        self.q = q_network(config, spec, spec.actions, seeds, "q")
        shape = spec.observation_space.shape
        self.past = (
            (config.stack - 1, *shape) if shape and is_image(shape) and config.stack > 1 else None
        )

    def initial_carry(self, batch: int) -> Carry:
        some = next(self.parameters())
        return (
            {"past": torch.zeros(len(some), batch, *self.past, device=some.device)}
            if self.past
            else {}
        )

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        everywhere = torch.ones_like(first)
        if not self.past:
            return choose("action", obs, Scores(self.q), everywhere), carry
        begin = obs.unsqueeze(2).float().expand(-1, -1, *self.past)
        past = torch.where(first.view(*first.shape, 1, 1, 1, 1), begin, carry["past"])
        newest = obs

        def scores(seen: Tensor) -> Tensor:
            nonlocal newest
            newest = (
                seen.detach()
            )  # what is remembered is what the decision was taken on, perturbed or not
            return self.scores(seen, {"past": past}, "action")

        action = choose("action", obs, Scores(scores), everywhere)
        return action, {"past": torch.cat([past[:, :, 1:], newest.unsqueeze(2).float()], 2)}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.q(torch.cat([carry["past"].flatten(2, 3), obs], 2) if self.past else obs)


def q_network(config: Config, spec: Spec, choices: int, seeds: Tensor, name: str) -> nn.Module:
    """Observations [S, B, *O] (images: `stack` of them, [S, B, stack · C, H, W]) → values of `choices` [S, B, choices]."""
    space, rng = spec.observation_space, Streams(seeds, name)
    encoder = make_encoder(
        space, config.scale_obs, config.conv, config.batch_norm, config.stack, seeds, rng
    )
    net = QNetwork(encoder.features, config.hidden, choices, config.dueling, rng)
    return Legal(spec, encoder, net) if spec.rules else nn.Sequential(encoder, net)


class DQN(Agent):
    """One Q-learner, ε-greedy."""

    config_type = Config
    policy_type = QPolicy

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = QPolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        target = q_network(config, spec, spec.actions, seeds, "q/target")
        obs = obs_field(spec.observation_space)
        stack = config.stack if is_image(obs[0]) else None
        self.learner = QLearner(config, self.online.q, target, obs, num_envs, seeds, stack=stack)
        exploration = config.epsilon_start, config.epsilon_end, config.epsilon_steps
        self.explore = EpsilonGreedy(*exploration, seeds, "q", spec.rules)
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng = Streams(seeds, "minibatch")

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.online.act(obs, first, carry, self.explore)

    def update(self, transition: Transition) -> dict[str, Tensor]:
        stops = (
            transition.terminated
            if self.config.bootstrap_truncated
            else transition.terminated | transition.truncated
        )
        self.learner.replay.add(
            torch.ones_like(stops),
            obs=transition.obs,
            action=transition.action,
            reward=transition.reward,
            discount=self.config.discount * (~stops).float(),
            next_obs=transition.next_obs,  # not kept of images
            last=transition.terminated | transition.truncated,
        )
        due = self.clock.due()
        if not due:
            return {}
        for draws in self.rng.uniform(due, self.config.batch_size, dtype=torch.float64).unbind(1):
            loss, q = self.learner.learn(self.online.q, draws)
        weight = 1 - (1 - self.config.average_tau) ** due
        polyak_update(self.policy, self.online, weight)
        return {"loss/q": loss, "q/mean": q}
