"""The jobs of a sweep are done: launched, each perhaps in a process of its own, and told of.

A job is done by whoever has its lock. What is finished is left alone, what was interrupted goes on,
what failed is tried again.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx import conf
from rlx.composing import (
    QUIET,
    as_typed,
    launcher,
    load_command,
    overrides_of,
    quoted,
    rename,
    run_composed,
    task_overrides,
)
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.runs.run import noting
from rlx.show import console
from rlx.sweeps import engines
from rlx.sweeps.moving import placed
from rlx.sweeps.planning import Options, Plan, is_of_launcher, options, planned, tell_failure
from rlx.sweeps.report import report
from rlx.sweeps.sweep import (
    LEFT_OUT,
    LOST,
    Job,
    Planned,
    Sweep,
    counted,
    key_of,
    lasting,
    swept_keys,
    write_log,
)

if TYPE_CHECKING:
    from rlx.command import Command


def run_sweep(command: "Command", given: Options) -> None:
    """Plan the sweep of sys.argv, and do it; raises what failed.

    The exit code is 2 where nothing but configs were wrong.
    """
    argv = sys.argv
    engines.require(argv)
    plan = Plan.of(command, argv)
    _check_launcher(command, plan.jobs)
    path = Sweep.folder(plan.outputs, given.name or plan.name(command.name))
    sweep = Sweep.begin(path, command.name, argv[1:], as_typed(argv), plan.jobs)
    if given.fresh:
        sweep.forget()
    jobs = plan.jobs or []
    todays = {job.id: [word for word in job.overrides if not lasting([word])] for job in jobs}
    _do_all(sweep, todays)


def _check_launcher(command: "Command", jobs: Sequence[Planned] | None) -> None:
    """Raise what is wrong with the launcher that sys.argv names, and with its keys.

    `jobs`: those that it must be able to do; None: a sweeper will think of them.
    """
    with launcher(command.name, overrides_of(sys.argv), command.task) as plugin:
        if hasattr(plugin, "check"):
            plugin.check(command.name, jobs)


def go_on(sweep: Sweep, more: Sequence[str]) -> None:
    """Go on with a sweep on its command line and the words `more`; raises what failed.

    Its jobs are those of then, whatever conf/ or the newest run is now.
    """
    argv = ["", *more]
    given = options(argv)
    if given.name is not None:
        raise ConfigError(f"sweep={given.name}: the sweep has its name already.")
    command: Command = load_command(sweep.command)
    makes_jobs = command.makes_jobs is not None
    added = overrides_of(argv)
    if not makes_jobs:
        for word in added:
            _check_may_change(word)
    sweep.check_maker()
    folder = Path(os.path.abspath(sweep.path))
    if folder.parent.name != "sweeps":
        raise ConfigError(f"{sweep.path}: expected in the folder outputs/sweeps of its runs.")
    outputs = folder.parents[1]
    words = sweep.words
    if any(word.startswith("hydra/launcher=") for word in added):  # with keys of its own
        words = [word for word in words if not is_of_launcher(word)]
    added.append(f"outputs={quoted(str(outputs))}")
    sys.argv = [f"rlx {sweep.command}", *words, *added]
    if makes_jobs:
        command.begin(Options(sweep.path.name, given.fresh))
        return
    engines.require(sys.argv)
    _check_launcher(command, None if sweep.grows else [])
    if given.fresh:
        sweep.forget()
    todays = [word for word in added if not lasting([word])]
    _do_all(sweep, {job.id: todays for job in sweep.jobs()})


def _check_may_change(word: str) -> None:
    """ConfigError where a word beside `rlx resume SWEEP` would make other jobs of the sweep's."""
    may_change = [key for key in LEFT_OUT if key != "outputs"]
    if word in QUIET or is_of_launcher(word):
        return
    if key_of(word).partition(".")[0] not in may_change:
        raise ConfigError(
            f"{word.lstrip('+')}: may not change when a sweep is resumed; its jobs are those it "
            f"was begun with. These may: {', '.join(may_change)}, hydra/launcher, fresh."
        )


