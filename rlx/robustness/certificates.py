"""Certificates: the share of the decisions of clean play that no observation in a box can change.

Three numbers enclose the truth: certified ≤ truth ≤ not moved by any observation that was found.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlx import statistics
from rlx.agent import Choose, Scores
from rlx.evaluation import evaluate
from rlx.robustness.bounds import Box, crown, margins_of
from rlx.robustness.branching import branch
from rlx.robustness.clean_decisions import CleanDecisions, Decisions
from rlx.robustness.reachable import certified_reachable
from rlx.robustness.sweep import Game
from rlx.robustness.worst_returns import ReturnBounds
from rlx.show import certify_tables, console, figures
from rlx.statistics import Estimate
from rlx.threat import Attack, Budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = ("bounded", "certified", "unmoved", "unflipped")
"""What is known of a share of decisions; the truth is between the second and the third.

- `bounded`: certified by the bounds of the whole box (CROWN),
- `certified`: by these, or by those of all its parts (branch and bound),
- `unmoved`: no observation was found that changes the decision, by the attack or in the parts,
- `unflipped`: the attack alone changes nothing.
"""


@dataclass(frozen=True)
class HeadCertificates:
    """What is known of the decisions of one head: S seeds, E radii, P episodes."""

    shares: Mapping[str, np.ndarray]
    """Shares of each episode's decisions, [S, E, P] each, by the names of `SHARES`."""
    decisions: np.ndarray
    """How many decisions each episode had, [S, P]."""
    boxes: int
    """How many boxes were bounded for it."""

    def estimate(self, name: str, radius: int) -> Estimate:
        """A share at a radius, by its number."""
        return statistics.estimate(self.shares[name][:, radius])

    @property
    def per_seed(self) -> np.ndarray:
        """The certified share of each seed's episodes, in the mean over the radii, [S, P]."""
        return self.shares["certified"].mean(1)

    def undecided(self, radius: int) -> float:
        """The mean share, over all seeds, of which the truth is not known."""
        gap = self.shares["unmoved"] - self.shares["certified"]
        return float(gap[:, radius].mean())


@torch.no_grad()
def certify(game: Game, attack: Attack, max_boxes: int) -> dict[str, HeadCertificates]:
    """Certificates for every head of the policies of `game`, at its radii.

    `attack` tries to change what CROWN could not certify; what neither decides is split into at
    most `max_boxes` boxes for each decision and radius. An observation that changes a decision is
    shown to the policy itself before it counts, and changes it in all larger boxes too. Where
    observations are numbers, all of them are shown.
    """
    if isinstance(game.opened.spec.observation_space, gymnasium.spaces.Discrete):
        return _certify_numbers(game)
    decisions = CleanDecisions(game.opened, game.episodes)
    result = {}
    total = len(decisions.steps) * decisions.seeds
    with console.Progress(total, unit="policies", quarters=not game.quiet) as progress:
        for number, head in enumerate(decisions.steps):
            looks = []
            for seed in range(decisions.seeds):
                looks.append(_Look(game, decisions.of(head, seed), attack, max_boxes, seed))
                progress.update(number * decisions.seeds + seed + 1)
            shown = decisions.shown(head, [look.forcing for look in looks])
            for look, decided in zip(looks, shown, strict=True):
                look.keep_if(decided != look.decisions.clean)
            result[head] = _collected(looks, game.episodes)
    return result


