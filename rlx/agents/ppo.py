"""PPO (Schulman et al. 2017, arXiv:1707.06347) with generalised advantages (Schulman et al. 2016); with one epoch over one whole
minibatch it is A2C (Huang et al. 2022, arXiv:2205.09123), which is how `agent=a2c` is made. Discrete and Box actions; `recurrent`
gives it a memory of the episode."""

import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, NonNegative, Positive, Share, choice
from rlx.errors import ConfigError
from rlx.nn.encoders import check_conv, is_image, make_encoder, obs_field
from rlx.nn.networks import MLP, RunningNorm, SeedGRU, scale_for_relu
from rlx.nn.optim import OPTIMIZERS, descend
from rlx.nn.rng import Streams, categorical
from rlx.nn.seed_axis import rows_at
from rlx.replay import add_buffers

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu_}


@dataclass(frozen=True)
class LearnerConfig:
    """Networks, rollouts and losses. What is said to fall does so linearly over `anneal_steps`."""

    hidden: list[Count]
    """Units of each hidden layer, of the actor and of the critic."""
    activation: str
    recurrent: Count | None
    """Units of a GRU before both, or null."""
    rollout_steps: Count
    """Steps of every env copy between two updates."""
    epochs: Count
    minibatches: Count
    """Per epoch; whole copies when recurrent."""
    discount: Share
    gae_lambda: Share
    clip: Positive | None
    """Of the ratio of probabilities; falls to 0 with the learning rate. null: the plain policy gradient."""
    value_coefficient: NonNegative
    entropy_coefficient: NonNegative
    max_grad_norm: Positive | None
    """Bound on each seed's gradient norm."""
    optimizer: str
    learning_rate: Positive
    learning_rate_end: NonNegative
    anneal_steps: Count
    """Environment steps of a seed."""
    normalise_advantage: bool
    normalise_obs: bool
    """By mean and variance of what was seen, images aside; part of the policy, fixed within a rollout."""
    normalise_reward: bool
    """By the deviation of the discounted return."""
    initial_std: Positive
    """Of continuous actions, in halves of the action space's range."""

    def __post_init__(self) -> None:
        choice(self.activation, ACTIVATIONS, "agent.activation")
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")


