"""The part in an evaluation of our own two kinds of metric."""

from collections.abc import Sequence
from typing import Any

import torch

from stratrun.data.batch import batch_size_of
from stratrun.errors import MetricError
from stratrun.evaluation.audit import Audit
from stratrun.evaluation.base_metric import BaseMetric
from stratrun.evaluation.combine import Order, merge, on_cpu, on_device
from stratrun.evaluation.entry import Entry, Feed
from stratrun.evaluation.inputs import Names, outline, wanted_by
from stratrun.evaluation.metric import Metric
from stratrun.state import BatchInfo


class StateEntry(Entry[Metric]):
    """A `Metric`: each declared state is combined by its reduction."""

    def __init__(self, metric: Metric, names: Names, prefix: str | None = None) -> None:
        super().__init__(metric, names, prefix or metric.prefix)
        self._audit = Audit()
        self._device: torch.device | None = None

    def to(self, device: torch.device) -> None:
        self._device = device
        self.metric.to(device)

    def feed(self, outputs: Any, batch: Any, info: BatchInfo) -> Feed:
        metric = self.metric
        self._audit.begin([(metric, {"_defaults", *metric.declared()})])
        if type(metric).arguments is Metric.arguments:
            return self._picking(metric.update, wanted_by(metric.update), outputs, batch)

        def feed(batch: Any, outputs: Any) -> None:
            size = info.size
            if size is None and (size := batch_size_of(batch)) is None:
                raise MetricError(f"{self.name}: no telling how many samples there are in {outline(batch)}")
            metric.update(*(metric.arguments(outputs, batch, size) or ()))

        return feed

    def report(self) -> dict[str, Any]:
        self._audit.end()
        memo: dict[int, Any] = {}
        return {name: on_cpu(value, memo) for name, value in self.metric.state().items()}

    def combined(self, reports: Sequence[dict[str, Any]], order: Order) -> Any:
        declared = self.metric.declared()
        lists = {
            name: [report[name] for report in reports] for name, (_, how) in declared.items() if how == "cat"
        }
        states: dict[str, Any] = {**order.arrange(lists)}
        for name, (default, reduce) in declared.items():
            if reduce != "cat":
                states[name] = self._merged(name, reduce, [report[name] for report in reports], default)
        for name, value in states.items():
            setattr(self.metric, name, value if self._device is None else on_device(value, self._device))
        return self.metric.compute()

    def alone(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self._audit = Audit()
        self.metric.reset()

    def _merged(self, name: str, reduce: str, values: list[Any], default: Any) -> Any:
        try:
            return merge(reduce, values, default)
        except MetricError as error:
            raise MetricError(f"{self.name}, state {name!r}: {error}") from error


class ResultsEntry(Entry[BaseMetric]):
    """A `BaseMetric`: the results of all ranks go to the main rank, in the order of the samples."""

    def __init__(self, metric: BaseMetric, names: Names, prefix: str | None = None) -> None:
        super().__init__(metric, names, prefix or metric.prefix)
        self._counts: list[int] = []

    def feed(self, outputs: Any, batch: Any, info: BatchInfo) -> Feed:
        metric, counts = self.metric, self._counts

        def feed(batch: Any, outputs: Any) -> None:
            before = len(metric.results)
            metric.process(batch, outputs)
            counts.append(len(metric.results) - before)

        return feed

    def report(self) -> tuple[list[Any], list[int]]:
        return self._results(), list(self._counts)

    def combined(self, reports: Sequence[tuple[list[Any], list[int]]], order: Order) -> Any:
        results = order.sort([results for results, _ in reports], [counts for _, counts in reports])
        return self._computed(results)

    def alone(self) -> Any:
        return self._computed(self._results())

    def reset(self) -> None:
        self._counts = []
        self.metric.results = []

    def _results(self) -> list[Any]:
        results: list[Any] = on_cpu(self.metric.results)
        return results

    def _computed(self, results: list[Any]) -> Any:
        if not results:
            raise MetricError(f"{self.name}.process() appended nothing to self.results for any batch")
        return self.metric.compute_metrics(results)
