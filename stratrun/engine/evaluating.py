"""Steps of evaluation."""

from collections.abc import Callable
from typing import Any

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.transfer import move_batch
from stratrun.data import InStep
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange
from stratrun.precision.base import Precision
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.state import BatchInfo
from stratrun.strategies.base import Strategy


class Evaluating:
    """Steps without gradients: as many on every rank, where each waits for the others."""

    def __init__(
        self,
        strategy: Strategy,
        precision: Precision,
        data: Exchange,
        accelerator: Accelerator,
        device: torch.device,
        *,
        batch: BatchInfo,
        move: Callable[[Any], Any],
    ) -> None:
        together = strategy.collective_forward and data.world_size > 1
        self.in_step: InStep | None = InStep(data, self._repeat, _to_host) if together else None
        self.placed: Placed
        self._strategy = strategy
        self._precision = precision
        self._is_plain = type(precision).forward_context is Precision.forward_context
        self._accelerator = accelerator
        self._device = device
        self._batch = batch
        self._move = move

    def begin(self) -> None:
        """Bring the model into evaluation mode, the same on every rank."""
        self.settle()
        self._before = host_rng_state(), self._accelerator.rng_state(self._device)
        self.placed.to_evaluation()
        self._strategy.sync_buffers(self.placed.bare)

    def undo(self) -> None:
        """Give back what was drawn at random since `begin`, as all of it will be done once more."""
        host, on_device = self._before
        set_host_rng_state(host)
        self._accelerator.set_rng_state(self._device, on_device)

    def settle(self) -> None:
        """End a pass over evaluation data that may have been broken off. See `InStep.settle`."""
        if self.in_step is not None:
            self.in_step.settle()

    def step(self, batch: Any, mode: str, *, asked: bool = True) -> Any:
        """Call the model; `asked` by a loop of this rank, which other ranks are to hear."""
        if asked and self.in_step is not None:
            self.in_step.announce(batch, mode)
        placed = self.placed
        if placed.model.training:
            placed.to_evaluation()
        # The bare module: a wrapped one may exchange buffers, which hangs on uneven batches.
        if torch.is_grad_enabled():
            with torch.no_grad(), self._precision.forward_context():
                return placed.evaluated(batch, mode)
        if self._is_plain:
            return placed.evaluated(batch, mode)
        with self._precision.forward_context():
            return placed.evaluated(batch, mode)

    def _repeat(self, batch: Any, mode: str) -> None:
        """A step that no loop has asked for, and no hook or metric gets to see."""
        # What it draws must not be missing where the run goes on.
        host, on_device = host_rng_state(), self._accelerator.rng_state(self._device)
        with self._batch.kept():
            self._batch.size, self._batch.positions, self._batch.total = 0, (), 0
            self.step(self._move(batch), mode, asked=False)
        set_host_rng_state(host)
        self._accelerator.set_rng_state(self._device, on_device)


def _to_host(batch: Any) -> Any:
    return move_batch(batch, torch.device("cpu"))
