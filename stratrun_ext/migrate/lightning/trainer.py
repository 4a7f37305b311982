"""Lightning's Trainer as a form of ours: its words, and what stands for those that are not taken over."""

from __future__ import annotations

import os
from typing import Any

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun_ext.migrate.lightning.runner import runner_for
from stratrun_ext.migrate.lightning.settings import settings_of


class Trainer:
    """Trains, validates, tests and predicts with the words of Lightning's Trainer.

    Each job is that of a `stratrun.Runner`, which `runner` is afterwards. An argument that is not
    taken over is refused, and the message says what to write.

    Args:
        arguments: Those of Lightning's Trainer that have a meaning here (docs/migrate_lightning.md), and
            any of `stratrun.Runner`.
    """

    def __init__(self, **arguments: Any) -> None:
        self._max_epochs, self._options = settings_of(arguments)
        self.runner: Runner | None = None
        self.callback_metrics: dict[str, float] = {}

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train.

        Args:
            ckpt_path: What to go on from: a checkpoint of ours, ``"last"`` for the newest, or a ``.ckpt``.
        """
        if _is_data_module(train_dataloaders):
            train_dataloaders, datamodule = None, train_dataloaders
        options = dict(self._options)
        if ckpt_path is not None:
            if os.fspath(ckpt_path).endswith(".ckpt"):
                options["start_from"] = ckpt_path
            else:
                options["resume"] = True if ckpt_path == "last" else ckpt_path
        self.runner = runner_for(
            model,
            train_dataloaders,
            val_dataloaders,
            datamodule=datamodule,
            max_epochs=self._max_epochs,
            **options,
        )
        self._do("train")

    def validate(
        self, model: Any = None, dataloaders: Any = None, ckpt_path: Any = None, datamodule: Any = None
    ) -> list[dict[str, float]]:
        return self._evaluate("val", model, _loader("val", dataloaders, datamodule), ckpt_path)

    def test(
        self, model: Any = None, dataloaders: Any = None, ckpt_path: Any = None, datamodule: Any = None
    ) -> list[dict[str, float]]:
        return self._evaluate("test", model, _loader("test", dataloaders, datamodule), ckpt_path)

    def predict(
        self, model: Any = None, dataloaders: Any = None, ckpt_path: Any = None, datamodule: Any = None
    ) -> list[Any]:
        """What the model predicts for each sample, in order; Lightning gives it batch by batch."""
        dataloaders = _loader("predict", dataloaders, datamodule)
        self._make("predict", model, dataloaders, ckpt_path)
        assert self.runner is not None
        predictions = self.runner.predict()
        self.runner.close()
        return predictions

    def _evaluate(self, job: str, model: Any, dataloaders: Any, ckpt_path: Any) -> list[dict[str, float]]:
        self._make(job, model, dataloaders, ckpt_path)
        return [self._do(job)]

    def _make(self, job: str, model: Any, dataloaders: Any, ckpt_path: Any) -> None:
        if model is None:
            if self.runner is None:
                raise ConfigError(f"{job}() needs a model: give model=, or call fit(model, ...) before")
            model = self.runner.model
        options = dict(self._options)
        if ckpt_path is not None:
            options["start_from" if os.fspath(ckpt_path).endswith(".ckpt") else "load_from"] = ckpt_path
        self.runner = runner_for(model, **{f"{job}_dataloaders": dataloaders}, **options)

    def _do(self, job: str) -> dict[str, float]:
        assert self.runner is not None
        try:
            metrics: dict[str, float] = getattr(self.runner, job)()
        finally:
            self.runner.close()
        # With what training logged, which is no result of the job.
        logged = getattr(getattr(self.runner.model, "_link", None), "metrics", {})
        self.callback_metrics = {**logged, **metrics}
        return dict(metrics)


def _loader(job: str, dataloaders: Any, datamodule: Any) -> Any:
    """The data of an evaluation, from a data module if it is in one."""
    method = f"{job}_dataloader"
    if callable(getattr(dataloaders, method, None)):
        dataloaders, datamodule = None, dataloaders
    if datamodule is None or dataloaders is not None:
        return dataloaders
    datamodule.setup("validate" if job == "val" else job)
    return getattr(datamodule, method)()


def _is_data_module(given: Any) -> bool:
    return callable(getattr(given, "train_dataloader", None))
