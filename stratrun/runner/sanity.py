"""A short validation before training: ``dev_cfg=dict(sanity_batches=...)``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

import torch

from stratrun.data import limited_to
from stratrun.hooks import Hook
from stratrun.hooks.base import PRIORITIES
from stratrun.spread import local_part

if TYPE_CHECKING:
    from stratrun.runner.context import RunnerContext


class SanityHook(Hook):
    """Validates a few batches when training begins for the first time, so that what is wrong there shows.

    What it finds goes nowhere: it is a validation that is broken off, as hooks see it. They have neither
    its results nor the points that come with these, and nothing is logged or written. Random numbers and
    buffers are put back, so that training is what it is without it.
    """

    # Behind all that makes ready for training.
    priority: ClassVar[int] = PRIORITIES["LOWEST"]

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def before_train(self, runner: RunnerContext) -> None:
        if runner.iter or runner.state.urgent:
            return
        try:
            results = _rehearse(runner, self._batches)
        except Exception as error:
            error.add_note(f"in the validation before training (dev_cfg: sanity_batches={self._batches})")
            raise
        told = f"gave {', '.join(results)}, thrown away" if results else "came through"
        runner.loggers.say(f"stratrun: sanity_batches={self._batches}: validation {told}")


def _rehearse(runner: RunnerContext, batches: int) -> list[str]:
    """Validate so many batches, with all as it was afterwards. Returns the names of the results."""
    before = runner.metrics
    with torch.no_grad():
        kept = [(one, one.clone()) for one in map(local_part, runner.engine.state_module.buffers())]
    runner.metrics = {}
    with ExitStack() as limits:
        for feed in runner.feeds_of("val"):
            limits.enter_context(limited_to(batches, feed))
        with runner.rehearsal():
            runner.validate()
    names = list(runner.metrics)
    runner.metrics = before
    runner.engine.evaluating.undo()
    with torch.no_grad():
        for buffer, copy in kept:
            buffer.copy_(copy)
    return names
