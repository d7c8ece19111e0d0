"""Self-play for games of two players in turn: two Q-learners play each other and a league of their past selves.

Every ply is a step, seen by the player to move. What comes after it is the other's, so the discount is negative: a position is
worth to me what it is not to them (negamax; Littman 1994), and n-step returns alternate by themselves. Both learn from all plies.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Index, Share
from rlx.nn.networks import MLP
from rlx.nn.rng import Streams, pick, pick_allowed
from rlx.nn.schedules import UpdateSchedule, linear
from rlx.nn.seed_axis import polyak_update
from rlx.q_learning import FORBIDDEN, LearnerConfig, QLearner

LEARNERS = 2


@dataclass(frozen=True)
class Config(LearnerConfig):
    """The two learners' settings; exploration counts plies."""

    retired: ClassVar[tuple[str, ...]] = (
        "conv",
        "batch_norm",
        "stack",
        "dueling",
        "bootstrap_truncated",
        "scale_obs",
    )
    """Keys that changed nothing, of older runs."""

    league: Count
    """Past selves kept."""
    league_every: Count
    """Minibatches between two that join it, each in the place of the oldest."""
    league_games: Share
    """Share of the games in which one side is a past self."""
    opening: Index
    """Plies, at most, that a game begins with at random."""
    lookahead: Count
    """Plies, its own move among them, that the greedy player looks ahead; learners play and learn with 1."""
    mirror: bool
    """Learn from the mirror images, left to right, of every other game copy's boards."""


class BoardNet(nn.Module):
    """Action values [S, B, A] of boards [S, B, *O], flat or not; moves against the rules are `FORBIDDEN`. An action is shown to the
    network as the board with its stone, so that all actions share what is learnt of one."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str):
        super().__init__()
        assert spec.rules is not None and spec.observation_space.shape is not None
        self.shape, self.rules = spec.observation_space.shape, spec.rules
        self.features = int(torch.Size(self.shape).numel())
        self.net = MLP(self.features, config.hidden, 1, Streams(seeds, name))

    def forward(self, obs: Tensor) -> Tensor:
        board = obs.flatten(2).unflatten(2, self.shape)
        legal = self.rules.legal(board)
        return (
            self.net(self.rules.after(board).flatten(3).flatten(1, 2))
            .view_as(legal)
            .masked_fill(~legal, FORBIDDEN)
        )

    def taken(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values [S, B] of legal actions [S, B]."""
        after = self.rules.after(obs.unflatten(2, self.shape)).flatten(3)
        return self.net(after.take_along_dim(action[..., None, None], 2).squeeze(2)).squeeze(-1)


def mirrored(after: Tensor) -> Tensor:
    """int64 [A]: which action is each one's mirror image, by what they make of the empty board, [A, *O]."""
    return (after.flip(-1).unsqueeze(1) == after).flatten(2).all(2).long().argmax(1)


