"""A finished attack run as comparisons read it: whom it attacks, how, in which boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rlx import statistics
from rlx.config import choice
from rlx.errors import ConfigError
from rlx.runs.run import Run
from rlx.show import figures
from rlx.show.training_comparison import differences

ALL_HEADS = ("both", "same", "diff")
"""Modes in which an attack moves what all heads see, where there are several heads."""
PRINTED_UNITS = 16
"""The most components of an observation whose units are printed one by one."""


@dataclass(frozen=True)
class AttackRun:
    """An attack run, read once."""

    run: Run
    config: DictConfig
    """The attack's config."""
    summary: Mapping[str, Any]
    """The content of its summary.json."""

    @classmethod
    def of(cls, run: Run) -> "AttackRun":
        """The attack run; ConfigError where it has no result, or cannot be read."""
        return cls(run, run.config, run.summary())

    @property
    def path(self) -> Path:
        """The directory of the run."""
        return self.run.path

    @property
    def source(self) -> str:
        """Agent and env that are attacked, as in "dqn-acrobot"."""
        return self.path.parent.name

    @property
    def trainings(self) -> tuple[Path, ...]:
        """The directories of the trainings that are attacked, however the user wrote them.

        Of victims that are no trainings, their names on the command line.
        """
        return tuple(Path(path).resolve() for path in self.summary["run"])

    @property
    def is_of_files(self) -> bool:
        """Whether the policies are of no training: the config names their files and env."""
        return self.config.get("victim") is not None

    @property
    def modes(self) -> list[str]:
        """The names of the modes that were played."""
        return list(dict.fromkeys(cell["head"] for cell in self.summary["cells"]))

    @property
    def attack(self) -> str:
        """The attack as the user chose it, as in "pgd margin towards 0" or "auto quick"."""
        settings = self.config.attack
        effort = self.summary.get("effort")
        if isinstance(effort, str):  # null is read as NaN
            return f"{self.summary['cells'][0]['attack']} {effort}"
        kind = settings.get("loss", settings.get("kind", ""))
        name = f"{self.summary['cells'][0]['attack']} {kind}".strip()
        target = settings.get("target")
        return name if target is None else f"{name} towards {target}"

    @property
    def scale(self) -> np.ndarray:
        """What eps = 1 means for each component of an observation, [O]."""
        return np.array(self.summary["scale"], dtype=np.float64).flatten()

    @property
    def has_one_head(self) -> bool:
        """Whether the only mode attacks all heads of the agent, whatever its name."""
        return len(self.modes) == 1 and self.config.modes is None

    @property
    def strongest_mode(self) -> str | None:
        """The mode in which all heads are attacked; None where it was not played."""
        if self.has_one_head:
            return self.modes[0]
        return next((mode for mode in ALL_HEADS if mode in self.modes), None)

    def mode(self, wanted: str) -> str | None:
        """The mode that is compared with the others' mode `wanted`; None where there is none."""
        if wanted in self.modes:
            return wanted
        return self.modes[0] if self.has_one_head and wanted in ALL_HEADS else None

    def curve(self, mode: str, label: str) -> figures.Curve:
        """The returns against the radius in `mode`."""
        cells = [cell for cell in self.summary["cells"] if cell["head"] == mode]
        estimates = [statistics.Estimate.from_dict(cell["return"]) for cell in cells]
        return figures.Curve(label, self.summary["eps"], estimates)

    def returns(self, mode: str) -> np.ndarray:
        """The return of every episode in `mode`, [S, E, P]; ConfigError where it cannot be read."""
        returns = self.run.returns(mode)
        expected = (len(self.summary["seeds"]), len(self.summary["eps"]))
        if returns.ndim != 3 or returns.shape[:2] != expected:
            file = self.path / "returns.npz"
            raise ConfigError(
                f"{file}: '{mode}' has the shape {list(returns.shape)}; expected "
                f"{expected[0]} seeds × {expected[1]} radii × episodes."
            )
        return returns


def strongest_modes(attacks: Sequence[AttackRun]) -> list[str]:
    """The mode of each attack in which all heads are attacked.

    Where not all attacks have one, it is the first mode that they share.
    """
    modes = [attack.strongest_mode for attack in attacks]
    found = [mode for mode in modes if mode is not None]
    return found if len(found) == len(attacks) else compared_modes(attacks, None)


def compared_modes(attacks: Sequence[AttackRun], wanted: str | None) -> list[str]:
    """The mode of each attack that is compared.

    It is the mode `wanted`; None: all heads at once, or else the first mode that all have.
    ConfigError where there is none.
    """
    names = [attack.modes for attack in attacks]
    every = list(dict.fromkeys(["both", *(name for modes in names for name in modes)]))
    if wanted is not None:
        choice(wanted, every, "mode")
    for name in every if wanted is None else [wanted]:
        modes = [attack.mode(name) for attack in attacks]
        found = [mode for mode in modes if mode is not None]
        if len(found) == len(attacks):
            return found
    texts = "; ".join(f"{attack.path}: {', '.join(attack.modes)}" for attack in attacks)
    if wanted is None:
        raise ConfigError(f"run: these attacks share no mode: {texts}.")
    raise ConfigError(f"mode={wanted}: not all attacks have it: {texts}.")


def attack_labels(attacks: Sequence[AttackRun]) -> list[str]:
    """The name of each attack, with the settings that tell apart those of one name."""
    labels = [attack.attack for attack in attacks]
    for label in set(labels):
        same = [number for number, attack in enumerate(attacks) if attack.attack == label]
        if len(same) == 1:
            continue
        configs = [attacks[number].config.attack for number in same]
        if all(config == configs[0] for config in configs):
            continue
        for number, text in zip(same, differences(configs), strict=True):
            labels[number] = f"{label} {text}"
    return labels


def unique(labels: Sequence[str], attacks: Sequence[AttackRun]) -> list[str]:
    """The `labels` of the `attacks`; to those that are there twice the run's name is added."""
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({attack.path.name})" if label in twice else label
        for label, attack in zip(labels, attacks, strict=True)
    ]


def units_text(scale: np.ndarray) -> str:
    """What eps = 1 means, `scale` [O], as a user may write it: "[0.05,0.01]"; of images a range."""
    if len(scale) <= PRINTED_UNITS:
        return f"[{','.join(f'{unit:.8g}' for unit in scale)}]"
    if scale.min() == scale.max():
        return f"{scale[0]:.8g} in each of {len(scale)} components"
    return f"{scale.min():.8g} to {scale.max():.8g} in {len(scale)} components"
