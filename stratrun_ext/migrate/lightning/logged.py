"""What `self.log` was given: where it counts, and how values of batches become one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import ConfigError, ModelError, nearest
from stratrun.evaluation import BaseMetric

_REDUCTIONS = ("mean", "sum", "min", "max")
_KNOWN = (
    *("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist"),
    *("sync_dist_group", "add_dataloader_idx", "batch_size", "metric_attribute", "rank_zero_only"),
)


@dataclass(frozen=True, slots=True)
class Logged:
    """One value of one batch."""

    value: Any
    reduce: str = "mean"
    batch_size: int | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    logger: bool = True

    @classmethod
    def of(cls, name: str, value: Any, how: Mapping[str, Any]) -> "Logged":
        """What `self.log(name, value, ...)` means.

        Options on ranks and bars need nothing here: means are over the samples of all ranks in any case.

        Raises:
            ConfigError: an option is not known, or asks for what is not done.
            ModelError: the value is no number.
        """
        for key in how:
            if key not in _KNOWN:
                raise ConfigError(f"self.log({name!r}): {key}= is not known; {nearest(key, _KNOWN)}")
        if how.get("rank_zero_only"):
            raise ConfigError(
                f"self.log({name!r}, rank_zero_only=True): values are means over all ranks; leave it out"
            )
        reduce = getattr(how.get("reduce_fx", "mean"), "__name__", how.get("reduce_fx", "mean"))
        if reduce not in _REDUCTIONS:
            raise ConfigError(
                f"self.log({name!r}, reduce_fx={reduce!r}) is none of {', '.join(_REDUCTIONS)}; keep the "
                "values in a list of your own, and log the result in the hook at the end of the epoch"
            )
        return cls(
            _number(name, value),
            reduce,
            how.get("batch_size"),
            how.get("on_step"),
            how.get("on_epoch"),
            how.get("logger", True) is not False,
        )


def is_metric(value: Any) -> bool:
    """Whether it collects over batches, as metrics of torchmetrics do."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def _number(name: str, value: Any) -> Any:
    if is_metric(value):
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ModelError(
                f"self.log({name!r}) got a tensor of shape {tuple(value.shape)}; log a single number, "
                "such as its mean()"
            )
        return value.detach().reshape(())
    if isinstance(value, bool | int | float):
        return float(value)
    raise ModelError(
        f"self.log({name!r}) got a {type(value).__name__}; log a number, a tensor of one element, or, in "
        "validation, a metric of torchmetrics (several by self.log_dict)"
    )


class LoggedMetric(BaseMetric):
    """What the steps of an evaluation have logged, each name over all batches of all ranks.

    Means go by the samples of batches, or by `batch_size` where `self.log` was given that.
    """

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(data_samples["logged"])

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        found: dict[str, list[tuple[float, float, str]]] = {}
        for batch in results:
            for name, (value, size, reduce) in batch.items():
                found.setdefault(name, []).append((float(value), float(size), reduce))
        return {name: _reduced(rows) for name, rows in found.items()}


def _reduced(rows: list[tuple[float, float, str]]) -> float:
    values = torch.tensor([value for value, _, _ in rows], dtype=torch.float64)
    how = rows[0][2]
    if how == "mean":
        sizes = torch.tensor([size for _, size, _ in rows], dtype=torch.float64)
        return float((values @ sizes) / sizes.sum())
    return float(getattr(values, how)())
