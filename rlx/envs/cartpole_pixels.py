"""CartPole in images: observations are Gymnasium's image of it, drawn for all copies at once."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.config import choice
from rlx.envs.batched import register
from rlx.envs.cartpole import CartPole


class _View(NamedTuple):
    """What an observation shows of the screen, which is 400 x 600 pixels."""

    space: spaces.Box
    """Of the observations."""
    rows: slice
    """Which rows of the screen."""
    columns: int
    """How many columns of the screen."""


_VIEWS = {
    "difference": _View(spaces.Box(-1, 1, (3, 40, 90), np.float32), slice(160, 320), 360),
    "frames": _View(spaces.Box(0, 255, (1, 84, 84), np.uint8), slice(0, 400), 600),
}
_ROWS = np.arange(400)
_COLUMNS = 600
_METRE = 125
"""Pixels of the screen."""
_LINE = 299
"""The row of the ground, a line that is drawn over all else."""
_CART = slice(284, 315)
"""The rows of the cart."""
_AXLE = slice(287, 298)
"""The rows of the axle, a disc."""
_MIDDLE = 292
"""The row of the axle's middle."""
_CART_HALF = 25.5
"""Half the width of the cart: Gymnasium's and half a pixel.

The outlines that Gymnasium draws run along the middles of pixels.
"""
_HALF = 5.5
"""Half the width of the pole and of the axle, so too."""
_POLE_COLOUR = (202, 152, 101)
_AXLE_COLOUR = (129, 132, 203)
_GRAY = np.array([[0.299], [0.587], [0.114]])
"""Weights of red, green and blue in gray (ITU-R BT.601, as PIL and OpenCV have it)."""


