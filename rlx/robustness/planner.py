"""A beam search through attacked episodes, in copies of the env, over what the box can force."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Carry, Scores
from rlx.env import TensorEnv
from rlx.envs.batched import BatchedEnv
from rlx.envs.view import View
from rlx.nn.rng import mix64, seed_tensor, stream_key, uniform
from rlx.nn.seed_axis import rows_within
from rlx.robustness.attacker import flipped
from rlx.robustness.reachable import Reachable, reachable
from rlx.robustness.sweep import Game

MANY_NODES = 2_000
"""Nodes from which heads that are left alone are looked at in turn, and not at every step."""
LOOK_SHARE = 8
"""Steps between two looks at an episode then."""


def why_not(game: Game) -> str | None:
    """Why this env cannot be searched, in words that follow "the env"; None: it can."""
    spec = game.opened.spec
    env = game.opened.make_env(1)
    if spec.stack > 1:
        return "stacks observations (env.stack)"
    if isinstance(env, View):
        env = env.env
    if not isinstance(env, BatchedEnv):
        return "cannot be copied: it is none of rlx's own"
    if env.dynamics.transition_draws > 0:
        return "is random: a plan would know the dice"
    return None


def counted(heads: Sequence[str]) -> list[str]:
    """The names of what is counted of the attacked `heads`."""
    return [f"{count}/{head}" for head in heads for count in ("decisions", "flips")]


@dataclass
class Nodes:
    """Episodes that are under way: K nodes of each of S seeds, side by side."""

    obs: Tensor
    """What the policy would see without an attack, [S, K, *O]."""
    first: Tensor
    """Whether the episode begins here, bool [S, K]."""
    carry: Carry
    """The policy's memory, [S, K, …] each."""
    column: Tensor
    """The number of the episode that the node is a course of, int64 [S, K]."""
    total: Tensor
    """The reward so far, float64 [S, K]."""
    copy: Tensor
    """The number of the env's copy that the node is in, among those of its seed, int64 [S, K]."""
    alive: Tensor
    """Whether the node is one; false where only the shape needs it, bool [S, K]."""
    counts: dict[str, Tensor]
    """`decisions/<head>` and `flips/<head>` so far, of each attacked head, int64 [S, K]."""

    def at(self, index: Tensor, alive: Tensor) -> "Nodes":
        """The nodes `index` of each seed, of which those that are `alive` are some; [S, K']."""

        def picked(value: Tensor) -> Tensor:
            return rows_within(value, index)

        return Nodes(
            obs=picked(self.obs),
            first=picked(self.first),
            carry={name: picked(value) for name, value in self.carry.items()},
            column=picked(self.column),
            total=picked(self.total),
            copy=picked(self.copy),
            alive=alive,
            counts={name: picked(count) for name, count in self.counts.items()},
        )


