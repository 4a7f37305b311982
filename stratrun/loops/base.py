"""The order of work over a dataloader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stratrun.optim import Extent

if TYPE_CHECKING:
    from stratrun.context import RunContext
    from stratrun.data import Feed

_STEPS = {job: f"{job}_step" for job in ("train", "val", "test", "predict")}


class BaseLoop(ABC):
    """One pass of training, validation, testing or prediction over a dataloader.

    A subclass writes `run`: the order of events, with any hook points it likes. Batches arrive
    where the model is, and `run_iter` does one step of the job that the loop was built for; where and
    on how many processes that happens is not a loop's business.

    Args:
        dataloader: A dict, a `DataLoader`, a data set, or an iterable of batches.
        evaluator: Metrics that take the outputs of the steps.
    """

    job: str = "val"
    """`train`, `val`, `test` or `predict`; the runner sets it, as ``train_cfg`` or ``val_cfg`` says."""

    def __init__(self, runner: RunContext, dataloader: Any, evaluator: Any = None) -> None:
        self.runner = runner
        self.dataloader: Feed = runner.build_dataloader(dataloader)
        self.evaluator: Any = runner.build_evaluator(evaluator)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for options whose values will not do. Called before anything is built."""
        return None

    def extent(self) -> Extent:
        """How long a training by this loop is, for schedules; as far as it knows beforehand."""
        return Extent()

    @abstractmethod
    def run(self) -> Any: ...

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        """One step of the loop's job on one batch; its outputs go to the evaluator, if there is one.

        A training loop of its own calls ``self.runner.engine.finish_iter()`` after each.
        """
        outputs = getattr(self.runner.engine, _STEPS[self.job])(data_batch)
        if self.evaluator is not None:
            self.evaluator.process(data_batch, outputs)
        return outputs
