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

    All nodes lie in one axis [R · M], and the edges, one for each action, in [R · M, A]. "Place"
    means a node's number in that axis, and an edge's number is place · A + action.
    """

    def __init__(self, root: RecurrentOutput, nodes: int):
        seeds, batch, actions = root.logits.shape
        self.shape = (seeds, batch)
        self.nodes = nodes
        self.actions = actions
        roots = seeds * batch
        places = roots * nodes
        device = root.logits.device
        self.base = torch.arange(roots, device=device) * nodes
        """Places of the roots, [R]."""
        self.prefix = torch.zeros(places, device=device)
        self.value = torch.zeros(places, device=device)
        self.fresh = torch.zeros(places, dtype=torch.bool, device=device)
        """Whether a value prefix begins behind the node."""
        self.logits = torch.zeros(places, actions, device=device)
        self.prior = torch.zeros_like(self.logits)
        self.reward = torch.zeros_like(self.logits)
        self.visits = torch.zeros_like(self.logits)
        self.total = torch.zeros_like(self.logits)
        """Sum, over an edge's visits, of the values that were found behind it."""
        self.q = torch.zeros_like(self.logits)
        self.child = torch.full((places, actions), -1, device=device)
        """Place of the node behind an edge; −1 where there is none yet."""
        self.latent = {
            name: value.new_zeros(nodes, *value.shape) for name, value in root.latent.items()
        }
        """Name → [M, S, B, …]."""
        self.low = torch.zeros(roots, 1, device=device)
        """Smallest action value in each tree, [R, 1]."""
        self.spread = torch.zeros_like(self.low)
        """Largest action value minus the smallest."""
        self._fill(0, root)

    def _fill(self, number: int, output: RecurrentOutput) -> Tensor:
        """Fill the node `number` of each tree; returns the places [R]."""
        place = self.base + number
        for name, value in output.latent.items():
            self.latent[name][number] = value
        logits = output.logits.flatten(0, 1)
        self.logits[place] = logits
        self.prior[place] = logits.softmax(1)
        self.value[place] = output.value.flatten()
        self.prefix[place] = output.prefix.flatten()
        return place

    def latents(self, place: Tensor) -> dict[str, Tensor]:
        """The latents of one node of each tree, at `place` [R]: name → [S, B, …]."""
        roots = len(self.base)
        row = (place - self.base) * roots + torch.arange(roots, device=place.device)
        latents = {}
        for name, pool in self.latent.items():
            latents[name] = pool.flatten(0, 2).index_select(0, row).unflatten(0, self.shape)
        return latents

    def expand(
        self, number: int, edge: Tensor, depth: Tensor, output: RecurrentOutput, horizon: int
    ) -> None:
        """Add the node `number` behind an edge [R] of each tree, `depth` [R] below its root."""
        place = self._fill(number, output)
        parent = edge // self.actions
        self.child.view(-1)[edge] = place
        earlier = torch.where(self.fresh[parent], 0.0, self.prefix[parent])
        self.reward.view(-1)[edge] = self.prefix[place] - earlier
        fresh = depth % horizon == 0
        self.fresh[place] = fresh
        for name in output.memory:
            pool = self.latent[name][number]
            pool.masked_fill_(along(fresh.view(self.shape), pool), 0.0)

    def backup(self, number: int, edges: Tensor, passed: Tensor, discount: float) -> None:
        """Add the value of node `number` to the edges of its path from the root.

        `edges` [D, R] and `passed` (bool [D, R]) are those of `_walk`.
        """
        gain = self.value[self.base + number]
        rewards = self.reward.view(-1)[edges]
        gains: list[Tensor] = []
        for reward, on_path in zip(rewards.flip(0), passed.flip(0), strict=True):
            gains.append(gain)
            gain = torch.where(on_path, reward + discount * gain, gain)
        edge = edges.flatten()
        visits = self.visits.view(-1)
        total = self.total.view(-1)
        visits.index_add_(0, edge, passed.flatten().to(visits.dtype))
        total.index_add_(0, edge, torch.where(passed, torch.stack(gains[::-1]), 0.0).flatten())
        self.q.view(-1)[edge] = rewards.flatten() + discount * total[edge] / visits[edge]
        # Only the first `number` nodes of a tree have edges with a child behind them.
        trees = (len(self.base), self.nodes, self.actions)
        q = self.q.view(trees)[:, :number].flatten(1)
        visited = (self.visits > 0).view(trees)[:, :number].flatten(1)
        self.low = torch.where(visited, q, torch.inf).amin(1, keepdim=True)
        self.spread = torch.where(visited, q, -torch.inf).amax(1, keepdim=True) - self.low

    def normalised(self, q: Tensor, floor: float) -> Tensor:
        """Action values [R, A] by the tree's range, in [0, 1]; `floor`: the smallest range."""
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
        edges, passed = _walk(tree, number, settings, gumbel, schedule, ties[number - 1])
        edge = edges[-1]
        output = model(tree.latents(edge // actions), (edge % actions).view(tree.shape))
        tree.expand(number, edge, passed.sum(0), output, settings.horizon)
        tree.backup(number, edges, passed, settings.discount)
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
    gumbel = torch.zeros_like(tree.logits[tree.base])
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
    tree.prior[tree.base] = tree.prior[tree.base].lerp(dirichlet, settings.dirichlet_fraction)
    return gumbel, ties


def _walk(
    tree: Tree,
    number: int,
    settings: Settings,
    gumbel: Tensor,
    schedule: list[int],
    ties: Tensor,
) -> tuple[Tensor, Tensor]:
    """Simulation `number`'s way from every root to an edge without a child: (edges, passed).

    Both are [D, R]. A tree's path is as long as its `passed` is true; from then on its last edge
    is repeated.
    """
    place = tree.base
    edge = tree.base
    mean: Tensor | None = None
    inside = torch.ones_like(place, dtype=torch.bool)
    edges: list[Tensor] = []
    passed: list[Tensor] = []
    # No path is longer than the tree has nodes: asked first, since `any` waits for the device.
    while len(edges) < number and inside.any():
        if settings.gumbel is None:
            action, mean = _puct(tree, place, mean, settings, ties)
        elif not edges:
            action = _gumbel(tree, place, settings, gumbel, schedule[number - 1])
        else:
            action = _improved(tree, place, settings)
        edge = torch.where(inside, place * tree.actions + action, edge)
        edges.append(edge)
        passed.append(inside)
        child = tree.child.view(-1)[edge]
        inside = inside & (child >= 0)
        place = torch.where(inside, child, place)
    return torch.stack(edges), torch.stack(passed)


def _summary(tree: Tree, settings: Settings, gumbel: Tensor) -> SearchOutput:
    """What the finished trees say of their roots."""
    visits = tree.visits[tree.base]
    total = (visits * tree.q[tree.base]).sum(1)
    if settings.gumbel is None:
        policy = visits / settings.simulations
        value = total / settings.simulations
        action = visits.argmax(1)
    else:
        improved = _completed(tree, tree.base, settings)
        policy = improved.softmax(1)
        value = (total + tree.value[tree.base]) / (1 + settings.simulations)
        # Of the actions that survived the halving, the one with the best score.
        loser = visits < visits.amax(1, keepdim=True)
        action = (gumbel + improved).masked_fill(loser, -torch.inf).argmax(1)
    return SearchOutput(
        visits=visits.long().unflatten(0, tree.shape),
        value=value.unflatten(0, tree.shape),
        policy=policy.unflatten(0, tree.shape),
        action=action.unflatten(0, tree.shape),
    )


def _puct(
    tree: Tree, place: Tensor, mean_above: Tensor | None, settings: Settings, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """MuZero's choice at the nodes `place` [R]: (action [R], mean value of actions [R, 1]).

    `mean_above` is the mean value at the node above; None: the nodes are the roots. `draws`
    [R or 1, A] break ties. Of its N visits, n(a) with the action a, a node gives an action the
    score (Schrittwieser et al. 2020, appendix B)

        Q(a) + P(a) · √N / (1 + n(a)) · (c_init + log((N + c_base + 1) / c_base))

    with Q by the tree's range. Where n(a) is 0, the mean value stands for Q(a) (Ye et al. 2021):
    the mean of Q over the visited actions and, below the root, of the mean value above.
    """
    q = tree.q[place]
    visits = tree.visits[place]
    visited = visits > 0
    count = visited.sum(1, keepdim=True)
    if mean_above is None:
        mean = q.sum(1, keepdim=True) / count.clamp(min=1)
    else:
        mean = (mean_above + q.sum(1, keepdim=True)) / (1 + count)
    total = visits.sum(1, keepdim=True) + int(settings.first_visit_by_prior)
    exploration = ((total + settings.c_base + 1) / settings.c_base).log() + settings.c_init
    weight = exploration * total.sqrt() / (visits + 1)
    values = tree.normalised(torch.where(visited, q, mean), settings.value_floor)
    score = values + tree.prior[place] * weight
    best = score >= score.amax(1, keepdim=True) - TIE
    # Among the best, the largest draw decides; 1 + draw is above the 0 of the others.
    return torch.where(best, 1 + draws, 0.0).argmax(1), mean


def _completed(tree: Tree, place: Tensor, settings: Settings) -> Tensor:
    """Logits [R, A] of the improved policy at the nodes `place` [R].

    Danihelka et al. 2022, eqs. 8, 11 and 33: actions that were not visited are worth the mean of
    the network's value and of the visited ones', weighted by prior.
    """
    q = tree.q[place]
    visits = tree.visits[place]
    visited = visits > 0
    prior = torch.where(visited, tree.prior[place], 0.0)
    total = visits.sum(1)
    visited_mean = (prior * q).sum(1) / prior.sum(1).clamp(min=1e-12)
    mixed = (tree.value[place] + total * visited_mean) / (1 + total)
    values = tree.normalised(torch.where(visited, q, mixed.unsqueeze(1)), settings.value_floor)
    scale = (settings.c_visit + visits.amax(1, keepdim=True)) * settings.c_scale
    return tree.logits[place] + scale * values


def _gumbel(tree: Tree, place: Tensor, settings: Settings, gumbel: Tensor, visits: int) -> Tensor:
    """The best [R] of the root's actions that were visited so often, by Gumbel-top-k."""
    score = gumbel + _completed(tree, place, settings)
    return score.masked_fill(tree.visits[place] != visits, -torch.inf).argmax(1)


def _improved(tree: Tree, place: Tensor, settings: Settings) -> Tensor:
    """The action [R] whose share of visits lags most behind the improved policy (eq. 14)."""
    visits = tree.visits[place]
    share = visits / (1 + visits.sum(1, keepdim=True))
    return (_completed(tree, place, settings).softmax(1) - share).argmax(1)


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
