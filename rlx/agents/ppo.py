"""PPO (Schulman et al. 2017, arXiv:1707.06347) with generalised advantages (Schulman et al. 2016).

With one epoch over one whole minibatch it is A2C (Huang et al. 2022, arXiv:2205.09123), which is
how `agent=a2c` is made. Actions are discrete or of a Box; `recurrent` gives it a memory of the
episode.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import pad

from rlx.actor_critic import ActorCritic, NetworkConfig
from rlx.agent import Agent, Carry, Part, Scores, Spec, Transition
from rlx.config import Count, NonNegative, PerSeed, Positive, Share, choice
from rlx.defence import Decisions, Defence, Guard, Surrogate
from rlx.defences.atla import ATLA
from rlx.errors import ConfigError
from rlx.nn.buffers import Fields, add_buffers
from rlx.nn.encoders import check_conv, obs_field
from rlx.nn.networks import RunningNorm
from rlx.nn.optim import OPTIMIZERS, descend
from rlx.nn.rng import Streams, categorical, stream_key
from rlx.nn.seed_axis import along, rows_at
from rlx.threat import Budget


@dataclass(frozen=True)
class LearnerConfig(NetworkConfig):
    """Networks, rollouts and losses."""

    rollout_steps: Count
    """Steps of every env copy between two updates."""
    epochs: Count
    """Passes over a rollout."""
    minibatches: Count
    """Minibatches in an epoch; a recurrent network's consist of whole env copies."""
    discount: PerSeed[Share]
    """Factor by which a reward one step later is worth less."""
    gae_lambda: PerSeed[Share]
    """Decay λ of generalised advantages: 0 trusts the critic, 1 the rewards."""
    clip: PerSeed[Positive] | None
    """Bound on how far the ratio of new to old probabilities counts from 1.

    It falls linearly to 0 over `anneal_steps`. null: the plain policy gradient.
    """
    value_coefficient: PerSeed[NonNegative]
    """Weight of the critic's squared error in the loss."""
    entropy_coefficient: PerSeed[NonNegative]
    """Weight of the policy's entropy, which the loss rewards."""
    max_grad_norm: PerSeed[Positive] | None
    """Bound on the norm of each seed's gradient; null: none."""
    optimizer: str
    """`adam` or `rmsprop`."""
    learning_rate: PerSeed[Positive]
    """Step size of the optimiser at the beginning."""
    learning_rate_end: PerSeed[NonNegative]
    """Step size after `anneal_steps`; between the two it falls linearly."""
    anneal_steps: PerSeed[Count]
    """Environment steps of a seed over which learning rate and clip fall."""
    normalise_advantage: bool
    """Give the advantages of each minibatch mean 0 and deviation 1."""
    normalise_reward: bool
    """Divide rewards by the deviation of the discounted return."""
    # With a default, for runs that were saved before there was this key.
    defence: Defence | None = field(default=None, kw_only=True)
    """What is done against observations that may be moved, as in conf/defence; null: nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")


@dataclass(frozen=True)
class Config(LearnerConfig):
    """A learner's settings and its layers for images."""

    conv: list[list[int]]
    """Channels, kernel and stride of each layer before actor and critic, where observations are
    images [C, H, W]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conv(self.conv)

    def conv_layers(self) -> list[list[int]]:
        return self.conv


class PPO(Agent):
    """Rollouts of all env copies, then epochs of minibatches over them."""

    config_type = Config
    policy_type = ActorCritic
    actions = (spaces.Discrete, spaces.Box)

    is_defended: ClassVar[bool] = True
    """Whether `config.defence` is its own."""

    policy: ActorCritic
    steps: Tensor
    """int64 [S]: environment steps of each seed so far."""
    ticks: Tensor
    """int64 [S]: vector steps so far, on the CPU."""
    running_return: Tensor
    """[S, N]: discounted return of each running episode so far, to normalise rewards by."""
    new_episode: Tensor
    """bool [S, N]: whether the next step is an episode's first."""
    obs: Tensor
    """[S, N, T, *O]: observations of the rollout, as all that follows here."""
    next_obs: Tensor
    """[S, N, T, *O]: where each step led, before any autoreset."""
    action: Tensor
    """int64 [S, N, T] or float [S, N, T, D]: actions taken."""
    reward: Tensor
    """[S, N, T]: rewards of the env."""
    first: Tensor
    """bool [S, N, T]: whether a step is an episode's first."""
    terminated: Tensor
    """bool [S, N, T]: whether a step led to a terminal state."""
    truncated: Tensor
    """bool [S, N, T]: whether an episode was cut behind a step."""
    memory: Tensor
    """[S, N, T, H]: memory of a recurrent network before each step."""
    next_memory: Tensor
    """[S, N, T, H]: memory of a recurrent network after each step."""
    advantage: Tensor
    """[S, N, T]: advantages of the actions of a full rollout."""
    target: Tensor
    """[S, N, T]: what the critic is to learn of a full rollout."""
    log_prob: Tensor
    """[S, N, T]: log-probabilities of the actions, by the weights that acted."""
    order: Tensor
    """int64 [S, epochs, R]: a full rollout's rows, shuffled, among those of all S seeds."""
    turn: Tensor
    """int64 [S]: minibatches that the full rollout was learnt from already."""
    clip: Tensor
    """[S]: `config.clip`, annealed."""

    def __init__(self, config: LearnerConfig, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        check_minibatches(config, num_envs)
        self.config = config
        self.policy = ActorCritic(config, spec, seeds)
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(list(self.policy.parameters()), config.learning_rate)
        self.explore = Streams(seeds, "explore")
        self.shuffle = Streams(seeds, "minibatch")
        self.reward_norm = RunningNorm(1, seeds)
        self.register_buffer("steps", torch.zeros_like(seeds))
        # On the CPU: read without a sync.
        self.register_buffer("ticks", torch.zeros(len(seeds), dtype=torch.int64))
        running_return = torch.zeros(len(seeds), num_envs, device=seeds.device)
        self.register_buffer("running_return", running_return)
        self.guard: Guard | None = None
        defence = config.defence if self.is_defended else None
        if defence is not None:
            self.guard = Guard(defence, spec, seeds, "action", are_values=False)
            if config.recurrent:
                raise ConfigError("agent.defence: needs agent.recurrent=null, no memory.")
        self.adversary: Adversary | None = None
        if isinstance(defence, ATLA):
            self.adversary = Adversary(config, spec, seeds, num_envs)
        self.seen: Tensor | None = None
        """[S, N, *O]: what the step that is taken was decided on, where a defence moved it."""
        fields = self._fields(spec)
        self.fields = tuple(fields)
        rollout = (len(seeds), num_envs, config.rollout_steps)
        setting = f"agent.rollout_steps={config.rollout_steps}"
        add_buffers(self, rollout, fields, seeds.device, setting)
        self._add_minibatches(len(seeds), num_envs, seeds.device)
        new_episode = torch.ones(len(seeds), num_envs, dtype=torch.bool, device=seeds.device)
        self.register_buffer("new_episode", new_episode)
        self.carry_before_act: Carry = {}
        """The policy's memory at the step that is taken, restarted where an episode begins."""

    def _add_minibatches(self, seeds: int, num_envs: int, device: torch.device) -> None:
        """Register what only minibatches need; no checkpoint holds it."""
        config = self.config
        rows = num_envs if config.recurrent else num_envs * config.rollout_steps
        step = (seeds, num_envs, config.rollout_steps)
        scratch = {
            "advantage": torch.zeros(step, device=device),
            "target": torch.zeros(step, device=device),
            "log_prob": torch.zeros(step, device=device),
            "order": torch.zeros(seeds, config.epochs, rows, dtype=torch.int64, device=device),
            "turn": torch.zeros(seeds, dtype=torch.int64, device=device),
            "clip": torch.zeros(seeds, device=device),
        }
        for name, value in scratch.items():
            self.register_buffer(name, value, persistent=False)
        self.learnt_from = ["obs", "action", "advantage", "target", "log_prob"]
        if config.recurrent:
            self.learnt_from += ["first", "memory"]

    def _fields(self, spec: Spec) -> Fields:
        """What is stored of every step of a rollout."""
        obs = obs_field(spec.observation_space)
        flag = ((), torch.bool)
        action: tuple[tuple[int, ...], torch.dtype] = ((), torch.int64)
        if self.policy.continuous:
            action = (spec.action_space.shape or (), torch.float32)
        fields = {
            "obs": obs,
            "next_obs": obs,
            "action": action,
            "reward": ((), torch.float32),
            "first": flag,
            "terminated": flag,
            "truncated": flag,
        }
        if self.config.recurrent:
            fields["memory"] = ((self.config.recurrent,), torch.float32)
            fields["next_memory"] = ((self.config.recurrent,), torch.float32)
        return fields

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        self.carry_before_act = self.policy.restarted(first, carry)
        return self.policy.act(obs, first, carry, self._sample)

    def _sample(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose as a `Choose` does: by chance, from the policy's distribution."""
        if self.guard is not None:
            obs = self._guarded(self.guard, scores, obs).learnt()
            if self.adversary is not None:
                obs = self.adversary.moved(obs, self.guard.budget(obs, self.steps))
            self.seen = obs
        outputs = scores(obs)
        if not scores.continuous:
            return categorical(self.explore.uniform(outputs.shape[1]), outputs.softmax(-1))
        draws = self.explore.uniform(*outputs.shape[1:]).clamp(1e-6, 1 - 1e-6)
        return outputs + self.policy.std() * torch.erfinv(draws * 2 - 1) * math.sqrt(2)

    def store(self, transition: Transition) -> None:
        row = {
            "obs": transition.obs if self.seen is None else self.seen,
            "next_obs": transition.next_obs,
            "action": transition.action,
            "reward": transition.reward,
            "first": self.new_episode,
            "terminated": transition.terminated,
            "truncated": transition.truncated,
        }
        if self.config.recurrent:
            row["memory"] = self.carry_before_act["memory"]
            row["next_memory"] = transition.carry["memory"]
        self.carry_before_act = {}
        self.seen = None
        if self.adversary is not None:
            self.adversary.store(transition)
        step = self.step_of(self.config.rollout_steps)
        for name, value in row.items():
            getattr(self, name).index_copy_(2, step, value.unsqueeze(2))
        self.new_episode = transition.terminated | transition.truncated
        self.steps += transition.reward.shape[1]

    def step_of(self, rollout_steps: int) -> Tensor:
        """int64 [1]: how many vector steps of the running rollout, of so many, are behind."""
        return (self.steps[:1] // self.new_episode.shape[1]).remainder(rollout_steps)

    def due(self) -> list[Part]:
        self.ticks += 1
        rollouts, steps = divmod(int(self.ticks[0]), self.config.rollout_steps)
        if steps:
            return []
        if self.adversary is None:
            return [self.prepare, *self.parts()]
        assert isinstance(self.config.defence, ATLA)
        turns = (rollouts - 1) // self.config.defence.rollouts
        learner = self.adversary if turns % 2 else self
        return [self.prepare, self.adversary.prepare, *learner.parts()]

    def parts(self) -> list[Part]:
        """What learns from a rollout that was prepared."""
        parts: list[Part] = [self.learn] * (self.config.epochs * self.config.minibatches)
        if self.policy.norm is not None:
            parts.append(self.update_norm)
        return parts

    @torch.no_grad()
    def prepare(self) -> dict[str, Tensor]:
        """Rate the full rollout, and shuffle its rows into minibatches."""
        config = self.config
        remaining = 1 - (self.steps / config.anneal_steps).clamp(max=1)
        self.optimizer.learning_rate = (
            config.learning_rate_end + (config.learning_rate - config.learning_rate_end) * remaining
        )
        if config.clip is not None:
            self.clip = remaining * config.clip
        values, next_values, self.log_prob = self._evaluate_rollout()
        self.advantage = compute_gae(
            self._rewards(),
            values,
            next_values,
            self.terminated,
            self.terminated | self.truncated,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
        )
        self.target = self.advantage + values
        self.order = self._shuffled()
        self.turn = torch.zeros_like(self.turn)
        return {}

    def learn(self) -> dict[str, Tensor]:
        """Learn from the rollout's next minibatch; metrics [S]."""
        # Of a recurrent network the rows are whole env copies.
        axes = 1 if self.config.recurrent else 2
        size = self.order.shape[2] // self.config.minibatches
        place = self.turn[:1] * size + torch.arange(size, device=self.turn.device)
        index = self.order.flatten(1).index_select(1, place)
        # All seeds' rows lie one behind the other, where `rows_at` picks them fastest.
        batch = {
            name: rows_at(getattr(self, name).flatten(0, axes), index) for name in self.learnt_from
        }
        self.turn += 1
        return self._learn_minibatch(batch, None if self.config.clip is None else self.clip)

    def _shuffled(self) -> Tensor:
        """int64 [S, epochs, R]: as `order`, anew; all orders are equally likely but for ties.

        R draws of 24 bits have a tie with a chance of R² / 2^25.
        """
        seeds, epochs, rows = self.order.shape
        draws = self.shuffle.uniform(epochs, rows)
        epoch = torch.arange(seeds * epochs, device=draws.device).view(seeds, epochs, 1)
        # Integers along one axis, all epochs at once: torch sorts them by radix, four times as
        # fast as rows of floats.
        keys = epoch * 2**24 + (draws * 2**24).long()
        row = keys.flatten().argsort(stable=True).view(keys.shape) % rows
        first_row = torch.arange(seeds, device=draws.device).view(-1, 1, 1) * rows
        return row + first_row

    def update_norm(self) -> dict[str, Tensor]:
        """Take the rollout's observations into the moments that observations are scaled by."""
        assert self.policy.norm is not None
        self.policy.norm.update(self.policy.encoder(self.obs.flatten(1, 2)))
        return {}

    def _evaluate_rollout(self) -> tuple[Tensor, Tensor, Tensor]:
        """(values, values of the next observations, log-probabilities of the actions taken).

        Each is [S, N, T], by the weights that acted.
        """
        policy = self.policy
        shape = self.reward.shape
        carry: Carry = {}
        next_carry: Carry = {}
        if self.config.recurrent:
            carry = {"memory": self.memory.flatten(1, 2)}
            next_carry = {"memory": self.next_memory.flatten(1, 2)}
        core, _ = policy.core(self.obs.flatten(1, 2), carry)
        next_core, _ = policy.core(self.next_obs.flatten(1, 2), next_carry)
        log_prob, _ = policy.log_prob(policy.outputs(core), self.action.flatten(1, 2))
        values = policy.critic(core).view(shape)
        next_values = policy.critic(next_core).view(shape)
        return values, next_values, log_prob.view(shape)

    def _rewards(self) -> Tensor:
        """The rollout's rewards [S, N, T], normalised where the settings say so."""
        if not self.config.normalise_reward:
            return self.reward
        ended = self.terminated | self.truncated
        discount = along(self.config.discount, self.reward)
        # A return goes on from the step before, unless an episode ended there.
        goes_on = discount * ~ended
        first = self.reward[..., :1] + discount * self.running_return.unsqueeze(-1)
        rewards = torch.cat([first, self.reward[..., 1:]], -1)
        returns = decayed_sums(rewards.flip(-1), pad(goes_on[..., :-1], (1, 0)).flip(-1)).flip(-1)
        self.running_return = returns[..., -1] * ~ended[..., -1]
        self.reward_norm.update(returns.flatten(1).unsqueeze(-1))
        return (self.reward * (self.reward_norm.variance + 1e-8).rsqrt()).clamp(-10, 10)

    def _learn_minibatch(self, batch: dict[str, Tensor], clip: Tensor | None) -> dict[str, Tensor]:
        """One gradient step on a minibatch of `_rollout`; metrics [S]."""
        config = self.config
        values, log_prob, entropy = self._evaluate_actions(batch)
        advantage = batch["advantage"].flatten(1)
        if config.normalise_advantage:
            mean = advantage.mean(1, keepdim=True)
            std = advantage.std(1, keepdim=True)
            advantage = (advantage - mean) / (std + 1e-8)

        def surrogate(log_prob: Tensor) -> Tensor:
            ratio = (log_prob - batch["log_prob"].flatten(1)).exp()
            objective = ratio * advantage
            if clip is not None:
                # The same as min(ratio · A, clipped ratio · A), eq. 7 of the paper.
                bound = advantage + clip.unsqueeze(1) * advantage.abs()
                objective = torch.minimum(objective, bound)
            return -objective

        # Means within each seed, [S].
        policy_loss = surrogate(log_prob).mean(1)
        value_loss = (values - batch["target"].flatten(1)).square().mean(1)
        loss = (
            policy_loss
            + config.value_coefficient * value_loss
            - config.entropy_coefficient * entropy.mean(1)
        )
        if self.guard is not None:
            scores = Scores(lambda obs: self.policy.outputs(self.policy.core(obs, {})[0]))
            learnt_from = Surrogate(surrogate, advantage >= 0)
            decisions = self._guarded(
                self.guard, scores, batch["obs"], batch["action"], learnt_from
            )
            loss = loss + decisions.penalty()
        parameters = list(self.policy.parameters())
        descend(loss, parameters, self.optimizer, max_grad_norm=config.max_grad_norm)
        return {
            "loss/policy": policy_loss.detach(),
            "loss/value": value_loss.detach(),
            "entropy": entropy.detach().mean(1),
        }

    def _guarded(
        self,
        guard: Guard,
        scores: Scores,
        obs: Tensor,
        taken: Tensor | None = None,
        surrogate: Surrogate | None = None,
    ) -> Decisions:
        """The decisions on `obs` [S, B, *O] that `guard` defends."""
        std = self.policy.std() if self.policy.continuous else None
        interval = self.policy.interval
        return guard.decisions(
            scores, interval, obs, taken, self.steps, std=std, surrogate=surrogate
        )

    def _evaluate_actions(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(values, log-probabilities of the actions, entropies) of a minibatch, [S, B] each.

        They are those of the newest weights. Of a recurrent network B is env copies · T, and its
        memory is replayed through time.
        """
        policy = self.policy
        action = batch["action"]
        if self.config.recurrent:
            core = self._replay_memory(batch)
            action = action.flatten(1, 2)
        else:
            core, _ = policy.core(batch["obs"], {})
        outputs = policy.outputs(core)
        values = policy.critic(core).squeeze(-1)
        log_prob, entropy = policy.log_prob(outputs, action)
        return values, log_prob, entropy

    def _replay_memory(self, batch: dict[str, Tensor]) -> Tensor:
        """What actor and critic see of env copies' whole rollouts, [S, copies · T, F]."""
        carry = {"memory": batch["memory"][:, :, 0]}
        cores = []
        for t in range(batch["obs"].shape[2]):
            if t > 0:
                carry = self.policy.restarted(batch["first"][:, :, t], carry)
            core, carry = self.policy.core(batch["obs"][:, :, t], carry)
            cores.append(core)
        return torch.stack(cores, 2).flatten(1, 2)


def check_minibatches(config: LearnerConfig, num_envs: int) -> None:
    """ConfigError where a rollout cannot be cut into equal minibatches that can be learnt from."""
    steps = num_envs * config.rollout_steps
    rows = steps
    product = f"num_envs={num_envs} times agent.rollout_steps={config.rollout_steps}"
    if config.recurrent:
        rows = num_envs
        product = f"num_envs={num_envs}"
    key = f"agent.minibatches={config.minibatches}"
    if rows % config.minibatches:
        raise ConfigError(f"{key}: does not divide {product}.")
    if config.normalise_advantage and steps < 2 * config.minibatches:
        raise ConfigError(f"{key}: leaves one row each, whose advantage cannot be normalised.")


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    discount: float | Tensor,
    gae_lambda: float | Tensor,
) -> Tensor:
    """Generalised advantages [S, N, T] (Schulman et al. 2016, eq. 16), all arguments [S, N, T].

        δ_t = r_t + γ V(s_{t+1}) − V(s_t)        A_t = δ_t + γ λ A_{t+1}

    `next_values` are those of the observations before any autoreset: behind a terminal state the
    value is 0, and a truncated episode is bootstrapped. `ended`: terminated or truncated; the sum
    stops there, and at the end of the rollout. `discount`, `gae_lambda`: one number, or [S].
    """
    discount = along(discount, rewards)
    gae_lambda = along(gae_lambda, rewards)
    deltas = rewards + discount * next_values * ~terminated - values
    return decayed_sums(deltas, discount * gae_lambda * ~ended)


def decayed_sums(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t · y_{t+1} along the last axis, of x and decay [..., T]; y_T is 0.

    In log₂ T rounds (Hillis & Steele 1986), in each of which a sum takes in the one behind it: a
    loop of T steps would be T times as many operations.
    """
    steps = x.shape[-1]
    span = 1
    while span < steps:
        x = x + decay * pad(x[..., span:], (0, span))
        decay = decay * pad(decay[..., span:], (0, span))
        span *= 2
    return x


class Adversary(PPO):
    """PPO whose actions move what another policy observes, and who earns what that one loses."""

    is_defended = False

    def __init__(self, config: LearnerConfig, spec: Spec, seeds: Tensor, num_envs: int):
        """`spec`: the env of the policy that is attacked."""
        space = spec.observation_space
        pushes = spaces.Box(-1, 1, (math.prod(space.shape or ()),))
        own_spec = replace(spec, action_space=pushes)
        super().__init__(config, own_spec, stream_key(seeds, "adversary"), num_envs)
        self.push: Tensor | None = None
        """[S, N, D]: what the step that is taken was moved by, in radii."""

    def moved(self, obs: Tensor, budget: Budget) -> Tensor:
        """The observations [S, N, *O] within `budget` of `obs` that the adversary shows."""
        never = torch.zeros(obs.shape[:2], dtype=torch.bool, device=obs.device)
        self.push, _ = self.act(obs, never, {})
        within = self.push.clamp(-1, 1).view(obs.shape)
        return budget.project(obs + budget.radius * within, obs)

    def store(self, transition: Transition) -> None:
        assert self.push is not None
        super().store(replace(transition, action=self.push, reward=-transition.reward))
        self.push = None

    def learn(self) -> dict[str, Tensor]:
        return {f"adversary/{name}": value for name, value in super().learn().items()}
