"""Train an agent on an env, many seeds at once, and keep each seed's best weights."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from rlx import report
from rlx.config import ConfigError, at_least, build, conf_dir, parse_seeds
from rlx.run import Run, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rlx.agent import Agent, Policy
    from rlx.rollout import Episodes


@dataclass(frozen=True)
class Config:
    """The keys of train.yaml."""

    agent: Any
    env: Any
    device: Any
    protocol: str
    seeds: Any
    """A count, a range or a list: trained together, each as if alone."""
    steps: int
    """Environment steps per seed."""
    copies: int
    """Env copies per seed."""
    eval_every: int
    """Environment steps between two greedy evaluations."""
    eval_episodes: int
    """Episodes of each, by which the best weights are kept."""
    final_episodes: int
    """Other episodes, on which the kept weights are reported."""
    checkpoint_every: int
    """Environment steps between two checkpoints."""
    stop: Any
    """null, or a stop rule on training returns: the weights at the stop are kept instead of the best evaluated ones."""
    outputs: str
    """Folder of all runs."""


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="train")
def main(config: DictConfig) -> float:
    """Returns the interquartile mean of the last evaluation, for sweepers."""
    return Training(config).run()


class Training:
    """One run of `rlx train`."""

    def __init__(self, composed: DictConfig):
        self.config = config = build(Config, composed, "")
        for key in ("steps", "copies", "eval_every", "eval_episodes", "final_episodes", "checkpoint_every"):
            at_least(getattr(config, key), 1, key)
        self.seeds = parse_seeds(config.seeds)

        from rlx import experiment, stopping
        from rlx.rng import reset_seeds, seed_tensor

        stop = build(stopping.Config, config.stop, "stop") if config.stop else None
        if stop and config.copies != 1:
            raise ConfigError(f"copies={config.copies}: a stop rule needs copies=1, so that episodes have an order.")
        self.device = experiment.setup_device(config.device)
        self.spec = experiment.env_spec(config.env)
        seeds = seed_tensor(self.seeds, self.device)
        self.make_env = lambda copies: experiment.make_env(config.env, copies, self.device)
        self.agent = experiment.make_agent(config.agent, self.spec, seeds, config.copies)
        self.env = self.make_env(len(seeds) * config.copies)
        self.reset_seeds = reset_seeds(seeds, config.copies, "env")
        self.stop = stopping.StopRule(stop, len(seeds)) if stop else None
        self.kept = Kept(self.agent.policy, len(seeds))
        self.name = f"{_name(composed, 'agent')}-{_name(composed, 'env')}"
        self.output = Run.create(config.outputs, "train", self.name, composed)

    def run(self) -> float:
        """Train, evaluate, save, report; returns the interquartile mean of the last evaluation."""
        import torch

        report.start(
            run=self.output.path,
            agent=f"{self.name}, protocol {self.config.protocol}",
            seeds=f"{len(self.seeds)} ({report.ranges(self.seeds)}), {self.config.copies} env copies each",
            steps=f"{self.config.steps:,} per seed, evaluated every {self.config.eval_every:,}",
            device=f"{self.device}, {torch.get_num_threads()} thread(s)",
        )
        began = time.monotonic()
        try:
            with report.Progress(self.config.steps, threshold=self.spec.reward_threshold) as progress:
                last = self._learn(progress)
            return self._finish(last, time.monotonic() - began)
        except BaseException as error:
            self.output.write_meta(status="interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
            raise

    def _learn(self, progress: report.Progress) -> "Tensor":
        """The loop; returns every seed's last evaluation [S]."""
        import torch

        from rlx.agent import Transition
        from rlx.networks import take

        config, agent, env = self.config, self.agent, self.env
        shape = (len(self.seeds), config.copies)
        log = Log(len(self.seeds), config.copies, self.device)
        running = torch.arange(len(self.seeds), device=self.device)  # the seeds that still learn
        last = torch.full((len(self.seeds),), torch.nan, dtype=torch.float64)
        obs, _ = env.reset(seed=self.reset_seeds.flatten().tolist())
        obs, carry = obs.unflatten(0, shape), agent.policy.initial_carry(config.copies)
        first = torch.ones(shape, dtype=torch.bool, device=self.device)
        for step in range(config.copies, config.steps + config.copies, config.copies):
            action, carry = agent.act(obs, first, carry)
            next_obs, reward, terminated, truncated, info = env.step(action.flatten())
            final_obs, reward, terminated, truncated = (
                x.unflatten(0, action.shape) for x in (info["final_obs"], reward, terminated, truncated)
            )
            metrics = agent.update(Transition(obs, action, reward, final_obs, terminated, truncated, carry))
            obs, first = next_obs.unflatten(0, action.shape), terminated | truncated
            episode_returns = log.add(reward, first, metrics, step)

            if self.stop is not None and first.any():
                stopped, solved = self.stop.ended(first[:, 0].cpu(), episode_returns[:, 0].cpu())
                if stopped.any():
                    self.kept.keep(agent.policy, running, stopped.to(self.device), step, solved, self.stop.mean())
                    progress.stopped(int(stopped.sum()))
                    if stopped.all():
                        break
                    stay = torch.nonzero(~stopped).squeeze(1).to(self.device)
                    running, obs, first = running[stay], obs[stay], first[stay]
                    carry = {name: value[stay] for name, value in carry.items()}
                    agent = take(agent, stay)
                    env.keep(stay)  # one copy per seed
                    log.take(stay)
                    self.stop.take(stay.cpu())

            evaluating, saving = (self._due(step, every) for every in (config.eval_every, config.checkpoint_every))
            if evaluating or saving:
                log.check(self.seeds, running)
            if evaluating:
                episodes = self._evaluate(agent.policy, len(running))
                mean = episodes.returns.mean(1)
                last[running.cpu()] = mean.cpu()
                if self.stop is None:
                    self.kept.improve(agent.policy, mean, step)
                self.output.log(log.rows(step, [self.seeds[i] for i in running.tolist()], episodes, progress.steps_per_s(step)))
                progress.evaluated(step, mean, self.kept.value)
            if saving:
                self._save(step, agent, running)
            progress.update(step)
        else:
            if self.stop is not None:  # these seeds never met it
                everyone = torch.ones(len(running), dtype=torch.bool, device=self.device)
                self.kept.keep(agent.policy, running, everyone, step, ~everyone.cpu(), self.stop.mean())
        self._save(step, agent, running)
        self.steps = step
        return last

    def _due(self, step: int, every: int) -> bool:
        """Whether a multiple of `every` was passed by this vector step, or it is the last."""
        return step // every > (step - self.config.copies) // every or step >= self.config.steps

    def _evaluate(self, policy: "Policy", seeds: int) -> "Episodes":
        from rlx.evaluation import SELECTION, evaluate

        return evaluate(policy, self.make_env, seeds, self.config.eval_episodes, SELECTION, self.device)

    def _save(self, step: int, agent: "Agent", running: "Tensor") -> None:
        """The checkpoint at `step`, and the kept weights."""
        policy = agent.policy.state_dict()
        inside = {f"policy.{name}" for name in policy}
        training = {f"agent.{name}": value for name, value in agent.state_dict().items() if name not in inside}
        if hasattr(self.env, "state_dict"):
            training |= {f"env.{name}": value for name, value in self.env.state_dict().items()}
        seeds = [self.seeds[i] for i in running.tolist()]
        self.output.save(f"{step:09d}", {"step": step, "seeds": seeds}, policy, training)
        self.output.save("best", {"seeds": self.seeds} | self.kept.facts(), self.kept.policy.state_dict())

    def _finish(self, last: "Tensor", wall_s: float) -> float:
        from rlx import figures, stats
        from rlx.evaluation import REPORT, evaluate

        config = self.config
        episodes = evaluate(self.kept.policy, self.make_env, len(self.seeds), config.final_episodes, REPORT, self.device)
        estimate = stats.estimate(episodes.returns.cpu().numpy())
        figures.learning(self.output.metrics(), self.output.path / "learning.png", self.name)
        summary: dict[str, Any] = {"status": "completed", "seeds": self.seeds, "steps": self.steps, "wall_s": wall_s}
        summary |= {"steps_per_s": self.steps * len(self.seeds) / wall_s, "return": estimate.as_dict()}
        summary |= {"stuck_rate": episodes.truncated.double().mean(1), "kept": self.kept.facts()}
        self.output.write_summary(summary)
        self.output.write_meta(status="completed", wall_s=wall_s)
        report.per_seed(
            f"Greedy return over {config.final_episodes} new episodes, weights kept at each seed's "
            + ("stop" if config.stop else "best evaluation"),
            self.seeds,
            {
                "return": estimate.per_seed,
                "at the time limit": [f"{x:.0%}" for x in summary["stuck_rate"].tolist()],
                "kept at step": [f"{x:,}" for x in self.kept.step.tolist()],
            }
            | ({"stop rule": ["met" if x else "not met" for x in self.kept.solved.tolist()]} if config.stop else {}),
            estimate,
        )
        report.end(self.output.path, figure=self.output.path / "learning.png", wall_s=wall_s)
        return float(stats.iqm(last.nan_to_num(0.0).numpy()))


