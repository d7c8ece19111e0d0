"""Courses of attacked episodes: those under way, the lowest that ended, and how to trace them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from rlx.agent import Carry
from rlx.nn.seed_axis import rows_within


def counted(heads: Sequence[str]) -> list[str]:
    """The names of what is counted of a policy's `heads`; `frame` is the number of a `Reel`."""
    return ["frame", *(f"{count}/{head}" for head in heads for count in ("decisions", "flips"))]


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
    """`decisions/<head>` and `flips/<head>` so far, of each head of the policy, int64 [S, K].

    Where the course is noted in a `Reel`, `frame` is the number of its last step there, else 0."""
    wanted: dict[str, Tensor]
    """The choice that was last asked of each attacked head, reachable or not, int64 [S, K]."""

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
            wanted={name: picked(choice) for name, choice in self.wanted.items()},
        )


@dataclass
class Worst:
    """The course with the lowest return that was found of each of S · B episodes."""

    returns: Tensor
    """Undiscounted returns, float64 [S, B]; infinite where no course has been found."""
    exact: Tensor
    """Whether every course was followed that what was reachable allows, bool [S, B]."""
    facts: dict[str, Tensor]
    """What else is known of the courses, [S, B] each: `lengths` in environment steps, whether the
    time limit ended them (`truncated`), of each head the decisions taken and changed
    (`decisions/<head>`, `flips/<head>`), and what a `Reel` knows the course by (`frame`)."""

    @classmethod
    def none(cls, shape: torch.Size, heads: Sequence[str], device: torch.device) -> "Worst":
        """No course of any episode."""
        returns = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        exact = torch.zeros(shape, dtype=torch.bool, device=device)
        zeros = torch.zeros(shape, dtype=torch.int64, device=device)
        facts = {name: zeros.clone() for name in ["lengths", *counted(heads)]}
        return cls(returns, exact, facts | {"truncated": exact.clone()})

    def lower(self, other: "Worst") -> "Worst":
        """Of each episode the course with the lower return."""
        better = other.returns < self.returns
        facts = {}
        for name, own in self.facts.items():
            facts[name] = torch.where(better, other.facts[name], own)
        returns = torch.where(better, other.returns, self.returns)
        return Worst(returns, self.exact, facts)

    def columns(self, index: Tensor) -> "Worst":
        """The episodes `index` (int64 [B']) of each seed."""
        facts = {name: fact[:, index] for name, fact in self.facts.items()}
        return Worst(self.returns[:, index], self.exact[:, index], facts)

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
        self.facts["lengths"][seed, column] = length
        self.facts["truncated"][seed, column] = truncated[seed, node]
        for name, count in nodes.counts.items():
            self.facts[name][seed, column] = count[seed, node]


@dataclass
class Trace:
    """What a search saw on its way, from which it is read back how low each of its nodes led."""

    nodes: list[Nodes] = field(default_factory=list)
    """The nodes at each step, [S, K]."""
    parent: list[Tensor] = field(default_factory=list)
    """The node of the step before that each came from, int64 [S, K], at each step."""
    origin: list[Tensor] = field(default_factory=list)
    """The node that each child of a step came from, int64 [S, K']."""
    ends: list[Tensor] = field(default_factory=list)
    """The return of each child that ended its episode, float64 [S, K']; infinite of others."""

    def lowest(self) -> Iterator[tuple[int, Nodes, Tensor]]:
        """The steps, the last first: (step, nodes [S, K], the lowest return they led to [S, K]).

        The returns are float64, of whole episodes, and infinite where no course was followed on.
        """
        after: Tensor | None = None
        for step in reversed(range(len(self.nodes))):
            nodes = self.nodes[step]
            lowest = torch.full_like(nodes.total, torch.inf)
            lowest = lowest.scatter_reduce(1, self.origin[step], self.ends[step], "amin")
            if after is not None:
                lowest = lowest.scatter_reduce(1, self.parent[step + 1], after, "amin")
            after = lowest.masked_fill(~nodes.alive, torch.inf)
            yield step, nodes, after


class Move(NamedTuple):
    """What a head decides at a step of some courses, [S, K, …], or of one, […]."""

    shown: Tensor
    """The observation that it is shown, [S, K, *O]."""
    decision: Tensor
    """What it decides, as an action or a choice."""
    clean: Tensor
    """What it would have decided, had nobody attacked."""
    flipped: Tensor
    """Whether that is something else, bool [S, K]."""
    deciding: Tensor
    """Whether it decides at all: if not, its former choice stands, bool [S, K]."""


Moves = Mapping[str, Move]
"""What is decided at one step, by head."""


class Reel:
    """What was decided on the lowest courses of some episodes, to play these again.

    Every step that is noted has a number, its frame, and knows the frame before it: courses that
    part share what they have in common.
    """

    def __init__(self, episodes: Sequence[tuple[int, int]]):
        """`episodes`: those of which courses are noted, (row of the seed axis, reset seed) each."""
        self.episodes = episodes
        self.courses: dict[int, list[Moves]] = {}
        """The steps of a course, by its last frame."""
        self._steps: list[tuple[int, Tensor, Moves]] = []
        """Of each step of the search under way: its first frame, the frames before, the moves."""
        self._next = 1

    def begin(self, reset_seeds: Tensor) -> None:
        """A search begins, of the episodes of `reset_seeds` [S, B]."""
        self._wanted = torch.zeros_like(reset_seeds, dtype=torch.bool)
        for row, reset_seed in self.episodes:
            self._wanted[row] |= reset_seeds[row] == reset_seed
        self._steps = []

    def note(self, nodes: Nodes, moves: Moves) -> None:
        """Note a step of `nodes` [S, K], which are where it begins; they get its frames."""
        noted = self._wanted.gather(1, nodes.column) & nodes.alive
        before = nodes.counts["frame"][noted]
        first = self._next
        self._next += len(before)
        frames = torch.arange(first, self._next, device=before.device)
        nodes.counts["frame"] = nodes.counts["frame"].masked_scatter(noted, frames)
        self._steps.append((first, before, _picked(moves, noted)))

    def end(self, worst: Worst) -> None:
        """The search has ended: of all courses that were noted only the `worst` [S, B] are kept."""
        for last in set(worst.facts["frame"][self._wanted].tolist()) - set(self.courses):
            course = []
            frame = last
            for first, before, moves in reversed(self._steps):
                if frame >= first:
                    course.append(_picked(moves, frame - first))
                    frame = int(before[frame - first])
            self.courses[last] = course[::-1]
        self._steps = []


def _picked(moves: Moves, index: Tensor | int) -> Moves:
    """The moves of some courses, or of one; a copy."""
    return {head: Move(*(value[index].clone() for value in move)) for head, move in moves.items()}
