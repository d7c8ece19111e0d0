"""Deep Q-learning (Mnih et al. 2015) of one network: what agents with a target network share.

The options are the usual ones: double Q-learning, n-step returns, soft or hard target updates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlx.agent import Scores, Spec
from rlx.config import Count, Index, PerSeed, Positive, Share, choice
from rlx.defence import Decisions, Guard
from rlx.defences.wocar import WocaR, WorstCaseQ, worst_case_loss
from rlx.errors import ConfigError
from rlx.nn.networks import QNetwork
from rlx.nn.optim import OPTIMIZERS, descend
from rlx.nn.seed_axis import polyak_update
from rlx.replay import Replay

FORBIDDEN = -1e3
"""Value of an illegal action: lower than what any game can lose."""


@dataclass(frozen=True)
class LearnerConfig:
    """One Q-learner and its exploration, whatever its network is like."""

    hidden: list[Count]
    """Units of each hidden layer."""
    double: bool
    """Choose the bootstrap action with the online network (van Hasselt et al. 2016)."""
    n_steps: PerSeed[Count]
    """Rewards that are summed before the target network's value is added."""
    discount: PerSeed[Share]
    """Factor by which a reward one step later is worth less."""
    optimizer: str
    """`adam` or `rmsprop`."""
    learning_rate: PerSeed[Positive]
    """Step size of the optimiser."""
    batch_size: Count
    """Transitions in a minibatch of one seed."""
    buffer_size: Count
    """Transitions kept per seed."""
    learning_starts: Index
    """Transitions stored, per seed, before the first update."""
    replay_ratio: Positive
    """Updates per environment step of a seed."""
    target_tau: PerSeed[Share]
    """Weight of the online network in a target update; 1 is a hard copy."""
    target_every: PerSeed[Count]
    """Updates between two target updates."""
    target_init: str
    """`copy`: the target starts as the online network; `random`: from weights of its own."""
    average_tau: PerSeed[Share]
    """Weight of the learning network, per update, in the running average that acts greedily.

    1 acts on the newest weights. Between two updates a greedy policy can change from good to stuck;
    its average does not (Polyak & Juditsky 1992).
    """
    max_grad_norm: PerSeed[Positive] | None
    """Bound on the norm of each seed's gradient; null: none."""
    max_grad_value: PerSeed[Positive] | None
    """Bound on each element of the gradient; null: none."""
    epsilon_start: PerSeed[Share]
    """Probability of a random choice at the first decision."""
    epsilon_end: PerSeed[Share]
    """Probability of a random choice from `epsilon_steps` decisions on."""
    epsilon_steps: PerSeed[Count]
    """Decisions, per seed, over which exploration falls linearly."""

    def __post_init__(self) -> None:
        choice(self.optimizer, OPTIMIZERS, "agent.optimizer")
        choice(self.target_init, ("copy", "random"), "agent.target_init")


