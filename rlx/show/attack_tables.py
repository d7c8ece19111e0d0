"""What `rlx attack` prints of a study: returns, heads, winners, the audit, who carries the harm."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlx.show import console

if TYPE_CHECKING:
    from rlx.robustness.attribution import Attribution
    from rlx.robustness.cost import Costs
    from rlx.robustness.study import Cell, Study


def print_study(study: "Study", seeds: int, time_limit: str | None) -> None:
    """The returns by radius and mode, then what the largest radius did in each mode.

    `time_limit`: what it means that an episode ended there; None: nobody knows.
    """
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for cells in study.cells.values():
            estimate = cells[number].returns
            row.append(console.interval_text(estimate.iqm, estimate.ci95))
        rows.append(row)
    title = "Return: interquartile mean over seeds, 95 % bootstrap interval"
    console.table(title, ["eps", *study.cells], rows)
    _warn_of_undefined_scores(max(curve.undefined for curve in study.curves.values()))
    console.warn_of_few_seeds(seeds)
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
    console.table(title, ["mode", "area", "critical eps", *last.columns()], rows)
    console.time_limit(time_limit)
    _print_heads(study)
    _print_winners(study)
    _print_audit(study)


def _print_heads(study: "Study") -> None:
    """What the box can change, by head: in clean play, and where the attack has led."""
    cells_of = _cells_of_heads(study)
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for head, cells in cells_of.items():
            for shares in (cells[number].movable_per_head, cells[number].flip_rate_per_head):
                row.append(f"{shares[head]:.1%}" if head in shares else "–")
        rows.append(row)
    columns = []
    for head in cells_of:
        columns += [f"{head}: clean play", "under attack"]
    title = "Decisions that the box changes, of those in clean play and of those under attack"
    console.table(title, ["eps", *columns], rows)


def _cells_of_heads(study: "Study") -> "dict[str, Sequence[Cell]]":
    """For each attacked head the cells of the mode that attacks it with the fewest others."""
    found: dict[str, Sequence[Cell]] = {}
    for cells in sorted(study.cells.values(), key=lambda cells: -len(cells[0].flip_rate_per_head)):
        found |= dict.fromkeys(cells[0].flip_rate_per_head, cells)
    return found


def _print_winners(study: "Study") -> None:
    """Which attack of many was the worst, and in which share of the episodes."""
    if not any(cells[0].winners for cells in study.cells.values()):
        return
    rows = []
    for number, radius in enumerate(study.eps):
        row = [f"{radius:g}"]
        for cells in study.cells.values():
            shares = sorted(cells[number].winners.items(), key=lambda pair: -pair[1])
            texts = [f"{name} {share:.0%}" for name, share in shares if share >= 0.005]
            row.append(", ".join(texts))
        rows.append(row)
    title = "Which attack was the worst, in which share of the episodes"
    console.table(title, ["eps", *study.cells], rows)


def _print_audit(study: "Study") -> None:
    """What was checked of the attack itself."""
    modes_of: dict[tuple[str, str, str], list[str]] = {}
    for mode, findings in study.audit.items():
        for finding in findings:
            word = "pass" if finding.passed else "WARNING"
            modes_of.setdefault((word, finding.check, finding.text), []).append(mode)
    rows = []
    for (word, check, text), modes in modes_of.items():
        everywhere = len(modes) == len(study.audit)
        rows.append([word, check, text, "all" if everywhere else ", ".join(modes)])
    console.table("Audit of the attack", ["", "check", "measured", "modes"], rows)
    red = [mode for mode in study.audit if study.is_red(mode)]
    if red:
        console.warning(f"area of {', '.join(red)}: an upper bound, not converged (see the audit)")


def print_attribution(attribution: "Attribution") -> None:
    """Who carries the harm, the most first."""
    rows = []
    for part, values in (("head", attribution.heads), ("component", attribution.components)):
        for name, value in sorted(values.items(), key=lambda pair: -pair[1]):
            share = f"{value / attribution.lost:.0%}" if attribution.lost > 0 else "–"
            rows.append([part, name, f"{value:.4g}", share])
    title = (
        f"Who carries the harm at eps {attribution.eps:g} under {attribution.attack}: "
        f"Shapley values of the {attribution.lost:.4g} that are lost"
    )
    console.table(title, ["part", "name", "return lost", "share"], rows)


def print_costs(costs: "Costs") -> None:
    """What each part of the study has cost."""
    rows = []
    for name, cost in costs.by_name.items():
        if cost.evaluations:
            minutes = f"{cost.seconds / 60:.2f}"
            rows.append([name, f"{cost.evaluations:,}", f"{cost.gradients:,}", minutes])
    title = "Cost: observations of which a policy's scores, and their gradients, were computed"
    console.table(title, ["of", "evaluations", "gradients", "minutes"], rows)


def _warn_of_undefined_scores(share: float) -> None:
    """Warn where clean play is no better than random play in a `share` of the resamples."""
    reason = "clean play is no better than random play: there is nothing to lose, and no score"
    if share == 1:
        console.warning(reason)
    elif share > 0:
        resamples = f"in {share:.1%} of the resamples"
        console.warning(f"{resamples} {reason}; the intervals leave them out")
