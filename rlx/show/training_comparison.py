"""Trainings beside each other: learning curves in one figure, and a table of their results."""

import csv
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rlx import statistics
from rlx.errors import ConfigError
from rlx.names import flatten_keys
from rlx.runs.finding import shown_paths
from rlx.runs.listing import defence_of
from rlx.runs.run import Run
from rlx.show import console, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED_KEYS = ("outputs", "device", "tracker", "checkpoint_every", "checkpoint_seconds")
"""Keys that change nothing about a result, and so tell no run from another."""

STEPS = "environment steps per seed"
"""What learning curves are drawn against."""
LEVELS = 201
"""Returns at which a performance profile is computed."""


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A label for each run: its name where these differ, and the keys that tell it apart."""
    names = [run_name(run) for run in runs]
    labels = list(names)
    for name in set(names):
        numbers = [number for number, label in enumerate(names) if label == name]
        if len(numbers) == 1:
            continue
        settings = differences([runs[number].config for number in numbers])
        for number, text in zip(numbers, settings, strict=True):
            labels[number] = text if len(numbers) == len(runs) else f"{name} {text}"
    twice = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} ({run.path.name})" if label in twice else label
        for label, run in zip(labels, runs, strict=True)
    ]


def run_name(run: Run) -> str:
    """Agent, env and defence of a training, as in "dqn-cartpole, radial (eps 0.3)"."""
    config: Any = OmegaConf.to_container(run.config)
    defence = defence_of(config.get("agent"))
    name = run.path.parent.name
    return f"{name}, {defence}" if defence else name


def agent_labels(runs: Sequence[Run]) -> list[str]:
    """The agents that each run has attacked or played, by `run_name` and what tells them apart.

    Of victims that rlx did not train the files are named too.
    """
    labels: dict[tuple[Path, ...], str] = {}
    trainings: dict[tuple[Path, ...], Run] = {}
    of_runs = [tuple(Path(path).resolve() for path in run.summary()["run"]) for run in runs]
    for run, paths in zip(runs, of_runs, strict=True):
        if run.config.get("victim") is not None:
            labels[paths] = f"{run.path.parent.name} {', '.join(path.stem for path in paths)}"
        elif (paths[0] / "config.yaml").is_file():
            trainings[paths] = Run(paths[0], run.trusted)
        else:
            labels[paths] = ", ".join(shown_paths([str(path) for path in paths]))
    trained = list(trainings.values())
    for paths, run, label in zip(trainings, trained, run_labels(trained), strict=True):
        name = run_name(run)
        labels[paths] = label if label.startswith(name) else f"{name} {label}"
    return [labels[paths] for paths in of_runs]


def differences(configs: Sequence[DictConfig]) -> list[str]:
    """The keys that tell each config from the others, as in "agent.double=true, steps=1000".

    Of groups of different classes it is the class, and what tells it from others of that class.
    """
    flat = [flatten_keys(OmegaConf.to_container(config)) for config in configs]
    keys = [
        key
        for key in dict.fromkeys(key for values in flat for key in values)
        if key.split(".")[0] not in IGNORED_KEYS and _differs(key, flat)
    ]
    groups = [key.removesuffix("._target_") for key in keys if key.endswith("._target_")]
    texts = []
    for number, values in enumerate(flat):
        settings = []
        for key in keys:
            name = key.removeprefix("agent.")
            group = next((group for group in groups if key.startswith(f"{group}.")), None)
            target = f"{group}._target_"
            if key == target:
                kind = str(values.get(key, "none")).rpartition(".")[2]
                settings.append(f"{name.removesuffix('._target_')}={kind}")
                continue
            alike = [other for other in flat if other.get(target) == values.get(target)]
            if group is None or _differs(key, alike):
                settings.append(f"{name}={values.get(key)}")
        texts.append(", ".join(settings) or f"run {number}")
    return texts


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether flat `configs` have several values of a key."""
    return len({str(config.get(key)) for config in configs}) > 1


def figure(
    runs: Sequence[Run], labels: Sequence[str], style: figures.Style = figures.SCREEN
) -> "Figure":
    """Greedy return while learning: a curve for each run, a panel for each env."""
    return figures.curves(panels(runs, labels), STEPS, style=style)


def panels(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, list[figures.Curve]]:
    """Greedy return against the step: the curves of the runs, by env."""
    found: dict[str, list[figures.Curve]] = {}
    for run, label in zip(runs, labels, strict=True):
        steps, _, values = run.curve()
        estimates = [statistics.estimate(returns[:, None]) for returns in values]
        found.setdefault(env_of(run), []).append(figures.Curve(label, steps, estimates))
    return found


def write_csv(runs: Sequence[Run], labels: Sequence[str], path: Path) -> None:
    """Write the result of each run as a row of a CSV file."""
    rows = [_csv_row(run, label) for run, label in zip(runs, labels, strict=True)]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _csv_row(run: Run, label: str) -> dict[str, Any]:
    """The row of one training."""
    summary = run.summary()
    estimate = own_return(run)
    low, high = estimate.ci95
    return {
        "run": run.path,
        "label": label,
        "iqm": estimate.iqm,
        "ci95_low": low,
        "ci95_high": high,
        "seeds": len(estimate.per_seed),
        "steps": summary["steps"],
        "wall_s": summary["wall_s"],
    }


def results(runs: Sequence[Run], labels: Sequence[str]) -> console.Table:
    """The result of each run."""
    rows = [_table_row(run, label) for run, label in zip(runs, labels, strict=True)]
    title = "Return of the weights kept: interquartile mean over seeds, 95 % bootstrap interval"
    return console.Table(title, ["run", "return", "seeds", "solved", "steps", "took"], rows)


