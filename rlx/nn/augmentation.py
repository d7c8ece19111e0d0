"""Images changed at random, so that a network learns from more of them than were seen."""

import torch
from torch import Tensor, nn

from rlx.nn.rng import pick

SHIFT = 4
"""Largest shift, in pixels."""


def augment(images: Tensor, draws: Tensor) -> Tensor:
    """Images [S, B, K, C, H, W] shifted by up to 4 pixels (Kostrikov et al. 2021), as float32.

    Behind an edge its pixels are repeated. Brightness changes by up to 10 %. The K images of a row
    change alike, by its `draws` (uniform, [S, B, 4]).
    """
    rows = images.shape[:2]
    height, width = images.shape[-2:]
    down = pick(draws[:, :, 0].flatten(), 2 * SHIFT + 1)
    right = pick(draws[:, :, 1].flatten(), 2 * SHIFT + 1)
    edges = (SHIFT, SHIFT, SHIFT, SHIFT, 0, 0)
    padded = nn.functional.pad(images.flatten(0, 1).float(), edges, mode="replicate")
    # A view of all shifts, [S · B, K, C, 9, 9, H, W].
    crops = padded.unfold(-2, height, 1).unfold(-2, width, 1)
    row = torch.arange(rows.numel(), device=images.device)
    shifted = crops[row, :, :, down, right].unflatten(0, rows)
    draws = draws[..., None, None, None, None]  # [S, B, 4, 1, 1, 1, 1]
    # Normal variates by the Box–Muller transform.
    radius = (-2 * draws[:, :, 2].clamp(min=1e-7).log()).sqrt()
    normal = radius * (2 * torch.pi * draws[:, :, 3]).cos()
    return shifted * (1 + 0.05 * normal.clamp(-2, 2))
