"""Write one seed's greedy policy as an ONNX file, which runs without rlx."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlx.command import command
from rlx.config import build
from rlx.errors import ConfigError
from rlx.runs.finding import find
from rlx.show import report


@dataclass(frozen=True)
class Config:
    """The keys of export.yaml."""

    run: Any
    checkpoint: str
    seed: int | None
    outputs: str
    trust: bool


@command("export")
def main(composed: DictConfig) -> None:
    """Writes the file, and compares it with the policy on observations of a real episode."""
    config = build(Config, composed, "")
    paths = [str(path) for path in config.run] if isinstance(config.run, list) else []
    if not paths or not paths[-1].endswith(".onnx") or len(paths) > 2:
        raise ConfigError(
            "export: name the file last, as in: rlx export outputs/train/bcq-cartpole policy.onnx"
        )
    run = find(paths[0] if len(paths) > 1 else None, config.outputs, trusted=config.trust)
    out = Path(paths[-1])

    from rlx import experiment
    from rlx.onnx import OPSET, Exported, compare
    from rlx.policies import env_age, load_policies

    device = experiment.setup_device({"name": "cpu", "threads": 1})
    policy, spec, own = load_policies([run], config.checkpoint, device)
    if config.seed is not None and config.seed not in own:
        raise ConfigError(f"seed={config.seed}: {run.path} has seeds {report.ranges(own)}.")
    exported = Exported(policy, spec, row := 0 if config.seed is None else own.index(config.seed))
    exported.write(
        out, {"run": str(run.path), "seed": str(own[row]), "checkpoint": config.checkpoint}
    )
    clock = env_age([run], config.checkpoint)
    env = experiment.make_env(experiment.evaluated_env(run.config), 4, device, clock)
    worst, same, steps = compare(exported, out, env)
    report.start(
        run=run.path, seed=own[row], opset=OPSET, size=f"{out.stat().st_size / 1e3:,.0f} kB",
        inputs=", ".join(exported.inputs), outputs=", ".join(exported.outputs),
        check=f"{steps} steps of 4 copies in onnxruntime: {same:.2%} of the actions equal, scores differ by at most {worst:.1e}",
    )  # fmt: skip
    report.end(out)
