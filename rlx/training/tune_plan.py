"""What a command line of rlx tune asks for, before anything is written."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version

from omegaconf import DictConfig, OmegaConf

from rlx.composing import as_typed, compose_config, hydra_left_as_it_is, task_overrides
from rlx.config import build, plain
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.sweeps.sweep import identity
from rlx.training import config as training_config
from rlx.training.config import run_name, validated
from rlx.training.loop import Training
from rlx.training.packing import why_alone
from rlx.training.space import Space
from rlx.training.tune_config import Config


@dataclass(frozen=True)
class Plan:
    """What a command line asks for, before anything is written."""

    config: Config
    base: DictConfig
    """The training of which a trial changes some keys."""
    today: DictConfig
    """The training that `rlx train` does today on the same words, of the fresh seeds."""
    space: Space
    line: str
    """The command line, as one types it."""

    @classmethod
    def of(cls, composed: DictConfig) -> "Plan":
        """The plan of a composed conf/tune.yaml; raises what is wrong with it."""
        _require_optuna()
        config = build(Config, composed, "")
        names = [field.name for field in fields(training_config.Config)]
        base = validated({name: value for name, value in plain(composed).items() if name in names})
        base.seeds = parse_seeds(config.seeds)
        if why_alone(base) is not None:
            key = "stop" if base.stop else "env=attacked"
            raise ConfigError(f"{key}: not in a tuning, whose trials are trained as one batch.")
        space = Space.of(config.search, base)
        one_seed = base.copy()
        one_seed.seeds = base.seeds[:1]
        Training(build(training_config.Config, one_seed, ""), run_name(config))
        today = _today(names)
        today.seeds = parse_seeds(config.final_seeds)
        today.final_episodes = base.final_episodes
        return cls(config, base, today, space, as_typed(sys.argv))

    @property
    def asked(self) -> DictConfig:
        """All that decides what is found."""
        keys = ("search", "sampler", "pruner", "final_seeds", "storage")
        values = {key: getattr(self.config, key) for key in keys}
        return OmegaConf.create({**plain(self.base), **values})

    @property
    def name(self) -> str:
        """The name of the sweep where none is given."""
        return f"tune-{run_name(self.config)}-{identity(self.asked)[:8]}"


def _require_optuna() -> None:
    """ConfigError where Optuna is missing, or is too old."""
    found = importlib.util.find_spec("optuna") is not None
    if not found or int(version("optuna").partition(".")[0]) < 5:
        raise ConfigError('rlx tune: needs Optuna 5 or newer; pip install "rlx[tune]"')


def _today(names: Sequence[str]) -> DictConfig:
    """The validated config that `rlx train` has on the words of the running `rlx tune`."""
    words = []
    for word in task_overrides():
        key = word.lstrip("+~").partition("=")[0].partition(".")[0]
        if key in (*names, "experiment"):
            words.append(word)
    with hydra_left_as_it_is():
        return validated(compose_config("train", words))
