"""DQN (Mnih et al. 2015) with the usual options: double, dueling, n-step returns, soft or hard target updates."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.agent import (
    Agent,
    Carry,
    Choose,
    Policy,
    Rules,
    Scores,
    Spec,
    Transition,
    greedy,
    random_choice,
)
from rlx.config import at_least, choice
from rlx.nn.encoders import check_conv, is_image, make_encoder, obs_field
from rlx.nn.networks import QNetwork, along, clipped
from rlx.nn.optim import Adam, RMSprop
from rlx.nn.rng import Streams
from rlx.replay import Replay

OPTIMIZERS: dict[str, type[Adam] | type[RMSprop]] = {"adam": Adam, "rmsprop": RMSprop}


@dataclass(frozen=True)
class LearnerConfig:
    """One Q-learner and its exploration, whatever its network is like."""

    hidden: list[int]
    """Units of each hidden layer."""
    double: bool
    """Choose the bootstrap action with the online network (van Hasselt et al. 2016)."""
    n_steps: int
    discount: float
    optimizer: str
    """adam or rmsprop."""
    learning_rate: float
    batch_size: int
    buffer_size: int
    """Transitions kept per seed."""
    learning_starts: int
    """Transitions stored before the first update."""
    replay_ratio: float
    """Updates per environment step of a seed."""
    target_tau: float
    """Weight of the online network in a target update; 1 is a hard copy."""
    target_every: int
    """Updates between two target updates."""
    target_init: str
    """copy: the target starts as the online network; random: from weights of its own."""
    average_tau: float
    """Weight of the learning network, per update, in the running average that acts greedily (Polyak & Juditsky 1992); 1 acts
    on the newest weights. Between two updates a greedy policy can change from good to stuck; its average does not."""
    max_grad_norm: float | None
    """Bound on each seed's gradient norm."""
    max_grad_value: float | None
    """Bound on each gradient element."""
    epsilon_start: float
    epsilon_end: float
    epsilon_steps: int
    """Decisions, per seed, over which exploration falls linearly."""

    def __post_init__(self) -> None:
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")
        choice(self.target_init, ("copy", "random"), "agent.target_init")


