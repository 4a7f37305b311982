"""Mean over samples of something the model returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import MetricError
from stratrun.evaluation.inputs import MISSING, look_up, outline
from stratrun.evaluation.metric import Metric
from stratrun.registry import METRICS


@METRICS.register_module()
class MeanMetric(Metric):
    """Mean over all samples of ``outputs[key]``.

    A value for each sample is taken as it is. One value for the batch stands for as many samples as
    the batch has, or for ``outputs["weight"]`` of them (tokens, boxes) where the model returns that.
    """

    total: Tensor
    weight: Tensor | float

    def __init__(self, key: str = "loss", *, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.key = key
        self.add_state("total", torch.zeros((), dtype=torch.float64))
        # Known to the host, unless the model gives it as a tensor.
        self.add_state("weight", 0)

    def arguments(self, outputs: Any, batch: Any, size: int) -> tuple[Any, ...]:
        alone = isinstance(outputs, Tensor) and outputs.dim() == 0
        value = outputs if alone else look_up(outputs, self.key)
        if not isinstance(value, Tensor | float | int):
            raise MetricError(
                f"MeanMetric(key={self.key!r}) finds no number under that key in what the model returned: "
                f"{outline(outputs)}; name one that is there, or have the model's val_step return it"
            )
        weight = look_up(outputs, "weight") if isinstance(outputs, Mapping) else MISSING
        return value, size if weight is MISSING else weight, size

    def update(self, value: Tensor | float, weight: Tensor | float, size: int) -> None:
        if isinstance(value, Tensor) and value.numel() != 1:
            self._update_each(value, weight, size)
            return
        if isinstance(value, Tensor):
            value = value.detach().reshape(())
        if isinstance(weight, Tensor):
            weight = weight.sum().to(self.total.dtype)
            self.total += value * weight
        elif isinstance(value, Tensor):
            # One operation, in the precision of the total.
            self.total.add_(value, alpha=weight)
        else:
            self.total += value * weight
        self.weight += weight

    def _update_each(self, value: Tensor, weight: Tensor | float, size: int) -> None:
        if value.numel() != size:
            raise MetricError(
                f"MeanMetric(key={self.key!r}) got a value of shape {tuple(value.shape)} for {size} "
                "samples; return one value for the batch, or one for each sample"
            )
        each = value.detach().flatten().to(self.total.dtype)
        if isinstance(weight, Tensor) and weight.numel() == size:
            self.total += each @ weight.flatten().to(each.dtype)
            self.weight += weight.sum().to(each.dtype)
        else:
            self.total += each.sum()
            self.weight += size

    def compute(self) -> dict[str, float]:
        return {self.key: float(self.total / self.weight)}
