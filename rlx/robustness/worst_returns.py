"""Bounds of worst returns: all that boxes can make of an episode is searched, as far as it goes.

In a deterministic env an attacked episode is a tree: at each step the adversary forces one of the
choices that certified reachable sets leave possible. Courses that lead to the same state are one
node, of which the lowest reward so far counts. A node that is left over when the budget is spent
counts with the least that can still come of it, as in the local bound of CROP (Wu et al. 2022,
arXiv:2106.09292).

The adversary moves each observation within its box, at every step, for each attacked head anew.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlx import statistics
from rlx.agent import Carry, Choose, Policy, Scores
from rlx.evaluation import episode_seeds, evaluate
from rlx.nn.seed_axis import take
from rlx.robustness.planner import why_not
from rlx.robustness.reachable import Reachable, certified_reachable
from rlx.robustness.sweep import Game
from rlx.rollout import rollout
from rlx.show import console

WAVE = 128
"""Nodes of an episode that are followed at once."""
CHUNK = 4096
"""Nodes of all episodes that are followed at once."""
MOST_NODES = 1_000_000
"""Nodes that are about what memory holds; no more episodes are searched at once."""


@dataclass(frozen=True)
class ReturnBounds:
    """What is known of the worst returns of S seeds, E radii, P episodes, [S, E, P] each."""

    lower: np.ndarray
    """No observations in the boxes leave less; −infinity where nothing is known."""
    upper: np.ndarray
    """The return of an episode that was played with observations in the boxes."""
    nodes: np.ndarray
    """How many nodes were followed, int64."""

    @property
    def exact(self) -> np.ndarray:
        """Whether both are the same: the worst return itself, bool [S, E, P]."""
        return self.lower == self.upper

    def summary(self) -> dict[str, Any]:
        """The bounds as summary.json has them, a value for each radius."""
        radii = range(self.lower.shape[1])
        # Of a bound that is not there for one episode there is no mean.
        lower = np.where(np.isfinite(self.lower), self.lower, np.nan)
        return {
            "lower": [statistics.estimate(lower[:, number]).as_dict() for number in radii],
            "upper": [statistics.estimate(self.upper[:, number]).as_dict() for number in radii],
            "exact": self.exact.mean((0, 2)),
            "nodes": self.nodes.mean((0, 2)),
        }


def why_unbounded(game: Game) -> str | None:
    """Why the worst returns of `game` have no bounds, in a sentence; None: they have some."""
    reason = why_not(game)
    if reason is not None:
        return f"the env {reason}; there are no bounds of its returns"
    carry = game.opened.policy.initial_carry(1)
    if any(value.is_floating_point() for value in carry.values()):
        return "the policy remembers numbers, as a GRU does; there are no bounds of its returns"
    return None


@torch.no_grad()
def bound_returns(
    game: Game,
    heads: Sequence[str],
    max_nodes: int,
    max_boxes: int,
    known: np.ndarray | None = None,
) -> ReturnBounds:
    """The worst returns of the episodes of `game` where `heads` are attacked, as far as found out.

    At most `max_nodes` nodes of each episode and radius are followed, and `max_boxes` boxes bounded
    for a decision. `known` [S, E, P]: returns that an attack has left; None: there was none. What
    was forced can be forced in larger boxes too. An episode of which the search has proved nothing
    is not searched at larger radii.
    """
    opened = game.opened
    shape = (len(opened.seeds), len(game.eps), game.episodes)
    first = game.first_reset_seed
    clean = evaluate(
        opened.policy, opened.make_env, shape[0], game.episodes, first, opened.device
    ).returns
    upper = np.repeat(clean.cpu().numpy()[:, None], shape[1], 1)
    if known is not None:
        upper = np.minimum(upper, known)
    lower = upper.copy()
    nodes = np.zeros(shape, dtype=np.int64)
    wanted = np.ones((shape[0], shape[2]), dtype=bool)
    at_once = max(1, MOST_NODES // (max_nodes * shape[0]))
    order = np.argsort(game.eps, kind="stable").tolist()
    with console.Progress(len(order), unit="radii", quarters=not game.quiet) as progress:
        for done, number in enumerate(order, 1):
            if game.eps[number] == 0:
                continue  # nothing can be moved
            if done > 1:
                smaller = upper[:, order[done - 2]]
                upper[:, number] = np.minimum(upper[:, number], smaller)
            for start in range(0, game.episodes, at_once):
                some = slice(start, start + at_once)
                part = replace(
                    game,
                    first_reset_seed=first + start,
                    episodes=len(range(game.episodes)[some]),
                )
                search = _Search(part, heads, game.eps[number], max_nodes, max_boxes)
                search.run(wanted[:, some], upper[:, number, some])
                lower[:, number, some] = search.lower
                upper[:, number, some] = search.upper
                nodes[:, number, some] = search.followed
            wanted &= (lower[:, number] > search.least) | (lower[:, number] == upper[:, number])
            progress.update(done)
    return ReturnBounds(lower, upper, nodes)


class _Way(NamedTuple):
    """How a node was reached: from the node `parent`, by what was shown there."""

    parent: int
    batch: int
    """The number of the tensor in `_Search.shown`, and the `row` there."""
    row: int


class _Entry(NamedTuple):
    """A node in a queue, in the order in which nodes are followed."""

    bound: float
    """The lowest return that can come of it."""
    promise: float
    """The return that the policy itself expects, where its scores are values."""
    number: int
    total: tuple[float, float]
    """Its total when it was queued."""


@dataclass(slots=True)
class _Node:
    """A state of an episode that can be forced, or perhaps can."""

    column: int
    """The number of the episode, of all seeds' episodes."""
    step: int
    total: tuple[float, float]
    """The lowest reward so far: with all granted that is open, and by what was found alone."""
    way: _Way | None
    """How it was reached with the second of these; None where the episode begins."""

    def lower(self, total: tuple[float, float], way: _Way) -> bool:
        """Take in another way to get here; whether it lowers anything."""
        lowered = (min(total[0], self.total[0]), min(total[1], self.total[1]))
        if lowered == self.total:
            return False
        if total[1] < self.total[1]:
            self.way = way
        self.total = lowered
        return True


