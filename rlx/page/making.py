"""How the runs of a report were made: settings, versions, machine, and the lines that repeat it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.composing import as_typed, compose_config, hydra_left_as_it_is
from rlx.conf import group_files
from rlx.config import plain
from rlx.names import flatten_keys
from rlx.page.document import Lines, Note, Part, Section
from rlx.runs.run import Run
from rlx.show import console
from rlx.show.training_comparison import IGNORED_KEYS
from rlx.training.config import validated

UNKNOWN = "–"


def sections(runs: Mapping[str, Run], argv: Sequence[str]) -> list[Section]:
    """What was run, and the lines that make it again; `argv`: the line that made the report."""
    return [
        Section("What was run", [_runs(runs), _machines(runs), *_settings(runs), *_configs(runs)]),
        Section("To make it again", _lines(runs, argv)),
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
                console.ranges(summary["seeds"]),
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
    """The keys whose values are not the defaults, those of each run on a column."""
    columns = {}
    defaults: dict[str, Any] = {}
    unknown = []
    for label, run in runs.items():
        default = _defaults(run)
        if default is None:
            unknown.append(label)
            continue
        config = flatten_keys(OmegaConf.to_container(run.config))
        columns[label] = config
        defaults |= {key: value for key, value in default.items() if key not in defaults}
    parts: list[Part] = []
    keys = dict.fromkeys(key for config in columns.values() for key in config)
    rows = []
    for key in keys:
        values = [config.get(key, UNKNOWN) for config in columns.values()]
        default_value = defaults.get(key, UNKNOWN)
        differs = any(value not in (default_value, UNKNOWN) for value in values)
        if differs and key.split(".")[0] not in (*IGNORED_KEYS, "run"):
            rows.append([key, *(_text(value) for value in (default_value, *values))])
    title = "Keys that differ from the defaults of the agent, env and attack"
    if rows:
        parts.append(console.Table(title, ["key", "default", *columns], rows))
    elif columns:
        parts.append(Note("All other keys have their defaults."))
    if unknown:
        parts.append(Note(f"The defaults of {', '.join(unknown)} are not known here."))
    return parts


def _defaults(run: Run) -> dict[str, Any] | None:
    """The config of the run's options without tuned settings and what was typed, flat.

    None where the run does not say its options, or they are not here.
    """
    meta = run.meta()
    choices = {"tuned": "none", **meta.get("choices", {})}
    words = []
    for group in ("agent", "env", "tuned", "attack", "effort"):
        if group in choices and "choices" in meta:
            words.append(f"{group}={'none' if group == 'tuned' else choices[group]}")
    if not words:
        return None
    command = str(meta["command"])
    if command != "train":
        words.remove("tuned=none")
    try:
        with hydra_left_as_it_is():
            config = compose_config(command, words)
            if command == "train":
                config = validated(config)
            return flatten_keys(plain(config))
    except (HydraException, OmegaConfBaseException, ValueError):
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


def _lines(runs: Mapping[str, Run], argv: Sequence[str]) -> list[Part]:
    """The command lines of the runs, the trainings first, then that of the report."""
    lines = []
    unknown = []
    order = {"train": 0, "certify": 1}
    for label, run in sorted(runs.items(), key=lambda pair: order.get(_command(pair[1]), 2)):
        meta = run.meta()
        if not meta.get("line"):
            unknown.append(label)
            continue
        line = meta["line"]
        words = shlex.split(line)
        reads = run.summary().get("run")
        if reads and not any(word.startswith("run=") for word in words):
            line += f" {shlex.quote('run=[' + ','.join(reads) + ']')}"  # the newest run, then
        lines += [f"# {label}", line, *(text for text in meta.get("resumed", []) if text)]
    lines += ["# this report", as_typed(argv)]
    lines = [_with_paths(line) for line in lines]
    parts: list[Part] = [Lines("Command lines", "\n".join(lines))]
    if unknown:
        parts.append(Note(f"Made by an rlx that noted no command line: {', '.join(unknown)}."))
    return parts


def _with_paths(line: str) -> str:
    """A command line with the runs that it names in the place where one types them."""
    if " run=" not in line.replace("'", " "):
        return line
    words = []
    for word in shlex.split(line):
        paths = re.fullmatch(r"run=\[?(.*?)\]?", word)
        # Hydra's quotes: a path may have a comma.
        found = re.findall(r"'([^'\\]*)'|([^',]+)", paths[1]) if paths else []
        words += ["".join(pair) for pair in found] or [word]
    return shlex.join(words)


def _command(run: Run) -> str:
    """The command that made a run."""
    return str(run.meta()["command"])
