"""Self-play for games of two players in turn: two Q-learners and a league of their past selves.

Every ply is a step, seen by the player to move. The next one is the opponent's, so the discount is
negative: a position is worth to one player what it costs the other (negamax; Littman 1994), and the
signs of n-step returns alternate. Both learners learn from all plies.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlx.agent import Agent, Carry, Choose, Part, Policy, Scores, Spec, Transition, greedy
from rlx.config import Count, Index, PerSeed, Share
from rlx.nn.networks import MLP
from rlx.nn.per_seed import add_numbers
from rlx.nn.rng import Streams, pick, pick_allowed
from rlx.nn.schedules import UpdateSchedule, linear
from rlx.nn.seed_axis import along, polyak_update
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
    """How many past selves are kept."""
    league_every: Count
    """Minibatches after which a learner's present self replaces the oldest past one."""
    league_games: PerSeed[Share]
    """Share of the games in which one side is a past self."""
    opening: PerSeed[Index]
    """Most random plies that a game begins with."""
    lookahead: Count
    """Plies, its own move among them, that the greedy player looks ahead; learners look 1 ahead."""
    mirror: bool
    """Every other env copy learns from the mirror images, left to right, of its boards."""


class BoardNet(nn.Module):
    """Boards [S, B, *O], flat or not → action values [S, B, A]; of illegal moves `FORBIDDEN`.

    The network sees an action as the board with its stone: so all actions share what is learnt
    about one.
    """

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str):
        super().__init__()
        assert spec.rules is not None and spec.observation_space.shape is not None
        self.shape = spec.observation_space.shape
        self.rules = spec.rules
        self.features = int(torch.Size(self.shape).numel())
        self.net = MLP(self.features, config.hidden, 1, Streams(seeds, name))

    def forward(self, obs: Tensor) -> Tensor:
        board = obs.flatten(2).unflatten(2, self.shape)
        legal = self.rules.legal(board)
        after = self.rules.after(board).flatten(3)  # [S, B, A, F]
        values = self.net(after.flatten(1, 2)).view_as(legal)
        return values.masked_fill(~legal, FORBIDDEN)

    def taken(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values [S, B] of legal actions [S, B] on flat boards [S, B, F]."""
        after = self.rules.after(obs.unflatten(2, self.shape)).flatten(3)
        board = after.take_along_dim(action[..., None, None], 2).squeeze(2)
        return self.net(board).squeeze(-1)


def mirrored(after: Tensor) -> Tensor:
    """int64 [A]: each action's mirror image.

    `after` [A, *O]: what the actions make of the empty board.
    """
    same = after.flip(-1).unsqueeze(1) == after  # [A, A, *O]
    return same.flatten(2).all(2).long().argmax(1)


class BoardPolicy(Policy):
    """Plays the best move by the learnt values of the boards `lookahead` plies on.

    Tesauro's TD-Gammon (1995) played so. The carry holds, [S, B] each, the players of the game
    (`first`, `second`), its plies so far (`ply`) and how many of them are random (`opening`).
    """

    discount: float | Tensor
    """`config.discount`: one number, or [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, name: str = "q0"):
        super().__init__()
        self.q = BoardNet(config, spec, seeds, name)
        self.lookahead = config.lookahead
        add_numbers(self, discount=config.discount)

    def initial_carry(self, batch: int) -> Carry:
        parameter = next(self.parameters())
        zeros = torch.zeros(len(parameter), batch, dtype=torch.int64, device=parameter.device)
        return {"first": zeros, "second": zeros, "ply": zeros, "opening": zeros}

    def act(
        self, obs: Tensor, first: Tensor, carry: Carry, choose: Choose = greedy
    ) -> tuple[Tensor, Carry]:
        scores = Scores(lambda obs: self.scores(obs, carry, "action"))
        return choose("action", obs, scores, torch.ones_like(first)), carry

    def scores(self, obs: Tensor, carry: Carry, head: str) -> Tensor:
        return self.values(obs, self.lookahead)

    def values(self, obs: Tensor, plies: int) -> Tensor:
        """Action values [S, B, A] on boards [S, B, *O], by a search of so many `plies` (negamax).

        The boards at its end have the learnt values.
        """
        learnt = self.q(obs)
        if plies == 1:
            return learnt
        after = self.q.rules.after(obs)
        reply = self.values(after.flip(3).flatten(1, 2), plies - 1).amax(-1).view_as(learnt)
        # No reply is legal on a full board: a draw.
        reply = torch.where(reply == FORBIDDEN, 0.0, reply)
        value = -along(self.discount, reply) * reply
        value = torch.where(self.q.rules.has_won(after), 1.0, value)
        return torch.where(learnt == FORBIDDEN, learnt, value)


class SelfPlay(Agent):
    """Two learners, of whom the first is the policy that is kept.

    The carry names the players of each running game: 0 and 1 are the learners, 2 and more the
    league.
    """

    config_type = Config
    policy_type = BoardPolicy
    observations = (spaces.Box,)
    games = True

    policy: BoardPolicy
    joined: Tensor
    """Minibatches so far, int64 [S], all equal, and on the CPU: it is read without a sync."""
    decisions: Tensor
    """Plies of each seed so far, int64 [S]."""

    def __init__(self, config: Config, spec: Spec, seeds: Tensor, num_envs: int):
        super().__init__()
        self.config = config
        players = [BoardPolicy(config, spec, seeds, f"q{i}") for i in range(LEARNERS)]
        self.online = nn.ModuleList(players)
        self.policy = copy.deepcopy(players[0])
        past_selves = [copy.deepcopy(players[i % LEARNERS]) for i in range(config.league)]
        self.league = nn.ModuleList(past_selves).requires_grad_(False)
        net = players[0].q
        self.learners = nn.ModuleList()
        for i, player in enumerate(players):
            target = BoardNet(config, spec, seeds, f"target{i}")
            obs = ((net.features,), torch.float32)
            learner = QLearner(config, player.q, target, obs, num_envs, seeds, learners=LEARNERS)
            self.learners.append(learner)
        self.clock = UpdateSchedule(seeds, num_envs, config.replay_ratio, config.learning_starts)
        self.rng = Streams(seeds, "minibatch")
        self.pairing = Streams(seeds, "games")
        self.explore = Streams(seeds, "explore")
        self.mirror: Tensor | None = None
        """Each action's mirror image, int64 [A]."""
        if config.mirror:
            self.mirror = mirrored(net.rules.after(torch.zeros(net.shape, device=seeds.device)))
        self.register_buffer("decisions", torch.zeros_like(seeds))
        self.register_buffer("joined", torch.zeros(len(seeds), dtype=torch.int64))

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        config = self.config
        new_games = self._pair(first.shape[1])
        games = {name: torch.where(first, new, carry[name]) for name, new in new_games.items()}
        ply = torch.where(first, 0, carry["ply"])
        mover = torch.where(ply % 2 == 0, games["first"], games["second"])
        q = self._values(obs, mover)
        action_draw, explore_draw = self.explore.uniform(2, q.shape[1]).unbind(1)
        random = pick_allowed(action_draw, q != FORBIDDEN)
        progress = self.decisions / config.epsilon_steps
        epsilon = linear(config.epsilon_start, config.epsilon_end, progress)
        self.decisions += q.shape[1]
        explores = (explore_draw < epsilon.unsqueeze(1)) | (ply < games["opening"])
        action = torch.where(explores, random, q.argmax(-1))
        return action, games | {"ply": ply + 1}

    def _values(self, obs: Tensor, mover: Tensor) -> Tensor:
        """Action values [S, N, A] by the network of the player to move, `mover` [S, N]."""
        players = (*self.online, *self.league)
        values = torch.stack([player.q(obs) for player in players], 2)  # [S, N, players, A]
        index = mover.view(*mover.shape, 1, 1).expand(-1, -1, -1, values.shape[-1])
        return values.gather(2, index).squeeze(2)

    def _pair(self, num_envs: int) -> Carry:
        """New games, int64 [S, N] each: the players `first` and `second`, and the random plies.

        One player is a learner, the other one the second learner or one of the league; who begins
        is random.
        """
        draws = self.pairing.uniform(num_envs, 5)
        side_draw, learner_draw, league_draw, past_self_draw, opening_draw = draws.unbind(-1)
        learner = pick(learner_draw, LEARNERS)
        past_self = LEARNERS + pick(past_self_draw, self.config.league)
        against_past_self = league_draw < along(self.config.league_games, league_draw)
        opponent = torch.where(against_past_self, past_self, 1 - learner)
        learner_begins = side_draw < 0.5
        return {
            "first": torch.where(learner_begins, learner, opponent),
            "second": torch.where(learner_begins, opponent, learner),
            "opening": pick(opening_draw, along(self.config.opening, opening_draw) + 1),
        }

    def store(self, transition: Transition) -> None:
        """Store a ply in the replays of both learners."""
        obs = transition.obs
        next_obs = transition.next_obs
        action = transition.action
        if self.mirror is not None:
            flipped = torch.arange(action.shape[1], device=action.device) % 2 == 1  # [N]
            action = torch.where(flipped, self.mirror[action], action)
            flipped = along(flipped, obs[0])  # [N, 1, …]
            obs = torch.where(flipped, obs.flip(-1), obs)
            next_obs = torch.where(flipped, next_obs.flip(-1), next_obs)
        discount = along(self.config.discount, transition.reward)
        for learner in self.learners:
            assert isinstance(learner, QLearner)
            learner.replay.add(
                torch.ones_like(transition.terminated),
                obs=obs.flatten(2),
                action=action,
                reward=transition.reward,
                discount=-discount * (~transition.terminated).float(),
                next_obs=next_obs.flatten(2),
                last=transition.terminated | transition.truncated,
            )

    def due(self) -> list[Part]:
        due = self.clock.advance()
        if not due:
            return []
        return [self.learn] * due + [partial(self.average, due), lambda: self._update_league(due)]

    def learn(self) -> dict[str, Tensor]:
        """Let both learners learn from a minibatch each; metrics [S], of the second."""
        draws = self.rng.uniform(LEARNERS, self.config.batch_size, dtype=torch.float64)
        for i, (learner, player) in enumerate(zip(self.learners, self.online, strict=True)):
            assert isinstance(learner, QLearner) and isinstance(player, BoardPolicy)
            loss, q = learner.learn(player.q, draws[:, i], value_of_taken=player.q.taken)
        return {"loss/q": loss, "q/mean": q}

    def average(self, updates: int) -> dict[str, Tensor]:
        """Move the policy that acts greedily towards the first learner, after so many updates."""
        polyak_update(self.policy, self.online[0], 1 - (1 - self.config.average_tau) ** updates)
        return {}

    def _update_league(self, due: int) -> dict[str, Tensor]:
        """Count `due` minibatches, and let present selves replace past ones, each in its turn."""
        minibatches = int(self.joined[0])
        replaced = minibatches // self.config.league_every
        replaced_now = (minibatches + due) // self.config.league_every
        for number in range(replaced, replaced_now):
            present = self.online[number % LEARNERS]
            self.league[number % self.config.league].load_state_dict(present.state_dict())
        self.joined += due
        return {}