class _Search:
    """The search through the episodes of a game at one radius; a column is an episode of a seed."""

    def __init__(
        self, game: Game, heads: Sequence[str], radius: float, max_nodes: int, max_boxes: int
    ):
        self.game = game
        self.policy = game.opened.policy
        self.policies: dict[tuple[int, ...], Policy] = {}
        """The policy of the seeds that were asked for last."""
        self.radius = {head: radius * (head in heads) for head in self.policy.heads}
        """How far what each head sees can be moved; 0 for one that is not attacked."""
        self.max_nodes = max_nodes
        self.max_boxes = max_boxes
        self.device = game.opened.device
        self.shape = (len(game.opened.seeds), game.episodes)
        self.env = game.opened.make_env(math.prod(self.shape))
        limit = self.env.max_episode_steps
        assert limit is not None  # an env without one is refused before anything is trained
        self.limit = limit
        lowest = self.env.lowest_reward
        # Rewards are float32: this number may have been rounded to one below it.
        self.reward = None if lowest is None else min(lowest, float(np.float32(lowest)))
        self.least = self._bound(0.0, 0)
        """The lowest return of any episode; −infinity where it is unknown."""
        self.lower: np.ndarray
        """What is proved in the end, [S, P]."""
        self.upper: np.ndarray
        """The lowest returns that were forced so far, [S, P]."""
        self.followed = np.zeros(self.shape, dtype=np.int64)
        """How many nodes were followed, [S, P]."""
        self.ended = np.full(self.shape, np.inf)
        """The lowest return of the courses that ended, with all granted that is open, [S, P]."""
        self.course: dict[int, _Way] = {}
        """Column → the way to the end of the course that gave its `upper`."""
        self.queues: list[list[_Entry]] = [[] for _ in range(math.prod(self.shape))]
        """What is to be followed of each column, as heaps."""
        self.nodes: list[_Node] = []
        self.rows = _Rows()
        """What the nodes are in: `seed`, `first`, `obs`, `env/…` and `carry/…`."""
        self.number: dict[bytes, int] = {}
        """What a node's future depends on → its number."""
        self.shown: list[Tensor] = []
        """What was shown to all heads at once, [n, H, *O] each."""

    def run(self, wanted: np.ndarray, upper: np.ndarray) -> None:
        """Search the `wanted` episodes, bool [S, P], of which `upper` [S, P] was forced before."""
        self.upper = upper.copy()
        self._begin(wanted & (upper > self.least))
        while True:
            waves = [self._wave(column) for column in range(len(self.queues))]
            numbers = [number for wave in waves for number in wave]
            if not numbers:
                break
            for start in range(0, len(numbers), CHUNK):
                self._follow(numbers[start : start + CHUNK])
        left = [
            min((entry.bound for entry in queue if self._counts(entry)), default=np.inf)
            for queue in self.queues
        ]
        self.lower = np.minimum(self.ended, np.reshape(left, self.shape))
        self.lower[~wanted] = self.least
        self._replay(upper)
        self.lower = np.minimum(self.lower, self.upper)

    def _begin(self, wanted: np.ndarray) -> None:
        """Queue the first states of the `wanted` episodes, bool [S, P]."""
        if not wanted.any():
            return
        seeds, episodes = self.shape
        resets = episode_seeds(self.game.first_reset_seed, episodes, seeds, self.device)
        obs, _ = self.env.reset(seed=resets.flatten().tolist())
        columns = torch.as_tensor(wanted.flatten(), device=self.device).nonzero().squeeze(1)
        rows = {"seed": columns // episodes, "obs": obs[columns]}
        rows["first"] = torch.ones_like(rows["seed"], dtype=torch.bool)
        for name, value in self.policy.initial_carry(1).items():
            rows[f"carry/{name}"] = value[rows["seed"], 0]
        for name, value in self.env.state_dict().items():
            rows[f"env/{name}"] = value[columns]
        self.rows.add(rows)
        for column in columns.tolist():
            self.nodes.append(_Node(column, 0, (0.0, 0.0), None))
            self._queue(len(self.nodes) - 1, 0.0)

    def _queue(self, number: int, value: float) -> None:
        """Queue a node, from which on the policy expects a `value`."""
        node = self.nodes[number]
        bound = self._bound(node.total[0], node.step)
        entry = _Entry(bound, node.total[0] + value, number, node.total)
        heapq.heappush(self.queues[node.column], entry)

    def _bound(self, total: float, step: int) -> float:
        """The lowest return of an episode with the reward `total` in so many steps."""
        if self.reward is None:
            return -math.inf
        left = self.limit - step
        rest = min(self.reward, self.reward * left)  # at least one more step is made
        if self.reward.is_integer() and total.is_integer():
            return total + rest
        # What adding up step by step may be rounded by.
        return total + rest - (left + 1) * 2.0**-52 * (abs(total) + abs(self.reward) * left)

    def _counts(self, entry: _Entry) -> bool:
        """Whether an entry is what its node is now, and may end lower than what was forced."""
        node = self.nodes[entry.number]
        return entry.total == node.total and entry.bound < self.upper.flat[node.column]

    def _wave(self, column: int) -> list[int]:
        """The nodes of a column that are followed next; none where it is done."""
        queue = self.queues[column]
        room = min(WAVE, self.max_nodes - int(self.followed.flat[column]))
        numbers: list[int] = []
        while queue and len(numbers) < room:
            entry = heapq.heappop(queue)
            if self._counts(entry) and entry.number not in numbers:
                numbers.append(entry.number)
        self.followed.flat[column] += len(numbers)
        return numbers

    def _follow(self, numbers: Sequence[int]) -> None:
        """Let all that is possible happen at some nodes, which come in the order of the columns."""
        rows = self.rows.at(torch.tensor(numbers, device=self.device))
        branches = self._branches(rows)
        after, memory, reward, ended, value = self._step(rows, branches)
        self.shown.append(torch.stack(list(branches.shown.values()), 1))
        parents = [numbers[row] for row in branches.row.tolist()]
        columns = torch.tensor([self.nodes[parent].column for parent in parents])
        keys = _keys([columns, *_part(after, "env/").values(), *memory])
        found = branches.found.tolist()
        new: list[int] = []
        for child, parent in enumerate(parents):
            node = self.nodes[parent]
            total = (node.total[0] + reward[child], node.total[1] + reward[child])
            if not found[child]:
                total = (total[0], math.inf)
            way = _Way(parent, len(self.shown) - 1, child)
            if ended[child]:
                self._end(node.column, total, way)
                continue
            number = self.number.get(keys[child])
            if number is None:
                number = self.number[keys[child]] = len(self.nodes)
                self.nodes.append(_Node(node.column, node.step + 1, total, way))
                new.append(child)
            elif not self.nodes[number].lower(total, way):
                continue
            self._queue(number, value[child])
        self.rows.add({name: part[new] for name, part in after.items()})

    def _end(self, column: int, total: tuple[float, float], way: _Way) -> None:
        """Note the `total` of a course of a column that has ended."""
        self.ended.flat[column] = min(self.ended.flat[column], total[0])
        if total[1] < self.upper.flat[column]:
            self.upper.flat[column] = total[1]
            self.course[column] = way

    def _branches(self, rows: dict[str, Tensor]) -> "_Branches":
        """All combinations of what may be forced at the nodes of `rows`, head by head."""
        yes = torch.ones_like(rows["first"])
        branches = _Branches(torch.arange(len(yes), device=self.device), {}, {}, yes)
        for head in self.policy.heads:
            packing = _Packing.of(rows["seed"][branches.row])
            choosing = _Choosing(self, packing, branches.picked, head)
            self._act(packing, rows, branches, choosing)
            reach = choosing.reach
            mask = packing.unpack(reach.mask)
            assert reach.open is not None  # it is certified
            row, choice = (mask | packing.unpack(reach.open)).nonzero(as_tuple=True)
            branches = branches.at(row)
            branches.picked[head] = choice
            branches.shown[head] = packing.unpack(reach.obs)[row, choice]
            branches.found = branches.found & mask[row, choice]
        return branches

    def _act(
        self, packing: "_Packing", rows: dict[str, Tensor], branches: "_Branches", choose: Choose
    ) -> tuple[Tensor, Carry]:
        """What the policy does at the branches of the nodes of `rows`, packed."""
        at = {name: packing.pack(value[branches.row]) for name, value in rows.items()}
        policy = self._policy_of(packing.present)
        return policy.act(at["obs"], at["first"], _part(at, "carry/"), choose)

    def _policy_of(self, seeds: Tensor) -> Policy:
        """The policy of some seeds, which are numbers int64 [S'] that rise."""
        key = tuple(seeds.tolist())
        if key not in self.policies:
            # Seeds leave one after another: no earlier one is wanted again.
            self.policies = {key: take(self.game.opened.policy, seeds)}
        return self.policies[key]

    def _step(
        self, rows: dict[str, Tensor], branches: "_Branches"
    ) -> tuple[dict[str, Tensor], list[Tensor], list[float], list[bool], list[float]]:
        """What the branches lead to: (rows, what of the policy's memory counts there, rewards,
        whether it is the end, values to come)."""
        packing = _Packing.of(rows["seed"][branches.row])
        choosing = _Choosing(self, packing, branches.picked, None)
        action, carry = self._act(packing, rows, branches, choosing)
        self.env.keep(torch.zeros_like(branches.row))  # as many copies as there are branches
        state = {name: value[branches.row] for name, value in _part(rows, "env/").items()}
        self.env.load_state_dict(state)
        obs, reward, terminated, truncated, _ = self.env.step(packing.unpack(action))
        policy = self._policy_of(packing.present)
        memory = policy.memory(packing.pack(obs), carry)
        value = torch.zeros_like(reward)
        if self.policy.scores_are_values:
            values = policy.scores(packing.pack(obs), carry, policy.heads[0])
            value = packing.unpack(values.amax(-1))
        after = {"seed": rows["seed"][branches.row], "obs": obs}
        after["first"] = torch.zeros_like(terminated)
        after |= {f"carry/{name}": packing.unpack(part) for name, part in carry.items()}
        after |= {f"env/{name}": part for name, part in self.env.state_dict().items()}
        ended = terminated | truncated
        parts = [packing.unpack(part) for part in memory.values()]
        return after, parts, reward.double().tolist(), ended.tolist(), value.tolist()

    def reachable(self, head: str, scores: Scores, obs: Tensor, where: Tensor) -> Reachable:
        """What is reachable of a head at `obs` [S, K, *O], of the rows `where` (bool [S, K])."""
        radius = torch.full(where.shape, self.radius[head], device=self.device)
        budget = self.game.budget(radius, obs)
        return certified_reachable(scores, obs, budget, where, self.max_boxes)

    def _replay(self, known: np.ndarray) -> None:
        """Play the courses that were found: their returns are `upper`, where not lower before.

        `known` [S, P]: what was forced before.
        """
        if not self.course:
            return
        seeds, episodes = self.shape
        resets = episode_seeds(self.game.first_reset_seed, episodes, seeds, self.device)
        script = {column: self._script(way) for column, way in self.course.items()}
        longest = max(len(shown) for shown in script.values())
        lengths = torch.zeros(seeds * episodes, dtype=torch.int64, device=self.device)
        for column, shown in script.items():
            lengths[column] = len(shown)
        example = next(iter(script.values()))
        pages = example.new_zeros(longest, seeds * episodes, *example.shape[1:])
        for column, shown in script.items():
            pages[: len(shown), column] = shown
        acting = _Acting(pages, lengths, self.policy.heads)
        env = self.game.opened.make_env(seeds * episodes)
        returns = rollout(self.policy, env, resets, acting.make_choose).returns.cpu().numpy()
        played = (lengths > 0).cpu().numpy().reshape(self.shape)
        self.upper = np.where(played, np.minimum(known, returns), self.upper)

    def _script(self, way: _Way) -> Tensor:
        """What all heads are shown at each step of a course, [T, H, *O]."""
        pages = []
        step: _Way | None = way
        while step is not None:
            pages.append(self.shown[step.batch][step.row])
            step = self.nodes[step.parent].way
        return torch.stack(pages[::-1])


@dataclass
class _Branches:
    """What is done at some nodes: n branches."""

    row: Tensor
    """The row of the node that each is at, int64 [n]."""
    picked: dict[str, Tensor]
    """Head → the choice, int64 [n]."""
    shown: dict[str, Tensor]
    """Head → the observation that forces it, [n, *O]."""
    found: Tensor
    """Whether there are such observations; the choices are possible at most where not, bool [n]."""

    def at(self, index: Tensor) -> "_Branches":
        """Those at `index`, int64 [n']."""
        return _Branches(
            self.row[index],
            {head: choice[index] for head, choice in self.picked.items()},
            {head: obs[index] for head, obs in self.shown.items()},
            self.found[index],
        )


class _Choosing:
    """Chooses what was picked for some heads; of one other it finds out what is reachable."""

    def __init__(
        self, search: _Search, packing: "_Packing", picked: dict[str, Tensor], head: str | None
    ):
        self.search = search
        self.packing = packing
        self.picked = {name: packing.pack(choice) for name, choice in picked.items()}
        self.head = head
        self.reach: Reachable
        """What is reachable for `head`."""

    def __call__(self, head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
        if head in self.picked:
            return self.picked[head]
        if head != self.head:
            return scores.best(obs)  # nobody looks at it
        self.reach = self.search.reachable(head, scores, obs, deciding & self.packing.filled)
        return self.reach.clean


class _Acting:
    """Choices at the observations of a script, for `rollout`."""

    def __init__(self, pages: Tensor, lengths: Tensor, heads: Sequence[str]):
        """`pages` [T, S · P, H, *O]: what the `heads` are shown in the first `lengths` [S · P]
        steps."""
        self.pages = pages
        self.lengths = lengths
        self.heads = heads
        self.step = -1

    def make_choose(self, ids: Tensor) -> Choose:
        """How the copies `ids` choose."""

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head == self.heads[0]:
                self.step += 1
            page = self.pages[min(self.step, len(self.pages) - 1)]
            shown = page[ids, self.heads.index(head)]
            known = (self.step < self.lengths[ids]).view(*ids.shape, *[1] * (obs.dim() - 2))
            return scores.best(torch.where(known, shown, obs))

        return choose


@dataclass
class _Packing:
    """Where n rows, in the order of their seeds, are in tensors [S', K, …] of these seeds."""

    present: Tensor
    """The seeds that rows are of, int64 [S']."""
    seed: Tensor
    """Which of them each row is of, int64 [n]."""
    place: Tensor
    """Its place among the rows of the seed, int64 [n]."""
    filled: Tensor
    """Where there is a row, bool [S', K]."""

    @classmethod
    def of(cls, seeds: Tensor) -> "_Packing":
        """The rows of some `seeds`, int64 [n], which rise."""
        present, seed, counts = seeds.unique(return_inverse=True, return_counts=True)
        start = counts.cumsum(0) - counts
        place = torch.arange(len(seed), device=seed.device) - start[seed]
        filled = torch.arange(int(counts.max()), device=seed.device) < counts.unsqueeze(1)
        return cls(present, seed, place, filled)

    def pack(self, rows: Tensor) -> Tensor:
        """`rows` [n, …] as [S, K, …], zero where there is none."""
        packed = rows.new_zeros(*self.filled.shape, *rows.shape[1:])
        packed[self.seed, self.place] = rows
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """`packed` [S, K, …] as rows [n, …]."""
        return packed[self.seed, self.place]


class _Rows:
    """Named tensors with a row for each node, which grow."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.count = 0

    def add(self, rows: dict[str, Tensor]) -> None:
        """Add rows at the end."""
        end = self.count + len(rows["seed"])
        for name, value in rows.items():
            old = self.tensors.get(name, value[:0])
            if end > len(old):
                self.tensors[name] = value.new_empty(2 * end, *value.shape[1:])
                self.tensors[name][: self.count] = old[: self.count]
            self.tensors[name][self.count : end] = value
        self.count = end

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at `index`, int64 [n]."""
        return {name: value[index] for name, value in self.tensors.items()}


def _part(rows: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of the rows whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in rows.items() if name.startswith(prefix)
    }


def _keys(parts: Sequence[Tensor]) -> list[bytes]:
    """Each row of some tensors [n, …] together, to the bit."""
    sized = [part.cpu().reshape(len(part), -1).contiguous().view(torch.uint8) for part in parts]
    return [row.tobytes() for row in torch.cat(sized, 1).numpy()]
