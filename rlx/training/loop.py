"""Training: the loop of `rlx train`."""

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from rlx import contract, experiment
from rlx.agent import OfflineAgent
from rlx.config import build, convert
from rlx.defence import Defence, Trial
from rlx.env import TensorEnv
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.evaluation import SELECTION, evaluate
from rlx.grids import parse_rows
from rlx.nn.rng import reset_seeds, seed_tensor
from rlx.nn.seed_axis import take
from rlx.robustness.attacked_env import AttackedEnv
from rlx.rollout import Episodes, MakeChoose
from rlx.runs.listing import defence_of
from rlx.runs.run import Run
from rlx.show import console
from rlx.trackers.tracking import Tracking, make_trackers
from rlx.training import compiling, journal, result, state, stopping
from rlx.training.kept import Kept
from rlx.training.log import Log
from rlx.vector_step import Laps, vector_step

if TYPE_CHECKING:
    from rlx.training.compiled import CompiledSteps
    from rlx.training.config import Config

KEPT_ATTACKED = "the weights whose lower return, with or without an attack, is each seed's best"
"""What keep=attacked keeps."""


class Training:
    """Seeds, agent, env and counters of one run.

    Between two vector steps, rlx/training/state.py knows everything that decides its future.
    """

    def __init__(self, config: "Config", name: str):
        """Build everything, write nothing; raises ConfigError. `name`: as in "dqn-cartpole"."""
        self.config = config
        self.name = name
        self.seeds = parse_rows(config.seeds)
        stop_config = _stop_config(config)
        self.trackers = make_trackers(config.tracker)
        """The trackers that are told of the run, by name."""
        self.device = experiment.setup_device(config.device)
        self.spec = experiment.env_spec(config.env)
        self.eval_env = experiment.eval_env_config({"env": config.env, "eval_env": config.eval_env})
        self.threshold = experiment.eval_spec(self.spec, self.eval_env).reward_threshold
        """Return from which a seed counts as solved; None where the env names none."""
        self.num_envs = config.num_envs
        """N: env copies of each seed."""
        self.unit = "steps"
        """The unit of `step`: "steps" of the env, or "minibatches" of a data set."""
        self.data = experiment.open_data(config.data, config.skip_bad) if config.data else None
        """The data set of an offline agent; None: the agent acts in the env."""
        self.differences: list[str] = []
        """Sentences that say how the env of the data set differs from this one."""
        self.fingerprint: str | None = None
        """Fingerprint of the data set, by which resuming knows it again."""
        if self.data is not None:
            self._fit_data()

        self._check_env()
        seeds = seed_tensor(self.seeds, self.device)
        shape = (len(seeds), self.num_envs)
        self.agent = experiment.make_agent(config.agent, self.spec, seeds, self.num_envs, self.data)
        self.env = self._make_learning_env()
        """S'·N env copies in which the agent learns."""
        resets = reset_seeds(seeds, self.num_envs, "env")
        obs, _ = self.env.reset(seed=resets.flatten().tolist())
        self.obs = obs.unflatten(0, shape)
        """[S', N, *O]: the observations that the next step begins with; S' seeds still learn."""
        contract.check_policy(self.agent, self.obs, self.spec)
        self.first = torch.ones(shape, dtype=torch.bool, device=self.device)
        """bool [S', N]: whether an episode begins with `obs`."""
        self.carry = self.agent.policy.initial_carry(self.num_envs)
        """Tensors [S', N, …]: the policy's memory of the running episodes."""
        self.running = torch.arange(len(seeds), device=self.device)
        """int64 [S']: rows of `seeds` that still learn."""

        self.last = torch.full((len(seeds),), torch.nan, dtype=torch.float64)
        """float64 [S]: mean return of every seed's last evaluation; NaN before the first."""
        self.stop = stopping.StopRule(stop_config, len(seeds)) if stop_config else None
        """The stop rule; None: every seed learns for all steps."""
        self.kept = Kept(self.agent.policy, len(seeds))
        """The weights that the run keeps of every seed."""
        drifts = bool(config.env.get("drift"))
        self.keeps_newest = config.keep == "newest" or self.agent.keeps_newest or drifts
        """Whether the newest weights are kept instead of the best.

        In an env that drifts, the best evaluation was one in another env.
        """
        self.compiles = compiling.wanted(self)
        """Whether the vector steps are compiled; a run that goes on stays as it was."""
        self.log = Log(shape, self.device)
        self.journal = journal.Journal()
        self.part_sums: dict[str, str] = {}
        """Checksums of the journal's parts, by name."""
        self.step = 0
        """Environment steps made by each seed that still learns."""
        self.evaluated = 0
        """The step of the last evaluation."""
        self.saved = 0
        """The step of the last checkpoint."""
        self.wall_s = 0.0
        """Seconds that the run took in earlier processes."""

        # All below is of this process alone; `run` begins with it.
        self.compiled: CompiledSteps | None = None
        """The compiled vector steps; None: none are compiled, or none are yet."""
        self.output: Run
        """The run directory that `run` fills."""
        self.tracking: Tracking
        """Sends what `output` has for good to the trackers."""
        self.laps = Laps()
        """What vector steps spend their time on, where they are not compiled and not on a GPU."""
        self.began = 0.0
        """When `run` began, by the monotonic clock, in seconds."""
        self.saved_at = 0.0
        """When the last checkpoint was saved, by the monotonic clock, in seconds; later by what was
        spent on compiling since."""
        self.compiling_s = 0.0
        """Seconds spent on compiling."""
        self.saving_s = 0.0
        """Seconds spent on checkpoints."""
        self.is_part = False
        """Whether the run is but a part of another one, which is told of in the end."""
        self.signal = 0
        """Number of the signal that told the run to stop; 0: none has."""
        self.interruptible = False
        """Whether a signal ends the run at once, instead of before the next vector step."""
        self.is_between_steps = True
        """Whether no vector step is under way, so that the run can be saved."""

    def _fit_data(self) -> None:
        """Learn from the data set instead of the env; ConfigError where it does not fit the env."""
        assert self.data is not None
        if self.config.env.get("drift"):
            raise ConfigError("env.drift: an offline agent's env does not grow older.")
        self.differences = self.data.adapt_to(self.spec, self.eval_env)
        self.fingerprint = self.data.fingerprint
        self.num_envs = 1
        self.unit = "minibatches"

    def _check_env(self) -> None:
        """ConfigError where the env does not return what its contract asks for."""
        env = experiment.make_env(self._one_process(), 1, "cpu")
        contract.check_env(env, self.spec)
        if isinstance(env, AttackedEnv):
            config = self.config
            if config.stop:
                raise ConfigError("stop: not with env=attacked, where each seed has its victim.")
            copies = (self.num_envs, config.eval_episodes, config.final_episodes)
            env.members.check_seeds(len(self.seeds), copies)

    def _make_learning_env(self) -> TensorEnv:
        """All env copies that the agent learns in, not yet reset."""
        config = self.config.env
        if self.data is not None:
            # An offline agent's env is never stepped.
            config = self._one_process()
        return experiment.make_env(config, len(self.seeds) * self.num_envs, self.device)

    def _one_process(self) -> dict[str, Any]:
        """The config group `env` without processes beside this one."""
        return {**self.config.env, "workers": 1}

    def make_env(self, num_envs: int) -> TensorEnv:
        """`num_envs` copies of the env to evaluate in, as old as those that the agent learns in."""
        return experiment.make_env(self.eval_env, num_envs, self.device, self.step // self.num_envs)

    def run(
        self, output: Run, resumed_config: DictConfig | None = None, go_on: str | None = None
    ) -> float:
        """Train, evaluate, save, report; returns the interquartile mean of the last evaluation.

        `resumed_config`: the config with which an earlier run goes on; None: the run is new.
        `go_on`: the command that takes this run up again, of a run that is but a part of another,
        and that no tracker is told of; None: `rlx resume`. SIGINT and SIGTERM end it between two
        vector steps, also within an evaluation, with a checkpoint: Interrupted.
        """
        self.output = output
        self.began = time.monotonic()
        self.saved_at = self.began
        self.is_part = go_on is not None
        self.tracking = Tracking(output, {} if self.is_part else self.trackers)
        go_on = go_on or f"rlx resume {shlex.quote(str(output.path))}"
        with self.tracking, output.writing(), self._signals():
            self._header()
            output.write_meta(compiled=compiling.by_what(self))
            if resumed_config is not None:
                output.rewind(resumed_config, self.step, self.evaluated)
            self.tracking.begin()
            try:
                with console.Progress(
                    self.config.steps,
                    self.step,
                    self.threshold,
                    self.unit,
                    spent=self.spent(),
                    paused=lambda: self.compiling_s,
                ) as progress:
                    self._learn(progress)
                self.interruptible = True
                if self.signal:  # it came behind the last vector step
                    raise KeyboardInterrupt
                return self._finish()
            except KeyboardInterrupt:
                self.interruptible = False
                if self.saved < self.step and self.is_between_steps:
                    self.save()
                output.write_meta(step=self.saved)
                message = f"interrupted at step {self.saved:,}; go on with: {go_on}"
                if not (output.checkpoints.steps() or self.is_part):
                    message = "interrupted before the first checkpoint; it is to begin again"
                raise Interrupted(self.signal, message) from None
            except BrokenPipeError:  # nobody reads what is printed, as in: rlx train … | head
                raise
            except (RunError, OSError) as error:
                outcome = "no checkpoint had been saved yet"
                if output.checkpoints.steps():
                    outcome = f"the last checkpoint stands: {go_on}"
                raise RunError(f"{error}; {outcome}") from None

    def _finish(self) -> float:
        """Report the kept weights; returns the interquartile mean of the last evaluation."""
        return result.finish(self, self.elapsed())

    def spent(self) -> dict[str, float]:
        """Seconds by the parts of vector steps; empty where the host does not wait for them."""
        return self.laps.seconds if self.device.type == "cpu" else {}

    def _seeds_text(self) -> str:
        """How many seeds there are, and which, as the header says it."""
        return f"{len(self.seeds)} ({console.ranges(self.seeds)})"

    def _header(self) -> None:
        """Print what will be trained, on what, and what it takes."""
        config = self.config
        seeds = self._seeds_text()
        size = f"up to {state.disk_size(self) / 1e6:,.0f} MB on disk"
        if self.data is None:
            seeds += f", {self.num_envs} env copies each"
            size = f"replay {journal.size(self.agent) / 1e6:,.0f} MB in memory; {size}"
        steps = f"{config.steps:,} {self.unit} per seed"
        if not self.is_part:
            console.facts(run=self.output.path)
        agent = f"{self.name}, protocol {config.protocol}"
        defence = defence_of(config.agent)
        console.facts(
            agent=f"{agent}, defence {defence}" if defence else agent,
            seeds=seeds,
            steps=f"{steps}, evaluated every {config.eval_every:,}",
            device=f"{self.device}, {torch.get_num_threads()} thread(s)",
            size=size,
            compiled=compiling.description(self),
        )
        if self._judges_attacked():
            console.facts(keep=f"attacked: {KEPT_ATTACKED}")
        if self.data is not None:
            console.facts(data=config.data, **self.data.card())
            for difference in self.differences:
                console.facts(differs=difference)

    def _learn(self, progress: console.Progress) -> None:
        """Learn until every seed has made its steps or has stopped.

        Each turn of the loop begins between two vector steps, where a run can be saved and taken up
        again.
        """
        config = self.config
        while len(self.running):
            if self._passed(config.eval_every) and self.evaluated < self.step:
                self._evaluate(progress)
            at_end = self.step >= config.steps
            must_save = at_end or self._passed(config.checkpoint_every) or self._last_save_is_old()
            if must_save and self.saved < self.step:
                self.save()
            if self.signal:
                raise KeyboardInterrupt
            if at_end:
                break
            self.is_between_steps = False
            returns = self._vector_step()
            self.is_between_steps = True
            if self.stop is not None and self.first.any():
                self._apply_stop_rule(returns, progress)
            progress.update(self.step)
        if self.saved < self.step:
            self.save()
        self._close(progress)

    def _close(self, progress: console.Progress) -> None:
        """Evaluate and keep weights as only the end of a run asks for.

        The checkpoint of the last step was saved before, and does not know of this: a run that goes
        on from there must be as if it had never ended.
        """
        if len(self.running) and self.evaluated < self.step:
            self._evaluate(progress)
        if self.stop is not None and len(self.running):
            self._keep_unstopped(self.stop)
        if self.kept.changed:
            self._save_kept()

    def _vector_step(self) -> Tensor:
        """Act, step, learn; an offline agent only learns.

        Returns the returns so far [S', N] of the running episodes, those that ended included.
        """
        self._begin_compiling()
        if self.compiled is not None:
            return self.compiled.vector_step()
        if isinstance(self.agent, OfflineAgent):
            self.step += 1
            self.log.note(self.agent.learn(), self.step)
            return self.log.running
        self.laps.start()
        done = vector_step(self.agent, self.env, self.obs, self.first, self.carry, self.laps.lap)
        self.obs = done.obs
        self.first = done.first
        self.carry = done.transition.carry
        self.step += self.num_envs
        self.log.note(done.metrics, self.step)
        return self.log.add(done.transition.reward, done.first)

    def _begin_compiling(self) -> None:
        """Have the steps of the seeds that still learn compiled, where that is to be."""
        if self.compiles and self.compiled is None:
            compiling.begin(self)

    def _apply_stop_rule(self, returns: Tensor, progress: console.Progress) -> None:
        """Keep the weights of the seeds that stop now, and go on without them."""
        assert self.stop is not None
        stopped, solved = self.stop.ended(self.first[:, 0].cpu(), returns[:, 0].cpu())
        if stopped.any():
            self.kept.keep(
                self.agent.policy,
                self.running,
                stopped.to(self.device),
                self.step,
                solved=solved,
                value=self.stop.mean(),
            )
            progress.stopped(int(stopped.sum()))
            self.take(torch.nonzero(~stopped).squeeze(1).to(self.device))

    def _keep_unstopped(self, stop: stopping.StopRule) -> None:
        """Keep the weights of the seeds that never met the stop rule."""
        unsolved = torch.zeros(len(self.running), dtype=torch.bool)
        self.kept.keep(
            self.agent.policy,
            self.running,
            torch.ones_like(self.running, dtype=torch.bool),
            self.step,
            solved=unsolved,
            value=stop.mean(),
        )

    def take(self, rows: Tensor) -> None:
        """Go on with the rows `rows` (int64 [S'']) of the running seeds only."""
        self.compiled = None
        self.running = self.running[rows]
        self.obs = self.obs[rows]
        self.first = self.first[rows]
        self.carry = {name: value[rows] for name, value in self.carry.items()}
        self.agent = take(self.agent, rows)
        copies = torch.arange(self.num_envs, device=self.device)
        self.env.keep((rows.unsqueeze(1) * self.num_envs + copies).flatten())
        self.log.take(rows)
        if self.stop is not None:
            self.stop.take(rows.cpu())
        # Parts on disk hold the rings of all seeds, in other rows: the next checkpoint starts anew.
        self.journal = journal.Journal()
        self.part_sums = {}

    def _evaluate(self, progress: console.Progress) -> None:
        """Play greedily, log the returns, keep the weights that are the best so far."""
        self._check()
        seeds = self._running_seeds()
        try:
            with self.interrupted_at_once():
                episodes = self._play()
                attacked = self._play_attacked() if self._judges_attacked() else episodes
        except RunError:
            # It is the env's fault: what was learnt is whole.
            self.save()
            raise
        mean = episodes.returns.mean(1).cpu()
        mean_attacked = attacked.returns.mean(1).cpu()
        self.last[self.running.cpu()] = mean
        if self.stop is None:
            if self.keeps_newest:
                # The newest weights win over the kept ones, whatever return these had.
                self.kept.value.fill_(-torch.inf)
            # A policy may need to be attacked: some do worse where nobody does.
            value = torch.minimum(mean, mean_attacked)
            self.kept.improve(self.agent.policy, self.running, value, self.step)
        rows = self.log.rows(self.step, seeds, episodes, progress.steps_per_s(self.step))
        if attacked is not episodes:
            for row, value in zip(rows, mean_attacked.tolist(), strict=True):
                row["return/attacked"] = value
        self._write(rows)
        self.evaluated = self.step
        told = None if attacked is episodes else mean_attacked
        progress.evaluated(self.step, mean, self.kept.value, told)

    def _play(self) -> Episodes:
        """The episodes [S', B] of a greedy evaluation."""
        self._begin_compiling()
        played = self.compiled.evaluation.episodes() if self.compiled is not None else None
        return played or self._play_as_written()

    def _play_attacked(self) -> Episodes:
        """The episodes [S', B] of an evaluation under what the agent's defence shall resist."""
        defence = convert(self.config.agent["defence"], Defence, "agent.defence")
        trial = Trial(defence, self.spec, self.config.eval_episodes, self.device)
        return self._play_as_written(trial)

    def _play_as_written(self, make_choose: MakeChoose | None = None) -> Episodes:
        """The episodes [S', B] of an evaluation, greedy or as `make_choose` says."""
        return evaluate(
            self.agent.policy,
            self.make_env,
            len(self.running),
            self.config.eval_episodes,
            SELECTION,
            self.device,
            make_choose,
        )

    def _judges_attacked(self) -> bool:
        """Whether returns under attack choose the kept weights: no rule keeps others."""
        return self.config.keep == "attacked" and not self.keeps_newest and self.stop is None

    def _check(self) -> None:
        """Raise RunError where a seed met a number that is not finite."""
        self.log.check(self._running_seeds(), self.obs)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows of an evaluation, one of each seed that still learns."""
        self.output.log(rows)

    def _running_seeds(self) -> list[int]:
        """The seeds that still learn."""
        return [self.seeds[row] for row in self.running.tolist()]

    def _passed(self, every: int) -> bool:
        """Whether the last vector step passed a multiple of `every`."""
        return self.step // every > (self.step - self.num_envs) // every

    def _last_save_is_old(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_seconds`."""
        seconds = self.config.checkpoint_seconds
        return seconds is not None and time.monotonic() - self.saved_at >= seconds

    def save(self) -> None:
        """Save the kept weights, and a checkpoint of this step."""
        config = self.config
        self._check()
        began = time.monotonic()
        counters = {
            "step": self.step,
            "evaluated": self.evaluated,
            "wall_s": self.elapsed(),
            "seeds": self._running_seeds(),
            "rows": self.running.tolist(),
            "data": self.fingerprint,
            "compiled": self.compiles,
            "lasting": self._passed(config.checkpoint_every) or self.step >= config.steps,
        }
        # In this order: a crash between the two leaves kept weights that are newer than the last
        # checkpoint, and going on from that writes them again. In the other order it would leave a
        # checkpoint whose kept weights are missing or older than itself.
        self._save_kept()
        parts = self.journal.take_new_parts(self.agent, self.step)
        former_parts = {
            name: self.part_sums[name] for name in self.journal.parts if name not in parts
        }
        self.part_sums = self.output.checkpoints.save(
            f"{self.step:09d}",
            counters,
            self.agent.policy.state_dict(),
            state.tensors(self),
            parts=parts,
            former_parts=former_parts,
        )
        self.saved = self.step
        self.saved_at = time.monotonic()
        self.saving_s += self.saved_at - began
        self.tracking.send(self.evaluated)

    def _save_kept(self) -> None:
        """Save the kept weights as the checkpoint "best"."""
        rows = list(range(len(self.seeds)))
        facts = {"seeds": self.seeds, "rows": rows} | self.kept.facts()
        self.output.checkpoints.save("best", facts, self.kept.policy.state_dict())
        self.kept.changed = False

    def elapsed(self) -> float:
        """Seconds that the run has taken, in all processes."""
        return self.wall_s + time.monotonic() - self.began

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let `_on_signal` handle SIGINT and SIGTERM within the context.

        So too what a scheduler sends ahead of its time limit, where somebody handles that: submitit
        has the job queued again, but knows of no checkpoint.
        """
        former_handlers = {}
        # ValueError: not in the main thread, where some sweepers' launchers run.
        with suppress(ValueError):
            ahead = (signal.SIGUSR1, signal.SIGUSR2)
            handled = [number for number in ahead if callable(signal.getsignal(number))]
            for number in (signal.SIGINT, signal.SIGTERM, *handled):
                former_handlers[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in former_handlers.items():
                signal.signal(number, handler)

    def has_compiled(self, seconds: float) -> None:
        """Leave out `seconds` of compiling where speeds and unsaved work are told."""
        self.compiling_s += seconds
        self.saved_at += seconds

    @contextmanager
    def interrupted_at_once(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the run within the context, though it be within a step."""
        former = self.interruptible
        self.interruptible = True
        try:
            if self.signal:
                raise KeyboardInterrupt
            yield
        finally:
            self.interruptible = former

    def _on_signal(self, number: int, frame: Any) -> None:
        """Note the signal, and raise at once where `interruptible`."""
        self.signal = number
        if self.interruptible:
            raise KeyboardInterrupt


def _stop_config(config: "Config") -> stopping.Config | None:
    """The settings of the stop rule; None where there is none.

    ConfigError where the rule cannot be followed.
    """
    if not config.stop:
        return None
    stop = build(stopping.Config, config.stop, "stop")
    if config.data:
        raise ConfigError("stop: an offline agent has no training returns to stop by.")
    if config.num_envs != 1:
        raise ConfigError(
            f"num_envs={config.num_envs}: a stop rule needs num_envs=1, "
            "so that episodes have an order."
        )
    return stop
