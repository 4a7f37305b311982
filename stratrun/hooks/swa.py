from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.averaging import AveragingHook
from stratrun.hooks.checkpoint import is_last
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratrun.context import RunContext

_WHEN = ("end", "epoch")


@HOOKS.register_module()
class SWAHook(AveragingHook):
    """Averages the weights of the end of training, each alike, and evaluates with the average.

    Stochastic weight averaging: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018. Validation, test and prediction see the averages from `begin` on; training and the
    model in a checkpoint are as without. The running statistics of batch normalization, which averages of
    weights need of their own, are computed by a pass over the training data, in the mode of training and
    without gradients: they are means over the batches of all processes.

    Args:
        begin: The epoch after which weights are taken for the first time.
        interval: Epochs between two times.
        by_epoch: Whether both count epochs; else updates.
        update_bn: When statistics are computed: at the ``"end"`` of training, ahead of its last validation;
            after each ``"epoch"`` from `begin` on that has moved the averages; or None for never. While there
            are none, evaluations have the model's own.
        bn_batches: How many batches of each process they are of; None for all of an epoch.
    """

    def __init__(
        self,
        begin: int,
        *,
        interval: int = 1,
        by_epoch: bool = True,
        update_bn: Literal["end", "epoch"] | None = "end",
        bn_batches: int | None = None,
    ) -> None:
        unit = "epochs" if by_epoch else "updates"
        for name, count in (("begin", begin), ("interval", interval)):
            if type(count) is not int or count < 1:
                raise ConfigError(f"SWAHook: {name}={count!r} must be a whole number of {unit}, at least 1")
        if update_bn is not None and update_bn not in _WHEN:
            raise ConfigError(
                f"SWAHook: update_bn={update_bn!r} is unknown; give None, or {nearest(str(update_bn), _WHEN)}"
            )
        if bn_batches is not None and (type(bn_batches) is not int or bn_batches < 1):
            raise ConfigError(
                f"SWAHook: bn_batches={bn_batches!r} must be a whole number, at least 1, or None"
            )
        super().__init__()
        self.begin: int = begin
        self.interval = interval
        self.by_epoch = by_epoch
        self.update_bn = update_bn
        self.bn_batches = bn_batches
        # Whether the averages have statistics of their own, and whether a pass for them was made.
        self._has_statistics = False
        self._fresh = False

    def before_train(self, runner: RunContext) -> None:
        ends = runner.max_epochs if self.by_epoch else runner.max_iters
        if ends is not None and self.begin > ends and runner.trial:
            self.begin = ends
        elif ends is not None and self.begin > ends:
            what = f"max_epochs={ends}" if self.by_epoch else f"{ends} iterations"
            raise ConfigError(
                f"SWAHook: begin={self.begin} is after the end of training ({what}); begin earlier, such as "
                "at three quarters of it"
            )
        super().before_train(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        super().after_train_epoch(runner)
        if self.update_bn == "epoch" or (self.update_bn is not None and is_last(runner)):
            self._renew(runner)

    def before_val_epoch(self, runner: RunContext) -> None:
        # The last one of training by iterations, behind which no batch of a pass is waited for.
        if runner.training and self.update_bn is not None and is_last(runner):
            self._renew(runner)
        super().before_val_epoch(runner)

    def after_train(self, runner: RunContext) -> None:
        # One that ends for a signal is gone on with.
        if self.update_bn is not None and not runner.state.urgent:
            self._renew(runner)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "statistics": self._has_statistics, "fresh": self._fresh}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._has_statistics, self._fresh = state["statistics"], state["fresh"]

    def _mark(self, runner: RunContext) -> int | None:
        count = runner.epoch if self.by_epoch else runner.step
        return count if count >= self.begin and (count - self.begin) % self.interval == 0 else None

    def _weight(self) -> float:
        return 1 / (self._updates + 1)

    def _moving(self) -> None:
        # What was computed for other weights is nothing to those that come.
        if self._has_statistics and self._model is not None:
            for name in _statistics(self._model):
                del self._averages[name], self._live[name]
        self._fresh = self._has_statistics = False

    def _averaged(self, model: nn.Module) -> dict[str, Tensor]:
        found = super()._averaged(model)
        return found | _statistics(model) if self._has_statistics else found

    @torch.no_grad()
    def _renew(self, runner: RunContext) -> None:
        """Have statistics for the averages, unless they have some."""
        feed = runner.train_dataloader
        if self._fresh or not (self._averages or self._loaded) or feed is None:
            return
        self._show(runner)
        found, position = _statistics(runner.model), feed.state_dict()
        self._live |= found
        self._plain |= {name: buffer.clone() for name, buffer in found.items()}
        try:
            feed.epoch_done()
            if runner.engine.buffers.renew_statistics(islice(feed, self.bn_batches)):
                self._averages |= {name: buffer.clone() for name, buffer in found.items()}
                self._has_statistics = True
            self._fresh = True
        finally:
            self._restore()
            self._live = self._averaged(runner.model)
            feed.load_state_dict(position)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of batch normalization, by their names in the model."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in model.named_modules()
        if isinstance(module, kind) and module.running_mean is not None
        for name, buffer in module.named_buffers(recurse=False)
    }
