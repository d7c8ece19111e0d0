"""The config of a tuning: the keys of conf/tune.yaml, and their types."""

from dataclasses import dataclass
from typing import Any

from rlx.config import Count, NonNegative, choice
from rlx.errors import ConfigError
from rlx.grids import parse_seeds
from rlx.training import config as training_config


@dataclass(frozen=True, kw_only=True)
class Config(training_config.Config):
    """The keys of tune.yaml: those of a training, and these."""

    search: Any
    """The values that are tried: a file of conf/search."""
    trials: Count
    """Settings that are tried."""
    batch: Count
    """Trials that are asked for at once, and trained side by side."""
    sampler: str
    """Who thinks of the next trial: `tpe` or `random`."""
    pruner: str
    """Who gives trials up: `hyperband`, or `none`."""
    final_seeds: Any
    """Seeds of the last comparison, of which no trial may have been trained."""
    minutes: NonNegative | None
    """Minutes after which no more trials are begun; null: all are."""
    storage: str | None
    """File of Optuna's journal; null: one in the folder of the sweep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.sampler, ("tpe", "random"), "sampler")
        choice(self.pruner, ("hyperband", "none"), "pruner")
        final = parse_seeds(self.final_seeds, "final_seeds")
        both = sorted(set(final) & set(parse_seeds(self.seeds)))
        if both:
            raise ConfigError(
                f"final_seeds={self.final_seeds}: {both[0]} is one of seeds; expected fresh ones."
            )
        if len(final) < 2:
            raise ConfigError(f"final_seeds={self.final_seeds}: expected at least 2 seeds.")
