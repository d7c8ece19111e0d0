"""A run: one directory on disk. The only code that knows its file names.

config.yaml                the resolved config; what evaluate and attack load
meta.json                  format version, command, status (running, completed, interrupted, failed), rlx's version and
                           commit, packages, machine, started, wall_s, signature (rlx/runs/trust.py) of config.yaml
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import rlx
from rlx.config import rename_keys
from rlx.errors import ConfigError, RunError
from rlx.runs import trust
from rlx.runs.files import (
    load_tensors,
    nearest_path,
    numbers,
    plain,
    save_tensors,
    sha256,
    sync,
    write,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


FORMAT = 3
"""Version of the layout above; written to meta.json."""


class Run:
    """An existing run directory. `trusted`: what its config names may be imported, whoever made it."""

    def __init__(self, path: Path, trusted: bool = False):
        self.path, self.trusted = path, trusted
        self._locked = False

    @classmethod
    def create(
        cls, root: str, command: str, name: str, config: DictConfig | Mapping[str, Any]
    ) -> "Run":
        """A new directory `root`/`command`/`name`/<time stamp>; ConfigError where it cannot be written."""
        if not str(root).strip():
            raise ConfigError(f"outputs={root}: expected a folder.")
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        run = cls(Path(root) / command / name / stamp)
        try:
            run.path.mkdir(parents=True)
            run.write_config(config)
        except OSError as error:
            raise ConfigError(
                f"outputs={root}: cannot write {run.path} ({error.strerror})."
            ) from None
        run.write_meta(
            status="running", started=datetime.datetime.now().isoformat(timespec="seconds")
        )
        return run

    @classmethod
    def find(
        cls,
        path: str | None,
        root: str,
        command: str = "train",
        finished: bool = True,
        trusted: bool = False,
    ) -> "Run":
        """The run at `path`, or the newest (finished) one below it; None means below `root`/`command`. Raises ConfigError."""
        top = Path(path) if path is not None else Path(root) / command
        _recover(top)
        if (top / "config.yaml").is_file() and (top / "meta.json").is_file():
            run = cls(top, trusted)
            run.check_links()
            if run.meta()["command"] != command:
                raise ConfigError(
                    f"run={path}: made by rlx {run.meta()['command']}; this takes runs of rlx {command}."
                )
            return run
        if not top.is_dir():
            if path is None:
                raise ConfigError(f"no run yet below {top}; start one with: rlx {command}")
            raise ConfigError(f"run={path}: no such run directory.{nearest_path(top)}")
        broken = ""
        for folder in _newest_first(top):
            run = cls(folder, trusted)
            try:
                meta = run.meta()
            except ConfigError as error:  # of another run than the one that is looked for, perhaps
                broken = f" {error}"
                continue
            if meta["command"] != command or (finished and meta["status"] != "completed"):
                continue
            run.check_links()
            if (
                finished or run._resumable()
            ):  # one that was stopped before its first checkpoint is none to go on with
                return run
        raise ConfigError(
            f"run={top}: neither a run nor a folder with a {'finished ' * finished}{command} run in it.{broken}"
        )

    @classmethod
    def command_of(cls, path: str) -> str | None:
        """Which command made the run at `path`, or the newest run below it; None where there is no run."""
        for folder in _newest_first(Path(path)):
            with suppress(ConfigError):
                return cls(folder).meta()["command"]
        return None

    @classmethod
    def find_all(
        cls,
        paths: object,
        root: str,
        command: str = "train",
        finished: bool = True,
        trusted: bool = False,
    ) -> "list[Run]":
        """One run for each of `paths` (null, one path or a list of them), as `find`."""
        each = [paths] if paths is None else named(paths)
        return [cls.find(path, root, command, finished, trusted) for path in each]  # type: ignore[arg-type]

    def check_links(self) -> None:
        """ConfigError where something in the run is a link that leads out of it: neither read nor written."""
        for path in self.path.rglob("*"):
            if path.is_symlink():
                self._own(path)

    def growing(self) -> "list[Run]":
        """Runs inside this one of seeds that shall be added to it."""
        self._own(self.path / "growing")
        metas = sorted(self.path.glob("growing/train/*/*/meta.json"))
        return [Run(self._own(meta.parent), self.trusted) for meta in metas]

    def delete(self) -> None:
        """Remove it from disk."""
        shutil.rmtree(self.path)

    def replaces(self, other: "Run") -> None:
        """Take the place of `other` on disk; `other` is deleted. What a crash leaves of either is put back by `recover`."""
        beside, former = (
            other.path.with_name(f".{other.path.name}.{end}") for end in ("partial", "former")
        )
        for left in (beside, former):  # by a crash
            shutil.rmtree(left, ignore_errors=True)
        self.path.rename(beside)
        other.path.rename(former)
        beside.rename(other.path)
        self.path = other.path
        shutil.rmtree(former)

    @property
    def config(self) -> DictConfig:
        """As resolved when the run was made.

        ConfigError where it cannot be read, asks for a resolver, or names what may not be imported.
        """
        file = self.path / "config.yaml"
        try:
            text = file.read_text()
            loaded = OmegaConf.create(text)
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{file}: cannot be read ({str(error).splitlines()[0]}).") from None
        raw = OmegaConf.to_container(loaded)
        if not isinstance(loaded, DictConfig) or not isinstance(raw, dict):
            raise ConfigError(f"{file}: is no config.")
        for key in ("agent", "env", "eval_env", "device", "attack"):
            if not isinstance(raw.get(key, {}), dict):
                raise ConfigError(f"{file}: '{key}' is {raw[key]}; expected keys with values.")
        if "${" in json.dumps(raw, default=str):
            raise ConfigError(
                f"{file}: asks for an interpolation (${{…}}); the config of a run has none."
            )
        if not (self.trusted or trust.is_signed(text, self.meta().get("signature"))):
            own = trust.own_imports()
            for name in trust.imports(raw):
                if name not in own:
                    raise ConfigError(
                        f"{file}: names {name}, which is neither rlx's nor in your conf/, and the run "
                        f"was not made by you on this machine. If you trust its code, add trust=true."
                    )
        rename_keys(loaded)  # older than this rlx, perhaps
        return loaded

    def write_config(self, config: DictConfig | Mapping[str, Any]) -> None:
        """config.yaml, resolved, and its signature in meta.json."""
        node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        text = OmegaConf.to_yaml(node, resolve=True)
        write(self.path / "config.yaml", text)
        self.write_meta(signature=trust.signature(text))

    def meta(self) -> dict[str, Any]:
        """meta.json; ConfigError where it is missing, broken or of another format version."""
        file = self.path / "meta.json"
        try:
            meta = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            found = meta.get("format") if isinstance(meta, dict) else None
            raise ConfigError(
                f"{self.path}: format {found}; this rlx ({rlx.__version__}) reads format {FORMAT}."
            )
        return {"command": None, "status": None} | meta

    def write_meta(self, **facts: Any) -> None:
        """Add `facts` to meta.json."""
        file = self.path / "meta.json"
        meta = (
            json.loads(file.read_text())
            if file.exists()
            else {"format": FORMAT, "command": self.path.parent.parent.name} | _versions()
        )
        write_json(file, meta | facts)

    def unfinished(self) -> str | None:
        """Why it has no result yet, as in "failed (no space left)"; None where it is completed."""
        meta = self.meta()
        if meta["status"] == "completed":
            return None
        status = str(meta["status"] or "of no known status")
        return f"{status} ({meta['error']})" if meta.get("error") else status

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(plain(row)) + "\n" for row in rows)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows logged so far, NaN where metrics.jsonl has null; a crash may have cut the last line."""
        file = self.path / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        try:
            for line in file.read_text().split("\n")[:-1] if file.exists() else []:
                row = numbers(json.loads(line))
                if not {"step", "seed", "return/mean"} <= set(row):
                    raise ValueError("step, seed and return/mean are expected")
                rows.append(row)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: line {len(rows) + 1} cannot be read ({error}).") from None
        return rows

    def curve(self) -> "tuple[list[int], list[int], np.ndarray]":
        """(steps [E], seeds [S], greedy returns [E, S]) of its evaluations while it learnt.

        A seed that has stopped keeps its last value: it must not leave the others to be averaged
        alone. One that stopped before its first evaluation has the value by which it stopped.
        """
        import numpy as np

        rows = self.metrics()
        best = self.counters("best") if self.has("best") else {}
        steps = sorted({row["step"] for row in rows})
        seeds = list(
            dict.fromkeys([*best.get("seeds", ()), *sorted({row["seed"] for row in rows})])
        )
        at_stop = dict(zip(seeds, numbers(best.get("value", [])), strict=False))
        logged = {(row["step"], row["seed"]): row["return/mean"] for row in rows}
        values = np.empty((len(steps), len(seeds)))
        for place, seed in enumerate(seeds):
            value = np.nan
            if not any((step, seed) in logged for step in steps):
                value = at_stop.get(seed, np.nan)
            for number, step in enumerate(steps):
                value = logged.get((step, seed), value)
                values[number, place] = value
        return steps, seeds, values

    def reopen(self, config: DictConfig, step: int, evaluated: int) -> None:
        """Take a run up again at `step` with a (changed) config: forgets later checkpoints, which are damaged, and metrics beyond
        the step `evaluated`."""
        for name in self.steps():
            if int(name) > step:
                if self._is_whole(name):
                    raise ConfigError(
                        f"run={self.path}: another process has gone on to step {int(name):,} meanwhile; try again."
                    )
                shutil.rmtree(self.path / "checkpoints" / name)
        rows = [row for row in self.metrics() if row["step"] <= evaluated]
        write(self.path / "metrics.jsonl", "".join(json.dumps(plain(row)) + "\n" for row in rows))
        self.write_config(config)
        self.write_meta(status="running", error=None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by whoever reads and then writes the run; ConfigError where another process holds it.

        A Run that holds it already goes on holding it.
        """
        import fcntl

        if self._locked:
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise ConfigError(f"run={self.path}: another process is writing it.") from None
        self._locked = True
        try:
            yield
        finally:
            self._locked = False
            os.close(folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock while a command fills the run; however that ends, meta.json says so."""
        with self.lock():
            try:
                yield
            except BaseException as error:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                with suppress(OSError):  # the disk may be full
                    self.write_meta(status=status, error=str(error) or type(error).__name__)
                raise

    def complete(
        self, summary: Mapping[str, Any], returns: "Mapping[str, np.ndarray] | None" = None
    ) -> None:
        """The result: summary.json, `returns` (of every episode that it is of), and the status."""
        import numpy as np

        if returns is not None:
            np.savez_compressed(self.path / "returns.npz", **dict(returns))  # type: ignore[arg-type]
        self.write_summary({"status": "completed", **summary})
        self.write_meta(status="completed", wall_s=summary.get("wall_s"), error=None)

    def counters(self, name: str) -> dict[str, Any]:
        """state.json of checkpoint `name`."""
        file = self.checkpoint(name) / "state.json"
        try:
            state = dict(json.loads(file.read_text()))
            _check_state(state)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: unreadable, perhaps truncated ({error}).") from None
        return {"replay": {}, "sha256": {}} | state

    def summary(self) -> dict[str, Any]:
        """summary.json of a finished run, NaN where it has null; ConfigError where there is none."""
        file = self.path / "summary.json"
        if not file.is_file():
            raise ConfigError(f"{self.path}: has no result; the run is {self.unfinished()}.")
        try:
            return dict(numbers(json.loads(file.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None

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
            raise RunError(f"{final}: cannot be saved ({error})") from None
        shutil.rmtree(former, ignore_errors=True)
        self._prune()
        return sums

    def _prune(self) -> None:
        """Leave of all but the newest two checkpoints the policy only, if they last, and no part of a replay that no checkpoint needs."""
        names = self._resumable()
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
        """The file of a replay's part; ConfigError where the name leads out of the run."""
        return self._own(self.path / "replay" / f"{name}.safetensors")

    def _own(self, path: Path) -> Path:
        """`path`, which must lie in the run, links followed."""
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(f"{self.path}: {path} leads out of the run.")
        return path

    def _resumable(self) -> list[str]:
        """Names of the checkpoints that hold all that going on needs, in the order of their steps."""
        return [
            name
            for name in self.steps()
            if (self.path / "checkpoints" / name / "training.safetensors").is_file()
        ]

    def steps(self) -> list[str]:
        """Names of its checkpoints by step, in that order."""
        folder = self._own(self.path / "checkpoints")
        return sorted((p.name for p in folder.glob("[0-9]*") if p.name.isdigit()), key=int)

    def has(self, name: str) -> bool:
        """Whether there is a checkpoint `name`."""
        return (self.path / "checkpoints" / name / "state.json").is_file()

    def checkpoint(self, name: str) -> Path:
        """Directory of checkpoint `name` (a step, "best", or "last": the highest step); ConfigError where there is none."""
        folder = self.path / "checkpoints"
        steps = self.steps()
        names = [*steps, *(["best"] if (folder / "best").is_dir() else [])]
        if name == "last" and steps:
            return self._own(folder / steps[-1])
        for known in names:
            if name == known or (name.isdigit() and known.isdigit() and int(name) == int(known)):
                return self._own(folder / known)
        have = f" It has: {', '.join(names)}." if names else ""
        raise ConfigError(f"{self.path}: no checkpoint '{name}'.{have}")

    def load(self, name: str, file: str = "agent") -> "dict[str, Tensor]":
        """Tensors of one file of checkpoint `name`; ConfigError where it is missing, truncated or not what was written."""
        path = self.checkpoint(name) / f"{file}.safetensors"
        return load_tensors(path, self.counters(name).get("sha256", {}).get(path.name))

    def load_newest(
        self,
    ) -> "tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], list[str]]":
        """(state.json, agent, training, warnings) of the newest checkpoint that is whole; a warning for each that is not."""
        warnings: list[str] = []
        with suppress(ConfigError), self.lock():  # whoever holds the lock is between two renames
            for former in self.path.glob("checkpoints/.*.former"):  # of a crash between them
                _put_back(former.with_name(former.name[1:].removesuffix(".former")))
        for name in reversed(self._resumable()):
            try:
                counters = self.counters(name)
                for _ in self.parts(counters["replay"]):
                    pass
                return counters, self.load(name), self.load(name, "training"), warnings
            except ConfigError as error:
                warnings.append(f"{error} Using the checkpoint before it.")
        raise ConfigError(
            " ".join([f"{self.path}: no whole checkpoint to resume from.", *warnings])
        )

    def _is_whole(self, name: str) -> bool:
        """Whether checkpoint `name` holds, undamaged, all that going on needs."""
        try:
            for _ in self.parts(self.counters(name)["replay"]):
                pass
            self.load(name)
            self.load(name, "training")
        except (ConfigError, KeyError):
            return False
        return True

    def parts(self, sums: Mapping[str, str]) -> "Iterator[tuple[str, dict[str, Tensor]]]":
        """(name, tensors) of each part of a replay, by its checksum; one in memory at a time. ConfigError as `load`."""
        for name, checksum in sums.items():
            yield name, load_tensors(self._part(name), checksum)


def _lasting(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / "state.json").read_text()).get("lasting", True)
    except (OSError, ValueError):
        return True


def named(paths: object) -> list[str]:
    """The run directories that a user named: one word, or a list of them. ConfigError where it is neither."""
    each = [paths] if isinstance(paths, str) else paths
    if not isinstance(each, list) or not each or not all(isinstance(path, str) for path in each):
        raise ConfigError(f"run={paths}: expected a run directory, or a list of them.")
    return each


def _check_state(state: Mapping[str, Any]) -> None:
    """ValueError where state.json does not say what it should: whole numbers, and checksums by name."""

    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 62

    seeds = state.get("seeds")
    if not isinstance(seeds, list) or not all(map(whole, seeds)) or len(set(seeds)) < len(seeds):
        raise ValueError("'seeds' is no list of different seeds")
    for name in ("step", "evaluated"):
        value = state.get(name, 0)
        if not all(map(whole, value if isinstance(value, list) else [value])):
            raise ValueError(f"'{name}' is {value}")
    if not isinstance(state.get("wall_s", 0.0), (int, float)):
        raise ValueError("'wall_s' is no number")
    for name in ("sha256", "replay"):
        if not isinstance(state.get(name, {}), dict):
            raise ValueError(f"'{name}' is {state[name]}")


def _recover(path: Path) -> None:
    """Put a run back that a crash left between two renames, unless a process is between them now."""
    path = path.absolute()
    former = path.with_name(f".{path.name}.former")
    if path.name and not path.exists() and former.is_dir():
        with suppress(ConfigError), Run(former).lock():
            _put_back(path)
            shutil.rmtree(former, ignore_errors=True)  # where its replacement was put in its place


def _put_back(path: Path) -> None:
    """Give `path` its name again: a whole replacement of it has it, else what it was before."""
    for end in ("partial", "former"):
        left = path.with_name(f".{path.name}.{end}")
        if (
            not path.exists()
            and left.exists()
            and (left / ("meta.json" if end == "partial" else "")).exists()
        ):
            left.rename(path)


def _newest_first(top: Path) -> list[Path]:
    """The runs at and below `top`, but for those inside a run that grows; what crashes left of some is put back."""
    found = []
    for folder, names, files in os.walk(top):
        for name in [name for name in names if name.startswith(".")]:
            names.remove(name)
            whole = name[1:].rpartition(".")[0]
            _recover(Path(folder, whole))
            if whole and whole not in names and Path(folder, whole).is_dir():
                names.append(whole)
        if "meta.json" in files:
            names.clear()
            found.append(Path(folder))
    return sorted(found, key=lambda path: path.name, reverse=True)


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
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "rlx", "conf") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
