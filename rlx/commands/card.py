"""Write all that is known of a policy's robustness on a card; check a card by running it again."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command
from rlx.commands.show import line_of
from rlx.conf import user_dir
from rlx.config import build
from rlx.errors import ConfigError, RunError
from rlx.names import one_line
from rlx.runs.files import write, write_json
from rlx.runs.finding import command_of, find, reading, shown_paths
from rlx.runs.listing import read as read_entry
from rlx.runs.run import Run
from rlx.show import console
from rlx.show.attack_run import AttackRun
from rlx.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from rlx.robustness.card import Difference

CHECK = "check"
"""The first word where a card is checked."""
COMMANDS = ("attack", "certify")
"""The commands whose runs a card is made of, and that a check runs again."""
ELSEWHERE = ("run", "outputs", "trust")
"""Keys of a command line that say where things are, which a card or its check says itself."""
SHOWN = 20
"""The most differences that are printed."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of card.yaml."""

    run: Any
    """An attack run, and the certify run of the same policies (or sweeps with one of each); or
    `check` and a card."""


@command("card")
def main(composed: DictConfig) -> None:
    """Writes card.json and card.md; of a check, prints what differs, and fails where it does."""
    config = build(Config, composed, "")
    paths = [config.run] if isinstance(config.run, str) else list(config.run or [])
    if paths[:1] == [CHECK]:
        if len(paths) != 2:
            raise ConfigError("card: name one card, as in: rlx card check outputs/card/A/card.json")
        _check(Path(paths[1]), config)
        return

    from rlx.page.card import page
    from rlx.robustness import card

    runs = _runs(paths, config)
    lines = {name: _line(run) for name, run in runs.items()}
    attack = AttackRun.of(runs["attack"])
    made = card.make(attack, runs.get("certify"), lines)
    output = Run.create(config.outputs, "card", attack.source, composed)
    files = {"card": output.path / "card.json", "page": output.path / "card.md"}
    with output.writing():
        write_json(files["card"], made)
        write(files["page"], page(made, files["card"].name))
        output.complete({"run": [str(run.path) for run in runs.values()]})
    console.result(output.path, None, **files)


def _runs(paths: Sequence[str], config: Config) -> dict[str, Run]:
    """The runs that a card is made of, by command; ConfigError where there is no attack."""
    runs: dict[str, Run] = {}
    for path in [job for named in paths for job in _jobs(named)]:
        kind = command_of(path) or COMMANDS[0]
        if kind not in COMMANDS or kind in runs:
            raise ConfigError(
                f"run={path}: made by rlx {kind}; a card is of one attack run, and of at most one "
                "certify run of the same policies."
            )
        runs[kind] = find(path, config.outputs, kind, trusted=config.trust)
    if "attack" not in runs:
        raise ConfigError(
            "card: name an attack run, as in: rlx card outputs/attack/hdqn-acrobot "
            "outputs/certify/hdqn-acrobot"
        )
    return runs


def _jobs(path: str) -> list[str]:
    """The runs of a sweep's finished jobs; any other path is itself."""
    if not Sweep.is_at(path):
        return [path]
    jobs = Sweep(Path(path)).jobs()
    return [str(job.run.path) for job in jobs if job.finished and job.run is not None]


def _line(run: Run) -> str:
    """The command line that makes a run again from where one stands."""
    meta = run.meta()
    trained = shown_paths(run.summary()["run"])
    if not meta.get("line"):
        entry = read_entry(run.path)
        return line_of(replace(entry, summary={**entry.summary, "run": trained}))
    line = reading(meta["line"], [] if run.config.get("victim") else trained)
    words = [word for word in shlex.split(line) if word.partition("=")[0] not in ELSEWHERE]
    return shlex.join(shown_paths(words))


def _check(file: Path, config: Config) -> None:
    """Run the lines of a card again, and print what differs.

    RunError where anything does, but for rounding on another machine.
    """
    from rlx.robustness import card

    recorded = card.read(file)
    lines = {"attack": "", **recorded["commands"]}
    words = {name: _words(file, name, line) for name, line in lines.items()}
    victim = build(card.Victim, recorded["victim"], "victim")
    as_now = victim.as_now(victim.opened(recorded["env"], config.trust))
    changed = card.differences(recorded, {**recorded, "victim": asdict(as_now)})
    if changed:
        _print(changed)
        raise RunError(f"{file}: the weights are not those of the card; nothing was run.")
    with tempfile.TemporaryDirectory() as outputs:
        runs = {name: _again(line, outputs, config.trust) for name, line in words.items()}
        again = card.make(AttackRun.of(runs["attack"]), runs.get("certify"), recorded["commands"])
    for name, key, then, now in card.other_makers(recorded, again):
        console.facts(**{f"{name} {key}": f"{one_line(then)}, now {one_line(now)}"})
    same_machine = card.same_machine(recorded, again)
    found = card.differences(recorded, again)
    _print(found)
    console.facts(
        machine="the same CPU and packages: equal bits are expected"
        if same_machine
        else "another CPU, or other packages: numbers are expected within the card's intervals"
    )
    outside = [difference for difference in found if not difference.within]
    if outside:
        raise RunError(f"{file}: {len(outside)} of what it says is not what was found again.")
    console.facts(card=f"{file}: holds")


def _words(file: Path, name: str, line: str) -> list[str]:
    """The words of a card's line; ConfigError where it is none of an attack's or a certify run's.

    A card may be somebody else's: it runs nothing but these two, and says nothing to Hydra.
    """
    words: list[str] = []
    with suppress(ValueError):  # quotes that do not end
        words = shlex.split(str(line))
    strange = [word for word in words if word.lstrip("+~").startswith(("-", "hydra"))]
    if words[:2] != ["rlx", name] or name not in COMMANDS or strange:
        raise ConfigError(f"{file}: its line '{line}' is none of rlx attack or rlx certify.")
    return words[1:]


def _again(words: Sequence[str], outputs: str, trust: bool) -> Run:
    """What a command line makes in a folder of its own; RunError where it fails."""
    console.facts(again=shlex.join(["rlx", *words]))
    folder = user_dir()
    flags = [] if folder is None else ["--config-dir", str(folder)]
    own = [f"outputs={outputs}", f"trust={str(trust).lower()}"]
    line = [sys.executable, "-m", "rlx", *words, *flags, *own]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if outputs not in text:  # nothing will be there any more
                print(text, end="", flush=True)
    if process.returncode != 0:
        raise RunError(f"card: rlx {words[0]} ended with exit code {process.returncode}.")
    return find(None, outputs, words[0], trusted=trust)


def _print(found: "Sequence[Difference]") -> None:
    """Print what a card says beside what was found again."""
    rows = []
    for difference in found[:SHOWN]:
        verdict = "within its interval" if difference.within else "differs"
        rows.append(
            [difference.key, one_line(difference.card), one_line(difference.again), verdict]
        )
    if len(found) > SHOWN:
        rows.append([f"and {len(found) - SHOWN} more", "", "", ""])
    if rows:
        console.table("What differs", ["in the card", "the card", "now", ""], rows)
