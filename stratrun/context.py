"""What a loop or a hook may ask of the run it is part of."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stratrun.data import Feed
    from stratrun.evaluation import Evaluator
    from stratrun.hooks.dispatch import HookList
    from stratrun.loggers import LoggerGroup, RecordBuffer
    from stratrun.optim import Schedule
    from stratrun.state import BatchInfo, TrainState


class Timed(Protocol):
    """Something that is timed until `remove`, without waiting for it."""

    def take(self) -> list[float]:
        """Seconds of each time that it was done since the last call."""
        ...

    def remove(self) -> None: ...


class Gauges(Protocol):
    """Figures of the work and of what does it; none of them waits for it."""

    def peak_flops(self) -> float | None:
        """Operations in a second that the hardware behind one batch can do at most; None if unknown."""
        ...

    def of_all(self, figures: Any) -> list[Any]:
        """What every process has given, in their order. All call it at the same point."""
        ...

    def see_update(self, witness: Callable[[], None]) -> None:
        """Call `witness` once, when gradients are as the next update takes them."""
        ...

    def squares(
        self, tensors: Mapping[str, Tensor | None], *, parts_of: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The sum of squares of each whole tensor; 0 for None. All call it at the same point.

        It waits for the device.

        Args:
            parts_of: What `tensors` are this process's parts of, where they do not say themselves.
        """
        ...

    def utilization(self) -> dict[str, float]:
        """How busy, hot and hungry the device is, by name; empty where it does not tell."""
        ...

    def free_cached(self) -> None:
        """Give back to the system what memory of the device is kept in reserve."""
        ...

    def time_forward(self) -> Timed | None:
        """Begin to time forward passes; None where those of several processes wait for each other."""
        ...


class Buffers(Protocol):
    """What a model holds beside its parameters. All processes call each verb at the same point."""

    def unify(self, tensors: Sequence[Tensor], how: str) -> None:
        """Give tensors the same values in all processes, in place: their ``"mean"``, or the ``"first"``'s.

        It waits for the device. What is no floating point number is always the first's.
        """
        ...

    def renew_statistics(self, batches: Iterable[Any]) -> bool:
        """Compute the statistics of batch normalization anew, by a pass over training data of all processes.

        Nothing else of the run is changed by that. Returns whether there was anything to compute.
        """
        ...


class Verbs(Protocol):
    """What loops and hooks ask of the `Engine`: steps and figures, none of the parts behind them."""

    batch: BatchInfo

    @property
    def gauges(self) -> Gauges: ...
    @property
    def buffers(self) -> Buffers: ...
    @property
    def splitting(self) -> Splitting: ...
    @property
    def optimizers(self) -> dict[str, Optimizer]: ...
    def train_step(self, batch: Any, *, update: bool = True, divisor: int = 1) -> dict[str, Any]: ...
    def val_step(self, batch: Any) -> Any: ...
    def test_step(self, batch: Any) -> Any: ...
    def predict_step(self, batch: Any) -> Any: ...
    def forward(self, batch: Any, mode: str) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, optimizer: str | None = None) -> Tensor | None: ...
    def update(self, loss: Tensor, optimizer: str | None = None) -> Tensor | None: ...
    def limit_loss(self, limit: float) -> None: ...
    def close_window(self) -> None: ...
    def finish_iter(self) -> None: ...
    def start_epoch(self) -> None: ...
    def mean(self, values: Mapping[str, float]) -> dict[str, float]: ...
    def collect(self, items: list[tuple[int, Any]]) -> list[Any]: ...
    def memory(self) -> dict[str, float]: ...


class Splitting(Protocol):
    """Training steps in parts, where a batch takes more memory than there is."""

    parts: int
    """How many a step is made in, the same in all processes."""
    trials: int | None
    tried: int
    """Updates made so far of the `trials` for which steps are tried out."""
    found: int | None
    """The most samples that fit in a process at once, if that was looked for."""

    def begin(self, parts: int, trials: int | None, find: int | bool = False) -> None:
        """Make training steps in parts from now on."""
        ...


class Rescue(Protocol):
    """The last whole state of the run, to be saved when what comes after it is broken off."""

    def note(self) -> None:
        """Say that the state is whole: whatever moves with an iteration is done with the last one."""
        ...

    def save(self, error: BaseException, *, keep_last: int | None, protect: Collection[int]) -> str | None:
        """Save what was noted last, if a resumed run can go on from it exactly; never raises."""
        ...


