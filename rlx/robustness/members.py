"""The adversaries that env=attacked holds: one for each victim, restart and radius."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlx.errors import ConfigError


class Members:
    """Victims × restarts × radii, numbered in this order with the radius last.

    The copies of an env are shared out among them in equal groups, in order. So a training of as
    many seeds as there are members has an adversary for each, and one of as many seeds as there are
    victims × restarts has adversaries that serve all radii.
    """

    def __init__(
        self,
        victims: int,
        restarts: int,
        eps: Sequence[float],
        chosen: Sequence[int] | None,
        device: torch.device,
    ):
        """`eps`: the radii; `chosen`: the members that copies are for, in order; None: all."""
        self.counts = (victims, restarts, len(eps))
        """The numbers of victims, restarts and radii."""
        total = math.prod(self.counts)
        if chosen is None:
            chosen = range(total)
        wrong = [member for member in chosen if not 0 <= member < total]
        if wrong or not chosen:
            raise ConfigError(f"env.members={list(chosen)}: expected some of 0 to {total - 1}.")
        self.chosen = torch.tensor(list(chosen), device=device)
        """int64 [M]: the members that copies are for."""
        numbers = torch.arange(total, device=device)
        self.victim, _, radius = torch.unravel_index(numbers, self.counts)
        self.eps = torch.tensor(list(eps), device=device)[radius]
        """float32 [total]: the radius of each member; `victim`, int64 [total]: its victim."""

    def of_rows(self, rows: Sequence[int], seeds: int) -> list[int]:
        """The members of some `rows` of a training of so many `seeds`, in the order of the rows."""
        each = math.prod(self.counts) // seeds
        return [row * each + number for row in rows for number in range(each)]

    def shared_out(self, num_envs: int) -> Tensor:
        """int64 [B]: the member of each of `num_envs` copies; a single copy has the first.

        ConfigError where the copies cannot be shared out evenly.
        """
        if num_envs == 1:
            return self.chosen[:1]
        members = len(self.chosen)
        if num_envs % members:
            victims, restarts, radii = self.counts
            raise ConfigError(
                f"env: {num_envs} copies cannot be shared out among {members} adversaries "
                f"({victims} victims × {restarts} restarts × {radii} radii); "
                "take a multiple of that."
            )
        return self.chosen.repeat_interleave(num_envs // members)

    def check_seeds(self, seeds: int, copies: Sequence[int]) -> None:
        """ConfigError unless each of so many `seeds` of a training has one victim and restart.

        It has one radius of them, or all. `copies`: the numbers of copies that a seed is given to
        learn in, and to be evaluated in.
        """
        victims, restarts, radii = self.counts
        if len(self.chosen) < len(self.eps):
            raise ConfigError("env.members: is for evaluations; to learn, choose by env.seeds.")
        adversaries = victims * restarts
        if seeds == adversaries * radii:
            return
        if seeds != adversaries:
            raise ConfigError(
                f"seeds: {seeds} for {victims} victims × {restarts} restarts; set "
                f"seeds={adversaries}, whose adversaries serve all radii, or seeds="
                f"{adversaries * radii}, one for each of the {radii} radii."
            )
        for number in copies:
            if number % radii:
                raise ConfigError(
                    f"num_envs, eval_episodes, final_episodes: {number} cannot be shared out among "
                    f"the {radii} radii of env.eps; take multiples of {radii}."
                )
