"""What a tuning found, beside the settings of today, and its file in conf/tuned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig

from rlx import conf, statistics
from rlx.composing import chosen, compose_config, hydra_left_as_it_is
from rlx.config import plain
from rlx.runs.run import Run
from rlx.runs.versions import versions
from rlx.show import console
from rlx.statistics import Estimate, Resampled
from rlx.training.config import validated

KEYS = ("steps", "num_envs", "eval_every", "eval_episodes", "final_episodes", "keep")
"""Keys beside the agent's that the file of tuned settings keeps."""


@dataclass(frozen=True)
class Trained:
    """A run on the fresh seeds."""

    path: Path
    """Its directory."""
    estimate: Estimate
    """Its return."""
    iqm: Resampled
    """The interquartile mean return over seeds, []."""

    @classmethod
    def of(cls, run: Run, bootstrap: statistics.Bootstrap) -> "Trained":
        """The result of a finished run."""
        returns = run.returns()
        value = np.asarray(statistics.iqm(returns.mean(1)))
        resampled = Resampled(value, bootstrap.iqms(returns))
        return cls(run.path, statistics.estimate(returns, bootstrap), resampled)


@dataclass(frozen=True)
class Comparison:
    """The best trial's settings and those of today, both trained on the same fresh seeds."""

    best: Trained
    today: Trained
    trial: int
    """The number of the best trial."""
    config: DictConfig
    """Its config."""
    today_name: str
    """What the settings of today are, as in "tuned/dqn-cartpole"."""

    @classmethod
    def of(cls, best: Run, today: Run, trial: int, config: DictConfig) -> "Comparison":
        """The comparison of two finished runs of the same number of seeds and episodes."""
        counts = [len(run.returns()) for run in (best, today)]
        first, second = statistics.independent(counts, best.returns().shape[1])
        name = f"{chosen('agent')}-{chosen('env')}"
        has_file = name in conf.group_files("tuned")
        today_name = f"tuned/{name}" if has_file else f"defaults of {chosen('agent')}"
        return cls(Trained.of(best, first), Trained.of(today, second), trial, config, today_name)

    @property
    def difference(self) -> Resampled:
        """How much higher the return of the best trial is, []."""
        return self.best.iqm - self.today.iqm

    @property
    def same(self) -> bool:
        """Whether the best trial has the settings of today."""
        return self.best.path == self.today.path

    @property
    def better(self) -> bool:
        """Whether the interval of the difference is above 0."""
        return not self.same and bool(self.difference.ci95[0] > 0)

    def print(self) -> None:
        """Print the two, and their difference."""
        rows = []
        trainings = {self.today_name: self.today}
        if not self.same:
            trainings = {f"best trial, {self.trial}": self.best, **trainings}
        for name, trained in trainings.items():
            seeds = str(len(trained.estimate.per_seed))
            rows.append([name, console.resampled_text(trained.iqm), seeds, str(trained.path)])
        title = "Return on fresh seeds: interquartile mean, 95 % bootstrap interval"
        console.table(title, ["settings", "return", "seeds", "run"], rows)
        if not self.same:
            console.facts(difference=console.resampled_text(self.difference))


def write_tuned(comparison: Comparison, line: str, found: str) -> None:
    """Write the best trial's settings to the user's conf/tuned, if they are better than today's.

    `line`: the command line; `found`: how many trials of which seeds. What was written, or why
    nothing was, is printed.
    """
    if comparison.same:
        same = f"trial {comparison.trial}, the best, has the settings of {comparison.today_name}"
        console.facts(tuned=f"nothing better was found: {same}")
        return
    if not comparison.better:
        text = "the interval of the difference is not above 0"
        console.facts(tuned=f"nothing better was found, nothing is written: {text}")
        return
    steps, own_steps = int(comparison.config.steps), _steps_of_today()
    if steps < own_steps:
        text = f"{comparison.today_name} is for {own_steps:,}"
        console.facts(tuned=f"better after {steps:,} steps, but nothing is written: {text}")
        return
    folder = conf.user_dir() or Path.cwd() / "conf"
    name = comparison.best.path.parent.name
    file = folder / "tuned" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        file.replace(file.with_suffix(".yaml.before"))
        console.facts(before=f"{file.with_suffix('.yaml.before')} has the settings of before")
    now = versions()
    per_seed = console.ranges(comparison.config.seeds)
    comments = [
        f"# Found by: {line}",
        f"# rlx {now['rlx']}, commit {now['commit']}. {found}; best was trial {comparison.trial}.",
        f"# On seeds {per_seed}: {console.resampled_text(comparison.best.iqm)}; "
        f"{comparison.today_name}: {console.resampled_text(comparison.today.iqm)}; "
        f"difference {console.resampled_text(comparison.difference)}.",
    ]
    values = yaml.safe_dump(settings(comparison.config), sort_keys=False)
    file.write_text("\n".join(["# @package _global_", *comments, values]))
    console.facts(tuned=f"wrote {file}")
    if name != f"{chosen('agent')}-{chosen('env')}":
        console.facts(use=f"tuned={name}")


def _steps_of_today() -> int:
    """The steps for which the settings of today were tuned; 0 where that is told nowhere.

    A short tuning shall not replace what it has not met: the settings of a long training.
    """
    file = conf.group_files("tuned").get(f"{chosen('agent')}-{chosen('env')}")
    if file is None:
        return 0
    return int((yaml.safe_load(file.read_text()) or {}).get("steps", 0))


def settings(config: DictConfig) -> dict[str, Any]:
    """What tells a training from that of the agent's defaults in the same env."""
    words = [f"agent={chosen('agent')}", f"env={chosen('env')}", "tuned=none"]
    with hydra_left_as_it_is():
        defaults = compose_config("train", words)
        top = {key: config[key] for key in KEYS if config[key] != defaults[key]}
        words += [f"{key}={value}" for key, value in top.items()]
        # As some of the agent's defaults are made of these.
        defaults = compose_config("train", words)
    agent_defaults = plain(validated({**plain(config), "agent": plain(defaults)["agent"]}).agent)
    agent = plain(config.agent)
    changed = {key: value for key, value in agent.items() if value != agent_defaults.get(key)}
    return top | ({"agent": changed} if changed else {})
