"""How the runs of a report were made: settings, versions, machine, and the lines that repeat it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.composing import compose_config, hydra_left_as_it_is
from rlx.conf import group_files
from rlx.config import plain
from rlx.errors import ConfigError
from rlx.names import flatten_keys
from rlx.page.document import Lines, Note, Part, Section
from rlx.runs.finding import reading
from rlx.runs.run import Run
from rlx.show import console
from rlx.show.training_comparison import IGNORED_KEYS
from rlx.training.config import validated

UNKNOWN = "–"
MOST_CONFIGS = 24
"""The most runs whose settings are shown: those of a sweep may be thousands."""


def sections(
    runs: Mapping[str, Run], what: str, line: str, found: Mapping[str, str] | None = None
) -> list[Section]:
    """What was run, and the lines that make it again; `line` makes `what`, the whole of it.

    `found`: the lines of runs that have noted none, by their labels.
    """
    shown = dict(list(runs.items())[:MOST_CONFIGS])
    settings = [*_settings(shown), *_configs(shown)]
    if len(runs) > MOST_CONFIGS:
        settings.append(Note(f"Shown are the settings of the first {MOST_CONFIGS} runs."))
    return [
        Section("What was run", [_runs(runs), _machines(runs), *settings]),
        Section("To make it again", _lines(runs, [f"# {what}", line], found or {})),
    ]


def _runs(runs: Mapping[str, Run]) -> console.Table:
    """Each run on a line: what it was and how long it took."""
    rows = []
    for label, run in runs.items():
        meta = run.meta()
        summary = run.summary()
        rows.append(
            [
                label,
                str(meta["command"]),
                _tuned(run),
                console.ranges(summary.get("seeds", [])),
                str(meta.get("started", UNKNOWN)).replace("T", " "),
                console.duration(summary["wall_s"]) if "wall_s" in summary else UNKNOWN,
                str(run.path),
            ]
        )
    header = ["run", "command", "settings", "seeds", "started", "took", "directory"]
    return console.Table("Runs", header, rows)


def _tuned(run: Run) -> str:
    """Which tuned settings a training has."""
    choices = run.meta().get("choices", {})
    if run.meta()["command"] != "train" or "tuned" not in choices:
        return UNKNOWN
    wanted = choices["tuned"]
    if wanted in group_files("tuned"):
        return f"tuned/{wanted}"
    return f"defaults of {choices['agent']}"


def _machines(runs: Mapping[str, Run]) -> console.Table:
    """Each run on a line: commits, versions, machine."""
    rows = []
    for label, run in runs.items():
        meta = run.meta()
        packages = " ".join(f"{name} {version}" for name, version in meta["packages"].items())
        on_gpu = meta.get("gpu") and run.config.get("device", {}).get("name") != "cpu"
        rows.append(
            [
                label,
                f"{meta['rlx']} ({meta.get('commit') or 'no commit'})",
                meta.get("project_commit") or UNKNOWN,
                f"{meta['python']}, {packages}",
                meta["gpu"] if on_gpu else meta.get("cpu") or UNKNOWN,
                meta["machine"],
            ]
        )
    header = ["run", "rlx", "your project", "Python and packages", "computed on", "machine"]
    return console.Table("Commits, versions, machine (+: changed since)", header, rows)


def _settings(runs: Mapping[str, Run]) -> list[Part]:
    """The keys of which some run has another value than the default, a table for each command."""
    parts: list[Part] = []
    defaults = {label: _defaults(run) for label, run in runs.items()}
    by_command: dict[str, dict[str, dict[str, Any]]] = {}
    for label, run in runs.items():
        if defaults[label] is not None:
            config = flatten_keys(OmegaConf.to_container(run.config))
            by_command.setdefault(_command(run), {})[label] = config
    for command, configs in by_command.items():
        rows = []
        for key in dict.fromkeys(key for config in configs.values() for key in config):
            texts = []
            differs = False
            for label, config in configs.items():
                default = (defaults[label] or {}).get(key)
                text = _text(config[key]) if key in config else UNKNOWN
                if key in config and config[key] != default:
                    text += f" ({_text(default)})"
                    differs = True
                texts.append(text)
            if differs and key.split(".")[0] not in (*IGNORED_KEYS, "run"):
                rows.append([key, *texts])
        title = f"rlx {command}: keys that differ from their defaults, which are in brackets"
        if rows:
            parts.append(console.Table(title, ["key", *configs], rows))
        else:
            parts.append(Note(f"rlx {command}: all keys have their defaults."))
    unknown = [label for label, default in defaults.items() if default is None]
    if unknown:
        parts.append(Note(f"The defaults of {', '.join(unknown)} are not known here."))
    return parts


def _defaults(run: Run) -> dict[str, Any] | None:
    """The config of the run's options without tuned settings and what was typed, flat.

    Of a training that does not say its options they are as its folder is called. None where they
    are not known, or not here.
    """
    command = _command(run)
    choices = run.meta().get("choices")
    if choices is None and command == "train":
        agent, _, env = run.path.parent.name.partition("-")
        choices = {"agent": agent, "env": env}
    if choices is None:
        return None
    groups = ("agent", "env", "attack", "effort")
    # A group without an option is null, which is no option to type.
    words = [f"{group}={choices[group]}" for group in groups if choices.get(group)]
    try:
        with hydra_left_as_it_is():
            if command == "train":
                config = validated(compose_config(command, [*words, "tuned=none"]))
            else:
                config = compose_config(command, words)
            return flatten_keys(plain(config))
    except (ConfigError, HydraException, OmegaConfBaseException, ValueError):
        return None


def _text(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _configs(runs: Mapping[str, Run]) -> list[Part]:
    """The whole config of each run."""
    return [
        Lines(f"Config of {label}", OmegaConf.to_yaml(run.config), folded=True)
        for label, run in runs.items()
    ]


def _lines(runs: Mapping[str, Run], whole: Sequence[str], found: Mapping[str, str]) -> list[Part]:
    """The command lines of the runs, the trainings first, then the `whole`."""
    lines = []
    unknown = []
    order = {"train": 0, "certify": 1}
    for label, run in sorted(runs.items(), key=lambda pair: order.get(_command(pair[1]), 2)):
        meta = run.meta()
        if not meta.get("line"):
            if label in found:
                lines += [f"# {label}, by its config", found[label]]
            else:
                unknown.append(label)
            continue
        line = meta["line"]
        reads = run.summary().get("run")
        if isinstance(reads, list) and run.config.get("victim") is None:
            line = reading(line, reads)
        resumed = [reading(text, [str(run.path)]) for text in meta.get("resumed", [])]
        lines += [f"# {label}", line, *resumed]
    lines += whole
    parts: list[Part] = [Lines("Command lines", "\n".join(lines))]
    if unknown:
        parts.append(Note(f"Made by an rlx that noted no command line: {', '.join(unknown)}."))
    return parts


def _command(run: Run) -> str:
    """The command that made a run."""
    return str(run.meta()["command"])
