"""CartPole seen: the observations are Gymnasium's picture of it, drawn for all copies at once."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlx.config import choice
from rlx.envs.batched import register
from rlx.envs.cartpole import CartPole

_VIEWS: dict[str, tuple[spaces.Box, slice, int]] = {
    "difference": (spaces.Box(-1, 1, (3, 40, 90), np.float32), slice(160, 320), 360),
    "frames": (spaces.Box(0, 255, (1, 84, 84), np.uint8), slice(0, 400), 600),
}
"""What an observation is, and which rows and how many columns of the screen it shows."""
_ROWS, _COLUMNS, _METRE = np.arange(400), 600, 125
"""The screen, in pixels."""
_LINE, _CART, _AXLE, _MIDDLE = 299, slice(284, 315), slice(287, 298), 292
"""Rows of the line, which is drawn over all else, of the cart, and of the axle and its middle."""
_CART_HALF, _HALF = 25.5, 5.5
"""Half the widths of the cart, and of pole and axle: Gymnasium's and half a pixel, as its outlines run along the middles of pixels."""
_POLE_COLOUR, _AXLE_COLOUR = (202, 152, 101), (129, 132, 203)
_GRAY = np.array([[0.299], [0.587], [0.114]])  # ITU-R BT.601, as PIL and OpenCV have it


@dataclass(frozen=True)
class CartPolePixels(CartPole):
    """State [B, 8]: CartPole's four numbers now, and those of the step before (at an episode's start: now's).

    `view` "difference": float32 [3, 40, 90], red, green and blue (0…1) of a patch of the screen, less those of the step before; the
    patch is 40-80% of the height and 60% of the width, centred on the cart unless a border is near (PyTorch's DQN tutorial).
    "frames": uint8 [1, 84, 84], the whole screen in gray. A pixel is the mean over its area. Gymnasium moves what it draws by
    whole pixels of its screen; here all lies exactly where the state says, so that small movements show.
    """

    drawn = ("half_length",)

    view: str = "difference"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "observation_space", _VIEWS[choice(self.view, _VIEWS, "env.view")][0]
        )

    def initial(self, draws: Tensor) -> Tensor:
        return super().initial(draws).repeat(1, 2)

    def transition(
        self, state: Tensor, action: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        now, reward, terminated = super().transition(state[:, :4], action, draws)
        return torch.cat([now, state[:, :4]], -1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        if self.view == "frames":
            return self.draw(state[:, :4]).round_().to(torch.uint8)
        now, before = self.draw(state.reshape(-1, 4)).unflatten(0, (-1, 2)).unbind(1)
        return (now - before) / 255

    def draw(self, state: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W] in 0…255 of `state` [B, 4]."""
        box, _, shown = _VIEWS[self.view]
        channels, height, width = box.shape
        up, half, empty, paint = _canvas(self.view, self.half_length, state.device)
        x, theta = state[:, :1], state[:, 2:3]
        cart = _COLUMNS / 2 + _METRE * x
        cart = cart - (cart - shown / 2).clamp(0, _COLUMNS - shown)
        # In one row of the screen, the pole is where two spans meet: that between its sides and that between its ends.
        sin, cos = theta.sin(), theta.cos()
        sin = torch.where(sin.abs() < 1e-3, 1e-3, sin)
        length = _METRE * self.half_length + 0.5
        sides, ends = up * sin / cos, (length - _HALF - up * cos) / sin
        left = torch.maximum(sides - _HALF / cos, ends - length / sin.abs())
        right = torch.minimum(sides + _HALF / cos, ends + length / sin.abs()).maximum(left)
        half = half.expand(len(state), -1)
        # Whole 128ths of a pixel times colours in 256ths: sums below 2²⁴ are exact, so no picture depends on those drawn beside it.
        unit = 128 * width / shown
        start = ((cart + torch.cat([left, -half], -1)) * unit).round_().unsqueeze(-1)
        stop = ((cart + torch.cat([right, half], -1)) * unit).round_().unsqueeze(-1)
        columns = torch.arange(0, 128 * width, 128, device=state.device)
        covered = (stop - columns).clamp_(0, 128).sub_((start - columns).clamp_(0, 128))
        return torch.baddbmm(empty, paint.expand(len(state), -1, -1), covered).unflatten(
            1, (channels, height)
        )


@cache
def _canvas(view: str, half_length: float, device: torch.device) -> tuple[Tensor, ...]:
    """What pictures are made of: K spans, one for each of the P rows of the pole, for each of the axle's, and one for the cart.

    Heights [P] of the pole's rows above the axle; half the widths [K − P] of axle and cart; the empty picture [C · H, 1] in 0…255;
    paint [C · H, K]: what changes in the pixels of a column when a span covers a 128th of it.
    """
    box, window, _ = _VIEWS[view]
    channels, height, _ = box.shape
    colours = np.array([_POLE_COLOUR, _AXLE_COLOUR]) @ (_GRAY if channels == 1 else np.eye(3))
    edges = np.linspace(window.start, window.stop, height + 1)[:, None]
    share = (
        np.diff((edges - _ROWS).clip(0, 1), axis=0)
        * height
        / (window.stop - window.start)
        * (_ROWS != _LINE)
    )  # [H, 400]
    pole = slice(max(0, int(_MIDDLE - 2 * _METRE * half_length)), _LINE)
    behind = np.where(np.isin(_ROWS, _ROWS[_CART]), 0, 255)
    on_pole = share[:, pole] * (colours[0][:, None, None] - behind[pole])  # [C, H, P]
    on_axle = (
        share[:, _AXLE] * (colours[1] - colours[0])[:, None, None]
    )  # the axle lies within the pole, that within the cart
    on_cart = np.tile(share[:, _CART].sum(1, keepdims=True) * -255, (channels, 1, 1))
    paint = np.concatenate([on_pole, on_axle, on_cart], -1).reshape(channels * height, -1)
    empty = np.tile(share.sum(1, keepdims=True) * 255, (channels, 1))
    up = _MIDDLE - _ROWS
    half = np.append(np.sqrt(_HALF**2 - up[_AXLE] ** 2), _CART_HALF)
    arrays = up[pole], half, np.round(empty * 256) / 256, np.round(paint * 256) / 256 / 128
    return tuple(torch.as_tensor(array, dtype=torch.float32, device=device) for array in arrays)


register("rlx/CartPolePixels-v1", CartPolePixels)