def _certify_numbers(game: Game) -> dict[str, HeadCertificates]:
    """The certificates where observations are numbers: every other one in the box is tried."""
    opened = game.opened
    seeds = len(opened.seeds)
    shape = (seeds * game.episodes, len(game.eps))
    still: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}
    for head in opened.policy.heads:
        still[head] = torch.zeros(shape, dtype=torch.float64, device=opened.device)
        taken[head] = still[head][:, 0].clone()

    def make_choose(ids: Tensor) -> Choose:
        def choose(head: str, obs: Tensor, scores: Scores, deciding: Tensor) -> Tensor:
            copies = ids[deciding]
            taken[head][copies] += 1
            for number, eps in enumerate(game.eps):
                budget = game.budget(torch.full(obs.shape, eps, device=obs.device), obs)
                reach = certified_reachable(scores, obs, budget, deciding, max_boxes=0)
                alone = reach.mask.sum(-1) == 1
                still[head][copies, number] += alone[deciding].double()
            return scores.best(obs)

        return choose

    evaluate(
        opened.policy,
        opened.make_env,
        seeds,
        game.episodes,
        game.first_reset_seed,
        opened.device,
        make_choose,
    )
    found = {}
    for head, count in taken.items():
        share = (still[head] / count.unsqueeze(1)).view(seeds, game.episodes, -1)
        every = share.transpose(1, 2).cpu().numpy()
        decisions = count.view(seeds, -1).cpu().numpy().astype(np.int64)
        found[head] = HeadCertificates(dict.fromkeys(SHARES, every), decisions, 0)
    return found


