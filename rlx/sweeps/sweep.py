"""A sweep: one directory on disk. The only code that knows its file names.

sweep.json        format version, command, the words of its line, commits, when it was begun
jobs/<id>.yaml    the resolved config of a job
jobs/<id>.json    how far it is: number, overrides, state, run, error, took_s, value
jobs/<id>.log     why a job failed, with the traceback
batches/          runs that train several jobs at once, until each job has a run of its own
sweep.csv, sweep.png, sweep.pdf    rlx/sweeps/report.py
"""

import datetime
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlx.conf import conf_dir
from rlx.config import choice, convert, typed
from rlx.errors import ConfigError
from rlx.runs import trust
from rlx.runs.files import write, write_json
from rlx.runs.run import Run, outputs_folder
from rlx.runs.versions import project_commit, versions

FORMAT = 1
"""Version of the layout above; written to sweep.json."""
LEFT_OUT = ("outputs", "device", "tracker", "trust")
"""Keys of a config that change nothing about a job's result, and so are no part of its identity."""
BATCHES = "batches"
"""Name of the folder, in a sweep's, of the runs that train several of its jobs at once."""
STATES = ("completed", "pruned", "running", "interrupted", "failed", "waiting")
"""What a job can be. One that was killed is interrupted, a trial given up early is pruned."""
LOST = "its process ended without a word (killed, out of memory, or a crash)"
"""What is said of a job of which nobody knows how it ended."""


