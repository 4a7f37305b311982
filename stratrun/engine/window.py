"""The accumulation window: micro-batches whose gradients make one update."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import ModelError
from stratrun.spread import local_part


class Window:
    """What the gradients at hand are made of.

    Without weights each micro-batch counts as one: its loss is divided by the window's length.
    With weights (samples or tokens behind each loss) losses are summed by weight, and the
    gradients divided by the whole weight when the window closes.
    """

    def __init__(self) -> None:
        self.batches: int = 0
        self._planned = 1
        self._weight: Tensor | None = None

    def add(self, outputs: dict[str, Any], divisor: int, scale: float) -> Tensor:
        """The loss to run backward from.

        Args:
            divisor: Length of the window as far as it is known.
            scale: `BatchInfo.scale` of the batch.

        Raises:
            ModelError: some steps of the window give a weight and some do not.
        """
        weight = outputs.get("weight")
        if self.batches and (weight is None) is not (self._weight is None):
            raise ModelError(
                "a training step returned a 'weight' for one batch of an accumulation window and none for "
                "another; return it always or never"
            )
        self.batches += 1
        self._planned = divisor
        loss: Tensor = outputs["loss"]
        if weight is not None:
            return self._add_weighted(loss, weight, scale)
        if divisor != 1:
            loss = loss / divisor
        return loss if scale == 1.0 else loss * scale

    def _add_weighted(self, loss: Tensor, weight: Tensor | float, scale: float) -> Tensor:
        dtype = torch.promote_types(loss.dtype, torch.float32)
        amount = torch.as_tensor(weight, dtype=dtype, device=loss.device).detach()
        if scale == 0.0:
            amount = torch.zeros_like(amount)
        self._weight = amount if self._weight is None else self._weight + amount
        return loss * amount

    def grown(self, divisor: int) -> float:
        """What gradients at hand must be multiplied by when the window turns out to be of another length.

        That happens where a run was broken off in it, and goes on with batches of another size.
        """
        if not self.batches or self._weight is not None:
            return 1.0
        return self._planned / divisor

    @property
    def weight(self) -> Tensor | None:
        """Weight of this process's losses so far; None when the steps give none."""
        return self._weight

    def short_by(self) -> float:
        """What gradients of unweighted losses must be multiplied by, where the data ended early."""
        return 1.0 if self._weight is not None else self._planned / self.batches

    def clear(self) -> None:
        self.batches, self._planned, self._weight = 0, 1, None

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "planned": self._planned, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` returned, the weight to where the gradients are."""
        weight = state["weight"]
        self.batches, self._planned = state["batches"], state["planned"]
        self._weight = None if weight is None else weight.to(device)


def shared_out(windows: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, Any]:
    """What each of `ranks` goes on with, given `Updates.open_window` of those that were there.

    Without weights what ranks have counts by its mean over them, which stays as it is when each has just
    that. With weights it counts by its sum, beside which more ranks will each put less.
    """
    held = [window for window in windows if window]
    if not held:
        return {}
    weighted = held[0]["weight"] is not None
    divisor = ranks if weighted else len(windows)
    parts = {name: [w["gradients"].get(name) for w in held] for w in held for name in w["gradients"]}
    gradients = {name: _shared(part, divisor) for name, part in parts.items()}
    weight = _shared([w["weight"] for w in held], divisor) if weighted else None
    return {**held[0], "weight": weight, "gradients": gradients}


def _shared(values: Sequence[Tensor | None], divisor: int) -> Tensor:
    """A share of the sum, which is taken in 32 bits at least. None, of a rank without a gradient, is zero."""
    known = [value for value in values if value is not None]
    dtype = torch.promote_types(known[0].dtype, torch.float32)
    total = known[0].to(dtype, copy=True)
    for value in known[1:]:
        total += value
    return (total / divisor).to(known[0].dtype)


def multiply(gradients: Sequence[Tensor], factor: Tensor | float) -> None:
    """Scale gradients in place, without waiting for the factor."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(local_part(gradient))
    for device, some in by_device.items():
        torch._foreach_mul_(some, factor.to(device) if isinstance(factor, Tensor) else factor)


def clamp(gradients: Sequence[Tensor], limit: float) -> None:
    """Bring each value between the limit and its negative, in place."""
    if gradients:
        parts = [local_part(gradient) for gradient in gradients]
        torch._foreach_clamp_min_(parts, -limit)
        torch._foreach_clamp_max_(parts, limit)