class _Look:
    """What was found of the N decisions of one head of one seed."""

    def __init__(self, game: Game, decisions: Decisions, attack: Attack, max_boxes: int, seed: int):
        self.game = game
        self.decisions = decisions
        self.attack = attack
        self.max_boxes = max_boxes
        self.generator = torch.Generator(device=decisions.obs.device).manual_seed(seed)
        self.boxes = 0
        # By the number of the radius.
        never = len(game.eps)
        count = len(decisions.clean)
        device = decisions.clean.device
        self.bounded = torch.full((count,), -1, device=device)
        """The largest radius at which the bounds of the whole box certify; −1: none."""
        self.certified = self.bounded.clone()
        """The largest radius that is certified; −1: none."""
        self.flipped = torch.full((count,), never, device=device)
        """The smallest radius at which the attack changes the decision; E: none."""
        self.moved = self.flipped.clone()
        """The smallest radius at which anything that was found does."""
        self.forcing = decisions.obs.clone()
        """The observations that change the decision, [N, *O]; the clean one where none does."""
        self._bound()
        self._attack()
        self._split()

    def _budget(self, rows: Tensor, radius: int) -> Budget:
        """The boxes around the observations of `rows` [N'], as [1, N', *O]."""
        obs = self.decisions.obs[rows].unsqueeze(0)
        eps = torch.full(obs.shape[:2], self.game.eps[radius], device=obs.device)
        return self.game.budget(eps, obs)

    def _chunks(self, mask: Tensor) -> Sequence[Tensor]:
        """The rows where a mask [N] is true, as many together as are bounded at once."""
        rows = torch.nonzero(mask).squeeze(1)
        return rows.split(self.decisions.network.rows_at_once) if len(rows) else ()

    def _bound(self) -> None:
        """Certify by the bounds of whole boxes, from the largest on: it holds for smaller too."""
        for radius in reversed(range(len(self.game.eps))):
            for rows in self._chunks(self.bounded < 0):
                self.bounded[rows[self._is_bounded(rows, radius)]] = radius
        self.certified = self.bounded.clone()

    def _is_bounded(self, rows: Tensor, radius: int) -> Tensor:
        """Whether the clean choice has the highest score in the whole box, bool [N']."""
        obs = self.decisions.obs[rows].unsqueeze(0)
        low, high = self._budget(rows, radius).ends(obs)
        network = self.decisions.network.at(rows)
        clean = self.decisions.clean[rows].unsqueeze(0)
        box = Box(low.flatten(2).double(), high.flatten(2).double())
        lower = crown(network, box, margins_of(clean, network.choices)).lower[0]
        self.boxes += len(rows)
        highest = ((lower > 0) | torch.nn.functional.one_hot(clean[0], network.choices)).all(1)
        # Where nothing can be moved, no rounding is either.
        return highest | (low == high).flatten(2).all(2)[0]

    def _attack(self) -> None:
        """Attack what is not certified, from the smallest radius on: it counts for larger too."""
        for radius in range(len(self.game.eps)):
            # Without a radius nothing can be changed, whatever rounding another order makes.
            if self.game.eps[radius] == 0:
                continue
            open_rows = (self.bounded < radius) & (self.flipped > radius)
            for rows in self._chunks(open_rows):
                self._attack_at(rows, radius)
        self.moved = self.flipped.clone()

    def _attack_at(self, rows: Tensor, radius: int) -> None:
        """Attack the decisions `rows` [N'] at a radius."""
        obs = self.decisions.obs[rows].unsqueeze(0)
        network = self.decisions.network.at(rows).float()
        scores = Scores(lambda obs: network(obs.flatten(2)))

        def draw(count: int) -> Tensor:
            return torch.rand(1, len(rows), count, generator=self.generator, device=obs.device)

        budget = self._budget(rows, radius)
        shown = budget.project(self.attack.perturb(scores, obs, budget, draw), obs)
        changed = scores.best(shown)[0] != self.decisions.clean[rows]
        self.flipped[rows[changed]] = radius
        self.forcing[rows[changed]] = shown[0, changed]

    def _split(self) -> None:
        """Split the boxes that are neither, from the largest radius on.

        Not those of images: each half of one has a pixel less to move, of thousands.
        """
        network = self.decisions.network
        if network.has_convolutions:
            return
        for radius in reversed(range(len(self.game.eps))):
            rows = torch.nonzero((self.certified < radius) & (self.moved > radius)).squeeze(1)
            if not len(rows):
                continue
            obs = self.decisions.obs[rows].unsqueeze(0)
            clean = self.decisions.clean[rows]
            budget = self._budget(rows, radius)
            low, high = budget.ends(obs)
            decided = branch(
                network.at(rows),
                low[0].flatten(1),
                high[0].flatten(1),
                torch.nn.functional.one_hot(clean, network.choices).bool(),
                self.max_boxes,
                stop_at_two=True,
            )
            self.boxes += int(decided.boxes.sum())
            # The first that was found beside the clean one.
            other = decided.found.scatter(1, clean.unsqueeze(1), False)
            movable = other.any(1)
            where = other.int().argmax(1)
            points = decided.obs[torch.arange(len(rows), device=rows.device), where].view(obs.shape)
            shown = budget.project(points, obs)[0]
            self.moved[rows[movable]] = radius
            self.forcing[rows[movable]] = shown[movable]
            self.certified[rows[~movable & ~decided.open.any(1)]] = radius

    def keep_if(self, changes: Tensor) -> None:
        """Forget what was found where it does not change the policy's own decision, bool [N]."""
        never = len(self.game.eps)
        self.flipped = torch.where(changes, self.flipped, never)
        self.moved = torch.where(changes, self.moved, never)

    def shares(self, episodes: int) -> dict[str, Tensor]:
        """The shares of each episode's decisions, float64 [E, P], by the names of `SHARES`."""
        radii = torch.arange(len(self.game.eps), device=self.flipped.device).unsqueeze(1)
        known = {
            "bounded": self.bounded >= radii,
            "certified": self.certified >= radii,
            "unmoved": self.moved > radii,
            "unflipped": self.flipped > radii,
        }
        count = self.counts(episodes)
        shares = {}
        for name, holds in known.items():
            sums = count.new_zeros(len(radii), episodes).index_add_(
                1, self.decisions.episode, holds.double()
            )
            shares[name] = sums / count
        return shares

    def counts(self, episodes: int) -> Tensor:
        """How many decisions each episode had, float64 [P]."""
        episode = self.decisions.episode
        ones = torch.ones_like(episode, dtype=torch.float64)
        return ones.new_zeros(episodes).index_add_(0, episode, ones)


