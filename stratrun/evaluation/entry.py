"""One metric as the evaluator drives it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch

from stratrun.errors import MetricError
from stratrun.evaluation.combine import Order
from stratrun.evaluation.inputs import Names, Picked, Wanted, detached, outline, pick
from stratrun.evaluation.metric import default_name
from stratrun.state import BatchInfo

M = TypeVar("M")
Feed = Callable[[Any, Any], None]
"""Counts in one batch, given the batch and what the model returned for it."""


@runtime_checkable
class FileWriter(Protocol):
    """A metric that has figures or tables, which become files beside its numbers."""

    def write_files(self, folder: Path, stem: str) -> None:
        """Called on one process, after `compute` or `compute_metrics`.

        Args:
            folder: Of this evaluation alone; it may have to be made.
            stem: What the names of the files begin with, the metric's own.
        """


class Entry(ABC, Generic[M]):
    """How one kind of metric takes part in an evaluation.

    An entry answers: how a batch is fed to the metric, what this rank reports at the end, and what
    the result is, given the reports of all ranks. It exchanges nothing itself.
    """

    def __init__(self, metric: M, names: Names, prefix: str | None = None) -> None:
        self.metric = metric
        self.name: str = type(metric).__name__
        self._names = names
        self._prefix = prefix

    @abstractmethod
    def feed(self, outputs: Any, batch: Any, info: BatchInfo) -> Feed:
        """Prepare for an evaluation whose batches are built like this one, which is the first."""

    @abstractmethod
    def report(self) -> Any:
        """What this rank gathered, on the CPU, to be sent to the main rank.

        Raises:
            MetricError: it cannot be put together with that of other ranks.
        """

    @abstractmethod
    def combined(self, reports: Sequence[Any], order: Order) -> Any:
        """The result over the batches of all ranks, whose reports come by rank."""

    @abstractmethod
    def alone(self) -> Any:
        """The result over the batches of this process."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was counted."""

    def to(self, device: torch.device) -> None:
        """Keep the states on the device of the batches."""

    def values(self, result: Any) -> dict[str, float]:
        """A result as plain numbers under their full names.

        Raises:
            MetricError: something in it is no number.
        """
        named = result if isinstance(result, Mapping) else {self._lone_name(): result}
        before = f"{self._prefix}/" if self._prefix else ""
        return {f"{before}{name}": self._number(name, value) for name, value in named.items()}

    def write_files(self, result: Any, folder: Path) -> None:
        """Put figures and tables of a result beside its numbers."""
        if isinstance(self.metric, FileWriter):
            self.metric.write_files(folder, self._stem())

    def _stem(self) -> str:
        name = default_name(self.metric)
        return f"{self._prefix.replace('/', '-')}-{name}" if self._prefix else name

    def _lone_name(self) -> str:
        return default_name(self.metric)

    def _picking(self, update: Callable[..., None], wanted: Wanted, outputs: Any, batch: Any) -> Feed:
        """A feed that finds the arguments once, and again only if the batches change their structure."""
        picked = pick(wanted, outputs, batch, self._names, self.name)
        if len(picked.placed) == 2 and not picked.named:
            return self._picking_both(update, wanted, picked)

        def feed(batch: Any, outputs: Any) -> None:
            nonlocal picked
            try:
                arguments, named = picked.take(outputs, batch)
            except (KeyError, IndexError, AttributeError, TypeError):
                picked = pick(wanted, outputs, batch, self._names, self.name)
                arguments, named = picked.take(outputs, batch)
            if named:
                update(*arguments, **named)
            else:
                update(*arguments)

        return feed

    def _picking_both(self, update: Callable[..., None], wanted: Wanted, picked: Picked) -> Feed:
        """The same for predictions and targets alone, which nearly all metrics take: without a list."""
        get_preds, get_target = picked.placed

        def feed(batch: Any, outputs: Any) -> None:
            nonlocal get_preds, get_target
            try:
                preds, target = get_preds(outputs, batch), get_target(outputs, batch)
            except (KeyError, IndexError, AttributeError, TypeError):
                get_preds, get_target = pick(wanted, outputs, batch, self._names, self.name).placed
                preds, target = get_preds(outputs, batch), get_target(outputs, batch)
            update(detached(preds), detached(target))

        return feed

    def _number(self, name: Any, value: Any) -> float:
        cause: Exception | None = None
        # A text that reads like a number is none.
        if not isinstance(value, str | bytes):
            try:
                return float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                cause = error
        raise MetricError(
            f"{self.name} gave {outline(value)} for {name!r}, not one number; have it give a mapping of "
            "names to numbers, or choose an average where it has one"
        ) from cause