@dataclass(frozen=True)
class CartPolePixels(CartPole):
    """CartPole of which agents see images.

    State [B, 8]: CartPole's four numbers now, and those of the step before; at the start of an
    episode these are the same. A pixel is the mean over its area. Gymnasium moves what it draws by
    whole pixels of its screen; here all lies exactly where the state says, so that small movements
    show.
    """

    image_parameters = ("half_length",)
    observation_units = None  # type: ignore[assignment]

    view: str = "difference"
    """What an observation is.

    `difference`: float32 [3, 40, 90], red, green and blue (0 to 1) of a patch of the screen, less
    those of the step before. The patch is 40-80 % of the height and 60 % of the width, centred on
    the cart unless a border is near (PyTorch's DQN tutorial). `frames`: uint8 [1, 84, 84], the
    whole screen in gray.
    """

    def __post_init__(self) -> None:
        choice(self.view, _VIEWS, "env.view")

    @property
    def observation_space(self) -> spaces.Box:  # type: ignore[override]
        """That of the view."""
        return _VIEWS[self.view].space

    def initial(self, draws: Tensor) -> Tensor:
        return super().initial(draws).repeat(1, 2)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        before = state[:, :4]
        now, reward, terminated = super().transition(before, action, draws)
        return torch.cat([now, before], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        if self.view == "frames":
            return self.draw(state[:, :4]).round_().to(torch.uint8)
        now, before = self.draw(state.reshape(-1, 4)).unflatten(0, (-1, 2)).unbind(1)
        return (now - before) / 255

    def draw(self, state: Tensor) -> Tensor:
        """Images float32 [B, C, H, W] in 0…255 of `state` [B, 4]."""
        space, _, columns = _VIEWS[self.view]
        channels, height, width = space.shape
        canvas = _canvas(self.view, self.half_length, state.device)
        x, theta = state[:, :1], state[:, 2:3]
        middle = _COLUMNS / 2 + _METRE * x
        cart = middle - (middle - columns / 2).clamp(0, _COLUMNS - columns)
        left, right = self._pole(theta, canvas.pole_heights)
        half = canvas.half_widths.expand(len(state), -1)
        # Whole 128ths of a pixel times colours in 256ths: sums below 2²⁴ are exact, so no image
        # depends on those drawn beside it.
        unit = 128 * width / columns
        begin = ((cart + torch.cat([left, -half], -1)) * unit).round_().unsqueeze(-1)
        end = ((cart + torch.cat([right, half], -1)) * unit).round_().unsqueeze(-1)
        edges = torch.arange(0, 128 * width, 128, device=state.device)
        covered = (end - edges).clamp_(0, 128).sub_((begin - edges).clamp_(0, 128))
        paint = canvas.paint.expand(len(state), -1, -1)
        image = torch.baddbmm(canvas.empty, paint, covered)
        return image.unflatten(1, (channels, height))

    def _pole(self, theta: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
        """(left, right), each [B, P]: where the pole is in rows at `heights` [P] above the axle.

        They are pixels of the screen from the axle. In one row the pole is where two spans meet:
        that between its sides and that between its ends.
        """
        sin, cos = theta.sin(), theta.cos()
        sin = torch.where(sin.abs() < 1e-3, 1e-3, sin)
        length = _METRE * self.half_length + 0.5
        sides = heights * sin / cos
        ends = (length - _HALF - heights * cos) / sin
        left = torch.maximum(sides - _HALF / cos, ends - length / sin.abs())
        right = torch.minimum(sides + _HALF / cos, ends + length / sin.abs()).maximum(left)
        return left, right


class _Canvas(NamedTuple):
    """What images are made of: K spans of columns, each of which changes some rows.

    There is one for each of the P rows of the pole, one for each of the axle, and one of the cart.
    """

    pole_heights: Tensor
    """float32 [P]: how far the pole's rows are above the axle, in pixels of the screen."""
    half_widths: Tensor
    """float32 [K − P]: half the widths of the axle in its rows, and of the cart."""
    empty: Tensor
    """float32 [C · H, 1]: the image without pole, axle and cart, in 0…255."""
    paint: Tensor
    """float32 [C · H, K]: what a span changes in the pixels of a column by covering a 128th."""


@cache
def _canvas(view: str, half_length: float, device: torch.device) -> _Canvas:
    """The canvas of a view of a pole whose half length is so many metres."""
    space, rows, _ = _VIEWS[view]
    channels, height, _ = space.shape
    colours = np.array([_POLE_COLOUR, _AXLE_COLOUR]) @ (_GRAY if channels == 1 else np.eye(3))
    pole_colour, axle_colour = colours[:, :, None, None]  # [C, 1, 1]
    # How much of each pixel of the image, [H], lies in each row of the screen, [400].
    edges = np.linspace(rows.start, rows.stop, height + 1)[:, None]
    share = np.diff((edges - _ROWS).clip(0, 1), axis=0) * height / (rows.stop - rows.start)
    share = share * (_ROWS != _LINE)
    pole = slice(max(0, int(_MIDDLE - 2 * _METRE * half_length)), _LINE)
    # The axle lies within the pole, and the pole within the cart.
    behind_pole = np.where(np.isin(_ROWS, _ROWS[_CART]), 0, 255)
    on_pole = share[:, pole] * (pole_colour - behind_pole[pole])  # [C, H, P]
    on_axle = share[:, _AXLE] * (axle_colour - pole_colour)
    on_cart = np.tile(share[:, _CART].sum(1, keepdims=True) * -255, (channels, 1, 1))
    paint = np.concatenate([on_pole, on_axle, on_cart], -1).reshape(channels * height, -1)
    empty = np.tile(share.sum(1, keepdims=True) * 255, (channels, 1))
    heights = _MIDDLE - _ROWS
    axle_half = np.sqrt(_HALF**2 - heights[_AXLE] ** 2)
    arrays = (
        heights[pole],
        np.append(axle_half, _CART_HALF),
        np.round(empty * 256) / 256,
        np.round(paint * 256) / 256 / 128,
    )
    tensors = [torch.as_tensor(array, dtype=torch.float32, device=device) for array in arrays]
    return _Canvas(*tensors)


register("rlx/CartPolePixels-v1", CartPolePixels)
