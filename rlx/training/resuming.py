"""A run's training as its newest whole checkpoint has it."""

from typing import NamedTuple

from omegaconf import DictConfig

from rlx.config import build
from rlx.errors import ConfigError
from rlx.experiment import env_spec
from rlx.grids import parse_rows
from rlx.policies import check_tensors, of_rows
from rlx.runs.run import Run
from rlx.training import state
from rlx.training.config import Config
from rlx.training.loop import Training


class Resumed(NamedTuple):
    """A training that can go on."""

    training: Training
    warnings: list[str]
    """A sentence about each newer checkpoint that is damaged."""


def resumed(run: Run, config: DictConfig, kind: type[Training] = Training) -> Resumed:
    """Read the newest whole checkpoint of `run`; `config`: the run's config, perhaps changed.

    `kind`: Training, or how else the run learns.

    ConfigError where there is no such checkpoint, or where it does not fit the config.
    """
    counters, policy, saved, warnings = run.newest()
    try:
        file = run.path / "checkpoints" / f"{counters['step']:09d}" / "agent.safetensors"
        running = len(counters["seeds"])
        own = of_rows(config, counters.get("rows", range(running)))
        check_tensors(own, env_spec(config.env), running, policy, file)
        expected = (len(parse_rows(config.seeds)), running, config.num_envs)
        found = (len(saved["loop.last"]), *saved["loop.obs"].shape[:2])
        if expected != found and not config.data:
            raise ConfigError(
                f"{run.path}: config.yaml has (seeds, those learning, num_envs) = {expected}, "
                f"the checkpoint {found}."
            )
        training = kind(build(Config, config, ""), run.path.parent.name)
        state.load(training, counters, policy, saved, run.checkpoints.parts(counters["replay"]))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{run.path}: the newest checkpoint does not fit the run's config "
            f"({type(error).__name__}: {error})."
        ) from error
    return Resumed(training, warnings)
