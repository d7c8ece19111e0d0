"""Tuning: Optuna asks for trials, which are trained side by side as jobs of a sweep.

A trial is a job of the sweep and a trial of Optuna's study; `user_attrs` of the trial name the job,
its batch and its run. Several processes may tune at once: who asks holds the lock of the sweep, and
who trains a batch holds the locks of its jobs. What a killed process had is done by the next one.
"""

import fcntl
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from rlx import statistics
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.runs.files import write
from rlx.show import console
from rlx.sweeps.report import report
from rlx.sweeps.running import fail
from rlx.sweeps.sweep import LOST, Job, Planned, Sweep, identity
from rlx.training.optuna_study import check_storage, make_sampler, open_study
from rlx.training.packing import Pack
from rlx.training.tune_plan import Plan
from rlx.training.tuned import Comparison, write_tuned
from rlx.training.vector import batches

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from rlx.sweeps.planning import Options

DEATHS = 3
"""Processes that a batch may end before its first evaluation, until its trials are given up."""


class Tuning:
    """A tuning, begun or gone on with, in this process."""

    def __init__(self, plan: Plan, sweep: Sweep, study: "Study"):
        self.plan = plan
        self.sweep = sweep
        self.study = study
        self.began = time.monotonic()
        """When this process began, by the monotonic clock, in seconds."""

    @classmethod
    def begin(cls, plan: Plan, options: "Options") -> "Tuning":
        """The tuning of a plan, in its folder; ConfigError where another one is there."""
        if options.fresh:
            raise ConfigError("fresh=true: a tuning goes on; for a new one add sweep=NAME.")
        path = Sweep.folder(plan.config.outputs, options.name or plan.name)
        storage = Path(plan.config.storage or path / "study.log")
        if plan.config.storage:
            check_storage(storage)
        if Sweep.is_at(path):
            sweep = Sweep(path)
        else:
            sweep = Sweep.begin(path, "tune", sys.argv[1:], plan.line, None)
        _check_same(sweep, plan)
        return cls(plan, sweep, open_study(path.name, storage, plan.config, plan.line))

    def run(self) -> float:
        """Train what is left, compare the best with today's settings, and report.

        Returns the interquartile mean return of the best on the fresh seeds.
        """
        console.facts(
            tuning=self.sweep.path,
            trials=f"{self.plan.config.trials}, {self._count()} of them asked for before",
        )
        try:
            self._train_trials()
            comparison = self._compare()
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            message = f"the tuning is stopped; it goes on with: {self.sweep.resume_line}"
            raise Interrupted(number, message) from None
        if comparison is not None:
            comparison.print()
            write_tuned(comparison, self.plan.line, self._facts())
        report(self.sweep)
        return float("nan") if comparison is None else comparison.best.estimate.iqm

    def _facts(self) -> str:
        """What the tuned settings are known by: the number of trials, and their seeds."""
        return f"{self._count()} trials on seeds {console.ranges(self.plan.base.seeds)}"

    # Asking and training

    def _train_trials(self) -> None:
        """Train batches until all trials are told, or others have the rest."""
        while jobs := self._next():
            composed = self._composed(str(self.sweep.path))
            left = [job for job in jobs if _is_open(job.read())]
            self._check_jobs(left)
            for batch in batches(self.sweep, left, self._watch):
                batch.do(composed)
            if all(job.read().status == "failed" for job in jobs):
                raise RunError(f"all trials of a batch failed; see {self.sweep.path / 'jobs'}")

    def _next(self) -> list[Job]:
        """The jobs of a batch that is to be trained: one left behind, or a new one; none: done."""
        with self._asking():
            self._settle()
            trials = _asked(self.study.get_trials(deepcopy=False))
            for batch in _by_batch(trials):
                jobs = self._jobs(batch)
                if any(_is_open(job) for job in jobs) and all(_is_free(job) for job in jobs):
                    return jobs
            jobs = []
            while not jobs and not self._is_late():
                left = self.plan.config.trials - self._count()
                if left <= 0:
                    break
                jobs = self._jobs(self._ask(min(left, self.plan.config.batch)))
            return jobs

    def _count(self) -> int:
        """The number of trials so far, less those that a killed process had only thought of."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(bool({"job", "error"} & set(trial.user_attrs)) for trial in trials)

    def _is_late(self) -> bool:
        """Whether no more trials are to be begun."""
        minutes = self.plan.config.minutes
        return minutes is not None and time.monotonic() - self.began > 60 * minutes

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The lock of whoever asks for trials; waits for it."""
        with open(self.sweep.path / "asking.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _ask(self, count: int) -> "list[FrozenTrial]":
        """New trials that are trained as one batch, `count` of them, less those that cannot be."""
        from optuna.samplers import PartialFixedSampler
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if not trials:
            # The first is what one has without tuning.
            self.study.enqueue_trial(self.plan.space.start(self.plan.base))
        distributions = self.plan.space.distributions()
        sampler = make_sampler(self.plan.config.sampler, len(trials))
        numbers: list[int] = []
        fixed: dict[str, Any] = {}
        for _ in range(count):
            self.study.sampler = PartialFixedSampler(fixed, sampler) if fixed else sampler
            trial = self.study.ask(distributions)
            fixed = {key: trial.params[key] for key in self.plan.space.shaping}
            try:
                config = self.plan.space.config(self.plan.base, trial.params)
            except ConfigError as error:
                trial.set_user_attr("error", str(error))
                self.study.tell(trial, state=TrialState.FAIL)
                console.warning(f"trial {trial.number} cannot be trained: {error}")
                continue
            numbers.append(trial.number)
            trial.set_user_attr("batch", numbers[0])
            trial.set_user_attr("job", identity(config))
        asked = self.study.get_trials(deepcopy=False)
        return [asked[number] for number in numbers]

    def _jobs(self, batch: "Sequence[FrozenTrial]") -> list[Job]:
        """The jobs of the trials of a batch, in order; two trials may be the same job."""
        known = {job.id: job for job in self.sweep.jobs()}
        jobs = {}
        for trial in batch:
            job_id = trial.user_attrs["job"]
            if job_id not in known:
                known[job_id] = self.sweep.add(self._planned(trial))
            jobs[job_id] = known[job_id]
        return list(jobs.values())

    def _planned(self, trial: "FrozenTrial") -> Planned:
        """The job of a trial, of which nothing is on disk."""
        values = self.plan.space.values(trial.params)
        config = self.plan.space.config(self.plan.base, trial.params)
        overrides = ["stage=trial", *(f"{key}={value}" for key, value in values.items())]
        return Planned(identity(config), overrides, config)

    def _check_jobs(self, jobs: Sequence[Job]) -> None:
        """ConfigError where trials are other trainings now than when they were asked for.

        What was on disk is compared with what the command line makes of the trial.
        """
        trials = _asked(self.study.get_trials(deepcopy=False))
        by_job = {trial.user_attrs["job"]: trial for trial in trials}
        for job in jobs:
            trial = by_job[job.id]
            if self._planned(trial).id != job.id:
                raise ConfigError(
                    f"sweep={self.sweep.path.name}: trial {trial.number} is another training now: "
                    "conf/ or rlx has changed. For a new tuning add sweep=NAME."
                )

    def _composed(self, outputs: str) -> DictConfig:
        """Hydra's own config of this command, with the device and the folder of the runs."""
        composed = HydraConfig.instance().cfg.copy()  # type: ignore[union-attr]
        OmegaConf.set_readonly(composed, False)
        with open_dict(composed):
            composed.outputs = outputs
            composed.device = self.plan.base.device
        return composed

    # Telling

    def _watch(self, jobs: Sequence[Job], pack: Pack) -> None:
        """Report an evaluation of all trials of a batch, and drop those that are given up."""
        from optuna.trial import Trial, TrialState

        open_trials = {
            trial.user_attrs.get("job"): trial
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        }
        reported = []
        for number in pack.alive():
            frozen = open_trials.get(jobs[number].id)
            if frozen is None:
                continue
            trial = Trial(self.study, frozen._trial_id)
            job = jobs[number].read()
            if job.deaths > 1:
                job.write(deaths=1)
            if pack.step not in frozen.intermediate_values:
                kept = pack.kept.value[pack.members[number]]
                trial.report(float(statistics.iqm(kept.numpy())), pack.step)
            reported.append((number, trial))
        if pack.step >= pack.config.steps:
            return
        for number, trial in reported:
            if trial.should_prune():
                text = f"pruned at step {pack.step:,}"
                jobs[number].read().write(state="pruned", error=text)
                self.study.tell(trial, state=TrialState.PRUNED)
        self._drop(jobs, pack)

    def _drop(self, jobs: Sequence[Job], pack: Pack) -> None:
        """Drop the members that are pruned, where it is worth it.

        A compiled batch is compiled anew for its new size, and so waits until half of it is idle.
        """
        alive = pack.alive()
        idle = [number for number in alive if jobs[number].read().state == "pruned"]
        if idle and (not pack.compiles or 2 * len(idle) >= len(alive)):
            console.facts(pruned=f"{len(idle)} of the {len(alive)} trials of this batch")
            pack.drop({number: "pruned" for number in idle})

    def _settle(self) -> None:
        """Tell Optuna what has become of the trials whose jobs have ended."""
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            job_id = frozen.user_attrs.get("job")
            if job_id is None:  # asked for by a process that was killed
                self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            (job,) = self._jobs([frozen])
            if job.deaths >= DEATHS and _is_open(job) and _is_free(job):
                fail(job, RunError(f"{LOST}, {DEATHS} times before an evaluation"), 0)
                job = job.read()
            run = job.run
            if job.state == "pruned":
                self.study.tell(frozen.number, state=TrialState.PRUNED)
            elif job.finished and run is not None:
                Trial(self.study, frozen._trial_id).set_user_attr("run", str(run.path))
                kept = np.array(run.summary()["kept"]["value"])
                self.study.tell(frozen.number, float(statistics.iqm(kept)))
            elif job.state == "failed":
                Trial(self.study, frozen._trial_id).set_user_attr("error", str(job.error))
                self.study.tell(frozen.number, state=TrialState.FAIL)

    # The end

    def _compare(self) -> Comparison | None:
        """The best trial and the settings of today on the fresh seeds; None: there is none yet.

        None too where another process is at it.
        """
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.RUNNING for trial in trials):
            console.facts(
                tuning="other processes are at trials; the last of them compares the best"
            )
            return None
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not complete:
            raise RunError(f"no trial came to its end; see {self.sweep.path / 'jobs'}")
        best = self.study.best_trial
        config = self.plan.space.config(self.plan.base, best.params)
        config.seeds = list(self.plan.today.seeds)
        settings = {f"trial-{best.number}": config, "today": self.plan.today}
        with self._asking():
            jobs = {name: self._final_job(name, each) for name, each in settings.items()}
        left = [job for job in jobs.values() if not job.finished]
        for batch in batches(self.sweep, left):
            batch.do(self._composed(self.plan.config.outputs))
        runs = {name: job.read().run for name, job in jobs.items()}
        left = [job for job in jobs.values() if not job.read().finished]
        if any(job.is_locked() for job in left):
            console.facts(tuning="another process compares the best")
            return None
        if left:
            raise RunError(
                f"{left[0].text}: is {left[0].read().status}, and so nothing is compared"
            )
        found, today = runs.values()
        assert found is not None and today is not None
        return Comparison.of(found, today, best.number, config)

    def _final_job(self, name: str, config: DictConfig) -> Job:
        """The job that trains these settings on the fresh seeds."""
        planned = Planned(identity(config), ["stage=final", f"settings={name}"], config)
        known = {job.id: job for job in self.sweep.jobs()}
        return known.get(planned.id) or self.sweep.add(planned)