def _do_all(sweep: Sweep, todays: Mapping[str, Sequence[str]]) -> None:
    """Do what is left of a sweep on the words of sys.argv; then say what has come of it.

    `todays`: identity of a job → the overrides of `LEFT_OUT` that it has now, as device=cuda.
    """
    _tell(sweep)
    folder = conf.user_dir()
    task = JobTask(sweep.command, str(sweep.path), str(folder) if folder else None)
    argv = sys.argv
    jobs = sweep.jobs()
    with _told_how_to_go_on(sweep):
        if sweep.grows:
            sys.argv = [*argv, f"hydra.sweep.dir={quoted(str(sweep.path))}"]
            run_composed(sweep.command, task)
        elif left := sorted((job for job in jobs if not job.finished), key=lambda job: job.deaths):
            # One that kills its process holds up no other.
            words = [*overrides_of(argv), f"hydra.sweep.dir={quoted(str(sweep.path))}"]
            remaining = [[*lasting(job.overrides), *todays[job.id]] for job in left]
            _launch(sweep, words, remaining, task)
    sweep.clear_batches()
    report(sweep)
    _raise_failures(sweep)
    _raise_unfinished(sweep)


def _launch(
    sweep: Sweep, words: Sequence[str], jobs: Sequence[Sequence[str]], task: "JobTask"
) -> None:
    """Let the launcher that `words` name do the jobs, and say what was wrong with the launcher."""
    from hydra.core.utils import JobStatus
    from hydra.errors import HydraException

    name = engines.named(words)
    try:
        with engines.stopping(name), launcher(sweep.command, words, task) as plugin:
            for result in plugin.launch(jobs, initial_job_idx=0):
                # Hydra keeps what was raised before or behind the job's work.
                if result.status == JobStatus.FAILED:
                    raise result._return_value
    except (ConfigError, RunError, HydraException):
        raise
    except Exception as error:
        if not engines.is_elsewhere(name):
            raise
        console.warning(f"hydra/launcher={name}: {engines.one_line(error)}")


@dataclass(frozen=True)
class JobTask:
    """What a launcher does for each job, here or in another process, on this machine or another."""

    command: str
    """The name of the command, as in "train"."""
    sweep: str
    """The folder of the sweep."""
    conf: str | None
    """The user's folder of config groups."""

    def __call__(self, composed: DictConfig) -> float | None:
        """Do the job of a composed config, unless it is done or another process has it."""
        conf.use(Path(self.conf) if self.conf else None)
        rename(composed)
        command = load_command(self.command)
        sweep = Sweep(Path(self.sweep))
        job = job_of(sweep, command, composed)
        try:
            with engines.in_pool() as may_begin, job.lock() as ours:
                if not may_begin:
                    return None
                if not ours:
                    console.facts(sweep=f"another process has {job.label}")
                    return None
                job = job.read()
                if job.finished:
                    return job.value
                console.facts(sweep=_progress(sweep, job))
                return _do(command, job, composed)
        except Interrupted as error:
            engines.hand_on(error)
            raise
        return None


def job_of(sweep: Sweep, command: "Command", composed: DictConfig) -> Job:
    """The job of the running config; one that a sweeper has thought of is added to the sweep.

    The jobs that were planned are as they were then, whatever conf/ is now.
    """
    if not sweep.grows:
        return sweep.job(task_overrides())
    job = planned(command, composed)
    return sweep.job_with(job.id) or sweep.add(job)


def with_todays(config: DictConfig, composed: DictConfig) -> DictConfig:
    """A job's config with what may be another one than when the sweep was begun, as the device."""
    for key in LEFT_OUT:
        if key in composed:
            config[key] = composed[key]
    return placed(config, str(config.get("outputs", "outputs")))


def fail(job: Job, error: Exception | SystemExit, took_s: float) -> None:
    """Write down that a job failed, `took_s` seconds after it began this time, and tell it."""
    text = str(error)
    code = 1
    if isinstance(error, ConfigError | RunError):
        code = error.code
    else:
        text = f"{type(error).__name__}: {text}"
    lines = traceback.format_exception(error)
    write_log(job, "".join(lines))
    job = job.read()
    job.write(state="failed", error=text, code=code, took_s=job.took_s + took_s, deaths=0)
    tell_failure(job.label, text)


