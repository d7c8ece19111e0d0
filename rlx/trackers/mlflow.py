"""MLflow: a database beside the runs, or the server that MLFLOW_TRACKING_URI names."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.names import flatten_keys
from rlx.trackers.tracker import Tracked, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

BATCH = 100
"""Most parameters that MLflow takes at once; of metrics it takes ten times as many."""
LONGEST = 6000
"""Characters of a parameter that MLflow keeps."""
STATUS = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
"""The status of a run → MLflow's word for it."""


@dataclass
class MLflow(Tracker):
    """A run of MLflow, found again by its tag `rlx.run`."""

    experiment: str
    """The experiment of MLflow that the run belongs to."""
    uri: str | None
    """Server or database; null: what MLFLOW_TRACKING_URI says, or else a file in `outputs`."""

    package = "mlflow"

    def begin(self, run: Tracked) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        # A training does not wait minutes for a server that is away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if uri is None:
            uri = f"sqlite:///{run.outputs / 'mlflow.db'}"
            artifacts = (run.outputs / "mlartifacts").as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        self.last_steps: dict[str, int] = {}
        found = self._run(run, artifacts)
        self.id = found.info.run_id
        self.client.update_run(self.id, status="RUNNING")
        # A parameter cannot be changed: of a run that goes on, the file has what is so today.
        params = [
            Param(key, str(value)[:LONGEST])
            for key, value in flatten_keys(run.config).items()
            if key not in found.data.params
        ]
        for first in range(0, len(params), BATCH):
            self.client.log_batch(self.id, params=params[first : first + BATCH])
        self.client.log_artifact(self.id, str(run.path / "config.yaml"))
        return f"mlflow ui --backend-store-uri {uri}"

    def last_step(self, name: str) -> int:
        if name not in self.last_steps:
            history = self.client.get_metric_history(self.id, name)
            self.last_steps[name] = max((metric.step for metric in history), default=-1)
        return self.last_steps[name]

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in scalars.items()]
        for first in range(0, len(metrics), 10 * BATCH):
            self.client.log_batch(self.id, metrics=metrics[first : first + 10 * BATCH])
        self.last_steps |= dict.fromkeys(scalars, step)

    def figure(self, name: str, file: Path) -> None:
        self.client.log_artifact(self.id, str(file))

    def result(
        self, numbers: Mapping[str, float], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        lines = [",".join(line) + "\n" for line in [header, *rows]]
        self.client.log_text(self.id, "".join(lines), "result.csv")
        self.log(max(self.last_steps.values(), default=0), numbers)

    def end(self, status: str) -> None:
        self.client.set_terminated(self.id, STATUS.get(status, "FAILED"))

    def _run(self, run: Tracked, artifacts: str | None) -> "Run":
        """MLflow's run of `run`, found or made; `artifacts`: where its files go, if not there."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            id = self.client.create_experiment(self.experiment, artifact_location=artifacts)
        else:
            id = experiment.experiment_id
        found = self.client.search_runs([id], f"tags.`rlx.run` = '{run.name}'")
        if found:
            return found[0]
        tags = {"rlx.run": run.name, "rlx.command": run.command, "rlx.group": run.group}
        return self.client.create_run(id, tags=tags, run_name=run.name)
