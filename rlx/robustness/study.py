"""What a sweep found: a cell for every mode and radius, a curve for every mode."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx import statistics
from rlx.robustness import audit
from rlx.robustness.clean_states import CleanStates
from rlx.robustness.sweep import Played
from rlx.show import certify_tables, console, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "none"
"""What is named where no attack has harmed an episode."""
FILE_KEYS = {"mode": "head", "returns": "return"}
"""Fields of `Cell` whose keys in summary.json and robustness.csv differ: the files are older."""


def _printed_share(column: str, words: str) -> Any:
    """A field of `Cell` that the printed table shows as a share, under `column`, at the last eps.

    `words` say in the table's title what it is.
    """
    return dataclasses.field(metadata={"column": column, "words": words})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What an attack did in one mode at one radius.

    summary.json, robustness.csv and the printed table are made of these fields, so that a new
    statistic is a field and its value in `Cell.of`.
    """

    attack: str
    """Name of the attack."""
    mode: str
    """Name of the mode: a head, or what several heads at once are called."""
    eps: float
    """The radius."""
    returns: statistics.Estimate
    """Undiscounted return: in summary.json an estimate, in robustness.csv three columns."""
    score: float
    """(return − random) / (clean − random); NaN where clean play is no better than random play."""
    flip_rate: float = _printed_share("flipped", "decisions flipped")
    """Share of the attacked heads' decisions that the perturbation changed."""
    flip_rate_per_head: Mapping[str, float]
    """Share of its decisions that the perturbation changed, by attacked head."""
    movable_per_head: Mapping[str, float]
    """Share of its decisions in clean play that the box can change, by attacked head.

    Flips are counted where the attack has led the policy, this where the policy goes by itself."""
    winners: Mapping[str, float]
    """Share of the episodes that each attack of a study of many has won, by name.

    The share that none has harmed is that of "none". Empty where there was one attack alone."""
    truncation_rate: float = _printed_share(
        statistics.TRUNCATION_RATE.column, f"episodes {statistics.TRUNCATION_RATE.column}"
    )
    """Share of the episodes that ended at the time limit."""

    @classmethod
    def of(
        cls,
        played: Played,
        number: int,
        *,
        attack: str,
        mode: str,
        eps: float,
        score: float,
        bootstrap: statistics.Bootstrap,
        states: CleanStates,
        clean: np.ndarray,
    ) -> "Cell":
        """The cell of the episodes that were `played` at radius `number`, which is `eps`.

        `clean`: the returns [S, P] of the same episodes without an attack.
        """
        flips = {name: int(counts[:, number].sum()) for name, counts in played.flips.items()}
        decisions = {name: int(played.decisions[name][:, number].sum()) for name in flips}
        return cls(
            attack=attack,
            mode=mode,
            eps=eps,
            returns=statistics.estimate(played.returns[:, number], bootstrap),
            score=score,
            flip_rate=sum(flips.values()) / max(1, sum(decisions.values())),
            flip_rate_per_head={name: flips[name] / max(1, decisions[name]) for name in flips},
            movable_per_head={
                head: float(states.movable[head][number])
                for head in flips
                if head in states.movable
            },
            winners=_winners(played, number, clean),
            truncation_rate=float(played.truncated[:, number].mean()),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """The cell that `as_dict` gave."""
        # Studies of earlier versions lack some.
        found: dict[str, Any] = {"movable_per_head": {}, "winners": {}, "truncation_rate": math.nan}
        for field in dataclasses.fields(cls):
            key = FILE_KEYS.get(field.name, field.name)
            if key in values:
                found[field.name] = values[key]
        return cls(**found | {"returns": statistics.Estimate.from_dict(values["return"])})

    def as_dict(self) -> dict[str, Any]:
        """The cell as summary.json has it."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            key = FILE_KEYS.get(field.name, field.name)
            values[key] = value.as_dict() if isinstance(value, statistics.Estimate) else value
        return values

    def row(self) -> dict[str, Any]:
        """The cell as robustness.csv has it: one number a column."""
        row: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, statistics.Estimate):
                row["iqm"] = value.iqm
                row["ci95_low"], row["ci95_high"] = value.ci95
            elif not isinstance(value, Mapping):
                row[FILE_KEYS.get(field.name, field.name)] = value
        return row

    def shares(self) -> list[str]:
        """What the printed table shows of the cell, as in ["12%", "0%"]; see `columns`."""
        return [f"{getattr(self, field.name):.0%}" for field in self._printed_fields()]

    @classmethod
    def columns(cls) -> list[str]:
        """The columns of `shares`."""
        return [field.metadata["column"] for field in cls._printed_fields()]

    @classmethod
    def words(cls) -> str:
        """What the `shares` are, for the table's title."""
        return ", ".join(field.metadata["words"] for field in cls._printed_fields())

    @classmethod
    def _printed_fields(cls) -> list[dataclasses.Field]:
        return [field for field in dataclasses.fields(cls) if field.metadata]


def _winners(played: Played, number: int, clean: np.ndarray) -> dict[str, float]:
    """The share of the episodes at radius `number` that each attack has won, by name.

    Episodes whose return is that of `clean` play [S, P] are nobody's.
    """
    if played.attack is None:
        return {}
    returns = played.returns[:, number]
    harmed = (returns < clean) & ~np.isclose(returns, clean, rtol=1e-4)
    attack = np.where(harmed, played.attack[:, number], -1)
    shares = {name: float((attack == i).mean()) for i, name in enumerate(played.attacks)}
    return {**shares, NONE: float((attack == -1).mean())}


@dataclass(frozen=True)
class Study:
    """What one attack did to some policies at growing radii."""

    attack: str
    """Name of the attack."""
    eps: Sequence[float]
    """The E radii."""
    clean: statistics.Estimate
    """Return of the greedy policies without an attack."""
    random: float
    """Mean return of random play."""
    cells: Mapping[str, Sequence[Cell]]
    """A cell for each of the E radii, by mode."""
    curves: Mapping[str, statistics.Curve]
    """What summarises the cells of a mode, by mode."""
    audit: Mapping[str, Sequence[audit.Finding]]
    """What was checked of the attack itself, by mode."""

    @classmethod
    def of(
        cls,
        attack: str,
        eps: Sequence[float],
        clean: np.ndarray,
        random: float,
        played: Mapping[str, Played],
        states: CleanStates,
        floor: float,
    ) -> "Study":
        """The study of the episodes that were `played`, by mode.

        `clean`: the returns [S, P] of the same episodes without an attack; `random`: the mean
        return of random play; `states`: what the box can do in clean play; `floor`: the lowest
        return there can be, minus infinity where it is unknown.
        """
        bootstrap = statistics.Bootstrap(*clean.shape)
        cells = {}
        curves = {}
        findings = {}
        for mode, episodes in played.items():
            curve = statistics.curve(episodes.returns, clean, random, np.array(eps), bootstrap)
            curves[mode] = curve
            cells[mode] = [
                Cell.of(
                    episodes,
                    number,
                    attack=attack,
                    mode=mode,
                    eps=radius,
                    score=float(curve.score[number]),
                    bootstrap=bootstrap,
                    states=states,
                    clean=clean,
                )
                for number, radius in enumerate(eps)
            ]
            findings[mode] = audit.audit(
                episodes, list(episodes.flips), eps, clean, random, floor, states
            )
        estimate = statistics.estimate(clean, bootstrap)
        return cls(attack, eps, estimate, random, cells, curves, findings)

    def summary(self) -> dict[str, Any]:
        """The study as summary.json has it."""
        curves = self.curves.items()
        return {
            "eps": list(self.eps),
            "clean": self.clean.as_dict(),
            "random": self.random,
            "cells": [cell.as_dict() for cells in self.cells.values() for cell in cells],
            "area": {mode: curve.area for mode, curve in curves},
            "area_ci95": {mode: curve.area_ci95 for mode, curve in curves},
            "critical_eps": {mode: self._within_grid(curve.critical_eps) for mode, curve in curves},
            "critical_eps_ci95": {
                mode: [self._within_grid(bound) for bound in curve.critical_eps_ci95]
                for mode, curve in curves
            },
            "undefined_resamples": {mode: curve.undefined for mode, curve in curves},
            "audit": {
                mode: [finding.as_dict() for finding in findings]
                for mode, findings in self.audit.items()
            },
            "converged": {mode: not self.is_red(mode) for mode in self.audit},
        }

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Study":
        """The study that `summary` gave."""
        cells: dict[str, list[Cell]] = {}
        for values in summary["cells"]:
            cells.setdefault(values["head"], []).append(Cell.from_dict(values))
        curves = {}
        for mode in cells:
            low, high = summary["critical_eps_ci95"][mode]
            curves[mode] = statistics.Curve(
                score=np.array([cell.score for cell in cells[mode]]),
                area=summary["area"][mode],
                area_ci95=summary["area_ci95"][mode],
                critical_eps=beyond_grid(summary["critical_eps"][mode]),
                critical_eps_ci95=(beyond_grid(low), beyond_grid(high)),
                undefined=summary["undefined_resamples"][mode],
            )
        return cls(
            attack=summary["cells"][0]["attack"],
            eps=summary["eps"],
            clean=statistics.Estimate.from_dict(summary["clean"]),
            random=summary["random"],
            cells=cells,
            curves=curves,
            audit={
                mode: [audit.Finding(**finding) for finding in findings]
                for mode, findings in summary.get("audit", {}).items()
            },
        )

    def is_red(self, mode: str) -> bool:
        """Whether a check of the attack has failed: its area is then an upper bound at best."""
        return bool(self.failed(mode))

    def failed(self, mode: str) -> list[str]:
        """The checks of the attack that have failed."""
        return [finding.check for finding in self.audit[mode] if not finding.passed]

    def write_csv(self, path: Path) -> None:
        """A row for each cell."""
        rows = [cell.row() for cells in self.cells.values() for cell in cells]
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def critical_text(self, mode: str) -> str:
        """The critical radius and its interval, as in "0.013 [0.011, >0.03]"."""
        curve = self.curves[mode]
        value, *ends = map(self._within_grid, (curve.critical_eps, *curve.critical_eps_ci95))
        return console.interval_text(value, ends)

    def _within_grid(self, critical: float) -> float | str:
        """A critical radius; where it is infinite, on which side of the grid it lies."""
        if not math.isinf(critical):
            return critical
        return f">{self.eps[-1]:g}" if critical > 0 else f"≤{self.eps[0]:g}"


def beyond_grid(critical: float | str) -> float:
    """A critical radius that `Study.summary` has written: ">0.03" is infinite."""
    if isinstance(critical, str):
        return math.inf if critical.startswith(">") else -math.inf
    return critical


def figure(
    summary: Mapping[str, Any],
    title: str,
    scale: object,
    style: figures.Style = figures.SCREEN,
) -> "Figure":
    """Return against the radius, a curve for each mode, of a study's `summary`.

    `scale`: what eps = 1 means, as `rlx.robustness.scale.unit_scale` explains. With certificates
    each mode has a panel with both bounds, and each head one.
    """
    certificates = summary.get("certificates")
    curves = {}
    for mode in dict.fromkeys(cell["head"] for cell in summary["cells"]):
        cells = [cell for cell in summary["cells"] if cell["head"] == mode]
        estimates = [statistics.Estimate.from_dict(cell["return"]) for cell in cells]
        label = cells[0]["attack"] if certificates else f"{cells[0]['attack']} on {mode}"
        curves[mode] = figures.Curve(label, summary["eps"], estimates)
    x = figures.eps_label(scale)
    if not certificates:
        return figures.curves({title: list(curves.values())}, x, summary["random"], style)
    bounds = certify_tables.return_curves(certificates)
    returns = {f"{mode} attacked": [*bounds.get(mode, ()), curves[mode]] for mode in curves}
    shares = certify_tables.panels(certificates, "decisions")
    return figures.sandwich(shares, x, style, returns, title)
