"""Scales that belong to an env and not to an agent: the files of conf/reference."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rlx.conf import conf_dirs
from rlx.config import Count, NonNegative, build
from rlx.errors import ConfigError
from rlx.experiment import same_env
from rlx.names import flatten_keys

FOLDER = "reference"
"""The folder of conf/ with the scales of envs.

It is not called as the key is: Hydra would take `scale=std` for an option of a group.
"""


@dataclass(frozen=True)
class Reference:
    """The scale of an env, a file of conf/reference: who played, and how far observations spread.

    It belongs to the env, so that a radius means the same whichever agent is attacked.
    """

    env: dict
    """The config group `env`, with the keys of `eval_env`."""
    policies: str
    """Agent, seeds and checkpoint of the policies that played, greedily."""
    commit: str
    """The commit of rlx that trained them; several, where runs differ."""
    episodes: Count
    """Episodes of each seed."""
    mean_return: float
    """The mean return of these episodes."""
    scale: list[NonNegative]
    """The standard deviation of each component over all observations, [*O] flat."""


def find(env: dict[str, Any]) -> tuple[Path, Reference]:
    """The file of conf/reference about the config group `env`, the user's before rlx's.

    ConfigError where there is none.
    """
    differs = ""
    for folder in reversed(conf_dirs()):
        for file in sorted((folder / FOLDER).glob("*.yaml")):
            reference = _read(file)
            if reference.env.get("_target_") != env["_target_"]:
                continue
            if is_same(reference.env, env):
                return file, reference
            differs = f" {file.parent.name}/{file.name} is of {_difference(reference.env, env)}."
    make = f"rlx scale RUN out=conf/{FOLDER}/NAME.yaml"
    raise ConfigError(
        f"scale=reference: no file of conf/{FOLDER} is about this env.{differs} Make one: {make}"
    )


def _read(file: Path) -> Reference:
    """A file of conf/reference; ConfigError where it is none."""
    try:
        node = yaml.safe_load(file.read_text())
        return build(Reference, node, "")
    except (ConfigError, yaml.YAMLError, OSError) as error:
        raise ConfigError(f"{file}: no scale of an env ({' '.join(str(error).split())})") from None


def text(reference: Reference) -> str:
    """`reference` as a file of conf/reference."""
    numbers = [float(f"{number:.6g}") for number in reference.scale]
    values = asdict(reference) | {"scale": numbers}
    keys = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return (
        "# The standard deviation of each component over the observations of clean play: what\n"
        "# eps = 1 means with scale=reference. Written by rlx scale.\n" + keys
    )


def is_same(env: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two config groups `env`, with the keys of `eval_env`, make the same env."""
    return same_env({"env": env, "eval_env": {}}, {"env": other, "eval_env": {}})


def _difference(env: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The keys that `env` has otherwise than `wanted`, as in "env.gravity=9.8"."""
    flat = flatten_keys(env, "env")
    other = flatten_keys(wanted, "env")
    keys = [key for key in flat if key in other and flat[key] != other[key]]
    return ", ".join(f"{key}={flat[key]}" for key in keys) or "other keys"
