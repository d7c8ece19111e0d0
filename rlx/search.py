"""Monte-Carlo tree search over a learnt model, for all roots at once: tensors of nodes, no loop over roots or nodes.

MuZero's search (Schrittwieser et al. 2020, appendix B) with EfficientZero's value prefixes (Ye et al. 2021), and Gumbel MuZero's
(Danihelka et al. 2022) as the other choice.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlx.nn.rng import uniform

TIE = 1e-6
"""Scores that differ by less are equal, and one of them is drawn."""


@dataclass(frozen=True)
class Settings:
    """Of one search."""

    simulations: int
    discount: float
    horizon: int
    """Steps after which value prefixes begin anew; 1: the model predicts single rewards."""
    gumbel: int | None
    """Actions that Gumbel MuZero considers at the root; None: MuZero's search."""
    dirichlet_alpha: float
    dirichlet_fraction: float
    """Of the root's priors."""
    noise: bool
    """Whether the root explores: by Dirichlet noise, or Gumbel noise. Without it the first of equal scores is taken, so that a row's
    search depends on nothing but its root."""
    c_base: float
    c_init: float
    c_visit: float
    c_scale: float
    value_floor: float
    """Smallest range that action values are normalised by."""
    first_visit_by_prior: bool
    """Count a node's own expansion in its visits: so the prior decides its first choice, which is random otherwise."""


class Model(Protocol):
    """What the search asks of a network: one step within it."""

    def __call__(self, latent: dict[str, Tensor], action: Tensor) -> "Step":
        """The step from `latent` (name → [S, B, …]) by `action` [S, B]."""


@dataclass(frozen=True)
class Step:
    """Where an action leads to; of a root, where it begins."""

    latent: dict[str, Tensor]
    """Name → [S, B, …]. Those in `memory` begin anew with the value prefix."""
    prefix: Tensor
    """Undiscounted rewards since the prefix began, this step's included, [S, B]."""
    value: Tensor
    """[S, B]."""
    logits: Tensor
    """Of the policy, [S, B, A]."""
    memory: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a search says of its roots."""

    visits: Tensor
    """Of each action, int64 [S, B, A]."""
    value: Tensor
    """Of the root, [S, B]."""
    policy: Tensor
    """What the policy shall learn, [S, B, A]."""
    action: Tensor
    """Gumbel: the survivor; else the most visited action, the first among equals; int64 [S, B]."""


class Tree:
    """R trees of at most M nodes each, node 0 the root, node k added by simulation k: all nodes in one axis [R · M], edges [R · M, A]."""

    def __init__(self, root: Step, nodes: int):
        seeds, batch, actions = root.logits.shape
        self.shape, self.nodes, self.actions = (seeds, batch), nodes, actions
        roots, device = seeds * batch, root.logits.device
        self.base = torch.arange(roots, device=device) * nodes
        """Where each root stands."""
        self.prefix, self.value = (torch.zeros(roots * nodes, device=device) for _ in range(2))
        self.fresh = torch.zeros(roots * nodes, dtype=torch.bool, device=device)
        """Where a value prefix begins behind the node."""
        self.logits, self.prior, self.reward, self.visits, self.total, self.q = (
            torch.zeros(roots * nodes, actions, device=device) for _ in range(6)
        )
        self.child = torch.full((roots * nodes, actions), -1, device=device)
        self.latent = {
            name: value.new_zeros(nodes, *value.shape) for name, value in root.latent.items()
        }  # [M, S, B, …]
        self.low, self.spread = (torch.zeros(roots, 1, device=device) for _ in range(2))
        """Range of the action values in each tree."""
        self._put(0, root)

    def _put(self, number: int, step: Step) -> Tensor:
        """Fill the node `number` of each tree; its place [R]."""
        place = self.base + number
        for name, value in step.latent.items():
            self.latent[name][number] = value
        self.logits[place] = step.logits.flatten(0, 1)
        self.prior[place] = step.logits.flatten(0, 1).softmax(1)
        self.value[place], self.prefix[place] = step.value.flatten(), step.prefix.flatten()
        return place

    def latents(self, node: Tensor) -> dict[str, Tensor]:
        """Those of one node of each tree, at [R]: name → [S, B, …]."""
        place = (node - self.base) * len(self.base) + torch.arange(
            len(self.base), device=node.device
        )
        return {
            name: pool.flatten(0, 2).index_select(0, place).unflatten(0, self.shape)
            for name, pool in self.latent.items()
        }

    def expand(self, number: int, edge: Tensor, depth: Tensor, step: Step, horizon: int) -> None:
        """Add the node `number` behind an edge [R] of each tree, so many steps below its root."""
        place, parent = self._put(number, step), edge // self.actions
        self.child.view(-1)[edge] = place
        self.reward.view(-1)[edge] = self.prefix[place] - torch.where(
            self.fresh[parent], 0.0, self.prefix[parent]
        )
        self.fresh[place] = fresh = depth % horizon == 0
        for name in step.memory:
            pool = self.latent[name][number]
            pool.masked_fill_(fresh.view(*self.shape, *[1] * (pool.dim() - 2)), 0.0)

    def backup(self, number: int, path: Tensor, on: Tensor, discount: float) -> None:
        """Count the value of node `number` on its edges from the root, `path` [D, R], of which those `on` are."""
        gain, reward, gains = (
            self.value[self.base + number],
            self.reward.view(-1)[path],
            list[Tensor](),
        )
        for step_on, step_reward in zip(on.flip(0), reward.flip(0), strict=True):
            gains.append(gain)
            gain = torch.where(step_on, step_reward + discount * gain, gain)
        visits, total, every = self.visits.view(-1), self.total.view(-1), path.flatten()
        visits.index_add_(0, every, on.flatten().to(visits.dtype))
        total.index_add_(0, every, torch.where(on, torch.stack(gains[::-1]), 0.0).flatten())
        self.q.view(-1)[every] = reward.flatten() + discount * total[every] / visits[every]
        q, known = (
            x.view(len(self.base), self.nodes, -1)[:, :number].flatten(1)
            for x in (self.q, self.visits > 0)
        )
        self.low = torch.where(known, q, torch.inf).amin(1, keepdim=True)
        self.spread = torch.where(known, q, -torch.inf).amax(1, keepdim=True) - self.low

    def normalised(self, q: Tensor, floor: float) -> Tensor:
        """Action values [R, A] by the tree's range, in [0, 1]."""
        wide = self.spread > 0
        return (
            (q - torch.where(wide, self.low, 0.0))
            / torch.where(wide, self.spread.clamp(min=floor), 1.0)
        ).clamp(0, 1)


