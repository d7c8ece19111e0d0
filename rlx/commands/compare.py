"""Compare two runs: the keys, versions and commits in which they differ, then their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from rlx.show.agent_comparison import AgentComparison

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
    runs = find_all(config.run, config.outputs, kind, trusted=config.trust)
    # What cannot be compared is refused before the first line.
    compared = _attacks(runs, config.mode) if kind == "attack" else _returns(runs)
    console.facts(A=runs[0].path, B=runs[1].path)
    agents = [] if kind == "train" else training_comparison.agent_labels(runs)
    if agents and agents[0] == agents[1]:
        console.facts(agent=f"{agents[0]} in both")
    _print_differences([read(run.path) for run in runs], agents)
    compared.print_tables()


def _print_differences(entries: Sequence[Entry], agents: Sequence[str]) -> None:
    """Print the keys that are not the same in both configs, and what else made them differ.

    `agents`: those that were attacked or played; of trainings none.
    """
    sides = []
    for entry in entries:
        config = {key: value for key, value in entry.config().items() if key not in WHERE}
        if not agents and len({each.defence.partition(" ")[0] for each in entries}) > 1:
            config["agent"] = config["agent"] | {"defence": entry.defence or "none"}
        made_by = {key: entry.meta.get(key) for key in MADE_BY}
        sides.append(flatten_keys(config | made_by))
    rows = []
    if len(set(agents)) > 1:
        rows.append(["agent", *agents])
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


def _attacks(runs: Sequence[Run], mode: str | None) -> "AgentComparison":
    """The comparison that rlx report makes, without its files."""
    from rlx.show.agent_comparison import AgentComparison
    from rlx.show.attack_run import AttackRun

    attacks = [AttackRun.of(run) for run in runs]
    require_same_env(attacks)
    return AgentComparison.of(attacks, mode, letters="AB")


@dataclass(frozen=True)
class Returns:
    """Two trainings or evaluations beside each other."""

    table: console.Table
    """Both returns and their difference."""
    better: str
    """How probably a seed of A has a higher return than one of B."""
    same_env: bool
    seeds: int
    """The seeds of the run that has fewer."""

    def print_tables(self) -> None:
        """Print the returns, and what a reader should know of them."""
        console.table(*self.table)
        console.facts(better=self.better)
        if not self.same_env:
            console.warning("the envs differ, so their returns are of different things")
        console.warn_of_few_seeds(self.seeds)


def _returns(runs: Sequence[Run]) -> Returns:
    """Both returns, their difference, and how probably a seed of A is better."""
    summaries = [run.summary() for run in runs]
    returns = [training_comparison.episode_returns(run) for run in runs]
    seeds = training_comparison.resampled_returns(runs)
    iqms = [training_comparison.resampled_iqm(one) for one in seeds]
    probability = console.resampled_text(probability_of_improvement(*seeds))
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
    return Returns(
        table=console.Table(title, ["", "A", "B", "A − B"], rows),
        better=f"a seed of A than one of B with probability {probability}",
        same_env=len({training_comparison.env_of(run) for run in runs}) == 1,
        seeds=min(map(len, returns)),
    )
