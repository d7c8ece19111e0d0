"""A run: one directory on disk. The only code that knows its file names.

config.yaml                the resolved config; what evaluate and attack load
meta.json                  format version, command, status, rlx's version and commit, packages, machine, started, wall_s
metrics.jsonl              one row per (step, seed): step, seed, return/mean, return/train, length/mean, loss/…, time/steps_per_s
checkpoints/000500000/     agent.safetensors   the policy: its state_dict, [S, …]
                           training.safetensors   the newest two: agent. env. loop. carry. log. kept. stop. (all else but replays)
                           state.json   step, evaluated, wall_s, seeds (those still learning), lasting (false: kept while among
                               the newest two), sha256 of each file beside it, replay: sha256 of each part
checkpoints/best/          agent.safetensors, each seed at its best greedy evaluation (or the newest); state.json says which step
replay/<path>/<step>.safetensors   a part of the replay at `path` in the agent: the rows stored since the part before
summary.json               the result
returns.npz                the returns it is of: [S, episodes], of an attack [S, E, episodes] per mode
"""

import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

import rlx
from rlx.config import ConfigError, RunError
from rlx.files import load_tensors, nearest_path, plain, save_tensors, sha256, sync, write, write_json

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = 3
"""Version of the layout above; written to meta.json."""


