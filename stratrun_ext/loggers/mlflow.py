"""Runs in MLflow, on a server or in a local database."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL.Image import Image

from stratrun.config.redaction import redacted
from stratrun.loggers.abilities import Outcome
from stratrun.loggers.names import safe_path
from stratrun.loggers.record import Record
from stratrun.loggers.tracking import TrackingLogger, config_values, flat

_RUN_ID = "stratrun.run_id"
# What MLflow's own stores take: characters of a name and of a value, and entries in one request.
_NAME, _VALUE, _BATCH = 250, 6000, 100


class MLflowLogger(TrackingLogger):
    """Logs to MLflow: metrics over training iterations, the config as params, images, texts and files.

    A run that is resumed goes on in the MLflow run that has its id as the tag ``stratrun.run_id``; of its
    params those that are there already stay as they are. Names of metrics are ``<kind>/<name>``, with ``_``
    for what is no ASCII letter or digit, nor one of ``_ . - /`` or a space.

    Args:
        tracking_uri: Of a server, or ``sqlite:///`` and a path; else as MLflow has it, in the variable
            ``MLFLOW_TRACKING_URI``, or by default a database in the current folder.
        experiment: Made if there is none of that name; ``MLFLOW_EXPERIMENT_NAME`` by default, or ``Default``.
        name: Of the run; MLflow makes one up by default.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        name: str | None = None,
        tracking_uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        queue: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(params, queue)
        self.experiment = experiment
        self.name = name
        self.tracking_uri = tracking_uri
        self.tags: dict[str, str] = dict(redacted(dict(tags or {})))
        self._client: MlflowClient
        self._id: str | None = None
        """Of MLflow's run."""

    def begin(self, run_id: str | None) -> None:
        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        if self._id is None:
            self._id = self._found(run_id)
        self._client.update_run(self._id, status="RUNNING")
        known = self._client.get_run(self._id).data.params
        values = {**flat(config_values(self.config)), **flat(self.params)}
        params = {safe_path(name)[:_NAME]: str(value)[:_VALUE] for name, value in values.items()}
        new = [Param(name, value) for name, value in params.items() if name not in known]
        for start in range(0, len(new), _BATCH):
            self._client.log_batch(self._id, params=new[start : start + _BATCH])
        if self.tags:
            self._client.log_batch(self._id, tags=[RunTag(name, str(tag)) for name, tag in self.tags.items()])
        if self.config:
            self._client.log_text(self._id, self.config, "config.yaml")

    def finish(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._id, outcome.upper())

    def send_values(self, record: Record) -> None:
        values = {"epoch": record.epoch, **{f"{record.kind}/{name}": v for name, v in record.values.items()}}
        stamp = round(record.time * 1000)
        metrics = [Metric(safe_path(name)[:_NAME], v, stamp, record.iter) for name, v in values.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _BATCH])

    def send_image(self, name: str, image: Image, step: int) -> None:
        self._client.log_image(self._id, image, key=safe_path(name), step=step, synchronous=True)

    def send_text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self._id, text, f"text/{safe_path(name)}/{step:08d}.txt")

    def send_file(self, name: str, path: Path) -> None:
        folder, _, last = f"files/{safe_path(name)}".rpartition("/")
        if last == path.name:
            self._client.log_artifact(self._id, str(path), folder)
            return
        with tempfile.TemporaryDirectory(prefix="stratrun-") as place:
            copy = shutil.copy(path, Path(place, last))
            self._client.log_artifact(self._id, str(copy), folder)

    def _found(self, run_id: str | None) -> str:
        """The run that has our id, or a new one."""
        experiment = self._experiment()
        if run_id is not None:
            ours = f"tags.`{_RUN_ID}` = '{run_id}'"
            for run in self._client.search_runs([experiment], ours, max_results=1):
                return str(run.info.run_id)
        tags = {} if run_id is None else {_RUN_ID: run_id}
        return str(self._client.create_run(experiment, tags=tags, run_name=self.name).info.run_id)

    def _experiment(self) -> str:
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # somebody else was quicker, or it is told in what follows
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)
