"""Monte-Carlo tree search over a learnt model, for all roots at once.

It is MuZero's search (Schrittwieser et al. 2020, appendix B) with EfficientZero's value prefixes
(Ye et al. 2021), or Gumbel MuZero's (Danihelka et al. 2022). Trees are tensors of nodes: there is
no loop over roots or nodes.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlx.nn.rng import uniform
from rlx.nn.seed_axis import along

TIE = 1e-6
"""Scores that differ by less are equal, and one of them is drawn."""


@dataclass(frozen=True)
class Settings:
    """How one search goes."""

    simulations: int
    """Nodes that are added to each tree."""
    discount: float
    """Factor by which a reward one step later is worth less."""
    horizon: int
    """Steps after which value prefixes begin anew; 1: the model predicts single rewards."""
    gumbel: int | None
    """Actions that Gumbel MuZero considers at the root; None: MuZero's search."""
    dirichlet_alpha: float
    """Concentration of the Dirichlet noise, below 1: the smaller, the fewer actions share it."""
    dirichlet_fraction: float
    """Share of the noise in the root's priors."""
    noise: bool
    """Whether the root explores, by Dirichlet or Gumbel noise.

    Without it ties are broken alike for all roots, so that a row's search depends on nothing but
    its root.
    """
    c_base: float
    """Visits of a node after which MuZero's search explores notably more."""
    c_init: float
    """Weight of the priors in MuZero's search."""
    c_visit: float
    """Added to the visits of the most visited action: action values weigh c_scale times the sum.

    So in Gumbel MuZero's search (Danihelka et al. 2022, eq. 8).
    """
    c_scale: float
    """Factor of the weight of action values in Gumbel MuZero's search."""
    value_floor: float
    """Smallest range that action values are normalised by."""
    first_visit_by_prior: bool
    """Count a node's own expansion as a visit: so the prior decides its first choice.

    Otherwise the first choice is by chance.
    """


@dataclass(frozen=True)
class RecurrentOutput:
    """What the model says of the state that an action leads to, or of a root."""

    latent: dict[str, Tensor]
    """Name → [S, B, …]. Those in `memory` begin anew with the value prefix."""
    prefix: Tensor
    """[S, B]: undiscounted rewards since the prefix began, this step's included; of a root 0."""
    value: Tensor
    """[S, B]: expected return from the state on."""
    logits: Tensor
    """[S, B, A]: the policy's, before a softmax."""
    memory: tuple[str, ...] = ()
    """Names of the latents that belong to the value prefix."""


class Model(Protocol):
    """What the search asks of a network: one step within it."""

    def __call__(self, latent: dict[str, Tensor], action: Tensor) -> RecurrentOutput:
        """The model's step from `latent` (name → [S, B, …]) by `action` [S, B]."""


@dataclass(frozen=True)
class SearchOutput:
    """What a search says of its roots."""

    visits: Tensor
    """int64 [S, B, A]: how often each action of a root was chosen."""
    value: Tensor
    """[S, B]: the root's."""
    policy: Tensor
    """[S, B, A]: probabilities that the policy shall learn."""
    action: Tensor
    """int64 [S, B]: Gumbel's survivor; else the most visited action, the first among equals."""


