"""hydra/launcher=vector: the jobs of a sweep that can be trained as one batch are.

It implements Hydra's Launcher, which gets the overrides of all jobs at once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from rlx.config import build
from rlx.errors import ConfigError, RunError
from rlx.names import flatten_keys
from rlx.runs.run import Run
from rlx.show import console
from rlx.sweeps.running import JobTask, fail, with_todays
from rlx.sweeps.sweep import Job, Planned, Sweep
from rlx.training.config import Config, run_name
from rlx.training.packing import Pack, alike, packed, take_apart
from rlx.training.result import final_episodes
from rlx.training.resuming import resumed


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
    def check(command: str, jobs: Sequence[Planned]) -> None:
        """ConfigError where no two jobs fit in one batch."""
        if command != "train":
            raise ConfigError(f"hydra/launcher=vector: batches trainings; rlx {command} is none.")
        groups = batches({job.id: job.config for job in jobs})
        if len(jobs) > 1 and len(groups) == len(jobs):
            keys = ", ".join(_apart([job.config for job in jobs]))
            raise ConfigError(
                f"hydra/launcher=vector: no two of the {len(jobs)} jobs fit in one batch; they "
                f"differ in {keys}. Without it they are trained one after the other."
            )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do the jobs of these overrides; what has become of them their files say."""
        assert isinstance(self.task, JobTask)
        sweep = Sweep(Path(self.task.sweep))
        composed = {}
        jobs = {}
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = str(number)
                config.hydra.job.num = number
            job = sweep.job(list(OmegaConf.to_container(config.hydra.overrides.task)))  # type: ignore
            assert job is not None
            composed[job.id] = config
            jobs[job.id] = job
        configs = {job_id: job.config for job_id, job in jobs.items()}
        groups = batches(configs)
        _tell(groups, configs)
        returns = []
        for batch in groups:
            if len(batch) > 1:
                Batch(sweep, [jobs[job_id] for job_id in batch], composed[batch[0]]).do()
                returns += [_done() for _ in batch]
            else:
                returns.append(self._alone(composed[batch[0]]))
        return returns

    def _alone(self, config: DictConfig) -> JobReturn:
        """Do a job that fits in no batch, as Hydra does it."""
        return run_job(
            task_function=self.task,  # type: ignore[arg-type]
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )


def batches(configs: Mapping[str, DictConfig]) -> list[list[str]]:
    """The identities of the jobs, those together that fit in one batch."""
    groups: dict[str, list[str]] = {}
    for job_id, config in configs.items():
        groups.setdefault(alike(config) or job_id, []).append(job_id)
    return list(groups.values())


def _apart(configs: Sequence[DictConfig]) -> list[str]:
    """The keys by which some of the configs are kept out of one batch."""
    flat = [flatten_keys(OmegaConf.to_container(config)) for config in configs]
    keys = [key for key in flat[0] if len({str(values.get(key)) for values in flat}) > 1]
    together = []
    for key in keys:
        if not (key.startswith(("seeds", "outputs", "device"))):
            together.append(key)
    return together


def _tell(batches: Sequence[Sequence[str]], configs: Mapping[str, DictConfig]) -> None:
    """Say how many batches there are, and why there is more than one."""
    sizes = ", ".join(str(len(batch)) for batch in batches)
    text = f"{len(configs)} jobs in {len(batches)} batches of {sizes}"
    if len(batches) == 1:
        text = f"{len(configs)} jobs in one batch"
    else:
        keys = ", ".join(_apart([configs[batch[0]] for batch in batches]))
        text += f"; apart by {keys}"
    console.facts(vector=text)


def _done() -> JobReturn:
    """What Hydra gets for a job of a batch."""
    done = JobReturn()
    done.status = JobStatus.COMPLETED
    done.return_value = None
    return done