@torch.no_grad()
def search(model: Model, root: Step, settings: Settings, key: Tensor, counter: Tensor) -> Found:
    """Search from `root` on. Random numbers are a function of `key` and `counter` (int64 [S] each); `draws_needed` of them are used."""
    seeds, batch, actions = root.logits.shape
    tree = Tree(root, settings.simulations + 1)
    gumbel, nothing = (
        torch.zeros_like(tree.logits[tree.base]),
        torch.zeros((), dtype=torch.int64, device=key.device),
    )
    schedule = (
        halving(min(settings.gumbel, actions), settings.simulations)
        if settings.gumbel is not None
        else []
    )
    if settings.noise:
        draws = (
            uniform(key, counter, draws_needed(settings, batch, actions))
            .view(seeds * batch, -1, actions)
            .transpose(0, 1)
        )
        noise, ties = draws[:_NOISE_DRAWS], draws[_NOISE_DRAWS:]  # [·, R, A]
        if settings.gumbel is not None:
            gumbel = -(-noise[0].clamp(1e-7, 1 - 1e-7).log()).log()
        else:
            dirichlet = _gamma(settings.dirichlet_alpha, noise)
            tree.prior[tree.base] = tree.prior[tree.base].lerp(
                dirichlet / dirichlet.sum(1, keepdim=True), settings.dirichlet_fraction
            )
    else:  # ties are broken by chance too, but by the same for all roots: no decision depends on those beside it
        ties = uniform(nothing, nothing, settings.simulations * actions).view(-1, 1, actions)
    for number in range(1, settings.simulations + 1):
        node, edge, mean = tree.base, tree.base, torch.zeros_like(tree.low)
        inside, path, on = torch.ones_like(node, dtype=torch.bool), list[Tensor](), list[Tensor]()
        while len(path) < number and inside.any():
            if settings.gumbel is None:
                chosen, mean = _puct(tree, node, mean, not path, settings, ties[number - 1])
            else:
                chosen = (
                    _improved(tree, node, settings)
                    if path
                    else _gumbel(tree, node, settings, gumbel, schedule[number - 1])
                )
            edge = torch.where(inside, node * actions + chosen, edge)
            path.append(edge)
            on.append(inside)
            child = tree.child.view(-1)[edge]
            inside = inside & (child >= 0)
            node = torch.where(inside, child, node)
        passed = torch.stack(on)
        step = model(tree.latents(node), (edge % actions).view(seeds, batch))
        tree.expand(number, edge, passed.sum(0), step, settings.horizon)
        tree.backup(number, torch.stack(path), passed, settings.discount)
    visits, total = tree.visits[tree.base], (tree.visits * tree.q)[tree.base].sum(1)
    if settings.gumbel is None:
        policy, value, action = (
            visits / settings.simulations,
            total / settings.simulations,
            visits.argmax(1),
        )
    else:
        improved = _completed(tree, tree.base, settings)
        policy, value = (
            improved.softmax(1),
            (total + tree.value[tree.base]) / (1 + settings.simulations),
        )
        action = (
            (gumbel + improved)
            .masked_fill(visits < visits.amax(1, keepdim=True), -torch.inf)
            .argmax(1)
        )
    return Found(*(x.unflatten(0, (seeds, batch)) for x in (visits.long(), value, policy, action)))


