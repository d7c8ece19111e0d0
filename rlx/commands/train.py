"""Train an agent on an env, many seeds at once, and keep each seed's best weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rlx.benchmarks import atari100k
from rlx.command import check_protocol, command
from rlx.commands.resume import go_on
from rlx.composing import chosen
from rlx.conf import group_files
from rlx.config import build
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.machine import require_disk
from rlx.names import nearest
from rlx.runs.run import Run
from rlx.show import console
from rlx.sweeps.ranking import RETURN
from rlx.training.config import Config, run_name

if TYPE_CHECKING:
    from rlx.training.loop import Training


def check(composed: DictConfig) -> None:
    """Raise what is wrong with a training's config, as far as one seed of it tells."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    settings()

    from rlx.policies import numbers_of_seeds
    from rlx.training.config import validated
    from rlx.training.loop import Training

    seeds = parse_seeds(config.seeds)
    checked = validated(composed)
    if not numbers_of_seeds(checked):
        checked.seeds = seeds[:1]
    Training(build(Config, checked, ""), run_name(config))


def pin(composed: DictConfig) -> DictConfig:
    """The config with all values typed, and with the runs and data sets that it names."""
    from rlx.training.config import validated

    return validated(composed)


def resume(run: Run, config: DictConfig) -> float:
    """Go on with a job's run, on the device of its config, which may be another one now."""
    with run.lock():
        return go_on(run, {"device": config.device})


def benchmark(runs: Sequence[Run]) -> None:
    """Print the table of a benchmark, where the runs of a sweep are one."""
    if atari100k.is_benchmark(runs):
        atari100k.table(runs)


@command("train", check=check, pin=pin, resume=resume, measure=RETURN, table=benchmark)
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation, for sweepers."""
    training, run = _begun(composed)
    return training.run(run)


def train(composed: DictConfig) -> Run:
    """The finished run of a composed config."""
    training, run = _begun(composed)
    training.run(run)
    return run


def _begun(composed: DictConfig) -> "tuple[Training, Run]":
    """A training, and the new run directory that it will fill."""
    config = build(Config, composed, "")
    parse_seeds(config.seeds)  # lists of lists are for the batches of vector sweeps alone
    check_protocol(config.protocol)
    name = run_name(config)
    console.facts(train=name, settings=settings())

    from rlx.training import state
    from rlx.training.config import validated
    from rlx.training.loop import Training

    composed = validated(composed)
    training = Training(build(Config, composed, ""), name)
    require_disk(config.outputs, state.disk_size(training))
    return training, Run.create(config.outputs, "train", name, composed)


def settings() -> str:
    """Which tuned settings the run has; ConfigError where it asks for some that do not exist."""
    agent = chosen("agent")
    env = chosen("env")
    wanted = chosen("tuned")
    files = group_files("tuned")
    if wanted in files:
        if wanted == f"{agent}-{env}":
            return f"tuned/{wanted}"
        return f"tuned/{wanted}, which was tuned for another agent or env"
    if wanted == "none":
        return f"defaults of {agent} (tuned=none)"
    if wanted != f"{agent}-{env}":
        raise ConfigError(f"tuned={wanted}: no such settings.{nearest(wanted, files)}")
    return f"defaults of {agent}, which nobody tuned for {env}"
