"""The sections of a report: of trainings, of attacks on one agent or several, of certificates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlx.benchmarks import atari100k
from rlx.errors import ConfigError
from rlx.page.charts import Chart, Dots
from rlx.page.document import Note, Part, Section, films
from rlx.robustness.attribution import Attribution
from rlx.robustness.study import Study
from rlx.runs.run import Run
from rlx.show import attack_tables, certify_tables, console, figures, training_comparison
from rlx.show.agent_comparison import AgentComparison
from rlx.show.attack_comparison import AttackComparison
from rlx.show.attack_run import AttackRun, attack_labels, unique
from rlx.statistics import NO_INTERVAL, Estimate
from rlx.sweeps import report
from rlx.sweeps.ranking import Ranking
from rlx.sweeps.sweep import Job, swept_keys

SHARE = "share of decisions"


def trainings(
    runs: Sequence[Run], labels: Sequence[str], colours: Mapping[str, int] | None = None
) -> list[Section]:
    """The results of trainings, and how they came about.

    `colours`: the number of each label's colour, where other figures of the page have them too.
    """
    fewest = min(len(run.summary()["seeds"]) for run in runs)
    results: list[Part] = [*_warnings(console.few_seeds(fewest))]
    results.append(training_comparison.results(runs, labels))
    if atari100k.is_benchmark(runs):
        for scores, means in atari100k.scores(runs):
            results.append(scores)
            results += [Note(f"{name}: {text}") for name, text in means.items()]
    sections = [Section("Results of training", results)]
    parts: list[Part] = []
    x = training_comparison.STEPS
    for env, curves in training_comparison.panels(runs, labels).items():
        rules = _threshold(runs, env)
        title = f"{env}: greedy return while learning"
        numbers = [colours[curve.label] for curve in curves] if colours else ()
        parts.append(_chart(title, curves, x, rules=rules, colours=numbers))
    sections.append(Section("Learning curves", parts))
    pairs = training_comparison.pairs(runs, labels)
    if pairs:
        profiles = []
        for env, curves in training_comparison.profiles(runs, labels).items():
            title = f"{env}: share of seeds with a return above τ"
            numbers = [colours[curve.label] for curve in curves] if colours else ()
            profiles.append(_chart(title, curves, "return τ", y="share", colours=numbers))
        sections.append(Section("Comparison of trainings", [*pairs, *profiles]))
    seeds = [training_comparison.seeds(run, label) for run, label in zip(runs, labels, strict=True)]
    return [*sections, Section("Single seeds", seeds)]


def _threshold(runs: Sequence[Run], env: str) -> dict[str, float]:
    """The return from which an env counts as solved, where it has one."""
    for run in runs:
        if training_comparison.env_of(run) == env:
            threshold = run.summary().get("reward_threshold", np.nan)
            return {} if np.isnan(threshold) else {"solved": threshold}
    return {}


def agents(comparison: AgentComparison) -> list[Section]:
    """Attacked agents beside each other."""
    facts = [Note(f"{name}: {text}") for name, text in comparison.facts().items()]
    curves = [row.curve for row in comparison.rows]
    rules = {"random play": comparison.random}
    x = comparison.x
    parts: list[Part] = [*_warnings(comparison.warnings()), *facts]
    parts.append(_chart(f"{comparison.env}: return under attack", curves, x, rules=rules))
    profiles = comparison.profile_curves()
    parts.append(_chart(figures.PROFILES, profiles, figures.SCORE, y="share"))
    return [
        Section("Robustness", [*parts, comparison.agents()]),
        Section("Differences", [comparison.differences()]),
    ]


def same_agents(comparison: AttackComparison) -> list[Section]:
    """Attacks on the same agents beside each other."""
    parts: list[Part] = [*_warnings(comparison.warnings())]
    if len(comparison.curves) > 1:
        title = f"{comparison.agents}, mode {comparison.mode}"
        rules = {"random play": comparison.random}
        parts.append(_chart(title, comparison.curves, comparison.x, rules=rules))
    texts = [Note(text) for text in comparison.correlation_texts()]
    return [Section("Single seeds under attack", [*parts, comparison.table(), *texts])]


def study(attack: AttackRun, label: str, colour: int | None = None) -> Section:
    """One attack: its returns, what it changed, and what is to be said against it.

    `colour`: the number of the run's colour; None: its curves have one each.
    """
    found = _read(attack)
    x = figures.eps_label(attack.config.scale)
    curves = [attack.curve(mode, mode) for mode in attack.modes]
    rules = {"random play": attack.summary["random"]}
    title = f"{label}: return, an upper bound of the worst case"
    parts: list[Part] = [
        *_warnings(attack_tables.warnings(found, len(attack.summary["seeds"]))),
        _of_one(_chart(title, curves, x, rules=rules), colour),
        attack_tables.returns(found),
        attack_tables.scores(found),
        _of_one(
            _chart(f"{label}: decisions that the box changes", _flips(found), x, y=SHARE), colour
        ),
        attack_tables.heads(found),
        *attack_tables.winners(found),
    ]
    if found.audit:
        parts.append(attack_tables.audit(found))
    attribution = attack.summary.get("attribution")
    if isinstance(attribution, Mapping):
        parts.append(attack_tables.attribution(Attribution(**attribution)))
    if "certificates" in attack.summary:
        parts += _certificates(attack.summary["certificates"], label, x, colour)
    if "cost" in attack.summary:
        parts.append(attack_tables.costs(attack.summary["cost"]))
    return Section(label, parts)


def _read(attack: AttackRun) -> Study:
    """The study of an attack; ConfigError where an earlier rlx has noted less of it."""
    try:
        return Study.from_summary(attack.summary)
    except (KeyError, TypeError) as error:
        file = attack.path / "summary.json"
        raise ConfigError(
            f"{file}: lacks what a page shows ({error}); attack the agent anew."
        ) from None


def _flips(found: Study) -> list[figures.Curve]:
    """The decisions that the box changes, as curves."""
    curves = []
    for label, shares in attack_tables.shares_of_heads(found).items():
        points = [
            (eps, Estimate(np.empty(0), share, NO_INTERVAL))
            for eps, share in zip(found.eps, shares, strict=True)
            if share is not None
        ]
        curves.append(figures.Curve(label, [x for x, _ in points], [one for _, one in points]))
    return [curve for curve in curves if curve.x]


def certificates(run: Run, colour: int | None = None) -> Section:
    """The decisions that nothing changes, from below and from above.

    `colour`: the number of the agent's colour; None: the curves have one each.
    """
    summary = run.summary()
    x = figures.eps_label(run.config.scale)
    (source,) = training_comparison.agent_labels([run])
    warnings = _warnings(console.few_seeds(len(summary["seeds"])))
    parts = [*warnings, *_certificates(summary, source, x, colour)]
    return Section(f"Certificates of {source} ({run.path.name})", parts)


def _certificates(
    summary: Mapping[str, Any], source: str, x: str, colour: int | None
) -> list[Part]:
    """What is proved, as sandwiches against `x`, the radius, and as tables."""
    parts: list[Part] = [Note(f"Proved: {text}.") for text in certify_tables.proved(summary)]
    for title, curves in certify_tables.panels(summary, source).items():
        name = f"{title}: decisions of clean play that the box cannot change, from both sides"
        parts.append(_of_one(Chart(name, curves, x, y=SHARE, shaded=True), colour))
    for title, curves in certify_tables.return_panels(summary, source).items():
        chart = Chart(f"{title}, from both sides", curves, x, shaded=True)
        parts.append(_of_one(chart, colour))
    return [*parts, *certify_tables.tables(summary)]


def sweep(ranked: Sequence[Ranking], jobs: Sequence[Job]) -> list[Section]:
    """The jobs of a sweep, ranked."""
    sections = []
    for ranking in ranked:
        parts: list[Part] = []
        for panel in report.panels([ranking]):
            parts += [Dots(panel, key) for key in panel.settings]
        parts.append(report.ranking_table(ranking))
        if ranking.lead is not None:
            parts.append(Note(report.lead_text(ranking.lead)))
        parts += report.effects(ranking)
        sections.append(Section(f"{ranking.env} {ranking.what}".strip().capitalize(), parts))
    left = [job for job in jobs if not job.finished]
    if left:
        keys = swept_keys(jobs)
        rows = [[str(job.number), job.status, job.label_of(keys), job.error or ""] for job in left]
        table = console.Table("Jobs that are not finished", ["job", "state", "keys", "why"], rows)
        sections.append(Section("Unfinished", [table]))
    return sections


def episodes(runs: Sequence[Run]) -> list[Section]:
    """The films that lie in the runs' folders; nothing where there is none."""
    found = films(run.path for run in runs)
    return [Section("Episodes", found)] if found else []


