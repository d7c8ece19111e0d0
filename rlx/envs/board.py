"""Games of two players who set stones in turn and win with some in a row, on bitboards."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlx.config import choice
from rlx.envs.batched import Dynamics
from rlx.envs.drawing import BLUE, RED, board, tile


@dataclass(frozen=True)
class Board(Dynamics):
    """A game on a board of `rows` x `columns` cells, of whose stones `in_a_row` win.

    State int64 [B, 2]: the bitboard of the player to move, then that of the opponent. A bitboard
    has one bit per cell: columns upwards, beginning with the left one. Above each column one bit
    stays 0, so that no line goes on in the next column. The observation [B, 2, rows, columns] has
    a plane for each bitboard, with 1 for a stone.

    A move that wins earns 1 and ends the game; one that is not allowed earns −1 and ends it too; a
    full board ends it with 0.

    A subclass sets the class attributes and defines `stone_bits`, `legal` and `after`; also
    `scores`, where an opponent is neither "self" nor "random". It is itself the game's
    `rlx.agent.Rules`.
    """

    opponent: str = "random"
    """Against whom the agent plays.

    `self`: each step is the next player's, who sees the board as its own and is paid for its own
    move alone. All others play within the step: their win earns −1, and they open half the games.
    """

    rows: ClassVar[int]
    columns: ClassVar[int]
    in_a_row: ClassVar[int]
    opponents: ClassVar[dict[str, float | None]]
    """Opponent → the mean return from which beating it counts as solved.

    0.9 are 19 wins in 20 games, 0.5 are 3 in 4.
    """
    lowest_reward = -1.0
    render_fps = 1
    initial_draws = 2
    transition_draws = 1

    def __post_init__(self) -> None:
        choice(self.opponent, self.opponents, "env.opponent")

    @property
    def reward_threshold(self) -> float | None:  # type: ignore[override]
        """The mean return from which beating the `opponent` counts as solved."""
        return self.opponents[self.opponent]

    @property
    def rules(self) -> "Board":  # type: ignore[override]
        """The rules of the game, which are the methods of this class."""
        return self

    @abstractmethod
    def stone_bits(self, taken: Tensor) -> Tensor:
        """int64 [..., A]: the bit of the stone that each action sets, 0 where it is not allowed.

        `taken`: int64 [...], the bits of all stones on the board.
        """

    @staticmethod
    @abstractmethod
    def legal(obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.legal`."""

    @staticmethod
    @abstractmethod
    def after(obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.after`."""

    def has_won(self, obs: Tensor) -> Tensor:
        """As `rlx.agent.Rules.has_won`."""
        stones = (obs[..., 0, :, :].flatten(-2) > 0.5).long()
        return self.won((stones << self.cells(obs.device)).sum(-1))

    def scores(self, state: Tensor) -> Tensor:
        """float32 [B, A]: how good each legal action is to an opponent that is not random.

        `state`: [B, 2], the opponent being the player to move.
        """
        raise NotImplementedError(f"{type(self).__name__} has no opponent {self.opponent!r}")

    def initial(self, draws: Tensor) -> Tensor:
        empty = torch.zeros(len(draws), 2, dtype=torch.int64, device=draws.device)
        if self.opponent == "self":
            return empty
        opened, _, _ = self.move(empty, self.reply(empty[:1], draws[:, 1]))
        return torch.where(draws[:, :1] < 0.5, opened, empty)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        moved, reward, ended = self.move(state, action)
        if self.opponent == "self":
            return moved, reward, ended
        replied, opponent_reward, ended_by_reply = self.move(moved, self.reply(moved, draws[:, 0]))
        # Where the agent's own move has ended the game there is no reply.
        next_state = torch.where(ended.unsqueeze(-1), moved.flip(-1), replied)
        return next_state, torch.where(ended, reward, -opponent_reward), ended | ended_by_reply

    def observe(self, state: Tensor) -> Tensor:
        stones = (state.unsqueeze(-1) >> self.cells(state.device)) & 1
        return stones.float().unflatten(-1, (self.rows, self.columns))

    def render(self, state: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] of `state` [B, 2]: the agent's stones are blue.

        Where each step is the next player's, they are those of the player who began.
        """
        stones, opponent_stones = self.observe(state).long().unbind(1)
        if self.opponent == "self":
            second = stones.sum((1, 2), keepdim=True) < opponent_stones.sum((1, 2), keepdim=True)
            stones, opponent_stones = (
                torch.where(second, opponent_stones, stones),
                torch.where(second, stones, opponent_stones),
            )
        side = 320 // self.columns
        tiles = [tile(side), tile(side, disc=BLUE), tile(side, disc=RED)]
        return board(stones + 2 * opponent_stones, tiles)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(next state [B, 2], reward [B] of the mover, terminated [B]) after `action` [B].

        The next state is as the other player sees it, who is to move.
        """
        stones, opponent_stones = state.unbind(-1)
        stone_bits = self.stone_bits(stones | opponent_stones)
        stone = stone_bits.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        stones = stones | stone
        won = self.won(stones)
        illegal = stone == 0
        full = (stones | opponent_stones) == self.full()
        reward = won.float() - illegal.float()
        return torch.stack([opponent_stones, stones], -1), reward, won | illegal | full

    def reply(self, state: Tensor, draws: Tensor) -> Tensor:
        """The opponent's actions [B]: of those with the best score, one at random.

        `state`: [B, 2], or [1, 2] for all. `draws`: [B], uniform in [0, 1).
        """
        legal = self.stone_bits(state.sum(-1)) != 0
        if self.opponent == "random":
            scores = torch.zeros(legal.shape, device=state.device)
        else:
            scores = self.scores(state)
        scores = torch.where(legal, scores, -torch.inf)
        best = scores == scores.amax(-1, keepdim=True)
        # The number of the chosen action among the best ones; then the first action with it.
        number = (draws.unsqueeze(-1) * best.sum(-1, keepdim=True)).long()
        return (best.cumsum(-1) <= number).sum(-1)

    def won(self, stones: Tensor) -> Tensor:
        """bool, shaped as the bitboards `stones`: whether they hold a line."""
        lines = torch.zeros_like(stones)
        for shift in self.line_shifts():
            # A bit stays set where the line of stones that begins there is long enough.
            line = stones
            for _ in range(self.in_a_row - 1):
                line = stones & (line >> shift)
            lines |= line
        return lines != 0

    def line_shifts(self) -> tuple[int, ...]:
        """How many bits lie between a cell and the next in a line, for each direction of lines.

        Upwards, to the right, and along the diagonals down and up.
        """
        return 1, self.rows + 1, self.rows, self.rows + 2

    def cells(self, device: torch.device) -> Tensor:
        """int64 [rows · columns]: which bit each cell is, row by row from the top left."""
        height = torch.arange(self.rows - 1, -1, -1, device=device)
        bottom = torch.arange(self.columns, device=device) * (self.rows + 1)
        return (height.unsqueeze(1) + bottom).flatten()

    def full(self) -> int:
        """The bitboard of all cells."""
        column = (1 << self.rows) - 1
        return sum(column << (number * (self.rows + 1)) for number in range(self.columns))
