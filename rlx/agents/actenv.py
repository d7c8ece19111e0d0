"""Act/Env: two networks that learn from whole episodes how successful they were.

Act(s_t, a_{t−1}) gives action logits and Q_a, Env(s_t, a_t) gives next-state logits and Q_e. An
episode's success rate, where its return lies between `return_low` and `return_scale`, labels every
one of its transitions. Both Q are trained on it as a GAN's discriminator is on real and fake
(Goodfellow et al. 2014), here with labels in [0, 1]:

    a_loss = w · CE(action logits, a_t) + BCE(Q_a, rate)
    e_loss = BCE(next-state logits, sigmoid(s_{t+1})) + BCE(Q_e, rate)

Then Act is pushed to raise its Q_a, and Env's Q_e is pulled towards Q_a:

    a_loss2 = −mean(Q_a)
    e_loss2 = mean((Q_e − Q_a)²)
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy, leaky_relu, one_hot, threshold

from rlx.agent import Agent, Carry, Choose, Part, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Index, PerSeed, Positive, Share, choice
from rlx.errors import ConfigError
from rlx.nn.encoders import ObsEncoder, check_no_image
from rlx.nn.exploration import random_choice
from rlx.nn.networks import SeedLinear
from rlx.nn.optim import Adam, descend
from rlx.nn.per_seed import add_numbers
from rlx.nn.rng import Streams, categorical
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import along, polyak_update
from rlx.rated_memory import RatedMemory


@dataclass(frozen=True)
class Config:
    """Act, Env, and how they learn."""

    obs_units: Count
    """Units of the layer that sees the observation alone, before the action joins."""
    hidden: list[Count]
    """Units of each layer behind that one."""
    train_outputs: bool
    """Train the output layers; false freezes them at their initial values."""
    normalise: bool
    """Batch norm by the minibatch's statistics, and by running ones when acting.

    false: by the initial ones, mean 0 and variance 1.
    """
    norm_tau: PerSeed[Share]
    """Weight of a minibatch in the running statistics."""
    return_scale: float
    """Return of a full success, whose rate is 1.

    Rates are linear in the undiscounted return, and cut to [0, 1].
    """
    imitate: str
    """Weights w of the actions taken.

    `all`: 1; `better`: how far the episode's rate exceeds the minibatch's mean.
    """
    learning_rate: PerSeed[Positive]
    """Step size of the optimisers of a_loss and e_loss."""
    learning_rate2: PerSeed[Positive]
    """Step size of the optimisers of a_loss2 and e_loss2."""
    batch_size: Count
    """Transitions in a minibatch of one seed."""
    buffer_size: Count
    """Transitions kept per seed."""
    learning_starts: Index
    """Transitions of a uniformly random policy stored before the first update."""
    replay_ratio: Positive
    """Updates per environment step of a seed."""
    average_tau: PerSeed[Share]
    """Weight of the learning network, per update, in the running average that acts greedily.

    1 acts on the newest weights.
    """
    sample_actions: bool
    """While learning, draw the actions that are not random from the softmax of the logits.

    false: the largest one.
    """
    epsilon_end: PerSeed[Share]
    """Probability of a random action that exploration falls towards."""
    epsilon_steps: PerSeed[Count]
    """Decisions, per seed and after the random ones, of exploration's decay from 1.

    After them its distance from `epsilon_end` is 1/e of what it was.
    """
    return_low: float = 0.0
    """Return of a full failure, whose rate is 0."""

    def __post_init__(self) -> None:
        if not self.return_low < self.return_scale:
            success = f"agent.return_scale={self.return_scale}, the return of a full success"
            raise ConfigError(f"agent.return_low={self.return_low}: must be below {success}.")
        choice(self.imitate, ("all", "better"), "agent.imitate")


class BatchNorm(nn.Module):
    """Batch norm per seed (Ioffe & Szegedy 2015): [S, B, F] → [S, B, F].

    Unlike `SeedBatchNorm`'s, its running statistics move by the weight `tau`, and only in the seeds
    that learn: here a seed can sit a minibatch out.
    """

    tau: float | Tensor
    """Weight of a minibatch in the running statistics: one number, or [S]."""

    def __init__(self, features: int, seeds: Tensor, tau: float | Tensor):
        super().__init__()
        add_numbers(self, tau=tau)
        self.scale = nn.Parameter(torch.ones(len(seeds), 1, features, device=seeds.device))
        self.shift = nn.Parameter(torch.zeros_like(self.scale))
        # Parameters without a gradient: saved runs have them among the parameters.
        self.mean = nn.Parameter(self.shift.detach().clone(), requires_grad=False)
        self.variance = nn.Parameter(self.scale.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Normalise x by the running statistics, and in learning by those of x itself.

        `where`: bool [S], the seeds that learn, whose running statistics move; None when acting.
        """
        mean: Tensor = self.mean
        variance: Tensor = self.variance
        if where is not None:
            mean = x.mean(1, keepdim=True)
            variance = x.var(1, keepdim=True, correction=0)
            with torch.no_grad():
                weight = along(self.tau * where.to(x.dtype), x)
                self.mean.lerp_(mean, weight)
                self.variance.lerp_(variance, weight)
        # TensorFlow's 1e-3, not 1e-5: young memories hold features that hardly vary.
        return (x - mean) * (variance + 1e-3).rsqrt() * self.scale + self.shift


