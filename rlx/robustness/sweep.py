"""A sweep: every mode × radius × episode of an attack, on every seed, as one batch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Policy, Scores
from rlx.env import TensorEnv
from rlx.evaluation import REPORT
from rlx.nn.seed_axis import take
from rlx.policies import Opened
from rlx.robustness.attacker import Attacker
from rlx.robustness.cost import Costs
from rlx.rollout import Episodes, rollout
from rlx.runs.run import Run
from rlx.show import console
from rlx.threat import Adversary, Attack, Boxes, Budget, Mode, Threat, Witness
from rlx.victims.files import Victims


@dataclass(frozen=True)
class Game:
    """What is attacked: policies in their env, at some radii, from some start states."""

    opened: Opened
    """The policies of S seeds, and their env."""
    eps: Sequence[float]
    """The E radii, in units of the scale."""
    scale: np.ndarray
    """What eps = 1 means for each component of an observation, [*O]."""
    episodes: int
    """P, the number of episodes of each seed at each radius."""
    first_reset_seed: int
    """The reset seed of the first episode; the others count up from it, the same in every cell."""
    max_num_envs: int
    """Env copies that are played at once."""
    angles: tuple[tuple[int, int], ...] = ()
    """Pairs (cosine, sine) of components of an observation that stay on the unit circle."""
    runs: Sequence[Run] = ()
    """The trainings that the policies are of."""
    checkpoint: str = "best"
    """The checkpoint that the policies are of."""
    victims: Victims | None = None
    """The files that the policies are of, where no training is."""
    costs: Costs = field(default_factory=Costs)
    """What was spent on it, by name; a copy with other radii or episodes shares it."""
    quiet: bool = False
    """Whether no progress is printed."""
    filmed: Sequence[tuple[int, int]] = ()
    """Episodes that will be played again: the row of the seed axis and the number of each."""

    @cached_property
    def boxes(self) -> Boxes:
        """The boxes around what the policies observe, on their device."""
        scale = torch.as_tensor(self.scale, dtype=torch.float32, device=self.opened.device)
        return Boxes.of(self.opened.spec.observation_space, scale, self.angles)

    def policy_of(self, row: int) -> Policy:
        """The policy of one row of the seed axis, alone."""
        return take(self.opened.policy, torch.tensor([row], device=self.opened.device))

    def reset_seeds_of(self, episode: int) -> Tensor:
        """The reset seed of one episode, as those of one policy: int64 [1, 1]."""
        return torch.tensor([[self.first_reset_seed + episode]], device=self.opened.device)

    def budget(self, radius: Tensor, obs: Tensor) -> Budget:
        """The boxes of a `radius` [S, B], in units of the scale, around `obs` [S, B, *O]."""
        return self.boxes.around(obs, radius)

    def radii(self) -> Tensor:
        """The radii as a tensor, float32 [E]."""
        return torch.tensor(self.eps, dtype=torch.float32, device=self.opened.device)


Replay = Callable[[int, int, int, TensorEnv, Witness], None]
"""Plays an episode of a study again: (row of the seed axis, number of the radius, number of the
episode, one copy of the env, who is told of every decision)."""


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
    """Decisions that each head took, [S, E, P]: of all that are attacked, and of what else was
    counted."""
    flips: dict[str, np.ndarray]
    """Decisions of each attacked head that the perturbation changed, [S, E, P]."""
    attacks: list[str] = field(default_factory=list)
    """The names of the attacks that were played; empty where it was one alone."""
    attack: np.ndarray | None = None
    """The number of the attack in `attacks` that each episode is of, [S, E, P]."""
    halved: np.ndarray | None = None
    """The returns that half of the effort had found, [S, E, P]; None: effort has no measure."""
    exact: np.ndarray | None = None
    """Whether nothing worse is reachable, as far as what is reachable was found, [S, E, P]."""
    settled: bool = False
    """Whether all was searched, or nothing found that can be moved, as far as gradients show."""
    singles: dict[str, np.ndarray] = field(default_factory=dict)
    """The returns of each attack of a study of many on trial episodes, by name, [S, E, P']."""
    tried: list[str] = field(default_factory=list)
    """The names of the attacks that have tried to move its heads, in this mode or a wider one."""
    unattacked: np.ndarray | None = None
    """The returns of clean play in the trial episodes, [S, P']; None: there was no trial."""
    replay: Replay | None = None
    """Plays one of the episodes again; None: nobody has said how."""


@dataclass(frozen=True)
class Chunk:
    """Some columns of a sweep, after they were played; every tensor is [S, columns]."""

    episodes: Episodes
    """One episode for each column of each seed."""
    decisions: dict[str, Tensor]
    """Decisions that each head took."""
    flips: dict[str, Tensor]
    """Decisions of each head that the perturbation changed."""


def check_attackable(game: Game, threat: Threat, modes: Mapping[str, Mode]) -> None:
    """ConfigError where the attack cannot be done on these policies.

    It attacks the first observation of one copy per seed, with radius 0: so an error comes before
    anything is played or written.
    """
    if isinstance(threat, Adversary):
        threat.check(game, modes)
        return
    assert isinstance(threat, Attack)
    opened = game.opened
    spec = opened.spec
    obs = _first_obs(opened)
    budget = game.budget(torch.zeros(obs.shape[:2], device=obs.device), obs)
    bounds = None
    if isinstance(spec.action_space, gymnasium.spaces.Box):
        low = torch.as_tensor(spec.action_space.low, device=obs.device)
        high = torch.as_tensor(spec.action_space.high, device=obs.device)
        bounds = (low, high)
    for head in {head for mode in modes.values() for head in mode.heads}:
        carry = opened.policy.initial_carry(1)
        scores = Scores(partial(opened.policy.scores, carry=carry, head=head), bounds)
        threat.perturb(scores, obs, budget, lambda count: obs.new_zeros(*obs.shape[:2], count))


def has_gradients(game: Game) -> bool:
    """Whether the scores of the top level have gradients: not those of functions, for instance."""
    policy = game.opened.policy
    with torch.enable_grad():
        obs = _first_obs(game.opened).requires_grad_()
        return policy.scores(obs, policy.initial_carry(1), policy.heads[0]).requires_grad


def _first_obs(opened: Opened) -> Tensor:
    """The first observation of one copy per seed, float32 [S, 1, *O]."""
    env = opened.make_env(len(opened.seeds))
    return env.reset(seed=REPORT)[0].unsqueeze(1).float()


def sweep(game: Game, threat: Threat, modes: Mapping[str, Mode]) -> dict[str, Played]:
    """Play every mode × radius × episode of every seed; returns the episodes of each mode."""
    if isinstance(threat, Adversary):
        return threat.play(game, modes)
    assert isinstance(threat, Attack)
    return _sweep(game, threat, modes)


def _sweep(game: Game, attack: Attack, modes: Mapping[str, Mode]) -> dict[str, Played]:
    """The episodes of each mode of an attack that moves each decision by itself.

    Modes, radii and episodes are the columns of one batch [S, modes · E · P], which is played in
    chunks of at most `game.max_num_envs` copies.
    """
    opened = game.opened
    seeds = opened.seeds
    shape = (len(modes), len(game.eps), game.episodes)
    columns = torch.arange(math.prod(shape), device=opened.device)
    mode_index, radius_index, episode_index = torch.unravel_index(columns, shape)
    radii = game.radii()
    width = max(1, game.max_num_envs // len(seeds))
    chunks: list[Chunk] = []
    unit = f"episodes of {type(attack).__name__}"
    total = len(columns) * len(seeds)
    with console.Progress(total, unit=unit, quarters=not game.quiet) as progress:
        for chunk in columns.split(width):
            # The same start states in every cell: they depend on the episode alone.
            first = game.first_reset_seed
            reset_seeds = (first + episode_index[chunk]).expand(len(seeds), -1)
            attacker = Attacker(
                attack,
                opened.policy,
                opened.spec,
                modes=list(modes.values()),
                column_modes=mode_index[chunk],
                column_radii=radii[radius_index[chunk]],
                seeds=seeds,
                reset_seeds=reset_seeds,
                boxes=game.boxes,
            )
            env = opened.make_env(reset_seeds.numel())
            played = rollout(opened.policy, env, reset_seeds, attacker.make_choose)
            chunks.append(Chunk(played, attacker.decisions(), attacker.flips()))
            progress.update((int(chunk[-1]) + 1) * len(seeds))
    by_mode = _by_mode(chunks, modes, shape)
    for name, mode in modes.items():
        by_mode[name].replay = partial(_replay, game, attack, mode)
    return by_mode


def _replay(
    game: Game,
    attack: Attack,
    mode: Mode,
    row: int,
    number: int,
    episode: int,
    env: TensorEnv,
    witness: Witness,
) -> None:
    """Play an episode of `_sweep` again; the last five are as of `Replay`."""
    opened = game.opened
    policy = game.policy_of(row)
    reset_seeds = game.reset_seeds_of(episode)
    attacker = Attacker(
        attack,
        policy,
        opened.spec,
        modes=[mode],
        column_modes=torch.zeros(1, dtype=torch.int64, device=opened.device),
        column_radii=game.radii()[number : number + 1],
        seeds=[opened.seeds[row]],
        reset_seeds=reset_seeds,
        boxes=game.boxes,
    )
    attacker.witness = witness
    rollout(policy, env, reset_seeds, attacker.make_choose)


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
        decisions[head] = joined(chunk.decisions[head] for chunk in chunks)
        flips[head] = joined(chunk.flips[head] for chunk in chunks)
    played = {}
    for number, (name, mode) in enumerate(modes.items()):
        played[name] = Played(
            returns=returns[:, number],
            lengths=lengths[:, number],
            truncated=truncated[:, number],
            decisions={head: counts[:, number] for head, counts in decisions.items()},
            flips={head: flips[head][:, number] for head in mode.heads},
        )
    return played
