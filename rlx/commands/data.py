"""Show the card of a data set; write it in another format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.show import console


@dataclass(frozen=True)
class Config:
    """The keys of data.yaml."""

    data: Any
    """Folders with data.json or npz shards, or minari:<id>."""
    out: str | None
    """Where to write the data set anew: minari:<id>, or a folder for npz shards; null: nowhere."""
    skip_bad: bool
    """Leave bad shards out instead of naming the first."""


@command("data")
def main(composed: DictConfig) -> None:
    """Prints one card per data set."""
    config = build(Config, composed, "")
    if not isinstance(config.data, (str, list)):
        raise ConfigError("data: name the data set, as in: rlx data data/cartpole_mixed")
    names = [config.data] if isinstance(config.data, str) else [str(name) for name in config.data]
    if config.out and len(names) > 1:
        raise ConfigError(f"out={config.out}: give one data set.")

    from rlx import experiment

    for name in names:
        data = experiment.open_data(name, config.skip_bad)
        console.facts(data=name, **data.card())
        if config.out:
            write(data, config.out)
            console.result(Path(config.out))


def write(data: Any, out: str) -> None:
    """Write `data` as `out` says: minari:<id>, or a folder of npz shards.

    ConfigError where the data are shards already, or cannot be written so.
    """
    from rlx import experiment
    from rlx.data import minari, shards
    from rlx.data.episodes import Episodes

    if not isinstance(data, Episodes):
        raise ConfigError(
            "out: shards keep no episodes; only data sets with them can be written in another "
            "format."
        )
    if not out.startswith("minari:"):
        shards.write(data, Path(out), data.facts["stack"])
        return
    env = data.facts["env"]
    if not env:
        raise ConfigError(
            f"out={out}: it is unknown in which env this set was collected; "
            "only sets of rlx collect can be written."
        )
    experiment.env_spec(env)  # raises where its spaces are none of ours
    name = out.removeprefix("minari:")
    if not minari.write(data, name, experiment.make_env(env, 1, "cpu")):
        remark = "Gymnasium cannot make it by name; recover_environment() of this set will not work"
        console.facts(env=remark)
