"""Show the card of a data set; write it in another format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of data.yaml."""

    data: Any
    out: str | None
    skip_bad: bool


@command("data")
def main(composed: DictConfig) -> None:
    """Prints one card per data set."""
    config = build(Config, composed, "")
    if not isinstance(config.data, (str, list)):
        raise ConfigError("data: name the data set, as in: rlx data data/cartpole_mixed")
    sets = [config.data] if isinstance(config.data, str) else [str(where) for where in config.data]
    if config.out and len(sets) > 1:
        raise ConfigError(f"out={config.out}: give one data set.")

    from rlx import experiment

    for where in sets:
        data = experiment.open_data(where, config.skip_bad)
        report.start(data=where, **data.card())
        if config.out:
            write(data, config.out)
            report.end(Path(config.out))


def write(data: Any, out: str) -> None:
    """Write `data` as `out` says: minari:<id>, or a folder of npz shards. ConfigError where shards would be written anew."""
    from rlx import experiment
    from rlx.data import minari, shards
    from rlx.data.episodes import Episodes

    if not isinstance(data, Episodes):
        raise ConfigError(
            "out: shards keep no episodes; only data sets with them can be written in another format."
        )
    if not out.startswith("minari:"):
        shards.write(data, Path(out), data.facts["stack"])
        return
    env = data.facts["env"]
    if not env:
        what = "it is unknown in which env this set was collected"
        raise ConfigError(f"out={out}: {what}; only sets of rlx collect can be written.")
    experiment.env_spec(env)  # raises where its spaces are none of ours
    if not minari.write(data, out.removeprefix("minari:"), experiment.make_env(env, 1, "cpu")):
        text = "Gymnasium cannot make it by name; recover_environment() of this set will not work"
        report.start(env=text)
