from __future__ import annotations

from stratrun.loops import EpochBasedTrainLoop


class LightningTrainLoop(EpochBasedTrainLoop):
    """Train by epochs, and call `after_epoch_and_val` after each: where Lightning ends an epoch."""

    def validate_if_due(self, count: int, *, last: bool) -> None:
        super().validate_if_due(count, last=last)
        # A validation that was left out is due when the run goes on, and the end of its epoch too.
        if not self.runner.state.validation_left:
            self.runner.call_hooks("after_epoch_and_val")