def _collected(looks: Sequence[_Look], episodes: int) -> HeadCertificates:
    """What all seeds' looks at one head have found."""
    shares = [look.shares(episodes) for look in looks]
    counts = torch.stack([look.counts(episodes) for look in looks])
    return HeadCertificates(
        {name: torch.stack([seed[name] for seed in shares]).cpu().numpy() for name in SHARES},
        counts.cpu().numpy().astype(np.int64),
        sum(look.boxes for look in looks),
    )


@dataclass(frozen=True)
class Certificates:
    """The certificates of all heads of S seeds at E radii."""

    eps: Sequence[float]
    """The radii, in units of the scale."""
    heads: Mapping[str, HeadCertificates]
    """What is known of each head's decisions, the top level first."""
    returns: Mapping[str, ReturnBounds] = field(default_factory=dict)
    """What is known of the worst returns, by the mode of attack; empty: they were not searched."""

    @property
    def mean(self) -> Estimate:
        """The certified share, in the mean over heads and radii."""
        return statistics.estimate(np.mean([head.per_seed for head in self.heads.values()], 0))

    def summary(self) -> dict[str, Any]:
        """The certificates as summary.json has them."""
        radii = range(len(self.eps))
        heads = {}
        for name, head in self.heads.items():
            shares = {
                share: [head.estimate(share, radius).as_dict() for radius in radii]
                for share in SHARES
            }
            undecided = [head.undecided(radius) for radius in radii]
            counts = {"decisions": int(head.decisions.sum()), "boxes": head.boxes}
            heads[name] = shares | {"undecided": undecided} | counts
        summary = {"eps": list(self.eps), "certified": self.mean.as_dict(), "heads": heads}
        if self.returns:
            summary["returns"] = {mode: found.summary() for mode, found in self.returns.items()}
        return summary

    def arrays(self) -> dict[str, np.ndarray]:
        """The shares of every episode's decisions, [S, E, P], by head and name.

        With them come the bounds of its return, by mode.
        """
        arrays = {
            f"{name}/{share}": head.shares[share]
            for name, head in self.heads.items()
            for share in SHARES
        }
        for mode, found in self.returns.items():
            arrays |= {f"returns/{mode}/lower": found.lower, f"returns/{mode}/upper": found.upper}
        return arrays

    def write_csv(self, path: Path, seeds: Sequence[int]) -> None:
        """A row for each head, radius and seed."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["head", "eps", "seed", "decisions", *SHARES])
            for name, head in self.heads.items():
                for radius, eps in enumerate(self.eps):
                    for row, seed in enumerate(seeds):
                        shares = [head.shares[share][row, radius].mean() for share in SHARES]
                        writer.writerow([name, eps, seed, head.decisions[row].sum(), *shares])

    def write_returns(self, path: Path, seeds: Sequence[int]) -> None:
        """A row for each mode, radius and seed: the bounds of its worst return."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["mode", "eps", "seed", "lower", "upper", "exact", "nodes"])
            for mode, found in self.returns.items():
                columns = (found.lower, found.upper, found.exact, found.nodes)
                for radius, eps in enumerate(self.eps):
                    for row, seed in enumerate(seeds):
                        means = [column[row, radius].mean() for column in columns]
                        writer.writerow([mode, eps, seed, *means])

    def print(self) -> None:
        """Print the shares of each head and the worst returns, and what is proved of all."""
        summary = self.summary()
        for table in certify_tables.tables(summary):
            console.table(*table)
        for text in certify_tables.proved(summary):
            console.facts(proved=text)


def figure(
    summary: Mapping[str, Any],
    title: str,
    scale: object,
    style: figures.Style = figures.SCREEN,
) -> "Figure":
    """The sandwich: certified, undecided and moved shares against the radius, by head.

    Likewise the worst returns. `summary`: as `Certificates.summary`; `scale`: what eps = 1 means.
    """
    panels = certify_tables.panels(summary, title)
    returns = certify_tables.return_panels(summary, title)
    return figures.sandwich(panels, figures.eps_label(scale), style, returns)
