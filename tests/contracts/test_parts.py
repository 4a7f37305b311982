"""Every precision, loop, hook, logger and metric that there is passes the checks of its kind."""

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

pytestmark = [pytest.mark.usefixtures("ready_ranks"), pytest.mark.timeout(240)]

LOOP_SETTINGS: dict[str, dict[str, Any]] = {
    "EpochBasedTrainLoop": {"max_epochs": 2, "accumulate": 2},
    "IterBasedTrainLoop": {"max_iters": 7, "accumulate": 3, "val_interval": 3},
}
HOOK_SETTINGS: dict[str, dict[str, Any]] = {"CheckpointHook": {"interval": 1}}


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
    assert unchecked(check_hook({"type": name, **HOOK_SETTINGS.get(name, {})})) == set()


@pytest.mark.parametrize("name", sorted(LOGGERS.entries()))
def test_each_logger_passes(name: str) -> None:
    assert unchecked(check_logger(name)) == ({"flushing"} if name == "console" else set())


def loss_of(preds: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"loss": cross_entropy(preds, target)}


METRIC_SETTINGS: dict[str, dict[str, Any]] = {
    "Accuracy": {"expected": 0.5, "preds": torch.eye(3)[[0, 1, 2, 0]], "target": torch.tensor([0, 1, 0, 1])},
    "MeanMetric": {"outputs": loss_of},
}


@pytest.mark.parametrize("name", sorted(METRICS.entries()))
def test_each_metric_passes(name: str) -> None:
    spec = {"type": "MeanMetric", "key": "loss"} if name == "MeanMetric" else name
    assert unchecked(check_metric(spec, **METRIC_SETTINGS[name])) == set()


def test_a_metric_of_torchmetrics_passes() -> None:
    report = check_metric({"type": "MulticlassF1Score", "num_classes": 3})
    assert unchecked(report) == {"waiting"}
