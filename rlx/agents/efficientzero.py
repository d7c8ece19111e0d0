"""EfficientZero (Ye et al. 2021): search over a learnt model of the environment.

To MuZero (Schrittwieser et al. 2020) it adds temporal consistency, value prefixes and off-policy
correction. Here it is one process with a deterministic schedule: so many minibatches are learnt
per environment step, and the target network is renewed after so many minibatches.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Part, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Index, NonNegative, PerSeed, Positive, Range, Share, choice
from rlx.errors import ConfigError
from rlx.n_step import n_step_returns
from rlx.nn.augmentation import augment
from rlx.nn.buffers import Fields, add_buffers
from rlx.nn.encoders import ObsEncoder, obs_field
from rlx.nn.exploration import random_choice
from rlx.nn.optim import SGD, Adam, descend
from rlx.nn.rng import Streams, categorical, uniform
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import along, rows_within
from rlx.replay import Replay
from rlx.search import SearchOutput, Settings, draws_needed, search
from rlx.target_cache import TargetCache
from rlx.world_model import ImageModel, Sizes, Support, VectorModel, WorldModel

OPTIMIZERS = {"adam": Adam, "sgd": SGD}
STALE_SHARE = 0.3
"""Share of `buffer_size`: by so many environment steps of age a return loses a reward."""


@dataclass(frozen=True)
class Config:
    """Networks, search, targets, schedule; the three contributions can be switched off."""

    latent: Count
    """Units of a state; of images, its planes."""
    lstm: Count
    """Units of the value prefix's memory."""
    head: Count
    """Units of the hidden layer of each prediction."""
    projection: Count
    """Units of SimSiam's heads."""
    stack: Count
    """Images that an observation shows on top of each other (env.stack).

    The replay keeps only the newest of each observation.
    """
    augment: bool
    """Learn from images shifted by up to 4 pixels and up to 10 % brighter or darker."""
    scale_obs: bool
    """Divide observations, except images, by the bounds of their space."""
    value_limit: Positive
    """Largest value that can be learnt, after the squashing h of `Support`."""
    value_bins: Annotated[int, Range(2)]
    """Places that the distribution of a value has between ±`value_limit`."""
    prefix_limit: Positive
    """Largest value prefix that can be learnt, after h."""
    prefix_bins: Annotated[int, Range(2)]
    """Places that the distribution of a value prefix has between ±`prefix_limit`."""
    consistency: NonNegative
    """Weight of the SimSiam loss between predicted and encoded states; 0: without it."""
    value_prefix: bool
    """Learn the sum of the rewards along an unroll; false: rewards of single steps."""
    off_policy_correction: bool
    """Shorter n-step returns for older transitions."""
    simulations: Count
    """Nodes that a search adds to its tree."""
    gumbel: Count | None
    """Root actions that Gumbel MuZero considers.

    null: MuZero's search, with Dirichlet noise and a temperature.
    """
    dirichlet_alpha: Positive
    """Concentration of the Dirichlet noise at the root."""
    dirichlet_fraction: Share
    """Share of the noise in the root's priors."""
    first_visit_by_prior: bool
    """Let the prior decide a node's first choice; false, as published: it is by chance."""
    one_hot_actions: bool
    """Show an action to the image model as one plane per action; false, as published: a / A."""
    cuts_terminate: bool
    """Learn from the end of a time limit as from a terminal state; true, as published."""
    temperature_steps: Count
    """Environment steps of a seed over which actions become greedier, without Gumbel.

    In the first half they are drawn by visits, then by their squares, in the last quarter and from
    then on by their fourth powers.
    """
    discount: Share
    """Factor by which a reward one step later is worth less."""
    n_steps: Count
    """Rewards that are summed before the target network's value is added."""
    unroll: Count
    """Steps that the model is unrolled for in learning."""
    reanalyse: Share
    """Share of a minibatch whose policy targets are searched anew with the target network."""
    cache: bool
    """Ask the target network about a row once until its weights change, and search without noise.

    false: ask anew in each minibatch, and search with noise.
    """
    bootstrap: str
    """What n-step returns end with: the target network's value (`head`), or its `search`'s."""
    value_weight: PerSeed[NonNegative]
    """Weight of the value's loss."""
    policy_weight: PerSeed[NonNegative]
    """Weight of the policy's loss."""
    optimizer: str
    """`adam` or `sgd` (with momentum 0.9)."""
    learning_rate: PerSeed[Positive]
    """Step size of the optimiser."""
    warmup: Index
    """Minibatches over which the learning rate rises from 0."""
    decay_after: Index | None
    """Minibatches after which the learning rate falls to a tenth; null: never."""
    weight_decay: PerSeed[NonNegative]
    """Weight of the parameters in their own gradient."""
    max_grad_norm: PerSeed[Positive]
    """Bound on the norm of each seed's gradient."""
    batch_size: Count
    """Rows of the replay in a minibatch of one seed."""
    buffer_size: Count
    """Transitions kept per seed."""
    learning_starts: Count
    """Environment steps of a seed, with random actions, before the first minibatch."""
    hold: Count
    """Steps for which each of the random actions is held."""
    replay_ratio: Positive
    """Minibatches per environment step of a seed."""
    target_every: Count
    """Minibatches between two copies of the network to the target."""
    priority_alpha: PerSeed[NonNegative]
    """Power of a row's priority that it is drawn by; 0: evenly."""
    priority_beta: PerSeed[Share]
    """Share of the sampling's bias that importance weights undo; 1: all of it."""
    priority_beta_steps: Count | None
    """Minibatches over which `priority_beta` rises to 1; null: it stays."""

    def __post_init__(self) -> None:
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")
        choice(self.bootstrap, ("head", "search"), "agent.bootstrap")

    def search_settings(self, noise: bool) -> Settings:
        """Settings of a search, with exploration noise or without."""
        return Settings(
            simulations=self.simulations,
            discount=self.discount,
            horizon=self.unroll if self.value_prefix else 1,
            gumbel=self.gumbel,
            dirichlet_alpha=self.dirichlet_alpha,
            dirichlet_fraction=self.dirichlet_fraction,
            c_base=19652.0,
            c_init=1.25,
            c_visit=50.0,
            c_scale=0.1,
            value_floor=0.01,
            first_visit_by_prior=self.first_visit_by_prior,
            noise=noise,
        )


