"""Who carries the harm: the lost return, shared out among heads and components of observations.

The shares are Shapley values (Shapley 1953): what a part adds to the harm, averaged over all orders
in which the parts may be handed to the attack. They sum up to the whole harm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from rlx.errors import ConfigError
from rlx.robustness.sweep import Game, sweep
from rlx.show import console
from rlx.threat import Attack, Mode

EPISODES = 20
"""Episodes of each seed that every combination of parts is attacked in."""
MOST = 8
"""Parts at most: of n parts there are 2^n combinations."""


@dataclass(frozen=True)
class Attribution:
    """The return that an attack takes at one radius, by what it was allowed to move."""

    eps: float
    """The radius."""
    attack: str
    """The attack, by name."""
    lost: float
    """The return that it takes with all heads and components, the mean over seeds and episodes."""
    heads: Mapping[str, float]
    """The part of `lost` that each head carries."""
    components: Mapping[str, float]
    """The part of `lost` that each component of an observation carries."""

    def as_dict(self) -> dict[str, Any]:
        """The attribution as summary.json has it."""
        return {
            "eps": self.eps,
            "attack": self.attack,
            "lost": self.lost,
            "heads": dict(self.heads),
            "components": dict(self.components),
        }


def component_names(game: Game, units: Sequence[str] | None) -> list[str]:
    """The names of the components that can be moved, for `attribute`: of a stack the newest.

    ConfigError where there are too many to try all combinations.
    """
    size = game.scale.size // game.opened.spec.stack
    if game.scale.ndim != 1 or size > MOST:
        raise ConfigError(
            f"attribution: needs flat observations of at most {MOST} components, not {size}."
        )
    return list(units[-size:]) if units is not None else [f"obs[{i}]" for i in range(size)]


def attribute(
    game: Game, attack: Attack, name: str, eps: float, components: Sequence[str]
) -> Attribution:
    """Share out what `attack`, called `name`, takes at the radius `eps`, in all heads at once.

    `components`: the names of the last components of an observation, which alone are moved.
    """
    game = replace(game, eps=[eps], episodes=EPISODES, quiet=True)
    heads = game.opened.policy.heads
    combinations_of_parts = 2 ** len(components) + 2 ** len(heads) - 1
    console.facts(attribution=f"{name} at eps {eps:g}, {combinations_of_parts} combinations")
    with console.Progress(combinations_of_parts, unit="combinations", quarters=True) as progress:

        def mean(game: Game, heads: Sequence[str]) -> float:
            value = _mean(game, attack, heads)
            progress.update(progress.step + 1)
            return value

        def by_components(chosen: Sequence[int]) -> float:
            numbers = game.scale.size - len(components) + np.array(chosen)
            allowed = np.zeros_like(game.scale)
            allowed[numbers] = game.scale[numbers]
            return clean - mean(replace(game, scale=allowed), heads)

        def by_heads(chosen: Sequence[int]) -> float:
            return clean - mean(game, [heads[number] for number in chosen])

        clean = mean(replace(game, eps=[0.0]), heads)
        of_components = shapley(len(components), by_components)
        of_heads = shapley(len(heads), by_heads)
    return Attribution(
        eps=eps,
        attack=name,
        lost=float(of_components.sum()),
        heads=dict(zip(heads, of_heads.tolist(), strict=True)),
        components=dict(zip(components, of_components.tolist(), strict=True)),
    )


def shapley(players: int, worth: Callable[[tuple[int, ...]], float]) -> np.ndarray:
    """The Shapley value of each of n `players`, [n].

    `worth`: the numbers of some players → what they are worth together. That of none is 0.
    """
    worths: dict[tuple[int, ...], float] = {(): 0.0}
    for size in range(1, players + 1):
        for some in combinations(range(players), size):
            worths[some] = float(worth(some))
    values = np.zeros(players)
    for some, value in worths.items():
        for player in range(players):
            if player in some:
                continue
            together = tuple(sorted((*some, player)))
            weight = math.factorial(len(some)) * math.factorial(players - len(some) - 1)
            values[player] += weight / math.factorial(players) * (worths[together] - value)
    return values


def _mean(game: Game, attack: Attack, heads: Sequence[str]) -> float:
    """The mean return over seeds and episodes, with some `heads` attacked."""
    played = sweep(game, attack, {"": Mode(tuple(heads), shared=False)})
    return float(played[""].returns.mean())
