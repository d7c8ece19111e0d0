"""Train an agent on an env, many seeds at once, and keep each seed's best weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.config import at_least, build, check_protocol, choice, chosen, command, parse_seeds
from rlx.files import require_room
from rlx.run import Run


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
    copies: int
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
        for key in ("steps", "copies", "eval_every", "eval_episodes", "final_episodes", "checkpoint_every"):
            at_least(getattr(self, key), 1, key)


@command("train")
def main(composed: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation, for sweepers."""
    config = build(Config, composed, "")
    check_protocol(config.protocol)

    from rlx.training import Training

    env = chosen("env")
    if env in ("gym", "atari"):
        env = str(config.env.get("id", config.env.get("game"))).replace("/", "-")
    name = f"{chosen('agent')}-{env}"
    if config.data and not config.data.startswith("minari:"):
        composed.data = str(Path(config.data).absolute())  # a run may be resumed from elsewhere
    training = Training(config, name)
    require_room(config.outputs, training.disk_size())
    return training.run(Run.create(config.outputs, "train", name, composed))