@dataclass
class Worst:
    """The course with the lowest return that was found of each of S · B episodes."""

    returns: Tensor
    """Undiscounted returns, float64 [S, B]; infinite where no course has been found."""
    exact: Tensor
    """Whether every course was followed that what was reachable allows, bool [S, B]."""
    last: Tensor
    """The number of the node with which the course ended, among all children of that step."""
    facts: dict[str, Tensor]
    """What else is known of the courses, [S, B] each: `lengths` in environment steps, whether the
    time limit ended them (`truncated`), and of each attacked head the decisions taken and changed
    (`decisions/<head>`, `flips/<head>`)."""

    @classmethod
    def none(cls, shape: torch.Size, heads: Sequence[str], device: torch.device) -> "Worst":
        """No course of any episode."""
        returns = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        exact = torch.zeros(shape, dtype=torch.bool, device=device)
        zeros = torch.zeros(shape, dtype=torch.int64, device=device)
        facts = {name: zeros.clone() for name in ["lengths", *counted(heads)]}
        return cls(returns, exact, zeros.clone(), facts | {"truncated": exact.clone()})

    def lower(self, other: "Worst") -> "Worst":
        """Of each episode the course with the lower return.

        A head that was attacked here and not in `other` has no flips there.
        """
        better = other.returns < self.returns
        facts = {}
        for name, own in self.facts.items():
            others = other.facts.get(name, torch.zeros_like(own))
            facts[name] = torch.where(better, others, own)
        returns = torch.where(better, other.returns, self.returns)
        return Worst(returns, self.exact, self.last, facts)

    def columns(self, index: Tensor) -> "Worst":
        """The episodes `index` (int64 [B']) of each seed."""
        facts = {name: fact[:, index] for name, fact in self.facts.items()}
        returns = self.returns[:, index]
        return Worst(returns, self.exact[:, index], self.last[:, index], facts)

    def put(self, index: Tensor, other: "Worst") -> None:
        """Let the episodes `index` (int64 [B']) of each seed be those of `other` [S, B']."""
        self.returns[:, index] = other.returns
        self.exact[:, index] = other.exact
        for name, fact in self.facts.items():
            fact[:, index] = other.facts[name]

    def record(self, nodes: Nodes, ended: Tensor, truncated: Tensor, length: int) -> None:
        """Keep the courses of `nodes` that have `ended` (bool [S, K]), where they are the lowest.

        `truncated`: bool [S, K], whether the time limit ended them; `length`: their steps.
        """
        if not ended.any():
            return
        totals = nodes.total.masked_fill(~ended, torch.inf)
        lowest = self.returns.scatter_reduce(1, nodes.column, totals, "amin")
        wins = ended & (totals == lowest.gather(1, nodes.column))
        wins &= totals < self.returns.gather(1, nodes.column)
        # Of equal courses any one is taken, the same one for all that is known of it.
        order = torch.where(wins, torch.arange(wins.shape[1], device=wins.device), -1)
        chosen = torch.full_like(self.returns, -1, dtype=torch.int64)
        chosen = chosen.scatter_reduce(1, nodes.column, order, "amax")
        seed, column = (chosen >= 0).nonzero(as_tuple=True)
        node = chosen[seed, column]
        self.returns[seed, column] = totals[seed, node]
        self.last[seed, column] = node
        self.facts["lengths"][seed, column] = length
        self.facts["truncated"][seed, column] = truncated[seed, node]
        for name, count in nodes.counts.items():
            self.facts[name][seed, column] = count[seed, node]


Guide = Callable[[Nodes, Tensor, float], Tensor]
"""(nodes, radius of each [S, K], share of the time limit that has passed) → the return that is
still to come at each, float64 [S, K]: by this the search knows which courses promise the least."""


@dataclass
class Exploration:
    """Which children are followed by chance, to learn what states are worth."""

    probability: float
    """Of a random child at each step."""
    preference: Tensor
    """[S, B, A]: of which action each episode likes to see most, in episodes that have a habit."""
    habit: Tensor
    """Whether the episode has a habit, bool [S, B]: some policies fall only if pushed steadily."""


@dataclass
class Trace:
    """What a search saw on its way, from which the courses that it found can be read back."""

    obs: list[Tensor] = field(default_factory=list)
    """The observations [S, K, *O] of the nodes at each step."""
    total: list[Tensor] = field(default_factory=list)
    """Their rewards so far, float64 [S, K], at each step."""
    parent: list[Tensor] = field(default_factory=list)
    """The node of the step before that each came from, int64 [S, K], at each step."""
    children: list[Tensor] = field(default_factory=list)
    """The node that each child of a step came from, int64 [S, K']."""

    def courses(self, worst: "Worst") -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """The steps of each episode's worst course, the last first.

        Each is (step, obs [S, B, *O], reward so far [S, B], was it under way [S, B]).
        """
        node = torch.zeros_like(worst.last)
        lengths = worst.facts["lengths"]
        for step in reversed(range(len(self.obs))):
            # A course ends with one of the children of its last step, which were not followed.
            origin = self.children[step].gather(1, _within(worst.last, self.children[step]))
            node = torch.where(lengths == step + 1, origin, node)
            index = _within(node, self.total[step])
            total = self.total[step].gather(1, index)
            yield step, rows_within(self.obs[step], index), total, step < lengths
            node = self.parent[step].gather(1, index)


