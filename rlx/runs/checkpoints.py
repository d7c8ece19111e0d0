"""The checkpoints in a run's directory, and the parts of replays that they need.

checkpoints/000500000/     one checkpoint, by its step
    agent.safetensors      the policy: its state_dict, [S, …]
    training.safetensors   all else but replays: agent. env. loop. carry. log. kept. stop.
                           Only the newest two checkpoints have it.
    state.json             step, evaluated, wall_s; seeds: those still learning; lasting: false
                           where it is kept only while among the newest two; sha256: of each file
                           beside it; replay: sha256 of each part of the replays
checkpoints/best/          agent.safetensors: each seed at its best greedy evaluation (or the
                           newest); state.json says which step
replay/<path>/<step>.safetensors   a part of the replay at `path` in the agent: the rows stored
                                   since the part before
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlx.errors import ConfigError, RunError
from rlx.runs.files import (
    hidden_sibling,
    inside,
    load_tensors,
    make_aside,
    put_back,
    replace_folder,
    save_tensors,
    sha256,
    sync,
    sync_folder,
    write_json,
)

if TYPE_CHECKING:
    from torch import Tensor


class Newest(NamedTuple):
    """All that going on needs, but for the parts of the replay."""

    counters: dict[str, Any]
    """The content of state.json."""
    agent: "dict[str, Tensor]"
    """The state_dict of the policy."""
    training: "dict[str, Tensor]"
    """The state of all that is neither policy nor replay."""
    warnings: list[str]
    """A sentence about each newer checkpoint that is damaged."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, by name: a step ("000500000") or "best"."""

    run: Path
    """Directory of the run."""

    @property
    def _top(self) -> Path:
        """The folder of all checkpoints."""
        return self.run / "checkpoints"

    def steps(self) -> list[str]:
        """Names of all checkpoints of a step, in the order of the steps."""
        folders = inside(self.run, self._top).glob("[0-9]*")
        names = [folder.name for folder in folders if folder.name.isdigit()]
        return sorted(names, key=int)

    def resumable(self) -> list[str]:
        """Names of the checkpoints that hold all that going on needs, in the order of steps."""
        return [name for name in self.steps() if self._training_file(name).is_file()]

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint `name`."""
        return (self._top / name / "state.json").is_file()

    def folder(self, name: str) -> Path:
        """Directory of the checkpoint `name`; ConfigError where there is none.

        `name`: a step, with or without leading zeros, "best", or "last", which is the highest step.
        """
        steps = self.steps()
        if name == "last" and steps:
            return inside(self.run, self._top / steps[-1])
        names = [*steps, "best"] if (self._top / "best").is_dir() else steps
        for known in names:
            is_step = name.isdigit() and known.isdigit() and int(name) == int(known)
            if name == known or is_step:
                return inside(self.run, self._top / known)
        have = f" It has: {', '.join(names)}." if names else ""
        raise ConfigError(f"{self.run}: no checkpoint '{name}'.{have}")

    def counters(self, name: str) -> dict[str, Any]:
        """The content of state.json of checkpoint `name`; ConfigError where it is damaged."""
        file = self.folder(name) / "state.json"
        try:
            state = dict(json.loads(file.read_text()))
            _check_state(state)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: unreadable, perhaps truncated ({error}).") from None
        return {"replay": {}, "sha256": {}} | state

    def load(self, name: str, file: str = "agent") -> "dict[str, Tensor]":
        """The tensors of one file of checkpoint `name`.

        ConfigError where it is missing, truncated or not what was written.
        """
        path = self.folder(name) / f"{file}.safetensors"
        checksum = self.counters(name)["sha256"].get(path.name)
        return load_tensors(path, checksum)

    def parts(self, sums: Mapping[str, str]) -> "Iterator[tuple[str, dict[str, Tensor]]]":
        """(name, tensors) of each part of a replay; one at a time is in memory.

        `sums`: name → checksum. ConfigError where a part is missing or not what was written.
        """
        for name, checksum in sums.items():
            yield name, load_tensors(self._part(name), checksum)

    def newest(self) -> Newest:
        """The newest checkpoint that is whole; ConfigError where none is."""
        warnings: list[str] = []
        for name in reversed(self.resumable()):
            try:
                counters = self.counters(name)
                self._check_parts(counters)
                return Newest(counters, self.load(name), self.load(name, "training"), warnings)
            except ConfigError as error:
                warnings.append(f"{error} Using the checkpoint before it.")
        reasons = [f"{self.run}: no whole checkpoint to resume from.", *warnings]
        raise ConfigError(" ".join(reasons))

    def is_whole(self, name: str) -> bool:
        """Whether checkpoint `name` holds, undamaged, all that going on needs."""
        try:
            self._check_parts(self.counters(name))
            self.load(name)
            self.load(name, "training")
        except (ConfigError, KeyError):
            return False
        return True

    def _check_parts(self, counters: Mapping[str, Any]) -> None:
        """ConfigError where a part of the replay that a checkpoint needs is missing or damaged."""
        for _ in self.parts(counters["replay"]):
            pass

    def save(
        self,
        name: str,
        state: Mapping[str, Any],
        agent: "dict[str, Tensor]",
        training: "dict[str, Tensor] | None" = None,
        *,
        parts: "Mapping[str, dict[str, Tensor]] | None" = None,
        former_parts: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Write checkpoint `name`, whole or not at all; a checkpoint of that name is replaced.

        `training` and the replay are needed only to go on: they are large, and only those of the
        newest two checkpoints stay on disk. `parts`: the new parts of the replay, by name;
        `former_parts`: the checksums of the parts on disk that it needs as well. Returns the
        checksums of all its parts. RunError where there is no room: the former checkpoint of that
        name stands.
        """
        from safetensors import SafetensorError

        final = self._top / name
        files = {"agent": agent}
        if training is not None:
            files["training"] = training
        try:
            sums = dict(former_parts or {}) | self._save_parts(parts or {})
            metrics = self.run / "metrics.jsonl"
            if metrics.exists():
                sync(metrics)  # a checkpoint is not newer than its metrics
            partial = make_aside(final)
            for file_name, tensors in files.items():
                save_tensors(tensors, partial / f"{file_name}.safetensors")
            checksums = {file.name: sha256(file) for file in sorted(partial.iterdir())}
            write_json(partial / "state.json", {**state, "sha256": checksums, "replay": sums})
            sync_folder(partial)
            replace_folder(partial, final)
        except (OSError, SafetensorError) as error:
            self._clear_partial(final)
            raise RunError(f"{final}: cannot be saved ({error})") from None
        self._prune()
        return sums

    def _save_parts(self, parts: "Mapping[str, dict[str, Tensor]]") -> dict[str, str]:
        """Write new parts of the replay, each whole or not at all; returns their checksums."""
        sums = {}
        for name, rows in parts.items():
            file = self._part(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = hidden_sibling(file, "partial")
            save_tensors(rows, partial)
            sums[name] = sha256(partial)
            sync(partial)
            partial.rename(file)
            sync(file.parent)
        return sums

    def _clear_partial(self, final: Path) -> None:
        """Remove what could not be written; the former checkpoint gets its name again."""
        shutil.rmtree(hidden_sibling(final, "partial"), ignore_errors=True)
        for partial in self.run.glob("replay/*/.*.partial"):
            partial.unlink()
        put_back(final)

    def _prune(self) -> None:
        """Delete what only going on needs from all but the newest two checkpoints.

        Of these, checkpoints that do not last are deleted as a whole. So is every part of a replay
        that neither of the newest two needs.
        """
        names = self.resumable()
        older, newest = names[:-2], names[-2:]
        for name in older:
            if _is_lasting(self._top / name):
                self._training_file(name).unlink()
            else:
                shutil.rmtree(self._top / name)
        needed: set[Path] = set()
        for name in newest:
            try:
                needed |= {self._part(part) for part in self.counters(name)["replay"]}
            except ConfigError:  # damaged; it will be replaced
                continue
        for file in set(self.run.glob("replay/*/*.safetensors")) - needed:
            file.unlink()

    def delete(self, name: str) -> None:
        """Remove a checkpoint from disk."""
        shutil.rmtree(self._top / name)

    def misplaced(self) -> list[Path]:
        """The paths of checkpoints that a crash left between two renames, under hidden names."""
        formers = self._top.glob(".*.former")
        names = [former.name.removeprefix(".").removesuffix(".former") for former in formers]
        return [self._top / name for name in names if not (self._top / name).exists()]

    def _training_file(self, name: str) -> Path:
        """The file of a checkpoint that only going on needs."""
        return self._top / name / "training.safetensors"

    def _part(self, name: str) -> Path:
        """The file of a replay's part; ConfigError where the name leads out of the run."""
        return inside(self.run, self.run / "replay" / f"{name}.safetensors")


def _is_lasting(checkpoint: Path) -> bool:
    """Whether the policy of a checkpoint is kept when it is no longer among the newest two."""
    try:
        return json.loads((checkpoint / "state.json").read_text()).get("lasting", True)
    except (OSError, ValueError):
        return True


def _check_state(state: Mapping[str, Any]) -> None:
    """ValueError where state.json does not hold whole numbers, and checksums by name."""
    seeds = state.get("seeds")
    if not isinstance(seeds, list) or not all(map(_is_counter, seeds)):
        raise ValueError("'seeds' is no list of different seeds")
    # The members of a vector sweep may have seeds in common.
    rows = state.get("rows", seeds)
    if not isinstance(rows, list) or not all(map(_is_counter, rows)):
        raise ValueError("'rows' is no list of different rows")
    if len(rows) != len(seeds) or len(set(rows)) < len(rows):
        raise ValueError("'seeds' is no list of different seeds")
    for name in ("step", "evaluated"):
        value = state.get(name, 0)
        counts = value if isinstance(value, list) else [value]
        if not all(map(_is_counter, counts)):
            raise ValueError(f"'{name}' is {value}")
    if not isinstance(state.get("wall_s", 0.0), (int, float)):
        raise ValueError("'wall_s' is no number")
    for name in ("sha256", "replay"):
        if not isinstance(state.get(name, {}), dict):
            raise ValueError(f"'{name}' is {state[name]}")


def _is_counter(value: object) -> bool:
    """Whether `value` is a whole number that can count steps."""
    return type(value) is int and 0 <= value < 1 << 62
