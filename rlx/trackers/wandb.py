"""Weights & Biases, offline unless the user asks for more: then nothing leaves the machine."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlx.config import choice
from rlx.trackers.tracker import Tracked, Tracker

MODES = ("offline", "online", "shared", "disabled")


@dataclass
class WandB(Tracker):
    """A run of W&B in the folder of all runs, which `wandb sync` uploads."""

    project: str
    """The project of W&B that the run belongs to."""
    mode: str | None
    """`offline`, `online`, `shared` or `disabled`; null: what WANDB_MODE says, or else offline."""

    package = "wandb"

    def __post_init__(self) -> None:
        if self.mode is not None:
            choice(self.mode, MODES, "tracker.wandb.mode")

    def begin(self, run: Tracked) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            # Two offline parts of one run would be uploaded one over the other: it is written anew.
            for former in (run.outputs / "wandb").glob(f"offline-run-*-{run.name}"):
                shutil.rmtree(former)
        self.run = wandb.init(
            project=self.project,
            id=run.name,
            name=run.name,
            group=run.group,
            job_type=run.command,
            dir=run.outputs,  # not the run, from which W&B would make links to elsewhere
            config=dict(run.config),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        if mode == "offline":
            return f"wandb sync {self.run.dir.removesuffix('/files')}"
        return str(self.run.url)

    def last_step(self, name: str) -> int:
        return self.run.step - 1

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def figure(self, name: str, file: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(file))})

    def result(
        self, numbers: Mapping[str, float], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        import wandb

        table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
        self.run.log({"result": table})
        self.run.summary.update(dict(numbers))

    def end(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "completed" else 1)
