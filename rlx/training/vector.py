"""hydra/launcher=vector: the jobs of a sweep that can be trained as one batch are.

It implements Hydra's Launcher, which gets the overrides of all jobs at once.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from rlx.config import build
from rlx.errors import ConfigError, RunError
from rlx.experiment import setup_device
from rlx.grids import parse_seeds
from rlx.machine import require_disk
from rlx.names import flatten_keys
from rlx.runs.run import Run, noting
from rlx.show import console
from rlx.sweeps.running import JobTask, fail, with_todays
from rlx.sweeps.sweep import Job, Planned, Sweep
from rlx.training import state
from rlx.training.config import Config, run_name
from rlx.training.packing import Pack, packed, shared, take_apart, why_alone
from rlx.training.result import final_episodes
from rlx.training.resuming import resumed

CPU_ROWS = 32
"""The most seeds in a batch on a CPU. Its caches do not hold what more of them keep: of 128, a step
of DQN on CartPole takes 1.7 times as long for each (docs/results/speed.md)."""
Watch = Callable[[Sequence[Job], Pack], None]
"""Is told of each evaluation of a pack of these jobs, and may drop members."""


class VectorLauncher(Launcher):
    """Trains jobs side by side, and those that fit in no batch one after the other."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """What Hydra tells a launcher before it launches."""
        self.context = hydra_context
        self.task = task_function
        self.config = config

    @staticmethod
    def check(command: str, jobs: Sequence[Planned] | None) -> None:
        """ConfigError where no two jobs fit in one batch, or where a sweeper will think of them."""
        if jobs is None:
            raise ConfigError(
                "hydra/launcher=vector: not with a sweeper of Hydra's, which wants a result before "
                "it thinks of the next jobs; rlx tune trains its trials as batches."
            )
        if command != "train":
            raise ConfigError(f"hydra/launcher=vector: batches trainings; rlx {command} is none.")
        configs = {job.id: job.config for job in jobs}
        if len(jobs) > 1 and len(_alike(configs)) == len(jobs):
            raise ConfigError(
                f"hydra/launcher=vector: no two of the {len(jobs)} jobs fit in one batch "
                f"({_apart(list(configs.values()))}). Without it they are trained one after the "
                "other."
            )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do the jobs of these overrides; what has become of them their files say."""
        assert isinstance(self.task, JobTask)
        sweep = Sweep(Path(self.task.sweep))
        sweep.clear_batches()
        overrides_of = {}
        jobs = []
        for overrides in job_overrides:
            job = sweep.job(overrides)
            jobs.append(job)
            overrides_of[job.id] = overrides
        groups = batches(sweep, jobs)
        _tell(groups)
        returns = []
        for batch in groups:
            first = batch.left()[0]
            config = self._composed(first.number, overrides_of[first.id])
            if batch.run is None and len(batch.jobs) == 1:
                returns.append(self._alone(config))
            else:
                batch.do(config)
                returns.append(_done())
        return returns

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """What Hydra composes for a job of the sweep, the one at the place `number`."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config

    def _alone(self, config: DictConfig) -> JobReturn:
        """Do a job that fits in no batch, as Hydra does it."""
        return run_job(
            task_function=self.task,  # type: ignore[arg-type]
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )


def _done() -> JobReturn:
    """What Hydra gets for a batch."""
    done = JobReturn()
    done.status = JobStatus.COMPLETED
    done.return_value = None
    return done


def batches(sweep: Sweep, jobs: Sequence[Job], watch: "Watch | None" = None) -> "list[Batch]":
    """The batches of jobs that are left; one job alone is one, too.

    A batch that was stopped goes on as it was, and so does a job that was begun alone. `watch` is
    told of each evaluation.
    """
    batches = [Batch(sweep, [job]) for job in jobs if job.may_go_on]
    begun = {job.id for job in jobs if job.may_go_on}
    wanted = {job.id for job in jobs}
    for run, members in sweep.batches().items():
        batch = Batch(sweep, members, run, watch)
        if batch.left() and wanted & {job.id for job in members}:
            batches.append(batch)
            begun |= {job.id for job in members}
    fresh = {job.id: job for job in jobs if job.id not in begun}
    for ids in _alike({job_id: job.config for job_id, job in fresh.items()}):
        for part in _parts([fresh[job_id] for job_id in ids]):
            batches.append(Batch(sweep, part, None, watch))
    # One that kills its process holds up no other.
    return sorted(batches, key=lambda batch: max(job.deaths for job in batch.jobs))


def _parts(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that fit in one batch, as many batches of one size as the caches of a CPU ask for."""
    rows = sum(len(parse_seeds(job.config.seeds)) for job in jobs)
    count = 1
    if setup_device(jobs[0].config.device).type == "cpu":
        count = min(len(jobs), math.ceil(rows / CPU_ROWS))
    return [list(jobs[part::count]) for part in range(count)]


