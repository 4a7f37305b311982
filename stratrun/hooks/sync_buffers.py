from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch import Tensor

    from stratrun.context import RunContext

_WAYS = ("mean", "first")


@HOOKS.register_module()
class SyncBuffersHook(Hook):
    """Gives all processes the same buffers, such as the running statistics of batch normalization.

    It does so at the end of each epoch, ahead of its checkpoint and its validation. Without it these have the
    buffers of the first process, whose statistics are of its own samples.

    Args:
        how: ``"mean"`` of all processes, of what is floating point; or ``"first"`` for those of the first.
        interval: Also after every so many iterations; for a run that validates by iterations, `val_interval`.
    """

    # Behind what changes buffers, ahead of averages of them and of saving.
    priority = 65
    goes_on: ClassVar[None] = None

    def __init__(self, how: Literal["mean", "first"] = "mean", *, interval: int | None = None) -> None:
        if how not in _WAYS:
            raise ConfigError(f"SyncBuffersHook: how={how!r} is unknown; {nearest(str(how), _WAYS)}")
        if interval is not None and (type(interval) is not int or interval < 1):
            raise ConfigError(
                f"SyncBuffersHook: interval={interval!r} must be a whole number of iterations, at least 1"
            )
        self.how = how
        self.interval = interval
        self._synced_at = -1
        # What the buffers would be if the epoch ended with the iteration of a checkpoint, and that iteration.
        self._ahead: tuple[int, list[Tensor]] = (-1, [])
        self._handed: dict[str, Any] = {}

    def after_train_iter(self, runner: RunContext) -> None:
        if self.interval is not None and runner.iter % self.interval == 0:
            self._unify(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        self._unify(runner)

    def before_val_epoch(self) -> None:
        # They are those of the first process from here on, or have been left to each.
        self._ahead = (-1, [])

    def before_save_checkpoint(self, runner: RunContext) -> None:
        """Keep what the buffers of all processes come to, of which a checkpoint has those of the first."""
        if self._synced_at != runner.iter:
            copies = [buffer.clone() for buffer in runner.model.buffers()]
            runner.engine.buffers.unify(copies, self.how)
            self._handed.update(at=runner.iter, buffers=copies)

    def state_dict(self) -> dict[str, Any]:
        self._handed = {"at": self._ahead[0], "buffers": self._ahead[1]}
        return self._handed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ahead = state["at"], state["buffers"]

    def _unify(self, runner: RunContext) -> None:
        buffers, (at, ahead) = list(runner.model.buffers()), self._ahead
        if at == runner.iter:
            for buffer, value in zip(buffers, ahead, strict=True):
                buffer.copy_(value)
        else:
            runner.engine.buffers.unify(buffers, self.how)
        self._synced_at, self._ahead = runner.iter, (-1, [])
