"""The one object through which loops and hooks reach model, device and ranks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.transfer import move_batch
from stratrun.engine import building, gathering
from stratrun.engine.buffers import Buffers
from stratrun.engine.clipping import Clipping
from stratrun.engine.contract import detached
from stratrun.engine.evaluating import Evaluating
from stratrun.engine.finite import Guard
from stratrun.engine.first_updates import FirstUpdates
from stratrun.engine.gauges import Gauges
from stratrun.engine.loss_limit import LossLimit
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange, Saved
from stratrun.engine.splitting import Splitting
from stratrun.engine.updates import Updates
from stratrun.precision.base import Precision
from stratrun.state import BatchInfo, TrainState
from stratrun.strategies.base import Strategy
from stratrun.strategies.optimizer_shards import built

T = TypeVar("T")
_NOTHING = nullcontext()


class Engine:
    """Verbs of training and evaluation. The parts behind them stay private.

    `train_step`, `val_step`, `test_step` and `predict_step` are whole steps. A loop with a
    recipe of its own has `forward`, `update`, or `backward` and `step`; each iteration of it ends
    with `finish_iter`.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        strategy: Strategy,
        precision: Precision,
        data: Exchange,
        device: torch.device,
        state: TrainState,
        clipping: Clipping | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model: nn.Module
        self.batch: BatchInfo = BatchInfo()
        self.state = state
        self.watches: list[Callable[[int], None]] = []
        """Called after each iteration with its number; what one of them raises ends the run."""
        self.settings: dict[str, Any] = {"precision": precision.name, "strategy": strategy.name}
        """What training was set up with, as plain values; kept for whoever goes on with the run."""
        self._accelerator = accelerator
        self._strategy = strategy
        self._precision = precision
        self._data = data
        self._device = device
        dtype = precision.param_dtype
        self.move: partial[Any] = partial(
            move_batch,
            device=device,
            dtype=None if dtype is torch.float32 else dtype,
            non_blocking=accelerator.pin_memory,
        )
        """A batch on the device, floating point tensors in the dtype of the parameters."""
        self.guard = guard
        if guard is not None:
            guard.batch = self.batch
        self.limit_loss: Callable[[float], None] = (LossLimit() if guard is None else guard.limit).set
        """Deal with an update for a loss above this as `non_finite` says. All ranks give the same limit."""
        self._updates = Updates(strategy, precision, clipping, state, guard)
        self.evaluating: Evaluating = Evaluating(
            strategy, precision, data, accelerator, device, batch=self.batch, move=self.move
        )
        self.gauges: Gauges = Gauges(strategy, precision, accelerator, device, self._updates)
        self.buffers: Buffers = Buffers(precision, accelerator, device, data=data, batch=self.batch)
        self.splitting: Splitting = Splitting(self)
        self._placed: Placed
        self._first_updates: FirstUpdates
        self.saved: Saved
        """What a checkpoint keeps; there once a model is placed."""

    def place(
        self,
        build: Callable[[], nn.Module],
        loss: Callable[[], Callable[..., Any] | None],
        transforms: Sequence[Callable[[nn.Module], None]] = (),
    ) -> None:
        """Bring a model to its device and number format. Enough for evaluation.

        Args:
            build: Builds it; `loss`, called next, its loss.
            transforms: Called on the model first; they may change how parts of it are computed.
        """
        parts: dict[str, Any] = {"strategy": self._strategy, "precision": self._precision}
        parts |= {"accelerator": self._accelerator, "device": self._device, "data": self._data}
        self._placed = building.placed(build, loss, transforms, **parts)
        self.model = self._placed.model
        self.evaluating.placed = self.gauges.placed = self.buffers.placed = self._placed
        self.saved = Saved(self._placed, self._updates, **parts)

    def prepare_training(self, build: Callable[[nn.Module], dict[str, Optimizer]], several: bool) -> None:
        """Make the model ready for training, then `build` the optimizers (or `several`) from that."""
        self._placed.wrap(partial_backward=several)
        if self.guard is not None:
            self.guard.watch(self._placed.bare)
        self._updates.optimizers = built(build, self.state_module, self._strategy.optimizer_shards)
        tells = self.gauges.ranks.rank == 0 and not self._strategy.expects_unused
        self._first_updates = FirstUpdates(self._updates, self.state_module, tells=tells)
        self._first_updates.begin()

    def start_epoch(self) -> None:
        """Take note of parameters that were frozen or thawed. Call it before the first step of an epoch."""
        if self._placed.wrap_again_if_thawed():
            self._first_updates.begin()

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        return self._updates.optimizers

    # -- whole steps

    def train_step(self, batch: Any, *, update: bool = True, divisor: int = 1) -> dict[str, Any]:
        """Forward, backward and, with `update`, one update by every optimizer.

        Args:
            update: Whether the accumulation window ends with this batch.
            divisor: How many batches the window has.

        Returns:
            What the model's step returned, `loss` being the undivided loss, and `grad_norm` where
            gradients were clipped by norm and the update was not skipped.
        """
        if not self.model.training:
            self._placed.to_training()
        with _NOTHING if update else self._strategy.no_sync(self._placed.wrapped):
            with self._precision.forward_context():
                outputs = self._placed.wrapped(batch, "train", True)
            self._updates.backward(outputs, divisor, self.batch.scale)
        # Whoever keeps an output must not keep the graph behind it.
        outputs = {name: detached(value) for name, value in outputs.items()}
        if update:
            norm = self._updates.step()
            if norm is not None:
                outputs["grad_norm"] = norm
        return outputs

    def val_step(self, batch: Any) -> Any:
        return self.evaluating.step(batch, "val")

    def test_step(self, batch: Any) -> Any:
        return self.evaluating.step(batch, "test")

    def predict_step(self, batch: Any) -> Any:
        return self.evaluating.step(batch, "predict")

    # -- parts of steps, for loops with a recipe of their own

    def forward(self, batch: Any, mode: str) -> Any:
        """Call the model's method ``<mode>_step``, or its ``forward(mode=)``, for training."""
        if not self.model.training:
            self._placed.to_training()
        with self._precision.forward_context():
            return self._placed.wrapped(batch, mode)

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients. The mean over processes is taken, weighted by their samples."""
        self._updates.backward_alone(loss, self.batch.scale)

    def step(self, optimizer: str | None = None) -> Tensor | None:
        """Clip and update by one optimizer or all; returns the norm of the gradients from before."""
        return self._updates.step(optimizer)

    def update(self, loss: Tensor, optimizer: str | None = None) -> Tensor | None:
        """One update by one optimizer, or all, for this loss alone: gradients of others are dropped first."""
        return self._updates.update(loss, self.batch.scale, optimizer)

    def close_window(self) -> None:
        """Update with what an unfinished accumulation window holds, the data having ended in it."""
        self._updates.close_window()

    def finish_iter(self) -> None:
        """Count the iteration just done. Call it after the work and before the ``after_`` point."""
        self.state.iter += 1
        self.state.samples += self.batch.total or 0
        self._updates.count()
        if self.batch.finish is not None:
            self.batch.finish()
        for watch in self.watches:
            watch(self.state.iter)

    # -- what hooks may ask

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average numbers over all processes, in one exchange."""
        self.evaluating.settle()
        return gathering.mean(self._data, values)

    def collect(self, items: list[tuple[int, T]]) -> list[T]:
        """Merge what all processes hold into one list, in order of the first of each pair."""
        self.evaluating.settle()
        return gathering.in_order(self._data, items)

    def memory(self) -> dict[str, float]:
        """Memory figures of this process's device, in MiB."""
        return self._accelerator.meter.memory(self._device)

    def start_training(self) -> None:
        """Bring the model into training mode."""
        self.evaluating.settle()
        self._placed.to_training()

    def start_evaluation(self) -> None:
        """Bring the model into evaluation mode, the same on every process."""
        self.evaluating.begin()

    # -- for the runner: feeding and saving

    @property
    def state_module(self) -> nn.Module:
        """What the names in a checkpoint are relative to: the model, unless the loss has state too."""
        return self._placed.named
