"""Share of right answers."""

from typing import Any

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation.classes import check_shapes
from stratrun.evaluation.metric import Metric
from stratrun.registry import METRICS


@METRICS.register_module()
class Accuracy(Metric):
    """Share of targets that are the first of the model's answers, or among its first k.

    Predictions are scores (or logits) with one class per place of `class_dim`, or the classes
    themselves, shaped like the targets.

    Args:
        topk: One k or several; the results are called ``accuracy`` for 1, ``accuracy_top5`` for 5.
        class_dim: Where the classes are, as `torch.nn.CrossEntropyLoss` has it; -1 for language models that
            put them last.
        ignore_index: Targets of this value are not counted (padding).
    """

    def __init__(
        self,
        topk: int | tuple[int, ...] = 1,
        *,
        class_dim: int = 1,
        ignore_index: int | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix)
        self.topk: tuple[int] | tuple[int, ...] = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or not all(isinstance(k, int) and k >= 1 for k in self.topk):
            raise ConfigError(f"Accuracy: topk={topk!r}: each k must be an integer of at least 1")
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self._is_first_only = self.topk == (1,)
        # Shapes that were found to go together: nearly all batches have them.
        self._fitting: tuple[torch.Size, torch.Size] | None = None
        self.add_state("correct", torch.zeros(len(self.topk), dtype=torch.int64))
        self.add_state("counted", torch.zeros((), dtype=torch.int64) if ignore_index is not None else 0)

    correct: Tensor
    counted: Any

    def update(self, preds: Tensor, target: Tensor) -> None:
        right = self._right(preds, target)
        if self.ignore_index is None:
            self.counted += target.numel()
        else:
            kept = target != self.ignore_index
            right = right & kept
            self.counted += kept.sum()
        self.correct += right.sum() if self._is_first_only else right.flatten(1).sum(1)

    def compute(self) -> dict[str, float]:
        counted = int(self.counted)
        if counted == 0:
            raise MetricError(
                f"Accuracy counted no target: every one of them is ignore_index={self.ignore_index}"
            )
        names = ["accuracy" if k == 1 else f"accuracy_top{k}" for k in self.topk]
        return {name: right / counted for name, right in zip(names, self.correct.tolist(), strict=True)}

    def _right(self, preds: Tensor, target: Tensor) -> Tensor:
        """For each k (first dimension, unless the one is 1) and target, whether it was met."""
        shape, wanted = preds.shape, target.shape
        if (shape, wanted) != self._fitting:
            if self._is_first_only and not preds.is_floating_point() and shape == wanted:
                return preds == target
            check_shapes("Accuracy", preds, target, self.class_dim, labels=self._is_first_only)
            self._fitting = (shape, wanted)
        if self._is_first_only:
            return preds.argmax(self.class_dim) == target
        largest = max(self.topk)
        classes = preds.shape[self.class_dim]
        if largest > classes:
            raise MetricError(
                f"Accuracy: topk={largest} needs at least {largest} classes, the predictions have {classes}"
            )
        best = preds.topk(largest, self.class_dim).indices.movedim(self.class_dim, 0)
        met = (best == target).cumsum(0)
        return torch.stack([met[k - 1] > 0 for k in self.topk])
