"""The planned adversary: it searches the env for the worst that the box allows.

It owns copies of the env and knows where an episode begins, so it is an oracle: what no adversary
that only watches can be sure of, and the lowest return that anybody has found.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Scores
from rlx.config import Count, Index
from rlx.env import TensorEnv
from rlx.errors import ConfigError
from rlx.evaluation import SELECTION
from rlx.nn.buffers import free_memory
from rlx.nn.rng import seed_tensor, stream_key, uniform
from rlx.robustness.courses import Move, Nodes, Reel, Trace, Worst
from rlx.robustness.planner import Exploration, Guide, Holds, Search, why_not
from rlx.robustness.sweep import Game, Played
from rlx.robustness.value import ReturnToGo
from rlx.rollout import rollout
from rlx.show import console
from rlx.threat import Adversary, Mode, Witness

HABITS = 0.5
"""Share of the first learning episodes in which one choice is liked for as long as they last."""
LEARNING_WIDTH = 8
"""Courses of each episode that are followed in the later rounds of learning."""
EXPLORE = 0.1
"""Probability of a random choice in the later rounds of learning."""
CROWD = 2
"""Courses that are begun for each env copy that may be played at once: most of them end early.

Ten agents on Acrobot took 62 s so, and 75 s without."""
HOLDS = (1, 8)
"""For how many steps a choice may be asked for: what is worse is found out while learning.