@dataclass(frozen=True)
class Batch:
    """Jobs of a sweep that are trained as one batch."""

    sweep: Sweep
    jobs: Sequence[Job]
    composed: DictConfig
    """What Hydra composed for the first of them; its device and outputs are those of all."""
    watch: Callable[[Sequence[Job], Pack], None] | None = None
    """What is told of each evaluation, and may drop members; the jobs are those of the pack."""

    def do(self) -> None:
        """Train the jobs, and make a run of each. A failure ends this batch alone."""
        with ExitStack() as stack:
            for job in self.jobs:
                if not stack.enter_context(job.lock()):
                    console.facts(sweep=f"another process has {job.label}, and so the batch")
                    return
            former = HydraConfig.instance().cfg
            HydraConfig.instance().set_config(self.composed)
            began = time.monotonic()
            try:
                self._train(began)
            except KeyboardInterrupt:
                self._each("interrupted", began)
                raise
            except Exception as error:
                for job in self._left():
                    fail(job, error, (time.monotonic() - began) / len(self.jobs))
            finally:
                HydraConfig.instance().cfg = former

    def _train(self, began: float) -> None:
        """Train the jobs that are left, in their batch of before if there is one."""
        jobs = self._left()
        if not jobs:
            return
        if any(run.checkpoints.resumable() for run in self._saved(self.jobs)):
            jobs = list(self.jobs)  # some may have been taken apart, or have dropped out
        configs = [self._config(job) for job in jobs]
        self._each("running", began)
        config = packed(configs)
        pack, run, resumed_config = self._pack(jobs, config)
        if self.watch is not None:
            pack.watch = partial(self.watch, jobs)
        pack.run(run, resumed_config, go_on=f"rlx resume {self.sweep.path}")
        alive = pack.alive()
        for number, job in enumerate(jobs):
            if number not in alive and not job.read().finished:
                reason = pack.failed.get(number, "dropped out before the batch was interrupted")
                fail(job, RunError(reason), 0.0)
        episodes = final_episodes(pack) if alive else None
        took_s = (time.monotonic() - began) / len(jobs)
        for number in alive:
            job = jobs[number].read()
            if job.finished:
                continue
            if job.run is not None:
                job.run.delete()  # half taken apart when the process was killed
            own = Run.create(configs[number].outputs, "train", pack.name, configs[number])
            job.note(own)
            assert episodes is not None
            value = take_apart(pack, number, configs[number], own, episodes)
            job.log.unlink(missing_ok=True)
            job.read().write(state="completed", value=value, took_s=job.took_s + took_s)
        run.delete()

    def _pack(self, jobs: Sequence[Job], config: DictConfig) -> tuple[Pack, Run, DictConfig | None]:
        """The pack as its newest checkpoint has it, or a new one; its run, and its config then."""
        name = run_name(build(Config, config, ""))
        for run in self._saved(jobs):
            if run.checkpoints.resumable():
                found, warnings = resumed(run, config, Pack)
                for warning in warnings:
                    console.warning(warning)
                console.facts(resumes=f"at step {found.step:,}")
                assert isinstance(found, Pack)
                return found, run, config
            run.delete()
        return (
            Pack(build(Config, config, ""), name),
            Run.create(str(self._root(jobs)), "train", name, config),
            None,
        )

    def _saved(self, jobs: Sequence[Job]) -> list[Run]:
        """The runs of a pack of these jobs that are on disk: one, or none."""
        return [Run(meta.parent) for meta in sorted(self._root(jobs).glob("train/*/*/meta.json"))]

    def _root(self, jobs: Sequence[Job]) -> Path:
        """Where the run of a pack of these jobs is."""
        digest = sha256(" ".join(job.id for job in jobs).encode()).hexdigest()[:12]
        return self.sweep.path / "batches" / digest

    def _left(self) -> list[Job]:
        """The jobs that are not finished, as they are on disk now."""
        return [job for job in (job.read() for job in self.jobs) if not job.finished]

    def _each(self, state: str, began: float) -> None:
        """Write down the state of all jobs that are left."""
        share = (time.monotonic() - began) / len(self.jobs)
        for job in self._left():
            job.write(state=state, took_s=job.took_s + share)

    def _config(self, job: Job) -> DictConfig:
        """The config of a job, with what may be another one than when the sweep was begun."""
        return with_todays(job.config, self.composed)
