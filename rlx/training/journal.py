"""How replays are kept on disk: every checkpoint adds a part with the rows stored since the last one, and old parts expire."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rlx.replay import Replay


@dataclass(frozen=True)
class Part:
    """One file: rows of one replay."""

    replay: str
    since: Tensor
    """Rows stored in each ring before it, int64 [S, N], on the CPU …"""
    until: Tensor
    """… and including it."""


class Journal:
    """The parts that hold all rows of an agent's replays, name → Part, the oldest first.

    A checkpoint writes what is new, not the replay: the cost is that of the steps between two checkpoints, and the disk
    holds little more than the replays do.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}

    def due(self, agent: nn.Module, step: int) -> dict[str, dict[str, Tensor]]:
        """New parts, name → tensors; from now on they belong to the journal, and parts that hold no row still in use do not."""
        rows = {}
        for path, replay in replays(agent).items():
            newest = [part.until for part in self.parts.values() if part.replay == path]
            tensors = replay.rows(newest[-1].to(replay.written.device) if newest else None)
            if bool((tensors["until"] > tensors["since"]).any()):
                rows[f"{path}/{step:09d}"] = tensors
                self.add(f"{path}/{step:09d}", tensors)
            oldest = (replay.written - replay.size).cpu()
            for name, part in list(self.parts.items()):
                if part.replay == path and not bool(
                    ((part.until > part.since) & (part.until > oldest)).any()
                ):
                    del self.parts[name]
        return rows

    def add(self, name: str, rows: Mapping[str, Tensor]) -> None:
        """Note a part that is on disk."""
        self.parts[name] = Part(name.rpartition("/")[0], rows["since"].cpu(), rows["until"].cpu())


def replays(agent: nn.Module) -> dict[str, Replay]:
    """Every replay of an agent by its path."""
    return {path: module for path, module in agent.named_modules() if isinstance(module, Replay)}


def ring_names(agent: nn.Module) -> set[str]:
    """Names in the agent's state_dict that the journal holds: rings and their counts."""
    return {
        f"{path}.{name}" for path, replay in replays(agent).items() for name in replay.state_dict()
    }


def size(agent: nn.Module) -> int:
    """Bytes of the replays."""
    return sum(
        tensor.nbytes
        for replay in replays(agent).values()
        for tensor in replay.state_dict().values()
    )


def disk_size(agent: nn.Module, between: int, steps: int) -> float:
    """Bytes of parts on disk at most, with `between` environment steps between checkpoints of a run of `steps`."""
    total = 0.0
    for replay in replays(agent).values():
        size = sum(tensor.nbytes for tensor in replay.state_dict().values())
        # The rows of the newest two checkpoints, and those being written.
        total += size * min(1, steps / replay.capacity) * min(3, 1 + 3 * between / replay.capacity)
    return total


def restore(agent: nn.Module, name: str, rows: Mapping[str, Tensor]) -> None:
    """Put a part's rows back."""
    device = next(agent.parameters()).device
    replays(agent)[name.rpartition("/")[0]].restore(
        {key: value.to(device) for key, value in rows.items()}
    )
