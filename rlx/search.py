"""Monte-Carlo tree search over a learnt model, for all roots at once: tensors of nodes, no loop over roots or nodes.

MuZero's search (Schrittwieser et al. 2020, appendix B) with EfficientZero's value prefixes (Ye et al. 2021), and Gumbel MuZero's
(Danihelka et al. 2022) as the other choice.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlx.rng import uniform

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
    """R trees of at most M nodes; node 0 is the root, node k was added by simulation k."""

    def __init__(self, root: Step, nodes: int):
        seeds, batch, actions = root.logits.shape
        roots, device = seeds * batch, root.logits.device
        self.shape = (seeds, batch)
        self.row = torch.arange(roots, device=device)

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(roots, nodes, *size, dtype=dtype, device=device)

        self.logits = zeros(actions)
        self.prior = zeros(actions)
        self.child = zeros(actions, dtype=torch.int64) - 1
        self.visits, self.parent, self.action, self.depth = (zeros(dtype=torch.int64) for _ in range(4))
        self.total, self.prefix, self.value = zeros(), zeros(), zeros()
        self.fresh = zeros(dtype=torch.bool)
        """Where a value prefix begins behind the node."""
        self.latent = {
            name: value.new_zeros(nodes, *value.shape[:2], *value.shape[2:]) for name, value in root.latent.items()
        }  # [M, S, B, …]
        self.low = torch.full((roots,), torch.inf, device=device)
        self.high = -self.low
        self._put(0, root)
        self.visits[:, 0] = 1

    def _put(self, node: int, step: Step) -> None:
        for name, value in step.latent.items():
            self.latent[name][node] = value
        self.logits[:, node] = step.logits.flatten(0, 1)
        self.prior[:, node] = self.logits[:, node].softmax(-1)
        self.value[:, node], self.prefix[:, node] = step.value.flatten(), step.prefix.flatten()

    def latents(self, node: Tensor) -> dict[str, Tensor]:
        """Those of one node of each root, `node` int64 [R]: name → [S, B, …]."""
        result = {}
        for name, pool in self.latent.items():
            index = node.view(1, *self.shape, *[1] * (pool.dim() - 3)).expand(1, *pool.shape[1:])
            result[name] = pool.gather(0, index).squeeze(0)
        return result

    def rewards(self, node: Tensor, child: Tensor) -> Tensor:
        """From `node` [R, …] to its `child` [R, …]."""
        row = self.row.view(-1, *[1] * (node.dim() - 1))
        begun = torch.where(self.fresh[row, node], 0.0, self.prefix[row, node])
        return self.prefix[row, child] - begun

    def children(self, node: Tensor, discount: float) -> tuple[Tensor, Tensor, Tensor]:
        """(action values, 0 where there is none; visits; whether it was visited), [R, A] each, of the children of `node` [R]."""
        child = self.child[self.row, node]
        visited = child >= 0
        place = child.clamp(min=0)
        row = self.row.unsqueeze(1)
        visits = torch.where(visited, self.visits[row, place], 0)
        mean = self.total[row, place] / visits.clamp(min=1)
        q = self.rewards(node.unsqueeze(1).expand_as(child), place) + discount * mean
        return torch.where(visited, q, 0.0), visits, visited

    def expand(self, number: int, node: Tensor, action: Tensor, step: Step, horizon: int) -> None:
        """Add the node `number` behind `node` [R] by `action` [R]."""
        self._put(number, step)
        self.parent[:, number], self.action[:, number] = node, action
        depth = self.depth[self.row, node] + 1
        self.depth[:, number] = depth
        self.child[self.row, node, action] = number
        self.fresh[:, number] = depth % horizon == 0
        for name in step.memory:
            pool = self.latent[name][number]
            pool.masked_fill_(self.fresh[:, number].view(*self.shape, *[1] * (pool.dim() - 2)), 0.0)

    def backup(self, number: int, discount: float) -> None:
        """Count the value of node `number` on the way to the root."""
        node = torch.full_like(self.row, number)
        gain = self.value[:, number].clone()
        on = torch.ones_like(self.row, dtype=torch.bool)
        while True:
            self.total[self.row, node] += torch.where(on, gain, 0.0)
            self.visits[self.row, node] += on
            parent = self.parent[self.row, node]
            gain = self.rewards(parent, node) + discount * gain
            on = on & (node > 0)
            if not on.any():
                break
            on, node = on, parent
        self._range(number, discount)

    def _range(self, number: int, discount: float) -> None:
        """Smallest and largest action value in each tree."""
        node = torch.arange(1, number + 1, device=self.row.device).expand(len(self.row), -1)
        q = self.rewards(self.parent[:, 1 : number + 1], node) + discount * self.total[:, 1 : number + 1] / self.visits[:, 1 : number + 1]
        self.low, self.high = q.amin(1), q.amax(1)

    def normalised(self, q: Tensor, floor: float) -> Tensor:
        """Action values [R, A] by the tree's range, in [0, 1]."""
        low, spread = self.low.unsqueeze(1), (self.high - self.low).unsqueeze(1)
        scaled = torch.where(spread > 0, (q - low) / spread.clamp(min=floor), q)
        return scaled.clamp(0, 1)


