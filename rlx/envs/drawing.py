"""Images of many states at once, as tensors: lines, discs, rectangles, and boards of tiles."""

from collections.abc import Callable

import torch
from torch import Tensor

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
Number = float | Tensor
"""A number for all images, or one for each, [B]."""

WHITE = (255, 255, 255)
BLACK = (40, 40, 40)
GRAY = (205, 205, 205)
BLUE = (0, 114, 178)
RED = (213, 94, 0)
GREEN = (0, 158, 115)
YELLOW = (240, 190, 60)
BROWN = (202, 152, 101)


class Canvas:
    """Images of a part of the plane, white at first, onto which shapes are drawn in turn.

    Places and sizes are in the units of the plane, whose y axis points upwards. A pixel at the edge
    of a shape takes as much of its colour as the shape covers.
    """

    def __init__(
        self,
        batch: int,
        x: tuple[float, float],
        y: tuple[float, float],
        device: torch.device,
        columns: int = 400,
    ):
        """`batch` images of the plane from `x[0]` to `x[1]` and from `y[0]` to `y[1]`."""
        self.scale = columns / (x[1] - x[0])
        """Pixels per unit."""
        rows = round(self.scale * (y[1] - y[0]))
        self.x = x[0] + (torch.arange(columns, device=device) + 0.5) / self.scale
        """The places of the columns, [W]."""
        self.y = (y[1] - (torch.arange(rows, device=device) + 0.5) / self.scale).unsqueeze(1)
        """The places of the rows, [H, 1]."""
        self.pixels = torch.full((batch, rows, columns, 3), 255.0, device=device)

    def images(self) -> Tensor:
        """What was drawn, uint8 [B, H, W, 3]."""
        return self.pixels.round().to(torch.uint8)

    def disc(self, centre: tuple[Number, Number], radius: float, colour: Colour) -> None:
        """Fill a circle."""
        self.line(centre, centre, 2 * radius, colour)

    def line(
        self,
        begin: tuple[Number, Number],
        end: tuple[Number, Number],
        width: float,
        colour: Colour,
    ) -> None:
        """Draw a line with round ends."""
        x, y = self.x - self._each(begin[0]), self.y - self._each(begin[1])
        along_x, along_y = (
            self._each(end[0]) - self._each(begin[0]),
            self._each(end[1]) - self._each(begin[1]),
        )
        length = (along_x * along_x + along_y * along_y).clamp(min=1e-12)
        # The nearest point of the line, as a share of the way from begin to end.
        share = ((x * along_x + y * along_y) / length).clamp(0, 1)
        distance = torch.hypot(x - share * along_x, y - share * along_y)
        self._fill(width / 2 - distance, colour)

    def rectangle(
        self, centre: tuple[Number, Number], width: float, height: float, colour: Colour
    ) -> None:
        """Fill a rectangle that stands upright."""
        x = width / 2 - (self.x - self._each(centre[0])).abs()
        y = height / 2 - (self.y - self._each(centre[1])).abs()
        self._fill(torch.minimum(x, y), colour)

    def below(self, height: Callable[[Tensor], Tensor], colour: Colour) -> None:
        """Fill all that is below a curve, y = `height`(x)."""
        self._fill((height(self.x) - self.y).unsqueeze(0), colour)

    def _each(self, number: Number) -> Tensor:
        """A number for all images, or one for each [B], to be compared with pixels: [B, 1, 1]."""
        value = torch.as_tensor(number, dtype=torch.float32, device=self.x.device)
        return value.reshape(-1, 1, 1)

    def _fill(self, inside: Tensor, colour: Colour) -> None:
        """Paint with a colour; `inside` [B, H, W]: how far a pixel is within the shape, or [1, …].

        It is negative outside.
        """
        covered = (0.5 + self.scale * inside).clamp(0, 1).unsqueeze(-1)
        self.pixels.lerp_(self.pixels.new_tensor(colour), covered)


def tile(
    side: int, ground: Colour = WHITE, disc: Colour | None = None, radius: float = 0.7
) -> Tensor:
    """A square of a board, uint8 [side, side, 3], with or without a disc; 1 is half a side."""
    canvas = Canvas(1, (-1, 1), (-1, 1), torch.device("cpu"), side)
    canvas.rectangle((0, 0), 2, 2, GRAY)
    canvas.rectangle((0, 0), 2 - 2 / side, 2 - 2 / side, ground)
    if disc is not None:
        canvas.disc((0, 0), radius, disc)
    return canvas.images()[0]


def board(cells: Tensor, tiles: list[Tensor]) -> Tensor:
    """Images uint8 [B, R · side, C · side, 3] of boards; `cells` int64 [B, R, C] number the tiles.

    `tiles`: each uint8 [side, side, 3].
    """
    squares = torch.stack(tiles).to(cells.device)[cells]  # [B, R, C, side, side, 3]
    return squares.transpose(2, 3).flatten(1, 2).flatten(2, 3)