class Kept:
    """The weights that a run keeps of each seed, from whichever step."""

    def __init__(self, policy: "Policy", seeds: int):
        import copy

        import torch

        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.step = torch.zeros(seeds, dtype=torch.int64)
        self.value = torch.full((seeds,), -torch.inf, dtype=torch.float64)
        self.solved = torch.zeros(seeds, dtype=torch.bool)

    def improve(self, policy: "Policy", value: "Tensor", step: int) -> None:
        """Keep `policy` in the seeds where its greedy evaluation `value` [S] is the best so far, the later one among equals."""
        import torch

        better = value.cpu() >= self.value
        everyone = torch.arange(len(better), device=value.device)
        self.keep(policy, everyone, better.to(value.device), step, torch.zeros_like(better), value.cpu())

    def keep(self, policy: "Policy", running: "Tensor", where: "Tensor", step: int, solved: "Tensor", value: "Tensor") -> None:
        """Keep `policy`, which holds the seeds `running`, in those of them `where` is true."""
        rows = running[where]
        for mine, theirs in zip(self.policy.state_dict().values(), policy.state_dict().values(), strict=True):
            mine[rows] = theirs[where]
        rows = rows.cpu()
        self.step[rows] = step
        self.solved[rows] = solved[where.cpu()]
        self.value[rows] = value.cpu()[where.cpu()].double()

    def facts(self) -> dict[str, Any]:
        """For state.json and the summary."""
        return {"step": self.step, "value": self.value, "solved": self.solved}


