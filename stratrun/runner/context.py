"""A runner seen from inside: what its loops, hooks and checkpoints ask of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.parts import LoadReport
from stratrun.control import Control
from stratrun.engine import Engine
from stratrun.evaluation import Evaluator
from stratrun.hooks.dispatch import HookList
from stratrun.loggers import RecordBuffer
from stratrun.optim import Schedule
from stratrun.runner import parts, persistence, reporting, start
from stratrun.runner.arguments import refuse_unknown
from stratrun.runner.developing import cut_down
from stratrun.runner.environment import parse_env
from stratrun.runner.fed import Fed
from stratrun.runner.form import Form, Job, require
from stratrun.runner.invocation import Invocation
from stratrun.runner.logged import Logged
from stratrun.runner.outputs import Outputs
from stratrun.runner.rescue import Rescue
from stratrun.state import TrainState

if TYPE_CHECKING:
    from stratrun.runner.trial import Traces


class RunnerContext(Fed, Logged, Outputs):
    """The `RunContext` of a run, over parts that come about when first asked for."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        # Here, because a call with an unknown keyword does not get as far as `__init__`.
        parameters = inspect.signature(cls).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            refuse_unknown(options, parameters, cls.__name__, {})
        return super().__new__(cls)

    def __init__(self, form: Form) -> None:
        self.state: TrainState = TrainState()
        self.control: Control = Control(self.state)
        self.request: Callable[..., None] = self.control.request
        self.metrics: dict[str, float] = {}
        self.last_checkpoint: str | None = None
        self.seconds_saving: float = 0.0
        """How long the present job was held up by its saves, those that go on beside it included."""
        self.has_weights = False
        """Whether the model holds weights that were trained or loaded in this run."""
        self.load_report: LoadReport | None = None
        """What `load_from` has loaded, and what of it did not fit; None before, and without it."""
        self.invocation: Invocation | None = None
        super().__init__(cut_down(form))
        self._given = form
        self._parts: start.Started | None = None
        self._schedules: list[Schedule] = []
        self._job: Job | None = None

    @property
    def traces(self) -> Traces | None:
        return None if self._parts is None else self._parts.traces

    def setup_env(self) -> None:
        """Settings of this process, before anything is connected or built. A subclass may replace it."""
        parse_env(self._form.env_cfg).apply()

    @property
    def seed(self) -> int:
        return self._started.seed

    def reseed(self, seed: int) -> None:
        """Take the seed of the run that is gone on with."""
        self._started.seed = self._started.feeding["seed"] = seed
        for feed in self.feeds("val"):
            feed.reseed(seed)

    def write_report(self) -> str | None:
        """Write ``report.html`` into the work dir; see `stratrun.report`. None where nothing is logged."""
        return reporting.write_report(self.log_folder, self.loggers, self.work_dir, self._started.saving)

    @property
    def rank(self) -> int:
        return self._started.ranks.rank

    process = rank

    @property
    def data_rank(self) -> int:
        """The number of the share of the samples that this process works on."""
        return self._started.data.rank

    @property
    def reasons(self) -> list[str]:
        return self._started.reasons

    @property
    def engine(self) -> Engine:
        return (self._parts or self._started).engine

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    @cached_property
    def hooks(self) -> HookList:
        """The hooks of the run; ``print(runner.hooks.describe())`` shows the order of calls."""
        return parts.build_hooks(self._form)

    @property
    def records(self) -> RecordBuffer:
        return (self._parts or self._started).records

    @property
    def schedules(self) -> list[Schedule]:
        return self._schedules

    @property
    def checkpointer(self) -> Checkpointer:
        return self._started.checkpointer

    @property
    def work_dir(self) -> str:
        return self._started.work_dir

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def iter(self) -> int:
        return self.state.iter

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def samples(self) -> int:
        return self.state.samples

    @property
    def training(self) -> bool:
        return self._job == "train"

    @property
    def max_epochs(self) -> int | None:
        return getattr(self._loops.get("train"), "max_epochs", None)

    @property
    def max_iters(self) -> int | None:
        return getattr(self._loops.get("train"), "max_iters", None)

    @property
    def has_validation(self) -> bool:
        return self._form.validates

    def validate(self) -> dict[str, float]:
        """Run the validation loop now, within a job, and return its metrics."""
        require(self._form, "val", within=self._job)
        parts.validate(self, self.loop("val"))
        return self.metrics

    def build_evaluator(self, spec: Any) -> Evaluator | None:
        """Metrics that are combined exactly over all processes; None for None."""
        return None if spec is None else self._started.evaluator(spec)

    @cached_property
    def rescue(self) -> Rescue:
        return Rescue(self, self._started.ranks)

    def save_checkpoint(self, *, keep_last: int | None = None, protect: Collection[int] = ()) -> str:
        """Save the whole run under its present iteration. Returns the URL that the checkpoint will have."""

        def shared() -> dict[str, Any]:
            state = persistence.shared_state(self)
            self.call_hooks("before_save_checkpoint", checkpoint=state)
            return state

        began = perf_counter()
        self.last_checkpoint = self.checkpointer.save(
            self.iter,
            shared,
            lambda: persistence.own_state(self),
            meta={**persistence.describe(self), "config": self._started.config},
            keep_last=keep_last,
            protect=protect,
            # Beside a job alone, as that waits for it at its end.
            background=self._started.saving.asynchronous and self._job is not None,
        )
        self.seconds_saving += perf_counter() - began
        return self.last_checkpoint

    def finish_saving(self) -> None:
        """Wait for a save that goes on beside the job."""
        began = perf_counter()
        self.checkpointer.wait()
        self.seconds_saving += perf_counter() - began

    @property
    def _started(self) -> start.Started:
        if self._parts is None:
            self._parts = start.start(self._form, self.state, self.control, self.setup_env)
        return self._parts
