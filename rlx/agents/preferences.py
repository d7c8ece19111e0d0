"""Learning from preferences (Christiano et al. 2017, arXiv:1706.03741): a rater compares pairs of short segments, a model of the
reward is fitted to the answers, and PPO maximises that model. The environment's own reward reaches nobody but the rater."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Spec, Transition
from rlx.agents.ppo import PPO, ActorCritic, LearnerConfig
from rlx.config import Count, Positive, at_least
from rlx.errors import ConfigError
from rlx.nn.encoders import ObsEncoder, check_no_image
from rlx.nn.networks import MLP, RunningNorm
from rlx.nn.optim import Adam, descend
from rlx.nn.rng import Streams, pick
from rlx.nn.seed_axis import rows_within
from rlx.replay import add_buffers


@dataclass(frozen=True)
class Config(LearnerConfig):
    """PPO, and how its reward is learnt."""

    retired: ClassVar[tuple[str, ...]] = ("conv",)
    """A key that changed nothing, of older runs."""

    queries: Count
    """Comparisons that the rater answers in all."""
    first_queries: Count
    """In the first round, about random play; a quarter of all in the paper …"""
    queries_per_round: Count
    """… and in the others."""
    round_steps: Count
    """Steps of every env copy between two rounds of queries; their segments come from these steps."""
    segment_steps: Count
    """Longest segment; one that an episode's end cuts short is shorter."""
    rater_noise: float
    """Share of the answers that are wrong."""
    reward_models: Count
    """Fitted apart, to other draws of the answers; the reward is the mean of all, each in its own unit (section 2.2.3)."""
    reward_hidden: list[int]
    reward_learning_rate: Positive
    reward_decay: float
    """Weight, in the loss, of how far a segment's rewards lie from their mean, squared and summed: of rewards that explain the answers
    alike it prefers the even ones. It does not see a constant, of which answers about segments as long as each other say nothing."""
    reward_updates: Count
    """Minibatches of answers per round."""
    reward_batch: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.round_steps, self.segment_steps, "agent.round_steps")
        if not 0 <= self.rater_noise <= 0.5:
            raise ConfigError(
                f"agent.rater_noise={self.rater_noise}: must be from 0 to 0.5, where the answers say nothing."
            )


