"""An attacked episode beside the clean one: films for people to look at."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlx.robustness.sweep import Game, Played
from rlx.show import console
from rlx.show.video import Camera, Film, Scene
from rlx.threat import Witness

ROUNDING = 1e-4
"""Share by which the return of an episode that is played again may differ."""


def films(
    game: Game, played: Played, name: str, number: int, scenes: Sequence[Scene], camera: Camera
) -> list[Film]:
    """Two films of each scene, clean and as it was `played` at radius `number` of the game.

    `name`: the attack as it is called. Both begin in the same state. None where nobody has said
    how to play an episode again.
    """
    if played.replay is None:
        console.warning(f"no video: attack={name} does not say how to play an episode again")
        return []
    result = []
    for row, seed, episode in scenes:
        place = row, number, episode
        title = f"seed {seed}, episode {episode}"
        clean = Film(f"{title}: clean")
        policy = game.policy_of(row)
        camera.play(clean, policy, game.first_reset_seed + episode, clean.greedy)
        if played.attack is not None:
            name = played.attacks[played.attack[place]]
        attacked = Film(f"{title}: {name}, eps {game.eps[number]:g}")
        played.replay(*place, camera.filming(attacked), _witness(game, attacked))
        result += [clean, attacked]
        shown, found = sum(attacked.rewards), float(played.returns[place])
        if not math.isclose(shown, found, rel_tol=ROUNDING, abs_tol=ROUNDING):
            console.warning(
                f"{attacked.title}: return {shown:.6g} in the video, {found:.6g} in the study, "
                "whose episodes are played side by side and round otherwise"
            )
    return result


def _witness(game: Game, film: Film) -> Witness:
    """Who notes in `film` what was decided."""
    is_image = game.opened.spec.observation_space.dtype == np.uint8

    def witness(head: str, obs: Tensor, shown: Tensor, *decided: Tensor) -> None:
        if is_image:  # attacked as floats
            obs, shown = obs.to(torch.uint8), shown.to(torch.uint8)
        film.note(head, obs, shown, *decided)

    return witness