class Log:
    """Training returns and the newest metrics, gathered on the device without a sync."""

    def __init__(self, seeds: int, copies: int, device: "torch.device"):
        import torch

        self.running = torch.zeros(seeds, copies, device=device)
        self.sum = torch.zeros(seeds, device=device)
        self.count = torch.zeros(seeds, device=device)
        self.bad = torch.zeros(seeds, dtype=torch.int64, device=device)
        self.metrics: dict[str, Tensor] = {}

    def add(self, reward: "Tensor", ended: "Tensor", metrics: "dict[str, Tensor]", step: int) -> "Tensor":
        """Count one vector step; returns the returns so far of the running episodes, those that ended included [S, N]."""
        import torch

        self.running = self.running + reward
        returns = self.running
        self.sum += torch.where(ended, returns, 0.0).sum(1)
        self.count += ended.sum(1)
        self.running = torch.where(ended, 0.0, returns)
        self.metrics |= metrics
        for value in metrics.values():
            self.bad = torch.where((self.bad == 0) & ~value.isfinite(), step, self.bad)
        return returns

    def check(self, seeds: list[int], running: "Tensor") -> None:
        """Raise RunError if a metric was not finite: tensor, seed and step."""
        import torch

        if (self.bad > 0).any():
            row = int(torch.nonzero(self.bad)[0])
            names = [name for name, value in self.metrics.items() if not value[row].isfinite()]
            seed = seeds[int(running[row])]
            raise RunError(f"{names[0] if names else 'a loss'} of seed {seed} became non-finite at step {int(self.bad[row]):,}.")

    def rows(self, step: int, seeds: list[int], episodes: "Episodes", steps_per_s: float) -> list[dict[str, Any]]:
        """One row per seed for metrics.jsonl; starts a new count of training returns."""
        train = (self.sum / self.count).tolist()
        self.sum, self.count = self.sum * 0, self.count * 0
        columns = {"return/mean": episodes.returns.mean(1), "length/mean": episodes.lengths.double().mean(1)}
        values = {name: value.tolist() for name, value in (columns | self.metrics).items()}
        return [
            {"step": step, "seed": seed, "return/train": train[i], "time/steps_per_s": steps_per_s}
            | {name: value[i] for name, value in values.items()}
            for i, seed in enumerate(seeds)
        ]

    def take(self, index: "Tensor") -> None:
        """Go on with the seeds `index` only."""
        self.running, self.sum, self.count, self.bad = (x[index] for x in (self.running, self.sum, self.count, self.bad))
        self.metrics = {name: value[index] for name, value in self.metrics.items()}


def _name(composed: DictConfig, group: str) -> str:
    """Which option of a config group was chosen."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])
