"""Train an agent on an env, many seeds at once, and keep each seed's best weights."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.conf import group_files
from rlx.config import at_least, build, check_protocol, choice, chosen, parse_seeds
from rlx.errors import ConfigError, nearest
from rlx.runs.files import require_room
from rlx.runs.run import Run
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of train.yaml."""

    agent: Any
    env: Any
    device: Any
    protocol: str | None
    seeds: Any
    """A count, a range or a list: trained together, each as if alone."""
    steps: int
    """Environment steps per seed; of an offline agent, minibatches."""
    num_envs: int
    """Env copies per seed of an agent that acts."""
    eval_every: int
    """Environment steps between two greedy evaluations."""
    eval_episodes: int
    """Episodes of each, by which the best weights are kept."""
    final_episodes: int
    """Other episodes, on which the kept weights are reported."""
    eval_env: Any
    """Keys of env that differ in both, and when the run is attacked."""
    checkpoint_every: int
    """Environment steps between two checkpoints."""
    checkpoint_seconds: float | None
    """And one when the last is so many seconds old; it is replaced by the next but one."""
    stop: Any
    """null, or a stop rule on training returns: the weights at the stop are kept instead of the best evaluated ones."""
    outputs: str
    """Folder of all runs."""
    data: str | None = None  # absent in runs of earlier versions
    """Data set of an offline agent."""
    skip_bad: bool = False
    """Go on without its bad shards."""
    keep: str = "best"
    """Each seed's weights of its `best` evaluation, or its `newest`."""

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)
        choice(self.keep, ("best", "newest"), "keep")
        if self.checkpoint_seconds is not None:
            at_least(self.checkpoint_seconds, 0, "checkpoint_seconds")
        for key in (
            "steps",
            "num_envs",
            "eval_every",
            "eval_episodes",
            "final_episodes",
            "checkpoint_every",
        ):
            at_least(getattr(self, key), 1, key)


def check(composed: DictConfig) -> None:
    """Raise what is wrong with a training's config, as far as one seed of it tells."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    settings()

    from rlx.experiment import validated
    from rlx.training.loop import Training

    one = validated(composed)
    one.seeds = parse_seeds(config.seeds)[:1]
    Training(build(Config, one, ""), run_name(config))


@command("train", check)
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation, for sweepers."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)
    name = run_name(config)
    report.start(train=name, settings=settings())

    from rlx.experiment import validated
    from rlx.training.loop import Training

    composed = validated(composed)
    training = Training(build(Config, composed, ""), name)
    require_room(config.outputs, training.disk_size())
    return training.run(Run.create(config.outputs, "train", name, composed))


def run_name(config: Config) -> str:
    """Agent and env, as in "dqn-cartpole"; of Gymnasium's and Atari's envs the id or the game."""
    env = chosen("env")
    if env in ("gym", "atari"):
        env = str(config.env.get("id", config.env.get("game"))).replace("/", "-")
    return f"{chosen('agent')}-{env}"


def settings() -> str:
    """Which tuned settings the run has; ConfigError where some were asked for that do not exist."""
    wanted, files = chosen("tuned"), group_files("tuned")
    if wanted in files:
        own = wanted == f"{chosen('agent')}-{chosen('env')}"
        return f"tuned/{wanted}" + ("" if own else ", which was tuned for another agent or env")
    if wanted not in (f"{chosen('agent')}-{chosen('env')}", "none"):
        raise ConfigError(f"tuned={wanted}: no such settings.{nearest(wanted, files)}")
    if wanted == "none":
        return f"defaults of {chosen('agent')} (tuned=none)"
    return f"defaults of {chosen('agent')}, which nobody tuned for {chosen('env')}"