class SearchPolicy(Policy):
    """Searches, and takes the best action found.

    Its `scores`, which attacks go by, are the root's policy logits.
    """

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        rng = Streams(seeds, "network")
        space = spec.observation_space
        supports = (
            Support(config.value_limit, config.value_bins, seeds),
            Support(config.prefix_limit, config.prefix_bins, seeds),
        )
        sizes = Sizes(
            actions=spec.actions,
            latent=config.latent,
            lstm=config.lstm,
            head=config.head,
            projection=config.projection,
        )
        self.model: WorldModel
        # Not `is_image`, as for other agents: small boards of planes are images to this model too.
        if isinstance(space, spaces.Box) and len(space.shape) == 3:
            self.model = ImageModel(space, sizes, supports, seeds, rng, config.one_hot_actions)
        else:
            encoder = ObsEncoder(space, seeds, scaled=config.scale_obs)
            self.model = VectorModel(encoder, sizes, supports, seeds, rng)
        self.search_settings = config.search_settings(noise=False)

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        scores = Scores(
            lambda obs: self.scores(obs, carry, "action"),
            choice=lambda obs: self.search(obs).action,
        )
        return choose("action", obs, scores, torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.model.root(obs).logits

    def search(self, obs: Tensor) -> SearchOutput:
        """What a search without noise says of observations [S, B, *O]."""
        return search_without_noise(self.model, obs, self.search_settings)


@torch.no_grad()
def search_without_noise(model: WorldModel, obs: Tensor, settings: Settings) -> SearchOutput:
    """What a search whose `settings` are without noise says of observations [S, B, *O]."""
    unused = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
    return search(model, model.root(obs), settings, unused, unused)


class Drawn(nn.Module):
    """A minibatch of B rows and the K behind each, and what the model shall say of them.

    Its tensors are buffers, of one size and at one place for compiled learning.
    """

    slot: Tensor
    """int64 [S, B]: where in the replay the first rows lie."""
    weight: Tensor
    """[S, B]: importance weights."""
    value: Tensor
    """[S, B, K + 1]: n-step returns; 0 behind an episode's end."""
    policy: Tensor
    """[S, B, K + 1, A]: the policies of searches."""
    prefix: Tensor
    """[S, B, K]: rewards summed since the first row, or single ones."""
    obs: Tensor
    """[S, B, K + 1, *O]."""
    action: Tensor
    """int64 [S, B, K]."""
    alive: Tensor
    """bool [S, B, K + 1]: whether a row is of the first one's episode."""
    terminated: Tensor
    """bool [S, B, K]: whether a row's step ended in a terminal state."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, *, augmented: bool):
        """`augmented`: whether observations are changed at random, and are float32 then."""
        super().__init__()
        shape, dtype = obs_field(spec.observation_space)
        later = config.unroll
        fields: Fields = {
            "slot": ((), torch.int64),
            "weight": ((), torch.float32),
            "value": ((later + 1,), torch.float32),
            "policy": ((later + 1, spec.actions), torch.float32),
            "prefix": ((later,), torch.float32),
            "obs": ((later + 1, *shape), torch.float32 if augmented else dtype),
            "action": ((later,), torch.int64),
            "alive": ((later + 1,), torch.bool),
            "terminated": ((later,), torch.bool),
        }
        for name, (size, dtype) in fields.items():
            zeros = torch.zeros(
                len(seeds), config.batch_size, *size, dtype=dtype, device=seeds.device
            )
            self.register_buffer(name, zeros, persistent=False)

    def fill(self, **values: Tensor) -> None:
        """Take the tensors of another minibatch."""
        for name, value in values.items():
            getattr(self, name).copy_(value)


class Unrolled(NamedTuple):
    """What the model says of B rows, and of the K behind each by its own dynamics."""

    state: Tensor
    """[S, B, K + 1, *H]."""
    value: Tensor
    """Logits [S, B, K + 1, bins]."""
    policy: Tensor
    """Logits [S, B, K + 1, A]."""
    prefix: Tensor
    """Logits [S, B, K, bins]."""


class EfficientZero(Agent):
    """Acts by searches with noise, and learns its model from rows drawn by priority.

    Its `carry` holds what a search said, for the replay: policy [S, N, A].
    """

    config_type = Config
    policy_type = SearchPolicy
    traceable = False

    policy: SearchPolicy
    priority: Tensor
    """[S, N, T]: how urgent each row of the replay is; 0 of those that are not drawn."""
    updates: Tensor
    """int64 [S]: minibatches learnt, on the CPU."""
    largest: Tensor
    """[S, 2]: largest value and largest value prefix that it was to learn."""
    valued: TargetCache | None
    """The target network's values of the replay's rows; None: they are asked for anew."""
    searched: TargetCache | None
    """Policies and values of the target network's searches from the replay's rows, or None."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.policy = SearchPolicy(config, spec, seeds)
        # As it is between any two minibatches.
        self.policy.model.eval()
        self.target = copy.deepcopy(self.policy.model).requires_grad_(False)
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(list(self.policy.parameters()), config.learning_rate)
        self.images = isinstance(self.policy.model, ImageModel)
        self.replay = self._make_replay(spec, seeds, num_envs)
        self.replay.check_start(config.learning_starts)
        setting = f"agent.buffer_size={config.buffer_size}"
        slots = self.replay.slots
        augmented = config.augment and self.images
        self.drawn = Drawn(config, spec, seeds, augmented=augmented)
        priority = {"priority": ((), torch.float32)}
        add_buffers(self, (len(seeds), num_envs, slots), priority, seeds.device, setting)
        self.register_buffer("largest", torch.zeros(len(seeds), 2, device=seeds.device))
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rules = spec.rules
        self.start = Streams(seeds, "start")
        self.explore = Streams(seeds, "explore")
        self.minibatch = Streams(seeds, "minibatch")
        self.again = Streams(seeds, "reanalyse")
        # On the CPU: read without a sync.
        self.register_buffer("updates", torch.zeros(len(seeds), dtype=torch.int64))
        self.settings = config.search_settings(noise=True)
        self.valued = None
        self.searched = None
        if config.cache:
            rows = num_envs * slots
            self.valued = TargetCache(len(seeds), rows, 1, seeds.device, setting)
            self.searched = TargetCache(len(seeds), rows, spec.actions + 1, seeds.device, setting)

    def _make_replay(self, spec: Spec, seeds: Tensor, num_envs: int) -> Replay:
        """The replay; of observations that are stacks of images it keeps the newest image."""
        config = self.config
        shape, dtype = obs_field(spec.observation_space)
        stack = config.stack if self.images else None
        if stack is not None:
            if shape[0] % stack:
                fact = f"observations {list(shape)} are no such stack of images"
                raise ConfigError(f"agent.stack={stack}: {fact}.")
            shape = (shape[0] // stack, *shape[1:])
        fields = {
            "obs": (shape, dtype),
            "action": ((), torch.int64),
            "reward": ((), torch.float32),
            "policy": ((spec.actions,), torch.float32),
            "last": ((), torch.bool),
            "terminated": ((), torch.bool),
        }
        return Replay(len(seeds), num_envs, config.buffer_size, fields, seeds.device, stack)

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        if self.clock.steps < self.config.learning_starts:
            return self._act_randomly(obs)
        output = self._search(self.policy.model, obs, self.explore)
        action = output.action
        if self.config.gumbel is None:
            weight = output.visits.float() ** self._temperature_power()
            draws = self.explore.uniform(obs.shape[1])
            action = categorical(draws, weight / weight.sum(-1, keepdim=True))
        return action, {"policy": output.policy.clone()}

    def _act_randomly(self, obs: Tensor) -> tuple[Tensor, Carry]:
        """Random actions, each held for `hold` steps; the policy that the replay keeps is even."""
        seeds, num_envs = obs.shape[:2]
        actions = self.policy.model.actions
        choices_made = int(self.clock.ticks[0]) // self.config.hold
        counter = torch.full_like(self.start.counter, choices_made * num_envs)
        draws = uniform(self.start.key, counter, num_envs)
        policy = torch.full((seeds, num_envs, actions), 1 / actions, device=obs.device)
        return random_choice(draws, actions, obs, self.rules), {"policy": policy}

    def _temperature_power(self) -> int:
        """The power of a root action's visits that it is drawn by; 1 / temperature."""
        progress = self.clock.steps / self.config.temperature_steps
        if progress < 0.5:
            return 1
        if progress < 0.75:
            return 2
        return 4

    def _search(self, model: WorldModel, obs: Tensor, rng: Streams) -> SearchOutput:
        """A search with noise from observations [S, B, *O]."""
        root = model.root(obs)
        output = search(model, root, self.settings, rng.key, rng.counter)
        rng.counter += draws_needed(self.settings, *root.logits.shape[1:])
        return output

    def store(self, transition: Transition) -> None:
        """Add a transition to the replay, as urgent as the most urgent row."""
        ended = transition.terminated | transition.truncated
        largest = self.priority.amax((1, 2))
        largest = torch.where(largest > 0, largest, 1.0)
        slot = self.replay.written.remainder(self.replay.slots)  # [S, N]
        at = slot.unsqueeze(-1)
        self.priority.scatter_(2, at, largest.view(-1, 1, 1).expand_as(at))
        rings = torch.arange(slot.shape[1], device=slot.device) * self.replay.slots
        for cache in (self.valued, self.searched):
            if cache is not None:
                cache.invalidate(slot + rings)
        obs = transition.obs
        if self.images:
            channels = obs.shape[2] // self.config.stack
            obs = obs[:, :, -channels:]
        self.replay.add(
            torch.ones_like(ended),
            obs=obs,
            action=transition.action,
            reward=transition.reward,
            policy=transition.carry["policy"],
            last=ended,
            terminated=ended if self.config.cuts_terminate else transition.terminated,
        )
        self.priority.scatter_(2, self.replay.expired().unsqueeze(-1), 0.0)

    def due(self) -> list[Part]:
        # The host decides in two of the three, and a search looks at numbers: as functions that are
        # no methods they are not compiled.
        minibatch = [lambda: self._draw(), self.descend, lambda: self._count()]
        return minibatch * self.clock.advance()

    def learn(self) -> dict[str, Tensor]:
        """Learn from one minibatch; metrics [S]."""
        self._draw()
        metrics = self.descend()
        self._count()
        return metrics

    @torch.no_grad()
    def _draw(self) -> dict[str, Tensor]:
        """Draw a minibatch, and find out what the model shall say of it."""
        config = self.config
        steps = config.unroll + 1
        draws = self.minibatch.uniform(config.batch_size, dtype=torch.float64)
        slot, weight = self._sample_slots(draws)
        batch = self.replay.window(slot, steps + config.n_steps)
        self.drawn.fill(
            slot=slot,
            weight=weight,
            value=self.value_targets(batch),
            policy=self.policy_targets(batch),
            prefix=self._prefixes(batch["reward"]),
            obs=self._observations(batch["obs"][:, :, :steps]),
            action=batch["action"][:, :, : config.unroll],
            alive=batch["alive"][:, :, :steps],
            terminated=batch["terminated"][:, :, : config.unroll],
        )
        self.optimizer.learning_rate = self._learning_rate()
        return {}

    def descend(self) -> dict[str, Tensor]:
        """Learn from the minibatch that was drawn; metrics [S]."""
        config = self.config
        model = self.policy.model
        model.train()
        unrolled = self._unroll(self.drawn.obs[:, :, 0], self.drawn.action)
        losses = self._losses(unrolled)
        descend(
            (self._weighted(losses) * self.drawn.weight).mean(1),
            list(self.policy.parameters()),
            self.optimizer,
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
        )
        self._update_priority(unrolled)
        model.eval()
        metrics = {f"loss/{name}": value.detach().mean(1) for name, value in losses.items()}
        return metrics | {"value/mean": self.drawn.value[..., 0].mean(1)}

    def _observations(self, obs: Tensor) -> Tensor:
        """Observations `obs` [S, B, K + 1, *O] of the rows as they are learnt from."""
        if not (self.config.augment and self.images):
            return obs
        rows = obs.shape[1]
        first = augment(obs[:, :, :1], self.minibatch.uniform(rows, 4))
        later = augment(obs[:, :, 1:], self.minibatch.uniform(rows, 4))
        return torch.cat([first, later], 2)

    def _unroll(self, obs: Tensor, action: Tensor) -> Unrolled:
        """From observations [S, B, *O] by the dynamics along actions [S, B, K]."""
        model = self.policy.model
        latent = model.begin(obs)
        states = [latent["state"]]
        memories = []
        for k in range(action.shape[2]):
            latent = model.advance(latent, action[:, :, k])
            states.append(latent["state"])
            memories.append(latent["h"])
            if not self.config.value_prefix:
                forgotten = {name: torch.zeros_like(latent[name]) for name in model.memory}
                latent = latent | forgotten
        state = torch.stack(states, 2)
        shared = _flattened(model.shared, state)
        return Unrolled(
            state=state,
            value=_flattened(model.value_head, shared),
            policy=_flattened(model.policy_head, shared),
            prefix=_flattened(model.prefix_head, torch.stack(memories, 2)),
        )

    def _losses(self, unrolled: Unrolled) -> dict[str, Tensor]:
        """Name → [S, B], summed over the unroll of the minibatch that was drawn."""
        model = self.policy.model
        drawn = self.drawn
        # An episode's last action is real, what follows it is not.
        alive = drawn.alive.float()
        # Behind a terminal state the value is 0, and is learnt once.
        terminal = alive[..., :-1] * drawn.terminated
        value_mask = torch.cat([alive[..., :1], alive[..., 1:].maximum(terminal)], -1)
        value = model.value_support.two_hot(drawn.value)
        prefix = model.prefix_support.two_hot(drawn.prefix)
        losses = {
            "value": value_mask * _cross_entropy(unrolled.value, value),
            "policy": alive * _cross_entropy(unrolled.policy, drawn.policy),
            "prefix": alive[..., :-1] * _cross_entropy(unrolled.prefix, prefix),
        }
        if self.config.consistency:
            similarity = self._similarity(unrolled.state[:, :, 1:], drawn.obs[:, :, 1:])
            losses["consistency"] = -alive[..., 1:] * similarity
        return {name: loss.sum(-1) for name, loss in losses.items()}

    def _similarity(self, state: Tensor, obs: Tensor) -> Tensor:
        """How near predicted states [S, B, K, *H] are to those of the observations, [S, B, K].

        SimSiam (Chen & He 2021): the gradient stops at the observations' side.
        """
        model = self.policy.model
        with torch.no_grad():
            observed = _flattened(lambda obs: model.project(model.represent(obs)), obs)
        predicted = _flattened(lambda state: model.predict(model.project(state)), state)
        return nn.functional.cosine_similarity(predicted, observed, -1, 1e-5)

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses [S, B], per unrolled step."""
        weights = {
            "value": self.config.value_weight,
            "policy": self.config.policy_weight,
            "prefix": 1.0,
            "consistency": self.config.consistency,
        }
        weighted = [along(weights[name], loss) * loss for name, loss in losses.items()]
        return torch.stack(weighted).sum(0) / self.config.unroll

    @torch.no_grad()
    def _update_priority(self, unrolled: Unrolled) -> None:
        """Make the rows that were drawn as urgent as their values are wrong."""
        drawn = self.drawn
        value = self.policy.model.value_support.decode(unrolled.value[:, :, 0])
        error = (value - drawn.value[..., 0]).abs() + 1e-6
        # A row that was drawn twice is as urgent as its larger error says, in whatever order they
        # come.
        self.priority.flatten(1).scatter_reduce_(1, drawn.slot, error, "amax", include_self=False)
        largest_value = drawn.value.abs().amax((1, 2))
        largest_prefix = drawn.prefix.abs().amax((1, 2))
        largest = torch.stack([largest_value, largest_prefix], 1)
        self.largest.copy_(self.largest.maximum(largest))

    def _count(self) -> dict[str, Tensor]:
        """Count a minibatch, and renew the target network where it is due."""
        self.updates += 1
        if int(self.updates[0]) % self.config.target_every == 0:
            self.target.load_state_dict(self.policy.model.state_dict())
        return {}

    def _learning_rate(self) -> float | Tensor:
        """The step size of the next minibatch."""
        config = self.config
        updates = int(self.updates[0])
        rate = config.learning_rate * min(1.0, (updates + 1) / max(1, config.warmup))
        if config.decay_after is not None and updates >= config.decay_after:
            return rate * 0.1
        return rate

    def _sample_slots(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """(slots of rows drawn by priority, importance weights), [S, B] each, by uniform `draws`.

        Prioritised replay (Schaul et al. 2016); the largest weight of a seed is 1.
        """
        config = self.config
        priority = self.priority.flatten(1)
        mass = priority ** along(config.priority_alpha, priority)
        # A float32 sum over a million rows would leave out those of small priority.
        cumulative = mass.cumsum(1, dtype=torch.float64)
        total = cumulative[:, -1:]
        slot = torch.searchsorted(cumulative, draws * total, right=True)
        slot = slot.clamp(max=cumulative.shape[1] - 1)
        share = mass.gather(1, slot) / total
        progress = 0.0
        if config.priority_beta_steps:
            progress = min(1.0, int(self.updates[0]) / config.priority_beta_steps)
        beta = config.priority_beta + (1 - config.priority_beta) * progress
        relative = self.replay.stored().unsqueeze(1) * share.clamp(min=1e-12)
        weight = (relative ** -along(beta, relative)).float()
        return slot, weight / weight.amax(1, keepdim=True)

    def value_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """n-step returns [S, B, K + 1] of the rows of `batch`, by the target network's values."""
        returns = n_step_returns(
            batch,
            first_rows=self.config.unroll + 1,
            n_steps=self.config.n_steps,
            horizon=self._horizon(batch["age"]),
            discount=self.config.discount,
        )
        end_slot = batch["slot"].gather(2, returns.end)
        return returns.with_values(self._values(end_slot, rows_within(batch["obs"], returns.end)))

    def _horizon(self, age: Tensor) -> Tensor:
        """n of the n-step returns of rows of this `age` ([S, B], in steps of their env copy).

        Off-policy correction (Ye et al. 2021): rewards that an old policy earned say less of
        today's.
        """
        config = self.config
        if not config.off_policy_correction:
            return torch.full_like(age, config.n_steps)
        env_steps = age * self.replay.written.shape[1]
        # At least 1, of however small a buffer.
        steps_per_reward = max(1, int(STALE_SHARE * config.buffer_size))
        return (config.n_steps - env_steps // steps_per_reward).clamp(1, config.n_steps)

    def policy_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """The policies of searches [S, B, K + 1, A] from the rows of `batch`.

        They are those of when the agent acted; for the first share `reanalyse` of the rows, new
        ones by the target network.
        """
        steps = self.config.unroll + 1
        fresh = round(self.config.reanalyse * batch["obs"].shape[1])
        policy = batch["policy"][:, :, :steps].clone()
        if fresh:
            slot = batch["slot"][:, :fresh, :steps]
            obs = batch["obs"][:, :fresh, :steps]
            policy[:, :fresh] = self._target_searches(slot, obs)[..., :-1]
        return policy

    def _prefixes(self, reward: Tensor) -> Tensor:
        """[S, B, K]: rewards summed since the prefix began; single ones without value prefixes."""
        reward = reward[..., : self.config.unroll]
        return reward.cumsum(-1) if self.config.value_prefix else reward

    def _values(self, slot: Tensor, obs: Tensor) -> Tensor:
        """The target network's values [S, B, K] of the rows in `slot` [S, B, K]."""
        if self.config.bootstrap == "search":
            return self._target_searches(slot, obs)[..., -1]
        return self._cached(self.valued, self._target_values, slot, obs).squeeze(-1)

    def _target_searches(self, slot: Tensor, obs: Tensor) -> Tensor:
        """Policies and values [S, B, K, A + 1] of searches with the target network.

        They begin at the rows in `slot` [S, B, K], whose observations `obs` [S, B, K, *O] are.
        """
        return self._cached(self.searched, self._search_target, slot, obs)

    def _target_values(self, obs: Tensor) -> Tensor:
        """The target network's values [S, R, 1] of observations [S, R, *O]."""
        return self.target.values(obs).unsqueeze(-1)

    def _search_target(self, obs: Tensor) -> Tensor:
        """Policy and value [S, R, A + 1] of searches from observations [S, R, *O]."""
        if self.searched is None:
            output = self._search(self.target, obs, self.again)
        else:
            output = search_without_noise(self.target, obs, self.policy.search_settings)
        return torch.cat([output.policy, output.value.unsqueeze(-1)], -1)

    def _cached(
        self,
        cache: TargetCache | None,
        network: Callable[[Tensor], Tensor],
        slot: Tensor,
        obs: Tensor,
    ) -> Tensor:
        """What `network` says [S, B, K, F] of the rows in `slot` [S, B, K], by the `cache`.

        `network` ([S, R, *O] → [S, R, F]) is the target network, or a search with it; the rows hold
        `obs` [S, B, K, *O].
        """
        if cache is None:
            return _flattened(network, obs)
        version = int(self.updates[0]) // self.config.target_every
        return cache.get(network, slot, obs, version)

    def warnings(self) -> list[str]:
        largest_value, largest_prefix = self.largest.amax(0).tolist()
        model = self.policy.model
        return [
            *_beyond(model.value_support, "value", "values", largest_value),
            *_beyond(model.prefix_support, "prefix", "summed rewards", largest_prefix),
        ]


def _beyond(support: Support, name: str, what: str, largest: float) -> list[str]:
    """A warning where a support is too narrow for the `largest` number that it was to hold."""
    end = support.end()
    # What is less than a thousandth above the end is rounding.
    if largest <= end * 1.001:
        return []
    limit = math.ceil(float(support.squash(torch.tensor(largest))))
    # As fine as before.
    bins = 1 + math.ceil((support.bins - 1) * limit / support.limit)
    return [
        f"agent.{name}_limit={support.limit:g}: {what} up to ±{largest:.4g} were cut to "
        f"±{end:.4g}; set agent.{name}_limit={limit} agent.{name}_bins={bins}"
    ]


def _flattened(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result [S, B, K, …] of `module`, which knows only [S, R, …], on x [S, B, K, …]."""
    return module(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy [*] of distributions: `logits` [*, n] beside probabilities [*, n]."""
    return -(target * logits.log_softmax(-1)).sum(-1)