class Network(nn.Module):
    """Act or Env: from an observation and an action to logits and a success rate.

    Observations [S, B, *O] and actions [S, B] → (logits [S, B, outputs], logit Q [S, B]).
    """

    def __init__(self, config: Config, spec: Spec, outputs: int, seeds: Tensor, name: str):
        super().__init__()
        rng = Streams(seeds, name)
        self.normalise = config.normalise
        self.actions = spec.actions
        self.encoder = ObsEncoder(spec.observation_space, seeds)
        # The action joins behind the first layer.
        sizes = [(self.encoder.features, config.obs_units)]
        width = config.obs_units + spec.actions
        for units in config.hidden:
            sizes.append((width, units))
            width = units
        self.layers = nn.ModuleList(SeedLinear(inputs, units, rng) for inputs, units in sizes)
        # A norm takes their biases out again, and Adam would follow the rounding of their
        # gradients.
        for layer in self.layers:
            layer.bias.requires_grad_(not config.normalise)
        self.norms = nn.ModuleList(BatchNorm(units, seeds, config.norm_tau) for _, units in sizes)
        self.logits = SeedLinear(width, outputs, rng).requires_grad_(config.train_outputs)
        self.q = SeedLinear(width, 1, rng).requires_grad_(config.train_outputs)

    def forward(
        self, obs: Tensor, action: Tensor, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and Q of observations and actions; `where`: as of `BatchNorm`."""
        if not self.normalise:
            where = None
        x = self.encoder(obs)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = leaky_relu(norm(layer(x), where), 0.1)
            if i == 0:
                x = torch.cat([x, one_hot(action, self.actions).to(x.dtype)], -1)
        return self.logits(x), self.q(x).squeeze(-1)

    def learning(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class ActPolicy(Policy):
    """Acts by the largest of Act's logits.

    Its carry: `previous`, the action before the decision (0 in an episode's first one), and
    `action`, the one taken; int64 [S, B] each.
    """

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        check_no_image(spec.observation_space, "ActEnv")
        self.network = Network(config, spec, spec.actions, seeds, "act")

    def initial_carry(self, batch: int) -> Carry:
        scale = self.network.encoder.scale
        zeros = scale.new_zeros(len(scale), batch, dtype=torch.int64)
        return {"previous": zeros, "action": zeros}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        previous = torch.where(first, 0, carry["action"])
        scores = Scores(lambda obs: self.network(obs, previous)[0])
        action = choose("action", obs, scores, torch.ones_like(first))
        return action, {"previous": previous, "action": action}

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        logits, _ = self.network(obs, carry["previous"])
        return logits


class ActEnv(Agent):
    """Act, Env, four optimisers and a memory of rated transitions.

    It explores ε-greedily, after a phase of random actions. Imitating every action in the memory
    equally cannot improve on it: under protocol=source only a_loss2, through the layers that logits
    and Q_a share, moves the policy somewhere new. The corrected protocol imitates the better
    episodes (`imitate`), which is reward-weighted regression (Peters & Schaal 2007), and draws its
    actions from the logits (`sample_actions`): of a policy that always takes its best action, an
    imitator learns only from the uniformly random ones.

    The source drew whole minibatches until one held no unrated row; here every rated row is as
    likely as it was there.
    """

    config_type = Config
    policy_type = ActPolicy

    policy: ActPolicy
    steps: Tensor
    """Environment steps of each seed so far, int64 [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.online = ActPolicy(config, spec, seeds)
        self.policy = copy.deepcopy(self.online)
        features = self.online.network.encoder.features
        self.env = Network(config, spec, features, seeds, "env")
        act = self.online.network.learning()
        env = self.env.learning()
        self.act_optimizer = Adam(act, config.learning_rate)
        self.act_optimizer2 = Adam(act, config.learning_rate2)
        self.env_optimizer = Adam(env, config.learning_rate)
        self.env_optimizer2 = Adam(env, config.learning_rate2)
        self.memory = RatedMemory(config.buffer_size, spec, num_envs, seeds)
        capacity = self.memory.slots * num_envs
        if config.learning_starts > capacity:
            raise ConfigError(
                f"agent.learning_starts={config.learning_starts}: more than the memory can hold, "
                f"{capacity:,} transitions (agent.buffer_size={config.buffer_size} in equal parts "
                f"for num_envs={num_envs})."
            )
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rules = spec.rules
        self.exploration = Streams(seeds, "act/explore")
        self.rng = Streams(seeds, "minibatch")
        self.register_buffer("steps", torch.zeros_like(seeds))

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self.online.act(obs, first, carry, self._explore)

    def epsilon(self) -> Tensor:
        """Probability of a random action, [S]."""
        decisions = (self.steps - self.config.learning_starts).clamp(min=0)
        decay = (-decisions / self.config.epsilon_steps).exp()
        return self.config.epsilon_end + (1 - self.config.epsilon_end) * decay

    def _explore(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        """Choose as a `Choose` does: at random with probability epsilon, else by the policy."""
        logits = scores(obs)
        draws = self.exploration.uniform(3, obs.shape[1])
        random_draw, explore_draw, action_draw = draws.unbind(1)
        random = random_choice(random_draw, logits.shape[-1], obs, self.rules)
        if self.config.sample_actions:
            chosen = categorical(action_draw, logits.softmax(-1))
        else:
            chosen = logits.argmax(-1)
        return torch.where(explore_draw < self.epsilon().unsqueeze(1), random, chosen)

    def store(self, transition: Transition) -> None:
        self.memory.add(
            transition.reward,
            transition.terminated | transition.truncated,
            self.config.return_low,
            self.config.return_scale,
            obs=transition.obs,
            next_obs=transition.next_obs,
            previous=transition.carry["previous"],
            action=transition.action,
        )
        self.steps += transition.reward.shape[1]

    def due(self) -> list[Part]:
        return self.clock.parts(self.learn, self.average)

    def learn(self) -> dict[str, Tensor]:
        """Learn from one minibatch; metrics [S]."""
        where = self.memory.rated().sum(1) > 0
        draws = self.rng.uniform(self.config.batch_size + 1, dtype=torch.float64)
        return self._learn(self.memory.sample(draws), where)

    def average(self, updates: int) -> dict[str, Tensor]:
        """Move the policy that acts greedily towards the newest weights, after so many updates."""
        polyak_update(self.policy, self.online, 1 - (1 - self.config.average_tau) ** updates)
        return {}

    def warnings(self) -> list[str]:
        low = self.config.return_low
        high = self.config.return_scale
        lowest = float(self.memory.lowest.min())
        highest = float(self.memory.highest.max())
        found = []
        if lowest < low:
            fact = f"returns fell to {lowest:g}, and all below it were rated 0 alike"
            found.append(f"agent.return_low={low:g}: {fact}; set agent.return_low={lowest:g}")
        if highest > high:
            fact = f"returns rose to {highest:g}, and all above it were rated 1 alike"
            found.append(f"agent.return_scale={high:g}: {fact}; set agent.return_scale={highest:g}")
        return found

    def _learn(self, batch: dict[str, Tensor], where: Tensor) -> dict[str, Tensor]:
        """Both pairs of steps on one minibatch [S, B, …], in the seeds `where` (bool [S])."""
        act = self.online.network
        env = self.env
        a_loss, e_loss = self._first_losses(batch, where)
        descend(a_loss, act.learning(), self.act_optimizer, where=where)
        descend(e_loss, env.learning(), self.env_optimizer, where=where)
        a_loss2, e_loss2 = self._second_losses(batch, where)
        descend(a_loss2, act.learning(), self.act_optimizer2, where=where)
        descend(e_loss2, env.learning(), self.env_optimizer2, where=where)
        return {
            "loss/a": a_loss.detach(),
            "loss/e": e_loss.detach(),
            "loss/a2": a_loss2.detach(),
            "loss/e2": e_loss2.detach(),
            "rate": batch["rate"].mean(1),
        }

    def _first_losses(self, batch: dict[str, Tensor], where: Tensor) -> tuple[Tensor, Tensor]:
        """(a_loss, e_loss), means within each seed, [S]: imitation, prediction, success rates."""
        action = batch["action"]
        rate = batch["rate"]
        next_state = torch.sigmoid(self.env.encoder(batch["next_obs"]))
        logits, q_a = self.online.network(batch["obs"], batch["previous"], where)
        next_logits, q_e = self.env(batch["obs"], action, where)
        imitation = cross_entropy(logits.flatten(0, 1), action.flatten(), reduction="none")
        imitation = imitation.view_as(rate)
        if self.config.imitate == "better":
            imitation = imitation * better(rate)
        prediction = bce(next_logits, next_state, reduction="none")
        a_loss = (imitation + bce(q_a, rate, reduction="none")).mean(1)
        e_loss = prediction.mean((1, 2)) + bce(q_e, rate, reduction="none").mean(1)
        return a_loss, e_loss

    def _second_losses(self, batch: dict[str, Tensor], where: Tensor) -> tuple[Tensor, Tensor]:
        """(a_loss2, e_loss2), means within each seed, [S]: Act raises Q_a, and Env follows it."""
        _, q_a = self.online.network(batch["obs"], batch["previous"], where)
        _, q_e = self.env(batch["obs"], batch["action"], where)
        return -q_a.mean(1), (q_e - q_a.detach()).square().mean(1)


def better(rate: Tensor) -> Tensor:
    """Weights [S, B] in proportion to what each `rate` [S, B] exceeds its seed's mean by.

    Their mean is 1; all are 0 where no rate exceeds it.
    """
    # What is less than 1e-6 is rounding.
    excess = threshold(rate - rate.mean(1, keepdim=True), 1e-6, 0.0)
    return excess / excess.mean(1, keepdim=True).clamp(min=1e-12)
