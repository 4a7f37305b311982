"""Training steps at rising learning rates, of which no trace is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from math import inf, isfinite
from typing import Any

import torch

from stratrun.data import Feed, unmoved
from stratrun.engine.kept import Kept, unguarded
from stratrun.errors import ConfigError, nearest
from stratrun.hooks import MicroBatchHook
from stratrun.loggers.unread import Taken, Unread, number_of
from stratrun.loops import BaseLoop
from stratrun.optim import optimizer as optimizers
from stratrun.optim.scaling import Scaling
from stratrun.runner import resume
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form
from stratrun.runner.lr_curve import FoundLR
from stratrun.runner.range_test import RangeTest, check_loop, chosen
from stratrun.runner.start import Started, update_size

_READ = 8
"""Updates whose losses are read together."""
_PATIENCE = 1000
"""Batches in a row that may pass without an update."""


def run(
    runner: RunnerContext,
    started: Started,
    form: Form,
    loop: BaseLoop,
    test: RangeTest,
    rates: dict[str, Any],
) -> FoundLR:
    """Do it. Every rank comes to the same result, and has all as it was before, however it ends.

    Args:
        rates: Learning rates of the groups of each optimizer, as they were built with.
    """
    engine, feed = runner.engine, loop.dataloader
    check_loop(type(loop))
    if not isinstance(feed, Feed):
        raise ConfigError(f"find_lr(): {type(loop).__name__}.dataloader is no loader of the run")
    if engine._updates.is_open:
        raise ConfigError(
            "find_lr(): batches of an accumulation window wait for their update, as training was stopped in "
            "it; call it before train(), or when that has come to its end"
        )
    name = chosen(form, test)
    groups = _Groups(engine.optimizers[name], rates[name], _factor(form, name, started))
    steps = _Steps(runner, loop, feed, test.loss)
    kept, broken = Kept(engine), True
    try:
        with unmoved(feed), _apart(runner, loop):
            resume.load_learnt(runner, started.ranks, form)
            engine.start_training()
            found = _curve(test, groups, steps, started)
        broken = False
    finally:
        kept.put_back(broken=broken)
    return found


def _factor(form: Form, name: str, started: Started) -> float:
    """What `scale_lr` multiplies the rates by that the user writes."""
    spec = optimizers.specs(form.optimizer)[name]
    if not isinstance(spec, Mapping) or spec.get("scale_lr") is None:
        return 1.0
    size = update_size(form, started.data.world_size)
    return Scaling.parse(spec["scale_lr"], "optimizer").factor(size)


@contextmanager
def _apart(runner: RunnerContext, loop: Any) -> Iterator[None]:
    """Have steps be made without what watches, steers and ends a training."""
    engine, watches, length = runner.engine, runner.engine.watches, getattr(loop, "max_iters", None)
    splitting = [(hook, hook.state_dict()) for hook in runner.hooks if isinstance(hook, MicroBatchHook)]
    engine.watches = []
    if length is not None:
        loop.max_iters = 2**62
    try:
        for hook, _ in splitting:
            hook.before_train(runner)
        with engine.batch.kept(), unguarded(engine):
            yield
    finally:
        engine.watches = watches
        if length is not None:
            loop.max_iters = length
        for hook, state in splitting:
            hook.load_state_dict(state)


class _Groups:
    """Parameter groups whose rates move together."""

    def __init__(self, optimizer: torch.optim.Optimizer, rates: list[float | None], factor: float) -> None:
        """`rates` are those that groups were built with, which tell how they are to each other."""
        if any(rate is None for rate in rates):
            raise ConfigError(f"find_lr(): {type(optimizer).__name__} has no lr in its groups to move")
        known = [float(rate) for rate in rates if rate is not None]
        own = float(optimizer.defaults.get("lr") or 0.0)
        base = (own if own > 0 else max(known)) / factor
        self._parts = [(rate / base if base > 0 else 1.0) for rate in known]
        self._optimizer = optimizer

    def move(self, rate: float) -> None:
        for group, part in zip(self._optimizer.param_groups, self._parts, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * part)
            else:
                group["lr"] = rate * part


class _Steps:
    """One update after another, by the work of a loop on batches, from epoch to epoch."""

    def __init__(self, runner: RunnerContext, loop: BaseLoop, feed: Feed, loss: str) -> None:
        self._runner, self._loop, self._feed, self._loss = runner, loop, feed, loss
        self._unread = Unread()
        self._window: list[tuple[Taken, Taken]] = []

    def updates(self) -> Iterator[list[tuple[Taken, Taken]]]:
        """Losses and weights of the batches that each update is made of. They come when it is done."""
        runner, feed = self._runner, self._feed
        engine, state = runner.engine, runner.state
        while True:
            feed.set_epoch(state.epoch)
            engine.start_epoch()
            with closing(iter(feed)) as batches:  # type: ignore[type-var]
                for idx, batch in enumerate(batches, start=feed.batches_done):
                    before = self._made
                    outputs = self._loop.run_iter(idx, batch)
                    engine.finish_iter()
                    self._take(outputs, engine.batch.size)
                    if self._made != before:
                        yield self._taken()
            before = self._made
            engine.close_window()
            state.epoch += 1
            if self._made != before:
                yield self._taken()

    def read(self) -> list[float]:
        return self._unread.read()

    @property
    def _made(self) -> int:
        state = self._runner.state
        return state.step + state.skipped

    def _take(self, outputs: Any, size: Any) -> None:
        """Take note of the loss of a batch, weighted as training logs it."""
        values = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        if self._loss not in values:
            raise ConfigError(
                f"find_lr: loss={self._loss!r} is nothing that a training step returned; "
                f"{nearest(self._loss, [str(key) for key in values])}"
            )
        if size != 0:
            size = values.get("weight", 1.0 if size is None else size)
        self._window.append((self._unread.take(values[self._loss]), self._unread.take(size)))
        if len(self._window) > _PATIENCE:
            raise ConfigError(
                f"find_lr(): after {_PATIENCE} batches {type(self._loop).__name__} has made no update that "
                "the engine knows of; have it update by engine.step() or engine.update(), or by train_step"
            )

    def _taken(self) -> list[tuple[Taken, Taken]]:
        window, self._window = self._window, []
        return window


def _curve(test: RangeTest, groups: _Groups, steps: _Steps, started: Started) -> FoundLR:
    """Make the updates, and read their losses a few at a time, so that the device is seldom waited for."""
    rates, losses, waiting = test.rates(), _Losses(test), []
    groups.move(rates[0])
    with closing(steps.updates()) as updates:  # type: ignore[type-var]
        for done, window in enumerate(updates, start=1):
            waiting.append(window)
            if len(waiting) == _READ or done == test.iters:
                for loss in _means(waiting, steps.read(), started):
                    losses.add(loss)
                waiting = []
            if losses.ended or done == test.iters:
                break
            groups.move(rates[done])
    return losses.found(rates)


def _means(
    windows: list[list[tuple[Taken, Taken]]], numbers: list[float], started: Started
) -> list[float | None]:
    """The mean loss of each update, over its samples on all ranks; None of one that counts none."""
    sums: list[float] = []
    for window in windows:
        pairs = [(number_of(loss, numbers), number_of(weight, numbers)) for loss, weight in window]
        counted = [(loss, weight) for loss, weight in pairs if weight]
        sums += [sum(loss * weight for loss, weight in counted), sum(weight for _, weight in counted)]
    if started.data.world_size > 1:
        sums = started.data.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    totals = zip(sums[::2], sums[1::2], strict=True)
    return [total / weight if weight else None for total, weight in totals]


class _Losses:
    """The losses so far, and whether they are enough: the same on all ranks."""

    def __init__(self, test: RangeTest) -> None:
        self._test = test
        self._kept: list[tuple[int, float, float]] = []
        self._count = 0
        self._total = self._weight = 0.0
        self._best = inf
        self.ended = ""

    @property
    def _limit(self) -> float:
        if inf in (self._best, self._test.diverged):
            return inf
        # For losses above zero so many times the best; it works for those below, too.
        return self._best + (self._test.diverged - 1) * abs(self._best)

    def add(self, loss: float | None) -> None:
        """Take the next; what comes after the end is left out."""
        number, self._count = self._count, self._count + 1
        if self.ended or loss is None:
            return
        if not isfinite(loss):
            self.ended = f"the loss was not finite at {self._test.rates()[number]:.3g}"
            return
        self._kept.append((number, loss, self._limit))
        smoothing = self._test.smoothing
        self._total = smoothing * self._total + (1 - smoothing) * loss
        self._weight = smoothing * self._weight + (1 - smoothing)
        mean = self._total / self._weight
        if mean > self._limit:
            self.ended = (
                f"the running mean of the loss was {mean:.4g} at {self._test.rates()[number]:.3g}, above "
                f"{self._test.diverged:g} times its best of {self._best:.4g}"
            )
        self._best = min(self._best, mean)

    def found(self, rates: list[float]) -> FoundLR:
        return FoundLR.of(
            [rates[number] for number, _, _ in self._kept],
            [loss for _, loss, _ in self._kept],
            limits=[limit for _, _, limit in self._kept],
            smoothing=self._test.smoothing,
            ended=self.ended or f"all {self._test.iters} rates were tried",
        )
