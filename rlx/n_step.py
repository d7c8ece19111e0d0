"""n-step returns of stored rows, by what a network says of the rows behind their rewards."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Returns(NamedTuple):
    """The n-step returns of R rows in each of B windows: `value` + `scale` · the value of `end`."""

    value: Tensor
    """[S, B, R]: the discounted rewards."""
    scale: Tensor
    """[S, B, R]: the discount of the value behind them; 0 behind a terminal state."""
    end: Tensor
    """int64 [S, B, R]: the row behind the last reward, as a place in the window."""
    is_in_episode: Tensor
    """bool [S, B, R]: whether the row is stored and of the episode of the window's first."""

    def with_values(self, values: Tensor) -> Tensor:
        """The returns [S, B, R] by the `values` of the rows `end`; 0 behind an episode's end."""
        return torch.where(self.is_in_episode, self.value + self.scale * values, 0.0)


def n_step_returns(
    window: Mapping[str, Tensor],
    *,
    first_rows: int,
    n_steps: int,
    horizon: Tensor,
    discount: float,
) -> Returns:
    """The returns of the first R = `first_rows` rows of windows [S, B, R + `n_steps`, …].

    `window` has the `reward` of each row, whether its step led to a terminal state (`terminated`),
    and whether the row is stored and of the first one's episode (`alive`). `horizon`: int64 [S, B],
    the n of each window, at most `n_steps`. Of one row, whose episode's stored rows from it on have
    the `rewards`, `terminated` and `values`, the return of n steps is

        def n_step_return(rewards, terminated, values, n, discount):
            total = 0.0
            for i in range(n):
                if terminated[i]:
                    return total + discount**i * rewards[i]
                if i + 1 == len(rewards):  # the episode was cut, or the log ends
                    return total + discount**i * values[i]
                total += discount**i * rewards[i]
            return total + discount**n * values[n]
    """
    alive = window["alive"]
    is_in_episode = alive[..., :first_rows]
    running = is_in_episode
    value = torch.zeros(running.shape, device=alive.device)
    scale = torch.ones_like(value)
    end = torch.arange(first_rows, device=alive.device).expand_as(running)
    weight = 1.0
    for i in range(n_steps):
        next_alive = alive[..., i + 1 : i + 1 + first_rows]
        used = running & (i < horizon.unsqueeze(-1))
        not_done = used & next_alive
        terminal = used & window["terminated"][..., i : i + first_rows]
        # Where an episode was cut, or the log ends, the reward of the last row is not counted: that
        # row's own value stands for it.
        reward = weight * window["reward"][..., i : i + first_rows]
        value = value + torch.where(not_done | terminal, reward, 0.0)
        weight *= discount
        scale = torch.where(not_done, weight, scale)
        scale = torch.where(terminal, 0.0, scale)
        end = end + not_done
        running = running & next_alive
    return Returns(value=value, scale=scale, end=end, is_in_episode=is_in_episode)
