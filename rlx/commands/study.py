"""Do a whole study: trainings, attacks on them, a report, each a line of an experiment's file."""

import hashlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.composing import chosen, load_command
from rlx.conf import user_dir
from rlx.config import build
from rlx.errors import ConfigError, Interrupted, RunError
from rlx.show import console
from rlx.sweeps.sweep import Sweep


@dataclass(frozen=True)
class Config:
    """The keys of study.yaml."""

    lines: dict | None
    """Name → a command line, as in "attack {train} attack=pgd"; {train}: the runs of that line."""
    outputs: str
    """Folder of all runs."""


@command("study")
def main(composed: DictConfig) -> None:
    """Does what is left of the study: its trainings and attacks are sweeps, and go on."""
    config = build(Config, composed, "")
    if not config.lines:
        raise ConfigError(
            f"lines={config.lines}: no study; name an experiment with lines, as in: "
            "rlx study experiment=cartpole_robustness"
        )
    study = _name(config.lines)
    steps = _steps(config.lines)
    sweeps = {name: Sweep.folder(config.outputs, f"{study}-{name}") for name in steps}
    folder = user_dir()
    flags = [] if folder is None else ["--config-dir", str(folder)]
    for number, (name, (verb, words)) in enumerate(steps.items(), 1):
        console.facts(study=f"{study}, {number} of {len(steps)}: {name}")
        words = [path for word in words for path in _runs(word, sweeps)]
        if load_command(verb).measure is not None:
            words = ["-m", *words, f"sweep={sweeps[name].name}"]
        code = _run([verb, *flags, *words, f"outputs={config.outputs}"])
        if code != 0:
            error = RunError(
                f"study: {name} ended with exit code {code}; the same command goes on."
            )
            error.code = code
            raise error


def _steps(lines: Mapping[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Name → (command, its words); ConfigError where a line is none, or names a later one."""
    steps: dict[str, tuple[str, list[str]]] = {}
    for name, line in lines.items():
        try:
            verb, *words = shlex.split(str(line))
            load_command(verb)
        except (ValueError, ImportError):
            raise ConfigError(f"lines.{name}={line}: expected a command of rlx's.") from None
        for word in words:
            if word.startswith("{") and word.strip("{}") not in steps:
                raise ConfigError(f"lines.{name}: {word} is no earlier line.")
        steps[name] = (verb, words)
    return steps


def _name(lines: Mapping[str, Any]) -> str:
    """What its sweeps' names begin with: the experiment, or `study` and a hash of its `lines`."""
    experiment = chosen("experiment")
    if experiment != "None":
        return experiment
    text = json.dumps(dict(lines), default=str)
    return f"study-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _runs(word: str, sweeps: Mapping[str, Path]) -> list[str]:
    """The runs that a {name} stands for; any other word is itself."""
    if not (word.startswith("{") and word.endswith("}")):
        return [word]
    jobs = Sweep(sweeps[word.strip("{}")]).jobs()
    return [str(job.run.path) for job in jobs if job.finished and job.run is not None]


def _run(words: list[str]) -> int:
    """Run a command line of rlx in a process of its own; returns its exit code."""
    # In a group of its own, so that what is typed at the terminal is told to it once.
    command = [sys.executable, "-m", "rlx", *words]
    # What would ask at the terminal gets no answer; in that group it would be stopped, for ever.
    process = subprocess.Popen(command, process_group=0, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        process.send_signal(number)
        process.wait()
        raise Interrupted(number, "the study is stopped; the same command goes on") from None
