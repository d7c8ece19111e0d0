"""What `rlx certify` prints and draws of its summary: shares of decisions that nothing changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlx.show import console, figures
from rlx.statistics import Estimate

CURVES = {
    "unmoved": "no observation was found that changes it",
    "certified": "certified: none does",
    "bounded": "certified by the bounds of the whole box",
}
"""Share → its name in the figure: what is so at most, then what is at least so."""


BOUNDS = {
    "upper": "the lowest that was found",
    "lower": "proved: nothing in the box leaves less",
}
"""Bound of the worst return → its name in the figure."""


def tables(summary: Mapping[str, Any]) -> list[console.Table]:
    """The shares of the decisions of each head by radius, and the worst returns."""
    header = ["eps", "by bounds", "certified", "undecided", "not moved", "not by the attack"]
    found = []
    for name, head in summary["heads"].items():
        rows = []
        for number, eps in enumerate(summary["eps"]):
            texts = {}
            for share in ("bounded", "certified", "unmoved", "unflipped"):
                estimate = Estimate.from_dict(head[share][number])
                texts[share] = console.interval_text(estimate.iqm, estimate.ci95)
            rows.append(
                [
                    f"{eps:g}",
                    texts["bounded"],
                    texts["certified"],
                    f"{head['undecided'][number]:.2%}",
                    texts["unmoved"],
                    texts["unflipped"],
                ]
            )
        title = f"Head {name}: share of the decisions of clean play that the box cannot change"
        found.append(console.Table(title, header, rows))
    for mode, bounds in summary.get("returns", {}).items():
        found.append(_returns(mode, bounds, summary["eps"]))
    return found


def _returns(mode: str, bounds: Mapping[str, Any], eps: Sequence[float]) -> console.Table:
    """The worst returns where the heads of a `mode` are attacked, by radius."""
    rows = []
    for number, radius in enumerate(eps):
        texts = []
        for name in ("lower", "upper"):
            estimate = Estimate.from_dict(bounds[name][number])
            texts.append(console.interval_text(estimate.iqm, estimate.ci95))
        nodes = f"{bounds['nodes'][number]:,.0f}"
        rows.append([f"{radius:g}", *texts, f"{bounds['exact'][number]:.1%}", nodes])
    header = ["eps", "proved: not below", "found", "exact", "nodes"]
    title = f"Worst return, {mode} attacked; in the exact episodes what was found is the worst"
    return console.Table(title, header, rows)


def proved(summary: Mapping[str, Any]) -> list[str]:
    """For each head up to which radius all its decisions are certified, where there is one."""
    texts = []
    for name, head in summary["heads"].items():
        whole = [min(shares["per_seed"]) == 1 for shares in head["certified"]]
        radii = [eps for eps, all_of_it in zip(summary["eps"], whole, strict=True) if all_of_it]
        if radii and max(radii) > 0:
            texts.append(
                f"head {name}: within eps {max(radii):g} nothing changes any of its "
                f"{head['decisions']:,} decisions"
            )
    return texts


def panels(summary: Mapping[str, Any], title: str) -> dict[str, list[figures.Curve]]:
    """The shares against the radius, by head."""
    found = {}
    for name, head in summary["heads"].items():
        curves = []
        for share, label in CURVES.items():
            estimates = [Estimate.from_dict(values) for values in head[share]]
            curves.append(figures.Curve(label, summary["eps"], estimates))
        found[f"{title}: {name}"] = curves
    return found


def return_curves(summary: Mapping[str, Any]) -> dict[str, list[figures.Curve]]:
    """The worst returns against the radius, by mode; none where they were not searched."""
    return {
        mode: [
            figures.Curve(label, summary["eps"], [Estimate.from_dict(one) for one in bounds[name]])
            for name, label in BOUNDS.items()
        ]
        for mode, bounds in summary.get("returns", {}).items()
    }


def return_panels(summary: Mapping[str, Any], title: str) -> dict[str, list[figures.Curve]]:
    """`return_curves`, by the titles of their panels."""
    curves = return_curves(summary)
    return {f"{title}: worst return, {mode} attacked": panel for mode, panel in curves.items()}