class Tree:
    """R trees of at most M nodes each: node 0 is the root, node k is added by simulation k.

    A node's number is larger than its parent's. "Place" means where node k of tree r is among all
    M · R, k · R + r. An edge is one action of one node, and has the number place · A + action.
    """

    def __init__(self, root: RecurrentOutput, nodes: int):
        seeds, batch, actions = root.logits.shape
        self.shape = (seeds, batch)
        self.actions = actions
        roots = seeds * batch
        device = root.logits.device
        self.place = torch.arange(nodes * roots, device=device).view(nodes, roots)
        """int64 [M, R]."""
        self.prefix = torch.zeros(nodes, roots, device=device)
        self.value = torch.zeros_like(self.prefix)
        self.fresh = torch.zeros_like(self.prefix, dtype=torch.bool)
        """Whether a value prefix begins behind the node, [M, R]."""
        self.edge = torch.zeros_like(self.place)
        """The edge that leads to the node, [M, R]; 0 of the root, to which none leads."""
        self.above = torch.zeros(nodes, nodes, roots, dtype=torch.bool, device=device)
        """Which nodes lie on the way from the root to a node, [M, M, R]; itself is one of them."""
        self.logits = torch.zeros(nodes, roots, actions, device=device)
        self.prior = torch.zeros_like(self.logits)
        self.reward = torch.zeros_like(self.logits)
        self.visits = torch.zeros_like(self.logits)
        self.total = torch.zeros_like(self.logits)
        """Sum, over an edge's visits, of the values that were found behind it, [M, R, A]."""
        self.q = torch.zeros_like(self.logits)
        self.latent = {
            name: value.new_zeros(nodes, *value.shape) for name, value in root.latent.items()
        }
        """Name → [M, S, B, …]."""
        self.low = torch.zeros(roots, 1, device=device)
        """Smallest action value in each tree, [R, 1]."""
        self.spread = torch.zeros_like(self.low)
        """Largest action value minus the smallest."""
        self._fill(0, root)

    def _fill(self, number: int, output: RecurrentOutput) -> None:
        """Fill the node `number` of each tree."""
        for name, value in output.latent.items():
            self.latent[name][number] = value
        logits = output.logits.flatten(0, 1)
        self.logits[number] = logits
        self.prior[number] = logits.softmax(1)
        self.value[number] = output.value.flatten()
        self.prefix[number] = output.prefix.flatten()
        self.above[number, number] = True

    def latents(self, place: Tensor) -> dict[str, Tensor]:
        """The latents of one node of each tree, at `place` [R]: name → [S, B, …]."""
        latents = {}
        for name, pool in self.latent.items():
            latents[name] = pool.flatten(0, 2).index_select(0, place).unflatten(0, self.shape)
        return latents

    def expand(
        self, number: int, edge: Tensor, above: Tensor, output: RecurrentOutput, horizon: int
    ) -> None:
        """Add the node `number` behind an edge [R] of each tree.

        `above` (bool [number, R]): which nodes lie on the way from the root to the edge.
        """
        self._fill(number, output)
        self.edge[number] = edge
        self.above[number, :number] = above
        parent = edge // self.actions
        earlier = torch.where(self.fresh.take(parent), 0.0, self.prefix.take(parent))
        self.reward.put_(edge, self.prefix[number] - earlier)
        depth = above.sum(0)
        fresh = depth % horizon == 0
        self.fresh[number] = fresh
        for name in output.memory:
            pool = self.latent[name][number]
            pool.masked_fill_(along(fresh.view(self.shape), pool), 0.0)

    def backup(self, number: int, discount: float) -> None:
        """Add the value of node `number` to the edges of the way that leads to it."""
        below_root = slice(1, number + 1)
        edges = self.edge[below_root]
        passed = self.above[number, below_root]
        rewards = self.reward.take(edges)
        gain = self.value[number]
        gains: list[Tensor] = []
        for reward, on_way in zip(rewards.flip(0), passed.flip(0), strict=True):
            gains.append(gain)
            gain = torch.where(on_way, reward + discount * gain, gain)
        visits = self.visits.take(edges) + passed
        total = self.total.take(edges) + torch.where(passed, torch.stack(gains[::-1]), 0.0)
        # Of all visited edges of a tree: each of them leads to one of these nodes.
        q = rewards + discount * total / visits
        self.visits.put_(edges, visits)
        self.total.put_(edges, total)
        self.q.put_(edges, q)
        self.low = q.amin(0).unsqueeze(1)
        self.spread = q.amax(0).unsqueeze(1) - self.low

    def normalised(self, q: Tensor, floor: float) -> Tensor:
        """Action values [K, R, A] by the tree's range, in [0, 1]; `floor`: the smallest range."""
        ranged = self.spread > 0
        low = torch.where(ranged, self.low, 0.0)
        spread = torch.where(ranged, self.spread.clamp(min=floor), 1.0)
        return ((q - low) / spread).clamp(0, 1)


