"""What metrics of classes have in common: where the classes are, and which targets count."""

from typing import Any

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation.metric import Metric


class ClassMetric(Metric):
    """Counts by class, of predictions that are scores, or the classes themselves.

    Args:
        num_classes: Needed only where predictions are classes already; scores tell.
        class_dim: Where scores have the classes, as `torch.nn.CrossEntropyLoss` has it; -1 for language
            models that put them last.
        ignore_index: Targets of this value are not counted (padding).
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        class_dim: int = 1,
        ignore_index: int | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix)
        if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 2):
            raise ConfigError(f"{self._who}: num_classes={num_classes!r} must be a whole number above 1")
        self.num_classes = num_classes
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self.add_state("foreign", torch.zeros((), dtype=torch.int64))

    foreign: Tensor
    """Targets or predictions that are no class."""

    @property
    def _who(self) -> str:
        return type(self).__name__

    def _flat(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Predicted and right classes, which of them count, and how many classes there are.

        What does not count is class 0 in both, so that it may be an index.
        """
        classes = self.num_classes
        if preds.shape == target.shape and not preds.is_floating_point():
            if classes is None:
                raise MetricError(
                    f"{self._who}: predictions {shape_of(preds)} are classes, so there is no telling how "
                    "many there are; give num_classes="
                )
        else:
            check_shapes(self._who, preds, target, self.class_dim)
            found = preds.shape[self.class_dim]
            if classes is not None and classes != found:
                raise MetricError(f"{self._who}: num_classes={classes}, but predictions have {found} classes")
            classes = found
            preds = preds.argmax(self.class_dim)
        preds, target = preds.flatten(), target.flatten().long()
        counted = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = target != self.ignore_index
        known = (target >= 0) & (target < classes) & (preds >= 0) & (preds < classes)
        self.foreign = self.foreign + (counted & ~known).sum()
        counted = counted & known
        return preds * counted, target * counted, counted, classes

    def _check_counted(self, counted: Tensor) -> None:
        foreign = int(self.foreign)
        if foreign:
            raise MetricError(
                f"{self._who}: {foreign} targets or predictions are not from 0 to the number of classes; "
                "is there padding (ignore_index=), or do classes begin with 1?"
            )
        if int(counted) == 0:
            raise MetricError(
                f"{self._who} counted no target: every one of them is ignore_index={self.ignore_index}"
            )


def tally(index: Tensor, counted: Tensor, size: int) -> Tensor:
    """How often each of `size` indices is among those that count."""
    # Not `bincount`, which on a GPU asks for the largest index, and so waits.
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, index, counted.long())


def fits(preds: torch.Size, target: torch.Size, class_dim: int) -> bool:
    """Whether scores have the shape of the targets, and the classes as one dimension more."""
    if len(preds) != len(target) + 1 or not -len(preds) <= class_dim < len(preds):
        return False
    dim = class_dim % len(preds)
    return preds[:dim] + preds[dim + 1 :] == target


def check_shapes(who: str, preds: Tensor, target: Tensor, class_dim: int, *, labels: bool = True) -> None:
    """
    Args:
        labels: Whether the metric takes classes in place of scores too.

    Raises:
        MetricError: predictions are no scores for these targets; says what would be.
    """
    if fits(preds.shape, target.shape, class_dim):
        return
    said = f"{who} cannot compare predictions {shape_of(preds)} with targets {shape_of(target)}"
    if preds.shape == target.shape and labels:
        raise MetricError(
            f"{said}: predictions of this shape must be classes; give (scores > threshold).long()"
        )
    if preds.shape[:-1] == target.shape:
        raise MetricError(f"{said}: the classes seem to come last; pass class_dim=-1")
    raise MetricError(
        f"{said}: with class_dim={class_dim} the predictions need the shape of the targets and one "
        "dimension more, for the classes"
    )


def shape_of(tensor: Any) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
