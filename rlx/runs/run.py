"""A run: one directory on disk. The only code, with checkpoints.py, that knows its file names.

config.yaml      the resolved config; what evaluate and attack load
meta.json        format version, command, status (running, completed, interrupted, failed), rlx's
                 version and commit, packages, machine, started, wall_s, signature of config.yaml
                 (rlx/runs/trust.py), the commit of the user's project, the command line, the lines
                 that went on with it, the options of config groups
metrics.jsonl    one row per (step, seed): step, seed, return/mean, return/train, length/mean,
                 loss/…, time/steps_per_s
checkpoints/, replay/    rlx/runs/checkpoints.py
summary.json     the result
returns.npz      the returns it is of: [S, episodes], of an attack [S, E, episodes] per mode
"""

import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import rlx
from rlx.config import rename_keys
from rlx.errors import ConfigError
from rlx.runs import trust
from rlx.runs.checkpoints import Checkpoints, Newest
from rlx.runs.files import (
    from_json,
    hidden_sibling,
    inside,
    put_back,
    replace_folder,
    to_json,
    write,
    write_json,
)
from rlx.runs.versions import origin, project_commit, versions

if TYPE_CHECKING:
    import numpy as np


FORMAT = 3
"""Version of the layout above; written to meta.json."""
_trusted: set[str] = set()
"""The configs that the user has trusted in this process; an adversary's env reads some anew."""
_note: "tuple[str, Callable[[Run], dict[str, Any]]] | None" = None
"""A command, and what is told of each run that it is about to make; see `noting`."""
GROUPS = ("agent", "env", "eval_env", "device", "attack")
"""Keys of config.yaml that hold keys themselves."""


