"""Precision, recall and their harmonic mean."""

from typing import Literal

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError, nearest
from stratrun.evaluation.classes import ClassMetric, shape_of, tally
from stratrun.registry import METRICS

Average = Literal["macro", "micro", "weighted", "none"]
_AVERAGES = ("macro", "micro", "weighted", "none")


@METRICS.register_module()
class F1(ClassMetric):
    """``f1``, ``precision`` and ``recall``, as scikit-learn's `precision_recall_fscore_support` has them.

    With true positives tp, false positives fp and false negatives fn of a class: precision is
    ``tp / (tp + fp)``, recall ``tp / (tp + fn)``, F1 ``2 tp / (2 tp + fp + fn)``, each 0 where nothing is
    divided. Classes that are neither predicted nor right anywhere do not take part in an average.

    Args:
        average: ``"macro"`` means over classes, ``"weighted"`` by their number of targets, ``"micro"``
            counts all classes together, ``"none"`` gives each class its own ``f1/3``.
        threshold: For two classes with one score, or for labels that do not exclude each other (the last
            dimension, targets 0 or 1): scores above it say yes. Not for logits, unless it is one.
        num_classes: See `ClassMetric`, as for `class_dim` and `ignore_index`.
    """

    tp: Tensor
    predicted: Tensor
    right: Tensor

    def __init__(
        self,
        average: Average = "macro",
        *,
        threshold: float | None = None,
        num_classes: int | None = None,
        class_dim: int = 1,
        ignore_index: int | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(num_classes, class_dim=class_dim, ignore_index=ignore_index, prefix=prefix)
        if average not in _AVERAGES:
            raise ConfigError(f"F1: average={average!r}; {nearest(str(average), _AVERAGES)}")
        self.average = average
        self.threshold = threshold
        for name in ("tp", "predicted", "right"):
            self.add_state(name, torch.zeros((), dtype=torch.int64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        tp, predicted, right = (
            self._of_classes(preds, target)
            if self.threshold is None
            else self._of_labels(preds, target, self.threshold)
        )
        self.tp = self.tp + tp
        self.predicted = self.predicted + predicted
        self.right = self.right + right

    def compute(self) -> dict[str, float]:
        tp, predicted, right = self.tp.double(), self.predicted.double(), self.right.double()
        # A run without any positive has an F1 of 0, and one whose targets are all ignored has none.
        self._check_counted(torch.ones(()) if self.threshold is not None else self.right.sum())
        if self.average == "micro":
            tp, predicted, right = tp.sum(), predicted.sum(), right.sum()
        scores = {
            "f1": _share(2 * tp, predicted + right),
            "precision": _share(tp, predicted),
            "recall": _share(tp, right),
        }
        if self.average == "none":
            return {
                f"{name}/{i}": value
                for name, each in scores.items()
                for i, value in enumerate(each.reshape(-1).tolist())
            }
        weights = right if self.average == "weighted" else ((predicted + right) > 0).double()
        return {name: float(_share((each * weights).sum(), weights.sum())) for name, each in scores.items()}

    def _of_classes(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        preds, target, counted, classes = self._flat(preds, target)
        met = counted & (preds == target)
        return tally(target, met, classes), tally(preds, counted, classes), tally(target, counted, classes)

    def _of_labels(self, preds: Tensor, target: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        if preds.shape != target.shape:
            raise MetricError(
                f"F1 cannot compare predictions {shape_of(preds)} with targets {shape_of(target)}: with "
                "threshold= there is one score for each target; leave it out for classes that exclude each "
                "other"
            )
        counted = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = target != self.ignore_index
        known = (target == 0) | (target == 1)
        self.foreign: Tensor = self.foreign + (counted & ~known).sum()
        yes, true = (preds > threshold) & counted, (target == 1) & counted
        # One label for each place of the last dimension; a lone dimension is that of the samples.
        over = tuple(range(target.dim() - 1)) if target.dim() > 1 else (0,)
        return (yes & true).sum(over), yes.sum(over), true.sum(over)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.zeros_like(whole))
