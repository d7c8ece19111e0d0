"""Show one run: what it is, its numbers and files, what was made of it, and what to do with it."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from rlx.command import command
from rlx.commands.list import entries_of, in_bytes, listed, print_table
from rlx.composing import compose_config
from rlx.conf import group_files
from rlx.config import build, plain
from rlx.errors import ConfigError
from rlx.experiment import CommonEnvConfig
from rlx.names import flatten_keys
from rlx.runs.finding import is_in_zoo, one_located, run_paths, shown_paths
from rlx.runs.listing import Entry, disk_size, root_of
from rlx.runs.run import Run
from rlx.show import console
from rlx.sweeps.sweep import Sweep


@dataclass(frozen=True)
class Config:
    """The keys of show.yaml."""

    run: Any
    """A run or a sweep, or a folder with runs: the newest in it; null: the newest of all."""
    outputs: str
    """Folder of all runs."""


GROUPS = ("agent", "env", "attack", "effort")
"""The config groups whose option is told."""


@command("show")
def main(composed: DictConfig) -> None:
    """Prints the run."""
    config = build(Config, composed, "")
    for path in [] if config.run is None else run_paths(config.run):
        one_located(path)
    found = entries_of(config.run, config.outputs)
    if isinstance(config.run, list) and len(config.run) > 1:
        raise ConfigError(f"run={config.run}: show takes one run, or a folder with runs.")
    if not found:
        raise ConfigError(f"run={config.run or config.outputs}: no run in it.")
    entry = max(found, key=lambda entry: entry.begun)
    if Sweep.is_at(entry.path):
        _show_sweep(entry)
    else:
        _show_run(entry, config.outputs)


def _show_sweep(entry: Entry) -> None:
    """Print what a sweep is, and how far."""
    jobs = entry.meta.get("jobs", {})
    counts = ", ".join(f"{count} {state}" for state, count in jobs.items())
    line = "rlx report" if entry.status == "completed" else "rlx resume"
    console.facts(
        sweep=entry.path,
        status=f"{entry.status}: {counts or entry.error}",
        line=entry.meta.get("line", "unknown"),
        **{"made by": _maker(entry)},
        next=f"{line} {shlex.quote(str(entry.path))}",
    )
    console.result(entry.path)


def _show_run(entry: Entry, outputs: str) -> None:
    """Print what a run is, its numbers, its files, and what was made of it.

    `outputs`: where that is of a run of the zoo.
    """
    words = [word for word in (entry.kind, entry.agent, entry.env) if word]
    words += [f"defence={entry.defence}"] if entry.defence else []
    console.facts(
        run=" ".join(words),
        status=f"{entry.status} ({entry.error})" if entry.error else entry.status,
        begun=entry.meta.get("started", "nobody knows when"),
        **{"made by": _maker(entry)},
        line=line_of(entry),
    )
    try:
        _print_numbers(entry)
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
        console.warning(f"its numbers are not as rlx writes them ({error})")
    files = sorted(entry.path.iterdir())
    texts = [f"{file.name} ({in_bytes(disk_size(file))})" for file in files]
    console.facts(files=", ".join(texts))
    run = Run(entry.path)
    names = [str(int(name)) for name in run.checkpoints.steps()]
    if run.checkpoints.has("best"):
        names.append("best")
    if names:
        console.facts(weights=", ".join(names))
    root = Path(outputs) if is_in_zoo(entry.path) else root_of(entry.path)
    made = [other for other in listed([root]) if entry.path.name in other.sources()]
    if made:
        print_table(made, "Made of it")
    path = shlex.quote(shown_paths([str(entry.path)])[0])
    if entry.kind == "train" and entry.status == "completed":
        console.facts(next=f"rlx {_next_command(entry)} {path}")
    elif run.checkpoints.resumable() and entry.status in ("failed", "interrupted"):
        console.facts(next=f"rlx resume {path}")
    console.result(entry.path)


def _next_command(entry: Entry) -> str:
    """What to do with a training: attack it, where something is near its observations."""
    # Runs from before 2026-11-27 do not say what their observations are.
    return "attack" if entry.summary.get("observations", "Box") == "Box" else "evaluate"


def _maker(entry: Entry) -> str:
    """What made it: versions, commit and machine."""
    meta = entry.meta
    packages = meta.get("packages")
    texts = [f"rlx {meta.get('rlx')} ({meta.get('commit') or 'no commit'})"]
    texts.append(f"Python {meta.get('python')}")
    if isinstance(packages, Mapping):
        texts += [f"{name} {version}" for name, version in packages.items()]
    return ", ".join([*texts, str(meta.get("machine"))])


def line_of(entry: Entry) -> str:
    """The command line that makes the run again today: what differs from the defaults."""
    from hydra.errors import HydraException

    config = entry.config()
    groups = {group: _option(group, config[group], entry) for group in GROUPS if group in config}
    if entry.defence and "agent" in config:
        groups["defence"] = _defence(config["agent"]["defence"]["_target_"])
    words = [f"{group}={option}" for group, option in groups.items() if option]
    try:
        defaults = plain(compose_config(entry.kind, words))
    except (HydraException, ValueError) as error:
        return f"unknown ({str(error).splitlines()[0]}); all keys are in config.yaml"
    if "env" in defaults:
        defaults["env"] = asdict(CommonEnvConfig()) | dict(defaults["env"] or {})
    runs = entry.summary.get("run", config.get("run")) or []
    if config.get("victim") is not None:
        runs = []  # of a victim's file, which is a key
    paths = [str(path) for path in (runs if isinstance(runs, list) else [runs])]
    paths = [shlex.quote(path) for path in shown_paths(paths)]
    return " ".join(["rlx", entry.kind, *paths, *words, *_differences(config, defaults)])


def _option(group: str, node: Any, entry: Entry) -> str | None:
    """The option of a config group that a run's config has: by name, by class, by all values."""
    files = group_files(group)
    named = {"agent": entry.agent, "env": entry.env}.get(group)
    if entry.kind == "train" and named in files:
        return named
    for option, file in files.items():
        content = yaml.safe_load(file.read_text()) or {}
        if "_target_" in content and isinstance(node, dict):
            is_it = content["_target_"] == node.get("_target_")
        else:
            is_it = content == node
        if is_it:
            return option
    return None


