"""Event files of TensorBoard, in the run's directory; torch writes them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlx.trackers.tracker import Tracked, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class TensorBoard(Tracker):
    """Event files for each seed, and for the interquartile mean: many lines in one chart."""

    package = "tensorboard"

    def begin(self, run: Tracked) -> str:
        self.folder = run.path / "tensorboard"
        # A file that a killed process left may end anywhere: all of a run is written anew.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writers: dict[str, SummaryWriter] = {}
        self.step = 0
        text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
        self._writer("iqm").add_text("config", _verbatim(text))
        return f"tensorboard --logdir {run.outputs}"

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.step = step
        for name, value in scalars.items():
            folder, _, tag = name.partition("/")
            self._writer(folder).add_scalar(tag, value, step)
        self._flush()

    def figure(self, name: str, file: Path) -> None:
        from matplotlib.image import imread

        image: Any = imread(file)[..., :3]
        self._writer("iqm").add_image(name, image, self.step, dataformats="HWC")

    def result(
        self, numbers: Mapping[str, float], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        lines = [header, ["---"] * len(header), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._writer("iqm").add_text("result", table, self.step)
        for name, value in numbers.items():
            self._writer("iqm").add_scalar(name, value, self.step)

    def end(self, status: str) -> None:
        self._flush()
        for writer in self.writers.values():
            writer.close()

    def _writer(self, folder: str) -> "SummaryWriter":
        """The writer of the files in `folder`, which is "iqm" or that of a seed."""
        from torch.utils.tensorboard import SummaryWriter

        if folder not in self.writers:
            self.writers[folder] = SummaryWriter(str(self.folder / folder))
        return self.writers[folder]

    def _flush(self) -> None:
        """Write what waits in memory, so that it can be looked at."""
        for writer in self.writers.values():
            writer.flush()


def _verbatim(text: str) -> str:
    """`text` in Markdown, as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
