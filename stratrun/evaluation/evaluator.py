"""Several metrics over the samples of all ranks."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from stratrun.errors import ConfigError, MetricError, StratrunError, nearest
from stratrun.evaluation.base_metric import BaseMetric
from stratrun.evaluation.combine import Order, Seen
from stratrun.evaluation.entry import Entry, Feed
from stratrun.evaluation.figures import require_plot
from stratrun.evaluation.inputs import Key, Names
from stratrun.evaluation.metric import Metric
from stratrun.evaluation.own_entries import ResultsEntry, StateEntry
from stratrun.evaluation.torchmetrics_entry import TorchmetricsEntry, is_torchmetric
from stratrun.problems import part
from stratrun.registry import METRICS
from stratrun.state import BatchInfo

_NO_METRIC = (
    "is no metric; give a subclass of stratrun.evaluation.Metric or BaseMetric, a torchmetrics Metric or "
    "MetricCollection, a dict with 'type', or a list of these"
)


class Exchange(Protocol):
    """What an evaluation needs of the ranks: two exchanges at its end."""

    @property
    def world_size(self) -> int: ...

    def gather_to_main(self, value: Any, /) -> list[Any] | None: ...

    def from_main(self, value: Any, /) -> Any: ...


class Evaluator:
    """Feeds batches to metrics and gives their values over all samples, the same on every rank.

    A value is the one that a single process would give that saw each sample once, for any number of
    ranks and batches.

    Args:
        metrics: One or a list of: a metric object (`Metric`, `BaseMetric`, of torchmetrics a Metric or a
            MetricCollection), or a dict with `type`. The dict may also have `preds` and `target`, as
            here but for this metric alone, `prefix`, and for one of torchmetrics ``plot=True``.
        preds: What the predictions are called in what the model returns, or else in the batch; an
            index for a sequence. Needed only where they have no usual name.
        target: The same for the targets.
    """

    def __init__(self, metrics: Any, *, preds: Key | None = None, target: Key | None = None) -> None:
        self._entries = _entries(metrics, Names(preds, target))
        self._ranks: Exchange | None = None
        self._info = BatchInfo()
        self._settle: Callable[[], None] | None = None
        self._feeds: list[Feed] = []
        self._seen = Seen()

    def bind(
        self,
        ranks: Exchange,
        batch: BatchInfo,
        device: torch.device | None = None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        """Take part in a run.

        Args:
            batch: Where the loader says how many samples the batch in hand has, and which.
            device: Where the batches are.
            settle: To be called on every rank before anything is exchanged.
        """
        self._ranks = ranks if ranks.world_size > 1 else None
        self._info = batch
        self._settle = settle
        if device is not None:
            for entry in self._entries:
                entry.to(device)

    def process(self, data_batch: Any, data_samples: Any = None) -> None:
        """Count one batch.

        Args:
            data_samples: What the model returned for it.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.process(data_batch, data_samples)
            return
        info, seen = self._info, self._seen
        size = info.size
        if size == 0:
            return
        if not self._feeds:
            self._feeds = [entry.feed(data_samples, data_batch, info) for entry in self._entries]
        for feed in self._feeds:
            feed(data_batch, data_samples)
        seen.sizes.append(size)
        seen.positions.append(info.positions)

    def evaluate(self, size: int | None = None, *, folder: Path | None = None) -> dict[str, float]:
        """The values by name, over what all ranks processed since the last call; starts anew.

        Args:
            size: How many samples the data set has. To be counted more often than once is then an error.
            folder: For the figures and tables of metrics that have some. The main process writes them.

        Raises:
            MetricError: nothing was processed, a value is no number, or two metrics give the same name.
        """
        try:
            if self._settle is not None:
                self._settle()
            if self._ranks is None:
                return self._alone(size, folder)
            return self._together(self._ranks, size, folder)
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self._seen = Seen()
        self._feeds = []
        for entry in self._entries:
            entry.reset()

    def _alone(self, size: int | None, folder: Path | None) -> dict[str, float]:
        _check_counted([self._seen], size)
        return self._named([entry.alone() for entry in self._entries], folder)

    def _together(self, ranks: Exchange, size: int | None, folder: Path | None) -> dict[str, float]:
        reports = ranks.gather_to_main(self._report())
        values: dict[str, float] | None = None
        failure: Exception | None = None
        if reports is not None:
            # Whatever happens here, the other ranks wait to be told.
            try:
                values = self._combined(reports, size, folder)
            except Exception as error:
                failure = error
        told = None if failure is None else _told(failure)
        values, told = ranks.from_main((values, told))
        if failure is not None:
            raise failure
        if values is None:
            raise MetricError(told)
        return values

    def _report(self) -> tuple[Seen, list[Any], str | None]:
        """What this rank has to say. Failing would leave the other ranks waiting."""
        try:
            return self._seen, [entry.report() for entry in self._entries], None
        except Exception as error:
            return self._seen, [], _told(error)

    def _combined(
        self,
        reports: Sequence[tuple[Seen, list[Any], str | None]],
        size: int | None,
        folder: Path | None,
    ) -> dict[str, float]:
        failures = [f"rank {rank}: {told}" for rank, (_, _, told) in enumerate(reports) if told is not None]
        if failures:
            raise MetricError("; ".join(dict.fromkeys(failures)))
        seen = [seen for seen, _, _ in reports]
        _check_counted(seen, size)
        order = Order(seen)
        gathered = [[states[i] for _, states, _ in reports] for i in range(len(self._entries))]
        combined = [e.combined(mine, order) for e, mine in zip(self._entries, gathered, strict=True)]
        return self._named(combined, folder)

    def _named(self, results: Sequence[Any], folder: Path | None) -> dict[str, float]:
        values: dict[str, float] = {}
        owners: dict[str, str] = {}
        for entry, result in zip(self._entries, results, strict=True):
            for name, value in entry.values(result).items():
                if name in owners:
                    raise MetricError(
                        f"both {owners[name]} and {entry.name} give {name!r}; give one of them "
                        f"prefix='other', which makes it 'other/{name}' (objects of torchmetrics: "
                        "MetricCollection({'one': ..., 'other': ...}))"
                    )
                values[name], owners[name] = value, entry.name
        if folder is not None:
            for entry, result in zip(self._entries, results, strict=True):
                entry.write_files(result, folder)
        return values


