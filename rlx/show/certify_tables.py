"""What `rlx certify` prints and draws of its summary: shares of decisions that nothing changes."""

from collections.abc import Mapping
from typing import Any

from rlx.show import console, figures
from rlx.statistics import Estimate

CURVES = {
    "unmoved": "no observation was found that changes it",
    "certified": "certified: none does",
    "bounded": "certified by the bounds of the whole box",
}
"""Share → its name in the figure: what is so at most, then what is at least so."""


def tables(summary: Mapping[str, Any]) -> list[console.Table]:
    """The shares of the decisions of each head, by radius."""
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
    return found


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
