"""What a model holds beside its parameters: made the same on all ranks, and statistics computed anew."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stratrun.accelerators.base import Accelerator
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange
from stratrun.precision.base import Precision
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.spread import local_part
from stratrun.state import BatchInfo


class Buffers:
    """Verbs for buffers. All ranks call each at the same point."""

    placed: Placed
    """There once a model is placed."""

    def __init__(
        self,
        precision: Precision,
        accelerator: Accelerator,
        device: torch.device,
        *,
        data: Exchange,
        batch: BatchInfo,
    ) -> None:
        self._precision = precision
        self._accelerator = accelerator
        self._device = device
        self._data = data
        self._batch = batch

    @torch.no_grad()
    def unify(self, tensors: Sequence[Tensor], how: str) -> None:
        """Give tensors that every rank has whole the same values on all, in place. It waits for the device.

        Args:
            how: ``"mean"`` of all ranks' values, where they are floating point; ``"first"`` for those of the
                first rank. Others are always those of the first.
        """
        if self._data.world_size == 1:
            return
        means = [t for t in tensors if how == "mean" and t.is_floating_point()]
        others = [t for t in tensors if how != "mean" or not t.is_floating_point()]
        if means:
            packed = torch.cat([local_part(t).reshape(-1).cpu().double() for t in means])
            total = self._data.sum(packed) / self._data.world_size
            for tensor, part in zip(means, total.split([t.numel() for t in means]), strict=True):
                tensor.copy_(part.view(tensor.shape))
        if others:
            mine = [local_part(t).cpu() for t in others] if self._data.rank == 0 else []
            for tensor, value in zip(others, self._data.from_main(mine), strict=True):
                tensor.copy_(value)

    @torch.no_grad()
    def renew_statistics(self, batches: Iterable[Any]) -> bool:
        """Compute the running statistics of batch normalization anew, by a pass over training data.

        They become the means, over the batches of all ranks, of the statistics of each batch, as
        `torch.optim.swa_utils.update_bn` has them. The model computes its training step, without gradients;
        other buffers, random numbers and what is frozen in evaluation mode are as before. Returns whether
        there was anything to compute.
        """
        placed = self.placed
        was_training = placed.model.training
        placed.to_training()
        layers = [one for one in placed.model.modules() if _has_statistics(one) and one.training]
        if layers:
            with self._undisturbed(layers), self._batch.kept():
                for batch in batches:
                    self._step(layers, batch)
                self._bring_together(layers)
        if not was_training:
            placed.to_evaluation()
        return bool(layers)

    @contextmanager
    def _undisturbed(self, layers: Sequence[Any]) -> Iterator[None]:
        """Leave nothing changed but the statistics of `layers`."""
        host, on_device = host_rng_state(), self._accelerator.rng_state(self._device)
        own = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
        others = [buffer for buffer in self.placed.bare.buffers() if id(buffer) not in own]
        kept = [buffer.clone() for buffer in others]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # means that count each batch alike
        try:
            yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            for buffer, value in zip(others, kept, strict=True):
                buffer.copy_(value)
            set_host_rng_state(host)
            self._accelerator.set_rng_state(self._device, on_device)

    def _step(self, layers: Sequence[nn.Module], batch: Any) -> None:
        # A batch that only keeps ranks in step is of a sample that is counted elsewhere.
        counts = self._batch.size != 0
        before = [] if counts else [b.clone() for layer in layers for b in layer.buffers(recurse=False)]
        with self._precision.forward_context():
            self.placed.bare(batch, "train")
        if not counts:
            buffers = [b for layer in layers for b in layer.buffers(recurse=False)]
            torch._foreach_copy_(buffers, before)

    def _bring_together(self, layers: Sequence[Any]) -> None:
        """Means over all ranks, by the number of batches that each has seen."""
        if self._data.world_size == 1:
            return
        rows = []
        for layer in layers:
            count = layer.num_batches_tracked.cpu().double().reshape(1)
            sums = [s.cpu().double() * count for s in (layer.running_mean, layer.running_var)]
            rows += [count, *sums]
        total = self._data.sum(torch.cat(rows)).split([len(row) for row in rows])
        for layer, (count, means, variances) in zip(
            layers, zip(*[iter(total)] * 3, strict=True), strict=True
        ):
            layer.num_batches_tracked.copy_(count.reshape(()))
            layer.running_mean.copy_(means / count.clamp(min=1))
            layer.running_var.copy_(variances / count.clamp(min=1))


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