def draws_needed(settings: Settings, batch: int, actions: int) -> int:
    """Random numbers that one search of `batch` roots per seed uses."""
    return batch * actions * (_NOISE_DRAWS + settings.simulations)


def halving(considered: int, simulations: int) -> list[int]:
    """Sequential halving (Karnin et al. 2013): how many visits the root action has that each simulation chooses.

    All `considered` actions are visited once, and again; then the better half of them; at the end two.
    """
    rounds = max(1, math.ceil(math.log2(considered))) if considered > 1 else 1
    visits, left, schedule = [0] * considered, considered, list[int]()
    while len(schedule) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            schedule += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(min(2, considered), left // 2)
    return schedule[:simulations]


def _puct(
    tree: Tree, node: Tensor, mean: Tensor, at_root: bool, settings: Settings, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """(MuZero's choice at `node` [R]; what an unvisited action of it is worth, [R, 1]); `mean`: the same of the node above."""
    q, visits = tree.q[node], tree.visits[node]
    visited = visits > 0
    count = visited.sum(1, keepdim=True)
    mean = (mean + q.sum(1, keepdim=True)) / (count.clamp(min=1) if at_root else 1 + count)
    total = visits.sum(1, keepdim=True) + int(settings.first_visit_by_prior)
    weight = (
        (((total + settings.c_base + 1) / settings.c_base).log() + settings.c_init)
        * total.sqrt()
        / (visits + 1)
    )
    score = (
        tree.normalised(torch.where(visited, q, mean), settings.value_floor)
        + tree.prior[node] * weight
    )
    best = score >= score.amax(1, keepdim=True) - TIE
    return (best * (1 + draws)).argmax(1), mean


def _completed(tree: Tree, node: Tensor, settings: Settings) -> Tensor:
    """Logits [R, A] of the improved policy at `node` [R] (Danihelka et al. 2022, eqs. 8, 11 and 33): actions that were not visited are
    worth the mean of the network's value and the visited ones' by prior."""
    q, visits = tree.q[node], tree.visits[node]
    prior = torch.where(visits > 0, tree.prior[node], 0.0)
    total = visits.sum(1)
    known = (prior * q).sum(1) / prior.sum(1).clamp(min=1e-12)
    mixed = (tree.value[node] + total * known) / (1 + total)
    scaled = tree.normalised(torch.where(visits > 0, q, mixed.unsqueeze(1)), settings.value_floor)
    return (
        tree.logits[node]
        + (settings.c_visit + visits.amax(1, keepdim=True)) * settings.c_scale * scaled
    )


def _gumbel(tree: Tree, node: Tensor, settings: Settings, gumbel: Tensor, wanted: int) -> Tensor:
    """The best of the root's actions that were visited `wanted` times."""
    return (
        (gumbel + _completed(tree, node, settings))
        .masked_fill(tree.visits[node] != wanted, -torch.inf)
        .argmax(1)
    )


def _improved(tree: Tree, node: Tensor, settings: Settings) -> Tensor:
    """The action whose share of visits lags most behind the improved policy (eq. 14)."""
    visits = tree.visits[node]
    return (
        _completed(tree, node, settings).softmax(1) - visits / (1 + visits.sum(1, keepdim=True))
    ).argmax(1)


_TRIES = 8
_NOISE_DRAWS = 2 * _TRIES + 1
"""Random numbers per action before the first simulation."""


def _gamma(shape: float, draws: Tensor) -> Tensor:
    """Gamma variates of `shape` below 1 from uniform `draws` [17, ...]: Marsaglia & Tsang (2000), of whose tries (19 of 20 succeed) the
    first good one of eight is taken."""
    normal = torch.erfinv(draws[:_TRIES].clamp(1e-6, 1 - 1e-6) * 2 - 1) * math.sqrt(2)
    d = shape + 1 - 1 / 3
    cube = (1 + normal / math.sqrt(9 * d)) ** 3
    positive = cube.clamp(min=1e-12)
    accepted = (cube > 0) & (
        draws[_TRIES:-1].clamp(min=1e-12).log()
        < 0.5 * normal**2 + d - d * cube + d * positive.log()
    )
    first = accepted.to(torch.int8).argmax(0, keepdim=True)
    return d * positive.gather(0, first).squeeze(0) * draws[-1].clamp(min=1e-12) ** (1 / shape)
