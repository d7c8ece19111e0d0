"""A card: what is known of some policies' robustness, and all that it takes to find it again.

It is plain data, as card.json has it: whose policies (by the checksums of their weights), in which
env, in which boxes, attacked how, what came of it, what is wrong with it, and which lines, on which
machine, made it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rlx.config import plain
from rlx.errors import ConfigError
from rlx.policies import Opened, open_runs
from rlx.robustness.scale import describe
from rlx.robustness.study import Study, beyond_grid
from rlx.runs.files import to_json
from rlx.runs.finding import find, shown_paths
from rlx.runs.run import Run
from rlx.runs.versions import versions
from rlx.show import attack_tables
from rlx.show.attack_run import AttackRun
from rlx.victims.files import Victims
from rlx.victims.opening import open_victims

FORMAT = 1
"""The version of the keys of card.json."""
ASKED = ("victim", "env", "scale", "attack", "certify")
"""What was asked for: the same whoever asks again."""
FOUND = ("returns", "certificates", "audit")
"""What was found: the same bits on the same machine, elsewhere to within its intervals."""
MACHINE = ("cpu", "gpu", "python", "packages")
"""What decides how numbers are rounded, of what a card says made it."""
PARTS = ("victim", "env", "scale", "attack", "returns", "commands", "made_by")
"""What every card has."""
CERTIFY_KEYS = ("attack", "episodes", "max_boxes", "max_nodes")
"""Keys that say what was tried to prove."""
FILE_KEYS = ("vecnormalize", "activation")
"""Keys that say more of victims' files."""
CPU = torch.device("cpu")


class Difference(NamedTuple):
    """A place where a card and what was found again are not the same."""

    key: str
    """Where in card.json, as in "returns.both.0.01.iqm"."""
    card: Any
    again: Any
    within: bool = False
    """Whether it is within the card's interval, and the machine another."""


@dataclass(frozen=True)
class Victim:
    """Whose policies a card is of."""

    name: str
    """Agent and env, as in "dqn-cartpole"."""
    paths: list[str]
    """The runs, or the files of others, from where the card was made."""
    checkpoint: str
    """`best`, or a step."""
    seeds: list[int]
    """The seeds that were attacked; files are numbered."""
    files: dict | None
    """Keys that say more of files of others; None: they are runs."""
    sha256: dict
    """The checksum of each seed's weights, or of each file."""

    def opened(self, env: Any, trusted: bool) -> Opened:
        """The policies as they are now; `env`: where files of others play."""
        if self.files is not None:
            return open_victims(self._victims(env), CPU, self.seeds)
        runs = [find(path, "", trusted=trusted) for path in self.paths]
        return open_runs(runs, self.checkpoint, CPU, self.seeds)

    def as_now(self, opened: Opened) -> "Victim":
        """The same with the checksums of today."""
        if self.files is None:
            sums = opened.weights
        else:
            hashes = self._victims(opened.env).hashes
            sums = dict(zip(shown_paths(list(hashes)), hashes.values(), strict=True))
        return replace(self, sha256=sums)

    def _victims(self, env: Any) -> Victims:
        """The files of others."""
        keys = self.files or {}
        return Victims.of(self.paths, env, keys.get("vecnormalize"), keys.get("activation"))


# Making one


def make(attack: AttackRun, certify: Run | None, lines: Mapping[str, str]) -> dict[str, Any]:
    """The card of an attack, and of a certify run of the same policies.

    `lines`: the command lines that make them again, by command. ConfigError where a run has no
    result, the policies are gone, or the two runs are of different policies or boxes.
    """
    runs = {"attack": attack.run} | ({} if certify is None else {"certify": certify})
    for run in runs.values():
        status = run.unfinished()
        if status is not None:
            raise ConfigError(f"run={run.path}: has no result to make a card of; it is {status}.")
    certificates = attack.summary.get("certificates")  # of certify=true
    certifying = attack.run
    if certify is not None:
        certificates = certify.summary()
        certifying = certify
        _require_same(attack, certify, certificates)
    config = attack.config
    keys = plain(config)
    victim = Victim(
        attack.source,
        shown_paths(attack.summary["run"]),
        str(config.checkpoint),
        attack.summary["seeds"],
        {key: keys[key] for key in FILE_KEYS} if attack.is_of_files else None,
        {},
    )
    opened = victim.opened(keys.get("env"), attack.run.trusted)
    victim = victim.as_now(opened)
    for run in runs.values():
        _require_unchanged(run, victim)
    eps = sorted({*attack.summary["eps"], *(certificates or {"eps": ()})["eps"]})
    card = {
        "format": FORMAT,
        "victim": asdict(victim),
        "env": opened.env,
        "scale": {
            "name": keys["scale"],
            "one": attack.scale,
            "radii": {f"{radius:g}": _in_units(attack, opened, radius) for radius in eps},
        },
        "attack": {
            "name": attack.attack,
            "settings": keys["attack"],
            "protocol": config.protocol,
            "manifold": config.manifold,
            "modes": attack.modes,
            "episodes": config.episodes,
        },
        "returns": _returns(attack),
        "audit": _audit(attack),
        "commands": dict(lines),
        "made_by": {name: _made_by(run) for name, run in runs.items()},
    }
    if certificates:
        asked = plain(certifying.config)
        card["certify"] = {key: asked[key] for key in CERTIFY_KEYS if key in asked}
        card["certificates"] = _certificates(certificates)
    return dict(to_json(card))


