"""Write one seed's greedy policy as an ONNX file, which runs without rlx."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlx.command import RunConfig, command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import find
from rlx.runs.run import Run
from rlx.show import console

if TYPE_CHECKING:
    from rlx.policies import Opened

NUM_ENVS = 4
"""Env copies in which the file is compared with the policy."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The keys of export.yaml."""

    run: Any
    """A run directory, or a folder with runs, and the file: rlx export RUN policy.onnx."""
    checkpoint: str
    """`best`, or the step of a checkpoint."""
    seed: int | None
    """Which of the run's seeds; null: its first."""


def check(composed: DictConfig) -> None:
    """Raise what is wrong with the config."""
    _load(build(Config, composed, ""))


def _load(config: Config) -> "tuple[Run, Opened, int, Path]":
    """The run, its policies, the seed whose policy is exported, and the file."""
    paths = [str(path) for path in config.run] if isinstance(config.run, list) else []
    if not paths or not paths[-1].endswith(".onnx") or len(paths) > 2:
        raise ConfigError(
            "export: name the file last, as in: rlx export outputs/train/bcq-cartpole policy.onnx"
        )
    run = find(paths[0] if len(paths) > 1 else None, config.outputs, trusted=config.trust)
    out = Path(paths[-1])

    from rlx import experiment
    from rlx.policies import open_runs

    device = experiment.setup_device({"name": "cpu", "threads": 1})
    opened = open_runs([run], config.checkpoint, device)
    seeds = opened.seeds
    seed = seeds[0] if config.seed is None else config.seed
    if seed not in seeds:
        raise ConfigError(f"seed={seed}: {run.path} has seeds {console.ranges(seeds)}.")
    return run, opened, seed, out


@command("export", check=check, writes=lambda composed: composed.run[-1])
def main(composed: DictConfig) -> None:
    """Writes the file, and compares it with the policy on observations of a real episode."""
    config = build(Config, composed, "")
    run, opened, seed, out = _load(config)

    from rlx.onnx import OPSET, Exported, compare

    exported = Exported(opened.policy, opened.spec, opened.seeds.index(seed))
    facts = {"run": str(run.path), "seed": str(seed), "checkpoint": config.checkpoint}
    exported.write(out, facts)
    result = compare(exported, out, opened.make_env(NUM_ENVS))
    console.facts(
        run=run.path,
        seed=seed,
        opset=OPSET,
        size=f"{out.stat().st_size / 1e3:,.0f} kB",
        inputs=", ".join(exported.inputs),
        outputs=", ".join(exported.outputs),
        check=f"{result.steps} steps of {NUM_ENVS} copies in onnxruntime: "
        f"{result.equal:.2%} of the actions equal, "
        f"scores differ by at most {result.difference:.1e}",
    )
    console.result(out)
