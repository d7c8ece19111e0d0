"""What a training is: the keys of conf/train.yaml."""

from dataclasses import dataclass
from typing import Any

from rlx.config import Count, NonNegative, choice, parse_seeds


@dataclass(frozen=True)
class Config:
    """The keys of train.yaml."""

    agent: Any
    env: Any
    device: Any
    protocol: str | None
    seeds: Any
    """A count, a range or a list: trained together, each as if alone."""
    steps: Count
    """Environment steps per seed; of an offline agent, minibatches."""
    num_envs: Count
    """Env copies per seed of an agent that acts."""
    eval_every: Count
    """Environment steps between two greedy evaluations."""
    eval_episodes: Count
    """Episodes of each, by which the best weights are kept."""
    final_episodes: Count
    """Other episodes, on which the kept weights are reported."""
    eval_env: Any
    """Keys of env that differ in both, and when the run is attacked."""
    checkpoint_every: Count
    """Environment steps between two checkpoints."""
    checkpoint_seconds: NonNegative | None
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
