"""Measure what eps = 1 means in an env (scale=reference): the spread of what policies see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command, pin_runs
from rlx.config import Count, build
from rlx.errors import ConfigError
from rlx.runs.finding import find_all
from rlx.runs.run import Run
from rlx.show import console

if TYPE_CHECKING:
    from rlx.policies import Opened


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of scale.yaml."""

    device: Any
    """Where it runs: a file of conf/device."""
    out: str
    """A new file, such as conf/reference/cartpole.yaml."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seeds: Any
    """Which of the runs' seeds are played; null: all."""
    episodes: Count
    """Episodes of each seed."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config, as far as it can be told without playing."""
    _load(build(Config, composed, ""))


def _load(config: Config) -> "tuple[Sequence[Run], Opened]":
    """The runs and their policies, once it is known that the file `out` can be new."""
    out = Path(config.out)
    if out.suffix != ".yaml" or out.exists():
        raise ConfigError(f"out={out}: expected a new file with a name that ends in .yaml.")
    runs = find_all(config.run, config.outputs, trusted=config.trust)

    from rlx import experiment
    from rlx.policies import open_runs
    from rlx.robustness.scale import require_box

    device = experiment.setup_device(config.device)
    opened = open_runs(runs, config.checkpoint, device, config.seeds)
    require_box(opened.spec.observation_space)
    return runs, opened


@command("scale", check=check, pin=pin_runs, writes=lambda composed: composed.out)
def main(composed: DictConfig) -> None:
    """Plays greedily, prints the standard deviations and writes the file `out`."""
    config = build(Config, composed, "")
    runs, opened = _load(config)
    out = Path(config.out)

    from rlx.robustness import reference
    from rlx.robustness.observations import play_spread
    from rlx.robustness.scale import describe
    from rlx.runs import files

    trained = {str(run.meta()["commit"]) for run in runs}
    policies = (
        f"{runs[0].path.parent.name}, seeds {console.ranges(opened.seeds)}, "
        f"checkpoint {config.checkpoint}"
    )
    console.facts(
        run=", ".join(str(run.path) for run in runs),
        episodes=f"{config.episodes} per seed, checkpoint {config.checkpoint}",
        device=opened.device,
    )
    console.warn_of_unfinished(runs)
    std, episodes = play_spread(opened, config.episodes)
    result = reference.Reference(
        env={key: value for key, value in opened.env.items() if key not in ("workers", "threads")},
        policies=policies,
        commit=" ".join(sorted(trained)),
        episodes=config.episodes,
        mean_return=round(float(episodes.returns.mean()), 4),
        scale=std.flatten().tolist(),
    )
    units = opened.make_env(1).observation_units
    console.facts(**{"return": result.mean_return, "eps 1": describe(std, 1, opened.spec, units)})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, reference.text(result))
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}).") from None
    console.result(out)