def _in_units(attack: AttackRun, opened: Opened, radius: float) -> str:
    """A radius in the units of an observation's components, as far as these have some."""
    units = attack.summary["units"]
    names = units if isinstance(units, list) else None
    return describe(np.array(attack.summary["scale"]), radius, opened.spec, names)


def _require_unchanged(run: Run, victim: Victim) -> None:
    """ConfigError where a run has noted other checksums than those of today."""
    meta = run.meta()
    command = meta["command"]
    for name, digest in meta.get("victims", {}).items():
        if victim.sha256.get(shown_paths([name])[0]) != digest:
            raise ConfigError(f"{name}: is not the file that rlx {command} played; run it again.")
    for seed, digest in meta.get("weights", {}).items():
        if victim.sha256.get(seed) != digest:
            raise ConfigError(
                f"run={run.path}: the weights of seed {seed} of {', '.join(victim.paths)} are not "
                f"those that rlx {command} played; run it again."
            )


def _require_same(attack: AttackRun, certify: Run, certificates: Mapping[str, Any]) -> None:
    """ConfigError where certificates are not of the policies and boxes that were attacked."""
    certified = AttackRun(certify, certify.config, certificates)
    pairs = {
        "policies": (attack.trainings, certified.trainings),
        "seeds": (attack.summary["seeds"], certificates["seeds"]),
        "checkpoints": (attack.config.checkpoint, certify.config.checkpoint),
        "scale": (attack.scale.tolist(), certified.scale.tolist()),
    }
    for what, (attacked, other) in pairs.items():
        if attacked != other:
            raise ConfigError(
                f"run={certify.path}: is of other {what} than {attack.path}: "
                f"{_in_words(other)}, not {_in_words(attacked)}."
            )


def _returns(attack: AttackRun) -> dict[str, Any]:
    """The returns without an attack, at random, and under attack by mode and radius."""
    summary = attack.summary
    under = {
        mode: {
            f"{cell['eps']:g}": cell["return"] for cell in summary["cells"] if cell["head"] == mode
        }
        for mode in attack.modes
    }
    scores = {
        name: {
            mode: {"value": summary[name][mode], "ci95": summary[f"{name}_ci95"][mode]}
            for mode in attack.modes
        }
        for name in ("area", "critical_eps")
    }
    return {"clean": summary["clean"], "random": summary["random"], "attacked": under, **scores}


def _certificates(certificates: Mapping[str, Any]) -> dict[str, Any]:
    """What is proved, and what was found against it, by radius: of decisions, and of returns."""
    eps = certificates["eps"]
    decisions = {
        head: {share: _by_radius(eps, shares[share]) for share in ("certified", "unmoved")}
        for head, shares in certificates["heads"].items()
    }
    returns = {
        mode: {bound: _by_radius(eps, bounds[bound]) for bound in ("lower", "upper", "exact")}
        for mode, bounds in certificates.get("returns", {}).items()
    }
    return {"decisions": decisions, "returns": returns}


def _by_radius(eps: Sequence[float], values: Sequence[Any]) -> dict[str, Any]:
    """Values by the text of their radius."""
    return {f"{radius:g}": value for radius, value in zip(eps, values, strict=True)}


