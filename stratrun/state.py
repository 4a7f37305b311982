"""How far a run has come, and what the batch in hand is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

_SAVED = ("epoch", "iter", "step", "samples", "skipped", "validated", "validate_due")


@dataclass(slots=True)
class TrainState:
    """Counts of finished work. The engine and the loops advance it, everyone else reads it."""

    epoch: int = 0
    iter: int = 0
    """Training batches done by every rank (micro-batches, when gradients are accumulated)."""
    step: int = 0
    """Optimizer updates."""
    samples: int = 0
    """Training samples seen by all ranks together."""
    skipped: int = 0
    """Updates dropped because scaled gradients overflowed, or for what is not finite. See `non_finite`."""
    validated: int = 0
    """Epoch or iteration (the unit of the train loop) of the last validation within training."""
    stopping: bool = False
    """Whether all ranks have agreed to end the job after the iteration in hand."""
    stop_reason: str = ""
    stop_signal: int = 0
    """The signal that ends the job, and the process after it; 0 for none."""
    urgent: bool = False
    """Whether the end is asked for from outside, by a signal or the clock: nothing long is begun any more."""
    save_due: bool = False
    """Whether all ranks have agreed to save after the iteration in hand."""
    validate_due: bool = False
    """Whether they have agreed to validate after it."""
    validation_left: bool = False
    """Whether a validation was left out or broken off, as the job is to end; it is due when that goes on."""
    ask: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    """Brings a request to the other ranks; None where there are none."""

    @property
    def should_stop(self) -> bool:
        """Whether training ends after the iteration in hand. To set it is to ask for that.

        In one process it is so at once, and may be taken back. Of several, any one may ask; it is so when
        all have heard of it, on all after the same iteration.
        """
        return self.stopping

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        if self.ask is None:
            # What has come from outside is not for a hook to take back.
            self.stopping = bool(stop) or self.urgent
        elif stop:
            self.ask("stop")

    def agree(self, what: str, reason: str = "", *, urgent: bool = False) -> None:
        """Take note of what all ranks have agreed to do: to stop, to save or to validate."""
        if what == "stop":
            self.stopping, self.urgent = True, self.urgent or urgent
            self.stop_reason = self.stop_reason or reason
        elif what == "save":
            self.save_due = True
        else:
            self.validate_due = True

    def begin_job(self) -> None:
        """Forget what ended the job before."""
        self.stopping = self.urgent = self.save_due = self.validation_left = False
        self.stop_reason, self.stop_signal = "", 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _SAVED:
            # What earlier versions did not have is as it is in the beginning.
            setattr(self, name, state.get(name, getattr(self, name)))


@dataclass(slots=True)
class BatchInfo:
    """The batch in hand: written by the loader that hands it out, read by engine and evaluator.

    A loader that knows nothing of its batches leaves the defaults.
    """

    size: int | None = None
    """Samples of it in this process. Zero for a batch that only keeps the ranks in step: its
    content is a repeated sample, its gradient counts nothing."""
    scale: float = 1.0
    """What the loss is multiplied by, so that the mean over ranks is the mean over samples:
    1 unless ranks hold different numbers of samples."""
    positions: Sequence[int] | None = None
    """Place of each of its samples in the global order of the epoch."""
    total: int | None = None
    """Samples of it over all ranks."""
    indices: Callable[[Sequence[int]], Sequence[int] | None] = lambda positions: None
    """Which samples of the data set are at such positions of the epoch; None where that is not known."""
    loader: str | None = None
    """The name of the loader that it is of, where there are several, and it is not of all of them."""
    finish: Callable[[], None] | None = None
    """Tells the loader that the work on the batch is done, so that its position counts it."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Tell of this batch again after the block, in which other data is read."""
        held = replace(self)
        try:
            yield
        finally:
            for field in fields(self):
                setattr(self, field.name, getattr(held, field.name))