@torch.no_grad()
def search(model: Model, root: Step, settings: Settings, key: Tensor, counter: Tensor) -> Found:
    """Search from `root` on. Random numbers are a function of `key` and `counter` (int64 [S] each); `draws_needed` of them are used."""
    seeds, batch, actions = root.logits.shape
    tree = Tree(root, settings.simulations + 1)

    def draws(offset: int, count: int) -> Tensor:
        """[R, count]."""
        return uniform(key, counter + offset, batch * count).view(seeds * batch, count)

    noise = draws(0, actions * _NOISE_DRAWS)
    if settings.gumbel is not None:
        gumbel = -(-noise[:, :actions].clamp(1e-7, 1 - 1e-7).log()).log()
        gumbel *= settings.noise
        schedule = halving(min(settings.gumbel, actions), settings.simulations)
    elif settings.noise:
        dirichlet = _gamma(settings.dirichlet_alpha, noise.view(-1, actions, _NOISE_DRAWS))
        dirichlet /= dirichlet.sum(1, keepdim=True)
        tree.prior[:, 0] = tree.prior[:, 0].lerp(dirichlet, settings.dirichlet_fraction)
    for number in range(1, settings.simulations + 1):
        node, action, mean = torch.zeros_like(tree.row), torch.zeros_like(tree.row), torch.zeros_like(tree.low)
        inside = torch.ones_like(node, dtype=torch.bool)
        for depth in range(number):
            if settings.gumbel is None:
                ties = torch.zeros_like(tree.prior[:, 0])
                if settings.noise:
                    ties = draws(batch * actions * (_NOISE_DRAWS + (number - 1) * settings.simulations + depth), actions)
                chosen, mean = _puct(tree, node, mean, depth, settings, ties)
            else:
                chosen = _gumbel(tree, node, settings, gumbel, schedule[number - 1]) if depth == 0 else _improved(tree, node, settings)
            action = torch.where(inside, chosen, action)
            child = tree.child[tree.row, node, action]
            inside = inside & (child >= 0)
            if not inside.any():
                break
            node = torch.where(inside, child, node)
        step = model(tree.latents(node), action.view(seeds, batch))
        tree.expand(number, node, action, step, settings.horizon)
        tree.backup(number, settings.discount)
    _, visits, _ = tree.children(torch.zeros_like(tree.row), settings.discount)
    if settings.gumbel is None:
        policy, value, action = visits / settings.simulations, tree.total[:, 0] / settings.simulations, visits.argmax(1)
    else:
        improved = _completed(tree, torch.zeros_like(tree.row), settings)
        policy, value = improved.softmax(1), (tree.total[:, 0] + tree.value[:, 0]) / tree.visits[:, 0]
        action = (gumbel + improved).masked_fill(visits < visits.amax(1, keepdim=True), -torch.inf).argmax(1)
    return Found(*(x.unflatten(0, (seeds, batch)) for x in (visits, value, policy, action)))


