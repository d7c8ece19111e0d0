"""A sweep's results for people: tables, sweep.csv and a figure; also while it runs."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlx.composing import load_command
from rlx.show import console, figures
from rlx.show.sweep_figures import Panel
from rlx.statistics import Resampled
from rlx.sweeps.ranking import Ranking, in_order, rankings
from rlx.sweeps.sweep import LOST, Job, Sweep, swept_keys, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlx.command import Command

Page = Callable[[Sweep, Sequence[Ranking]], Path]
"""What writes a page of a sweep whose jobs are ranked, and returns its file."""


def report(sweep: Sweep, style: figures.Style = figures.SCREEN, page: Page | None = None) -> None:
    """Print what has come of a sweep so far; write its table, its figure and a `page` beside it."""
    command: Command = load_command(sweep.command)
    jobs = sweep.jobs()
    ranked = [] if command.measure is None else rankings(sweep, command.measure)
    for ranking in ranked:
        _print_ranking(ranking)
    runs = [job.run for job in jobs if job.finished]
    if runs and command.table is not None:
        command.table([run for run in runs if run is not None])
    _print_others(jobs)
    if command.measure is not None:
        _print_unranked(jobs, ranked, command.measure.name)
    table = sweep.path / "sweep.csv"
    with writing(sweep.path):
        _write_csv(table, jobs, ranked)
    files: dict[str, Any] = {"table": table}
    drawn = figure(ranked, style)
    if drawn is not None:
        files["figure"] = sweep.path / "sweep.png"
        with writing(sweep.path):
            figures.save(drawn, files["figure"])
    if page is not None:
        with writing(sweep.path):
            files["page"] = page(sweep, ranked)
    done = f"{sum(job.finished for job in jobs)} of {len(jobs)} done"
    if pruned := sum(job.status == "pruned" for job in jobs):
        done += f", {pruned} of them pruned"
    console.facts(sweep=done)
    console.result(sweep.path, **files)


def figure(ranked: Sequence[Ranking], style: figures.Style) -> "Figure | None":
    """The scores of a sweep's jobs against the keys that differ; None where there are none."""
    from rlx.show import sweep_figures

    found = panels(ranked)
    return sweep_figures.figure(found, in_order, style) if found else None


def panels(ranked: Sequence[Ranking]) -> list[Panel]:
    """What the figure shows: the rankings of jobs that differ in some key."""
    return [
        Panel(
            ranking.env,
            ranking.what,
            {key: [job.settings.get(key, "") for job in ranking.jobs] for key in ranking.keys},
            np.array([score.estimate.iqm for score in ranking.scores]),
        )
        for ranking in ranked
        if ranking.keys
    ]


def _print_ranking(ranking: Ranking) -> None:
    """Print the jobs, the best first, and how sure the first place is."""
    console.table(*ranking_table(ranking))
    if not np.isnan(ranking.scores[0].estimate.iqm):
        console.facts(best=_run_path(ranking.jobs[0]))
    if ranking.lead is not None:
        console.facts(lead=lead_text(ranking.lead))
    for table in effects(ranking):
        console.table(*table)


def ranking_table(ranking: Ranking) -> console.Table:
    """The jobs, the best first."""
    rows = []
    for place, (job, score) in enumerate(zip(ranking.jobs, ranking.scores, strict=True), 1):
        value = console.interval_text(score.estimate.iqm, score.estimate.ci95)
        settings = [job.settings.get(key, "") for key in ranking.keys]
        rows.append([str(place), *settings, value, str(len(score.estimate.per_seed))])
    title = f"{ranking.what.capitalize()}: interquartile mean over seeds, 95 % bootstrap interval"
    if ranking.env:
        title = f"{ranking.env}. {title}"
    return console.Table(title, ["", *ranking.keys, ranking.what, "seeds"], rows)


def lead_text(lead: Resampled) -> str:
    """How sure the first place is."""
    return f"a seed of the first is better than one of the second: {console.resampled_text(lead)}"


def effects(ranking: Ranking) -> list[console.Table]:
    """What each value of each key does, on the average of all others; of one key nothing."""
    rows = [
        [effect.key, effect.value, str(effect.jobs), console.resampled_text(effect.mean)]
        for effect in ranking.effects
    ]
    if len(ranking.keys) < 2 or not rows:
        return []
    title = f"Mean {ranking.what} of all jobs that have a value in common"
    return [console.Table(title, ["key", "value", "jobs", ranking.what], rows)]


def _print_others(jobs: Sequence[Job]) -> None:
    """Print the jobs that are not finished, why they failed and where that is told whole."""
    keys = swept_keys(jobs)
    for job in jobs:
        if not job.finished:
            reason = f": {job.error} ({job.log})" if job.log.exists() else ""
            if job.is_lost:
                reason = f": {LOST}"
            if job.unreadable is not None:
                reason = f": {job.unreadable}"
            console.facts(**{job.status: f"{job.label_of(keys)}{reason}"})


def _print_unranked(jobs: Sequence[Job], ranked: Sequence[Ranking], what: str) -> None:
    """Print the finished jobs that are in no ranking: somebody has changed their result."""
    known = {job.id for ranking in ranked for job in ranking.jobs}
    for job in jobs:
        if job.finished and job.run is not None and job.id not in known:
            console.facts(unranked=f"{job.run.path}: its result has no {what} that can be read")


def _write_csv(path: Path, jobs: Sequence[Job], ranked: Sequence[Ranking]) -> None:
    """Write a row for each job, the ranked ones first; rank 1 is the best of its env."""
    keys = swept_keys(jobs)
    rows: list[dict[str, Any]] = []
    for ranking in ranked:
        for rank, (job, score) in enumerate(zip(ranking.jobs, ranking.scores, strict=True), 1):
            low, high = score.estimate.ci95
            rows.append(
                _row(job, keys)
                | {
                    "rank": rank,
                    ranking.what: score.estimate.iqm,
                    "ci95_low": low,
                    "ci95_high": high,
                    "seeds": len(score.estimate.per_seed),
                }
            )
    written = {row["job"] for row in rows}
    rows += [_row(job, keys) for job in jobs if job.id not in written]
    header = list(dict.fromkeys(key for row in rows for key in row)) or ["job"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def _row(job: Job, keys: Sequence[str]) -> dict[str, Any]:
    """What the table has of every job."""
    settings = {key: job.settings.get(key, "") for key in keys}
    return {"job": job.id, "state": job.status, "error": job.error or "", **settings}


def _run_path(job: Job) -> str:
    """Where the run of a finished job is."""
    return "" if job.run is None else str(job.run.path)