def attacked(runs: Sequence[Run]) -> dict[str, Run]:
    """The trainings that are attacked or certified, as far as they are there, by name."""
    found = {}
    for run in runs:
        paths = run.summary().get("run")
        for path in map(Path, paths if isinstance(paths, list) else []):
            if (path / "summary.json").is_file():
                found[path.resolve()] = Run(path, run.trusted)
    trained = list(found.values())
    return dict(zip(training_comparison.run_labels(trained), trained, strict=True))


def names_of(attacks: Sequence[AttackRun]) -> dict[str, AttackRun]:
    """The attacks by what their sections are called."""
    agents = training_comparison.agent_labels([attack.run for attack in attacks])
    names = attack_labels(attacks)
    labels = [f"{agent} under {name}" for agent, name in zip(agents, names, strict=True)]
    return dict(zip(unique(labels, attacks), attacks, strict=True))


def _warnings(texts: Sequence[str]) -> list[Note]:
    """Warnings as parts."""
    return [Note(text, warns=True) for text in texts]


def _chart(
    title: str,
    curves: Sequence[figures.Curve],
    x: str,
    y: str = "return",
    rules: Mapping[str, float] | None = None,
    colours: Sequence[int] = (),
) -> Chart:
    """A chart of the curves that have points; `colours`: of each curve, as of a chart."""
    numbers = colours or range(len(curves))
    drawn = [pair for pair in zip(curves, numbers, strict=True) if len(pair[0].x)]
    shown = [number for _, number in drawn]
    return Chart(title, [curve for curve, _ in drawn], x, y, rules or {}, colours=shown)


def _of_one(chart: Chart, colour: int | None) -> Chart:
    """The chart with all its curves in the colour of one run, told apart by their lines."""
    if colour is None:
        return chart
    count = len(chart.curves)
    return replace(chart, colours=[colour] * count, lines=range(count))
