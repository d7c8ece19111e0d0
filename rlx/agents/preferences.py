"""Learning from preferences (Christiano et al. 2017, arXiv:1706.03741).

A rater compares pairs of short segments, a model of the reward is fitted to the answers, and PPO
maximises that model. The environment's own reward reaches nobody but the rater.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from rlx.actor_critic import ActorCritic
from rlx.agent import Agent, Carry, Part, Spec, Transition
from rlx.agents.ppo import PPO, LearnerConfig
from rlx.config import Count, NonNegative, PerSeed, Positive, Range, at_least
from rlx.nn.buffers import add_buffers
from rlx.nn.encoders import ObsEncoder, check_no_image
from rlx.nn.networks import MLP, RunningNorm
from rlx.nn.optim import Adam, descend
from rlx.nn.rng import Streams, pick
from rlx.nn.seed_axis import along, rows_within


@dataclass(frozen=True)
class Config(LearnerConfig):
    """PPO's settings, and how its reward is learnt."""

    retired: ClassVar[tuple[str, ...]] = ("conv",)
    """A key that changed nothing, of older runs."""

    queries: Count
    """Comparisons that the rater answers in all."""
    first_queries: Count
    """Comparisons in the first round, about random play; a quarter of all in the paper."""
    queries_per_round: Count
    """Comparisons in each of the other rounds."""
    round_steps: Count
    """Steps of every env copy between two rounds of queries, which are about these steps."""
    segment_steps: Count
    """Length of a segment; one that an episode's end cuts short is shorter."""
    rater_noise: PerSeed[Annotated[float, Range(0, 0.5)]]
    """Share of the answers that are wrong; at 0.5 they say nothing."""
    reward_models: Count
    """Reward networks, fitted apart to other draws of the answers.

    The reward is the mean of all, each in its own unit (section 2.2.3).
    """
    reward_hidden: list[Count]
    """Units of each hidden layer of a reward network."""
    reward_learning_rate: PerSeed[Positive]
    """Step size of the reward networks' optimiser."""
    reward_decay: PerSeed[NonNegative]
    """Weight, in the loss, of the rewards' squared distance from their mean, summed over segments.

    Of rewards that explain the answers alike it prefers the even ones. It does not see a constant,
    of which answers about segments as long as each other say nothing.
    """
    reward_updates: Count
    """Minibatches of answers per round."""
    reward_batch: Count
    """Answers in a minibatch of one seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.round_steps, self.segment_steps, "agent.round_steps")


class RewardModel(nn.Module):
    """Rewards [S, B, M] of observations [S, B, *O] and actions, by M networks.

    It is called with their `inputs` [S, B, F], which is also what segments are kept as.
    """

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        self.encoder = ObsEncoder(spec.observation_space, seeds)
        self.norm = RunningNorm(self.encoder.features, seeds)
        discrete = isinstance(spec.action_space, spaces.Discrete)
        self.choices = spec.actions if discrete else 0
        """Number of discrete actions; 0: actions are continuous."""
        actions = self.choices or int((spec.action_space.shape or (1,))[0])
        self.features = self.encoder.features + actions
        self.nets = nn.ModuleList(
            MLP(self.features, config.reward_hidden, 1, Streams(seeds, f"reward{i}"))
            for i in range(config.reward_models)
        )

    def inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the reward is a function of, [S, B, F]."""
        if self.choices:
            action = nn.functional.one_hot(action, self.choices).float()
        return torch.cat([self.encoder(obs), action], -1)

    def normalised(self, inputs: Tensor) -> Tensor:
        """What the networks see of inputs [S, B, F]."""
        features = self.encoder.features
        return torch.cat([self.norm(inputs[..., :features]), inputs[..., features:]], -1)

    def forward(self, inputs: Tensor) -> Tensor:
        normalised = self.normalised(inputs)
        return torch.cat([net(normalised) for net in self.nets], -1)


