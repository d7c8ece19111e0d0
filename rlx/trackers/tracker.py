"""The contract of trackers: where the scalars, figures and results of a run are sent to.

A subclass is a dataclass, whose fields are the keys of its file in conf/tracker. Whatever a method
raises, the run goes on without that tracker. A method must not print to stdout, where the last line
is the run's directory.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run."""

    name: str
    """What no other run is called: the same when the run is taken up again."""
    command: str
    """The command that made it: "train" or "attack"."""
    group: str
    """Agent and env, as in "dqn-cartpole"."""
    path: Path
    """The run's directory, absolute."""
    outputs: Path
    """The folder of all runs, absolute."""
    config: Mapping[str, Any]
    """The run's config, resolved: keys with values, nested."""


@dataclass
class Tracker(ABC):
    """A service, or files, where runs can be looked at."""

    package: ClassVar[str] = ""
    """The module that it imports; the extra of rlx that installs it has the tracker's name."""

    @abstractmethod
    def begin(self, run: Tracked) -> str:
        """Begin with a run, or take it up again; returns in words where it can be looked at."""

    def last_step(self, name: str) -> int:
        """The last step of which the scalar `name` is there already; -1: none.

        A run that was killed and taken up again has some. What is there is not sent again.
        """
        return -1

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of a step, all finite; steps come in order.

        Those of a seed are called as in "seed-3/return/mean", interquartile means over the seeds
        as in "iqm/return/mean".
        """

    @abstractmethod
    def figure(self, name: str, file: Path) -> None:
        """Take a figure, a PNG, as in "learning"."""

    @abstractmethod
    def result(
        self, numbers: Mapping[str, float], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Take the result, when the run is complete: numbers by which runs are compared; a table.

        A run that goes on for more steps gives another one in the end.
        """

    @abstractmethod
    def end(self, status: str) -> None:
        """Write all that is left; `status`: "completed", "interrupted" or "failed"."""