def _audit(attack: AttackRun) -> list[dict[str, Any]]:
    """What was checked of the attack itself."""
    table = attack_tables.audit(Study.from_summary(attack.summary))
    return [
        {"passed": word != "WARNING", "check": check, "measured": text, "modes": modes}
        for word, check, text, modes in table.rows
    ]


def _made_by(run: Run) -> dict[str, Any]:
    """Versions and machine of a run; what it has not noted is of now, and said to be."""
    now = versions()
    meta = run.meta()
    keys = ("rlx", "commit", "python", "packages", "machine", "cpu")
    maker = {key: meta.get(key, now[key]) for key in keys}
    if meta.get("gpu") and run.config.device.name != "cpu":
        maker["gpu"] = meta["gpu"]
    unknown = [key for key in keys if key not in meta]
    if not {"victims", "weights"} & set(meta):
        unknown.append("weights")
    if unknown:
        maker["of_the_card_not_the_run"] = unknown
    return maker | {"started": meta.get("started", "unknown")}


# Reading and comparing


def read(file: Path) -> dict[str, Any]:
    """The card in a file; ConfigError where it is none."""
    try:
        card = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a card ({error}).") from None
    parts = [card.get(part) for part in PARTS] if isinstance(card, dict) else [None]
    whole = all(isinstance(part, dict) for part in parts) and card.get("format") == FORMAT
    if not whole or not all(isinstance(maker, dict) for maker in card["made_by"].values()):
        raise ConfigError(f"{file}: is no card that rlx card wrote (format {FORMAT}).")
    return card


def differences(card: Mapping[str, Any], again: Mapping[str, Any]) -> list[Difference]:
    """Where what was found again is not what a card says.

    What was asked for must be equal, and what was found, too, if the machine is the same. On
    another machine rounding differs: a number must be within the card's interval for it, and what
    has no interval of its own is not compared.
    """
    found: list[Difference] = []
    for part in (*ASKED, *FOUND):
        exact = part in ASKED or same_machine(card, again)
        found += _differences(card.get(part), again.get(part), part, exact)
    return found


def same_machine(card: Mapping[str, Any], again: Mapping[str, Any]) -> bool:
    """Whether both were computed on the same CPU or GPU by the same packages."""
    return not any(key in MACHINE for _, key, _, _ in other_makers(card, again))


def other_makers(
    card: Mapping[str, Any], again: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """(command, key, of the card, of today): what of commits and machines is not the same."""
    for command, maker in card["made_by"].items():
        now = again["made_by"].get(command, {})
        for key in ("rlx", "commit", *MACHINE):
            if maker.get(key) != now.get(key):
                yield command, key, maker.get(key), now.get(key)


def _differences(card: Any, again: Any, key: str, exact: bool) -> Iterator[Difference]:
    """The differences of two values at a `key`; `exact`: whether rounding may not differ."""
    if isinstance(card, Mapping) and isinstance(again, Mapping):
        if not exact and isinstance(card.get("ci95"), list) and "ci95" in again:
            yield from _outside(card, again, key)
            return
        for name in dict.fromkeys([*card, *again]):
            yield from _differences(card.get(name), again.get(name), f"{key}.{name}", exact)
    elif isinstance(card, list) and isinstance(again, list) and len(card) == len(again):
        for number, pair in enumerate(zip(card, again, strict=True)):
            yield from _differences(*pair, f"{key}[{number}]", exact)
    elif card != again and (exact or None in (card, again) or list in map(type, (card, again))):
        yield Difference(key, card, again)


def _outside(card: Mapping[str, Any], again: Mapping[str, Any], key: str) -> Iterator[Difference]:
    """The difference of two numbers, and whether each is within the interval of the other."""
    name = "iqm" if "iqm" in card else "value"
    if card.get(name) != again.get(name):
        within = _is_within(again.get(name), card["ci95"]) and _is_within(
            card.get(name), again["ci95"]
        )
        yield Difference(f"{key}.{name}", card.get(name), again.get(name), within)


def _is_within(value: Any, interval: Any) -> bool:
    """Whether a number is within an interval, where both are such."""
    match [*interval, value]:
        case [float() | str() as low, float() | str() as high, float() | str() as number]:
            return beyond_grid(low) <= beyond_grid(number) <= beyond_grid(high)
    return False


def _in_words(value: Any) -> str:
    """A value of a message; paths as they are shown."""
    if isinstance(value, tuple):
        return ", ".join(shown_paths([str(path) for path in value]))
    return str(value)
