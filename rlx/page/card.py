"""A robustness card as one page of Markdown."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlx.robustness.audit import NOTES
from rlx.show import console


def page(card: Mapping[str, Any], file: str) -> str:
    """The card as one page of Markdown; `file` is what its JSON is called."""
    victim, attack = card["victim"], card["attack"]
    maker = card["made_by"]["attack"]
    sums = "".join(victim["sha256"].values())
    noted = "weights" not in maker.get("of_the_card_not_the_run", ())
    when = "" if noted else ", as they were when the card was made"
    packages = ", ".join(f"{name} {version}" for name, version in maker["packages"].items())
    facts = {
        "policies": ", ".join(f"`{path}`" for path in victim["paths"]),
        "seeds": f"{len(victim['seeds'])} ({console.ranges(victim['seeds'])})",
        "checkpoint": victim["checkpoint"],
        "weights": f"SHA-256 {hashlib.sha256(sums.encode()).hexdigest()[:16]}… of all of them; "
        f"of each by itself in {file}{when}",
        "env": card["env"].get("id", card["env"]["_target_"]),
        "attack": f"{attack['name']}, {attack['episodes']} episodes of each seed and radius",
        "return without": _cell(card["returns"]["clean"]),
        "return at random": console.number(card["returns"]["random"]),
        "made by": f"rlx {maker['rlx']} ({maker['commit'] or 'no commit'}), Python "
        f"{maker['python']}, {packages}",
        "on": maker.get("gpu", maker["cpu"]),
    }
    if "certify" in card:
        asked = card["certify"]
        facts["certified"] = (
            f"decisions of {asked['episodes']} clean episodes of each seed, up to "
            f"{asked['max_boxes']:,} boxes for each"
        )
    lines = [f"# Robustness of {victim['name']}", "", *_rows(["", ""], facts.items())]
    lines += ["", *_rows(*_radii(card)), "", _explanation(card), "", "## Scores", ""]
    scores = card["returns"]
    rows = [
        [mode, _cell(area), _cell(scores["critical_eps"][mode])]
        for mode, area in scores["area"].items()
    ]
    lines += _rows(["heads attacked", "area (1: unharmed)", "critical eps (half is lost)"], rows)
    lines += ["", "## What was checked of the attack", ""]
    for finding in card["audit"]:
        word = "holds" if finding["passed"] else "**does not hold**"
        word = "noted" if finding["check"] in NOTES else word
        lines.append(f"* {word}: {finding['check']} ({finding['modes']}): {finding['measured']}")
    whole = "\n".join([*card["commands"].values(), f"rlx card check {file}"])
    lines += ["", "## To make it again", "", f"```\n{whole}\n```", ""]
    return "\n".join(lines)


def _radii(card: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of both bounds by radius: its header, and its rows."""
    certificates = card.get("certificates", {"decisions": {}, "returns": {}})
    columns = {}
    for head, shares in certificates["decisions"].items():
        columns[f"{head}: certified, at least"] = shares["certified"]
        columns[f"{head}: at most"] = shares["unmoved"]
    for mode, cells in card["returns"]["attacked"].items():
        bounds = certificates["returns"].get(mode)
        if bounds is not None:
            columns[f"return, {mode} attacked: proved, at least"] = bounds["lower"]
            # What the search for the worst has found was played as well.
            cells = {
                radius: min(cell, bounds["upper"].get(radius, cell), key=lambda one: one["iqm"])
                for radius, cell in cells.items()
            }
        columns[f"return, {mode} attacked: at most"] = cells
    rows = []
    for radius, units in card["scale"]["radii"].items():
        cells = [
            _cell(cells[radius]) if radius in cells else console.NO_NUMBER
            for cells in columns.values()
        ]
        rows.append([radius, units, *cells])
    return ["eps", "each component by", *columns], rows


def _explanation(card: Mapping[str, Any]) -> str:
    """What the columns of `_radii` say."""
    texts = [
        "Numbers are interquartile means over seeds with 95 % bootstrap intervals. A return under "
        "attack is the lowest that was reached: the worst case is no higher."
    ]
    certificates = card.get("certificates")
    if certificates is None:
        texts.append("Nothing was proved: `rlx certify` finds lower bounds.")
    else:
        texts.append(
            "Of the decisions of clean play, the share that no observation in the box changes is "
            "at least what is certified, and at most what nothing that was found changes."
        )
        if certificates["returns"]:
            texts.append("A return that is proved is of the episodes that were certified.")
    return " ".join(texts)


def _cell(number: Mapping[str, Any]) -> str:
    """A number and its interval in three digits; a critical radius may be beyond the grid."""
    parts = (number.get("iqm", number.get("value")), *number["ci95"])
    value, *ends = [math.nan if part is None else part for part in parts]
    return console.interval_text(value, ends)


def _rows(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table of Markdown."""
    whole = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in whole]