def draws_needed(settings: Settings, batch: int, actions: int) -> int:
    """Random numbers that one search of `batch` roots per seed uses."""
    return batch * actions * (_NOISE_DRAWS + settings.simulations**2)


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


def _puct(tree: Tree, node: Tensor, mean: Tensor, depth: int, settings: Settings, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(MuZero's choice at `node` [R], what an unvisited action of it is worth); `mean`: the same of the node above."""
    q, visits, visited = tree.children(node, settings.discount)
    count = visited.sum(1)
    mean = q.sum(1) / count.clamp(min=1) if depth == 0 else (mean + q.sum(1)) / (1 + count)
    total = (tree.visits[tree.row, node] - int(not settings.first_visit_by_prior)).unsqueeze(1)
    weight = (((total + settings.c_base + 1) / settings.c_base).log() + settings.c_init) * total.sqrt() / (visits + 1)
    score = tree.normalised(torch.where(visited, q, mean.unsqueeze(1)), settings.value_floor) + tree.prior[tree.row, node] * weight
    best = score >= score.amax(1, keepdim=True) - TIE
    return (best * (1 + draws)).argmax(1), mean


def _completed(tree: Tree, node: Tensor, settings: Settings) -> Tensor:
    """Logits [R, A] of the improved policy at `node` [R] (Danihelka et al. 2022, eqs. 8, 11 and 33): actions that were not visited are
    worth the mean of the network's value and the visited ones' by prior."""
    q, visits, visited = tree.children(node, settings.discount)
    logits, prior = tree.logits[tree.row, node], torch.where(visited, tree.logits[tree.row, node].softmax(1), 0.0)
    total = visits.sum(1)
    known = (prior * q).sum(1) / prior.sum(1).clamp(min=1e-12)
    mixed = (tree.value[tree.row, node] + total * known) / (1 + total)
    scaled = tree.normalised(torch.where(visited, q, mixed.unsqueeze(1)), settings.value_floor)
    return logits + (settings.c_visit + visits.amax(1, keepdim=True)) * settings.c_scale * scaled


def _gumbel(tree: Tree, node: Tensor, settings: Settings, gumbel: Tensor, wanted: int) -> Tensor:
    """The best of the root's actions that were visited `wanted` times."""
    _, visits, _ = tree.children(node, settings.discount)
    return (gumbel + _completed(tree, node, settings)).masked_fill(visits != wanted, -torch.inf).argmax(1)


def _improved(tree: Tree, node: Tensor, settings: Settings) -> Tensor:
    """The action whose share of visits lags most behind the improved policy (eq. 14)."""
    _, visits, _ = tree.children(node, settings.discount)
    policy = _completed(tree, node, settings).softmax(1)
    return (policy - visits / (1 + visits.sum(1, keepdim=True))).argmax(1)


_TRIES = 8
_NOISE_DRAWS = 2 * _TRIES + 1
"""Random numbers per action before the first simulation."""


def _gamma(shape: float, draws: Tensor) -> Tensor:
    """Gamma variates of `shape` below 1 from uniform `draws` [..., 17]: Marsaglia & Tsang (2000), of whose tries (19 of 20 succeed) the
    first good one of eight is taken."""
    normal = torch.erfinv(draws[..., :_TRIES].clamp(1e-6, 1 - 1e-6) * 2 - 1) * math.sqrt(2)
    d = shape + 1 - 1 / 3
    cube = (1 + normal / math.sqrt(9 * d)) ** 3
    positive = cube.clamp(min=1e-12)
    accepted = (cube > 0) & (draws[..., _TRIES:-1].clamp(min=1e-12).log() < 0.5 * normal**2 + d - d * cube + d * positive.log())
    first = accepted.to(torch.int8).argmax(-1, keepdim=True)
    return d * positive.gather(-1, first).squeeze(-1) * draws[..., -1].clamp(min=1e-12) ** (1 / shape)
