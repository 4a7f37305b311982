"""Which classes are taken for which."""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation.classes import ClassMetric, tally
from stratrun.evaluation.figures import require_plot, save_matrix
from stratrun.registry import METRICS


@METRICS.register_module()
class ConfusionMatrix(ClassMetric):
    """How often targets of each class (rows) were predicted as each class (columns), in files.

    Each evaluation writes ``confusion_matrix.csv`` and ``confusion_matrix.png`` beside the logs. Its
    number is ``balanced_accuracy``: the mean of the shares that are right over classes that have targets.

    Args:
        names: Of the classes, for the files.
        plot: Whether to draw it, which takes matplotlib (the extra ``plot``).
        num_classes: See `ClassMetric`, as for `class_dim` and `ignore_index`.
    """

    counts: Tensor

    def __init__(
        self,
        names: Sequence[str] | None = None,
        *,
        plot: bool = True,
        num_classes: int | None = None,
        class_dim: int = 1,
        ignore_index: int | None = None,
        prefix: str | None = None,
    ) -> None:
        if names is not None and num_classes not in (None, len(names)):
            raise ConfigError(f"ConfusionMatrix: {len(names)} names for num_classes={num_classes}")
        super().__init__(
            num_classes or (len(names) if names is not None else None),
            class_dim=class_dim,
            ignore_index=ignore_index,
            prefix=prefix,
        )
        if plot:
            require_plot("ConfusionMatrix")
        self.names: list[str] | None = None if names is None else [str(name) for name in names]
        self.plot = plot
        self.add_state("counts", torch.zeros((), dtype=torch.int64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        preds, target, counted, classes = self._flat(preds, target)
        if classes > 4096:
            raise MetricError(f"ConfusionMatrix: {classes} classes make a table of {classes**2:,} numbers")
        table = tally(target * classes + preds, counted, classes * classes)
        self.counts = self.counts + table.view(classes, classes)

    def compute(self) -> dict[str, float]:
        self._check_counted(self.counts.sum())
        targets = self.counts.sum(1)
        shares = self.counts.diagonal().double() / targets.clamp(min=1)
        return {"balanced_accuracy": float(shares.sum() / (targets > 0).sum())}

    def write_files(self, folder: Path, stem: str) -> None:
        counts = self.counts.cpu()
        names = self.names or [str(i) for i in range(len(counts))]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["right \\ predicted", *names])
            rows.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        if self.plot:
            save_matrix(counts, names, folder / f"{stem}.png")