Ten PPO agents on CartPole (steps of 0.02 s), at eps 1 in units of reference: 33 are left without
holding, 23 with 8 steps. hDQN on Acrobot (steps of 0.2 s) loses far less with it."""
LEARNING_RADII = 6
"""Radii at most, evenly spread over the grid, at which it is learnt what states are worth."""


@dataclass(frozen=True)
class Planned(Adversary):
    """A beam search: of each episode the most promising courses are followed, the lowest is kept.

    What a state promises is what the policy itself expects of it, where its scores are values, and
    a regression on the returns of attacked episodes, which is learnt first.
    """

    width: Count
    """Courses of each episode that are followed at once.

    All is searched with half of the width, the steps and the samples first, no choice held."""
    steps: Count
    """Gradient steps towards each choice, by which the reachable ones are found."""
    samples: Index
    """Random corners of the box that are tried at each decision beside the gradients."""
    rounds: Count
    """Rounds of playing and learning what states are worth."""
    learning_episodes: Count
    """Episodes of each policy and radius that are played in a round."""
    updates: Count
    """Minibatches that are learnt from in a round."""

    def check(self, game: Game, modes: Mapping[str, Mode]) -> None:
        reason = why_not(game)
        if reason is not None:
            raise ConfigError(
                f"attack=planned: the env {reason}; use attack=learned or attack=auto."
            )
        self._require_room(game)

    def play(self, game: Game, modes: Mapping[str, Mode]) -> dict[str, Played]:
        self.check(game, modes)
        # A single head's worst course is one for all heads that it is attacked with.
        order = sorted(modes, key=lambda name: len(modes[name].heads))
        reel = None
        if game.filmed:
            reel = Reel([(row, game.first_reset_seed + number) for row, number in game.filmed])
        plans: dict[str, _Plan] = {}
        for name in order:
            own = set(modes[name].heads)
            wider = [mode.heads for mode in modes.values() if own < set(mode.heads)]
            beside = {head for heads in wider for head in heads} - own
            before = [*plans.values()]
            plans[name] = _Plan(self, game, modes[name], tuple(sorted(beside)), before, reel)
            plans[name].make()
        return {name: plans[name].played() for name in modes}

    def _require_room(self, game: Game) -> None:
        """ConfigError where the memory has no room for the courses of one episode of each seed."""
        observation = math.prod(game.opened.spec.observation_space.shape or (1,))
        space = game.opened.spec.action_space
        # Of a continuous action: to leave it, and each number as low and as high as it goes.
        choices = 1 + 2 * math.prod(space.shape or ())
        if isinstance(space, gymnasium.spaces.Discrete):
            choices = int(space.n)
        nodes = len(game.opened.seeds) * self.width * choices
        need = 4.0 * nodes * observation * (choices + 4)
        free = free_memory(game.opened.device)
        if need > free:
            raise ConfigError(
                f"effort.width={self.width}: so many courses of {len(game.opened.seeds)} seeds "
                f"take {need / 1e9:,.0f} GB of memory, and {free / 1e9:,.1f} GB are free; "
                "use a smaller width or fewer seeds."
            )


@dataclass(frozen=True)
class _Learnt:
    """What was learnt from attacked episodes that are not reported."""

    value: ReturnToGo
    """What states are worth."""
    radii: Tensor
    """The radii of those episodes, [R]."""
    hold: Tensor
    """For how many steps choices were held where that was the worst, int64 [S, R]."""


class _Plan:
    """The search for the worst courses of all episodes of a game, in one mode."""

    def __init__(
        self,
        settings: Planned,
        game: Game,
        mode: Mode,
        beside: tuple[str, ...],
        before: Sequence["_Plan"],
        reel: Reel | None,
    ):
        """`beside`: the heads that wider modes attack too; `before`: the finished plans."""
        self.reel = reel
        self.settings = settings
        self.game = game
        self.mode = mode
        self.beside = beside
        self.parts = [plan for plan in before if set(plan.mode.heads) < set(mode.heads)]
        """Plans of some of this mode's heads."""
        device = game.opened.device
        order = np.argsort(game.eps, kind="stable")
        self.order = torch.as_tensor(order, device=device)
        """The numbers of the radii, the smallest first: int64 [E]."""
        episodes = game.episodes
        self.radii = game.radii()[self.order].repeat_interleave(episodes)
        """The radius of each column, [E · P]: the smallest first, all episodes at each."""
        first = game.first_reset_seed + torch.arange(episodes, device=device)
        self.reset_seeds = first.repeat(len(order)).expand(len(game.opened.seeds), -1)
        """Where each column's episode begins, int64 [S, E · P]."""
        self.worst = Worst.none(self.reset_seeds.shape, game.opened.policy.heads, device)
        """The worst courses, [S, E · P]."""
        self.halved = self.worst.returns
        """Their returns [S, E · P] after half of the effort."""
        self.movable_beside = torch.zeros(len(order), dtype=torch.bool, device=device)
        """Whether a head of `beside` could be moved on these courses, at each radius, bool [E]."""
        self.looked_everywhere = True
        """Whether the heads of `beside` were looked at on all courses, at every step."""
        self.searched = False
        """Whether anything was searched that the parts had not settled."""

    def make(self) -> None:
        """Search, first with half of the effort."""
        for part in self.parts:
            self.worst = self.worst.lower(part.worst)
        columns = self._worthwhile()
        self.searched = len(columns) > 0
        if not self.searched:
            # It is as converged as its parts are.
            self.halved = torch.stack([part.halved for part in self.parts]).amin(0)
            return
        guides = self._guides()
        half = _halved(self.settings)
        unit = f"courses of {' and '.join(self.mode.heads)}"
        with console.Progress(2 * len(columns), unit=unit, quarters=True) as progress:
            self._search_all(columns, guides, half, None, progress, 0)
            self.halved = self.worst.returns.clone()
            if (half.steps, half.samples) != (self.settings.steps, self.settings.samples):
                # More steps and samples may see more courses.
                self.worst.exact[:, columns] = False
            self._search_all(columns, guides, self.settings, self._holds, progress, len(columns))

    def _worthwhile(self) -> Tensor:
        """The columns, int64 [B], at which this mode can find more than its parts have found.

        It cannot where no other head was seen to be movable on the courses of one of the parts:
        then these are all courses of this mode. Of many courses not all were looked at, and the
        episodes are not called exact.
        """
        settled = torch.zeros_like(self.radii, dtype=torch.bool)
        for part in self.parts:
            same = (~part.movable_beside).repeat_interleave(self.game.episodes)
            if part.looked_everywhere:
                self.worst.exact |= part.worst.exact & same
            settled |= same
        return (~settled).nonzero().squeeze(1)

    def _search_all(
        self,
        columns: Tensor,
        guides: Sequence[Guide],
        effort: Planned,
        holds: Holds | None,
        progress: console.Progress,
        done: int,
    ) -> None:
        """Search the `columns` with an `effort`, chunk by chunk, the smallest radii first."""
        game = self.game
        width = effort.width
        rows = len(game.opened.seeds) * width
        for chunk in columns.split(max(1, CROWD * game.max_num_envs // rows)):
            self._inherit()
            search = self._search(guides, effort, holds)
            search.reel = self.reel
            worst = self.worst.columns(chunk)
            self.worst.put(
                chunk, search.run(self.reset_seeds[:, chunk], self.radii[chunk], width, worst=worst)
            )
            numbers = chunk // game.episodes
            self.movable_beside[numbers[search.movable_beside.any(0)]] = True
            self.looked_everywhere &= search.looked_everywhere
            done += len(chunk)
            progress.update(done)
        self._inherit()

    def _inherit(self) -> None:
        """Let each radius use what a smaller one can: a larger box holds the smaller one."""
        episodes = self.game.episodes
        columns = torch.arange(episodes, device=self.radii.device)
        for number in range(1, len(self.order)):
            here = columns + number * episodes
            smaller = self.worst.columns(here - episodes)
            self.worst.put(here, self.worst.columns(here).lower(smaller))

    def _search(self, guides: Sequence[Guide], effort: Planned, holds: Holds | None) -> Search:
        """A search of this mode's heads."""
        return Search(
            self.game,
            self.mode.heads,
            effort.steps,
            effort.samples,
            guides,
            beside=self.beside,
            holds=holds,
        )

    def _holds(self, radii: Tensor) -> Tensor:
        """For how long choices are held at the `radii` [B], int64 [S, B]: as was the worst at the
        nearest radius at which it was tried."""
        distance = (radii.unsqueeze(1) - self.learnt.radii).abs()
        return self.learnt.hold[:, distance.argmin(1)]

    def _guides(self) -> list[Guide]:
        """What a state promises: what is learnt, and the policy's own values where it has some.

        On Acrobot a policy's own values lead better, on CartPole, where all are alike, what is
        learnt does.
        """
        policy = self.game.opened.policy
        if not policy.scores_are_values:
            return [self._learnt_value]
        head = policy.heads[0]

        def own_value(nodes: Nodes, radius: Tensor, time: float) -> Tensor:
            return policy.scores(nodes.obs, nodes.carry, head).amax(-1).double()

        return [own_value, self._learnt_value]

    def _learnt_value(self, nodes: Nodes, radius: Tensor, time: float) -> Tensor:
        """A `Guide`: the value of states, which is learnt when it is first asked for."""
        return self.learnt.value(nodes.obs, radius, time)

    @cached_property
    def learnt(self) -> "_Learnt":
        """What states are worth, and how long choices are held: a policy iteration.

        Play, fit the returns, play by what was learnt, and so on, on episodes that are none of
        those reported; the first are played by chance and by habit. In the first half of the rounds
        each way to hold choices is played in its share of the episodes; after that, the one that
        was worse for each policy and radius.
        """
        game = self.game
        settings = self.settings
        device = game.opened.device
        seeds = seed_tensor(game.opened.seeds, device)
        tried = self._learning_radii()
        radii = tried.repeat_interleave(settings.learning_episodes)
        episode = torch.arange(settings.learning_episodes, device=device)
        features = math.prod(game.opened.spec.observation_space.shape or ())
        value = ReturnToGo(seeds, features, float(tried.max()))
        key = stream_key(seeds, "habits")
        habit = uniform(key, torch.zeros_like(key), len(radii)) < HABITS
        ways = torch.tensor(HOLDS, device=device)
        worst_way = torch.ones(len(seeds), len(tried), dtype=torch.int64, device=device)

        def guide(nodes: Nodes, radius: Tensor, time: float) -> Tensor:
            return value(nodes.obs, radius, time)

        batches: list[list[tuple[Tensor, ...]]] = []
        for number in range(settings.rounds):
            trying = number <= settings.rounds // 2 and len(episode) >= len(ways)
            start = episode
            hold = worst_way.unsqueeze(-1).expand(-1, -1, len(episode))
            if trying:
                # All ways begin in the same states.
                start = episode // len(ways)
                hold = ways[episode % len(ways)].expand_as(hold)
            resets = (SELECTION + start).repeat(len(tried)).expand(len(seeds), -1)
            search = self._search([guide] if number else [], settings, _always(hold.flatten(1)))
            exploration = Exploration(EXPLORE if number else 1.0, habit)
            width = min(LEARNING_WIDTH, settings.width) if number else 1
            trace = Trace()
            worst = search.run(resets, radii, width, exploration=exploration, trace=trace)
            if trying:
                returns = worst.returns.unflatten(1, (len(tried), -1))
                means = [returns[..., way :: len(ways)].mean(-1) for way in range(len(ways))]
                worst_way = ways[torch.stack(means).argmin(0)]
            # What was played two rounds before was played worse.
            batches = [*batches[-1:], list(self._rows(trace, radii))]
            value.fit([row for batch in batches for row in batch], settings.updates)
        return _Learnt(value, tried, worst_way)

    def _learning_radii(self) -> Tensor:
        """The radii at which it is learnt what states are worth, float32 [R]."""
        positive = [radius for radius in self.game.eps if radius > 0]
        numbers = np.linspace(0, len(positive) - 1, min(LEARNING_RADII, len(positive)))
        chosen = [positive[round(number)] for number in numbers]
        return torch.tensor(chosen, dtype=torch.float32, device=self.game.opened.device)

    def _rows(self, trace: Trace, radii: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """What `ReturnToGo.fit` learns from the nodes of a search: one tuple for each step."""
        limit = self.game.opened.make_env(1).max_episode_steps or 1
        for step, nodes, lowest in trace.lowest():
            rest = lowest - nodes.total
            counts = rest.isfinite()
            time = torch.full_like(rest, step / limit)
            yield nodes.obs, radii[nodes.column], time, rest.masked_fill(~counts, 0.0), counts

    def played(self) -> Played:
        """What was found, as a sweep reports it."""
        back = self.order.argsort()

        def cells(values: Tensor) -> np.ndarray:
            """`values` [S, E · P] as [S, E, P], the radii as the game names them."""
            return values.unflatten(1, (len(back), -1))[:, back].cpu().numpy()

        facts = {name: cells(fact) for name, fact in self.worst.facts.items()}
        replay = None
        if self.reel is not None:
            replay = partial(_replay, self.game, self.reel, facts["frame"])
        return Played(
            returns=cells(self.worst.returns),
            lengths=facts["lengths"],
            truncated=facts["truncated"],
            decisions={head: facts[f"decisions/{head}"] for head in self.game.opened.policy.heads},
            flips={head: facts[f"flips/{head}"] for head in self.mode.heads},
            halved=cells(self.halved),
            exact=cells(self.worst.exact),
            settled=not self.searched or bool(self.worst.exact.all()),
            replay=replay,
        )


def _replay(
    game: Game,
    reel: Reel,
    frames: np.ndarray,
    row: int,
    number: int,
    episode: int,
    env: TensorEnv,
    witness: Witness,
) -> None:
    """Play an episode again, whose course is in `reel`; the last five are as of `Replay`."""
    course = reel.courses[int(frames[row, number, episode])]
    steps = {head: iter(course) for head in game.opened.policy.heads}

    def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        moves = next(steps[head], None)
        if moves is None:  # the episode is over
            return scores.best(obs.float())
        move = Move(*(value.unsqueeze(0).unsqueeze(0) for value in moves[head]))
        scores.best(move.shown)  # a policy's memory may keep what it was shown
        witness(head, obs, *move)
        return move.decision

    rollout(game.policy_of(row), env, game.reset_seeds_of(episode), lambda ids: choose)


def _halved(settings: Planned) -> Planned:
    """Half of the width, the steps and the samples."""
    return replace(
        settings,
        width=max(1, settings.width // 2),
        steps=max(1, settings.steps // 2),
        samples=settings.samples // 2,
    )


def _always(hold: Tensor) -> Holds:
    """To `hold` [S, B], whatever the radii are."""
    return lambda radii: hold