class BoardPolicy(Policy):
    """Plays the move that is best by the learnt values of the boards `lookahead` plies on (as Tesauro's TD-Gammon did, 1995)."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str = "q0"):
        super().__init__()
        self.q = BoardNet(config, spec, seeds, name)
        self.lookahead, self.discount = config.lookahead, config.discount

    def initial_carry(self, batch: int) -> Carry:
        device = next(self.parameters()).device
        nothing = torch.zeros(
            next(self.parameters()).shape[0], batch, dtype=torch.int64, device=device
        )
        return {"first": nothing, "second": nothing, "ply": nothing, "opening": nothing}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        return choose(
            "action",
            obs,
            Scores(lambda seen: self.scores(seen, carry, "action")),
            torch.ones_like(first),
        ), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.values(obs, self.lookahead)

    def values(self, obs: Tensor, plies: int) -> Tensor:
        """What the actions [S, B, A] on boards [S, B, *O] lead to within so many plies (negamax), and what is learnt of the rest."""
        learnt = self.q(obs)
        if plies == 1:
            return learnt
        after = self.q.rules.after(obs)
        reply = self.values(after.flip(3).flatten(1, 2), plies - 1).amax(-1).view_as(learnt)
        reply = torch.where(reply == FORBIDDEN, 0.0, reply)  # a full board
        value = torch.where(self.q.rules.line(after), 1.0, -self.discount * reply)
        return torch.where(learnt == FORBIDDEN, learnt, value)


class SelfPlay(Agent):
    """`carry` names the players of each running game: 0 and 1 the learners, from 2 on the league. The first learner is kept."""

    config_type = Config
    policy_type = BoardPolicy
    observations = (spaces.Box,)
    games = True

    policy: BoardPolicy
    joined: Tensor
    decisions: Tensor

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        players = [BoardPolicy(config, spec, seeds, f"q{i}") for i in range(LEARNERS)]
        self.online = nn.ModuleList(players)
        self.policy = copy.deepcopy(players[0])
        self.league = nn.ModuleList(
            copy.deepcopy(players[i % LEARNERS]).requires_grad_(False) for i in range(config.league)
        )
        flat = ((players[0].q.features,), torch.float32)
        self.learners = nn.ModuleList(
            QLearner(
                config,
                player.q,
                BoardNet(config, spec, seeds, f"target{i}"),
                flat,
                num_envs,
                seeds,
                learners=LEARNERS,
            )
            for i, player in enumerate(players)
        )
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng, self.pairing = Streams(seeds, "minibatch"), Streams(seeds, "games")
        self.explore = Streams(seeds, "explore")
        q = players[0].q
        self.mirror = (
            mirrored(q.rules.after(torch.zeros(q.shape, device=seeds.device)))
            if config.mirror
            else None
        )
        self.register_buffer("decisions", torch.zeros_like(seeds))
        self.register_buffer(
            "joined", torch.zeros(len(seeds), dtype=torch.int64)
        )  # on the CPU: read without a sync

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        config = self.config
        players = self._pair(first.shape[1])
        now = {name: torch.where(first, value, carry[name]) for name, value in players.items()}
        ply = torch.where(first, 0, carry["ply"])
        mover = torch.where(ply % 2 == 0, now["first"], now["second"])
        values = torch.stack(
            [player.q(obs) for player in (*self.online, *self.league)], 2
        )  # [S, N, players, A]
        q = values.gather(
            2, mover.view(*mover.shape, 1, 1).expand(-1, -1, -1, values.shape[-1])
        ).squeeze(2)
        which, whether = self.explore.uniform(2, q.shape[1]).unbind(1)
        random = pick_allowed(which, q != FORBIDDEN)
        progress = self.decisions / config.epsilon_steps
        epsilon = linear(config.epsilon_start, config.epsilon_end, progress)
        self.decisions += q.shape[1]
        explores = (whether < epsilon.unsqueeze(1)) | (ply < now["opening"])
        return torch.where(explores, random, q.argmax(-1)), now | {"ply": ply + 1}

    def _pair(self, num_envs: int) -> Carry:
        """New games, [S, N] each: a learner, and the other or one of the league, on random sides; plies at random."""
        side, who, past, which, opening = self.pairing.uniform(num_envs, 5).unbind(-1)
        learner = pick(who, LEARNERS)
        past_self = LEARNERS + pick(which, self.config.league)
        other = torch.where(past < self.config.league_games, past_self, 1 - learner)
        return {
            "first": torch.where(side < 0.5, learner, other),
            "second": torch.where(side < 0.5, other, learner),
            "opening": pick(opening, self.config.opening + 1),
        }

    def update(self, transition: Transition) -> dict[str, Tensor]:
        t = transition
        learner: Any
        obs, next_obs, action = t.obs, t.next_obs, t.action
        if self.mirror is not None:
            flipped = torch.arange(action.shape[1], device=action.device) % 2 == 1
            action = torch.where(flipped, self.mirror[action], action)
            flipped = flipped.view(-1, *[1] * (obs.dim() - 2))
            obs, next_obs = (torch.where(flipped, x.flip(-1), x) for x in (obs, next_obs))
        for learner in self.learners:
            learner.replay.add(
                torch.ones_like(t.terminated),
                obs=obs.flatten(2),
                action=action,
                reward=t.reward,
                discount=-self.config.discount * (~t.terminated).float(),
                next_obs=next_obs.flatten(2),
                last=t.terminated | t.truncated,
            )
        due = self.clock.due()
        if not due:
            return {}
        size = self.config.batch_size
        for draws in self.rng.uniform(due, LEARNERS, size, dtype=torch.float64).unbind(1):
            player: Any
            for i, (learner, player) in enumerate(zip(self.learners, self.online, strict=True)):
                loss, q = learner.learn(player.q, draws[:, i], q_taken=player.q.taken)
        weight = 1 - (1 - self.config.average_tau) ** due
        polyak_update(self.policy, self.online[0], weight)
        self._join(due)
        return {"loss/q": loss, "q/mean": q}

    def _join(self, due: int) -> None:
        """The learners' present selves take the oldest places of the league in turn."""
        before, now = (
            int(count) // self.config.league_every
            for count in (self.joined[0], self.joined[0] + due)
        )
        for number in range(before, now):
            self.league[number % self.config.league].load_state_dict(
                self.online[number % LEARNERS].state_dict()
            )
        self.joined += due
