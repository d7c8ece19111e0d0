"""Trackio: its local database, or the Space that TRACKIO_SPACE_ID names."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rlx.trackers.tracker import Tracked, Tracker


@dataclass
class Trackio(Tracker):
    """A run of Trackio, found again by its name."""

    project: str
    """The project of Trackio that the run belongs to."""

    package = "trackio"

    def begin(self, run: Tracked) -> str:
        import trackio

        with redirect_stdout(StringIO()):
            self.run = trackio.init(
                project=self.project,
                name=run.name,
                group=run.group,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        return f"trackio show --project {self.project}"

    def last_step(self, name: str) -> int:
        return self.run._next_step - 1

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def figure(self, name: str, file: Path) -> None:
        import trackio

        self._log_last({name: trackio.Image(str(file))})

    def result(
        self, numbers: Mapping[str, float], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        import trackio

        table = trackio.Table(columns=list(header), data=[list(row) for row in rows])
        self._log_last({"result": table, **numbers})

    def end(self, status: str) -> None:
        import trackio

        with redirect_stdout(StringIO()):
            trackio.finish()

    def _log_last(self, values: Mapping[str, Any]) -> None:
        """Log what belongs to the last step that was logged."""
        self.run.log(dict(values), step=max(self.last_step(""), 0))
