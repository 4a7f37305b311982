"""The part in an evaluation of a torchmetrics Metric or MetricCollection, as it is.

The package is imported by whoever made the metric; nothing here imports it.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import MetricError
from stratrun.evaluation.audit import Audit
from stratrun.evaluation.combine import Order, merge, on_cpu, on_device, stack
from stratrun.evaluation.compute_groups import settle_groups
from stratrun.evaluation.entry import Entry, Feed
from stratrun.evaluation.figures import save_plot
from stratrun.evaluation.inputs import Names, Wanted, wanted_by
from stratrun.state import BatchInfo

States = dict[str, Any]
# What the base class changes by itself. The dicts grow when a metric adds a state late.
_BOOKKEEPING = {
    *("_update_count", "_computed", "_forward_cache", "_cache"),
    *("_defaults", "_reductions", "_persistent"),
}
_REDUCTIONS = {
    "dim_zero_sum": "sum",
    "dim_zero_max": "max",
    "dim_zero_min": "min",
    "dim_zero_cat": "cat",
    "dim_zero_mean": "mean",
}


def is_torchmetric(kind: type) -> bool:
    package = sys.modules.get("torchmetrics")
    return package is not None and issubclass(kind, package.Metric | package.MetricCollection)


class TorchmetricsEntry(Entry[Any]):
    """A metric of torchmetrics, whose states we combine instead of letting it talk to other ranks.

    Its own synchronisation goes wrong where ranks have different numbers of batches, or none, which is
    what counting each sample once leads to.
    """

    def __init__(self, metric: Any, names: Names, prefix: str | None = None, *, plot: bool = False) -> None:
        super().__init__(metric, names, prefix)
        self._plot = plot
        self._device: torch.device | None = None
        self._audit = Audit()

    def to(self, device: torch.device) -> None:
        self._device = device
        self.metric.to(device)

    def feed(self, outputs: Any, batch: Any, info: BatchInfo) -> Feed:
        members = _members(self.metric)
        if not isinstance(self.metric, _metric_class()):
            settle_groups(self.metric)
        self._audit.begin((member, {*_BOOKKEEPING, *member.metric_state}) for member in members.values())
        return self._picking(self.metric.update, self._wanted(), outputs, batch)

    def report(self) -> dict[str, States]:
        self._audit.end()
        memo: dict[int, Any] = {}
        return {
            path: {name: on_cpu(value, memo) for name, value in member.metric_state.items()}
            for path, member in _members(self.metric).items()
        }

    def combined(self, reports: Sequence[dict[str, States]], order: Order) -> Any:
        members = _members(self.metric)
        merged = {
            path: _merged(member, [r[path] for r in reports], order) for path, member in members.items()
        }
        # Some metrics keep states from one evaluation to the next: of this rank's own batches, as on
        # any other rank. A reset empties lists in place, hence copies.
        own = {
            path: {k: copy(v) if isinstance(v, list) else v for k, v in member.metric_state.items()}
            for path, member in members.items()
        }
        # Clears a cached result; the states themselves are all replaced.
        self.metric.reset()
        try:
            for path, states in merged.items():
                self._put(members[path], states)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*was called before the ``update`` method")
                return self.alone()
        finally:
            for path, states in own.items():
                for name, value in states.items():
                    setattr(members[path], name, value)

    def alone(self) -> Any:
        with _kept_apart(_members(self.metric).values()):
            return self.metric.compute()

    def reset(self) -> None:
        self._audit = Audit()
        self.metric.reset()

    def values(self, result: Any) -> dict[str, float]:
        """Without what is drawn as a figure and is no number."""
        if not self._plot or (isinstance(result, Tensor) and result.numel() == 1):
            return super().values(result)
        return {}

    def write_files(self, result: Any, folder: Path) -> None:
        if self._plot:
            save_plot(self.metric, result, folder / self._stem())

    def _lone_name(self) -> str:
        return self.name

    def _wanted(self) -> Wanted:
        if isinstance(self.metric, _metric_class()):
            return wanted_by(self.metric.update)
        each = [wanted_by(member.update) for member in self.metric.values(copy_state=False)]
        named = dict.fromkeys(name for wanted in each for name in wanted.named)
        return Wanted(max((w.placed for w in each), key=len), tuple(named))

    def _put(self, member: Any, states: Mapping[str, Any]) -> None:
        device = self._device or member.device
        for name, value in states.items():
            # `compute_on_cpu` keeps lists off the device to save its memory.
            stays = isinstance(value, list) and member.compute_on_cpu
            setattr(member, name, value if stays else on_device(value, device))


def _metric_class() -> Any:
    return sys.modules["torchmetrics"].Metric


def _members(metric: Any) -> dict[str, Any]:
    """The metric and all metrics in it (of a collection, a wrapper or a sum), by their path."""
    kind = _metric_class()
    return {path: module for path, module in metric.named_modules() if isinstance(module, kind)}


@contextmanager
def _kept_apart(metrics: Iterable[Any]) -> Iterator[None]:
    """Keep metrics from exchanging anything by themselves."""
    members = list(metrics)
    before = [member.distributed_available_fn for member in members]
    for member in members:
        member.distributed_available_fn = _not_distributed
    try:
        yield
    finally:
        for member, available in zip(members, before, strict=True):
            member.distributed_available_fn = available


def _not_distributed() -> bool:
    return False


def _merged(member: Any, reports: Sequence[States], order: Order) -> States:
    who = type(member).__name__
    late = {name for report in reports for name in report} - set(member.metric_state)
    if late:
        raise MetricError(
            f"{who} declares {', '.join(map(repr, sorted(late)))} only when it sees a batch, and the main "
            "rank had none; declare it when the metric is made (num_classes=)"
        )
    lists: dict[str, list[list[Any]]] = {}
    states: States = {}
    for name, reduction in member._reductions.items():
        values = [report.get(name) for report in reports]
        how = _REDUCTIONS.get(getattr(reduction, "__name__", ""), "own" if reduction else "none")
        if isinstance(member._defaults[name], list) and how in ("cat", "none"):
            lists[name] = [value if isinstance(value, list) else [value] for value in values]
            continue
        try:
            states[name] = _merged_state(member, name, how, values, order)
        except MetricError as error:
            raise MetricError(f"{who}, state {name!r}: {error}") from error
    arranged = order.arrange(lists)
    return {**states, **arranged}


def _merged_state(member: Any, name: str, how: str, values: list[Any], order: Order) -> Any:
    default, reduction = member._defaults[name], member._reductions[name]
    if how in ("sum", "max", "min") and isinstance(default, Tensor):
        return merge(how, values, default)
    # Whoever counted nothing would be averaged in, or stacked as if it were a result.
    active = [value for value, has_batches in zip(values, order.active, strict=True) if has_batches]
    if isinstance(default, list):
        return reduction([part for value in active for part in value])
    if how == "cat":
        return torch.cat([torch.atleast_1d(value) for value in active])
    if how == "mean":
        if any(not torch.equal(value, active[0]) for value in active):
            raise MetricError(
                "its values differ from rank to rank, and their mean (dist_reduce_fx='mean') is not what one "
                "process gives; keep a sum and a count instead"
            )
        return active[0]
    if len(active) == 1:
        return active[0]
    stacked = stack(active)
    if how == "own":
        return reduction(stacked)
    _check_stackable(member, len(active))
    return stacked


def _check_stackable(member: Any, ranks: int) -> None:
    """Without a reduction `compute` gets one value for each rank, which it must know how to handle."""
    owner = next(kind for kind in type(member).__mro__ if "compute" in vars(kind))
    if not owner.__module__.startswith("torchmetrics."):
        raise MetricError(
            "it has no reduction (dist_reduce_fx=), so compute() would get a value for each rank where it "
            "expects one; give 'sum', 'max', 'min' or 'cat', or a function that says what to make of them"
        )
    if owner.__name__ == "NormalizedRootMeanSquaredError" and ranks > 2:
        raise MetricError(
            "torchmetrics puts its statistics together wrongly for more than two ranks; evaluate in one "
            "process, or take the square root of MeanSquaredError and normalise it yourself"
        )