def _asked(trials: "Sequence[FrozenTrial]") -> "list[FrozenTrial]":
    """The trials that are jobs of the sweep."""
    return [trial for trial in trials if "job" in trial.user_attrs]


def _by_batch(trials: "Sequence[FrozenTrial]") -> "list[list[FrozenTrial]]":
    """The trials, those together that were asked for together."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        found.setdefault(trial.user_attrs["batch"], []).append(trial)
    return list(found.values())


def _is_open(job: Job) -> bool:
    """Whether there is something to do: a trial that failed is not tried again."""
    return not job.finished and job.state != "failed"


def _is_free(job: Job) -> bool:
    """Whether no process is at the job."""
    with job.lock() as ours:
        return ours


def _check_same(sweep: Sweep, plan: Plan) -> None:
    """ConfigError unless the sweep is the tuning of this plan; what it is of is in tune.yaml."""
    name = sweep.path.name
    line = sweep.resume_line
    if sweep.command != "tune":
        raise ConfigError(f"sweep={name}: is of another command, {sweep.line}; take another name.")
    file = sweep.path / "tune.yaml"
    if not file.is_file():
        write(file, OmegaConf.to_yaml(plan.asked))
        return
    before = OmegaConf.load(file)
    assert isinstance(before, DictConfig)
    if identity(before) == identity(plan.asked):
        return
    if sweep.line == plan.line:
        raise ConfigError(f"sweep={name}: conf/ or rlx is another now; take another name.")
    raise ConfigError(
        f"sweep={name}: is of another command, {sweep.line}; take another name, or go on with it: "
        f"{line}"
    )
