"""How replays are kept on disk, in parts.

Every checkpoint adds a part with the rows stored since the last checkpoint, and old parts expire.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rlx.replay import Replay


@dataclass(frozen=True)
class Part:
    """A file with rows of a replay. Its counts are int64 [S, N], on the CPU."""

    replay: str
    """Path of the replay within the agent."""
    since: Tensor
    """int64 [S, N]: rows stored in each ring before this part."""
    until: Tensor
    """int64 [S, N]: rows stored in each ring up to the end of this part."""


class Journal:
    """The parts that hold all rows of an agent's replays, name → Part, the oldest first.

    A checkpoint writes what is new, not the replay: the cost is that of the steps between two
    checkpoints, and the disk holds little more than the replays do.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}

    def take_new_parts(self, agent: nn.Module, step: int) -> dict[str, dict[str, Tensor]]:
        """Add the rows stored since the last call to the journal; returns them, name → tensors.

        The caller writes them to the disk, at `step`. Parts of which no row is in use any more
        leave the journal.
        """
        new_parts = {}
        for path, replay in replays(agent).items():
            written = [part.until for part in self.parts.values() if part.replay == path]
            since = written[-1].to(replay.written.device) if written else None
            rows = replay.rows(since)
            if bool((rows["until"] > rows["since"]).any()):
                name = f"{path}/{step:09d}"
                new_parts[name] = rows
                self.add(name, rows)
            self._expire(path, replay)
        return new_parts

    def add(self, name: str, rows: Mapping[str, Tensor]) -> None:
        """Note a part that is on disk."""
        self.parts[name] = Part(name.rpartition("/")[0], rows["since"].cpu(), rows["until"].cpu())

    def _expire(self, path: str, replay: Replay) -> None:
        """Forget the parts of a replay that hold none of its rows any more."""
        oldest = (replay.written - replay.size).cpu()
        for name, part in list(self.parts.items()):
            if part.replay != path:
                continue
            in_use = (part.until > part.since) & (part.until > oldest)
            if not bool(in_use.any()):
                del self.parts[name]


def replays(agent: nn.Module) -> dict[str, Replay]:
    """Every replay of an agent by its path."""
    return {path: module for path, module in agent.named_modules() if isinstance(module, Replay)}


def ring_names(agent: nn.Module) -> set[str]:
    """Names in the agent's state_dict that the journal holds: rings and their counts."""
    names = set()
    for path, replay in replays(agent).items():
        names |= {f"{path}.{name}" for name in replay.state_dict()}
    return names


def size(agent: nn.Module) -> int:
    """Bytes that all replays of the agent take in memory."""
    return sum(_bytes(replay) for replay in replays(agent).values())


def disk_size(agent: nn.Module, between: int, steps: int) -> float:
    """Bytes that the parts of the agent's replays take on disk at most.

    `between`: environment steps between two checkpoints of a run of `steps`.
    """
    total = 0.0
    for replay in replays(agent).values():
        filled = min(1, steps / replay.capacity)
        # The rows of the newest two checkpoints, and those being written.
        held = min(3, 1 + 3 * between / replay.capacity)
        total += _bytes(replay) * filled * held
    return total


def restore(agent: nn.Module, name: str, rows: Mapping[str, Tensor]) -> None:
    """Put the rows of the part `name` back into its replay."""
    device = next(agent.parameters()).device
    path = name.rpartition("/")[0]
    replays(agent)[path].restore({key: value.to(device) for key, value in rows.items()})


def _bytes(replay: Replay) -> int:
    """Bytes that a replay takes in memory."""
    return sum(tensor.nbytes for tensor in replay.state_dict().values())
