"""Put finished trainings into the zoo, each with its card: what rlx zoo:NAME names.

    python docs/zoo.py "AMD EPYC (Zen 5)" outputs/train/dqn-cartpole outputs/train/hdqn-acrobot

The first word says which CPU trained them. What had the same name is replaced. Of a run, the zoo
has what other commands read: the weights kept, the result, and of the metrics the learning curve.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from rlx.commands.show import line_of
from rlx.errors import ConfigError
from rlx.runs.files import write_json
from rlx.runs.finding import ZOO, find
from rlx.runs.listing import Entry, read
from rlx.runs.run import Run
from rlx.show import console

FILES = (
    "summary.json",
    "returns.npz",
    "checkpoints/best/agent.safetensors",
    "checkpoints/best/state.json",
)
"""The files that are copied; the others are written anew."""
CURVE = ("step", "seed", "return/mean")
"""The metrics of the learning curve."""
LARGEST = 1_000_000
"""Bytes that a file of the zoo may have."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    cpu, *paths = arguments
    try:
        for path in paths:
            print(put(find(path, "outputs"), cpu))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def put(run: Run, cpu: str) -> Path:
    """Copy a run of the `cpu` into the zoo and write its card; returns its folder."""
    weights = run.path / "checkpoints/best/agent.safetensors"
    if weights.stat().st_size > LARGEST:
        raise ConfigError(f"{weights}: has {weights.stat().st_size:,} bytes, above {LARGEST:,}.")
    folder = ZOO / "train" / run.path.parent.name
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / run.path.name
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.path / name, path / name)
    config = run.config
    config.outputs = "outputs"
    OmegaConf.save(config, path / "config.yaml")
    # Signatures are this user's; a config of rlx's own classes needs none.
    meta = {key: value for key, value in run.meta().items() if key != "signature"}
    write_json(path / "meta.json", meta | {"cpu": cpu})
    Run(path).log({key: row[key] for key in CURVE} for row in run.metrics())
    (folder / "card.md").write_text(card(read(path)))
    return folder


def card(entry: Entry) -> str:
    """What an agent of the zoo is, and how it was made, in Markdown."""
    summary = entry.summary
    meta = entry.meta
    interval = console.interval_text(entry.estimate["iqm"], entry.estimate["ci95"])
    worst = console.number(min(entry.estimate["per_seed"]))
    facts = {
        "agent": entry.agent,
        "env": entry.env,
        "seeds": f"{len(summary['seeds'])} ({console.ranges(summary['seeds'])})",
        "steps": f"{summary['steps']:,} per seed",
        "return": f"{interval}, the worst seed {worst}",
        "episodes": f"{entry.config()['final_episodes']} per seed",
        "command": f"`{line_of(entry)}`",
        "made by": f"rlx {meta['rlx']}, commit {meta['commit']}, torch {meta['packages']['torch']}",
        "on": f"{meta['started'][:10]}, {meta['cpu']}, in {summary['wall_s']:.0f} s",
    }
    rows = [f"| {name} | {text} |" for name, text in facts.items()]
    return "\n".join([f"# zoo:{entry.name}", "", "| | |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