def build_evaluator(spec: Any, where: str = "evaluator") -> Evaluator:
    """An Evaluator as it is, from its arguments (a dict with `metrics`), or from metrics.

    Args:
        where: What the user calls it, for messages.
    """
    check_evaluator(spec, where)
    if isinstance(spec, Evaluator):
        return spec
    if _is_whole(spec):
        return Evaluator(**{key: value for key, value in spec.items() if key != "type"})
    return Evaluator(spec)


def check_evaluator(spec: Any, where: str = "evaluator") -> None:
    """Refuse what `build_evaluator` could build nothing of, building nothing.

    Raises:
        ConfigError: an argument or a metric is unknown, or an object is no metric.
    """
    if isinstance(spec, Evaluator):
        return
    if _is_whole(spec):
        known = ("metrics", "preds", "target")
        for key in spec:
            if key in (*known, "type"):
                continue
            with part():
                raise ConfigError(f"{where}: Evaluator takes no argument {key!r}; {nearest(key, known)}")
        spec, where = spec["metrics"], f"{where}.metrics"
    if isinstance(spec, list | tuple) and not spec:
        raise ConfigError(f"{where}=[] measures nothing; give at least one metric")
    several = isinstance(spec, list | tuple)
    for i, one in enumerate(spec if several else [spec]):
        with part():
            _check_metric(one, f"{where}.{i}" if several else where)


def _check_metric(spec: Any, where: str) -> None:
    entry: Any = spec
    if isinstance(spec, str | type | Mapping):
        taken = _without_ours(spec)[0] if isinstance(spec, Mapping) and spec.get("type") is not None else spec
        entry, _ = METRICS.check(taken, where=where)
        if isinstance(spec, Mapping) and spec.get("plot"):
            require_plot(where)
    # What a function returns is seen when it is called.
    if isinstance(entry, type) or entry is spec:
        kind = entry if isinstance(entry, type) else type(entry)
        if not issubclass(kind, Metric | BaseMetric) and not is_torchmetric(kind):
            raise ConfigError(f"{where}: {kind.__name__} {_NO_METRIC}")


def _is_whole(spec: Any) -> bool:
    """Whether a dict has the arguments of an Evaluator, rather than those of a metric."""
    return isinstance(spec, Mapping) and "metrics" in spec and spec.get("type", "Evaluator") == "Evaluator"


def _entries(metrics: Any, names: Names) -> list[Entry[Any]]:
    specs = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    if not specs:
        raise ConfigError("evaluator=[] measures nothing; give at least one metric")
    return [_entry(spec, names) for spec in specs]


def _entry(spec: Any, names: Names) -> Entry[Any]:
    own: dict[str, Any] = {}
    if isinstance(spec, Mapping) and spec.get("type") is not None:
        spec, own = _without_ours(spec)
        names = Names(own.get("preds", names.preds), own.get("target", names.target))
    prefix = own.get("prefix")
    metric = METRICS.build(spec, where="evaluator")
    if isinstance(metric, Metric):
        return StateEntry(metric, names, prefix)
    if isinstance(metric, BaseMetric):
        return ResultsEntry(metric, names, prefix)
    if is_torchmetric(type(metric)):
        return TorchmetricsEntry(metric, names, prefix, plot=own.get("plot", False))
    raise ConfigError(f"evaluator: {type(metric).__name__} {_NO_METRIC}")


def _without_ours(spec: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take from a dict what the evaluator is told there, and leave what its class is told."""
    ours = {"preds", "target"} & set(spec)
    if {"prefix", "plot"} & set(spec):
        kind = METRICS.get(spec["type"]) if isinstance(spec["type"], str) else spec["type"]
        if "prefix" in spec and "prefix" not in inspect.signature(kind).parameters:
            ours.add("prefix")
        if "plot" in spec and isinstance(kind, type) and is_torchmetric(kind):
            ours.add("plot")
    if not ours:
        return spec, {}
    # A copy of its own kind: that of a config knows in which line each key stands.
    rest: Any = copy.copy(spec)
    return rest, {key: rest.pop(key) for key in ours}


def _check_counted(ranks: Sequence[Seen], size: int | None) -> None:
    if not any(seen.sizes for seen in ranks):
        raise MetricError(
            "nothing to evaluate: no batch was given to process(); is the data set empty, or does the "
            "loop never call it?"
        )
    known = [seen.samples for seen in ranks if seen.samples is not None]
    if size is not None and len(known) == len(ranks) and sum(known) > size:
        raise MetricError(
            f"{sum(known)} samples were counted, but the data set has {size}: some were counted more than "
            "once; leave the sampler to stratrun, or make yours give each index to one process"
        )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, StratrunError) else f"{type(error).__name__}: {error}"