class Steering(Protocol):
    """How the course of a run is changed, everywhere at the same iteration."""

    flagged: bool
    """Whether this process has been told to end, which the others may not know yet."""
    broke_off: bool
    """Whether the last pass over data was broken off, in whichever process."""
    poll: Callable[[], bool] | None
    """Asked after each batch of an evaluation whether to leave it; None where `flagged` says it all."""

    @property
    def seconds(self) -> float:
        """Since the job began, the same number in all processes: what intervals by the clock go by."""
        ...

    def meet(self, *, broke_off: bool = False) -> bool:
        """Agree on what was asked for so far. Every process calls it at the same point.

        Returns whether any of them has broken off its pass over the data.
        """
        ...


class PredictionSink(Protocol):
    """Files that predictions go to, none of which counts before `commit`."""

    def add(self, rows: Iterable[tuple[int, Any]], *, by_sample: bool) -> None:
        """Take predictions, each with its place: the number of its sample, or else of its batch."""
        ...

    def commit(self) -> tuple[str, int]:
        """Have all of them count. Every process calls it. Returns where they are, and how many."""
        ...

    def discard(self) -> None:
        """Remove what this process has written. Never raises."""
        ...


class RunContext(Protocol):
    """The run, seen from inside. `Runner` provides it; tests may fake it."""

    state: TrainState
    metrics: dict[str, float]
    """Results of the latest evaluation."""

    @property
    def engine(self) -> Verbs: ...
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
    def process(self) -> int:
        """The number of this process among those of the run, 0 for the first."""
        ...

    @property
    def hooks(self) -> HookList: ...
    @property
    def loggers(self) -> LoggerGroup:
        """Write in the main process alone; `log` is for values, `loggers.say` for words."""
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
    def trial(self) -> bool:
        """Whether the run is cut down to see if it works, so that what begins late is to begin at its end."""
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
    @property
    def log_folder(self) -> str | None:
        """Where the files of this start of the run are; None in processes that log nothing."""
        ...

    @property
    def rescue(self) -> Rescue: ...
    @property
    def control(self) -> Steering: ...

    def request(self, what: str, reason: str = "", *, agreed: bool = False) -> None:
        """Ask to ``"stop"``, ``"save"`` or ``"validate"`` after an iteration; any one process may.

        Args:
            agreed: All processes ask for it at the same point: there is no need to tell each other.
        """
        ...

    def call_hooks(self, point: str, /, **details: Any) -> None:
        """Call `point` on every hook that has a method of that name; a loop may invent points."""
        ...

    def validate(self) -> dict[str, float]:
        """Run the validation loop now, and return its metrics."""
        ...

    def log(self, values: Mapping[str, Tensor | float], *, kind: str = "train") -> None:
        """Write values to all loggers, under the present counters."""
        ...

    def log_image(self, name: str, image: Any) -> None:
        """Show an image, or a batch of them, in the loggers that take such; reads it from where it is."""
        ...

    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Keep a file of the main process with the logs."""
        ...

    def build_dataloader(self, spec: Any, *, train: bool = False, name: str = "dataloader") -> Feed: ...
    def build_evaluator(self, spec: Any) -> Evaluator | None: ...
    def write_report(self) -> str | None:
        """Write the picture of the run so far. Returns its URL; None in processes that log nothing."""
        ...

    def write_predictions(self, path: str, *, format: str, rows: int, size: int) -> PredictionSink:
        """Begin to write predictions to a folder. Every process calls it at the same point.

        Args:
            path: In the work dir, unless it is absolute or a URL.
            rows: Predictions in a file, at most; `size`: bytes of them that are held, at most.
        """
        ...

    def save_checkpoint(self, *, keep_last: int | None = None, protect: Collection[int] = ()) -> str:
        """Save the state as it is now, under the number of finished iterations.

        Returns the URL that the checkpoint will have: it is written beside what follows, unless
        `checkpoint_cfg` says otherwise, and what fails is raised by a later iteration. Once it is
        there, this run's older checkpoints are removed, but for the newest `keep_last` (None keeps all)
        and those of the iterations `protect`.
        """
        ...