def _alike(configs: Mapping[str, DictConfig]) -> list[list[str]]:
    """The identities of the jobs of these configs, those together that fit in one batch."""
    batches: dict[str, list[str]] = {}
    for job_id, config in configs.items():
        key = job_id
        if why_alone(config) is None:
            key = json.dumps(shared(config), sort_keys=True)
        batches.setdefault(key, []).append(job_id)
    return list(batches.values())


def _apart(configs: Sequence[DictConfig]) -> str:
    """Why these configs are not in one batch: the keys in which they differ, and other reasons."""
    keys = []
    values = [shared(config) for config in configs]
    for name in values[0]:
        column = [value[name] for value in values]
        classes = {group["_target_"] for group in column if _is_group(group)}
        if all(value == column[0] for value in column):
            continue
        if len(classes) == 1:
            flat = [flatten_keys(group, name) for group in column]
            keys += [key for key in flat[0] if len({str(group.get(key)) for group in flat}) > 1]
        else:
            keys.append(name)
    reasons = [why for why in map(why_alone, configs) if why is not None]
    if keys:
        reasons.insert(0, f"they differ in {', '.join(keys)}")
    return "; ".join(dict.fromkeys(reasons))


def _is_group(value: object) -> bool:
    """Whether a value of a config is a config group with a class."""
    return isinstance(value, dict) and "_target_" in value


def _tell(batches: "Sequence[Batch]") -> None:
    """Say how many batches there are, and why there is more than one."""
    sizes = [len(batch.left()) for batch in batches]
    if len(batches) == 1:
        console.facts(vector=f"{sizes[0]} jobs in one batch")
        return
    text = f"{sum(sizes)} jobs in {len(batches)} batches of {', '.join(map(str, sizes))}"
    begun = [batch for batch in batches if batch.run is not None or batch.jobs[0].may_go_on]
    new = [batch.jobs[0].config for batch in batches if batch not in begun]
    if len(new) > 1:
        text += f"; {_apart(new) or f'{CPU_ROWS} seeds are what the caches of a CPU hold'}"
    if begun:
        text += f"; {len(begun)} of them were begun before"
    console.facts(vector=text)


