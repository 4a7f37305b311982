"""101 samples, each counted once: metrics and predictions do not depend on ranks or batch size."""

from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.evaluation import BaseMetric
from tests.ranks import Ranks

SAMPLES, CLASSES = 101, 7


def scored() -> TensorDataset:
    """Scores, classes, and the number of the sample."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(SAMPLES, CLASSES, generator=generator)
    targets = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    return TensorDataset(scores, targets, torch.arange(SAMPLES))


class Scores(nn.Module):
    """Returns the scores that the data hold, so that no rounding depends on the size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def val_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        scores, targets, number = batch
        scores = scores * self.one
        losses = nn.functional.cross_entropy(scores, targets, reduction="none")
        return {
            "preds": scores,
            "target": targets,
            "number": number,
            "loss": losses,
            "batch_loss": losses.mean(),
        }

    def predict_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        return {"number": batch[2], "best": (batch[0] * self.one).argmax(1)}


class InOrder(BaseMetric):
    """A number that changes when samples are left out, repeated or swapped, and how many there were."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_samples["number"].tolist()

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        chained = 0
        for number in results:
            chained = (chained * 31 + number + 1) % 1_000_003
        return {"chained": chained, "counted": len(results), "different": len(set(results))}


class ByBatch(BaseMetric):
    """One result for a batch, whatever its size."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append((len(data_samples["number"]), int(data_samples["number"].sum())))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        return {"size": sum(size for size, _ in results), "sum": sum(total for _, total in results)}


def metrics() -> list[Any]:
    accuracy: dict[str, Any] = {"task": "multiclass", "num_classes": CLASSES}
    return [
        {"type": "Accuracy", "topk": (1, 3)},
        {"type": "MeanMetric"},
        {"type": "MeanMetric", "key": "batch_loss"},
        InOrder(),
        ByBatch(),
        torchmetrics.Accuracy(**accuracy, average="macro"),
        torchmetrics.MetricCollection(
            {
                "auroc": torchmetrics.AUROC(**accuracy),  # keeps all scores
                "precision": torchmetrics.Precision(**accuracy, average="macro"),
                "recall": torchmetrics.Recall(**accuracy, average="macro"),  # shares the state of precision
            },
            prefix="collection/",
        ),
    ]


def truth() -> dict[str, float]:
    """The values over all samples at once, without anything of ours."""
    scores, targets, numbers = scored().tensors
    best = scores.topk(3, 1).indices
    losses = nn.functional.cross_entropy(scores, targets, reduction="none").double()
    chained = 0
    for number in numbers.tolist():
        chained = (chained * 31 + number + 1) % 1_000_003
    macro: dict[str, Any] = {"num_classes": CLASSES, "average": "macro"}
    functional = torchmetrics.functional.classification
    return {
        "accuracy": float((best[:, 0] == targets).double().mean()),
        "accuracy_top3": float((best == targets[:, None]).any(1).double().mean()),
        "loss": float(losses.mean()),
        "batch_loss": float(losses.mean()),
        "chained": chained,
        "counted": SAMPLES,
        "different": SAMPLES,
        "size": SAMPLES,
        "sum": SAMPLES * (SAMPLES - 1) // 2,
        "MulticlassAccuracy": float(functional.multiclass_accuracy(scores, targets, **macro)),
        "collection/auroc": float(functional.multiclass_auroc(scores, targets, CLASSES)),
        "collection/precision": float(functional.multiclass_precision(scores, targets, **macro)),
        "collection/recall": float(functional.multiclass_recall(scores, targets, **macro)),
    }


def evaluate(work_dir: str) -> list[dict[str, Any]]:
    """Metrics and predictions for batches of 1, 3 and 8; each evaluated twice by one runner."""
    torch.manual_seed(torch.initial_seed() + 1)  # what is drawn elsewhere must not matter
    found = []
    for size in (1, 3, 8):
        loader = {"dataset": scored(), "batch_size": size}
        runner = Runner(
            Scores(),
            val_dataloader=loader,
            val_evaluator=metrics(),
            test_dataloader=loader,
            test_evaluator=InOrder(),
            predict_dataloader=loader,
            loggers=(),
            work_dir=work_dir,
        )
        first, again = runner.val(), runner.val()
        found.append({"first": first, "again": again, "test": runner.test(), "predict": runner.predict()})
        runner.close()
    return found


def check(found: list[dict[str, Any]], sizes: tuple[int, ...] = (1, 3, 8)) -> None:
    expected, targets = truth(), scored().tensors[0].argmax(1)
    for size, results in zip(sizes, found, strict=True):
        for values in (results["first"], results["again"]):
            assert set(values) == set(expected)
            for name, value in expected.items():
                tolerance = 1e-6 if isinstance(value, float) else 0
                assert values[name] == pytest.approx(value, rel=tolerance, abs=0), (size, name)
        for name in ("chained", "counted", "different"):
            assert results["test"][name] == expected[name], size
        assert [int(row["number"]) for row in results["predict"]] == list(range(SAMPLES)), size
        assert [int(row["best"]) for row in results["predict"]] == targets.tolist(), size


def test_one_process_gives_the_values_over_all_samples(tmp_path: Any) -> None:
    check(evaluate(str(tmp_path)))


def test_two_ranks_give_the_values_over_all_samples(two_ranks: Ranks, tmp_path: Any) -> None:
    for found in two_ranks(evaluate, str(tmp_path)):
        check(found)


def test_four_ranks_give_the_values_over_all_samples(four_ranks: Ranks, tmp_path: Any) -> None:
    for found in four_ranks(evaluate, str(tmp_path)):
        check(found)


def test_a_rank_without_a_single_sample_takes_part_in_metrics_and_predictions(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    scores, targets, _ = scored().tensors
    right = float((scores[:2].argmax(1) == targets[:2]).double().mean())
    for results in four_ranks(lonely, str(tmp_path)):
        assert results["val"] == {"accuracy": right, "chained": 31 + 2, "counted": 2, "different": 2}
        assert [int(row["number"]) for row in results["predict"]] == [0, 1]


def lonely(work_dir: str) -> dict[str, Any]:
    """Two samples, so that two of four ranks get none."""
    loader = {"dataset": torch.utils.data.Subset(scored(), range(2)), "batch_size": 3}
    runner = Runner(
        Scores(),
        val_dataloader=loader,
        val_evaluator=[{"type": "Accuracy"}, InOrder()],
        predict_dataloader=loader,
        loggers=(),
        work_dir=work_dir,
    )
    return {"val": runner.val(), "predict": runner.predict()}
