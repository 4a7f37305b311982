"""How far a run has come, and what the batch in hand is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

_SAVED = ("epoch", "iter", "step", "samples", "skipped", "validated")


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
    """Updates dropped because the scaled gradients overflowed."""
    validated: int = 0
    """Epoch or iteration (the unit of the train loop) of the last validation within training."""
    should_stop: bool = False
    """Set by a hook to end training after the iteration in hand."""

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name in _SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _SAVED:
            setattr(self, name, state[name])


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
