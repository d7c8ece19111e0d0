"""An attacked episode beside the clean one: films for people to look at."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlx.nn.seed_axis import take
from rlx.robustness.attacker import Attacker, flipped
from rlx.robustness.sweep import Game
from rlx.show.video import Camera, Film, Scene
from rlx.threat import Attack, Mode


def films(
    game: Game,
    attack: Attack,
    name: str,
    mode: Mode,
    radius: float,
    scenes: Sequence[Scene],
    camera: Camera,
) -> list[Film]:
    """Two films of each scene, clean and under `attack` at a `radius`, from the same first state.

    `name`: the attack as it is called.
    """
    result = []
    for scene in scenes:
        for eps in (0.0, radius):
            what = f"{name}, eps {eps:g}" if eps > 0 else "clean"
            film = Film(f"seed {scene.seed}, episode {scene.episode}: {what}")
            _play(game, attack, mode, eps, scene, camera, film)
            result.append(film)
    return result


def _play(
    game: Game,
    attack: Attack,
    mode: Mode,
    eps: float,
    scene: Scene,
    camera: Camera,
    film: Film,
) -> None:
    """Play a scene under an attack at a radius `eps`, into `film`."""
    opened = game.opened
    device = opened.device
    policy = take(opened.policy, torch.tensor([scene.row], device=device))
    reset_seed = game.first_reset_seed + scene.episode
    attacker = Attacker(
        attack,
        policy,
        opened.spec,
        modes=[mode],
        column_modes=torch.zeros(1, dtype=torch.int64, device=device),
        column_radii=torch.tensor([eps], device=device),
        seeds=[scene.seed],
        reset_seeds=torch.tensor([[reset_seed]], device=device),
        boxes=game.boxes,
    )

    def witness(
        head: str, obs: Tensor, shown: Tensor, decision: Tensor, clean: Tensor, deciding: Tensor
    ) -> None:
        changed = flipped(opened.spec.action_space, decision, clean)
        if game.boxes.space.dtype == np.uint8:  # images are attacked as floats
            obs, shown = obs.to(torch.uint8), shown.to(torch.uint8)
        film.note(head, obs, shown, decision, clean, changed, deciding)

    attacker.witness = witness
    choose = attacker.make_choose(torch.zeros(1, 1, dtype=torch.int64, device=device))
    camera.play(film, policy, reset_seed, choose)