def _defence(target: str) -> str | None:
    """The option of conf/defence that names this class; None where there is none."""
    for option, file in group_files("defence").items():
        agent = (yaml.safe_load(file.read_text()) or {}).get("agent", {})
        if agent.get("defence", {}).get("_target_") == target:
            return option
    return None


def _differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """The keys that are not as in `defaults`, as one types them."""
    flat, default = flatten_keys(config), flatten_keys(defaults)
    words = []
    for key, value in flat.items():
        if value != default.get(key) and key.partition(".")[0] not in ("run", "outputs", "trust"):
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
            words.append(shlex.quote(f"{key}={text.removesuffix('...').strip()}"))
    return words


def _print_numbers(entry: Entry) -> None:
    """Print the result; of a training that has none, how far it is."""
    summary = entry.summary
    seeds = summary.get("seeds")
    if isinstance(seeds, list):
        console.facts(seeds=f"{len(seeds)} ({console.ranges(seeds)})")
    if isinstance(summary.get("cells"), list):
        _print_cells(summary["cells"])
        for mode, area in summary.get("area", {}).items():
            text = console.interval_text(area, summary["area_ci95"][mode])
            text += " (1: unharmed, 0: as random play)"
            console.facts(**{f"area of {mode}": text})
    elif entry.estimate:
        estimate = entry.estimate
        text = console.interval_text(estimate["iqm"], estimate["ci95"])
        worst = console.number(min(estimate["per_seed"]))
        console.facts(**{"return": f"{text}, the worst seed {worst}"})
    elif entry.kind == "train":
        steps = [row["step"] for row in Run(entry.path).metrics()]
        console.facts(evaluated=f"last at step {steps[-1]:,}" if steps else "not yet")
    numbers = {key: value for key, value in summary.items() if type(value) in (int, float)}
    numbers = {key: value for key, value in numbers.items() if not math.isnan(value)}
    if numbers:
        texts = [f"{key} {value:,.10g}" for key, value in numbers.items()]
        console.facts(numbers=", ".join(texts))


def _print_cells(cells: Sequence[Mapping[str, Any]]) -> None:
    """Print the returns of an attack by radius and mode."""
    modes = list(dict.fromkeys(cell["head"] for cell in cells))
    rows: dict[float, list[str]] = {}
    for cell in cells:
        text = console.interval_text(cell["return"]["iqm"], cell["return"]["ci95"])
        rows.setdefault(cell["eps"], [f"{cell['eps']:g}"]).append(text)
    title = "Return: interquartile mean over seeds, 95 % bootstrap interval"
    console.table(title, ["eps", *modes], list(rows.values()))