class QLearner(nn.Module):
    """How one Q-network learns: target network, replay and optimiser.

    A DQN has one of them, a hierarchical DQN two. The network itself belongs to the policy and is
    passed in.
    """

    updates: Tensor
    """Updates of each seed so far, int64 [S]."""

    def __init__(
        self,
        config: LearnerConfig,
        network: nn.Module,
        target: nn.Module,
        obs: tuple[tuple[int, ...], torch.dtype],
        num_envs: int,
        seeds: Tensor,
        *,
        stack: int | None = None,
        learners: int = 1,
        guard: Guard | None = None,
    ):
        """Learn `network`, with `target`, another network of the same shape.

        `obs`: (shape, dtype) of one observation; `stack`: as of `Replay`; `learners`: how many
        about as large as this one the agent has, for the memory that they need together; `guard`:
        what defends the decisions.
        """
        super().__init__()
        self.config = config
        self.guard = guard
        has_worst_case = isinstance(list(network.children())[-1], WorstCaseQ)
        if guard is not None and isinstance(guard.defence, WocaR) and not has_worst_case:
            raise ConfigError("agent.defence: WocaR needs agent=dqn, which has a network for it.")
        network.eval()
        self.target = target.requires_grad_(False).eval()
        if config.target_init == "copy":
            self.target.load_state_dict(network.state_dict())
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(list(network.parameters()), config.learning_rate)
        fields = {
            "obs": obs,
            "next_obs": obs,
            "action": ((), torch.int64),
            "last": ((), torch.bool),
            "reward": ((), torch.float32),
            "discount": ((), torch.float32),
        }
        self.replay = Replay(
            len(seeds),
            num_envs,
            config.buffer_size,
            fields,
            seeds.device,
            stack,
            n_steps=config.n_steps,
            replays=learners,
        )
        self.replay.check_start(config.learning_starts)
        self.register_buffer("updates", torch.zeros_like(seeds))

    def learn(
        self,
        network: nn.Module,
        draws: Tensor,
        where: Tensor | None = None,
        value_of_taken: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Learn from one minibatch; returns (loss [S], mean value of the actions taken [S]).

        `draws`: float64 [S, batch_size], uniform, choose the minibatch. `where`: bool [S], the
        seeds that learn; None: all. `value_of_taken`: (obs [S, B, *O], action [S, B]) → the
        network's values [S, B] of those actions, where that is cheaper than those of all actions.
        """
        if where is None:
            where = torch.ones(len(draws), dtype=torch.bool, device=draws.device)
        batch = self.replay.sample(draws)
        target = self._target(network, batch)
        obs = batch["obs"]
        decisions = self._guarded(network, batch)
        if decisions is not None:
            obs = decisions.learnt()
        # Batch normalisation goes by the minibatch's moments here, and only here.
        network.train()
        if value_of_taken is None:
            q = _values_of_taken(network, obs, batch["action"])
        else:
            q = value_of_taken(obs, batch["action"])
        network.eval()
        # Huber's loss; its mean within each seed, [S].
        loss = nn.functional.smooth_l1_loss(q, target, reduction="none").mean(1)
        if decisions is not None:
            loss = loss + decisions.penalty()
            loss = loss + self._worst_case_loss(network, batch)
        descend(
            loss,
            list(network.parameters()),
            self.optimizer,
            where=where,
            max_grad_norm=self.config.max_grad_norm,
            max_grad_value=self.config.max_grad_value,
        )
        self._update_target(network, where)
        return loss.detach(), q.detach().mean(1)

    def _guarded(self, network: nn.Module, batch: dict[str, Tensor]) -> Decisions | None:
        """The decisions of a minibatch, where they are defended."""
        if self.guard is None:
            return None
        assert isinstance(network, nn.Sequential)
        encoder, net = network.children()

        def interval(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            assert isinstance(net, (QNetwork, WorstCaseQ))
            # An encoder keeps the order of numbers.
            return net.interval(encoder(low), encoder(high))

        return self.guard.decisions(
            Scores(network),
            interval,
            batch["obs"],
            batch["action"],
            self._steps(),
        )

    def _steps(self) -> Tensor:
        """Environment steps [S] of the updates so far."""
        return self.updates / self.config.replay_ratio

    def _worst_case_loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss [S] of worst-case values; of a defence without them there is none."""
        assert self.guard is not None
        if not isinstance(self.guard.defence, WocaR):
            return torch.zeros_like(self.updates, dtype=torch.float32)
        budget = self.guard.budget(batch["next_obs"], self._steps())
        return worst_case_loss(network, self.target, batch, budget).mean(1)

    @torch.no_grad()
    def _target(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """reward + discount · the target network's value of the best next action, [S, B]."""
        next_q = _usual_values(self.target, batch["next_obs"])
        chooser = _usual_values(network, batch["next_obs"]) if self.config.double else next_q
        best = chooser.argmax(-1, keepdim=True)
        return batch["reward"] + batch["discount"] * next_q.gather(-1, best).squeeze(-1)

    @torch.no_grad()
    def _update_target(self, network: nn.Module, where: Tensor) -> None:
        """Count an update of the seeds `where`, and move the target of those where it is due."""
        self.updates += where
        due = where & (self.updates % self.config.target_every == 0)
        dtype = next(network.parameters()).dtype
        polyak_update(self.target, network, self.config.target_tau * due.to(dtype))


def _usual_values(network: nn.Module, obs: Tensor) -> Tensor:
    """The values [S, B, A] of play that nobody attacks: all, but of a `WorstCaseQ`."""
    parts = list(network.children())
    if isinstance(parts[-1], WorstCaseQ):
        usual, _ = parts[-1].both(parts[0](obs))
        return usual
    return network(obs)


def _values_of_taken(network: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    """The network's values [S, B] of the actions [S, B] that were taken, differentiable in it."""
    return _usual_values(network, obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)


class Legal(nn.Sequential):
    """Action values of which those against the rules are `FORBIDDEN`.

    Of flat observations the board is the last part.
    """

    def __init__(self, spec: Spec, *parts: nn.Module):
        super().__init__(*parts)
        assert spec.rules is not None and spec.observation_space.shape is not None
        self.rules = spec.rules
        self.shape = spec.observation_space.shape

    def forward(self, obs: Tensor) -> Tensor:
        squares = torch.Size(self.shape).numel()
        board = obs.flatten(2)[..., -squares:].unflatten(2, self.shape)
        return super().forward(obs).masked_fill(~self.rules.legal(board), FORBIDDEN)
