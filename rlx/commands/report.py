"""Compare runs in one figure: learning curves, attacks on the same agents, or attacked agents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import command_of, find_all, run_paths
from rlx.runs.run import Run
from rlx.show import console
from rlx.sweeps.report import report
from rlx.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlx.show.attack_run import AttackRun


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    run: Any
    """Attack runs, on the same agents or on different ones of one env; or training runs."""
    mode: str | None
    """Which mode of the attacks to compare; null: all heads, or the first that all have."""
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the runs' configs name, though somebody else made the runs."""


@command("report")
def main(composed: DictConfig) -> None:
    """Draws and prints what `run` names."""
    config = build(Config, composed, "")
    if config.run is None:
        raise ConfigError(
            "run: name the runs to compare, as in: rlx report outputs/attack/A outputs/attack/B"
        )
    sweeps = [path for path in run_paths(config.run) if Sweep.is_at(path)]
    if sweeps:
        _report_sweeps(sweeps, run_paths(config.run))
    elif command_of(run_paths(config.run)[0]) == "train":
        runs = _finished(find_all(config.run, config.outputs, "train", trusted=config.trust))
        _report_trainings(runs, config, composed)
    else:
        runs = _finished(find_all(config.run, config.outputs, "attack", trusted=config.trust))
        _report_attacks(runs, config, composed)


def _report_sweeps(sweeps: Sequence[str], paths: Sequence[str]) -> None:
    """Print what has come of each sweep so far; its table and figure are beside it."""
    others = [path for path in paths if path not in sweeps]
    if others:
        raise ConfigError(f"run={others[0]}: is no sweep; report sweeps by themselves.")
    for path in sweeps:
        report(Sweep(Path(path)))


def _finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that have a result; a line is printed for every run that has none.

    ConfigError where none is left.
    """
    finished = []
    for run in runs:
        status = run.unfinished()
        if status is None:
            finished.append(run)
        else:
            console.facts(**{"left out": f"{run.path}: {status}"})
    if not finished:
        raise ConfigError(
            f"run: none of the {len(runs)} runs is finished (of a training, rlx resume goes on)."
        )
    return finished


def _report_trainings(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Draw the learning curves of `runs`, and write and print the result of each run."""
    from rlx.show import training_comparison

    labels = training_comparison.run_labels(runs)
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    table = output.path / "report.csv"
    with output.writing():
        drawn = _save_figure(training_comparison.figure(runs, labels), output)
        training_comparison.write_csv(runs, labels, table)
        training_comparison.print_table(runs, labels)
        if atari100k.is_benchmark(runs):
            atari100k.table(runs)
        output.complete({"run": [str(run.path) for run in runs], "labels": labels})
    console.result(output.path, table=table, figure=drawn)


def _report_attacks(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Compare the attacks `runs`: on the same agents which ranks highest, else agent with agent."""
    from rlx.show.attack_run import AttackRun

    attacks = [AttackRun.of(run) for run in runs]
    if len({attack.trainings for attack in attacks}) == 1:
        _report_same_agents(attacks, config, composed)
    else:
        _require_same_env(attacks)
        _report_agents(attacks, config, composed)


def _report_same_agents(
    attacks: "Sequence[AttackRun]", config: Config, composed: DictConfig
) -> None:
    """Draw the robustness curves, and print the ranks of the agents under each attack."""
    from rlx.show.attack_comparison import AttackComparison

    comparison = AttackComparison.of(attacks, config.mode)
    output = Run.create(config.outputs, "report", comparison.agents, composed)
    with output.writing():
        drawn = _save_figure(comparison.figure(), output)
        comparison.print_ranks()
        paths = [str(attack.path) for attack in attacks]
        output.complete({"run": paths} | comparison.summary())
    console.result(output.path, figure=drawn)


def _report_agents(attacks: "Sequence[AttackRun]", config: Config, composed: DictConfig) -> None:
    """Draw, write and print how robust the agents are, and how much they differ."""
    from rlx.show.agent_comparison import AgentComparison

    comparison = AgentComparison.of(attacks, config.mode)
    output = Run.create(config.outputs, "report", comparison.env, composed)
    table = output.path / "report.csv"
    pairs = output.path / "pairs.csv"
    with output.writing():
        drawn = _save_figure(comparison.figure(), output)
        comparison.write_csv(table)
        comparison.write_pairs(pairs)
        comparison.print_tables()
        output.complete(comparison.summary())
    console.result(output.path, table=table, pairs=pairs, figure=drawn)


def _save_figure(figure: "Figure", output: Run) -> Path:
    """Write the figure as PNG, and as PDF for papers; returns the path of the PNG."""
    file = output.path / "report.png"
    figure.savefig(file)
    figure.savefig(file.with_suffix(".pdf"))
    return file


def _require_same_env(attacks: "Sequence[AttackRun]") -> None:
    """ConfigError unless all agents are attacked in the same env."""
    from rlx.experiment import eval_env_config, same_env
    from rlx.names import flatten_keys

    first, *others = [_training_config(attack) for attack in attacks]
    env = flatten_keys(eval_env_config(first))
    for attack, config in zip(attacks[1:], others, strict=True):
        if same_env(first, config):
            continue
        its_env = flatten_keys(eval_env_config(config))
        keys = [key for key in {**env, **its_env} if env.get(key) != its_env.get(key)]
        if "_target_" in keys:  # another class, whose keys are others too
            keys = ["_target_"]
        texts = [f"env.{key}={its_env.get(key)}, not {env.get(key)}" for key in keys]
        raise ConfigError(
            f"run={attack.path}: attacks in another env than {attacks[0].path}: {'; '.join(texts)}."
        )


def _training_config(attack: "AttackRun") -> DictConfig:
    """The config of the training that is attacked, or with the env of a victim of others.

    ConfigError where the training is gone.
    """
    from rlx.experiment import training_config

    if attack.is_of_files:
        return OmegaConf.create({"env": attack.config.env, "eval_env": {}})
    training = Run(attack.trainings[0], attack.run.trusted)
    if not training.path.is_dir():
        raise ConfigError(
            f"run={attack.path}: attacks {training.path}, which is not there; "
            "without it nothing is known of the env."
        )
    return training_config(training)