def seeds(run: Run, label: str) -> console.Table:
    """Each seed of a training on a line."""
    summary = run.summary()
    columns: dict[str, Sequence[Any]] = {"return": summary["return"]["per_seed"]}
    kept = summary.get("kept", {})
    if kept:
        columns |= {"kept at step": kept["step"], "value there": kept["value"]}
    for statistic in statistics.STATISTICS:
        if statistic.key in summary:
            columns[statistic.column] = [
                statistic.form.format(value) for value in summary[statistic.key]
            ]
    rows = [list(row) for row in zip(map(str, summary["seeds"]), *columns.values(), strict=True)]
    return console.Table(label, ["seed", *columns], rows)


def pairs(runs: Sequence[Run], labels: Sequence[str]) -> list[console.Table]:
    """The difference of each two trainings in one env, and how sure it is; a table for each env."""
    tables = []
    for env, seeds in _seeds_by_env(runs, labels).items():
        rows = []
        for (first, ours), (second, theirs) in combinations(seeds.items(), 2):
            difference = resampled_iqm(ours) - resampled_iqm(theirs)
            probability = statistics.probability_of_improvement(ours, theirs)
            texts = [console.resampled_text(one) for one in (difference, probability)]
            rows.append([first, second, *texts])
        if rows:
            title = (
                f"{env}: the first minus the second, and the probability that a random seed of the "
                "first has the higher return"
            )
            tables.append(console.Table(title, ["first", "second", "return", "probability"], rows))
    return tables


def profiles(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, list[figures.Curve]]:
    """The share of the seeds with a higher return than τ, against τ, by env."""
    found = {}
    for env, seeds in _seeds_by_env(runs, labels).items():
        returns = np.concatenate([one.value for one in seeds.values()])
        levels = np.linspace(returns.min(), returns.max(), LEVELS)
        found[env] = [
            figures.profile(label, levels, statistics.share_above(one, levels))
            for label, one in seeds.items()
        ]
    return found


def _seeds_by_env(
    runs: Sequence[Run], labels: Sequence[str]
) -> dict[str, dict[str, statistics.Resampled]]:
    """The returns of the seeds of each run, [S], by env and label."""
    found: dict[str, dict[str, statistics.Resampled]] = {}
    for run, label, seeds in zip(runs, labels, resampled_returns(runs), strict=True):
        found.setdefault(env_of(run), {})[label] = seeds
    return found


def resampled_returns(runs: Sequence[Run]) -> list[statistics.Resampled]:
    """The returns of the seeds of each run, a training or an evaluation, [S].

    Seeds are drawn together where all runs have played the same policies, else for each by itself;
    episodes are drawn together where their numbers are equal, as their start states are.
    """
    summaries = [run.summary() for run in runs]
    returns = [episode_returns(run) for run in runs]
    sources = [(summary.get("run"), summary.get("seeds")) for summary in summaries]
    shapes = [values.shape for values in returns]
    if sources[0][0] is not None and all(source == sources[0] for source in sources):
        bootstraps = [statistics.Bootstrap(*shape) for shape in shapes]
    elif len({episodes for _, episodes in shapes}) == 1:
        bootstraps = statistics.independent([seeds for seeds, _ in shapes], shapes[0][1])
    else:
        bootstraps = [
            statistics.Bootstrap(seeds, episodes, rng=rng)
            for rng, (seeds, episodes) in enumerate(shapes)
        ]
    found = []
    for values, bootstrap in zip(returns, bootstraps, strict=True):
        resampled = bootstrap.means(values)
        if len(values) == 1:
            resampled = np.full_like(resampled, np.nan)
        found.append(statistics.Resampled(values.mean(1), resampled))
    return found


def episode_returns(run: Run) -> statistics.Array:
    """The return of every episode, [S, P]; ConfigError where it cannot be read."""
    returns = run.returns()
    if returns.ndim != 2 or not returns.size:
        file = run.path / "returns.npz"
        raise ConfigError(f"{file}: 'returns' is {list(returns.shape)}; expected seeds × episodes.")
    return returns


def own_return(run: Run) -> statistics.Estimate:
    """The interquartile mean with the interval that the run has; ConfigError where it has none."""
    try:
        return statistics.Estimate.from_dict(run.summary()["return"])
    except (KeyError, TypeError):
        raise ConfigError(
            f"{run.path / 'summary.json'}: has no 'return' with an interval."
        ) from None


def resampled_iqm(seeds: statistics.Resampled) -> statistics.Resampled:
    """The interquartile mean of `seeds` [S], []."""
    value = np.asarray(statistics.iqm(seeds.value))
    return statistics.Resampled(value, statistics.iqm(seeds.resampled, 1))


def env_of(run: Run) -> str:
    """The env of a training, as in "cartpole"."""
    return run.path.parent.name.partition("-")[2]


def _table_row(run: Run, label: str) -> list[str]:
    """The line of one training."""
    summary = run.summary()
    estimate = own_return(run)
    threshold = summary.get("reward_threshold", np.nan)
    solved = ""
    if not np.isnan(threshold):
        count = sum(value >= threshold for value in summary["return"]["per_seed"])
        solved = f"{count} (from {threshold:g})"
    return [
        label,
        console.interval_text(estimate.iqm, estimate.ci95),
        str(len(estimate.per_seed)),
        solved,
        f"{summary['steps']:,}",
        console.duration(summary["wall_s"]),
    ]
