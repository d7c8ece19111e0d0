"""A beam search through attacked episodes, in copies of the env, over what the box can force."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rlx.agent import Scores
from rlx.env import TensorEnv
from rlx.envs.batched import BatchedEnv
from rlx.envs.view import View
from rlx.nn.rng import mix64, seed_tensor, stream_key, uniform
from rlx.nn.seed_axis import rows_within
from rlx.robustness.attacker import flipped
from rlx.robustness.courses import Move, Nodes, Reel, Trace, Worst, counted
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
    if not env.deterministic:
        return "is random: a plan would know the dice"
    return None


Guide = Callable[[Nodes, Tensor, float], Tensor]
"""(nodes, radius of each [S, K], share of the time limit that has passed) → the return that is
still to come at each, float64 [S, K]: by this the search knows which courses promise the least."""
Holds = Callable[[Tensor], Tensor]
"""(radii [B]) → for how many steps in a row each choice is asked for, int64 [S, B]."""


@dataclass
class Exploration:
    """Which children are followed by chance, to learn what states are worth."""

    probability: float
    """Of a random child at each step."""
    habit: Tensor
    """Whether the episode likes one choice all along, bool [S, B]: some policies fall only if
    pushed steadily."""


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
    holds: Holds | None = None
    """For how long a choice is asked for in crowded episodes; None: for one step."""
    reel: Reel | None = None
    """Where the courses of some episodes are noted; None: nowhere."""
    movable_beside: Tensor = field(init=False)
    """Whether a decision of theirs could be moved on any course, bool [S, B]."""
    looked_everywhere: bool = True
    """Whether they were looked at on all courses, at every step."""

    def __post_init__(self) -> None:
        device = self.game.opened.device
        self.seeds = seed_tensor(self.game.opened.seeds, device)
        self.branches = 1
        """Children that one node has at most, as far as nodes were looked at."""

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
        worst = worst or Worst.none(shape, opened.policy.heads, reset_seeds.device)
        nodes = self._roots(env, reset_seeds)
        if self.reel is not None:
            self.reel.begin(reset_seeds)
        self.movable_beside = torch.zeros_like(worst.exact)
        keys = mix64(self.seeds.unsqueeze(1) + mix64(reset_seeds))
        alive = (worst.returns > _floor(lowest, limit)) & ~worst.exact
        worst.exact |= alive  # until a node is dropped
        index, alive = packed(alive)
        nodes = nodes.at(index, alive)
        parent = index
        hold = torch.ones_like(reset_seeds)
        holds = self.holds
        roomy = torch.ones_like(worst.exact)  # there was room for all courses so far
        for step in range(limit):
            if not alive.any():
                break
            courses = _courses(nodes, worst.exact)
            room = max(1, width // self.branches)  # so many nodes may have all their children
            roomy &= courses <= room
            if holds is not None and not roomy.all():
                hold = holds(radii)
                holds = None
            holding = (hold > 1) & ~roomy & (courses >= room)
            worst.exact &= ~holding  # choices that could change at each step do not
            turn = step % hold == 0
            children, action, origin = self._children(nodes, env, radii, keys, step, holding, turn)
            if trace is not None:
                trace.nodes.append(nodes)
                trace.parent.append(parent)
                trace.origin.append(origin)
            ended, truncated = _step(env, children, action)
            worst.record(children, ended, truncated, step + 1)
            if trace is not None:
                trace.ends.append(children.total.masked_fill(~ended, torch.inf))
            alive = children.alive & ~ended
            if lowest is not None:
                # The lowest that can still become of it: at least one more step is made.
                left = min(lowest, lowest * (limit - step - 1))
                alive &= children.total + left < worst.returns.gather(1, children.column)
            children.alive = alive
            kept = alive
            # Before the next choices are made, all their children must get room.
            turn = (hold > 1) & ((step + 1) % hold == 0) & ~roomy
            most = torch.where(turn, max(1, width // self.branches), width)
            crowded = _courses(children, worst.exact) > most
            if crowded.any():
                roomy &= ~crowded
                time = (step + 1) / limit
                kept = self._most_promising(children, radii, most, time, exploration)
                # The guides may agree; an episode that has room loses nothing by that.
                kept |= alive & ~crowded.gather(1, children.column)
                dropped = alive & ~kept
                worst.exact &= ~_any_of(dropped, children.column, worst.exact)
            index, alive = packed(kept)
            nodes = children.at(index, alive)
            parent = origin.gather(1, index)
        if self.reel is not None:
            self.reel.end(worst)
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
            counts={name: zeros for name in counted(self.game.opened.policy.heads)},
            wanted={head: zeros for head in self.heads},
        )

    def _children(
        self,
        nodes: Nodes,
        env: TensorEnv,
        radii: Tensor,
        keys: Tensor,
        step: int,
        holding: Tensor,
        turn: Tensor,
    ) -> tuple[Nodes, Tensor, Tensor]:
        """A node for each combination of reachable choices at each node, and its action [S, K'].

        With them comes the node that each is a child of, int64 [S, K']. The copies of `env` become
        those of the children, not yet stepped. In the episodes that are `holding` (bool [S, B]) a
        node asks for what it asked for before, or, where it is their `turn` (bool [S, B]), each
        child for another choice; it is forced where it is reachable, now and later.
        """
        policy = self.game.opened.policy
        combinations = 1
        index = torch.arange(nodes.alive.shape[1], device=radii.device).expand_as(nodes.alive)
        alive = nodes.alive
        shown: dict[str, Tensor] = {}
        clean: dict[str, Tensor] = {}
        picked: dict[str, Tensor] = {}
        asked: dict[str, Tensor] = {}
        for head in self.heads:
            rows = nodes.at(index, alive)
            looking = _Looking(self, head, shown, rows, radii, keys, step)
            policy.act(rows.obs, rows.first, rows.carry, looking)
            reach = looking.reach
            choices = reach.mask.shape[-1]
            combinations *= choices
            stay = nn.functional.one_hot(reach.clean, choices).bool()
            branches = torch.where(looking.deciding.unsqueeze(-1), reach.mask, stay)
            wanted = nn.functional.one_hot(rows.wanted[head], choices).bool()
            wanted |= turn.gather(1, rows.column).unsqueeze(-1)
            held = holding.gather(1, rows.column) & looking.deciding
            branches = torch.where(held.unsqueeze(-1), wanted, branches)
            branches &= alive.unsqueeze(-1)
            branch, alive = packed(branches.flatten(1))
            row = branch // choices
            index = index.gather(1, row)
            shown = {name: rows_within(value, row) for name, value in shown.items()}
            clean = {name: rows_within(value, row) for name, value in clean.items()}
            picked = {name: rows_within(value, row) for name, value in picked.items()}
            asked = {name: rows_within(value, row) for name, value in asked.items()}
            shown[head] = rows_within(reach.obs.flatten(1, 2), branch)
            clean[head] = rows_within(looking.clean, row)
            choice = branch % choices
            deciding = rows_within(looking.deciding, row)
            asked[head] = torch.where(deciding, choice, rows_within(rows.wanted[head], row))
            found = rows_within(reach.mask.flatten(1), branch)
            picked[head] = torch.where(found, choice, rows_within(reach.clean, row))
        self.branches = combinations
        children = nodes.at(index, alive)
        self._look_beside(children, shown, radii, keys, step)
        children.copy = _keep(env, children.copy)
        forcing = _Forcing(self, shown, clean, picked)
        action, carry = policy.act(children.obs, children.first, children.carry, forcing)
        children.carry = carry
        children.wanted = asked
        for name, count in forcing.counts.items():
            children.counts[name] = children.counts[name] + count
        if self.reel is not None:
            self.reel.note(children, forcing.moves)
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
        radii: Tensor,
        most: Tensor,
        time: float,
        exploration: Exploration | None,
    ) -> Tensor:
        """Which nodes are followed, bool [S, K]: of each episode `most`, shared by the guides.

        `most`: int64 [S, B]; `time`: the share of the time limit that has passed.
        """
        radius = radii[nodes.column]
        promises = [nodes.total + guide(nodes, radius, time) for guide in self.guides]
        if not promises:
            promises = [nodes.total]
        kept = torch.zeros_like(nodes.alive)
        share = (most + len(promises) - 1) // len(promises)
        for promise in promises:
            if exploration is not None:
                promise = self._explored(promise, nodes, exploration, time)
            kept |= lowest_of_each(promise, nodes.column, nodes.alive, share)
        return kept

    def _explored(
        self, promise: Tensor, nodes: Nodes, exploration: Exploration, time: float
    ) -> Tensor:
        """`promise`, but chance or a habit where `exploration` says so."""
        zero = torch.zeros_like(self.seeds)
        columns = exploration.habit.shape[1]
        key = stream_key(self.seeds, f"explore {time}")
        wild = uniform(key, zero, columns) < exploration.probability
        chance = uniform(stream_key(key, "child"), zero, promise.shape[1])
        # The same number all along for each choice of an episode.
        habit = mix64(stream_key(self.seeds, "habit").unsqueeze(1) + nodes.column)
        liking = uniform(habit, nodes.wanted[self.heads[0]], 1).squeeze(-1)
        chance = torch.where(exploration.habit.gather(1, nodes.column), liking, chance)
        return torch.where(wild.gather(1, nodes.column), chance.double(), promise)


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
        self.moves: dict[str, Move] = {}

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        self.counts[f"decisions/{head}"] = deciding.long()
        if head not in self.shown:
            obs = obs.float()
            decision = scores.best(obs)
            unmoved = torch.zeros_like(deciding)
            self.moves[head] = Move(obs, decision, decision, unmoved, deciding)
            return decision
        if scores.continuous or self.remembers:
            decision = scores.best(self.shown[head])
        else:
            decision = self.picked[head]  # `reachable` has tried it out
        clean = self.clean[head]
        changed = flipped(self.action_space, decision, clean) & deciding
        self.moves[head] = Move(self.shown[head], decision, clean, changed, deciding)
        self.counts[f"flips/{head}"] = changed.long()
        return decision


def _step(env: TensorEnv, children: Nodes, action: Tensor) -> tuple[Tensor, Tensor]:
    """Let `children` [S, K] be where `action` leads them: (has it ended, by the time limit)."""
    obs, reward, terminated, truncated, _ = env.step(action.flatten(0, 1))
    shape = children.alive.shape
    children.obs = obs.unflatten(0, shape)
    children.total = children.total + reward.view(shape).double()
    truncated = truncated.view(shape)
    children.first = terminated.view(shape) | truncated
    return children.first & children.alive, truncated


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


def lowest_of_each(values: Tensor, column: Tensor, alive: Tensor, most: Tensor) -> Tensor:
    """Which of the `values` are among the lowest of their column, bool [S, K].

    `values`, `column` (int64) and `alive` (bool) are [S, K]; those that are not alive stay out.
    Of each column as many are kept as `most` says, int64 [S, B].
    """
    most = most.gather(1, column)
    column = torch.where(alive, column, torch.iinfo(torch.int64).max)
    order = values.argsort(1)
    order = order.gather(1, column.gather(1, order).sort(dim=1, stable=True).indices)
    column = column.gather(1, order)
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    begins = torch.ones_like(alive)
    begins[:, 1:] = column[:, 1:] != column[:, :-1]
    start = torch.where(begins, position, 0).cummax(1).values
    first = position - start < most.gather(1, order)
    return torch.zeros_like(alive).scatter(1, order, first) & alive
