"""Compare runs in a figure, tables, a page: trainings, attacks, attacked agents, certificates."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlx.benchmarks import atari100k
from rlx.command import command
from rlx.commands.show import line_of
from rlx.composing import as_typed, load_command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.page.document import Document, check_format
from rlx.runs.finding import command_of, find_all, reading, run_paths
from rlx.runs.listing import read
from rlx.runs.run import Run
from rlx.show import console, figures
from rlx.sweeps import report as sweeps
from rlx.sweeps.ranking import rankings
from rlx.sweeps.sweep import Sweep, swept_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlx.page.document import Section
    from rlx.show.attack_run import AttackRun
    from rlx.sweeps.ranking import Ranking


@dataclass(frozen=True)
class Config:
    """The keys of report.yaml."""

    figure: figures.Style
    """How large the figure is: a file of conf/figure."""
    run: Any
    """Attack runs, on the same agents or on different ones of one env; or training runs, certify
    runs, sweeps. Certify runs of the agents that are attacked may stand beside attack runs."""
    mode: str | None
    """Which mode of the attacks to compare; null: all heads, or the first that all have."""
    format: str | None
    """`html`: also one page with all of it; `md`: also as Markdown, with its figures beside it."""
    outputs: str
    """Folder of all runs."""
    trust: bool
    """Import what the runs' configs name, though somebody else made the runs."""


@command("report")
def main(composed: DictConfig) -> None:
    """Draws and prints what `run` names."""
    config = build(Config, composed, "")
    check_format(config.format)
    if config.run is None:
        raise ConfigError(
            "run: name the runs to compare, as in: rlx report outputs/attack/A outputs/attack/B"
        )
    paths = run_paths(config.run)
    swept = [path for path in paths if Sweep.is_at(path)]
    if swept:
        _report_sweeps(swept, paths, config)
    elif command_of(paths[0]) == "train":
        runs = _finished(find_all(paths, config.outputs, "train", trusted=config.trust))
        _report_trainings(runs, config, composed)
    else:
        _report_attacks(paths, config, composed)


def _report_sweeps(swept: Sequence[str], paths: Sequence[str], config: Config) -> None:
    """Print what has come of each sweep so far; its table and figure are beside it."""
    others = [path for path in paths if path not in swept]
    if others:
        raise ConfigError(f"run={others[0]}: is no sweep; report sweeps by themselves.")
    page = None if config.format is None else partial(_sweep_page, config.format)
    for path in swept:
        sweeps.report(Sweep(Path(path)), config.figure, page)


def _sweep_page(kind: str, sweep: Sweep, ranked: "Sequence[Ranking]") -> Path:
    """Write the page of a sweep beside its table."""
    from rlx.page import making, sections

    jobs = sweep.jobs()
    keys = swept_keys(jobs)
    finished = {}
    for job in jobs:
        run = job.run
        if run is not None and run.unfinished() is None:
            finished[job.label_of(keys)] = run
    made = making.sections(finished, "the sweep", sweep.line)
    parts = [*sections.sweep(ranked, jobs), *sections.episodes(list(finished.values()))]
    return Document(f"Sweep {sweep.path.name}", [*parts, *made]).write(sweep.path, kind)


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
    # What reads the runs comes before anything is written.
    results = training_comparison.results(runs, labels)
    pairs = training_comparison.pairs(runs, labels)
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    files: dict[str, Any] = {"table": output.path / "report.csv"}
    with output.writing():
        drawn = training_comparison.figure(runs, labels, config.figure)
        files["figure"] = _save_figure(drawn, output)
        training_comparison.write_csv(runs, labels, files["table"])
        console.table(*results)
        for table in pairs:
            console.table(*table)
        if atari100k.is_benchmark(runs):
            atari100k.table(runs)
        if config.format is not None:
            from rlx.page import sections

            named = dict(zip(labels, runs, strict=True))
            parts = sections.trainings(runs, labels)
            files["page"] = _save_page(config.format, output, parts, named)
        output.complete({"run": [str(run.path) for run in runs], "labels": labels})
    console.result(output.path, **files)


