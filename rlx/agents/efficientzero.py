"""EfficientZero (Ye et al. 2021): search over a learnt model, with temporal consistency, value prefixes and off-policy correction.

One process and a deterministic schedule: so many minibatches per environment step, the target network after so many minibatches.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Positive, Share, choice
from rlx.errors import ConfigError
from rlx.nn.encoders import ObsEncoder, obs_field
from rlx.nn.exploration import random_choice
from rlx.nn.optim import SGD, Adam, descend
from rlx.nn.rng import Streams, categorical, pick, uniform
from rlx.nn.schedules import UpdateSchedule
from rlx.nn.seed_axis import rows_within
from rlx.replay import Replay, TargetCache, add_buffers
from rlx.search import Found, Settings, draws_needed, search
from rlx.world_model import ImageModel, Support, VectorModel, WorldModel

OPTIMIZERS = {"adam": Adam, "sgd": SGD}


@dataclass(frozen=True)
class Config:
    """Networks, search, targets, schedule; the three contributions can be switched off."""

    latent: Count
    lstm: Count
    head: Count
    projection: Count
    """Units: of a state (of pictures: its planes), of the value prefix's memory, of the heads' hidden layer, of SimSiam's heads."""
    stack: Count
    """Pictures that an observation shows on top of each other (env.stack): the replay keeps the newest of each."""
    augment: bool
    """Learn from pictures shifted by up to 4 pixels and up to 10 % brighter or darker."""
    scale_obs: bool
    value_limit: float
    value_bins: int
    prefix_limit: float
    prefix_bins: int
    """Supports of values and value prefixes, after h."""
    consistency: float
    """Weight of the SimSiam loss between predicted and encoded states; 0: without it."""
    value_prefix: bool
    """False: rewards of single steps."""
    off_policy_correction: bool
    """Shorter n-step returns for older transitions."""
    simulations: Count
    gumbel: Count | None
    """Root actions that Gumbel MuZero considers; null: MuZero's search with Dirichlet noise and a temperature."""
    dirichlet_alpha: float
    dirichlet_fraction: float
    first_visit_by_prior: bool
    one_hot_actions: bool
    cuts_terminate: bool
    """The published code's peculiarities are false, false, true: a node's first choice is by chance, an action is one plane of a / A in
    a picture, the end of a time limit is a terminal."""
    temperature_steps: int
    """Environment steps of a seed over whose first half actions are drawn by visits, then by their squares, in the last quarter by their
    fourth powers."""
    discount: Share
    n_steps: Count
    unroll: Count
    reanalyse: Share
    """Share of a minibatch whose policy targets are searched anew with the target network."""
    cache: bool
    """Ask the target network about a row once until its weights change, and search without noise; false: anew in each minibatch."""
    bootstrap: str
    """What n-step returns end with: the target network's value `head`, or what its `search` says of the state."""
    value_weight: float
    policy_weight: float
    optimizer: str
    learning_rate: Positive
    warmup: int
    """Minibatches over which the learning rate rises from 0."""
    decay_after: int | None
    """Minibatches after which it falls to a tenth."""
    weight_decay: float
    max_grad_norm: Positive
    batch_size: Count
    buffer_size: Count
    learning_starts: Count
    """Environment steps of a seed before it, with random actions …"""
    hold: Count
    """… each of them held for so many steps."""
    replay_ratio: Positive
    target_every: Count
    """Minibatches between two copies of the network to the target."""
    priority_alpha: float
    priority_beta: float
    priority_beta_steps: Count | None
    """Minibatches over which it rises to 1; null: it stays."""

    def __post_init__(self) -> None:
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")
        choice(self.bootstrap, ("head", "search"), "agent.bootstrap")

    def settings(self, noise: bool) -> Settings:
        """Of a search, with exploration noise or without."""
        return Settings(
            simulations=self.simulations, discount=self.discount, horizon=self.unroll if self.value_prefix else 1, gumbel=self.gumbel,
            dirichlet_alpha=self.dirichlet_alpha, dirichlet_fraction=self.dirichlet_fraction, c_base=19652.0, c_init=1.25,
            c_visit=50.0, c_scale=0.1, value_floor=0.01, first_visit_by_prior=self.first_visit_by_prior, noise=noise,
        )  # fmt: skip


