from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext

_LOG = logging.getLogger("stratrun.hooks")
_ACTIONS = ("warn", "skip", "rollback")
_SHOWN = 8

Losses = list[tuple[int, Any]]
"""Each behind the number of its iteration."""


class _Batch(NamedTuple):
    """Where a loss is from, for whoever reads of it."""

    iteration: int
    epoch: int
    positions: Any
    indices: Any


@HOOKS.register_module()
class SpikeHook(Hook):
    """Finds batches whose training loss is far above what it was of late, and may leave their updates out.

    A spike is a loss of one process that is more than `deviations` standard deviations above the mean. Both
    are exponentially weighted over the losses of all processes. With m for the mean, v for the variance and
    losses that differ by d_i from m, an iteration has ``v = (1 - a) * (v + a * mean(d_i ** 2))`` and then
    ``m = m + a * mean(d_i)``, where ``a = 2 / (window + 1)`` (Finch, "Incremental calculation of weighted
    mean and variance", 2009). A spike counts as the limit that it is above, so that a lasting rise
    is no spike for ever. Losses that are not finite are none of its business; see `non_finite`.

    Every `interval` iterations the losses since the last time are read, spikes are told and a new limit is
    made: the processes exchange once, and nothing is waited for in between.

    Args:
        deviations: How far above the mean a spike is, in standard deviations.
        window: How many iterations the mean looks back on, about.
        warmup: Iterations before the first limit.
        interval: Iterations between new limits.
        action: What follows: ``"warn"`` tells of it in the log, with the samples. ``"skip"`` leaves the
            update out and ``"rollback"`` goes back to earlier weights, as a run with
            ``non_finite="skip"`` or ``"rollback"``, which it needs, does where a loss is not finite.
    """

    # Ahead of saving, so that a resumed run has seen the same losses.
    priority = 65
    # Of data that goes on when weights go back.
    goes_on: ClassVar[None] = None

    def __init__(
        self,
        deviations: float = 6.0,
        *,
        window: int = 100,
        warmup: int = 100,
        interval: int = 20,
        action: Literal["warn", "skip", "rollback"] = "warn",
    ) -> None:
        number = isinstance(deviations, int | float) and not isinstance(deviations, bool)
        if not number or not isfinite(deviations) or deviations <= 0:
            raise ConfigError(f"SpikeHook: deviations={deviations!r} must be a number above 0, such as 6")
        for name, value in (("window", window), ("warmup", warmup), ("interval", interval)):
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"SpikeHook: {name}={value!r} must be a whole number of iterations, at least 1"
                )
        if action not in _ACTIONS:
            raise ConfigError(f"SpikeHook: action={action!r} is unknown; {nearest(str(action), _ACTIONS)}")
        self.deviations = deviations
        self.window = window
        self.warmup = warmup
        self.interval = interval
        self.action = action
        self.limit: float = inf
        """The loss above which a batch is a spike now; infinite before the first."""
        self.found: list[tuple[int, float]] = []
        """Spikes of this start of the run: the iteration and the loss."""
        self._mean = self._variance = 0.0
        self._seen = 0
        # Losses of all processes since the last limit, and those that only this one has.
        self._pending: Losses = []
        self._own: list[Any] = []
        self._batches: list[_Batch] = []
        self._handed: dict[str, Any] = {}

    def before_train(self, runner: RunContext) -> None:
        self._set_limit(runner)

    def after_train_iter(self, runner: RunContext, outputs: Any = None) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        batch = runner.engine.batch
        # A batch that only keeps the processes in step is of no sample.
        if loss is not None and batch.size != 0:
            self._own.append(loss)
            self._batches.append(_Batch(runner.iter, runner.epoch, batch.positions, batch.indices))
        if runner.iter % self.interval == 0:
            self._look(runner)

    def before_save_checkpoint(self, runner: RunContext, checkpoint: dict[str, Any]) -> None:
        """Have all losses so far in the checkpoint, those of other processes too."""
        self._handed["pending"] = self._shared(runner)

    def after_train(self, runner: RunContext) -> None:
        if self.action == "warn":
            self._tell(runner)
        self._pending, self._own, self._batches = self._shared(runner), [], []

    def state_dict(self) -> dict[str, Any]:
        self._handed = {
            "mean": self._mean,
            "variance": self._variance,
            "seen": self._seen,
            "limit": self.limit,
            "pending": [*self._pending, *self._unshared()],
        }
        return self._handed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean, self._variance, self._seen = state["mean"], state["variance"], state["seen"]
        self.limit = state["limit"]
        self._pending = [(int(at), loss) for at, loss in state["pending"]]
        self._own, self._batches = [], []

    def _look(self, runner: RunContext) -> None:
        """Take the losses since the last time, and make a new limit of them."""
        if self.action == "warn":
            self._tell(runner)
        pending = self._shared(runner)
        self._pending, self._own, self._batches = [], [], []
        by_iteration: dict[int, list[float]] = {}
        for iteration, loss in pending:
            by_iteration.setdefault(iteration, []).append(float(loss))
        for iteration in sorted(by_iteration):
            self._take(iteration, by_iteration[iteration])
        if self._seen >= self.warmup:
            self.limit = self._mean + self.deviations * sqrt(self._variance)
        self._set_limit(runner)

    def _take(self, iteration: int, losses: Sequence[float]) -> None:
        """Count the losses of one iteration, one of each process."""
        finite = [loss for loss in losses if isfinite(loss)]
        self.found += [(iteration, loss) for loss in finite if loss > self.limit]
        if not finite:
            return
        if not self._seen:
            self._mean = sum(finite) / len(finite)
        self._seen += 1
        weight = 2 / (self.window + 1)
        differences = [min(loss, self.limit) - self._mean for loss in finite]
        squares = sum(one * one for one in differences) / len(finite)
        self._variance = (1 - weight) * (self._variance + weight * squares)
        self._mean += weight * sum(differences) / len(finite)

    def _shared(self, runner: RunContext) -> Losses:
        """The losses of all processes since the last limit, on all of them."""
        self._read()
        everyone = runner.engine.gauges.of_all(self._unshared())
        found = [one for own in everyone for one in own]
        # In the order of iterations and, as the sort is stable, of processes.
        return sorted([*self._pending, *found], key=lambda one: one[0])

    def _unshared(self) -> Losses:
        return [(one.iteration, loss) for one, loss in zip(self._batches, self._own, strict=True)]

    def _read(self) -> list[float]:
        """This process's losses as numbers, by one transfer."""
        tensors = [one.detach().double().mean() for one in self._own if isinstance(one, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else ())
        self._own = [next(numbers) if isinstance(one, Tensor) else float(one) for one in self._own]
        return self._own

    def _tell(self, runner: RunContext) -> None:
        """Warn of the spikes of all processes."""
        mine = [
            (at, loss)
            for at, loss in zip(self._batches, self._read(), strict=True)
            if self.limit < loss < inf
        ]
        texts = [
            (one.iteration, f"loss {loss:.6g}{_samples(one)} in epoch {one.epoch}") for one, loss in mine
        ]
        everyone = runner.engine.gauges.of_all(texts)
        if runner.process != 0:
            return
        for number, found in enumerate(everyone):
            who = f" of process {number}" if len(everyone) > 1 else ""
            for iteration, text in found:
                _LOG.warning(
                    "a spike in iteration %d%s: %s is above %.6g, %g deviations over the mean of %.6g",
                    iteration,
                    who,
                    text,
                    self.limit,
                    self.deviations,
                    self._mean,
                )

    def _set_limit(self, runner: RunContext) -> None:
        if self.action != "warn":
            runner.engine.limit_loss(self.limit)


def _samples(batch: _Batch) -> str:
    positions = batch.positions
    if positions is None or not len(positions):
        return ""
    found = batch.indices(positions)
    numbers = positions if found is None else found
    shown = ", ".join(str(int(number)) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f" (samples {shown}{more} {'of the epoch' if found is None else 'of the data set'})"
