"""A sweep: every mode × radius × episode of an attack, on every seed, as one batch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Policy, Scores, Spec
from rlx.env import TensorEnv
from rlx.evaluation import REPORT, MakeEnv
from rlx.robustness.attacker import Attacker
from rlx.rollout import Episodes, rollout
from rlx.show import console
from rlx.threat import Attack, Budget, Mode


@dataclass
class Played:
    """The episodes of one mode: S seeds, E radii, P episodes of each."""

    returns: np.ndarray
    """Undiscounted returns, [S, E, P]."""
    lengths: np.ndarray
    """Lengths in environment steps, [S, E, P]."""
    truncated: np.ndarray
    """Whether the episode ended at the time limit, [S, E, P]."""
    decisions: dict[str, np.ndarray]
    """Decisions that each attacked head took in all episodes, [S, E]."""
    flips: dict[str, np.ndarray]
    """Decisions of each attacked head that the perturbation changed, [S, E]."""


@dataclass(frozen=True)
class Chunk:
    """Some columns of a sweep, after they were played; every tensor is [S, columns]."""

    episodes: Episodes
    """One episode for each column of each seed."""
    decisions: dict[str, Tensor]
    """Decisions that each head took."""
    flips: dict[str, Tensor]
    """Decisions of each head that the perturbation changed."""


def check_attackable(
    policy: Policy, env: TensorEnv, spec: Spec, attack: Attack, modes: Mapping[str, Mode]
) -> None:
    """ConfigError where the attack cannot be done on these policies.

    It attacks the first observation of one copy per seed, with radius 0: so an error comes before
    anything is played or written.
    """
    obs = env.reset(seed=REPORT)[0].unsqueeze(1).float()
    budget = Budget.of(spec.observation_space, torch.zeros_like(obs))
    bounds = None
    if isinstance(spec.action_space, gymnasium.spaces.Box):
        low = torch.as_tensor(spec.action_space.low, device=obs.device)
        high = torch.as_tensor(spec.action_space.high, device=obs.device)
        bounds = (low, high)
    for head in {head for mode in modes.values() for head in mode.heads}:
        carry = policy.initial_carry(1)
        scores = Scores(partial(policy.scores, carry=carry, head=head), bounds)
        attack.perturb(scores, obs, budget, lambda count: obs.new_zeros(*obs.shape[:2], count))


def sweep(
    policy: Policy,
    make_env: MakeEnv,
    spec: Spec,
    attack: Attack,
    modes: Mapping[str, Mode],
    *,
    seeds: Sequence[int],
    eps: Sequence[float],
    scale: np.ndarray,
    episodes: int,
    max_num_envs: int,
    device: torch.device,
    angles: tuple[tuple[int, int], ...] = (),
) -> dict[str, Played]:
    """Play every mode × radius × episode of every seed; returns the episodes of each mode.

    Modes, radii and episodes are the columns of one batch [S, modes · E · P], which is played in
    chunks of at most `max_num_envs` copies. `seeds`: the numbers of the policy's S seeds; `eps`:
    the E radii in units of `scale` [*O]; `episodes`: P; `angles`: pairs (cosine, sine) of
    components of an observation that stay on the unit circle.
    """
    shape = (len(modes), len(eps), episodes)
    columns = torch.arange(math.prod(shape), device=device)
    mode_index, radius_index, episode_index = torch.unravel_index(columns, shape)
    radii = torch.tensor(eps, dtype=torch.float32, device=device)
    width = max(1, max_num_envs // len(seeds))
    chunks: list[Chunk] = []
    with console.Progress(len(columns), unit="columns", quarters=True) as progress:
        for chunk in columns.split(width):
            # The same start states in every cell: they depend on the episode alone.
            reset_seeds = (REPORT + episode_index[chunk]).expand(len(seeds), -1)
            attacker = Attacker(
                attack,
                policy,
                spec,
                modes=list(modes.values()),
                column_modes=mode_index[chunk],
                column_radii=radii[radius_index[chunk]],
                seeds=seeds,
                reset_seeds=reset_seeds,
                scale=scale,
                angles=angles,
            )
            env = make_env(reset_seeds.numel())
            played = rollout(policy, env, reset_seeds, attacker.make_choose)
            chunks.append(Chunk(played, attacker.decisions(), attacker.flips()))
            progress.update(int(chunk[-1]) + 1)
    return _by_mode(chunks, modes, shape)


def _by_mode(
    chunks: Sequence[Chunk], modes: Mapping[str, Mode], shape: tuple[int, int, int]
) -> dict[str, Played]:
    """The episodes of each mode; the columns of all `chunks` have the `shape` (modes, E, P)."""

    def joined(parts: Iterable[Tensor]) -> np.ndarray:
        """The parts [S, columns] of all chunks as one array [S, modes, E, P]."""
        return torch.cat(list(parts), 1).unflatten(1, shape).cpu().numpy()

    returns = joined(chunk.episodes.returns for chunk in chunks)
    lengths = joined(chunk.episodes.lengths for chunk in chunks)
    truncated = joined(chunk.episodes.truncated for chunk in chunks)
    decisions = {}
    flips = {}
    for head in chunks[0].decisions:
        decisions[head] = joined(chunk.decisions[head] for chunk in chunks).sum(-1)
        flips[head] = joined(chunk.flips[head] for chunk in chunks).sum(-1)
    played = {}
    for number, (name, mode) in enumerate(modes.items()):
        played[name] = Played(
            returns=returns[:, number],
            lengths=lengths[:, number],
            truncated=truncated[:, number],
            decisions={head: decisions[head][:, number] for head in mode.heads},
            flips={head: flips[head][:, number] for head in mode.heads},
        )
    return played