class Run:
    """An existing run directory."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, root: str, command: str, name: str, config: DictConfig | Mapping[str, Any]) -> "Run":
        """A new directory `root`/`command`/`name`/<time stamp>; ConfigError where it cannot be written."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        path = Path(root) / command / name / stamp
        try:
            path.mkdir(parents=True)
            OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), path / "config.yaml")  # type: ignore[arg-type]
        except OSError as error:
            raise ConfigError(f"outputs={root}: cannot write {path} ({error.strerror}).") from None
        run = cls(path)
        run.write_meta(status="running", started=datetime.datetime.now().isoformat(timespec="seconds"))
        return run

    @classmethod
    def find(cls, path: str | None, root: str, command: str = "train", finished: bool = True) -> "Run":
        """The run at `path`, or the newest (finished) one below it; None means below `root`/`command`. Raises ConfigError."""
        top = Path(path) if path is not None else Path(root) / command
        _recover(top)
        if (top / "config.yaml").is_file() and (top / "meta.json").is_file():
            run = cls(top)
            if run.meta()["command"] != command:
                raise ConfigError(f"run={path}: made by rlx {run.meta()['command']}; this takes runs of rlx {command}.")
            return run
        if not top.is_dir():
            if path is None:
                raise ConfigError(f"no run yet below {top}; start one with: rlx {command}")
            raise ConfigError(f"run={path}: no such run directory.{nearest_path(top)}")
        metas = [file for file in top.rglob("meta.json") if not _inside(file.relative_to(top).parts)]
        metas.sort(key=lambda file: file.parent.name)
        for meta in reversed(metas):
            run = cls(meta.parent)
            if run.meta().get("command") == command and (not finished or run.meta().get("status") == "completed"):
                return run
        raise ConfigError(f"run={top}: neither a run nor a folder with a {'finished ' * finished}{command} run in it.")

    @classmethod
    def command_of(cls, path: str) -> str | None:
        """Which command made the run at `path`, or the newest run below it; None where there is no run."""
        metas = sorted(Path(path).rglob("meta.json"), key=lambda file: file.parent.name)
        return cls(metas[-1].parent).meta()["command"] if metas else None

    @classmethod
    def find_all(cls, paths: object, root: str, command: str = "train", finished: bool = True) -> "list[Run]":
        """One run for each of `paths` (null, one path or a list of them), as `find`."""
        if paths is None or isinstance(paths, str):
            return [cls.find(paths, root, command, finished)]
        return [cls.find(str(path), root, command, finished) for path in paths]  # type: ignore[attr-defined]

    def growing(self) -> "list[Run]":
        """Runs inside this one of seeds that shall be added to it."""
        return [Run(meta.parent) for meta in sorted(self.path.glob("growing/train/*/*/meta.json"))]

    def delete(self) -> None:
        """Remove it from disk."""
        shutil.rmtree(self.path)

    def replaces(self, other: "Run") -> None:
        """Take the place of `other` on disk; `other` is deleted. What a crash leaves of either is put back by `recover`."""
        beside, former = (other.path.with_name(f".{other.path.name}.{end}") for end in ("partial", "former"))
        for left in (beside, former):  # by a crash
            shutil.rmtree(left, ignore_errors=True)
        self.path.rename(beside)
        other.path.rename(former)
        beside.rename(other.path)
        self.path = other.path
        shutil.rmtree(former)

    @property
    def config(self) -> DictConfig:
        """As resolved when the run was made."""
        try:
            loaded = OmegaConf.load(self.path / "config.yaml")
        except (OSError, YAMLError) as error:
            raise ConfigError(f"{self.path / 'config.yaml'}: cannot be read ({str(error).splitlines()[0]}).") from None
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"{self.path / 'config.yaml'}: is no config.")
        return loaded

    def meta(self) -> dict[str, Any]:
        """meta.json; ConfigError where it is broken or of another format version."""
        try:
            meta = json.loads((self.path / "meta.json").read_text())
        except ValueError as error:
            raise ConfigError(f"{self.path / 'meta.json'}: not valid JSON ({error}).") from None
        if meta.get("format") != FORMAT:
            raise ConfigError(f"{self.path}: format {meta.get('format')}; this rlx ({rlx.__version__}) reads format {FORMAT}.")
        return meta

    def write_meta(self, **facts: Any) -> None:
        """Add `facts` to meta.json."""
        file = self.path / "meta.json"
        meta = json.loads(file.read_text()) if file.exists() else {"format": FORMAT, "command": self.path.parent.parent.name} | _versions()
        write_json(file, meta | facts)

    def write_returns(self, **returns: Any) -> None:
        """returns.npz: of every episode that the result is of."""
        import numpy as np

        np.savez_compressed(self.path / "returns.npz", **returns)

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(plain(row)) + "\n" for row in rows)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows logged so far; a crash may have cut the last line."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def reopen(self, config: DictConfig, step: int, evaluated: int) -> None:
        """Take a run up again at `step` with a (changed) config: forgets later checkpoints, which are damaged, and metrics beyond
        the step `evaluated`."""
        for name in self.steps():
            if int(name) > step:
                shutil.rmtree(self.path / "checkpoints" / name)
        rows = [row for row in self.metrics() if row["step"] <= evaluated]
        write(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write(self.path / "config.yaml", OmegaConf.to_yaml(config))
        self.write_meta(status="running")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a process writes to the run; ConfigError where another holds it."""
        import fcntl

        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(f"run={self.path}: another process is training it.") from None
        finally:
            os.close(folder)

    def counters(self, name: str) -> dict[str, Any]:
        """state.json of checkpoint `name`."""
        file = self.checkpoint(name) / "state.json"
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: unreadable, perhaps truncated ({error}).") from None

    def summary(self) -> dict[str, Any]:
        """summary.json of a finished run."""
        return json.loads((self.path / "summary.json").read_text())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json."""
        write_json(self.path / "summary.json", summary)

    def save(
        self,
        name: str,
        state: Mapping[str, Any],
        agent: "dict[str, Tensor]",
        training: "dict[str, Tensor] | None" = None,
        parts: "Mapping[str, dict[str, Tensor]] | None" = None,
        former_parts: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Write checkpoint `name`, aside first, so that it is whole or absent; replaces one of the same name.

        `training` and the replay's `parts` (the new ones, and `former_parts` that it also needs: name → checksum) are what
        only going on needs: large, and only those of the newest two checkpoints are left on disk. Returns the checksums of all
        its parts. RunError where there is no room; the former checkpoint stands.
        """
        from safetensors import SafetensorError

        final = self.path / "checkpoints" / name
        aside, former = final.with_name(f".{name}.partial"), final.with_name(f".{name}.former")
        shutil.rmtree(aside, ignore_errors=True)
        sums = dict(former_parts or {})
        try:
            for part, rows in (parts or {}).items():
                file = self._part(part)
                file.parent.mkdir(parents=True, exist_ok=True)
                beside = file.with_name(f".{file.name}.partial")
                save_tensors(rows, beside)
                sums[part] = sha256(beside)
                sync(beside)
                beside.rename(file)
                sync(file.parent)
            if (self.path / "metrics.jsonl").exists():
                sync(self.path / "metrics.jsonl")  # a checkpoint is not newer than its metrics
            aside.mkdir(parents=True)
            files = {"agent": agent} | ({} if training is None else {"training": training})
            for file_name, tensors in files.items():
                save_tensors(tensors, aside / f"{file_name}.safetensors")
            own = {file.name: sha256(file) for file in sorted(aside.iterdir())}
            write_json(aside / "state.json", {**state, "sha256": own, "replay": sums})
            for path in (*aside.iterdir(), aside):
                sync(path)
            if final.exists():
                shutil.rmtree(former, ignore_errors=True)  # of a crash
                final.rename(former)
            aside.rename(final)
            sync(final.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            for beside in self.path.glob("replay/*/.*.partial"):
                beside.unlink()
            if former.exists() and not final.exists():
                former.rename(final)
            raise RunError(f"{final}: cannot be saved ({error}); the checkpoint before it stands.") from None
        shutil.rmtree(former, ignore_errors=True)
        self._prune()
        return sums

    def _prune(self) -> None:
        """Leave of all but the newest two checkpoints the policy only, if they last, and no part of a replay that no checkpoint needs."""
        names = sorted(p.parent.name for p in self.path.glob("checkpoints/[0-9]*/training.safetensors"))
        for name in names[:-2]:
            folder = self.path / "checkpoints" / name
            if _lasting(folder):
                (folder / "training.safetensors").unlink()
            else:
                shutil.rmtree(folder)
        needed = set()
        for name in names[-2:]:
            try:
                needed |= {self._part(part) for part in self.counters(name)["replay"]}
            except ConfigError:  # damaged; it will be replaced
                continue
        for file in set(self.path.glob("replay/*/*.safetensors")) - needed:
            file.unlink()

    def _part(self, name: str) -> Path:
        return self.path / "replay" / f"{name}.safetensors"

    def steps(self) -> list[str]:
        """Names of its checkpoints by step."""
        return sorted(p.name for p in (self.path / "checkpoints").glob("[0-9]*"))

    def checkpoint(self, name: str) -> Path:
        """Directory of checkpoint `name` (a step, "best", or "last": the highest step); ConfigError where there is none."""
        folder = self.path / "checkpoints"
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        steps = [n for n in names if n.isdigit()]
        wanted = steps[-1] if name == "last" and steps else name.zfill(9) if name.isdigit() else name
        if wanted not in names:
            have = f" It has: {', '.join(names)}." if names else ""
            raise ConfigError(f"{self.path}: no checkpoint '{name}'.{have}")
        return folder / wanted

    def load(self, name: str, file: str = "agent") -> "dict[str, Tensor]":
        """Tensors of one file of checkpoint `name`; ConfigError where it is missing, truncated or not what was written."""
        path = self.checkpoint(name) / f"{file}.safetensors"
        return load_tensors(path, self.counters(name).get("sha256", {}).get(path.name))

    def load_newest(self) -> "tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], list[str]]":
        """(state.json, agent, training, warnings) of the newest checkpoint that is whole; a warning for each that is not."""
        warnings: list[str] = []
        for former in self.path.glob("checkpoints/.*.former"):  # of a crash between two renames
            _recover(former.with_name(former.name[1:].removesuffix(".former")))
        names = sorted((p.parent.name for p in self.path.glob("checkpoints/[0-9]*/training.safetensors")), reverse=True)
        for name in names:
            try:
                counters = self.counters(name)
                for _ in self.parts(counters["replay"]):
                    pass
                return counters, self.load(name), self.load(name, "training"), warnings
            except ConfigError as error:
                warnings.append(f"{error} Using the checkpoint before it.")
        raise ConfigError(" ".join([f"{self.path}: no whole checkpoint to resume from.", *warnings]))

    def parts(self, sums: Mapping[str, str]) -> "Iterator[tuple[str, dict[str, Tensor]]]":
        """(name, tensors) of each part of a replay, by its checksum; one in memory at a time. ConfigError as `load`."""
        for name, checksum in sums.items():
            yield name, load_tensors(self._part(name), checksum)


def _lasting(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / "state.json").read_text()).get("lasting", True)
    except (OSError, ValueError):
        return True


def _recover(path: Path) -> None:
    """Put a directory back that a crash left between two renames."""
    for end in ("partial", "former"):
        left = path.with_name(f".{path.name}.{end}") if path.name else path
        if not path.exists() and left.exists() and (left / ("meta.json" if end == "partial" else "")).exists():
            left.rename(path)


def _inside(parts: tuple[str, ...]) -> bool:
    """Whether a run lies in another that grows, or is the leftover of a crash."""
    return any(part == "growing" or part.startswith(".") for part in parts)


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("torch", "gymnasium", "numpy", "hydra-core")
    return {
        "rlx": rlx.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "packages": {name: version(name) for name in names},
    }


def _commit() -> str | None:
    """The commit of rlx's own source, "+" appended where it was changed; None outside a checkout."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "rlx", "conf") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
