"""A sweep: every mode × radius × episode of an attack, on every seed, as one batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx.agent import Choose, Policy, Scores, Spec, greedy
from rlx.attack import Attack, Budget, Mode
from rlx.env import TensorEnv
from rlx.evaluation import REPORT, MakeEnv
from rlx.nn.rng import mix64, seed_tensor, stream_key, uniform
from rlx.rollout import rollout
from rlx.show import report


@dataclass
class Played:
    """One mode's episodes: arrays [S, E, P], and per head the decisions taken and flipped [S, E]."""

    returns: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    decisions: dict[str, np.ndarray]
    flips: dict[str, np.ndarray]


def probe(
    policy: Policy,
    env: TensorEnv,
    spec: Spec,
    attack: Attack,
    modes: Mapping[str, Mode],
) -> None:
    """Attack the first observation of one copy per seed with radius 0: raises what the attack has against these policies."""
    obs = env.reset(seed=REPORT)[0].unsqueeze(1).float()
    budget = Budget.of(spec.observation_space, torch.zeros_like(obs))
    for head in {head for heads, _ in modes.values() for head in heads}:
        carry = policy.initial_carry(1)
        bounds = None
        if isinstance(spec.action_space, gymnasium.spaces.Box):
            bounds = (
                torch.as_tensor(spec.action_space.low, device=obs.device),
                torch.as_tensor(spec.action_space.high, device=obs.device),
            )
        scores = Scores(partial(policy.scores, carry=carry, head=head), bounds)
        attack.perturb(scores, obs, budget, lambda count: obs.new_zeros(*obs.shape[:2], count))