class PreferencePPO(Agent):
    """PPO that learns from the reward model all along.

    Every `round_steps` steps the rater is asked, and the model fitted to all answers so far.
    """

    config_type = Config
    policy_type = ActorCritic
    actions = PPO.actions
    keeps_newest = True

    policy: ActorCritic
    inputs: Tensor
    """[S, N, T, F]: the reward model's, of every step of this round."""
    true_reward: Tensor
    """[S, N, T]: the environment's, for the rater alone."""
    last: Tensor
    """bool [S, N, T]: an episode's last step."""
    truncated: Tensor
    """bool [S, N, T]: a step behind which the time limit cut the episode."""
    segments: Tensor
    """[S, Q, 2, L, F]: the reward model's inputs of the pairs that were asked about."""
    inside: Tensor
    """[S, Q, 2, L]: 1 for the steps of a segment, 0 behind its episode's end."""
    answers: Tensor
    """[S, Q]: 1: the first segment is preferred; 0: the second; 0.5: neither."""
    asked: Tensor
    """int64 [S]: queries answered."""
    ticks: Tensor
    """int64 [S]: vector steps made, on the CPU."""
    agreement: Tensor
    """[S]: share of the last minibatch's answers that the last network agrees with."""
    size: Tensor
    """[S, M]: mean absolute reward of the last round's steps by each network.

    Answers say nothing of the unit of reward; infinite before the first answers.
    """

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        check_no_image(spec.observation_space, "PreferencePPO")
        self.config = config
        self.ppo = PPO(config, spec, seeds, num_envs)
        self.policy = self.ppo.policy
        self.model = RewardModel(config, spec, seeds)
        self.optimizer = Adam(list(self.model.parameters()), config.reward_learning_rate)
        self.rng = Streams(seeds, "queries")
        features = self.model.features
        flag = ((), torch.bool)
        number = ((), torch.float32)
        round_fields = {
            "inputs": ((features,), torch.float32),
            "true_reward": number,
            "last": flag,
            "truncated": flag,
        }
        setting = f"agent.round_steps={config.round_steps}"
        steps = (len(seeds), num_envs, config.round_steps)
        add_buffers(self, steps, round_fields, seeds.device, setting)
        pair = (2, config.segment_steps)
        query_fields = {
            "segments": ((*pair, features), torch.float32),
            "inside": (pair, torch.float32),
            "answers": number,
        }
        queries = (len(seeds), config.queries)
        add_buffers(self, queries, query_fields, seeds.device, f"agent.queries={config.queries}")
        self.register_buffer("agreement", torch.zeros(len(seeds), device=seeds.device))
        # Before the first answers no step is worth anything.
        infinite = torch.full((len(seeds), config.reward_models), torch.inf, device=seeds.device)
        self.register_buffer("size", infinite)
        self.register_buffer("asked", torch.zeros_like(seeds))
        # On the CPU: read without a sync.
        self.register_buffer("ticks", torch.zeros(len(seeds), dtype=torch.int64))

    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.ppo.act(obs, first, carry)

    @torch.no_grad()
    def store(self, transition: Transition) -> None:
        inputs = self.model.inputs(transition.obs, transition.action)
        learnt_reward = (self.model(inputs) / self.size.unsqueeze(1)).mean(-1)
        row = {
            "inputs": inputs,
            "true_reward": transition.reward,
            "last": transition.terminated | transition.truncated,
            "truncated": transition.truncated,
        }
        step = self.ppo.step_of(self.config.round_steps)
        for name, value in row.items():
            getattr(self, name).index_copy_(2, step, value.unsqueeze(2))
        self.ppo.store(replace(transition, reward=learnt_reward))

    def due(self) -> list[Part]:
        config = self.config
        self.ticks += 1
        rounds, steps = divmod(int(self.ticks[0]), config.round_steps)
        parts: list[Part] = []
        queries = 0 if steps else self._queries(rounds) - self._queries(rounds - 1)
        if queries:
            parts.append(lambda: self._query_rater(queries))
            parts += [self.fit] * config.reward_updates
            parts.append(self.measure)
        learning = self.ppo.due()
        if learning:
            parts += [*learning, self.report]
        return parts

    def _queries(self, rounds: int) -> int:
        """How many queries are answered after so many rounds."""
        if rounds == 0:
            return 0
        config = self.config
        return min(config.first_queries + (rounds - 1) * config.queries_per_round, config.queries)

    @torch.no_grad()
    def _query_rater(self, queries: int) -> dict[str, Tensor]:
        """Cut so many random pairs of segments out of this round, and have them rated."""
        draws = self.rng.uniform(3, queries, 2, dtype=torch.float64)
        env_draw, start_draw, answer_draw = draws.unbind(1)  # [S, Q, 2] each
        index = self._segment_index(env_draw, start_draw)
        last = self.last.flatten(0, 2)[index].long()
        truncated = self.truncated.flatten(0, 2)[index]
        inside = _same_episode(last, truncated).to(self.inside.dtype)
        rewards = self.true_reward.flatten(0, 2)[index]
        returns = (rewards * inside).sum(-1)
        answer = 0.5 + 0.5 * (returns[..., 0] - returns[..., 1]).sign()
        mistaken = answer_draw[..., 1] < along(self.config.rater_noise, answer)
        place = self.asked[:1] + torch.arange(queries, device=draws.device)
        self.answers.index_copy_(1, place, torch.where(mistaken, 1 - answer, answer))
        self.segments.index_copy_(1, place, self.inputs.flatten(0, 2)[index])
        self.inside.index_copy_(1, place, inside)
        self.model.norm.update(self.inputs[..., : self.model.encoder.features].flatten(1, 2))
        self.asked += queries
        return {}

    def _segment_index(self, env_draw: Tensor, start_draw: Tensor) -> Tensor:
        """The steps of random segments, [S, Q, 2, L], in this round's [S · N · T], by draws."""
        seeds, num_envs, steps = self.true_reward.shape
        length = self.config.segment_steps
        device = env_draw.device
        start = pick(start_draw, steps - length + 1)
        first_env = torch.arange(seeds, device=device).view(-1, 1, 1) * num_envs
        env = pick(env_draw, num_envs) + first_env
        return (env * steps + start).unsqueeze(-1) + torch.arange(length, device=device)

    def fit(self) -> dict[str, Tensor]:
        """Let the reward models learn from a minibatch each of all answers so far."""
        config = self.config
        draws = self.rng.uniform(config.reward_models, config.reward_batch, dtype=torch.float64)
        loss = torch.zeros_like(self.agreement)
        for net, draw in zip(self.model.nets, draws.unbind(1), strict=True):
            index = pick(draw, self.asked.unsqueeze(1))
            answers = rows_within(self.answers, index)
            log_odds, unevenness = self._compare(net, index)
            loss = loss + bce(log_odds, answers, reduction="none").mean(1)
            loss = loss + config.reward_decay * unevenness.mean(1)
        descend(loss, list(self.model.parameters()), self.optimizer)
        self.agreement = 0.5 + 0.5 * (log_odds.detach().sign() * (2 * answers - 1)).mean(1)
        return {}

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Measure how large the networks' rewards are now."""
        self.size.copy_(self.model(self.inputs.flatten(1, 2)).abs().mean(1).clamp(min=1e-6))
        return {}

    def report(self) -> dict[str, Tensor]:
        """What the answers came to; metrics [S]."""
        queries = self.asked.to(self.agreement.dtype)
        return {"preference/queries": queries, "preference/agreement": self.agreement}

    def _compare(self, net: nn.Module, index: Tensor) -> tuple[Tensor, Tensor]:
        """What `net` says of the queries at `index` [S, B]: (log-odds, unevenness), [S, B] each.

        The log-odds that the first segment is preferred are, by Bradley–Terry, the difference of
        the two segments' summed rewards. Unevenness is the squared distance of their rewards from
        the minibatch's mean, summed over the steps of both.
        """
        segments = rows_within(self.segments, index)
        inside = rows_within(self.inside, index)
        reward = net(self.model.normalised(segments.flatten(1, 3))).view_as(inside) * inside
        totals = reward.sum(-1)
        log_odds = totals[..., 0] - totals[..., 1]
        mean = reward.sum((1, 2, 3), keepdim=True) / inside.sum((1, 2, 3), keepdim=True)
        return log_odds, ((reward - mean) * inside).square().sum((2, 3))


def _same_episode(last: Tensor, truncated: Tensor) -> Tensor:
    """bool [S, Q, 2, L]: the steps of each segment that belong to its first step's episode.

    A segment that the time limit cut is no worse for it: the other one of its pair is shown for as
    long.
    """
    inside = last.cumsum(-1) - last == 0
    limit = (truncated & inside).long()
    until_limit = limit.cumsum(-1) == limit
    return inside & until_limit.flip(2)
