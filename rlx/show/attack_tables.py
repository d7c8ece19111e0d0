"""What `rlx attack` prints of a study: returns, heads, winners, the audit, who carries the harm."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlx.show import console

if TYPE_CHECKING:
    from rlx.robustness.attribution import Attribution
    from rlx.robustness.study import Cell, Study


def print_study(study: "Study", seeds: int, time_limit: str | None) -> None:
    """The returns by radius and mode, then what the largest radius did in each mode.

    `time_limit`: what it means that an episode ended there; None: nobody knows.
    """
    console.table(*returns(study))
    console.table(*scores(study))
    console.time_limit(time_limit)
    for table in (heads(study), *winners(study), audit(study)):
        console.table(*table)
    for text in warnings(study, seeds):
        console.warning(text)


def returns(study: "Study") -> console.Table:
    """The return by radius and mode."""
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for cells in study.cells.values():
            estimate = cells[number].returns
            row.append(console.interval_text(estimate.iqm, estimate.ci95))
        rows.append(row)
    title = "Return: interquartile mean over seeds, 95 % bootstrap interval"
    return console.Table(title, ["eps", *study.cells], rows)


def scores(study: "Study") -> console.Table:
    """The area and the critical radius of each mode, and what the largest radius did."""
    last_cells = {mode: cells[-1] for mode, cells in study.cells.items()}
    rows = []
    for mode, curve in study.curves.items():
        area = console.interval_text(curve.area, curve.area_ci95)
        rows.append([mode, area, study.critical_text(mode), *last_cells[mode].shares()])
    last = next(iter(last_cells.values()))
    title = (
        f"Scores from 0, random play ({study.random:.4g}), "
        f"to 1, clean play ({study.clean.iqm:.4g}). Critical eps: half the score is lost. "
        f"At eps {study.eps[-1]:g}: {last.words()}"
    )
    return console.Table(title, ["mode", "area", "critical eps", *last.columns()], rows)


def warnings(study: "Study", seeds: int) -> list[str]:
    """What a reader of the numbers should know."""
    texts = _undefined_scores(max(curve.undefined for curve in study.curves.values()))
    texts += console.few_seeds(seeds)
    scored = [mode for mode, curve in study.curves.items() if not math.isnan(curve.area)]
    red = [mode for mode in scored if study.is_red(mode)]
    if red:
        checks = dict.fromkeys(check for mode in red for check in study.failed(mode))
        reason = f"not confirmed: {', '.join(checks)}"
        texts.append(f"area of {', '.join(red)}: an upper bound at best ({reason})")
    return texts


def heads(study: "Study") -> console.Table:
    """What the box can change, by head: in clean play, and where the attack has led."""
    shares = shares_of_heads(study)
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for values in shares.values():
            row.append("–" if values[number] is None else f"{values[number]:.1%}")
        rows.append(row)
    title = (
        "Decisions that the box changes, of those of clean play (other episodes than the reported "
        "ones) and of those under attack"
    )
    return console.Table(title, ["eps", *shares], rows)


def shares_of_heads(study: "Study") -> dict[str, list[float | None]]:
    """Column of `heads` → the share at each radius; None: it was not counted."""
    shares: dict[str, list[float | None]] = {}
    for head, cells in _cells_of_heads(study).items():
        shares[f"{head}: clean play"] = [cell.movable_per_head.get(head) for cell in cells]
        shares[f"{head}: under attack"] = [cell.flip_rate_per_head.get(head) for cell in cells]
    return shares


def _cells_of_heads(study: "Study") -> "dict[str, Sequence[Cell]]":
    """For each attacked head the cells of the mode that attacks it with the fewest others."""
    found: dict[str, Sequence[Cell]] = {}
    for cells in sorted(study.cells.values(), key=lambda cells: -len(cells[0].flip_rate_per_head)):
        found |= dict.fromkeys(cells[0].flip_rate_per_head, cells)
    return found


def winners(study: "Study") -> list[console.Table]:
    """Which attack of many was the worst, in which share of the episodes; of one attack nothing."""
    if not any(cells[0].winners for cells in study.cells.values()):
        return []
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for cells in study.cells.values():
            shares = sorted(cells[number].winners.items(), key=lambda pair: -pair[1])
            texts = [f"{name} {share:.0%}" for name, share in shares if share >= 0.005]
            row.append(", ".join(texts))
        rows.append(row)
    title = "Which attack was the worst, in which share of the episodes"
    return [console.Table(title, ["eps", *study.cells], rows)]


def audit(study: "Study") -> console.Table:
    """What was checked of the attack itself."""
    modes_of: dict[tuple[str, str, str], list[str]] = {}
    for mode, findings in study.audit.items():
        for finding in findings:
            word = "pass" if finding.passed else "WARNING"
            word = "note" if finding.is_note else word
            modes_of.setdefault((word, finding.check, finding.text), []).append(mode)
    rows = []
    for (word, check, text), modes in modes_of.items():
        everywhere = len(modes) == len(study.audit)
        rows.append([word, check, text, "all" if everywhere else ", ".join(modes)])
    return console.Table("Audit of the attack", ["", "check", "measured", "modes"], rows)


def attribution(found: "Attribution") -> console.Table:
    """Who carries the harm, the most first."""
    rows = []
    for part, values in (("head", found.heads), ("component", found.components)):
        for name, value in sorted(values.items(), key=lambda pair: -pair[1]):
            share = f"{value / found.lost:.0%}" if found.lost > 0 else "–"
            rows.append([part, name, f"{value:.4g}", share])
    title = (
        f"Who carries the harm at eps {found.eps:g} under {found.attack}: "
        f"Shapley values of the {found.lost:.4g} that are lost"
    )
    return console.Table(title, ["part", "name", "return lost", "share"], rows)


def costs(by_name: Mapping[str, Mapping[str, Any]]) -> console.Table:
    """What each part of the study has cost; `by_name` as summary.json has it."""
    rows = []
    for name, cost in by_name.items():
        if cost["evaluations"]:
            minutes = f"{cost['minutes']:.2f}"
            rows.append([name, f"{cost['evaluations']:,}", f"{cost['gradients']:,}", minutes])
    title = "Cost: observations of which a policy's scores, and their gradients, were computed"
    return console.Table(title, ["of", "evaluations", "gradients", "minutes"], rows)


def _undefined_scores(share: float) -> list[str]:
    """What to say where clean play is no better than random play in a `share` of the resamples."""
    reason = "clean play is no better than random play: there is nothing to lose, and no score"
    if share == 1:
        return [reason]
    if share > 0:
        resamples = f"in {share:.1%} of the resamples"
        return [f"{resamples} {reason}; the intervals leave them out"]
    return []
