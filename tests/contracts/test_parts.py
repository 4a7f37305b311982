"""Every precision, loop, hook, logger and metric that there is passes the checks of its kind."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stratrun.registry import HOOKS, LOGGERS, LOOPS, METRICS, PRECISIONS
from stratrun.testing import (
    Report,
    check_hook,
    check_logger,
    check_loop,
    check_metric,
    check_precision,
)
from stratrun.testing.hook import CLAIMS

pytestmark = [pytest.mark.usefixtures("ready_ranks"), pytest.mark.timeout(240)]


def inputs_of(batch: Any, outputs: Any) -> Tensor:
    """A batch of the checks as a picture."""
    inputs: Tensor = batch[0]
    return inputs.sigmoid()


def done(batch_idx: int) -> None:
    """For a hook of functions; by name, so that ranks find it."""


def as_it_is(batch: Any) -> Any:
    return batch


LOOP_SETTINGS: dict[str, dict[str, Any]] = {
    "EpochBasedTrainLoop": {"max_epochs": 2, "accumulate": 2},
    "IterBasedTrainLoop": {"max_iters": 7, "accumulate": 3, "val_interval": 3},
    **{f"TTA{job}Loop": {"transforms": [as_it_is]} for job in ("Val", "Test", "Predict")},
}
HOOK_SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointHook": {"interval": 1},
    "EarlyStoppingHook": {"monitor": "accuracy", "patience": 9},
    "FreezeHook": {"params": "head", "until": 1},
    "LambdaHook": {"after_train_iter": done},
    # Ranks agree in the steps that they try out.
    "MicroBatchHook": {"trials": 0},
    "SampleHook": {"draw": inputs_of, "every_iters": 3},
    "SWAHook": {"begin": 1},
}
LOGGER_SETTINGS: dict[str, dict[str, Any]] = {"background": {"logger": "jsonl"}}
LOGGER_UNCHECKED: dict[str, set[str]] = {
    "console": {"flushing", "abilities"},
    "csv": {"abilities"},
    "jsonl": {"abilities"},
    "background": {"abilities"},
    "files": {"flushing"},
}


def unchecked(report: Report) -> set[str]:
    return {finding.name for finding in report.findings if finding.outcome == "skipped"}


def classes(entries: dict[str, Any]) -> dict[str, str]:
    """One name for each class, of those that it is registered by."""
    return {entry.__name__: name for name, entry in reversed(entries.items())}


@pytest.mark.parametrize("name", sorted(classes(PRECISIONS.entries()).values()))
def test_each_precision_passes(name: str) -> None:
    assert unchecked(check_precision(name)) <= ({"overflow"} if name != "16-mixed" else set())


@pytest.mark.parametrize("name", sorted(LOOPS.entries()))
def test_each_loop_passes(name: str) -> None:
    report = check_loop({"type": name, **LOOP_SETTINGS.get(name, {})})
    assert unchecked(report) == (set() if "Train" in name else {"counters", "stopping", "resuming"})


@pytest.mark.parametrize("name", sorted(HOOKS.entries()))
def test_each_hook_passes(name: str) -> None:
    # What is given as functions is called at their points, and none of the methods of the class.
    # Losses of each process are other ones than those of a lone process, and so are their deviations.
    left_out = {"LambdaHook": {"points"}, "SpikeHook": {"ranks"}}.get(name)
    only = CLAIMS.keys() - left_out if left_out else None
    spec = {"type": name, **HOOK_SETTINGS.get(name, {})}
    # Its points are of prediction alone.
    elsewhere = {"points"} if name == "PredictionWriterHook" else set()
    assert unchecked(check_hook(spec, only=only, changes_training=name == "FreezeHook")) == elsewhere


@pytest.mark.parametrize("name", sorted(LOGGERS.entries()))
def test_each_logger_passes(name: str) -> None:
    spec = {"type": name, **LOGGER_SETTINGS.get(name, {})}
    assert unchecked(check_logger(spec)) == LOGGER_UNCHECKED.get(name, set())


def loss_of(preds: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"loss": cross_entropy(preds, target)}


CLASSIFIED: dict[str, Any] = {"preds": torch.eye(3)[[0, 1, 2, 0]], "target": torch.tensor([0, 1, 0, 1])}
NUMBERS: dict[str, Any] = {
    "preds": torch.tensor([1.0, 2.0, 3.0, 5.0]),
    "target": torch.tensor([1.0, 2.0, 3.0, 3.0]),
}
METRIC_SETTINGS: dict[str, dict[str, Any]] = {
    "Accuracy": {"expected": 0.5, **CLASSIFIED},
    "ConfusionMatrix": {"expected": 0.5, **CLASSIFIED},
    "DumpResults": {"expected": {}, **CLASSIFIED},
    "F1": {"expected": {"f1": 7 / 18, "precision": 1 / 2, "recall": 1 / 3}, **CLASSIFIED},
    "MeanMetric": {"outputs": loss_of},
    "Perplexity": {"expected": (math.e + 2) / math.sqrt(math.e), **CLASSIFIED},
    "RegressionErrors": {"expected": {"mae": 0.5, "rmse": 1.0, "r2": 1 - 4 / 2.75}, **NUMBERS},
}


@pytest.mark.parametrize("name", sorted(METRICS.entries()))
def test_each_metric_passes(name: str) -> None:
    spec = {"type": "MeanMetric", "key": "loss"} if name == "MeanMetric" else name
    # What collects whole results reads them.
    elsewhere = {"waiting"} if name == "DumpResults" else set()
    assert unchecked(check_metric(spec, **METRIC_SETTINGS[name])) == elsewhere


def test_a_metric_of_torchmetrics_passes() -> None:
    report = check_metric({"type": "MulticlassF1Score", "num_classes": 3})
    assert unchecked(report) == {"waiting"}
