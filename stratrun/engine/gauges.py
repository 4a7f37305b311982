"""What hooks may ask of the hardware beside its memory."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.peaks import peak_of
from stratrun.engine.forward_times import ForwardTimes
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange
from stratrun.engine.updates import Updates
from stratrun.precision.base import Precision
from stratrun.spread import is_spread, local_part
from stratrun.strategies.base import Strategy

T = TypeVar("T")


class Gauges:
    """Figures of the work and of what does it; none of them waits for it."""

    placed: Placed
    """There once a model is placed."""
    ranks: Exchange
    """All of them, those that work on one batch together as well."""

    def __init__(
        self,
        strategy: Strategy,
        precision: Precision,
        accelerator: Accelerator,
        device: torch.device,
        updates: Updates,
    ) -> None:
        self._strategy = strategy
        self._precision = precision
        self._accelerator = accelerator
        self._updates = updates
        self._device = device

    def peak_flops(self) -> float | None:
        """What the hardware behind one batch can do in a second at most, in this number format."""
        one = peak_of(self._device, self._precision.name)
        return None if one is None else one * self._strategy.ranks_per_batch

    def of_all(self, figures: T) -> list[T]:
        """What every process has given, in their order. All call it at the same point."""
        return self.ranks.gather(figures)

    def time_forward(self) -> ForwardTimes | None:
        """Begin to time forward passes; None where those of several processes wait for each other."""
        return None if self._strategy.collective_forward else ForwardTimes(self.placed.bare, self._device)

    def see_update(self, witness: Callable[[], None]) -> None:
        """Call `witness` once, when gradients are as the next update takes them: exchanged and clipped.

        A captured step (``compile=dict(graphs=True)``) calls none.
        """
        self._updates.witness = witness

    @torch.no_grad()
    def squares(
        self, tensors: Mapping[str, Tensor | None], *, parts_of: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The sum of squares of each whole tensor, of which ranks may hold parts; 0 for None.

        All call it at the same point with the same names. It waits for the device.

        Args:
            parts_of: What `tensors` are this rank's parts of, where they do not say themselves.
        """
        held = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.numel()}
        sums = torch.zeros(len(tensors), dtype=torch.float64)
        if held:
            norms = torch.stack(torch._foreach_norm([local_part(one).float() for one in held.values()]))
            found = dict(zip(held, norms.cpu().double().square().tolist(), strict=True))
            copies = {name: self._copies((parts_of or held)[name]) for name in held}
            sums = torch.tensor(
                [found.get(name, 0.0) / copies.get(name, 1) for name in tensors], dtype=torch.float64
            )
        total = torch.stack(self.ranks.gather(sums)).sum(0)
        return dict(zip(tensors, total.tolist(), strict=True))

    def utilization(self) -> dict[str, float]:
        """How busy, hot and hungry the device is, by name; empty where it does not tell."""
        return self._accelerator.meter.utilization(self._device)

    def free_cached(self) -> None:
        """Give back to the system what memory of the device is kept in reserve. It waits for the device."""
        self._accelerator.meter.free_cached()

    def _copies(self, tensor: Tensor) -> int:
        """How many ranks hold each element."""
        if not is_spread(tensor):
            return self.ranks.world_size
        sharded = 1
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            sharded *= 1 if placement.is_replicate() else size
        return self.ranks.world_size // sharded