def _do(command: "Command", job: Job, composed: DictConfig) -> float | None:
    """Do a job; its file says how it ended. A failure is told, and the sweep goes on.

    `composed`: what Hydra has composed for it, which has the device of today.
    """
    began = time.monotonic()
    job = job.write(state="running", error=None, code=0, deaths=job.deaths + 1)
    try:
        value = _begin_or_go_on(command, job, with_todays(job.config, composed))
    except KeyboardInterrupt:
        took_s = job.took_s + time.monotonic() - began
        job.read().write(state="interrupted", took_s=took_s, deaths=0)
        raise
    except (Exception, SystemExit) as error:
        fail(job, error, time.monotonic() - began)
        return None
    job.log.unlink(missing_ok=True)
    took_s = job.took_s + time.monotonic() - began
    job.read().write(state="completed", value=value, took_s=took_s, deaths=0)
    return value


def _begin_or_go_on(command: "Command", job: Job, config: DictConfig) -> float | None:
    """Go on with the job's run where it can be, else do the job anew."""
    if job.unreadable is not None:
        raise ConfigError(job.unreadable)
    run = job.run
    if run is not None and command.resume is not None and run.checkpoints.resumable():
        return command.resume(run, config)
    job.delete_run()
    with noting(command.name, job.note):
        return command.task(config)


def _progress(sweep: Sweep, job: Job) -> str:
    """What is said when a job begins: "3 of 12 · about 40 min left: agent.learning_rate=0.001"."""
    jobs = sweep.jobs()
    took = [other.took_s for other in jobs if other.state == "completed"]
    left = [other for other in jobs if not other.finished]
    at_work = [other for other in left if other.status == "running"]
    label = job.label_of(swept_keys(jobs))
    text = f"{job.number + 1} of {len(jobs)}"
    if took:
        seconds = sum(took) / len(took) * len(left) / max(1, len(at_work))
        text += f" · about {console.duration(seconds)} left"
    return f"{text}: {label}"


def _tell(sweep: Sweep) -> None:
    """Say which sweep this is, and what of it is there already."""
    jobs = sweep.jobs()
    console.facts(sweep=sweep.path, jobs=len(jobs) or "as the sweeper decides")
    counts = counted(jobs)
    if counts.keys() - {"waiting"}:
        for sentence in sweep.other_commits():
            console.warning(sentence)
        rest = ", ".join(f"{count} {state}" for state, count in counts.items())
        done = f"{counts.get('completed', 0)} of {len(jobs)} done"
        console.facts(**{"goes on": f"{done} ({rest}); fresh=true begins anew"})
    for job in jobs:
        if job.is_lost:
            console.warning(f"{job.label_of(swept_keys(jobs))}: {LOST}; it is tried again last")


@contextmanager
def _told_how_to_go_on(sweep: Sweep) -> Any:
    """Where the sweep is interrupted within the context, say with which line it goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        jobs = sweep.jobs()
        done = f"{sum(job.finished for job in jobs)} of {len(jobs)} done"
        told = f"{error}\nrlx: " if str(error) else ""
        number = error.code - 128 if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(
            number, f"{told}the sweep is stopped, {done}; it goes on with: {sweep.resume_line}"
        ) from None


def _raise_unfinished(sweep: Sweep) -> None:
    """RunError where jobs are left, none of which failed; ConfigError where others have them."""
    jobs = sweep.jobs()
    left = [job for job in jobs if not job.finished]
    if left and all(job.is_locked() for job in left):
        raise ConfigError(
            f"{sweep.path}: another process has all that is left, {len(left)} of {len(jobs)} jobs."
        )
    if left:
        text = ", ".join(f"{count} {state}" for state, count in counted(left).items())
        raise RunError(f"{text}, of {len(jobs)} jobs; the sweep goes on with: {sweep.resume_line}")


def _raise_failures(sweep: Sweep) -> None:
    """RunError where jobs failed, of exit code 2 where nothing but configs were wrong.

    Each is told once more: the first time may be far above.
    """
    jobs = sweep.jobs()
    failed = [job for job in jobs if job.status == "failed"]
    if not failed:
        return
    keys = swept_keys(jobs)
    for job in failed:
        tell_failure(job.label_of(keys), str(job.error))
    error = RunError(
        f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again. "
        f"Tracebacks are in {sweep.path / 'jobs'}"
    )
    error.code = min(job.code for job in failed)
    raise error
