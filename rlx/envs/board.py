"""Games of two players who set stones in turn and win with some in a row, on bitboards."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlx.config import choice
from rlx.envs.batched import Dynamics


@dataclass(frozen=True)
class Board(Dynamics):
    """State int64 [B, 2]: the stones of the player to move and those of the other, a bit per cell, columns upwards from the left
    one; above each column a bit stays 0, so that no line goes on in the next.

    The observation [B, 2, rows, columns] shows the same two. A move that wins earns 1 and ends the game, one without a free cell
    −1, a full board 0. `opponent` "self": each step is the next player's, who sees the board as theirs and is paid for their own
    move alone. Any other plays within the step: a win of theirs earns −1, and in half of the games they open.
    """

    opponent: str = "random"

    rows: ClassVar[int]
    columns: ClassVar[int]
    in_a_row: ClassVar[int]
    opponents: ClassVar[dict[str, float | None]]
    """Whom one can play, and the return from which that counts as solved (0.9: 19 wins in 20 games, 0.5: 3 in 4)."""
    initial_draws = 2
    transition_draws = 1

    def __post_init__(self) -> None:
        choice(self.opponent, self.opponents, "env.opponent")
        object.__setattr__(self, "reward_threshold", self.opponents[self.opponent])

    @abstractmethod
    def moves(self, taken: Tensor) -> Tensor:
        """int64 [..., A]: the bit of the stone that each action sets beside the stones `taken` [...], 0 where it may not."""

    @property
    def rules(self) -> "Board":  # type: ignore[override]
        """Its own, `rlx.agent.Rules`."""
        return self

    @staticmethod
    @abstractmethod
    def legal(obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.legal`."""

    @staticmethod
    @abstractmethod
    def after(obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.after`."""

    def line(self, obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.line`."""
        stones = (obs[..., 0, :, :].flatten(-2) > 0.5).long() << self.cells(obs.device)
        return self.won(stones.sum(-1))

    @abstractmethod
    def scores(self, state: Tensor) -> Tensor:
        """float32 [B, A] of `state` [B, 2]: how good each legal action is to the opponent that is not random."""

    def initial(self, draws: Tensor) -> Tensor:
        empty = torch.zeros(len(draws), 2, dtype=torch.int64, device=draws.device)
        if self.opponent == "self":
            return empty
        opened, _, _ = self.move(empty, self.reply(empty[:1], draws[:, 1]))
        return torch.where(draws[:, :1] < 0.5, opened, empty)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        moved, reward, over = self.move(state, action)
        if self.opponent == "self":
            return moved, reward, over
        replied, loss, ended = self.move(moved, self.reply(moved, draws[:, 0]))
        replied = torch.where(over.unsqueeze(-1), moved.flip(-1), replied)
        return replied, torch.where(over, reward, -loss), over | ended

    def observe(self, state: Tensor) -> Tensor:
        return (
            (state.unsqueeze(-1) >> self.cells(state.device) & 1)
            .float()
            .unflatten(-1, (self.rows, self.columns))
        )

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(state [B, 2] as the other player sees it, reward [B] of the mover, terminated [B]) after `action` [B]."""
        own, other = state.unbind(-1)
        stone = self.moves(own | other).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        own = own | stone
        won, illegal = self.won(own), stone == 0
        terminated = won | illegal | (own | other == self.full())
        return torch.stack([other, own], -1), won.float() - illegal.float(), terminated

    def reply(self, state: Tensor, draws: Tensor) -> Tensor:
        """The opponent's actions [B] for `state` [B, 2] (or one for all) and uniform `draws` [B]: one of the best at random."""
        legal = self.moves(state.sum(-1)) != 0
        scores = (
            torch.zeros(legal.shape, device=state.device)
            if self.opponent == "random"
            else self.scores(state)
        )
        scores = torch.where(legal, scores, -torch.inf)
        best = scores == scores.amax(-1, keepdim=True)
        passed = (draws.unsqueeze(-1) * best.sum(-1, keepdim=True)).long()
        return (best.cumsum(-1) <= passed).sum(-1)

    def won(self, stones: Tensor) -> Tensor:
        """bool, shaped as the bitboards `stones`: whether they hold a line."""
        found = torch.zeros_like(stones)
        for step in self.steps():
            line = stones
            for _ in range(self.in_a_row - 1):
                line = stones & line >> step
            found |= line
        return found != 0

    def steps(self) -> tuple[int, ...]:
        """From a cell's bit to that of the next in a line: up, right, and the diagonals down and up."""
        return 1, self.rows + 1, self.rows, self.rows + 2

    def cells(self, device: torch.device) -> Tensor:
        """int64 [rows · columns]: which bit each cell is, row by row from the top left."""
        height = torch.arange(self.rows - 1, -1, -1, device=device)
        return (
            height.unsqueeze(1) + torch.arange(self.columns, device=device) * (self.rows + 1)
        ).flatten()

    def full(self) -> int:
        """The bits of all cells."""
        return sum(
            (1 << self.rows) - 1 << column * (self.rows + 1) for column in range(self.columns)
        )