class Run:
    """An existing run directory."""

    def __init__(self, path: Path, trusted: bool = False):
        """The run in the folder `path`.

        `trusted`: what its config names may be imported, whoever made the run.
        """
        self.path = path
        self.trusted = trusted
        self._folder: int | None = None
        """The descriptor of the folder, through which this holds the lock; None: it does not."""
        self._locked = False
        """Whether it is within `lock`, whose end gives the lock back."""

    def __del__(self) -> None:
        self._unlock()

    @classmethod
    def create(
        cls, root: str, command: str, name: str, config: DictConfig | Mapping[str, Any]
    ) -> "Run":
        """A new directory `root`/`command`/`name`/<time stamp>.

        It is locked from the first on, so that nobody takes it for one that was killed, until its
        `lock` or `writing` has ended. ConfigError where it cannot be written.
        """
        started = datetime.datetime.now()
        run = cls(outputs_folder(root) / command / name / started.strftime("%Y%m%d-%H%M%S-%f"))
        noted = {}
        if _note is not None and command == _note[0]:
            noted = _note[1](run)
        try:
            run.path.mkdir(parents=True)
            run._take_lock()
            run.write_meta(
                status="running",
                started=started.isoformat(timespec="seconds"),
                project_commit=project_commit(),
                **(origin() | noted),
            )
            run.write_config(config)
        except OSError as error:
            raise ConfigError(
                f"outputs={root}: cannot write {run.path} ({error.strerror})."
            ) from None
        return run

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints on disk."""
        return Checkpoints(self.path)

    def newest(self) -> Newest:
        """The newest checkpoint that is whole; ConfigError where none is."""
        self.put_back()
        return self.checkpoints.newest()

    def put_back(self) -> None:
        """Give checkpoints that a crash left between two renames their names again.

        Nothing is done while another process writes the run, and may be between two renames, or
        where this one may not write.
        """
        if not self.checkpoints.misplaced():
            return
        with suppress(ConfigError, OSError), self.lock():
            for path in self.checkpoints.misplaced():
                put_back(path)

    def check_links(self) -> None:
        """ConfigError where a link in the run leads out of it: neither to be read nor written."""
        for path in self.path.rglob("*"):
            if path.is_symlink():
                inside(self.path, path)

    def runs_of_new_seeds(self) -> "list[Run]":
        """The runs inside this run's folder that train seeds to be added to it."""
        inside(self.path, self.path / "growing")
        metas = sorted(self.path.glob("growing/train/*/*/meta.json"))
        return [Run(inside(self.path, meta.parent), self.trusted) for meta in metas]

    def delete(self) -> None:
        """Remove the run from disk."""
        shutil.rmtree(self.path)

    def take_place_of(self, former: "Run") -> None:
        """Get the path of the run `former`, which is deleted.

        `recover` (rlx/runs/finding.py) puts back what a crash leaves of the two.
        """
        self._note_resuming(former.meta())
        partial = hidden_sibling(former.path, "partial")
        shutil.rmtree(partial, ignore_errors=True)  # a crash may have left it
        self.path.rename(partial)
        replace_folder(partial, former.path)
        self.path = former.path

    @property
    def config(self) -> DictConfig:
        """The config as it was resolved when the run was made, with the keys' names of today.

        ConfigError where it cannot be read, asks for a resolver, or names what may not be imported.
        """
        file = self.path / "config.yaml"
        try:
            text = file.read_text()
            config = OmegaConf.create(text)
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{file}: cannot be read ({str(error).splitlines()[0]}).") from None
        plain_config = OmegaConf.to_container(config)
        if not isinstance(config, DictConfig) or not isinstance(plain_config, dict):
            raise ConfigError(f"{file}: is no config.")
        for key in GROUPS:
            group = plain_config.get(key, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{file}: '{key}' is {group}; expected keys with values.")
        if "${" in json.dumps(plain_config, default=str):
            raise ConfigError(
                f"{file}: asks for an interpolation (${{…}}); the config of a run has none."
            )
        self._check_imports(file, text, plain_config)
        rename_keys(config)  # older than this rlx, perhaps
        return config

    def _trust_victims(self, config: dict) -> None:
        """Trust the runs that env=attacked names too: an adversary plays in their env."""
        victims = config.get("env", {}).get("run")
        for path in [victims] if isinstance(victims, str) else victims or []:
            with suppress(ConfigError):  # said where they are opened
                _ = Run(Path(path), trusted=True).config

    def _check_imports(self, file: Path, text: str, config: dict) -> None:
        """ConfigError where a config of somebody else names code that is not the user's own."""
        if self.trusted:
            _trusted.add(text)
            self._trust_victims(config)
            return
        if text in _trusted or trust.is_signed(text, self.meta().get("signature")):
            return
        users_imports = trust.users_imports()
        for name in trust.imports(config):
            if name not in users_imports:
                raise ConfigError(
                    f"{file}: names {name}, which is neither rlx's nor in your conf/, and the run "
                    f"was not made by you on this machine. If you trust its code, add trust=true."
                )

    def write_config(self, config: DictConfig | Mapping[str, Any]) -> None:
        """Write config.yaml, resolved, and its signature to meta.json."""
        node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        text = OmegaConf.to_yaml(node, resolve=True)
        write(self.path / "config.yaml", text)
        self.write_meta(signature=trust.signature(text))

    def meta(self) -> dict[str, Any]:
        """The content of meta.json; ConfigError where it is missing, broken or of an old format."""
        file = self.path / "meta.json"
        try:
            meta = json.loads(file.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{file}: is missing.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None
        version = meta.get("format") if isinstance(meta, dict) else None
        if version != FORMAT:
            raise ConfigError(
                f"{self.path}: format {version}; "
                f"this rlx ({rlx.__version__}) reads format {FORMAT}."
            )
        return {"command": None, "status": None} | meta

    def write_meta(self, **facts: Any) -> None:
        """Add `facts` to meta.json."""
        file = self.path / "meta.json"
        if file.exists():
            meta = json.loads(file.read_text())
        else:
            command = self.path.parent.parent.name
            meta = {"format": FORMAT, "command": command} | versions()
        write_json(file, meta | facts)

    @property
    def is_batch(self) -> bool:
        """Whether it is a batch of a sweep's jobs, each of which will have a run of its own."""
        return "jobs" in self.meta()

    def unfinished(self) -> str | None:
        """Why the run has no result yet, as in "failed (no space left)"; None: it has a result."""
        meta = self.meta()
        if meta["status"] == "completed":
            return None
        status = str(meta["status"] or "of no known status")
        return f"{status} ({meta['error']})" if meta.get("error") else status

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(_lines(rows))

    def metrics(self) -> list[dict[str, Any]]:
        """All rows logged so far, NaN where metrics.jsonl has null."""
        file = self.path / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        try:
            text = file.read_text() if file.exists() else ""
            whole_lines = text.split("\n")[:-1]  # a crash may have cut the last one
            for line in whole_lines:
                row = from_json(json.loads(line))
                if not {"step", "seed", "return/mean"} <= set(row):
                    raise ValueError("step, seed and return/mean are expected")
                rows.append(row)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: line {len(rows) + 1} cannot be read ({error}).") from None
        return rows

    def curve(self) -> "tuple[list[int], list[int], np.ndarray]":
        """(steps [E], seeds [S], greedy returns [E, S]) of the evaluations while the run learnt.

        A seed that has stopped keeps its last value: it must not leave the others to be averaged
        alone. A seed that stopped before its first evaluation has the value by which it stopped.
        """
        import numpy as np

        rows = self.metrics()
        best = self.checkpoints.counters("best") if self.checkpoints.has("best") else {}
        steps = sorted({row["step"] for row in rows})
        best_seeds = best.get("seeds", [])
        logged_seeds = sorted({row["seed"] for row in rows})
        seeds = list(dict.fromkeys([*best_seeds, *logged_seeds]))
        value_at_stop = dict(zip(seeds, from_json(best.get("value", [])), strict=False))
        logged = {(row["step"], row["seed"]): row["return/mean"] for row in rows}
        values = np.empty((len(steps), len(seeds)))
        for column, seed in enumerate(seeds):
            value = np.nan
            if seed not in logged_seeds:
                value = value_at_stop.get(seed, np.nan)
            for line, step in enumerate(steps):
                value = logged.get((step, seed), value)
                values[line, column] = value
        return steps, seeds, values

    def rewind(self, config: DictConfig, step: int, evaluated: int) -> None:
        """Take the run back to `step`, from where it goes on with `config`, perhaps changed.

        Metrics beyond the step `evaluated` are deleted, and later checkpoints, all of them damaged.
        ConfigError where a later checkpoint is whole: another process has gone on.
        """
        checkpoints = self.checkpoints
        for name in checkpoints.steps():
            if int(name) <= step:
                continue
            if checkpoints.is_whole(name):
                raise ConfigError(
                    f"run={self.path}: another process has gone on to step {int(name):,} "
                    f"meanwhile; try again."
                )
            checkpoints.delete(name)
        rows = [row for row in self.metrics() if row["step"] <= evaluated]
        write(self.path / "metrics.jsonl", "".join(_lines(rows)))
        self.write_config(config)
        self.write_meta(status="running", error=None)
        self._note_resuming(self.meta())

    def _note_resuming(self, former: Mapping[str, Any]) -> None:
        """Add the line that goes on with the run to those that made it, which `former` has."""
        line = origin().get("line", "")
        if line.startswith("rlx resume "):  # else a sweep's, which does its job again
            made = {key: former[key] for key in ("line", "choices") if key in former}
            self.write_meta(**made, resumed=[*former.get("resumed", []), line])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock of whoever reads and then writes the run; ConfigError where it is taken.

        A Run that holds the lock already goes on holding it.
        """
        if self._locked:
            yield
            return
        if self._folder is None:
            self._take_lock()
        self._locked = True
        try:
            yield
        finally:
            self._locked = False
            self._unlock()

    def _take_lock(self) -> None:
        """Take the lock; ConfigError where it is taken."""
        import fcntl  # not on Windows

        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise ConfigError(f"run={self.path}: another process is writing it.") from None
        self._folder = folder

    def _unlock(self) -> None:
        """Give the lock back, if this holds it."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    @property
    def is_busy(self) -> bool:
        """Whether somebody is writing the run."""
        try:
            with Run(self.path).lock():
                return False
        except ConfigError:
            return True

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
        """Write the result: `summary` to summary.json, its `returns` to returns.npz, the status."""
        import numpy as np

        if returns is not None:
            arrays: dict[str, Any] = dict(returns)
            np.savez_compressed(self.path / "returns.npz", **arrays)
        write_json(self.path / "summary.json", {"status": "completed", **summary})
        self.write_meta(status="completed", wall_s=summary.get("wall_s"), error=None)

    def returns(self, name: str = "returns") -> "np.ndarray":
        """The array `name` of returns.npz, float64; ConfigError where it cannot be read."""
        import numpy as np

        file = self.path / "returns.npz"
        try:
            with np.load(file) as arrays:
                return np.asarray(arrays[name], dtype=np.float64)
        except Exception as error:
            # Of a damaged file zipfile, zlib and NumPy raise whatever they come upon. NumPy's own
            # words would have a ValueError's file unpickled.
            reason = "no npz of numbers" if isinstance(error, ValueError) else error
            raise ConfigError(f"{file}: cannot be read ({reason}).") from None

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, NaN where it has null; ConfigError where it is missing."""
        file = self.path / "summary.json"
        if not file.is_file():
            raise ConfigError(f"{self.path}: has no result; the run is {self.unfinished()}.")
        try:
            return dict(from_json(json.loads(file.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None


def outputs_folder(root: str) -> Path:
    """The folder of all runs that the key `outputs` names; ConfigError where it names none."""
    if not str(root).strip():
        raise ConfigError(f"outputs={root}: expected a folder.")
    return Path(root)


@contextmanager
def noting(command: str, note: "Callable[[Run], dict[str, Any]]") -> Iterator[None]:
    """Tell `note` of each run that `command` makes within the context, before it is there.

    What it returns stands in meta.json.

    A process that is killed in between leaves a folder that somebody knows of.
    """
    global _note
    former = _note
    _note = (command, note)
    try:
        yield
    finally:
        _note = former


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as lines of metrics.jsonl."""
    for row in rows:
        yield json.dumps(to_json(row)) + "\n"
