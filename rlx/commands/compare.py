"""Compare two runs: the keys, versions and commits in which they differ, then their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command
from rlx.commands.report import require_same_env
from rlx.config import build
from rlx.errors import ConfigError
from rlx.names import flatten_keys, one_line
from rlx.runs.finding import command_of, find_all, run_paths
from rlx.runs.listing import Entry, read
from rlx.runs.run import Run
from rlx.show import console, training_comparison
from rlx.statistics import probability_of_improvement

MADE_BY = ("rlx", "commit", "python", "machine", "packages", "compiled")
"""Keys of meta.json that may explain a difference."""
WHERE = ("run", "outputs", "trust")
"""Keys of a config that say where things are."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of compare.yaml."""

    run: Any
    """Two runs of one kind: trainings, evaluations or attacks."""
    mode: str | None
    """Which mode of two attacks is compared; null: all heads, or the first that both have."""


@command("compare")
def main(composed: DictConfig) -> None:
    """Prints what tells the runs apart, and the difference of their returns."""
    config = build(Config, composed, "")
    paths = [] if config.run is None else run_paths(config.run)
    if len(paths) != 2:
        raise ConfigError("run: name two runs, as in: rlx compare outputs/train/A outputs/train/B")
    kind = command_of(paths[0]) or "train"
    if kind not in ("train", "evaluate", "attack"):
        raise ConfigError(
            f"run={paths[0]}: made by rlx {kind}; expected trainings, evaluations or attacks."
        )
    first, second = find_all(config.run, config.outputs, kind, trusted=config.trust)
    console.facts(A=first.path, B=second.path)
    _print_differences([read(first.path), read(second.path)])
    if kind == "attack":
        _compare_attacks([first, second], config.mode)
    else:
        _compare_returns([first, second])


def _print_differences(entries: Sequence[Entry]) -> None:
    """Print the keys that are not the same in both configs, and what else made them differ."""
    sides = []
    for entry in entries:
        config = {key: value for key, value in entry.config().items() if key not in WHERE}
        if len({each.defence.partition(" ")[0] for each in entries}) > 1:
            config["agent"] = config["agent"] | {"defence": entry.defence or "none"}
        made_by = {key: entry.meta.get(key) for key in MADE_BY}
        sides.append(flatten_keys(config | made_by))
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        values = [one_line(side.get(key, "–")) for side in sides]
        target = f"{key.partition('.')[0]}._target_"
        # Of two classes only the keys that both have tell anything.
        other_class = sides[0].get(target) != sides[1].get(target)
        if values[0] != values[1] and not (other_class and "–" in values):
            rows.append([key, *values])
    if rows:
        console.table("What differs", ["key", "A", "B"], rows)
    else:
        console.facts(differs="nothing: neither the configs, nor versions, nor the machine")


def _compare_attacks(runs: Sequence[Run], mode: str | None) -> None:
    """Print the comparison that rlx report makes, without its files."""
    from rlx.show.agent_comparison import AgentComparison
    from rlx.show.attack_run import AttackRun

    attacks = [AttackRun.of(run) for run in runs]
    require_same_env(attacks)
    AgentComparison.of(attacks, mode).print_tables()


def _compare_returns(runs: Sequence[Run]) -> None:
    """Print both returns, their difference, and how probably a seed of A is better."""
    summaries = [run.summary() for run in runs]
    returns = [training_comparison.episode_returns(run) for run in runs]
    seeds = training_comparison.resampled_returns(runs)
    iqms = [training_comparison.resampled_iqm(one) for one in seeds]
    better = probability_of_improvement(*seeds)
    estimates = [training_comparison.own_return(run) for run in runs]
    own = [console.interval_text(estimate.iqm, estimate.ci95) for estimate in estimates]
    rows = [
        ["return", *own, console.resampled_text(iqms[0] - iqms[1])],
        ["worst seed", *(console.number(each.value.min()) for each in seeds), ""],
        ["seeds", *(str(len(values)) for values in returns), ""],
        ["episodes per seed", *(str(values.shape[1]) for values in returns), ""],
        ["steps", *(str(one.get("steps", "")) for one in summaries), ""],
    ]
    title = "Return: interquartile mean over seeds, 95 % bootstrap interval"
    console.table(title, ["", "A", "B", "A − B"], rows)
    probability = console.resampled_text(better)
    console.facts(better=f"a seed of A than one of B with probability {probability}")
    if runs[0].path.parent.name.partition("-")[2] != runs[1].path.parent.name.partition("-")[2]:
        console.warning("the envs differ, so their returns are of different things")
    console.warn_of_few_seeds(min(map(len, returns)))
