"""Metrics of classes, of language models and of regressions, against scikit-learn and plain formulas."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_fscore_support,
    r2_score,
    recall_score,
    roc_auc_score,
)

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation import F1, ConfusionMatrix, Evaluator, Perplexity, RegressionErrors
from stratrun.evaluation.evaluator import build_evaluator
from stratrun.testing import check_metric

_GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(60, 5, generator=_GENERATOR)
# Class 3 is never right, class 4 never predicted.
SCORES[:, 4] -= 100
TARGETS = torch.randint(0, 5, (60,), generator=_GENERATOR)
TARGETS[TARGETS == 3] = 2


def f1(preds: torch.Tensor, target: torch.Tensor, **options: Any) -> dict[str, float]:
    metric = F1(**options)
    for part in (slice(0, 7), slice(7, None)):
        metric.update(preds[part], target[part])
    return metric.compute()


def expected(average: str | None, preds: Any, target: Any, **options: Any) -> dict[str, Any]:
    values = precision_recall_fscore_support(target, preds, average=average, zero_division=0, **options)
    return dict(zip(("precision", "recall", "f1"), values[:3], strict=True))


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_of_classes_is_that_of_scikit_learn(average: Any) -> None:
    truth = expected(average, SCORES.argmax(1), TARGETS)
    assert f1(SCORES, TARGETS, average=average) == pytest.approx(truth)
    assert f1(SCORES.argmax(1), TARGETS, average=average, num_classes=5) == pytest.approx(truth)


def test_f1_without_an_average_is_one_for_each_class() -> None:
    truth = expected(None, SCORES.argmax(1), TARGETS, labels=range(5))
    each = f1(SCORES, TARGETS, average="none")
    assert [each[f"f1/{i}"] for i in range(5)] == pytest.approx(truth["f1"])
    assert [each[f"recall/{i}"] for i in range(5)] == pytest.approx(truth["recall"])


def test_a_class_that_appears_nowhere_takes_no_part_in_the_mean() -> None:
    wide = torch.cat([SCORES, torch.full((60, 2), -1e9)], 1)
    assert f1(wide, TARGETS) == pytest.approx(f1(SCORES, TARGETS))


def test_f1_of_two_classes_is_that_of_the_positive_one() -> None:
    scores, target = SCORES[:, 0].sigmoid(), (TARGETS > 1).long()
    truth = expected("binary", scores > 0.4, target)
    assert f1(scores, target, threshold=0.4) == pytest.approx(truth)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_of_labels_that_go_together_is_that_of_scikit_learn(average: Any) -> None:
    target = (torch.randn(60, 5, generator=_GENERATOR) > 0.3).long()
    truth = expected(average, SCORES > 0, target)
    assert f1(SCORES, target, average=average, threshold=0.0) == pytest.approx(truth)


def test_padding_counts_for_no_class() -> None:
    padded = torch.where(torch.arange(60) % 3 == 0, -100, TARGETS)
    kept = padded != -100
    assert f1(SCORES, padded, ignore_index=-100) == pytest.approx(f1(SCORES[kept], TARGETS[kept]))


@pytest.mark.parametrize("metric", [F1(), ConfusionMatrix(plot=False)])
def test_targets_beyond_the_classes_are_told(metric: Any) -> None:
    metric.update(SCORES, torch.where(TARGETS == 1, 7, TARGETS))
    count = int((TARGETS == 1).sum())
    with pytest.raises(MetricError, match=f"{count} targets or predictions are not from 0"):
        metric.compute()


def test_classes_as_predictions_need_their_number() -> None:
    with pytest.raises(MetricError, match="give num_classes="):
        F1().update(SCORES.argmax(1), TARGETS)
    with pytest.raises(MetricError, match="num_classes=9, but predictions have 5"):
        F1(num_classes=9).update(SCORES, TARGETS)


def test_an_unknown_average_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'macro'"):
        F1(average="makro")  # type: ignore[arg-type]


def test_confusion_matrix_is_written_as_a_table_and_a_figure(tmp_path: Path) -> None:
    evaluator = Evaluator(ConfusionMatrix(names=["a", "b", "c", "d", "e"], prefix="clean"))
    evaluator.process((None, TARGETS[:13]), SCORES[:13])
    evaluator.process((None, TARGETS[13:]), SCORES[13:])
    values = evaluator.evaluate(folder=tmp_path / "val")
    truth = recall_score(TARGETS, SCORES.argmax(1), labels=[0, 1, 2, 4], average="macro", zero_division=0)
    assert values == {"clean/balanced_accuracy": pytest.approx(truth)}
    with (tmp_path / "val" / "clean-confusion_matrix.csv").open() as file:
        head, *rows = list(csv.reader(file))
    assert head[1:] == [row[0] for row in rows] == ["a", "b", "c", "d", "e"]
    counts = confusion_matrix(TARGETS, SCORES.argmax(1), labels=range(5)).tolist()
    assert [[int(cell) for cell in row[1:]] for row in rows] == counts
    assert (tmp_path / "val" / "clean-confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluator = Evaluator(ConfusionMatrix())
    evaluator.process((None, TARGETS), SCORES)
    evaluator.evaluate()
    assert list(tmp_path.iterdir()) == []


def test_a_curve_of_torchmetrics_is_a_figure_and_no_number(tmp_path: Path) -> None:
    curve = dict(type="BinaryROC", plot=True)
    evaluator = build_evaluator([curve, dict(type="BinaryAUROC", plot=False)])
    target = (TARGETS > 1).long()
    evaluator.process((None, target), SCORES[:, 0].sigmoid())
    values = evaluator.evaluate(folder=tmp_path)
    assert values == {"BinaryAUROC": pytest.approx(roc_auc_score(target, SCORES[:, 0].sigmoid()))}
    falsely, rightly, _ = json.loads((tmp_path / "binary_roc.json").read_text())
    assert (falsely[0], rightly[0], falsely[-1], rightly[-1]) == (0, 0, 1, 1)
    assert (tmp_path / "binary_roc.png").read_bytes().startswith(b"\x89PNG")


def test_perplexity_weighs_tokens_alike_and_leaves_padding_out() -> None:
    logits = torch.randn(6, 9, 11, generator=_GENERATOR)
    target = torch.randint(0, 11, (6, 9), generator=_GENERATOR)
    for row, length in enumerate((9, 1, 4, 2, 9, 7)):
        target[row, length:] = -100
    kept = target != -100
    likelihood = logits.double().log_softmax(-1)[kept].gather(1, target[kept][:, None])
    metric = Perplexity()
    metric.update(logits[:1], target[:1])
    metric.update(logits[1:], target[1:])
    assert metric.compute()["perplexity"] == pytest.approx(float((-likelihood.mean()).exp()), rel=1e-6)
    with pytest.raises(MetricError, match="counted no token"):
        Perplexity().compute()


def test_regression_errors_are_those_of_the_formulas() -> None:
    preds, target = torch.randn(2, 50, 3, generator=_GENERATOR)
    metric = RegressionErrors(("mae", "mse", "rmse", "r2", "max_error"))
    for part in (slice(0, 3), slice(3, 6), slice(6, 50)):
        metric.update(preds[part], target[part])
    apart = (preds - target).double()
    assert metric.compute() == pytest.approx(
        {
            "mae": float(apart.abs().mean()),
            "mse": float(apart.square().mean()),
            "rmse": float(apart.square().mean().sqrt()),
            "r2": r2_score(target.flatten(), preds.flatten()),
            "max_error": float(apart.abs().max()),
        }
    )


def test_r2_stays_exact_for_targets_far_from_zero() -> None:
    target = torch.randn(200, generator=_GENERATOR, dtype=torch.float64)
    preds = target + 0.1 * torch.randn(200, generator=_GENERATOR, dtype=torch.float64)
    metric = RegressionErrors("r2")
    for start in range(0, 200, 20):
        metric.update(preds[start : start + 20] + 1e9, target[start : start + 20] + 1e9)
    assert metric.compute()["r2"] == pytest.approx(r2_score(target + 1e9, preds + 1e9), abs=1e-9)


def test_numbers_of_other_shapes_are_not_compared_each_with_each() -> None:
    with pytest.raises(MetricError, match="squeeze"):
        RegressionErrors().update(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "spec",
    [
        dict(type="F1"),
        dict(type="F1", average="none", ignore_index=1),
        dict(type="ConfusionMatrix", plot=False),
        dict(type="Perplexity", class_dim=1),
    ],
    ids=lambda spec: spec["type"],
)
def test_metrics_of_classes_have_one_value_on_any_ranks(spec: dict[str, Any]) -> None:
    check_metric(spec)


@pytest.mark.timeout(120)
def test_regression_errors_have_one_value_on_any_ranks() -> None:
    preds, target = torch.randn(2, 29, generator=_GENERATOR)
    check_metric(dict(type="RegressionErrors"), preds=preds, target=target)
