"""Gives an object of a user's class the methods that a run calls, and answers what it asks of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stratrun.errors import IncompatibleError
from stratrun_ext.migrate.lightning import methods
from stratrun_ext.migrate.lightning.link import Link
from stratrun_ext.migrate.lightning.view import TrainerView

_LINK = "_stratrun_link"


class Bridge(nn.Module):
    """Comes before the user's class in a class made for one object; see `attach`."""

    @property
    def _link(self) -> Link:
        link: Link = self.__dict__[_LINK]
        return link

    def train_step(self, batch: Any) -> dict[str, Any]:
        return self._link.train_step(batch)

    def val_step(self, batch: Any) -> dict[str, Any]:
        return self._link.eval_step("validation_step", batch)

    def test_step(self, batch: Any, *place: Any) -> Any:
        # With the place of the batch it is the user who calls.
        return (
            self._link.own("test_step")(batch, *place) if place else self._link.eval_step("test_step", batch)
        )

    def predict_step(self, batch: Any, *place: Any) -> Any:
        return self._link.own("predict_step")(batch, *place) if place else self._link.predict_step(batch)

    def log(self, name: str, value: Any, **how: Any) -> None:
        self._link.log(name, value, **how)

    def log_dict(self, values: Mapping[str, Any], **how: Any) -> None:
        for name, value in values.items():
            self._link.log(name, value, **how)

    def print(self, *args: Any, **kwargs: Any) -> None:
        runner = self._link.runner
        if runner is not None:
            runner.loggers.say(kwargs.get("sep", " ").join(map(str, args)))

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self._link.optimizer

    def lr_schedulers(self) -> Any:
        found = [one.scheduler for one in self._link.schedulers]
        return found[0] if len(found) == 1 else found or None

    def manual_backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        raise IncompatibleError(
            "manual_backward(loss): optimization by hand is not taken over; write a loop of your own, with "
            "runner.engine.update(loss) (docs/custom_loop.md)"
        )

    def all_gather(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        raise IncompatibleError(
            "all_gather(data): a step sees the samples of its own process; self.log() gives means over all, "
            "and what needs all samples is a metric (docs/metrics.md)"
        )

    @property
    def trainer(self) -> TrainerView:
        return self._link.view

    @property
    def current_epoch(self) -> int:
        return self._link.epoch

    @property
    def global_step(self) -> int:
        return 0 if self._link.runner is None else self._link.runner.step

    @property
    def global_rank(self) -> int:
        return 0 if self._link.runner is None else self._link.runner.process

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def attach(module: Any) -> Link:
    """Make an object of the user's class ready for a run; it stays the same object, with the same names.

    Raises:
        ModelError: it relies on what is not taken over.
    """
    if isinstance(module, Bridge):
        return module._link
    methods.check(module)
    kind = type(module)
    bridged = type(kind.__name__, (Bridge, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    module.__class__ = bridged
    link = Link(module, lambda name: getattr(super(Bridge, module), name))
    # Not by setattr, as it is no part of the model.
    module.__dict__[_LINK] = link
    return link