class RewardModel(nn.Module):
    """Rewards [S, B, M] of observations [S, B, *O] and actions, by M networks."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        self.encoder = ObsEncoder(spec.observation_space, False, seeds)
        self.norm = RunningNorm(self.encoder.features, seeds)
        self.choices = spec.actions if isinstance(spec.action_space, spaces.Discrete) else 0
        actions = self.choices or int((spec.action_space.shape or (1,))[0])
        self.features = self.encoder.features + actions
        self.nets = nn.ModuleList(
            MLP(self.features, config.reward_hidden, 1, Streams(seeds, f"reward{i}"))
            for i in range(config.reward_models)
        )

    def inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """What it is a function of, [S, B, F]."""
        return torch.cat(
            [
                self.encoder(obs),
                nn.functional.one_hot(action, self.choices).float() if self.choices else action,
            ],
            -1,
        )

    def normalised(self, inputs: Tensor) -> Tensor:
        """What the networks see of inputs [S, B, F]."""
        features = self.encoder.features
        return torch.cat([self.norm(inputs[..., :features]), inputs[..., features:]], -1)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.normalised(inputs)
        return torch.cat([net(seen) for net in self.nets], -1)


class PreferencePPO(Agent):
    """Every `round_steps` steps: ask, fit the reward model to all answers so far; PPO learns from the model all along."""

    config_type = Config
    policy_type = ActorCritic
    actions = PPO.actions
    keeps_newest = True

    policy: ActorCritic
    inputs: Tensor
    true_reward: Tensor
    last: Tensor
    truncated: Tensor
    segments: Tensor
    inside: Tensor
    answers: Tensor
    asked: Tensor
    ticks: Tensor
    agreement: Tensor
    size: Tensor
    """Mean absolute reward of the last round's steps by each network, [S, M]: answers say nothing of the unit of reward."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        check_no_image(spec.observation_space, "PreferencePPO")
        self.config = config
        self.ppo = PPO(config, spec, seeds, num_envs)
        self.policy = self.ppo.policy
        self.model = RewardModel(config, spec, seeds)
        self.optimizer = Adam(list(self.model.parameters()), config.reward_learning_rate)
        self.rng = Streams(seeds, "queries")
        features, flag, number = self.model.features, ((), torch.bool), ((), torch.float32)
        this_round = {"inputs": ((features,), torch.float32), "true_reward": number}
        this_round |= {"last": flag, "truncated": flag}
        setting = f"agent.round_steps={config.round_steps}"
        rounds = (len(seeds), num_envs, config.round_steps)
        add_buffers(self, rounds, this_round, seeds.device, setting)
        steps = (2, config.segment_steps)
        asked = {
            "segments": ((*steps, features), torch.float32),
            # 1 for the steps of a segment, 0 behind its episode's end.
            "inside": (steps, torch.float32),
            # 1: the first segment is preferred; 0.5: neither.
            "answers": number,
        }
        queries = (len(seeds), config.queries)
        add_buffers(self, queries, asked, seeds.device, f"agent.queries={config.queries}")
        self.register_buffer("agreement", torch.zeros(len(seeds), device=seeds.device))
        # Before the first answers no step is worth anything.
        nothing = torch.full((len(seeds), config.reward_models), torch.inf, device=seeds.device)
        self.register_buffer("size", nothing)
        self.register_buffer(
            "ticks", torch.zeros(len(seeds), dtype=torch.int64)
        )  # these two on the CPU: read without a sync
        self.register_buffer("asked", torch.zeros(len(seeds), dtype=torch.int64))

    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.ppo.act(obs, first, carry)

    def update(self, transition: Transition) -> dict[str, Tensor]:
        t, place = transition, int(self.ticks[0]) % self.config.round_steps
        with torch.no_grad():
            inputs = self.model.inputs(t.obs, t.action)
            learnt = (self.model(inputs) / self.size.unsqueeze(1)).mean(-1)
        self.inputs[:, :, place], self.true_reward[:, :, place] = inputs, t.reward
        self.last[:, :, place], self.truncated[:, :, place] = (
            t.terminated | t.truncated,
            t.truncated,
        )
        self.ticks += 1
        if place == self.config.round_steps - 1 and int(self.asked[0]) < self.config.queries:
            self._ask()
            self._fit()
        metrics = self.ppo.update(replace(t, reward=learnt))
        queries = self.asked.to(self.agreement)
        return (
            metrics | {"preference/queries": queries, "preference/agreement": self.agreement}
            if metrics
            else {}
        )

    @torch.no_grad()
    def _ask(self) -> None:
        """Cut random pairs of segments out of this round, and have them rated."""
        config = self.config
        begin = int(self.asked[0])
        end = min(
            begin + (config.queries_per_round if begin else config.first_queries), config.queries
        )
        seeds, num_envs, steps = self.true_reward.shape
        draws = self.rng.uniform(3, end - begin, 2, dtype=torch.float64)
        copy, start, answer = draws.unbind(1)  # [S, Q, 2]
        start = pick(start, steps - config.segment_steps + 1)
        first = torch.arange(seeds, device=start.device).view(-1, 1, 1) * num_envs
        which = pick(copy, num_envs) + first
        index = (which * steps + start).unsqueeze(-1) + torch.arange(
            config.segment_steps, device=start.device
        )  # [S, Q, 2, L]

        def cut(x: Tensor) -> Tensor:
            return x.flatten(0, 2)[index]

        last = cut(self.last).long()
        inside = last.cumsum(-1) - last == 0
        limit = (cut(self.truncated) & inside).long()
        # A segment that the time limit cut is no worse for it: the other one is shown for as long.
        inside = (inside & (limit.cumsum(-1) == limit).flip(2)).float()
        returns = (cut(self.true_reward) * inside).sum(-1)
        right = 0.5 + 0.5 * (returns[..., 0] - returns[..., 1]).sign()
        self.answers[:, begin:end] = torch.where(
            answer[..., 1] < config.rater_noise, 1 - right, right
        )
        self.segments[:, begin:end], self.inside[:, begin:end] = cut(self.inputs), inside
        self.model.norm.update(self.inputs[..., : self.model.encoder.features].flatten(1, 2))
        self.asked.fill_(end)

    def _fit(self) -> None:
        """Bradley–Terry: the log-odds of an answer are the difference of the two segments' summed rewards."""
        config, parameters = self.config, list(self.model.parameters())
        asked = int(self.asked[0])
        shape = config.reward_updates, config.reward_models, config.reward_batch
        for draws in self.rng.uniform(*shape, dtype=torch.float64).unbind(1):
            loss = torch.zeros_like(self.agreement)
            for net, draw in zip(self.model.nets, draws.unbind(1), strict=True):
                index = pick(draw, asked)
                segments, inside, answers = (
                    rows_within(x, index) for x in (self.segments, self.inside, self.answers)
                )
                reward = net(self.model.normalised(segments.flatten(1, 3))).view_as(inside) * inside
                totals = reward.sum(-1)
                odds = totals[..., 0] - totals[..., 1]
                loss = loss + nn.functional.binary_cross_entropy_with_logits(
                    odds, answers, reduction="none"
                ).mean(1)
                mean = reward.sum((1, 2, 3), keepdim=True) / inside.sum((1, 2, 3), keepdim=True)
                loss = loss + config.reward_decay * ((reward - mean) * inside).square().sum(
                    (2, 3)
                ).mean(1)
            descend(loss, parameters, self.optimizer)
        with torch.no_grad():
            self.size.copy_(self.model(self.inputs.flatten(1, 2)).abs().mean(1).clamp(min=1e-6))
        self.agreement = 0.5 + 0.5 * (odds.detach().sign() * (2 * answers - 1)).mean(1)