@dataclass(frozen=True)
class Config(LearnerConfig):
    """As said, and layers for images."""

    conv: list[list[int]]
    """For observations that are images [C, H, W]: channels, kernel and stride of each layer before
    actor and critic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conv(self.conv)


class ActorCritic(Policy):
    """Acts by its most probable action: the largest logit, or the mean of a normal distribution."""

    low: Tensor
    high: Tensor

    def __init__(self, config: LearnerConfig, spec: Spec, seeds: Tensor):
        super().__init__()
        space = spec.action_space
        self.continuous = isinstance(space, spaces.Box)
        self.units = config.recurrent
        shown, rng = spec.observation_space, Streams(seeds, "encoder")
        conv = config.conv if isinstance(config, Config) else []
        self.encoder = make_encoder(shown, conv, seeds, rng)
        scale_for_relu(self.encoder)
        features = self.encoder.features
        self.norm = (
            RunningNorm(features, seeds)
            if config.normalise_obs and not is_image(spec.observation_space.shape)
            else None
        )
        if self.units is not None:
            self.gru = SeedGRU(features, self.units, Streams(seeds, "memory"))
        inputs, activation = self.units or features, ACTIVATIONS[config.activation]
        outputs = int(math.prod(space.shape or ())) if self.continuous else spec.actions
        self.actor = MLP(inputs, config.hidden, outputs, Streams(seeds, "actor"), activation)
        self.critic = MLP(inputs, config.hidden, 1, Streams(seeds, "critic"), activation)
        with torch.no_grad():
            for parameter in self.actor.layers[-1].parameters():
                parameter.mul_(0.01)  # begin with all actions about equally likely
        if isinstance(space, spaces.Box):
            if len(space.shape) != 1 or not space.is_bounded():
                raise ConfigError(
                    f"agent: needs bounded Box actions of one axis; this env has {space}."
                )
            self.log_std = nn.Parameter(
                torch.full(
                    (len(seeds), 1, outputs), math.log(config.initial_std), device=seeds.device
                )
            )
            for name in ("low", "high"):
                bound = torch.as_tensor(getattr(space, name), device=seeds.device)
                self.register_buffer(name, bound.expand(len(seeds), 1, -1).contiguous())

    def initial_carry(self, batch: int) -> Carry:
        some = next(self.parameters())
        return (
            {"memory": torch.zeros(len(some), batch, self.units, device=some.device)}
            if self.units
            else {}
        )

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        before = self.restarted(first, carry)
        after = dict(before)

        def scores(seen: Tensor) -> Tensor:
            core, memory = self.core(seen, before)
            after.update(
                memory
            )  # what is remembered is what the decision was taken on, perturbed or not
            return self.outputs(core)

        bounds = (self.low, self.high) if self.continuous else None
        action = choose("action", obs, Scores(scores, bounds), torch.ones_like(first))
        return action, {name: value.detach() for name, value in after.items()}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.outputs(self.core(obs, carry)[0])

    def restarted(self, first: Tensor, carry: Carry) -> Carry:
        """`carry` with a fresh memory where `first` [S, B]."""
        return {name: torch.where(first.unsqueeze(-1), 0.0, value) for name, value in carry.items()}

    def core(self, obs: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """What actor and critic see [S, B, F] of `obs` [S, B, *O], and the memory after it."""
        features = self.encoder(obs)
        if self.norm is not None:
            features = self.norm(features)
        if not self.units:
            return features, {}
        memory = self.gru(features, carry["memory"])
        return memory, {"memory": memory}

    def outputs(self, core: Tensor) -> Tensor:
        """Logits [S, B, A], or mean actions [S, B, D] in the space's units."""
        out = self.actor(core)
        return (
            (self.low + self.high) / 2 + out * (self.high - self.low) / 2
            if self.continuous
            else out
        )

    def std(self) -> Tensor:
        """Of continuous actions in the space's units, [S, 1, D]."""
        return self.log_std.exp() * (self.high - self.low) / 2

    def log_prob(self, out: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability of `action`, entropy), [S, B] each, under `outputs`."""
        if self.continuous:
            std = self.std()
            log = -0.5 * ((action - out) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
            entropy = (
                (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).expand(log.shape[:2])
            )
            return log.sum(-1), entropy
        log = out.log_softmax(-1)
        return log.gather(-1, action.unsqueeze(-1)).squeeze(-1), -(log.exp() * log).sum(-1)


class PPO(Agent):
    """Rollouts of all copies, then epochs of minibatches over them."""

    config_type = Config
    policy_type = ActorCritic
    actions = (spaces.Discrete, spaces.Box)

    policy: ActorCritic
    steps: Tensor
    ticks: Tensor
    running_return: Tensor
    new_episode: Tensor
    obs: Tensor
    next_obs: Tensor
    action: Tensor
    reward: Tensor
    first: Tensor
    terminated: Tensor
    truncated: Tensor
    memory: Tensor
    next_memory: Tensor

    def __init__(self, config: LearnerConfig, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.policy = ActorCritic(config, spec, seeds)
        self.optimizer = OPTIMIZERS[config.optimizer](
            list(self.policy.parameters()), config.learning_rate
        )
        self.explore, self.shuffle = Streams(seeds, "explore"), Streams(seeds, "minibatch")
        self.reward_norm = RunningNorm(1, seeds)
        if (num_envs if config.recurrent else num_envs * config.rollout_steps) % config.minibatches:
            what = (
                f"num_envs={num_envs}"
                if config.recurrent
                else f"num_envs={num_envs} times agent.rollout_steps={config.rollout_steps}"
            )
            raise ConfigError(f"agent.minibatches={config.minibatches}: does not divide {what}.")
        if config.normalise_advantage and num_envs * config.rollout_steps < 2 * config.minibatches:
            raise ConfigError(
                f"agent.minibatches={config.minibatches}: leaves one row each, whose advantage cannot be normalised."
            )
        self.register_buffer("steps", torch.zeros_like(seeds))
        self.register_buffer(
            "ticks", torch.zeros(len(seeds), dtype=torch.int64)
        )  # on the CPU: read without a sync
        self.register_buffer(
            "running_return", torch.zeros(len(seeds), num_envs, device=seeds.device)
        )
        shape, dtype = obs_field(spec.observation_space)
        flags = ((), torch.bool)
        action: tuple = (
            (spec.action_space.shape, torch.float32)
            if self.policy.continuous
            else ((), torch.int64)
        )
        fields = {
            "obs": (shape, dtype),
            "next_obs": (shape, dtype),
            "action": action,
            "reward": ((), torch.float32),
        }
        fields |= {"first": flags, "terminated": flags, "truncated": flags}
        if config.recurrent:
            fields |= {
                "memory": ((config.recurrent,), torch.float32),
                "next_memory": ((config.recurrent,), torch.float32),
            }
        self.fields = tuple(fields)
        rollout = (len(seeds), num_envs, config.rollout_steps)
        setting = f"agent.rollout_steps={config.rollout_steps}"
        add_buffers(self, rollout, fields, seeds.device, setting)
        self.register_buffer(
            "new_episode", torch.ones(len(seeds), num_envs, dtype=torch.bool, device=seeds.device)
        )
        self.before: Carry = {}

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        self.before = self.policy.restarted(first, carry)
        return self.policy.act(obs, first, carry, self._sample)

    def _sample(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        out = scores(obs)
        if scores.continuous:
            draws = self.explore.uniform(*out.shape[1:]).clamp(1e-6, 1 - 1e-6)
            return out + self.policy.std() * torch.erfinv(draws * 2 - 1) * math.sqrt(2)
        return categorical(self.explore.uniform(out.shape[1]), out.softmax(-1))

    def update(self, transition: Transition) -> dict[str, Tensor]:
        t, place = transition, int(self.ticks[0]) % self.config.rollout_steps
        rows = {
            "obs": t.obs,
            "next_obs": t.next_obs,
            "action": t.action,
            "reward": t.reward,
            "first": self.new_episode,
        }
        rows |= {"terminated": t.terminated, "truncated": t.truncated}
        if self.config.recurrent:
            rows |= {"memory": self.before["memory"], "next_memory": t.carry["memory"]}
        for name, row in rows.items():
            getattr(self, name)[:, :, place] = row
        self.new_episode = t.terminated | t.truncated
        self.ticks += 1
        self.steps += t.reward.shape[1]
        return self._learn() if place == self.config.rollout_steps - 1 else {}

    def _learn(self) -> dict[str, Tensor]:
        config = self.config
        left = 1 - (self.steps / config.anneal_steps).clamp(max=1)
        self.optimizer.learning_rate = (
            config.learning_rate_end + (config.learning_rate - config.learning_rate_end) * left
        )
        with torch.no_grad():
            advantage, value, log_prob = self._compute_gae()
        batch: dict[str, Tensor] = {
            name: getattr(self, name)
            for name in ("obs", "action", "first", "memory")
            if name in self.fields
        }
        batch |= {"advantage": advantage, "target": advantage + value, "log_prob": log_prob}
        if not config.recurrent:
            batch = {
                name: x.flatten(1, 2) for name, x in batch.items()
            }  # [S, N · T, …]: the order of steps does not matter
        seeds, rows = batch["target"].shape[:2]
        order = (
            self.shuffle.uniform(config.epochs, rows).argsort(-1)
            + torch.arange(seeds, device=left.device).view(-1, 1, 1) * rows
        )
        batch = {name: x.flatten(0, 1) for name, x in batch.items()}
        for index in order.flatten(1).chunk(config.epochs * config.minibatches, 1):
            some = {name: rows_at(x, index) for name, x in batch.items()}
            metrics = self._step(some, left * config.clip if config.clip is not None else None)
        if self.policy.norm is not None:
            self.policy.norm.update(self.policy.encoder(self.obs.flatten(1, 2)))
        return metrics

    def _compute_gae(self) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, values, log-probabilities of the actions taken), [S, N, T] each."""
        config, shape = self.config, self.reward.shape
        carry = {"memory": self.memory.flatten(1, 2)} if config.recurrent else {}
        next_carry = {"memory": self.next_memory.flatten(1, 2)} if config.recurrent else {}
        core, _ = self.policy.core(self.obs.flatten(1, 2), carry)
        log_prob, _ = self.policy.log_prob(self.policy.outputs(core), self.action.flatten(1, 2))
        value = self.policy.critic(core).view(shape)
        next_value = self.policy.critic(
            self.policy.core(self.next_obs.flatten(1, 2), next_carry)[0]
        ).view(shape)
        reward, ended = self._reward(), self.terminated | self.truncated
        delta = reward + config.discount * next_value * ~self.terminated - value
        running, decay, rows = (
            torch.zeros_like(delta[..., 0]),
            config.discount * config.gae_lambda * ~ended,
            [],
        )
        for now, kept in zip(reversed(delta.unbind(-1)), reversed(decay.unbind(-1)), strict=True):
            running = now + kept * running
            rows.append(running)
        advantage = torch.stack(rows[::-1], -1)
        return advantage, value, log_prob.view(shape)

    def _reward(self) -> Tensor:
        """The rollout's rewards [S, N, T], normalised if asked for."""
        if not self.config.normalise_reward:
            return self.reward
        returns = torch.zeros_like(self.reward)
        for t in range(self.reward.shape[2]):
            self.running_return = self.running_return * self.config.discount + self.reward[..., t]
            returns[..., t] = self.running_return
            self.running_return = self.running_return * ~(self.terminated | self.truncated)[..., t]
        self.reward_norm.update(returns.flatten(1).unsqueeze(-1))
        return (self.reward * (self.reward_norm.variance + 1e-8).rsqrt()).clamp(-10, 10)

    def _step(self, batch: dict[str, Tensor], clip: Tensor | None) -> dict[str, Tensor]:
        """One gradient step on a minibatch [S, B, …] (recurrent: [S, B copies, T, …])."""
        config, policy = self.config, self.policy
        out, value = self._evaluate_actions(batch)
        log_prob, entropy = policy.log_prob(
            out, batch["action"].flatten(1, 2) if config.recurrent else batch["action"]
        )
        flat = {name: batch[name].flatten(1) for name in ("advantage", "target", "log_prob")}
        advantage = flat["advantage"]
        if config.normalise_advantage:
            advantage = (advantage - advantage.mean(1, keepdim=True)) / (
                advantage.std(1, keepdim=True) + 1e-8
            )
        gain = (
            log_prob - flat["log_prob"]
        ).exp() * advantage  # the ratio of probabilities times the advantage …
        if clip is not None:  # … and no more than at the ratio's bound
            gain = torch.minimum(gain, advantage + clip.unsqueeze(1) * advantage.abs())
        policy_loss, value_loss = (
            -gain.mean(1),
            (value - flat["target"]).square().mean(1),
        )  # [S]: mean within, sum over seeds
        loss = (
            policy_loss
            + config.value_coefficient * value_loss
            - config.entropy_coefficient * entropy.mean(1)
        )
        descend(
            loss,
            list(policy.parameters()),
            self.optimizer,
            max_grad_norm=config.max_grad_norm,
        )
        return {
            "loss/policy": policy_loss.detach(),
            "loss/value": value_loss.detach(),
            "entropy": entropy.detach().mean(1),
        }

    def _evaluate_actions(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(outputs [S, B, A], values [S, B]) of a minibatch with today's weights; recurrent: B = copies · T, through time."""
        policy = self.policy
        if not self.config.recurrent:
            core, _ = policy.core(batch["obs"], {})
        else:
            carry, cores = {"memory": batch["memory"][:, :, 0]}, []
            for t in range(batch["obs"].shape[2]):
                if t:
                    carry = policy.restarted(batch["first"][:, :, t], carry)
                one, carry = policy.core(batch["obs"][:, :, t], carry)
                cores.append(one)
            core = torch.stack(cores, 2).flatten(1, 2)
        return policy.outputs(core), policy.critic(core).squeeze(-1)