@torch.no_grad()
def search(
    model: Model, root: RecurrentOutput, settings: Settings, key: Tensor, counter: Tensor
) -> SearchOutput:
    """Search from `root` on.

    Random numbers are a function of `key` and `counter` (int64 [S] each); `draws_needed` of them
    are used.
    """
    actions = root.logits.shape[-1]
    tree = Tree(root, settings.simulations + 1)
    gumbel, ties = _draw_noise(tree, settings, key, counter)
    schedule: list[int] = []
    if settings.gumbel is not None:
        schedule = halving(min(settings.gumbel, actions), settings.simulations)
    for number in range(1, settings.simulations + 1):
        if settings.gumbel is None:
            action = _puct(tree, number, settings, ties[number - 1])
        else:
            action = _gumbel(tree, number, settings, gumbel, schedule[number - 1])
        edge, above = _walk(tree, action)
        output = model(tree.latents(edge // actions), (edge % actions).view(tree.shape))
        tree.expand(number, edge, above, output, settings.horizon)
        tree.backup(number, settings.discount)
    return _summary(tree, settings, gumbel)


def draws_needed(settings: Settings, batch: int, actions: int) -> int:
    """Random numbers that one search of `batch` roots per seed uses."""
    return batch * actions * (_NOISE_DRAWS + settings.simulations)


def halving(considered: int, simulations: int) -> list[int]:
    """Sequential halving (Karnin et al. 2013): simulation → visits of the root action it chooses.

    All `considered` actions are visited once, and again; then the better half of them; at the end
    two.
    """
    rounds = 1
    if considered > 1:
        rounds = max(1, math.ceil(math.log2(considered)))
    visits = [0] * considered
    remaining = considered
    schedule: list[int] = []
    while len(schedule) < simulations:
        for _ in range(max(1, simulations // (rounds * remaining))):
            schedule += visits[:remaining]
            visits[:remaining] = [count + 1 for count in visits[:remaining]]
        remaining = max(min(2, considered), remaining // 2)
    return schedule[:simulations]


def _draw_noise(
    tree: Tree, settings: Settings, key: Tensor, counter: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a search's random numbers, and add MuZero's noise to the roots' priors.

    Returns (Gumbel noise [R, A], 0 where there is none; tie breakers [simulations, R or 1, A]).
    """
    seeds, batch = tree.shape
    actions = tree.actions
    gumbel = torch.zeros_like(tree.logits[0])
    if not settings.noise:
        # Chance breaks ties here too, but alike for all roots: no decision depends on the others.
        zero = torch.zeros((), dtype=torch.int64, device=key.device)
        return gumbel, uniform(zero, zero, settings.simulations * actions).view(-1, 1, actions)
    draws = uniform(key, counter, draws_needed(settings, batch, actions))
    draws = draws.view(seeds * batch, -1, actions).transpose(0, 1)
    noise = draws[:_NOISE_DRAWS]
    ties = draws[_NOISE_DRAWS:]
    if settings.gumbel is not None:
        return -(-noise[0].clamp(1e-7, 1 - 1e-7).log()).log(), ties
    gamma = _gamma(settings.dirichlet_alpha, noise)
    dirichlet = gamma / gamma.sum(1, keepdim=True)
    tree.prior[0] = tree.prior[0].lerp(dirichlet, settings.dirichlet_fraction)
    return gumbel, ties


def _walk(tree: Tree, action: Tensor) -> tuple[Tensor, Tensor]:
    """The way from every root to an edge without a node behind it: (the edge [R], above).

    `action` [K, R] is what each of the K nodes of a tree would choose; above, bool [K, R], are the
    nodes on the way. No loop follows it: the host would have to ask the device where it ends.
    """
    nodes = len(action)
    chosen = tree.place[:nodes] * tree.actions + action
    edge = tree.edge[:nodes]
    entered = chosen.take(edge // tree.actions) == edge
    entered[0] = True
    missed = (tree.above[:nodes, :nodes] & ~entered).any(1)
    # The last of the nodes on the way has the largest number, and so the largest place.
    last = tree.place[:nodes].masked_fill(missed, 0).amax(0)
    return chosen.take(last), ~missed


def _summary(tree: Tree, settings: Settings, gumbel: Tensor) -> SearchOutput:
    """What the finished trees say of their roots."""
    visits = tree.visits[0]
    total = (visits * tree.q[0]).sum(1)
    if settings.gumbel is None:
        policy = visits / settings.simulations
        value = total / settings.simulations
        action = visits.argmax(1)
    else:
        improved = _completed(tree, 1, settings).squeeze(0)
        policy = improved.softmax(1)
        value = (total + tree.value[0]) / (1 + settings.simulations)
        # Of the actions that survived the halving, the one with the best score.
        loser = visits < visits.amax(1, keepdim=True)
        action = (gumbel + improved).masked_fill(loser, -torch.inf).argmax(1)
    return SearchOutput(
        visits=visits.long().unflatten(0, tree.shape),
        value=value.unflatten(0, tree.shape),
        policy=policy.unflatten(0, tree.shape),
        action=action.unflatten(0, tree.shape),
    )


def _puct(tree: Tree, nodes: int, settings: Settings, draws: Tensor) -> Tensor:
    """MuZero's choices [K, R] at the first K = `nodes` nodes of each tree.

    `draws` [R or 1, A] break ties. Of its N visits, n(a) with the action a, a node gives an action
    the score (Schrittwieser et al. 2020, appendix B)

        Q(a) + P(a) · √N / (1 + n(a)) · (c_init + log((N + c_base + 1) / c_base))

    with Q by the tree's range. Where n(a) is 0, `_mean_values` stand for Q(a).
    """
    q = tree.q[:nodes]
    visits = tree.visits[:nodes]
    visited = visits > 0
    mean = _mean_values(tree, q.sum(2), visited.sum(2))
    total = visits.sum(2, keepdim=True) + int(settings.first_visit_by_prior)
    exploration = ((total + settings.c_base + 1) / settings.c_base).log() + settings.c_init
    weight = exploration * total.sqrt() / (visits + 1)
    values = tree.normalised(torch.where(visited, q, mean.unsqueeze(2)), settings.value_floor)
    score = values + tree.prior[:nodes] * weight
    best = score >= score.amax(2, keepdim=True) - TIE
    # Among the best, the largest draw decides; 1 + draw is above the 0 of the others.
    return torch.where(best, 1 + draws, 0.0).argmax(2)


def _mean_values(tree: Tree, total: Tensor, count: Tensor) -> Tensor:
    """The mean values [K, R] of nodes, whose visited actions have a Q of `total` in sum.

    `total` and their number `count` are [K, R]. Ye et al. 2021: the mean of Q over the visited
    actions and, below the root, of the mean value of the node above.
    """
    mean = total / count.clamp(min=1)
    parents = tree.edge // tree.actions
    for node in range(1, len(mean)):
        mean[node] = (mean.take(parents[node]) + total[node]) / (1 + count[node])
    return mean


def _gumbel(tree: Tree, nodes: int, settings: Settings, gumbel: Tensor, visits: int) -> Tensor:
    """Gumbel MuZero's choices [K, R] at the first K = `nodes` nodes of each tree.

    The root chooses the best of its actions that were visited `visits` times, by Gumbel-top-k; all
    other nodes that whose share of visits lags most behind the improved policy (Danihelka et al.
    2022, eq. 14).
    """
    improved = _completed(tree, nodes, settings)
    visited = tree.visits[:nodes]
    share = visited / (1 + visited.sum(2, keepdim=True))
    action = (improved.softmax(2) - share).argmax(2)
    closed = visited[0] != visits
    action[0] = (gumbel + improved[0]).masked_fill(closed, -torch.inf).argmax(1)
    return action


def _completed(tree: Tree, nodes: int, settings: Settings) -> Tensor:
    """Logits [K, R, A] of the improved policy at the first K = `nodes` nodes of each tree.

    Danihelka et al. 2022, eqs. 8, 11 and 33: actions that were not visited are worth the mean of
    the network's value and of the visited ones', weighted by prior.
    """
    q = tree.q[:nodes]
    visits = tree.visits[:nodes]
    visited = visits > 0
    prior = torch.where(visited, tree.prior[:nodes], 0.0)
    total = visits.sum(2)
    visited_mean = (prior * q).sum(2) / prior.sum(2).clamp(min=1e-12)
    mixed = (tree.value[:nodes] + total * visited_mean) / (1 + total)
    values = tree.normalised(torch.where(visited, q, mixed.unsqueeze(2)), settings.value_floor)
    scale = (settings.c_visit + visits.amax(2, keepdim=True)) * settings.c_scale
    return tree.logits[:nodes] + scale * values


_TRIES = 8
_NOISE_DRAWS = 2 * _TRIES + 1
"""Random numbers per action before the first simulation: `_gamma`'s, of which Gumbel needs one."""


def _gamma(shape: float, draws: Tensor) -> Tensor:
    """Gamma variates [*] of a `shape` below 1, from uniform `draws` [17, *].

    By the rejection method of Marsaglia & Tsang (2000): of its tries, of which 19 in 20 succeed,
    the first good one of eight is taken. It needs a shape of 1 or more: G of the shape α + 1 is
    drawn, and with a uniform U, G · U^(1/α) has the shape α (their section 6).
    """
    normal = torch.erfinv(draws[:_TRIES].clamp(1e-6, 1 - 1e-6) * 2 - 1) * math.sqrt(2)
    d = (shape + 1) - 1 / 3
    cube = (1 + normal / math.sqrt(9 * d)) ** 3
    positive = cube.clamp(min=1e-12)
    bound = 0.5 * normal**2 + d - d * cube + d * positive.log()
    accepted = (cube > 0) & (draws[_TRIES:-1].clamp(min=1e-12).log() < bound)
    first = accepted.to(torch.int8).argmax(0, keepdim=True)
    boost = draws[-1].clamp(min=1e-12) ** (1 / shape)
    return d * positive.gather(0, first).squeeze(0) * boost