def identity(config: DictConfig) -> str:
    """12 hexadecimal digits that tell the job of this resolved config from all others."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    kept = {str(key): value for key, value in values.items() if key not in LEFT_OUT}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """A job of a sweep, as its file had it when it was read."""

    folder: Path
    """The folder of the sweep."""
    id: str
    """Its identity."""
    number: int
    """Its place in the sweep, from 0 on."""
    overrides: list[str]
    """What Hydra composes its config of, beside the words that all jobs share."""
    state: str = "waiting"
    """One of `STATES`; "running" also where its process was killed."""
    run_path: str | None = None
    """Its run directory, as seen from the sweep's folder; None: it has none yet."""
    error: str | None = None
    """Why it failed, or was pruned."""
    code: int = 0
    """The exit code of its failure; 0: it has not failed."""
    took_s: float = 0.0
    """Seconds that it has taken, in all tries."""
    deaths: int = 0
    """Processes in a row that began it and never said how it ended, with one that is at it."""
    value: float | None = field(default=None, compare=False)
    """What the command's task returned."""

    @property
    def file(self) -> Path:
        """Where it is on disk."""
        return self.folder / "jobs" / f"{self.id}.json"

    @property
    def config(self) -> DictConfig:
        """Its resolved config; ConfigError where the file is not what the identity stands for."""
        file = self.file.with_suffix(".yaml")
        try:
            config = OmegaConf.create(file.read_text())
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{file}: cannot be read ({str(error).splitlines()[0]}).") from None
        if not isinstance(config, DictConfig) or identity(config) != self.id:
            raise ConfigError(f"{file}: was changed; it is no more the config of this job.")
        return config

    @property
    def log(self) -> Path:
        """Where the traceback is, if it failed."""
        return self.file.with_suffix(".log")

    @property
    def run(self) -> Run | None:
        """Its run; None: it has none yet, or somebody deleted it."""
        if self.run_path is None:
            return None
        path = Path(os.path.normpath(self.folder / self.run_path))
        outputs = self.folder.absolute().parents[1]
        if not Path(os.path.abspath(path)).is_relative_to(os.path.normpath(outputs)):
            # A job that is done anew deletes its run.
            raise ConfigError(f"{self.file}: run_path={self.run_path} leads out of {outputs}.")
        return Run(path) if (path / "meta.json").is_file() else None

    @property
    def unreadable(self) -> str | None:
        """Why nobody can tell how far its run is; None: it can be told, or there is none."""
        run = self.run
        try:
            if run is not None:
                run.unfinished()
        except ConfigError as error:
            return str(error)
        return None

    def delete_run(self) -> None:
        """Remove its run from disk, also one that was killed when it had only its folder.

        ConfigError where another process is at it.
        """
        _ = self.run  # within the folder of all runs?
        if self.run_path is not None:
            run = Run(Path(os.path.normpath(self.folder / self.run_path)))
            with suppress(FileNotFoundError), run.lock():
                run.delete()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do.

        The run says it, where there is one: a process may be killed before it can say so here.
        """
        if self.run_path is None:
            return self.state in ("completed", "pruned")
        run = self.run
        return run is not None and self.unreadable is None and run.unfinished() is None

    @property
    def may_go_on(self) -> bool:
        """Whether its run was stopped and can be taken up at a checkpoint."""
        run = self.run
        if run is None or self.unreadable is not None:
            return False
        return not self.finished and bool(run.checkpoints.resumable())

    @property
    def status(self) -> str:
        """The state as it is now: one of `STATES`, or "unreadable"."""
        if self.unreadable is not None:
            return "unreadable"
        if self.finished:
            return "pruned" if self.state == "pruned" else "completed"
        if self.state == "running" and not self.is_locked():
            return "interrupted"
        return "waiting" if self.state == "completed" else self.state  # its run was deleted

    @property
    def settings(self) -> dict[str, str]:
        """Key → value of its overrides, as texts."""
        pairs = [override.lstrip("+").partition("=") for override in self.overrides]
        values = {key: value.replace("\\:", ":") for key, _, value in pairs}
        # A single run, which may be written without the brackets.
        return {key: re.sub(r"^\['([^',]*)'\]$", r"\1", value) for key, value in values.items()}

    @property
    def text(self) -> str:
        """Its overrides as one would type them."""
        return " ".join(shlex.quote(f"{key}={value}") for key, value in self.settings.items())

    @property
    def label(self) -> str:
        """What tells it from the other jobs of the sweep, as one would type it."""
        return self.label_of(swept_keys(Sweep(self.folder).jobs()))

    def label_of(self, keys: Sequence[str]) -> str:
        """`label`, where the keys that tell the jobs from each other are known."""
        pairs = [f"{key}={value}" for key, value in self.settings.items() if key in keys]
        return " ".join(map(shlex.quote, pairs)) or self.text

    @property
    def is_lost(self) -> bool:
        """Whether its process ended without a word: killed, out of memory, or crashed."""
        return self.state == "running" and self.status == "interrupted"

    def write(self, **changes: Any) -> "Job":
        """The job with some `changes`, written to disk."""
        values = {name: value for name, value in vars(self).items() if name not in ("folder", "id")}
        job = Job(self.folder, self.id, **(values | changes))
        with writing(self.folder):
            write_json(job.file, values | changes)
        return job

    def note(self, run: Run) -> dict[str, Any]:
        """Write down which run will be the job's, before there is any of it; more of its meta."""
        path = os.path.relpath(run.path.absolute(), self.folder.absolute())
        _read(self.file).write(run_path=path)
        # Of the jobs of a batch Hydra has composed one alone.
        return {"line": f"rlx {Sweep(self.folder).command} {self.text}".strip()}

    def read(self) -> "Job":
        """The job as it is on disk now."""
        return _read(self.file)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether the job is this process's within the context: no other one has it."""
        with ExitStack() as stack:
            with writing(self.folder):
                file = stack.enter_context(open(self.file.with_suffix(".lock"), "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_locked(self) -> bool:
        """Whether a process has the job."""
        try:
            with open(self.file.with_suffix(".lock")) as file:  # the folder may be read-only
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False


@dataclass(frozen=True)
class Planned:
    """A job of which nothing is on disk."""

    id: str
    """Its identity."""
    overrides: list[str]
    """What Hydra composes its config of, beside the words that all jobs share."""
    config: DictConfig
    """Its resolved config."""

    def write(self, folder: Path, number: int) -> Job:
        """Put the job, the one at the place `number`, on disk in the sweep's `folder`."""
        self.write_config(folder)
        return Job(folder, self.id, number, self.overrides).write()

    def write_config(self, folder: Path) -> None:
        """Put the job's config on disk in the sweep's `folder`."""
        file = folder / "jobs" / f"{self.id}.yaml"
        write(file, OmegaConf.to_yaml(self.config, resolve=True))


class Sweep:
    """An existing sweep directory."""

    def __init__(self, path: Path):
        """The sweep in the folder `path`; ConfigError where sweep.json cannot be read."""
        self.path = path
        file = path / "sweep.json"
        try:
            facts = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error}).") from None
        version = facts.get("format") if isinstance(facts, dict) else None
        if version != FORMAT:
            raise ConfigError(f"{path}: format {version}; this rlx reads format {FORMAT}.")
        self.facts: dict[str, Any] = facts
        for key, kind in (("command", str), ("line", str), ("words", list[str])):
            convert(facts.get(key), kind, f"{file}: {key}")
        if not Path(conf_dir(), f"{self.command}.yaml").is_file():
            raise ConfigError(f"{file}: command={self.command}: is none of rlx's.")

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a sweep is in the folder `path`."""
        return os.path.isfile(os.path.join(path, "sweep.json"))  # a long word is no path

    @staticmethod
    def folder(outputs: str, name: str) -> Path:
        """Where the sweep of this name is; ConfigError where `outputs` names no folder."""
        return outputs_folder(outputs) / "sweeps" / name

    @classmethod
    def begin(
        cls,
        path: Path,
        command: str,
        words: Sequence[str],
        line: str,
        jobs: Sequence[Planned] | None,
    ) -> "Sweep":
        """The sweep in the folder `path`, new or begun before, of these jobs.

        `words`: its command line as Hydra takes it; `line`: as one types it; `jobs`: None where
        they come of the results of others. ConfigError where another sweep is there, or where it
        cannot be written.
        """
        if cls.is_at(path):
            sweep = cls(path)
            if jobs is not None:
                sweep._mend(line, jobs)
            sweep._check(command, line, jobs)
            return sweep
        is_used = path.is_dir() and any(item.name != "jobs" for item in path.iterdir())
        if is_used or path.is_file():
            raise ConfigError(f"sweep={path.name}: {path} is there, and is no sweep.")
        facts = {
            "format": FORMAT,
            "command": command,
            "line": line,
            "words": list(words),
            "grows": jobs is None,
            "started": datetime.datetime.now().isoformat(timespec="seconds"),
            "project_commit": project_commit(),
            **versions(),
        }
        with writing(path):
            (path / "jobs").mkdir(parents=True, exist_ok=True)
            for number, job in enumerate(jobs or []):
                job.write(path, number)
            text = _signed_text(words, [job.overrides for job in jobs or []])
            # Last: with it the sweep is whole.
            write_json(path / "sweep.json", facts | {"signature": trust.signature(text)})
        return cls(path)

    def check_maker(self) -> None:
        """ConfigError unless this user made it: its words can make Python import anything."""
        # Jobs that are added are made anew of the words, and no file is asked what they are.
        jobs = [] if self.grows else [job.overrides for job in self.jobs()]
        text = _signed_text(self.words, jobs)
        if not trust.is_signed(text, self.facts.get("signature")):
            raise ConfigError(
                f"{self.path}: was not begun by you on this machine, or was changed. If you trust "
                f"its command, type it: {self.line}"
            )

    @property
    def command(self) -> str:
        """The command of all its jobs, as in "train"."""
        return str(self.facts["command"])

    @property
    def line(self) -> str:
        """Its command line, as one types it."""
        return str(self.facts["line"])

    @property
    def resume_line(self) -> str:
        """The command line that goes on with it."""
        return f"rlx resume {shlex.quote(str(self.path))}"

    @property
    def words(self) -> list[str]:
        """Its command line as Hydra takes it."""
        return list(self.facts["words"])

    @property
    def grows(self) -> bool:
        """Whether its jobs are not all known when it begins: a sweeper, or a tuning, adds them."""
        return bool(self.facts.get("grows"))

    def jobs(self) -> list[Job]:
        """All jobs as they are on disk now, in order."""
        jobs = [_read(file) for file in (self.path / "jobs").glob("*.json")]
        return sorted(jobs, key=lambda job: job.number)

    def job(self, overrides: Sequence[str]) -> Job:
        """The job of these overrides, one of those that were planned."""
        ids = _planned_ids(self.path.absolute())
        return _read(self.path / "jobs" / f"{ids[tuple(lasting(overrides))]}.json")

    def job_with(self, job_id: str) -> Job | None:
        """The job of this identity; None: a sweeper has just thought of it."""
        file = self.path / "jobs" / f"{job_id}.json"
        return _read(file) if file.exists() else None

    def add(self, planned: Planned) -> Job:
        """One job more, which a sweeper has just thought of."""
        return planned.write(self.path, len(self.jobs()))

    def begin_batch(self, name: str, config: DictConfig, jobs: Sequence[Job]) -> Run:
        """A new run that trains some jobs at once; `name`: as in "dqn-cartpole"."""
        run = Run.create(str(self.path / BATCHES), "train", name, config)
        run.write_meta(jobs=[job.id for job in jobs])
        return run

    def batches(self) -> dict[Run, list[Job]]:
        """The runs that train several jobs at once and can go on, and these jobs, in order."""
        jobs = {job.id: job for job in self.jobs()}
        found = {}
        for file in sorted(self.path.glob(f"{BATCHES}/train/*/*/meta.json")):
            run = Run(file.parent)
            members = [jobs[job_id] for job_id in run.meta().get("jobs", []) if job_id in jobs]
            if members and run.checkpoints.resumable():
                found[run] = members
        return found

    def clear_batches(self) -> None:
        """Delete the batches of whose jobs none is left, and those that cannot go on."""
        top = self.path / BATCHES
        in_use = []
        for run, members in self.batches().items():
            if not all(job.finished for job in members):
                in_use.append(run.path)
        for path in top.glob("train/*/*"):
            if path not in in_use:
                _delete_batch(path)
        if not in_use and not any(top.glob("train/*/*")):
            shutil.rmtree(top, ignore_errors=True)

    def forget(self) -> None:
        """Let all jobs wait again. Their runs stay where they are, and are no more the sweep's.

        ConfigError where another process is at one of them.
        """
        jobs = self.jobs()
        for job in jobs:
            if job.is_locked():
                raise ConfigError(f"fresh=true: another process is at {job.label}; stop it first.")
        for path in self.path.glob(f"{BATCHES}/train/*/*"):
            _delete_batch(path)
        for job in jobs:
            job.log.unlink(missing_ok=True)
            Job(self.path, job.id, job.number, job.overrides).write()

    def other_commits(self) -> list[str]:
        """A sentence for each commit that is another now than when the sweep was begun."""
        now = {"rlx": versions()["commit"], "your project": project_commit()}
        then = {"rlx": self.facts.get("commit"), "your project": self.facts.get("project_commit")}
        return [
            f"begun with commit {then[name]} of {name}; this is {now[name]}"
            for name in now
            if now[name] != then[name]
        ]

    def _mend(self, line: str, jobs: Sequence[Planned]) -> None:
        """Write the files of jobs that were deleted, where `jobs` are those of the same line."""
        there = {job.id for job in self.jobs()}
        if self.line != line or not there <= {job.id for job in jobs}:
            return
        with writing(self.path):
            (self.path / "jobs").mkdir(exist_ok=True)
            for number, job in enumerate(jobs):
                if job.id not in there:
                    job.write(self.path, number)
                elif not (self.path / "jobs" / f"{job.id}.yaml").exists():
                    job.write_config(self.path)

    def _check(self, command: str, line: str, jobs: Sequence[Planned] | None) -> None:
        """ConfigError unless the sweep is of this command and has these jobs."""
        name = self.path.name
        same = self.line == line
        if jobs is not None:
            same = {job.id for job in self.jobs()} == {job.id for job in jobs}
        if self.command == command and self.grows == (jobs is None) and same:
            return
        if self.line == line:
            raise ConfigError(
                f"sweep={name}: the same command line makes other jobs now: conf/, rlx or the "
                f"newest run is another. Take another name, or go on with the jobs of then: "
                f"{self.resume_line}"
            )
        raise ConfigError(
            f"sweep={name}: is of another command, {self.line}; take another name, or go on with "
            f"it: {self.resume_line}"
        )


@cache
def _planned_ids(folder: Path) -> dict[tuple[str, ...], str]:
    """Overrides → identity of the planned jobs of the sweep in a `folder`, which never change.

    A process asks once for each job that it does.
    """
    return {tuple(lasting(job.overrides)): job.id for job in Sweep(folder).jobs()}


def lasting(overrides: Sequence[str]) -> list[str]:
    """The overrides of a job without those of `LEFT_OUT`, as device=cuda."""
    return [word for word in overrides if key_of(word).partition(".")[0] not in LEFT_OUT]


def key_of(word: str) -> str:
    """The key of an override."""
    return word.lstrip("+~").partition("=")[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """ConfigError where the sweep in the folder `path` cannot be written within the context."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"sweep: cannot write {path} ({error.strerror}).") from None


def counted(jobs: Sequence[Job]) -> dict[str, int]:
    """State → number of jobs, of the states that there are."""
    states = [job.status for job in jobs]
    return {state: states.count(state) for state in sorted(set(states))}


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that tell the jobs from each other."""
    all_settings = [job.settings for job in jobs]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in all_settings}) > 1]


def _delete_batch(path: Path) -> None:
    """Remove the run of a batch, unless a process is writing it."""
    with suppress(ConfigError), Run(path).lock():
        shutil.rmtree(path, ignore_errors=True)


def _signed_text(words: Sequence[str], overrides: Sequence[Sequence[str]]) -> str:
    """What the signature of a sweep is of."""
    return json.dumps([list(words), sorted(map(list, overrides))])


def write_log(job: Job, text: str) -> None:
    """Put the traceback of a failed job beside it."""
    with suppress(OSError):  # the disk may be full
        write(job.log, text)


def _read(file: Path) -> Job:
    """The job in a file; ConfigError where it cannot be read."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from None
    values = typed(Job, content, str(file), given=("folder", "id"))
    choice(values["state"], STATES, f"{file}: state")
    return Job(file.parents[1], file.stem, **values)