def _report_attacks(paths: Sequence[str], config: Config, composed: DictConfig) -> None:
    """Compare the attacks at `paths`: on the same agents which ranks highest, else the agents.

    Certify runs among them are shown on the page.
    """
    from rlx.show.attack_run import AttackRun

    certified = [path for path in paths if command_of(path) == "certify"]
    attacking = [path for path in paths if path not in certified]
    certificates = []
    if certified:
        found = find_all(certified, config.outputs, "certify", trusted=config.trust)
        certificates = _finished(found)
    if not attacking:
        _report_certificates(certificates, config, composed)
        return
    runs = _finished(find_all(attacking, config.outputs, "attack", trusted=config.trust))
    attacks = [AttackRun.of(run) for run in runs]
    if config.format is not None and not certificates:
        certificates = _certificates_of(attacks, config)
    if len({attack.trainings for attack in attacks}) == 1:
        _report_same_agents(attacks, certificates, config, composed)
    else:
        require_same_env(attacks)
        _report_agents(attacks, certificates, config, composed)


def _certificates_of(attacks: "Sequence[AttackRun]", config: Config) -> list[Run]:
    """The newest certify runs of the agents that are attacked, where there are some."""
    found = {}
    for attack in attacks:
        folder = Path(config.outputs, "certify", attack.source)
        for path in sorted(folder.glob("*/summary.json")):
            run = Run(path.parent, config.trust)
            trainings = tuple(Path(text).resolve() for text in run.summary()["run"])
            if run.unfinished() is None and trainings == attack.trainings:
                found[trainings] = run
    for run in found.values():
        console.facts(certify=run.path)
    return list(found.values())


def _report_certificates(runs: Sequence[Run], config: Config, composed: DictConfig) -> None:
    """Print what is certified, and draw it."""
    from rlx.show import certify_tables

    panels: dict[str, list[figures.Curve]] = {}
    returns: dict[str, list[figures.Curve]] = {}
    for run in runs:
        summary = run.summary()
        title = run.path.parent.name if len(runs) == 1 else str(run.path)
        panels |= certify_tables.panels(summary, title)
        returns |= certify_tables.return_panels(summary, title)
        for table in certify_tables.tables(summary):
            console.table(*table)
        for text in certify_tables.proved(summary):
            console.facts(proved=text)
    output = Run.create(config.outputs, "report", runs[0].path.parent.name, composed)
    files: dict[str, Any] = {}
    with output.writing():
        x = figures.eps_label(runs[0].config.scale)
        drawn = figures.sandwich(panels, x, config.figure, returns)
        files["figure"] = _save_figure(drawn, output)
        if config.format is not None:
            files["page"] = _save_attack_page(config.format, output, [], runs, [])
        output.complete({"run": [str(run.path) for run in runs]})
    console.result(output.path, **files)


def _report_same_agents(
    attacks: "Sequence[AttackRun]",
    certificates: Sequence[Run],
    config: Config,
    composed: DictConfig,
) -> None:
    """Draw the robustness curves, and print the ranks of the agents under each attack."""
    from rlx.show.attack_comparison import AttackComparison

    comparison = AttackComparison.of(attacks, config.mode)
    output = Run.create(config.outputs, "report", comparison.agents, composed)
    files: dict[str, Any] = {}
    with output.writing():
        files["figure"] = _save_figure(comparison.figure(config.figure), output)
        comparison.print_ranks()
        if config.format is not None:
            from rlx.page import sections

            parts = sections.same_agents(comparison)
            files["page"] = _save_attack_page(config.format, output, attacks, certificates, parts)
        paths = [str(attack.path) for attack in attacks]
        output.complete({"run": paths} | comparison.summary())
    console.result(output.path, **files)


