"""How far predicted numbers are from the right ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError, nearest
from stratrun.evaluation.classes import shape_of
from stratrun.evaluation.metric import Metric
from stratrun.registry import METRICS

_ERRORS = ("mae", "mse", "rmse", "r2", "max_error")


@METRICS.register_module()
class RegressionErrors(Metric):
    """Errors over all numbers of all samples.

    ``mae`` is the mean of absolute differences, ``mse`` of squared ones, ``rmse`` its root, ``max_error``
    the largest; ``r2`` is the coefficient of determination, ``1 - mse / variance of the targets``, 0 for
    targets that are all alike, unless they are met.

    Args:
        errors: Which of them.
    """

    absolute: Tensor
    squared: Tensor
    largest: Tensor
    moments: list[Tensor]
    count: int

    def __init__(self, errors: Sequence[str] = ("mae", "rmse", "r2"), *, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.errors: tuple[str] | tuple[str, ...] = (errors,) if isinstance(errors, str) else tuple(errors)
        for name in self.errors:
            if name not in _ERRORS:
                raise ConfigError(f"RegressionErrors: errors={errors!r}; {nearest(str(name), _ERRORS)}")
        self.add_state("absolute", torch.zeros((), dtype=torch.float64))
        self.add_state("squared", torch.zeros((), dtype=torch.float64))
        self.add_state("largest", torch.zeros((), dtype=torch.float64), reduce="max")
        # Of each batch, as sums of squares over all data would cancel where targets are large.
        self.add_state("moments", [])
        self.add_state("count", 0)

    def update(self, preds: Tensor, target: Tensor) -> None:
        if preds.shape != target.shape:
            # Torch would compare each with each.
            raise MetricError(
                f"RegressionErrors cannot compare predictions {shape_of(preds)} with targets "
                f"{shape_of(target)}; give both the same shape, for example with squeeze(-1)"
            )
        if not target.numel():
            return
        wide = self.absolute.dtype
        target = target.to(wide)
        apart = (preds.to(wide) - target).abs()
        self.absolute += apart.sum()
        self.squared += apart.square().sum()
        self.largest = torch.maximum(self.largest, apart.max())
        self.count += target.numel()
        if "r2" in self.errors:
            mean = target.mean()
            count = torch.full((), target.numel(), dtype=wide, device=target.device)
            # A row, as whatever has as many rows as the batch has samples is taken for one of each sample.
            self.moments.append(torch.stack([count, mean, (target - mean).square().sum()])[None])

    def compute(self) -> dict[str, float]:
        if self.count == 0:
            raise MetricError("RegressionErrors counted no target")
        values = {
            "mae": float(self.absolute / self.count),
            "mse": float(self.squared / self.count),
            "rmse": float((self.squared / self.count).sqrt()),
            "max_error": float(self.largest),
        }
        if "r2" in self.errors:
            spread = self._spread()
            missed = float(self.squared)
            values["r2"] = 1 - missed / spread if spread > 0 else float(missed == 0)
        return {name: values[name] for name in self.errors}

    def _spread(self) -> float:
        """Sum of squared distances of the targets from their mean, from those of the batches."""
        # Chan, Golub and LeVeque (1979): parts are put together without adding up squares of targets.
        counts, means, squares = torch.cat([part.cpu() for part in self.moments]).unbind(1)
        mean = (counts * means).sum() / counts.sum()
        return float((squares + counts * (means - mean).square()).sum())