class Planner(Policy):
    """Searches, and takes the best action found. Its `scores`, which attacks go by, are the root's policy logits."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor):
        super().__init__()
        rng = Streams(seeds, "network")
        space = spec.observation_space
        supports = (
            Support(config.value_limit, config.value_bins, seeds),
            Support(config.prefix_limit, config.prefix_bins, seeds),
        )
        sizes = (
            spec.actions,
            config.latent,
            config.lstm,
            config.head,
            config.projection,
            supports,
            seeds,
            rng,
        )
        self.model: WorldModel
        if isinstance(space, spaces.Box) and len(space.shape) == 3:
            self.model = ImageModel(space, *sizes, config.one_hot_actions)
        else:
            self.model = VectorModel(ObsEncoder(space, config.scale_obs, seeds), *sizes)
        self.search_settings = config.settings(noise=False)

    def initial_carry(self, batch: int) -> Carry:
        return {}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        scores = Scores(
            lambda seen: self.scores(seen, carry, "action"),
            choice=lambda seen: self.search(seen).action,
        )
        return choose("action", obs, scores, torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.model.root(obs).logits

    def search(self, obs: Tensor) -> Found:
        """Without noise."""
        return quiet(self.model, obs, self.search_settings)


@torch.no_grad()
def quiet(model: WorldModel, obs: Tensor, settings: Settings) -> Found:
    """What a search without noise says of observations [S, B, *O]."""
    nothing = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
    return search(model, model.root(obs), settings, nothing, nothing)


class EfficientZero(Agent):
    """`carry` holds what the search said, for the replay: policy [S, N, A]."""

    config_type = Config
    policy_type = Planner

    policy: Planner
    priority: Tensor
    updates: Tensor
    largest: Tensor
    """Largest value and largest value prefix that it was to learn, [S, 2]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        self.policy = Planner(config, spec, seeds)
        self.target = copy.deepcopy(self.policy.model).requires_grad_(False)
        self.optimizer = OPTIMIZERS[config.optimizer](
            list(self.policy.parameters()), config.learning_rate
        )
        shape, dtype = obs_field(spec.observation_space)
        self.images = isinstance(self.policy.model, ImageModel)
        self.newest = 0
        """Channels of one picture."""
        if self.images:
            if shape[0] % config.stack:
                raise ConfigError(
                    f"agent.stack={config.stack}: observations {list(shape)} are no such stack of pictures."
                )
            self.newest = shape[0] // config.stack
            shape = (self.newest, *shape[1:])
        fields = {"obs": (shape, dtype), "action": ((), torch.int64), "reward": ((), torch.float32)}
        fields |= {
            "policy": ((spec.actions,), torch.float32),
            "last": ((), torch.bool),
            "terminated": ((), torch.bool),
        }
        self.replay = Replay(
            len(seeds),
            num_envs,
            config.buffer_size,
            fields,
            seeds.device,
            config.stack if self.images else None,
        )
        self.replay.check_start(config.learning_starts)
        setting, slots = f"agent.buffer_size={config.buffer_size}", self.replay.slots
        priority = {"priority": ((), torch.float32)}
        add_buffers(self, (len(seeds), num_envs, slots), priority, seeds.device, setting)
        self.register_buffer("largest", torch.zeros(len(seeds), 2, device=seeds.device))
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rules = spec.rules
        names = ("start", "explore", "minibatch", "reanalyse")
        self.start, self.explore, self.minibatch, self.again = (
            Streams(seeds, name) for name in names
        )
        self.register_buffer(
            "updates", torch.zeros(len(seeds), dtype=torch.int64)
        )  # on the CPU: read without a sync
        self.settings = config.settings(noise=True)
        size = len(seeds), num_envs * slots
        self.valued = self.searched = None
        if config.cache:
            self.valued = TargetCache(*size, 1, seeds.device, setting)
            self.searched = TargetCache(*size, spec.actions + 1, seeds.device, setting)

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        config, num_envs = self.config, first.shape[1]
        if self.clock.steps < config.learning_starts:
            actions, held = self.policy.model.actions, int(self.clock.ticks[0]) // config.hold
            counter = torch.full_like(self.start.counter, held * num_envs)
            draws = uniform(self.start.key, counter, num_envs)
            policy = torch.full((*first.shape, actions), 1 / actions, device=obs.device)
            return random_choice(draws, actions, obs, self.rules), {"policy": policy}
        found = self._search(self.policy.model, obs, self.explore)
        action = found.action
        if config.gumbel is None:
            done = self.clock.steps / config.temperature_steps
            weight = found.visits.float() ** (1 if done < 0.5 else 2 if done < 0.75 else 4)
            action = categorical(
                self.explore.uniform(num_envs), weight / weight.sum(-1, keepdim=True)
            )
        return action, {"policy": found.policy.clone()}

    def _search(self, model: WorldModel, obs: Tensor, rng: Streams) -> Found:
        root = model.root(obs)
        found = search(model, root, self.settings, rng.key, rng.counter)
        rng.counter += draws_needed(self.settings, *root.logits.shape[1:])
        return found

    def update(self, transition: Transition) -> dict[str, Tensor]:
        t = transition
        ended = t.terminated | t.truncated
        # New rows are as urgent as the most urgent one.
        most = self.priority.amax((1, 2))
        most = torch.where(most > 0, most, 1.0)
        at = self.replay.written.remainder(self.replay.slots).unsqueeze(-1)
        self.priority.scatter_(2, at, most.view(-1, 1, 1).expand_as(at))
        rings = torch.arange(at.shape[1], device=at.device) * self.replay.slots
        for memo in (self.valued, self.searched):
            if memo is not None:
                memo.invalidate(at.squeeze(-1) + rings)
        newest = t.obs[:, :, -self.newest :] if self.images else t.obs
        self.replay.add(
            torch.ones_like(ended), obs=newest, action=t.action, reward=t.reward, policy=t.carry["policy"],
            last=ended, terminated=ended if self.config.cuts_terminate else t.terminated,
        )  # fmt: skip
        self.priority.scatter_(2, self.replay.expired().unsqueeze(-1), 0.0)
        metrics: dict[str, Tensor] = {}
        for _ in range(self.clock.due()):
            metrics = self.learn()
        return metrics

    def learn(self) -> dict[str, Tensor]:
        """One minibatch; metrics [S]."""
        config, model, steps = self.config, self.policy.model, self.config.unroll + 1
        with torch.no_grad():
            draws = self.minibatch.uniform(config.batch_size, dtype=torch.float64)
            slot, weight = self._drawn(draws)
            batch = self.replay.window(slot, steps + config.n_steps)
            value, policy = self.value_targets(batch), self.policy_targets(batch)
            prefix = self._prefixes(batch["reward"])
            obs = batch["obs"][:, :, :steps]
            first, later = obs[:, :, :1], obs[:, :, 1:]
            if config.augment and self.images:
                first, later = self._augmented(first), self._augmented(later)
        model.train()
        alive = batch["alive"][
            ..., :steps
        ].float()  # the last action of an episode is real, what follows is not
        latent = model.begin(first.squeeze(2))
        states, memories = [latent["state"]], []
        for k in range(config.unroll):
            latent = model.advance(latent, batch["action"][:, :, k])
            states.append(latent["state"])
            memories.append(latent["h"])
            if not config.value_prefix:
                latent = latent | {name: torch.zeros_like(latent[name]) for name in model.memory}
        state = torch.stack(states, 2)  # [S, B, K + 1, *H]
        shared = _each(model.shared, state)
        guess, rewarded = (
            _each(model.value_head, shared),
            _each(model.prefix_head, torch.stack(memories, 2)),
        )
        # Behind a terminal the value is 0, and is learnt once.
        valued = torch.cat(
            [
                alive[..., :1],
                alive[..., 1:].maximum(alive[..., :-1] * batch["terminated"][..., : steps - 1]),
            ],
            -1,
        )
        losses = {
            "value": valued * _cross_entropy(guess, model.value_support.encode(value)),
            "policy": alive * _cross_entropy(_each(model.policy_head, shared), policy),
            "prefix": alive[..., :-1]
            * _cross_entropy(rewarded, model.prefix_support.encode(prefix)),
        }
        if config.consistency:
            with torch.no_grad():
                seen = _each(lambda obs: model.project(model.represent(obs)), later)
            foreseen = _each(lambda x: model.predict(model.project(x)), state[:, :, 1:])
            losses["consistency"] = -alive[..., 1:] * nn.functional.cosine_similarity(
                foreseen, seen, -1, 1e-5
            )
        losses = {name: loss.sum(-1) for name, loss in losses.items()}
        weights = {
            "value": config.value_weight,
            "policy": config.policy_weight,
            "prefix": 1.0,
            "consistency": config.consistency,
        }
        each = (
            torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(0)
            / config.unroll
        )
        loss = (each * weight).mean(1)  # [S]: mean within a seed, sum over seeds
        self.optimizer.learning_rate = self._learning_rate()
        descend(
            loss,
            list(self.policy.parameters()),
            self.optimizer,
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
        )
        with torch.no_grad():
            error = model.value_support.decode(guess[:, :, 0]) - value[..., 0]
            # A row that was drawn twice is as urgent as its larger error says, in whatever order they come.
            self.priority.flatten(1).scatter_reduce_(
                1, slot, error.abs() + 1e-6, "amax", include_self=False
            )
            here = torch.stack([value.abs().amax((1, 2)), prefix.abs().amax((1, 2))], 1)
            self.largest.copy_(self.largest.maximum(here))
            self.updates += 1
            if int(self.updates[0]) % config.target_every == 0:
                self.target.load_state_dict(model.state_dict())
        model.eval()
        return {f"loss/{name}": value.detach().mean(1) for name, value in losses.items()} | {
            "value/mean": value[..., 0].mean(1)
        }

    def warnings(self) -> list[str]:
        values, prefixes = self.largest.amax(0).tolist()
        model, found = self.policy.model, []
        for name, what, most, support in (
            ("value", "values", values, model.value_support),
            ("prefix", "summed rewards", prefixes, model.prefix_support),
        ):
            end = support.end()
            if most <= end * 1.001:  # more than rounding
                continue
            limit = math.ceil(float(support.scaled(torch.tensor(most))))
            bins = 1 + math.ceil((support.bins - 1) * limit / support.limit)  # as fine as before
            found.append(
                f"agent.{name}_limit={support.limit:g}: {what} up to ±{most:.4g} were cut to "
                f"±{end:.4g}; set agent.{name}_limit={limit} agent.{name}_bins={bins}"
            )
        return found

    def _learning_rate(self) -> float:
        config, updates = self.config, int(self.updates[0])
        late = config.decay_after is not None and updates >= config.decay_after
        return (
            config.learning_rate
            * min(1.0, (updates + 1) / max(1, config.warmup))
            * (0.1 if late else 1.0)
        )

    def _augmented(self, obs: Tensor) -> Tensor:
        """Pictures [S, B, K, C, H, W], those of one row alike: shifted as if their edges went on, and with another brightness."""
        (seeds, size), (height, width), most = obs.shape[:2], obs.shape[-2:], 4
        draws = self.minibatch.uniform(size, 4)
        down, right = (pick(draws[:, :, i].flatten(), 2 * most + 1) for i in range(2))
        padded = nn.functional.pad(
            obs.flatten(0, 1).float(), (most,) * 4 + (0, 0), mode="replicate"
        )
        crops = padded.unfold(-2, height, 1).unfold(
            -2, width, 1
        )  # [S · B, K, C, 9, 9, H, W], a view
        moved = crops[torch.arange(seeds * size, device=obs.device), :, :, down, right].unflatten(
            0, (seeds, size)
        )
        draws = draws[..., None, None, None, None]  # [S, B, 4, 1, 1, 1, 1]
        normal = (-2 * draws[:, :, 2].clamp(min=1e-7).log()).sqrt() * (
            2 * torch.pi * draws[:, :, 3]
        ).cos()
        return moved * (1 + 0.05 * normal.clamp(-2, 2))

    def _drawn(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """(slots of rows drawn by priority, importance weights), [S, B] each, by uniform `draws`."""
        config, mass = self.config, self.priority.flatten(1) ** self.config.priority_alpha
        # A float32 sum over a million rows would leave out those of small priority.
        total = mass.cumsum(1, dtype=torch.float64)
        slot = torch.searchsorted(total, draws * total[:, -1:], right=True).clamp(
            max=total.shape[1] - 1
        )
        share = mass.gather(1, slot) / total[:, -1:]
        done = (
            min(1.0, int(self.updates[0]) / config.priority_beta_steps)
            if config.priority_beta_steps
            else 0.0
        )
        beta = config.priority_beta + (1 - config.priority_beta) * done
        weight = ((self.replay.stored().unsqueeze(1) * share.clamp(min=1e-12)) ** -beta).float()
        return slot, weight / weight.amax(1, keepdim=True)

    def value_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """n-step returns [S, B, K + 1] of the rows of `batch`, by the target network's values."""
        config, steps, alive = self.config, self.config.unroll + 1, batch["alive"]
        horizon = torch.full_like(batch["age"], config.n_steps)
        if config.off_policy_correction:
            age = batch["age"] * self.replay.written.shape[1]  # environment steps
            horizon = (config.n_steps - age // int(0.3 * config.buffer_size)).clamp(
                1, config.n_steps
            )
        horizon, on = horizon.unsqueeze(-1), alive[..., :steps]
        # Each return is Σ discount^i reward, and `scale` times the value of the row `end`.
        end = torch.arange(steps, device=on.device).expand_as(on)
        value, scale, weight = (
            torch.zeros(on.shape, device=on.device),
            torch.ones(on.shape, device=on.device),
            1.0,
        )
        for i in range(config.n_steps):
            here, next_ = slice(i, i + steps), slice(i + 1, i + 1 + steps)
            use, after = on & (i < horizon), alive[..., next_]
            goes_on, over = use & after, use & batch["terminated"][..., here]
            # Behind a terminal there is nothing; where an episode was cut, or the log ends, the last row's own value stands in.
            value = value + torch.where(goes_on | over, weight * batch["reward"][..., here], 0.0)
            weight *= config.discount
            end = end + goes_on
            scale = torch.where(over, 0.0, torch.where(goes_on, weight, scale))
            on = on & after
        value = value + scale * self._values(
            batch["slot"].gather(2, end), rows_within(batch["obs"], end)
        )
        return torch.where(alive[..., :steps], value, 0.0)

    def policy_targets(self, batch: dict[str, Tensor]) -> Tensor:
        """What searches said of the rows [S, B, K + 1, A]: for a part of them new ones, by the target network."""
        steps, fresh = self.config.unroll + 1, round(self.config.reanalyse * batch["obs"].shape[1])
        policy = batch["policy"][:, :, :steps].clone()
        if fresh:
            policy[:, :fresh] = self._searched(
                batch["slot"][:, :fresh, :steps], batch["obs"][:, :fresh, :steps]
            )[..., :-1]
        return policy

    def _values(self, slot: Tensor, obs: Tensor) -> Tensor:
        """What the target network says that the rows in `slot` [S, B, K] are worth, [S, B, K]."""
        if self.config.bootstrap == "search":
            return self._searched(slot, obs)[..., -1]
        return self._asked(
            self.valued, lambda obs: self.target.values(obs).unsqueeze(-1), slot, obs
        ).squeeze(-1)

    def _searched(self, slot: Tensor, obs: Tensor) -> Tensor:
        """What searches with the target network say of the rows in `slot` [S, B, K]: policy and value, [S, B, K, A + 1]."""

        def who(obs: Tensor) -> Tensor:
            anew = self.searched is None
            found = (
                self._search(self.target, obs, self.again)
                if anew
                else quiet(self.target, obs, self.policy.search_settings)
            )
            return torch.cat([found.policy, found.value.unsqueeze(-1)], -1)

        return self._asked(self.searched, who, slot, obs)

    def _asked(
        self, memo: TargetCache | None, who: Callable[[Tensor], Tensor], slot: Tensor, obs: Tensor
    ) -> Tensor:
        """`who` on the rows in `slot`, as in `TargetCache.get`."""
        if memo is None:
            return _each(who, obs)
        return memo.get(who, slot, obs, int(self.updates[0]) // self.config.target_every)

    def _prefixes(self, reward: Tensor) -> Tensor:
        """[S, B, K]: rewards summed since the prefix began; single ones without value prefixes."""
        reward = reward[..., : self.config.unroll]
        return reward.cumsum(-1) if self.config.value_prefix else reward


def _each(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`module` on [S, B, K, …] as on [S, B · K, …]."""
    return module(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[…] of distributions […, n]."""
    return -(target * logits.log_softmax(-1)).sum(-1)