def sweep(
    policy: Policy,
    make_env: MakeEnv,
    spec: Spec,
    attack: Attack,
    modes: Mapping[str, Mode],
    seeds: Sequence[int],
    eps: Sequence[float],
    scale: np.ndarray,
    episodes: int,
    max_num_envs: int,
    device: torch.device,
) -> dict[str, Played]:
    """Play every mode × radius × episode of every seed, as columns of one batch [S, modes · E · P], in chunks of `max_num_envs`."""
    shape = (len(modes), len(eps), episodes)
    columns = torch.arange(math.prod(shape), device=device)
    mode, radius, episode = torch.unravel_index(columns, shape)
    radii = torch.tensor(eps, dtype=torch.float32, device=device)[radius]
    width = max(1, max_num_envs // len(seeds))
    parts: list[Any] = []
    with report.Progress(len(columns), unit="columns", quarters=True) as progress:
        for chunk in columns.split(width):
            reset = (REPORT + episode[chunk]).expand(len(seeds), -1)
            attacker = Attacker(
                attack,
                policy,
                spec,
                list(modes.values()),
                mode[chunk],
                radii[chunk],
                seeds,
                reset,
                scale,
            )
            played = rollout(policy, make_env(reset.numel()), reset, attacker.chooser)
            parts.append(
                (
                    played.returns,
                    played.lengths,
                    played.truncated,
                    attacker.decisions,
                    attacker.flips,
                )
            )
            progress.update(int(chunk[-1]) + 1)
    returns, lengths, truncated = (
        torch.cat([part[i] for part in parts], 1).unflatten(1, shape).cpu().numpy()
        for i in range(3)
    )
    decisions, flips = (
        {
            head: torch.cat([part[i][head] for part in parts], 1)
            .unflatten(1, shape)
            .sum(-1)
            .cpu()
            .numpy()
            for head in policy.heads
        }
        for i in (3, 4)
    )
    return {
        name: Played(
            returns[:, m], lengths[:, m], truncated[:, m],
            {head: decisions[head][:, m] for head in heads}, {head: flips[head][:, m] for head in heads},
        )
        for m, (name, (heads, _)) in enumerate(modes.items())
    }  # fmt: skip


class Attacker:
    """Chooses greedily on perturbed observations, and counts the decisions that the perturbation flipped.

    Each column of its batch [S, B] has a radius and a mode of its own; random numbers depend on seed, episode, head and step
    only, so that no cell's result depends on the other cells or on chunks.
    """

    def __init__(
        self,
        attack: Attack,
        policy: Policy,
        spec: Spec,
        modes: Sequence[Mode],
        mode: Tensor,
        radii: Tensor,
        seeds: Sequence[int],
        reset_seeds: Tensor,
        scale: np.ndarray,
    ):
        self.attack, self.shape, device = attack, reset_seeds.shape, reset_seeds.device
        self.space, self.action_space = spec.observation_space, spec.action_space
        self.scale = torch.as_tensor(scale, dtype=torch.float32, device=device)
        base = mix64(seed_tensor(seeds, device).unsqueeze(1) + mix64(reset_seeds))
        shared = torch.tensor([together for _, together in modes], device=device)[mode]
        self.radius, self.key, self.draws, self.decisions, self.flips = {}, {}, {}, {}, {}
        for head in policy.heads:
            attacked = torch.tensor([head in heads for heads, _ in modes], device=device)[mode]
            self.radius[head] = torch.where(attacked, radii, 0.0).expand(self.shape)
            self.key[head] = torch.where(
                shared, stream_key(base, "all heads"), stream_key(base, head)
            )
            self.draws[head] = 0
            self.decisions[head] = torch.zeros(self.shape, dtype=torch.int64, device=device)
            self.flips[head] = torch.zeros(self.shape, dtype=torch.int64, device=device)
        self.idle = {head: not bool(radius.any()) for head, radius in self.radius.items()}
        self.stack = spec.stack
        self.shown: dict[str, Tensor] = {}
        """Where the env stacks observations, what each head was shown before: [S · B, stack − 1, C, …], the newest last."""
        if spec.stack > 1:
            assert isinstance(self.space, gymnasium.spaces.Box)
            size = self.scale.shape[0] // spec.stack
            self.scale = self.scale[-size:]
            self.space = gymnasium.spaces.Box(
                self.space.low[-size:], self.space.high[-size:], dtype=self.space.dtype
            )  # type: ignore[arg-type]

    def chooser(self, ids: Tensor) -> Choose:
        """For `rollout`: how the copies `ids` [S', B'] choose."""
        flat = ids.flatten()
        radius = {
            head: value.flatten()[flat].view(ids.shape) for head, value in self.radius.items()
        }
        key = {head: value.flatten()[flat].view(ids.shape) for head, value in self.key.items()}

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            obs = obs.float()  # of images too
            if self.stack > 1:
                obs, scores = self._newest(head, obs, scores, flat)
            clean = scores.best(obs)
            self.decisions[head].view(-1).index_add_(0, flat, deciding.flatten().long())
            if self.idle[head]:
                self._remember(head, obs, flat)
                return clean

            def draw(count: int) -> Tensor:
                counter = key[head].new_full((), self.draws[head])
                self.draws[head] += count
                return uniform(key[head], counter, count)

            box = radius[head].view(*ids.shape, *[1] * self.scale.dim()) * self.scale
            seen = self.attack.perturb(scores, obs, Budget.of(self.space, box), draw)
            decision = scores.best(seen)
            self._remember(head, seen, flat)
            self.flips[head].view(-1).index_add_(
                0, flat, (self._flipped(decision, clean) & deciding).flatten().long()
            )
            return decision

        return choose

    def _newest(
        self, head: str, obs: Tensor, scores: Scores, flat: Tensor
    ) -> tuple[Tensor, Scores]:
        """The newest of the observations that `obs` [S', B', stack · C, …] shows, [S', B', C, …], and the scores as a function of it.

        What `head` was shown before stays as it was, perturbed or not: the past is no more to be
        moved. An episode begins with its first observation `stack` times, all of them alike.
        """
        newest = obs.unflatten(2, (self.stack, -1))[:, :, -1]
        past = self.shown.get(head)
        if past is not None:
            past = past[flat].view(*newest.shape[:2], self.stack - 1, *newest.shape[2:])

        def stacked(frame: Tensor) -> Tensor:
            before = (
                frame.unsqueeze(2).expand(-1, -1, self.stack - 1, *frame.shape[2:])
                if past is None
                else past
            )
            return torch.cat([before, frame.unsqueeze(2)], 2).flatten(2, 3)

        choice = None if scores.choice is None else lambda frame: scores.best(stacked(frame))
        return newest, Scores(lambda frame: scores(stacked(frame)), scores.bounds, choice)

    def _remember(self, head: str, seen: Tensor, flat: Tensor) -> None:
        """Note that `head` was shown the observations `seen` [S', B', C, …]."""
        if self.stack == 1:
            return
        frame = seen.detach().flatten(0, 1).unsqueeze(1)
        if head not in self.shown:
            self.shown[head] = frame.new_zeros(self.shape.numel(), self.stack - 1, *frame.shape[2:])
            self.shown[head][flat] = frame.expand(-1, self.stack - 1, *frame.shape[2:])
        else:
            self.shown[head][flat] = torch.cat([self.shown[head][flat][:, 1:], frame], 1)

    def _flipped(self, decision: Tensor, clean: Tensor) -> Tensor:
        """Whether another choice was made [S, B]; in a Box: whether some number moved by more than a tenth of half its range."""
        if not isinstance(self.action_space, gymnasium.spaces.Box):
            return decision != clean
        low, high = (
            torch.as_tensor(x, device=clean.device)
            for x in (self.action_space.low, self.action_space.high)
        )
        return ((decision - clean).abs() > 0.05 * (high - low)).any(-1)


class Visits:
    """Greedy choices that count how often each Discrete observation is seen."""

    def __init__(self, observations: int, head: str, device: torch.device):
        """`head`: the one that decides at every step."""
        self.head, self.count = head, torch.zeros(observations, dtype=torch.int64, device=device)

    def chooser(self, ids: Tensor) -> Choose:
        """For `rollout`."""

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head == self.head:
                self.count.index_add_(0, obs.flatten(), deciding.flatten().long())
            return greedy(head, obs, scores, deciding)

        return choose


class Visited:
    """Greedy choices that note the spread of the observations they see."""

    def __init__(self, head: str):
        """`head`: the one that decides at every step."""
        self.head = head
        self.count: Any = 0.0
        self.sum: Any = 0.0
        self.square: Any = 0.0

    def chooser(self, ids: Tensor) -> Choose:
        """For `rollout`."""

        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            if head == self.head:
                weight = deciding.double().view(*deciding.shape, *[1] * (obs.dim() - 2))
                self.count += weight.sum()
                self.sum += (obs * weight).sum((0, 1))
                self.square += (obs.double().square() * weight).sum((0, 1))
            return greedy(head, obs, scores, deciding)

        return choose

    def std(self) -> np.ndarray:
        """Standard deviation of every component over all seeds and steps, [*O]."""
        mean = self.sum / self.count
        return (self.square / self.count - mean.square()).clamp_min(0).sqrt().cpu().numpy()