def _report_agents(
    attacks: "Sequence[AttackRun]",
    certificates: Sequence[Run],
    config: Config,
    composed: DictConfig,
) -> None:
    """Draw, write and print how robust the agents are, and how much they differ."""
    from rlx.show.agent_comparison import AgentComparison

    comparison = AgentComparison.of(attacks, config.mode)
    output = Run.create(config.outputs, "report", comparison.env, composed)
    files: dict[str, Any] = {
        "table": output.path / "report.csv",
        "pairs": output.path / "pairs.csv",
    }
    with output.writing():
        files["figure"] = _save_figure(comparison.figure(config.figure), output)
        comparison.write_csv(files["table"])
        comparison.write_pairs(files["pairs"])
        comparison.print_tables()
        if config.format is not None:
            from rlx.page import sections

            parts = sections.agents(comparison)
            ranked = [row.attack for row in comparison.rows]
            files["page"] = _save_attack_page(config.format, output, ranked, certificates, parts)
        output.complete(comparison.summary())
    console.result(output.path, **files)


def _save_attack_page(
    kind: str,
    output: Run,
    attacks: "Sequence[AttackRun]",
    certificates: Sequence[Run],
    parts: "Sequence[Section]",
) -> Path:
    """Write the page of attacks and certificates: `parts`, then each by itself, the trainings.

    Each attack has one colour on the whole page, that of its place in the figure of all of them; an
    agent has that of the first attack on it.
    """
    from rlx.page import sections

    named = sections.names_of(attacks)
    of_agents: dict[tuple[Path, ...], int] = {}
    single = []
    for number, (name, attack) in enumerate(named.items()):
        of_agents.setdefault(attack.trainings, number)
        colour = number if len(attacks) > 1 else None
        single.append(sections.study(attack, name, colour))
    several = max(len(attacks), len(certificates)) > 1
    for number, run in enumerate(certificates, len(attacks)):
        paths = tuple(Path(path).resolve() for path in run.summary()["run"])
        colour = of_agents.setdefault(paths, number)
        single.append(sections.certificates(run, colour if several else None))
    whole = [*parts, *single] if len(attacks) > 1 else [*single, *parts]
    runs = {name: attack.run for name, attack in named.items()}
    runs |= {f"certify {run.path.name}": run for run in certificates}
    trainings = sections.attacked(list(runs.values()))
    if trainings:
        colours = _training_colours(trainings, of_agents)
        whole += sections.trainings(list(trainings.values()), list(trainings), colours)
    return _save_page(kind, output, whole, runs, trainings)


def _training_colours(
    trainings: Mapping[str, Run], of_agents: Mapping[tuple[Path, ...], int]
) -> dict[str, int]:
    """The number of each training's colour: that of its agents, unless another one has it."""
    free = count(1 + max(of_agents.values(), default=-1))
    found: dict[str, int] = {}
    for label, run in trainings.items():
        path = run.path.resolve()
        numbers = [number for paths, number in of_agents.items() if path in paths]
        taken = not numbers or numbers[0] in found.values()
        found[label] = next(free) if taken else numbers[0]
    return found


def _save_page(
    kind: str,
    output: Run,
    parts: "Sequence[Section]",
    runs: Mapping[str, Run],
    trainings: Mapping[str, Run] | None = None,
) -> Path:
    """Write the page of a report on `runs`: `parts`, then how these were made.

    `trainings`: those that the runs have read.
    """
    from rlx.page import making, sections

    line = reading(as_typed(sys.argv), [str(run.path) for run in runs.values()])
    everything = {**(trainings or {}), **runs}
    unnoted = {label: run for label, run in everything.items() if not run.meta().get("line")}
    found = {label: line_of(read(run.path)) for label, run in unnoted.items()}
    made = making.sections(everything, "this report", line, found)
    whole = [*parts, *sections.episodes(list(everything.values())), *made]
    counts = Counter(run.meta()["command"] for run in everything.values())
    texts = [f"{number} × rlx {command}" for command, number in counts.items()]
    title = f"{output.path.parent.name}: {', '.join(texts)}"
    return Document(title, whole).write(output.path, kind)


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
