"""Images with their channels last in memory, as convolutions on GPUs want them: ``channels_last=True``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ChannelsLast:
    """Lays out the weights of a model, and the batches that it is given. Shapes stay as they are."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, module: nn.Module) -> None:
        found = sum(one.dim() == 4 for one in module.parameters())
        if found:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.reasons = [f"channels_last: {found} weights of four dimensions, and such batches"]
        else:
            self.reasons = ["channels_last: batches alone, as no weight of the model has four dimensions"]

    @staticmethod
    def after(move: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`move`, which brings batches to the device, and then the layout."""
        return lambda batch: _laid_out(move(batch))


def _laid_out(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, Tensor):
        image = value.dim() == 4 and value.is_floating_point()
        return value.contiguous(memory_format=torch.channels_last) if image else value
    if kind is dict:
        return {key: _laid_out(item) for key, item in value.items()}
    if kind is list:
        return [_laid_out(item) for item in value]
    if isinstance(value, tuple):
        items = [_laid_out(item) for item in value]
        if kind is tuple:
            return tuple(items)
        return value._make(items) if hasattr(value, "_make") else value
    return value
