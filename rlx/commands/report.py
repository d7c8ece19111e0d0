"""Compare runs in one figure: learning curves, attacks on the same agents, or attacked agents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.composing import load_command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import command_of, find_all, run_paths
from rlx.runs.run import Run
from rlx.show import console, figures
from rlx.sweeps import report as sweeps
from rlx.sweeps.ranking import rankings
from rlx.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlx.show.attack_run import AttackRun


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
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
    swept = [path for path in run_paths(config.run) if Sweep.is_at(path)]
    if swept:
        _report_sweeps(swept, run_paths(config.run), config.figure)
    elif command_of(run_paths(config.run)[0]) == "train":
        runs = _finished(find_all(config.run, config.outputs, "train", trusted=config.trust))
        _report_trainings(runs, config, composed)
    else:
        runs = _finished(find_all(config.run, config.outputs, "attack", trusted=config.trust))
        _report_attacks(runs, config, composed)


def _report_sweeps(swept: Sequence[str], paths: Sequence[str], style: figures.Style) -> None:
    """Print what has come of each sweep so far; its table and figure are beside it."""
    others = [path for path in paths if path not in swept]
    if others:
        raise ConfigError(f"run={others[0]}: is no sweep; report sweeps by themselves.")
    for path in swept:
        sweeps.report(Sweep(Path(path)), style)


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
        drawn = _save_figure(training_comparison.figure(runs, labels, config.figure), output)
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
        require_same_env(attacks)
        _report_agents(attacks, config, composed)


def _report_same_agents(
    attacks: "Sequence[AttackRun]", config: Config, composed: DictConfig
) -> None:
    """Draw the robustness curves, and print the ranks of the agents under each attack."""
    from rlx.show.attack_comparison import AttackComparison

    comparison = AttackComparison.of(attacks, config.mode)
    output = Run.create(config.outputs, "report", comparison.agents, composed)
    with output.writing():
        drawn = _save_figure(comparison.figure(config.figure), output)
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
        drawn = _save_figure(comparison.figure(config.figure), output)
        comparison.write_csv(table)
        comparison.write_pairs(pairs)
        comparison.print_tables()
        output.complete(comparison.summary())
    console.result(output.path, table=table, pairs=pairs, figure=drawn)


def _save_figure(figure: "Figure", output: Run) -> Path:
    """Write the figure; returns the path of the PNG."""
    file = output.path / "report.png"
    figures.save(figure, file)
    return file


def require_same_env(attacks: "Sequence[AttackRun]") -> None:
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
    """The config of the training that is attacked; ConfigError where it is gone."""
    from rlx.experiment import training_config

    training = Run(attack.trainings[0], attack.run.trusted)
    if not training.path.is_dir():
        raise ConfigError(
            f"run={attack.path}: attacks {training.path}, which is not there; "
            "without it nothing is known of the env."
        )
    return training_config(training)


def figure(
    paths: Sequence[str],
    style: figures.Style = figures.SCREEN,
    mode: str | None = None,
    trust: bool = False,
) -> "Figure":
    """What is drawn of the runs, or of the sweep, at `paths`; ConfigError where nothing is.

    `mode` and `trust`: as the keys of report.yaml.
    """
    if Sweep.is_at(paths[0]):
        return _sweep_figure(paths, style)
    maker = command_of(paths[0]) or "train"
    if maker not in ("train", "attack", "certify"):
        raise ConfigError(
            f"run={paths[0]}: made by rlx {maker}, of which no figure is drawn; "
            "expected runs of rlx train, attack or certify, or a sweep."
        )
    runs = _finished(find_all(list(paths), "outputs", maker, trusted=trust))
    if maker == "train":
        from rlx.show import training_comparison

        return training_comparison.figure(runs, training_comparison.run_labels(runs), style)
    if maker == "certify":
        from rlx.robustness import certificates

        run = runs[0]
        if len(runs) > 1:
            raise ConfigError(f"run={runs[1].path}: certificates are drawn of one run at a time.")
        return certificates.figure(run.summary(), run.path.parent.name, run.config.scale, style)
    return _attack_figure(runs, mode, style)


def _sweep_figure(paths: Sequence[str], style: figures.Style) -> "Figure":
    """The scores of a sweep's jobs against the keys that differ."""
    if len(paths) > 1:
        raise ConfigError(f"run={paths[1]}: a sweep is drawn by itself.")
    sweep = Sweep(Path(paths[0]))
    measure = load_command(sweep.command).measure
    drawn = sweeps.figure(rankings(sweep, measure), style) if measure is not None else None
    if drawn is None:
        raise ConfigError(f"run={paths[0]}: no jobs that differ are finished; nothing to draw.")
    return drawn


def _attack_figure(runs: Sequence[Run], mode: str | None, style: figures.Style) -> "Figure":
    """The attacks `runs` beside each other: on the same agents, or agent with agent."""
    from rlx.show.agent_comparison import AgentComparison
    from rlx.show.attack_comparison import AttackComparison
    from rlx.show.attack_run import AttackRun

    attacks = [AttackRun.of(run) for run in runs]
    if len({attack.trainings for attack in attacks}) == 1:
        return AttackComparison.of(attacks, mode).figure(style)
    require_same_env(attacks)
    return AgentComparison.of(attacks, mode).figure(style)