@dataclass(frozen=True)
class Config(LearnerConfig):
    """A Q-learner, its exploration and its network."""

    conv: list[list[int]]
    """For observations that are images [C, H, W]: channels, kernel and stride of each layer before them."""
    batch_norm: bool
    """Of images, and behind each convolution."""
    stack: int
    """Last images that are seen together: the newest, and how it differs from each of the others."""
    dueling: bool
    bootstrap_truncated: bool
    """False treats the time limit as a terminal state."""
    scale_obs: bool
    """Divide observations by the space's bound where that is finite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conv(self.conv)
        at_least(self.stack, 1, "agent.stack")


class QLearner(nn.Module):
    """How one Q-network learns: target network, replay, optimiser. A DQN has one of them, a hierarchical DQN two.

    The network itself belongs to the policy and is passed in.
    """

    updates: Tensor

    def __init__(
        self,
        config: LearnerConfig,
        network: nn.Module,
        target: nn.Module,
        obs: tuple[tuple[int, ...], torch.dtype],
        num_envs: int,
        seeds: Tensor,
        stack: int | None = None,
        learners: int = 1,
    ):
        """`target`: another network like `network`; `obs`: (shape, dtype) of one observation;
        `stack`: as of `Replay`; `learners`: how many about as large an agent has."""
        super().__init__()
        self.config = config
        network.eval()
        self.target = target.requires_grad_(False).eval()
        if config.target_init == "copy":
            self.target.load_state_dict(network.state_dict())
        self.optimizer = OPTIMIZERS[config.optimizer](
            list(network.parameters()), config.learning_rate
        )
        fields = {
            "obs": obs,
            "next_obs": obs,
            "action": ((), torch.int64),
            "last": ((), torch.bool),
        }
        fields |= {"reward": ((), torch.float32), "discount": ((), torch.float32)}
        size = config.buffer_size
        self.replay = Replay(len(seeds), num_envs, size, fields, seeds.device, stack, learners)
        self.replay.check_start(config.learning_starts)
        self.register_buffer("updates", torch.zeros_like(seeds))

    def learn(
        self,
        network: nn.Module,
        draws: Tensor,
        where: Tensor | None = None,
        taken: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One minibatch chosen by `draws` ([S, batch_size], uniform), in all seeds or those `where`
        (bool [S]). `taken`: (obs, action [S, B]) → the network's values [S, B] of those actions,
        where that is cheaper than all actions' values.

        Returns loss and mean action value, [S] each.
        """
        if where is None:
            where = torch.ones(len(draws), dtype=torch.bool, device=draws.device)
        batch = self.replay.sample(draws, self.config.n_steps)
        with torch.no_grad():
            next_q = self.target(batch["next_obs"])
            best = (network(batch["next_obs"]) if self.config.double else next_q).argmax(
                -1, keepdim=True
            )
            td_target = batch["reward"] + batch["discount"] * next_q.gather(-1, best).squeeze(-1)
        parameters = list(network.parameters())
        network.train()  # batch normalisation by the batch
        obs, action = batch["obs"], batch["action"]
        q = (
            taken(obs, action)
            if taken
            else network(obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        )
        network.eval()
        loss = nn.functional.smooth_l1_loss(q, td_target, reduction="none").mean(
            1
        )  # [S]: mean within a seed, sum over seeds
        gradients = list(torch.autograd.grad(loss.sum(), parameters))
        with torch.no_grad():
            if self.config.max_grad_norm is not None:
                gradients = clipped(gradients, self.config.max_grad_norm)
            if self.config.max_grad_value is not None:
                gradients = [
                    g.clamp(-self.config.max_grad_value, self.config.max_grad_value)
                    for g in gradients
                ]
            self.optimizer.step(parameters, gradients, where)
            self.updates += where
            moves = where & (self.updates % self.config.target_every == 0)
            weight = self.config.target_tau * moves.to(loss.dtype)
            for slow, fast in zip(
                self.target.state_dict().values(), network.state_dict().values(), strict=True
            ):
                slow.lerp_(fast, along(weight, slow))  # moments of batch normalisation too
        return loss.detach(), q.detach().mean(1)


class EpsilonGreedy(nn.Module):
    """A random choice with probability epsilon, which falls linearly with the decisions of a seed.

    Random is as of `random_choice`, with the `rules` of a game.
    """

    decisions: Tensor

    def __init__(
        self,
        start: float,
        end: float,
        steps: int,
        seeds: Tensor,
        name: str,
        rules: Rules | None = None,
    ):
        super().__init__()
        self.start, self.end, self.steps, self.rules = start, end, steps, rules
        self.rng = Streams(seeds, f"{name}/explore")
        self.register_buffer("decisions", torch.zeros_like(seeds))

    def epsilon(self) -> Tensor:
        """Its current value, [S]."""
        return self.start + (self.end - self.start) * (self.decisions / self.steps).clamp(max=1)

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        q = scores(obs)
        which, whether = self.rng.uniform(2, q.shape[1]).unbind(1)
        random = random_choice(which, q.shape[-1], obs, self.rules)
        choice = torch.where(whether < self.epsilon().unsqueeze(1), random, q.argmax(-1))
        self.decisions += deciding.sum(1)
        return choice


class UpdateSchedule(nn.Module):
    """How many minibatches are due after each vector step; the replay ratio need not be whole.

    None is before a seed has made `learning_starts` environment steps: the host counts them, so
    nobody need ask the device whether there is something to learn from.
    """

    ticks: Tensor

    def __init__(self, seeds: Tensor, num_envs: int, replay_ratio: float, learning_starts: int = 0):
        super().__init__()
        self.num_envs, self.learning_starts = num_envs, learning_starts
        self.per_tick = num_envs * replay_ratio
        self.register_buffer(
            "ticks", torch.zeros(len(seeds), dtype=torch.int64)
        )  # on the CPU: read without a sync

    @property
    def steps(self) -> int:
        """Environment steps that each seed has made."""
        return int(self.ticks[0]) * self.num_envs

    def due(self) -> int:
        """Advance by one vector step."""
        before = int(self.ticks[0])
        self.ticks += 1
        if self.steps < self.learning_starts:
            return 0
        return int((before + 1) * self.per_tick) - int(before * self.per_tick)


@torch.no_grad()
def average(slow: nn.Module, fast: nn.Module, tau: float, updates: int) -> None:
    """Move the running average `slow` by `updates` steps of weight `tau` towards `fast`, moments of normalisation included."""
    for mean, new in zip(
        (*slow.parameters(), *slow.buffers()), (*fast.parameters(), *fast.buffers()), strict=True
    ):
        mean.lerp_(new, 1 - (1 - tau) ** updates)


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


class Legal(nn.Sequential):
    """Action values of which those against the rules are `FORBIDDEN`.

    Of flat observations the board is the last part.
    """

    def __init__(self, spec: Spec, *parts: nn.Module):
        super().__init__(*parts)
        assert spec.rules is not None and spec.observation_space.shape is not None
        self.rules, self.shape = spec.rules, spec.observation_space.shape

    def forward(self, obs: Tensor) -> Tensor:
        board = obs.flatten(2)[..., -torch.Size(self.shape).numel() :].unflatten(2, self.shape)
        return super().forward(obs).masked_fill(~self.rules.legal(board), FORBIDDEN)


FORBIDDEN = -1e3
"""Lower than what any game can lose."""


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
        self.learner = QLearner(config, self.online.q, target, obs, num_envs, seeds, stack)
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
        average(self.policy, self.online, self.config.average_tau, due)
        return {"loss/q": loss, "q/mean": q}
