"""Search settings of an agent in an env, many trials at once, and keep them if they are better."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rlx.command import check_protocol, command
from rlx.commands.train import settings
from rlx.config import build
from rlx.show import console
from rlx.sweeps.ranking import RETURN
from rlx.training.tune_config import Config

if TYPE_CHECKING:
    from rlx.sweeps.planning import Options


def tune(composed: DictConfig, options: "Options") -> float:
    """Begin or go on with a tuning; returns the interquartile mean of the best on fresh seeds."""
    check_protocol(build(Config, composed, "").protocol)
    console.facts(settings=settings())

    from rlx.training.tune_plan import Plan
    from rlx.training.tuning import Tuning

    return Tuning.begin(Plan.of(composed), options).run()


@command("tune", measure=RETURN, makes_jobs=tune)
def main(composed: DictConfig) -> float:
    """Without a function of its own: each run is a sweep, which `tune` makes."""
    raise NotImplementedError
