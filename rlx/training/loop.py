"""Training: the loop of `rlx train`, and all that it must remember to go on exactly where it was."""

import shlex
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from rlx import contract, experiment
from rlx.agent import OfflineAgent, Transition
from rlx.config import build, parse_seeds
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.evaluation import REPORT, SELECTION, evaluate
from rlx.nn.rng import reset_seeds, seed_tensor
from rlx.nn.seed_axis import concatenated, take
from rlx.runs.run import Run
from rlx.show import figures, report, stats
from rlx.training import journal, stopping
from rlx.training.kept import Kept
from rlx.training.log import Log

if TYPE_CHECKING:
    from rlx.training.config import Config


class Training:
    """Seeds, agent, env and counters of one run. Between two vector steps, `state()` is everything that decides its future."""

    def __init__(self, config: "Config", name: str):
        """Builds everything, writes nothing; raises ConfigError."""
        self.config, self.name = config, name
        self.seeds = parse_seeds(config.seeds)
        stop = build(stopping.Config, config.stop, "stop") if config.stop else None
        if stop and config.data:
            raise ConfigError("stop: an offline agent has no training returns to stop by.")
        if stop and config.num_envs != 1:
            raise ConfigError(
                f"num_envs={config.num_envs}: a stop rule needs num_envs=1, so that episodes have an order."
            )
        self.device = experiment.setup_device(config.device)
        self.spec = experiment.env_spec(config.env)
        self.eval_env = experiment.evaluated_env({"env": config.env, "eval_env": config.eval_env})
        self.threshold = experiment.evaluated_spec(self.spec, self.eval_env).reward_threshold
        """Return from which a seed counts as solved, if the env says."""
        self.data = experiment.open_data(config.data, config.skip_bad) if config.data else None
        self.num_envs, self.unit, self.fingerprint = config.num_envs, "steps", None
        env = config.env
        if self.data is not None:
            if config.env.get("drift"):
                raise ConfigError("env.drift: an offline agent's env does not grow older.")
            self.differences = self.data.fit(self.spec, self.eval_env)
            self.num_envs, self.unit, self.fingerprint = 1, "minibatches", self.data.fingerprint
            env = {**config.env, "workers": 1}  # it is never stepped
        contract.check_env(experiment.make_env({**env, "workers": 1}, 1, "cpu"), self.spec)
        seeds = seed_tensor(self.seeds, self.device)
        shape = (len(seeds), self.num_envs)
        self.agent = experiment.make_agent(config.agent, self.spec, seeds, self.num_envs, self.data)
        self.env = experiment.make_env(env, len(seeds) * self.num_envs, self.device)
        self.obs = self.env.reset(seed=reset_seeds(seeds, self.num_envs, "env").flatten().tolist())[
            0
        ].unflatten(0, shape)
        contract.check_policy(self.agent, self.obs, self.spec)
        self.first = torch.ones(shape, dtype=torch.bool, device=self.device)
        self.carry = self.agent.policy.initial_carry(self.num_envs)
        self.running = torch.arange(len(seeds), device=self.device)
        """Rows of `seeds` that still learn."""
        self.last = torch.full((len(seeds),), torch.nan, dtype=torch.float64)
        """Every seed's last evaluation."""
        self.stop = stopping.StopRule(stop, len(seeds)) if stop else None
        self.kept = Kept(self.agent.policy, len(seeds))
        self.keeps_newest = (
            config.keep == "newest" or self.agent.keeps_newest or bool(config.env.get("drift"))
        )
        """Also where what was best was so in another env."""
        self.log = Log(shape, self.device)
        self.journal = journal.Journal()
        self.part_sums: dict[str, str] = {}
        """Checksums of the journal's parts."""
        self.step = self.evaluated = self.saved = 0
        """Environment steps of each running seed: made, last evaluated, last saved."""
        self.wall_s = self.saving_s = 0.0
        """Seconds spent before this process; on checkpoints in this one."""
        self.signal, self.interruptible = 0, False

    def make_env(self, num_envs: int) -> Any:
        """Copies of the env to evaluate in, as old as those it learns from."""
        return experiment.make_env(self.eval_env, num_envs, self.device, self.step // self.num_envs)

    def run(self, output: Run, reopen: DictConfig | None = None, go_on: str | None = None) -> float:
        """Train, evaluate, save, report; returns the interquartile mean of the last evaluation.

        `reopen`: the config with which an earlier run goes on. `go_on`: the command that takes this
        one up again. SIGINT and SIGTERM end it between two vector steps, also within an
        evaluation, with a checkpoint: Interrupted.
        """
        self.output, self.began = output, time.monotonic()
        self.saved_at = self.began
        go_on = go_on or f"rlx resume {shlex.quote(str(output.path))}"
        self._header()
        with output.writing(), self._signals():
            if reopen is not None:
                output.reopen(reopen, self.step, self.evaluated)
            try:
                with report.Progress(
                    self.config.steps, self.step, self.threshold, self.unit
                ) as progress:
                    self._learn(progress)
                self.interruptible = True
                return self._finish()
            except KeyboardInterrupt:
                self.interruptible = False
                if self.saved < self.step:
                    self._save()
                output.write_meta(step=self.step)
                message = f"interrupted at step {self.step:,}; go on with: {go_on}"
                raise Interrupted(self.signal, message) from None
            except (RunError, OSError) as error:
                stands = (
                    f"the last checkpoint stands: {go_on}"
                    if output.checkpoints.steps()
                    else "no checkpoint had been saved yet"
                )
                raise RunError(f"{error}; {stands}") from None

    def _header(self) -> None:
        """Print what will be trained, on what, and what it takes."""
        online = self.data is None
        replays, disk = (
            journal.size(self.agent) / 1e6,
            f"up to {self.disk_size() / 1e6:,.0f} MB on disk",
        )
        report.start(
            run=self.output.path,
            agent=f"{self.name}, protocol {self.config.protocol}",
            seeds=f"{len(self.seeds)} ({report.ranges(self.seeds)})"
            + f", {self.num_envs} env copies each" * online,
            steps=f"{self.config.steps:,} {self.unit} per seed, evaluated every {self.config.eval_every:,}",
            device=f"{self.device}, {torch.get_num_threads()} thread(s)",
            size=f"replay {replays:,.0f} MB in memory; {disk}" if online else disk,
        )
        if self.data is not None:
            report.start(data=self.config.data, **self.data.card())
            for difference in self.differences:
                report.start(differs=difference)

    def _learn(self, progress: report.Progress) -> None:
        """The loop. Each turn begins between two vector steps, where a run can be saved and taken up again."""
        config = self.config
        while len(self.running):
            if self._due(config.eval_every) and self.evaluated < self.step:
                self._evaluate(progress)
            ends = self.step >= config.steps
            if self.saved < self.step and (
                ends or self._due(config.checkpoint_every) or self._long_ago()
            ):
                self._save()
            if self.signal:
                raise KeyboardInterrupt
            if ends:
                break
            metrics = self._vector_step()
            if self.stop is not None and self.first.any():
                self._apply_stop_rule(metrics, progress)
            progress.update(self.step)
        if self.saved < self.step:
            self._save()
        self._close(progress)

    def _close(self, progress: report.Progress) -> None:
        """What only the end of a run asks for. The checkpoint of its last step does not know of it: a run that goes on from there
        must be as if it had never ended."""
        if len(self.running) and self.evaluated < self.step:
            self._evaluate(progress)
        if self.stop is not None and len(self.running):  # these never met it
            nobody = torch.zeros(len(self.running), dtype=torch.bool)
            self.kept.keep(
                self.agent.policy,
                self.running,
                ~nobody.to(self.device),
                self.step,
                nobody,
                self.stop.mean(),
            )
        if self.kept.changed:
            self._save_kept()

    def _vector_step(self) -> Tensor:
        """Act, step, learn; returns the returns so far of the running episodes, those that ended included [S', N]."""
        if isinstance(self.agent, OfflineAgent):
            self.step += 1
            return self.log.add(
                torch.zeros_like(self.log.running),
                torch.zeros_like(self.first),
                self.agent.learn(),
                self.step,
            )
        action, self.carry = self.agent.act(self.obs, self.first, self.carry)
        unchecked = not self.log.metrics  # nothing has been learnt in this process yet
        if unchecked:
            contract.check_action(self.agent, action, self.first.shape)
        obs, reward, terminated, truncated, info = self.env.step(action.flatten(0, 1))
        next_obs, obs, reward, terminated, truncated = (
            x.unflatten(0, self.first.shape)
            for x in (info["final_obs"], obs, reward, terminated, truncated)
        )
        metrics = self.agent.update(
            Transition(self.obs, action, reward, next_obs, terminated, truncated, self.carry)
        )
        if unchecked:
            contract.check_metrics(self.agent, metrics, self.first.shape)
        self.obs, self.first = obs, terminated | truncated
        self.step += self.num_envs
        return self.log.add(reward, self.first, metrics, self.step)

    def _apply_stop_rule(self, returns: Tensor, progress: report.Progress) -> None:
        """Keep the weights of the seeds that stop now, and go on without them."""
        assert self.stop is not None
        stopped, solved = self.stop.ended(self.first[:, 0].cpu(), returns[:, 0].cpu())
        if stopped.any():
            self.kept.keep(
                self.agent.policy,
                self.running,
                stopped.to(self.device),
                self.step,
                solved,
                self.stop.mean(),
            )
            progress.stopped(int(stopped.sum()))
            self._take(torch.nonzero(~stopped).squeeze(1).to(self.device))

    def _take(self, rows: Tensor) -> None:
        """Go on with these rows of the running seeds only."""
        self.running, self.obs, self.first = self.running[rows], self.obs[rows], self.first[rows]
        self.carry = {name: value[rows] for name, value in self.carry.items()}
        self.agent = take(self.agent, rows)
        copy = torch.arange(self.num_envs, device=self.device)
        self.env.keep((rows.unsqueeze(1) * self.num_envs + copy).flatten())
        self.log.take(rows)
        self.journal, self.part_sums = journal.Journal(), {}  # the rings have other places now
        if self.stop is not None:
            self.stop.take(rows.cpu())

    def _evaluate(self, progress: report.Progress) -> None:
        seeds = [self.seeds[i] for i in self.running.tolist()]
        self.log.check(seeds, self.obs)
        self.interruptible = True
        try:
            episodes = evaluate(
                self.agent.policy,
                self.make_env,
                len(seeds),
                self.config.eval_episodes,
                SELECTION,
                self.device,
            )
        except RunError:  # the env's fault: what was learnt is whole
            self.interruptible = False
            self._save()
            raise
        self.interruptible = False
        mean = episodes.returns.mean(1).cpu()
        self.last[self.running.cpu()] = mean
        if self.stop is None:
            if self.keeps_newest:
                self.kept.value.fill_(-torch.inf)
            self.kept.improve(self.agent.policy, mean, self.step)
        self.output.log(self.log.rows(self.step, seeds, episodes, progress.steps_per_s(self.step)))
        self.evaluated = self.step
        progress.evaluated(self.step, mean, self.kept.value)

    def _due(self, every: int) -> bool:
        """Whether the last vector step passed a multiple of `every`."""
        return self.step // every > (self.step - self.num_envs) // every

    def _long_ago(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_seconds`."""
        return (
            self.config.checkpoint_seconds is not None
            and time.monotonic() - self.saved_at >= self.config.checkpoint_seconds
        )

    def disk_size(self) -> int:
        """Bytes that its checkpoints take at most."""
        steps, between = self.config.steps, self.config.checkpoint_every
        policy, rest = (
            sum(tensor.nbytes for tensor in tensors.values())
            for tensors in (self.agent.policy.state_dict(), self.state())
        )
        # Three of what going on needs: one is being written.
        return int(
            (steps // between + 5) * policy
            + 3 * rest
            + journal.disk_size(self.agent, between, steps)
        )

    def state(self) -> dict[str, Tensor]:
        """Everything but the policy and the replays, which a checkpoint holds beside it, under dotted names."""
        apart = {f"policy.{name}" for name in self.agent.policy.state_dict()} | journal.ring_names(
            self.agent
        )
        parts: dict[str, Mapping[str, Tensor]] = {
            "agent": {
                name: value for name, value in self.agent.state_dict().items() if name not in apart
            },
            "env": self.env.state_dict(),
            "loop": {
                "obs": self.obs,
                "first": self.first,
                "running": self.running,
                "last": self.last,
            },
            "carry": self.carry,
            "log": self.log.state_dict(),
            "kept": self.kept.state_dict(),
            "stop": self.stop.state_dict() if self.stop is not None else {},
        }
        return {
            f"{part}.{name}": value
            for part, values in parts.items()
            for name, value in values.items()
        }

    def load(
        self,
        counters: Mapping[str, Any],
        policy: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        parts: Iterable[tuple[str, Mapping[str, Tensor]]],
    ) -> None:
        """Become what was saved: `counters` of state.json, the tensors of the two files, the parts of the replays in order."""

        def part(name: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(f"{name}."): value.to(self.device)
                for key, value in state.items()
                if key.startswith(f"{name}.")
            }

        if self.data is not None and not self.data.is_of(counters.get("data")):
            raise ConfigError(
                f"data={self.config.data}: is not what the run has learnt from; it was changed or replaced."
            )
        loop = part("loop")
        if len(loop["running"]) < len(self.seeds):
            self._take(loop["running"])
        self.obs, self.first, self.running, self.last = (
            loop["obs"],
            loop["first"],
            loop["running"],
            loop["last"].cpu(),
        )
        self.carry = part("carry")
        rings = {
            name: value
            for name, value in self.agent.state_dict().items()
            if name in journal.ring_names(self.agent)
        }
        saved = part("agent") | {f"policy.{name}": value for name, value in policy.items()} | rings
        if odd := sorted(saved.keys() ^ self.agent.state_dict().keys()):
            which = "lacks" if odd[0] not in saved else "has an unknown"
            raise ConfigError(
                f"run: its checkpoint {which} '{odd[0]}'; it is of another version of this agent and cannot be resumed."
            )
        self.agent.load_state_dict(saved)
        for name, rows in parts:
            journal.restore(self.agent, name, rows)
            self.journal.add(name, rows)
        self.part_sums = dict(counters["replay"])
        self.env.load_state_dict(part("env"))
        self.log.load_state_dict(part("log"))
        self.kept.load_state_dict({name: value.cpu() for name, value in part("kept").items()})
        if self.stop is not None:
            self.stop.load_state_dict({name: value.cpu() for name, value in part("stop").items()})
        self.step, self.evaluated, self.wall_s = (
            counters["step"],
            counters["evaluated"],
            counters["wall_s"],
        )
        self.saved = self.step

    def join(self, first: "Training", second: "Training") -> None:
        """Become two trainings that are at the same step: the seeds of `first`, then those of `second`."""
        policy = concatenated(first.agent.policy.state_dict(), second.agent.policy.state_dict())
        state = concatenated(first.state(), second.state())
        state["loop.running"] = torch.cat([first.running, second.running + len(first.seeds)])
        # With a stop rule, the part that ended earlier has no seeds that still learn.
        step, evaluated = max(first.step, second.step), max(first.evaluated, second.evaluated)
        counters = {
            "step": step,
            "evaluated": evaluated,
            "wall_s": first.wall_s + second.wall_s,
            "replay": {},
            "data": self.fingerprint,
        }
        self.load(counters, policy, state, ())
        self.agent.load_state_dict(
            concatenated(first.agent.state_dict(), second.agent.state_dict())
        )
        self.saved = -1  # nowhere yet

    def _save(self) -> None:
        """A checkpoint of now, and the kept weights."""
        seeds = [self.seeds[i] for i in self.running.tolist()]
        self.log.check(seeds, self.obs)
        began = time.monotonic()
        counters = {
            "step": self.step,
            "evaluated": self.evaluated,
            "wall_s": self._elapsed(),
            "seeds": seeds,
        }
        counters["data"] = self.fingerprint
        counters["lasting"] = (
            self._due(self.config.checkpoint_every) or self.step >= self.config.steps
        )
        self._save_kept()  # first: a checkpoint without it would not be resumed to write it
        parts = self.journal.due(self.agent, self.step)
        former = {name: self.part_sums[name] for name in self.journal.parts if name not in parts}
        name = f"{self.step:09d}"
        self.part_sums = self.output.checkpoints.save(
            name,
            counters,
            self.agent.policy.state_dict(),
            self.state(),
            parts=parts,
            former_parts=former,
        )
        self.saved, self.saved_at = self.step, time.monotonic()
        self.saving_s += self.saved_at - began

    def _save_kept(self) -> None:
        self.output.checkpoints.save(
            "best", {"seeds": self.seeds} | self.kept.facts(), self.kept.policy.state_dict()
        )
        self.kept.changed = False

    def _elapsed(self) -> float:
        return self.wall_s + time.monotonic() - self.began

    def _finish(self) -> float:
        config, wall_s = self.config, self._elapsed()
        episodes = evaluate(
            self.kept.policy,
            self.make_env,
            len(self.seeds),
            config.final_episodes,
            REPORT,
            self.device,
        )
        returns = episodes.returns.cpu().numpy()
        estimate = stats.estimate(returns)
        figures.learning(
            *self.output.curve(),
            self.output.path / "learning.png",
            self.name,
            self.unit,
            self.threshold,
        )
        steps = int(self.kept.step.max()) if config.stop else self.step
        made = int(self.kept.step.sum()) if config.stop else steps * len(self.seeds)
        summary: dict[str, Any] = {
            "seeds": self.seeds,
            "steps": steps,
            "wall_s": wall_s,
            "steps_per_s": made / wall_s,
            "checkpoints_s": self.saving_s,
            "return": estimate.as_dict(),
            "reward_threshold": self.threshold,
            "truncation_rate": episodes.truncated.double().mean(1),
            "kept": self.kept.facts(),
        }
        self.output.complete(summary, {"returns": returns})
        columns = {
            "return": estimate.per_seed,
            "at the time limit": [f"{x:.0%}" for x in summary["truncation_rate"].tolist()],
            "kept at step": [f"{x:,}" for x in self.kept.step.tolist()],
        }
        if config.stop:
            columns["stop rule"] = ["met" if x else "not met" for x in self.kept.solved.tolist()]
        when = (
            "stop" if config.stop else "last evaluation" if self.keeps_newest else "best evaluation"
        )
        report.per_seed(
            f"Greedy return over {config.final_episodes} new episodes, weights kept at each seed's {when}",
            self.seeds,
            columns,
            estimate,
        )
        for warning in self.agent.warnings():
            report.start(warning=warning)
        if not self.log.metrics:
            report.start(
                warning=f"nothing was learnt within {self.step:,} {self.unit}; see agent.learning_starts or agent.rollout_steps"
            )
        report.start(
            saving=f"{self.saving_s:.1f} s for checkpoints, {self.saving_s / wall_s:.1%} of the time"
        )
        report.end(self.output.path, figure=self.output.path / "learning.png", wall_s=wall_s)
        # A seed that stopped before its first evaluation has the value by which it stopped.
        return float(stats.iqm(torch.where(self.last.isnan(), self.kept.value, self.last).numpy()))

    @contextmanager
    def _signals(self):
        """SIGINT and SIGTERM set `signal`, and raise at once where `interruptible`."""

        def handle(number: int, frame: Any) -> None:
            self.signal = number
            if self.interruptible:
                raise KeyboardInterrupt

        try:
            former = {
                number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread: some sweepers' launchers
            former = {}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