@dataclass(frozen=True)
class Batch:
    """Jobs of a sweep that are trained as one batch."""

    sweep: Sweep
    jobs: Sequence[Job]
    """All members, in the order of their rows."""
    run: Run | None = None
    """The run of the batch, if it was stopped at a checkpoint."""
    watch: Watch | None = None
    """What is told of each evaluation, and may drop members."""

    def left(self) -> list[Job]:
        """The jobs that this batch has to finish, as they are on disk now.

        A member that somebody has begun alone meanwhile goes on alone.
        """
        jobs = [job.read() for job in self.jobs]
        if len(jobs) == 1:
            return jobs
        return [job for job in jobs if not job.finished and not job.may_go_on]

    def do(self, composed: DictConfig) -> None:
        """Train the jobs, and make a run of each. A failure ends this batch alone.

        `composed`: what Hydra composed for one of them; its device and outputs are those of all.
        """
        with ExitStack() as stack:
            for job in self.jobs:
                if not stack.enter_context(job.lock()):
                    console.facts(sweep=f"another process has {job.label}, and so the batch")
                    return
            former = HydraConfig.instance().cfg
            HydraConfig.instance().set_config(composed)
            began = time.monotonic()
            try:
                self._train(composed)
            except KeyboardInterrupt:
                self._note("interrupted", began)
                raise
            except (Exception, SystemExit) as error:
                for job in self.left():
                    fail(job, error, self._share(began))
            finally:
                HydraConfig.instance().cfg = former

    def _train(self, composed: DictConfig) -> None:
        """Train the jobs that are left, from where their batch was stopped if it was."""
        began = time.monotonic()
        self._note("running", began)
        configs = [with_todays(job.config, composed) for job in self.jobs]
        pack = self._train_pack(packed(configs))
        for number, reason in sorted(pack.failed().items()):
            job = self.jobs[number].read()
            if not job.finished and not job.may_go_on:
                fail(job, RunError(reason), self._share(began))
        alive = pack.alive()
        episodes = None
        # A member whose env raises in the end is no more known than one whose env is another's.
        with suppress(RunError):
            episodes = final_episodes(pack) if alive else None
        for number in alive:
            job = self.jobs[number].read()
            is_elsewhere = job.may_go_on and len(self.jobs) > 1
            if job.finished or is_elsewhere:
                continue
            job.delete_run()  # half taken apart when the process was killed
            config = configs[number]
            with noting("train", job.note):
                own = Run.create(config.outputs, "train", pack.name, config)
            try:
                value = take_apart(pack, number, config, own, episodes)
            except RunError as error:
                fail(job, error, self._share(began))
                continue
            job.log.unlink(missing_ok=True)
            took_s = job.took_s + self._share(began)
            job.read().write(state="completed", value=value, took_s=took_s, deaths=0)
        pack.output.delete()

    def _train_pack(self, config: DictConfig) -> Pack:
        """The trained pack of all jobs, or the pack from which all have dropped out."""
        if self.run is not None:
            pack = self._resumed(self.run, config)
            run = self.run
            resumed_config: DictConfig | None = config
        else:
            name = run_name(build(Config, config, ""))
            pack = Pack(build(Config, config, ""), name)
            # The batch, and the runs that are made of it.
            require_disk(config.outputs, 2 * state.disk_size(pack))
            run = self.sweep.begin_batch(name, config, self.jobs)
            resumed_config = None
        while True:
            if self.watch is not None:
                pack.watch = partial(self.watch, self.jobs)
            try:
                pack.run(run, resumed_config, go_on=self.sweep.resume_line)
                return pack
            except RunError:
                culprit = pack.culprit
                if not culprit and not pack.alive():
                    return pack
                if not culprit:
                    raise
            if run.checkpoints.resumable():
                pack = self._resumed(run, config)
            else:
                pack = Pack(build(Config, config, ""), pack.name)
            resumed_config = config
            for reason in culprit.values():
                console.warning(f"one of the batch drops out: {reason}")
            pack.output = run
            try:
                pack.drop(culprit)
            except RunError:
                return pack

    def _resumed(self, run: Run, config: DictConfig) -> Pack:
        """The pack as the newest checkpoint of its `run` has it."""
        pack, warnings = resumed(run, config, Pack)
        for warning in warnings:
            console.warning(warning)
        console.facts(resumes=f"at step {pack.step:,}")
        assert isinstance(pack, Pack)
        return pack

    def _note(self, status: str, began: float) -> None:
        """Write down the state of all jobs that are left."""
        for job in self.left():
            took_s = job.took_s + self._share(began)
            deaths = job.deaths + 1 if status == "running" else 0
            job.write(state=status, error=None, code=0, took_s=took_s, deaths=deaths)

    def _share(self, began: float) -> float:
        """Each job's share of the seconds since `began`."""
        return (time.monotonic() - began) / len(self.jobs)
