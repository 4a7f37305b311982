"""What a loop or a hook may ask of the run it is part of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratrun.data import Feed
    from stratrun.engine import Engine
    from stratrun.evaluation import Evaluator
    from stratrun.loggers import RecordBuffer
    from stratrun.optim import Schedule
    from stratrun.state import TrainState


class RunContext(Protocol):
    """The run, seen from inside. `Runner` provides it; tests may fake it."""

    state: TrainState
    metrics: dict[str, float]
    """Results of the latest evaluation."""

    @property
    def engine(self) -> Engine: ...
    @property
    def records(self) -> RecordBuffer:
        """Values of training steps, kept as tensors until a log point."""
        ...

    @property
    def schedules(self) -> Sequence[Schedule]: ...
    @property
    def model(self) -> nn.Module:
        """The user's model itself, however it is wrapped for training."""
        ...

    @property
    def epoch(self) -> int: ...
    @property
    def iter(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def samples(self) -> int: ...

    @property
    def training(self) -> bool:
        """Whether the job is `train`, be it that an evaluation within it is under way."""
        ...

    @property
    def max_epochs(self) -> int | None: ...
    @property
    def max_iters(self) -> int | None:
        """Iterations of the whole training; None when the data's length is not known."""
        ...

    @property
    def train_dataloader(self) -> Feed | None: ...
    @property
    def has_validation(self) -> bool: ...
    @property
    def work_dir(self) -> str: ...

    def call_hooks(self, point: str, /, **details: Any) -> None:
        """Call `point` on every hook that has a method of that name; a loop may invent points."""
        ...

    def validate(self) -> dict[str, float]:
        """Run the validation loop now, and return its metrics."""
        ...

    def log(self, values: Mapping[str, Tensor | float], *, kind: str = "train") -> None:
        """Write values to all loggers, under the present counters."""
        ...

    def build_dataloader(self, spec: Any, *, train: bool = False, name: str = "dataloader") -> Feed: ...
    def build_evaluator(self, spec: Any) -> Evaluator | None: ...
    def save_checkpoint(self, *, keep_last: int | None = None, protect: Collection[int] = ()) -> str:
        """Save now, under the number of finished iterations, and return the URL.

        Afterwards this run's older checkpoints are removed, but for the newest `keep_last` (None
        keeps all) and those of the iterations `protect`.
        """
        ...