def _within(index: Tensor, like: Tensor) -> Tensor:
    """`index`, cut to the nodes that `like` [S, K] has: where beyond, it counts for nothing."""
    return index.clamp_max(like.shape[1] - 1)


@dataclass
class Search:
    """A search over what one mode of an attack can force, in one env."""

    game: Game
    heads: tuple[str, ...]
    """The heads that are attacked."""
    steps: int
    """Gradient steps towards each choice; see `reachable`."""
    samples: int
    """Random corners of the box that are tried at each decision."""
    guides: Sequence[Guide] = ()
    """What is still to come; each leads its share of the nodes. None: only the past is known."""
    beside: tuple[str, ...] = ()
    """Heads that are left alone, but looked at: whether they could be moved as well."""
    movable_beside: Tensor = field(init=False)
    """Whether a decision of theirs could be moved on any course, bool [S, B]."""
    looked_everywhere: bool = True
    """Whether they were looked at on all courses, at every step."""

    def __post_init__(self) -> None:
        device = self.game.opened.device
        self.seeds = seed_tensor(self.game.opened.seeds, device)

    @torch.no_grad()
    def run(
        self,
        reset_seeds: Tensor,
        radii: Tensor,
        width: int,
        *,
        worst: Worst | None = None,
        exploration: Exploration | None = None,
        trace: Trace | None = None,
    ) -> Worst:
        """The lowest courses of the episodes that begin from `reset_seeds`, int64 [S, B].

        `radii` [B]: the radius of each column, in units of the scale. Of each episode the `width`
        most promising nodes are followed. `worst`: courses that are known already; episodes that
        have the lowest return there can be are left alone. `trace` is filled.
        """
        opened = self.game.opened
        env = opened.make_env(reset_seeds.numel())
        limit = _time_limit(env)
        lowest = env.lowest_reward
        shape = reset_seeds.shape
        worst = worst or Worst.none(shape, self.heads, reset_seeds.device)
        nodes = self._roots(env, reset_seeds)
        self.movable_beside = torch.zeros_like(worst.exact)
        keys = mix64(self.seeds.unsqueeze(1) + mix64(reset_seeds))
        alive = (worst.returns > _floor(lowest, limit)) & ~worst.exact
        worst.exact |= alive  # until a node is dropped
        index, alive = packed(alive)
        nodes = nodes.at(index, alive)
        parent = index
        for step in range(limit):
            if not alive.any():
                break
            children, action, origin = self._children(nodes, env, radii, keys, step)
            if trace is not None:
                trace.obs.append(nodes.obs)
                trace.total.append(nodes.total)
                trace.parent.append(parent)
                trace.children.append(origin)
            obs, reward, terminated, truncated, _ = env.step(action.flatten(0, 1))
            children.obs = obs.unflatten(0, children.alive.shape)
            children.total = children.total + reward.view_as(children.alive).double()
            truncated = truncated.view_as(children.alive)
            children.first = terminated.view_as(children.alive) | truncated
            ended = children.first & children.alive
            worst.record(children, ended, truncated, step + 1)
            alive = children.alive & ~ended
            if lowest is not None:
                # The lowest that can still become of it: at least one more step is made.
                left = min(lowest, lowest * (limit - step - 1))
                alive &= children.total + left < worst.returns.gather(1, children.column)
            children.alive = alive
            crowded = _courses(children, worst.exact) > width
            kept = children.alive
            if crowded.any():
                time = (step + 1) / limit
                kept = self._most_promising(children, action, radii, width, time, exploration)
                # The guides may agree; an episode that has room loses nothing by that.
                kept |= children.alive & ~crowded.gather(1, children.column)
                dropped = children.alive & ~kept
                worst.exact &= ~_any_of(dropped, children.column, worst.exact)
            index, alive = packed(kept)
            nodes = children.at(index, alive)
            parent = origin.gather(1, index)
        return worst

    def _roots(self, env: TensorEnv, reset_seeds: Tensor) -> Nodes:
        """The nodes with which the episodes begin, one for each of the S · B copies of `env`."""
        shape = reset_seeds.shape
        obs, _ = env.reset(seed=reset_seeds.flatten().tolist())
        zeros = torch.zeros_like(reset_seeds)
        number = torch.arange(shape[1], device=reset_seeds.device).expand(shape)
        return Nodes(
            obs=obs.unflatten(0, shape),
            first=~zeros.bool(),
            carry=self.game.opened.policy.initial_carry(shape[1]),
            column=number,
            total=zeros.double(),
            copy=number,
            alive=~zeros.bool(),
            counts={name: zeros for name in counted(self.heads)},
        )

    def _children(
        self, nodes: Nodes, env: TensorEnv, radii: Tensor, keys: Tensor, step: int
    ) -> tuple[Nodes, Tensor, Tensor]:
        """A node for each combination of reachable choices at each node, and its action [S, K'].

        With them comes the node that each is a child of, int64 [S, K']. The copies of `env` become
        those of the children, not yet stepped.
        """
        policy = self.game.opened.policy
        index = torch.arange(nodes.alive.shape[1], device=radii.device).expand_as(nodes.alive)
        alive = nodes.alive
        shown: dict[str, Tensor] = {}
        clean: dict[str, Tensor] = {}
        picked: dict[str, Tensor] = {}
        for head in self.heads:
            rows = nodes.at(index, alive)
            looking = _Looking(self, head, shown, rows, radii, keys, step)
            policy.act(rows.obs, rows.first, rows.carry, looking)
            reach = looking.reach
            choices = reach.mask.shape[-1]
            stay = nn.functional.one_hot(reach.clean, choices).bool()
            branches = torch.where(looking.deciding.unsqueeze(-1), reach.mask, stay)
            branches &= alive.unsqueeze(-1)
            branch, alive = packed(branches.flatten(1))
            row = branch // choices
            index = index.gather(1, row)
            shown = {name: rows_within(value, row) for name, value in shown.items()}
            clean = {name: rows_within(value, row) for name, value in clean.items()}
            picked = {name: rows_within(value, row) for name, value in picked.items()}
            shown[head] = rows_within(reach.obs.flatten(1, 2), branch)
            clean[head] = rows_within(looking.clean, row)
            picked[head] = branch % choices
        children = nodes.at(index, alive)
        self._look_beside(children, shown, radii, keys, step)
        children.copy = _keep(env, children.copy)
        forcing = _Forcing(self, shown, clean, picked)
        action, carry = policy.act(children.obs, children.first, children.carry, forcing)
        children.carry = carry
        for name, count in forcing.counts.items():
            children.counts[name] = children.counts[name] + count
        return children, action, index

    def _look_beside(
        self, children: Nodes, shown: dict[str, Tensor], radii: Tensor, keys: Tensor, step: int
    ) -> None:
        """Note at which `children` the heads that are left alone could be moved.

        Of many nodes a share is looked at, in turn: whoever can be moved at all is soon found.
        """
        if not self.beside or self.movable_beside.all():
            return
        looked_at = children.alive
        if looked_at.numel() > MANY_NODES:
            looked_at = looked_at & ((children.column + step) % LOOK_SHARE == 0)
            self.looked_everywhere = False
        index, alive = packed(looked_at)
        nodes = children.at(index, alive)
        shown = {name: rows_within(value, index) for name, value in shown.items()}
        for head in self.beside:
            looking = _Looking(self, head, shown, nodes, radii, keys, step)
            self.game.opened.policy.act(nodes.obs, nodes.first, nodes.carry, looking)
            movable = (looking.reach.mask.sum(-1) > 1) & looking.deciding & alive
            found = _any_of(movable, nodes.column, self.movable_beside)
            self.movable_beside = self.movable_beside | found

    def _most_promising(
        self,
        nodes: Nodes,
        action: Tensor,
        radii: Tensor,
        width: int,
        time: float,
        exploration: Exploration | None,
    ) -> Tensor:
        """Which nodes are followed, bool [S, K]: of each episode `width`, shared by the guides.

        `action`: what led to the nodes, [S, K]; `time`: the share of the time limit that has
        passed.
        """
        radius = radii[nodes.column]
        promises = [nodes.total + guide(nodes, radius, time) for guide in self.guides]
        if not promises:
            promises = [nodes.total]
        kept = torch.zeros_like(nodes.alive)
        for promise in promises:
            if exploration is not None:
                promise = self._explored(promise, nodes, action, exploration, time)
            share = -(-width // len(promises))
            kept |= lowest_of_each(promise, nodes.column, nodes.alive, share)
        return kept

    def _explored(
        self,
        promise: Tensor,
        nodes: Nodes,
        action: Tensor,
        exploration: Exploration,
        time: float,
    ) -> Tensor:
        """`promise`, but chance or a habit where `exploration` says so."""
        zero = torch.zeros_like(self.seeds)
        columns = exploration.habit.shape[1]
        key = stream_key(self.seeds, f"explore {time}")
        wild = uniform(key, zero, columns) < exploration.probability
        chance = uniform(stream_key(key, "child"), zero, promise.shape[1]).double()
        if action.dtype == torch.int64:
            liking = rows_within(exploration.preference, nodes.column)
            liking = liking.gather(2, action.unsqueeze(-1)).squeeze(-1).double()
            chance = torch.where(exploration.habit.gather(1, nodes.column), liking, chance)
        return torch.where(wild.gather(1, nodes.column), chance, promise)


class _Looking:
    """Choices that find out what is reachable for one head, after others were forced."""

    def __init__(
        self,
        search: Search,
        head: str,
        shown: dict[str, Tensor],
        nodes: Nodes,
        radii: Tensor,
        keys: Tensor,
        step: int,
    ):
        self.search = search
        self.head = head
        self.shown = shown
        self.radius = radii[nodes.column]
        self.key = stream_key(keys.gather(1, nodes.column), head)
        self.drawn = step * search.samples * int(np.prod(search.game.scale.shape))
        self.decided = False
        """Whether the head has decided: what heads below it choose then is of no use."""
        self.reach: Reachable
        """What is reachable for the head."""
        self.clean: Tensor
        """Its decision without an attack, [S, K] or [S, K, D]."""
        self.deciding: Tensor
        """Whether it decides, bool [S, K]."""

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        obs = obs.float()
        if head in self.shown:
            return scores.best(self.shown[head])
        if head != self.head:
            if self.decided and not scores.continuous:
                return torch.zeros_like(deciding, dtype=torch.int64)  # nobody looks at it
            return scores.best(obs)
        self.decided = True
        search = self.search
        budget = search.game.budget(self.radius, obs)
        self.reach = reachable(
            scores, obs, budget, self._draw, steps=search.steps, samples=search.samples
        )
        self.deciding = deciding
        self.clean = scores.best(obs) if scores.continuous else self.reach.clean
        return self.clean

    def _draw(self, count: int) -> Tensor:
        """The next random numbers [S, K, count] of each episode."""
        counter = self.key.new_full((), self.drawn)
        self.drawn += count
        return uniform(self.key, counter, count)


class _Forcing:
    """Choices at the observations that a plan shows; it counts what they change."""

    def __init__(
        self,
        search: Search,
        shown: dict[str, Tensor],
        clean: dict[str, Tensor],
        picked: dict[str, Tensor],
    ):
        """`shown`: observations [S, K, *O] by head; `clean`: decisions without an attack;
        `picked`: which of the reachable choices is forced, int64 [S, K]."""
        policy = search.game.opened.policy
        self.action_space = search.game.opened.spec.action_space
        self.shown = shown
        self.clean = clean
        self.picked = picked
        self.remembers = any(
            value.is_floating_point() for value in policy.initial_carry(1).values()
        )
        """Whether the policy's memory may hold what it was shown; whole numbers do not."""
        self.counts: dict[str, Tensor] = {}

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        if head not in self.shown:
            return scores.best(obs.float())
        if scores.continuous or self.remembers:
            decision = scores.best(self.shown[head])
        else:
            decision = self.picked[head]  # `reachable` has tried it out
        changed = flipped(self.action_space, decision, self.clean[head]) & deciding
        self.counts[f"decisions/{head}"] = deciding.long()
        self.counts[f"flips/{head}"] = changed.long()
        return decision


def _keep(env: TensorEnv, copies: Tensor) -> Tensor:
    """Go on with the `copies` [S, K] of `env` that the nodes are in; returns their new numbers."""
    seeds, nodes = copies.shape
    each = env.num_envs // seeds
    first = torch.arange(seeds, device=copies.device).unsqueeze(1) * each
    env.keep((first + copies).flatten())
    return torch.arange(nodes, device=copies.device).expand_as(copies)


def _any_of(mask: Tensor, column: Tensor, like: Tensor) -> Tensor:
    """Whether `mask` [S, K] is true at any node of each episode, bool as `like` [S, B]."""
    # Added up as integers: CUDA's scatter_reduce takes no bool.
    count = torch.zeros_like(like, dtype=torch.int32)
    return count.scatter_add(1, column, mask.int()) > 0


def _courses(nodes: Nodes, like: Tensor) -> Tensor:
    """How many nodes of each episode are alive, int64 as `like` [S, B]."""
    count = torch.zeros_like(like, dtype=torch.int64)
    return count.scatter_add(1, nodes.column, nodes.alive.long())


def floor(game: Game) -> float:
    """The lowest return there can be in the env of `game`; minus infinity where it is unknown."""
    env = game.opened.make_env(1)
    return _floor(env.lowest_reward, _time_limit(env))


def _time_limit(env: TensorEnv) -> int:
    """The time limit of the episodes of `env`, which may be another one than in training."""
    limit = env.max_episode_steps
    assert limit is not None  # an env without one is refused before anything is trained
    return limit


def _floor(lowest: float | None, limit: int) -> float:
    """The lowest return of at most `limit` steps with rewards from `lowest` on."""
    if lowest is None:
        return -float("inf")
    return min(lowest, lowest * limit)


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(index, whether it is one), [S, K'] each: where `mask` [S, K] is true, side by side.

    K' is the largest number of them in a seed, and at least 1; other seeds are filled with 0.
    """
    counts = mask.sum(1)
    width = max(1, int(counts.max()))
    index = torch.zeros(len(mask), width, dtype=torch.int64, device=mask.device)
    seed, number = mask.nonzero(as_tuple=True)
    index[seed, mask.cumsum(1)[seed, number] - 1] = number
    return index, torch.arange(width, device=mask.device) < counts.unsqueeze(1)


def lowest_of_each(values: Tensor, column: Tensor, alive: Tensor, width: int) -> Tensor:
    """Which of the `values` are among the `width` lowest of their column, bool [S, K].

    `values`, `column` (int64) and `alive` (bool) are [S, K]; those that are not alive stay out.
    """
    column = torch.where(alive, column, torch.iinfo(torch.int64).max)
    order = values.argsort(1)
    order = order.gather(1, column.gather(1, order).sort(dim=1, stable=True).indices)
    column = column.gather(1, order)
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    begins = torch.ones_like(alive)
    begins[:, 1:] = column[:, 1:] != column[:, :-1]
    start = torch.where(begins, position, 0).cummax(1).values
    among = torch.zeros_like(alive).scatter(1, order, position - start < width)
    return among & alive
