"""Builds a run out of what the user gave, and starts its jobs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn

from stratrun.checkpoint import Checkpointer
from stratrun.data import Feed, build_feed
from stratrun.engine import Engine
from stratrun.evaluation import Evaluator, build_evaluator
from stratrun.hooks.dispatch import HookList
from stratrun.loggers import LoggerGroup, RecordBuffer
from stratrun.loops import BaseLoop
from stratrun.optim import Schedule
from stratrun.registry import RUNNERS
from stratrun.registry.spec import edited
from stratrun.runner import parts, persistence, start, summary
from stratrun.runner.environment import parse_env, parse_randomness
from stratrun.runner.form import DEFAULT_LOGGERS, Form, Job, require
from stratrun.state import TrainState


@RUNNERS.register_module()
class Runner:
    """A run: the form that a user fills in, and the four jobs that it can do.

    Nothing is built, read, written or connected before a job is started, and a job needs
    only its own arguments. Everything that can be built is an object, or a dict with ``type``
    (a registered name, a class, or a dotted path) and that class's arguments.

    Args:
        model: Any `nn.Module`; see `stratrun.engine.contract` for how it is called.
        work_dir: Where checkpoints and logs go: a path or an fsspec URL. By default a new folder
            under ``work_dirs``, called `name`, or else after the program.
        loss: ``loss(outputs, targets)``, for models that do not compute one themselves.
        clip_grad: Largest norm of the gradients, or ``dict(max_norm=, norm_type=, value=)``.
        default_hooks: Replaces (a spec) or switches off (None) the hooks ``timer``, ``scheduler``,
            ``logger`` and ``checkpoint``.
        load_from: Weights to start from: a checkpoint, a ``.safetensors`` or a ``.pt`` file.
        resume: True goes on from the newest checkpoint in `work_dir`, ``"auto"`` does so if there
            is one, a path or URL goes on from there.
        randomness: ``dict(seed=, deterministic=)``.
        env_cfg: ``dict(cudnn_benchmark=, tf32=, num_threads=, mp_start_method=, backend=, timeout=)``.
        cfg: The config that the arguments came from; kept beside the logs.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        train_dataloader: Any = None,
        val_dataloader: Any = None,
        test_dataloader: Any = None,
        predict_dataloader: Any = None,
        train_cfg: Any = None,
        val_cfg: Any = None,
        test_cfg: Any = None,
        predict_cfg: Any = None,
        val_evaluator: Any = None,
        test_evaluator: Any = None,
        optimizer: Any = None,
        param_scheduler: Any = None,
        loss: Any = None,
        clip_grad: Any = None,
        strategy: Any = "auto",
        accelerator: Any = "auto",
        precision: Any = "32-true",
        default_hooks: Mapping[str, Any] | None = None,
        custom_hooks: Iterable[Any] = (),
        loggers: Any = DEFAULT_LOGGERS,
        load_from: str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        randomness: Mapping[str, Any] | None = None,
        env_cfg: Mapping[str, Any] | None = None,
        cfg: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self._form = Form(**given)
        self._loops: dict[str, BaseLoop] = {}
        self._job: Job | None = None
        self._parts: start.Started | None = None
        self._placed = self._can_train = False
        self.state = TrainState()
        self._schedules: list[Schedule] = []
        self.metrics: dict[str, float] = {}
        self.last_checkpoint: str | None = None

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """A runner from a config: its keys are the arguments, and ``runner_type`` the class.

        Raises:
            ConfigError: a key is no argument of the runner; names the nearest.
        """
        spec = edited(cfg, drop=["runner_type"], put={"type": cfg.get("runner_type", cls)})
        entry, arguments = RUNNERS.check(spec, where="config")
        runner: Self = entry(**{"cfg": cfg, **arguments})
        return runner

    # -- the jobs

    def train(self) -> dict[str, float]:
        """Train, and validate as `train_cfg` says. Returns the metrics of the last validation."""
        loop = self._prepare("train")
        with self._running("train"):
            loop.run()
        return self.metrics

    def val(self) -> dict[str, float]:
        """Metrics on the validation data."""
        return self._evaluate("val")

    def test(self) -> dict[str, float]:
        """Metrics on the test data."""
        return self._evaluate("test")

    def predict(self) -> list[Any]:
        """What the model predicts for each sample, in the order of the data set, on every rank."""
        loop = self._prepare("predict")
        with self._running("predict"):
            predictions: list[Any] = loop.run()
        return predictions

    def setup_env(self) -> None:
        """Settings of this process, before anything is connected or built. A subclass may replace it."""
        parse_env(self._form.env_cfg).apply()

    def close(self) -> None:
        """Close the loggers, and leave the process group if this run started it."""
        if self._parts is not None:
            self._parts.close()

    # -- what loops and hooks see: see `RunContext`

    @property
    def seed(self) -> int:
        return self._started.seed

    def reseed(self, seed: int) -> None:
        """Take the seed of the run that is gone on with."""
        self._started.seed = seed

    @property
    def rank(self) -> int:
        return self._started.ranks.rank

    @property
    def reasons(self) -> list[str]:
        """Why the layers of this run are what they are."""
        return self._started.reasons

    @property
    def log_folder(self) -> str | None:
        folder = self.loggers.folder
        return None if folder is None else str(folder.path)

    def feeds(self, job: str) -> list[Feed]:
        """The loaders that a job reads."""
        jobs = ("train", "val") if job == "train" else (job,)
        loops = [self._loops[one] for one in jobs if one in self._loops]
        return [
            feed for loop in loops for feed in getattr(loop, "dataloaders", {"": loop.dataloader}).values()
        ]

    @property
    def engine(self) -> Engine:
        return self._started.engine

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    @cached_property
    def hooks(self) -> HookList:
        """The hooks of the run; ``print(runner.hooks.describe())`` shows the order of calls."""
        return parts.build_hooks(self._form)

    @property
    def records(self) -> RecordBuffer:
        return self._started.records

    @property
    def schedules(self) -> list[Schedule]:
        return self._schedules

    @property
    def checkpointer(self) -> Checkpointer:
        return self._started.checkpointer

    @property
    def loggers(self) -> LoggerGroup:
        return self._started.loggers

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
    def train_dataloader(self) -> Feed | None:
        return getattr(self._loops.get("train"), "dataloader", None)

    @property
    def has_validation(self) -> bool:
        return self._form.validates

    def call_hooks(self, point: str, /, **details: Any) -> None:
        self.hooks.call(self, point, details)

    def validate(self) -> dict[str, float]:
        """Run the validation loop now, and return its metrics."""
        loop = self._loop("val")
        self.engine.start_evaluation()
        loop.run()
        return self.metrics

    def log(self, values: Mapping[str, Tensor | float], *, kind: str = "train") -> None:
        self.loggers.log_values(values, self.state, kind=kind)

    def build_dataloader(self, spec: Any, *, train: bool = False, name: str = "dataloader") -> Feed:
        """A loader of this run: batches arrive on the device, this process's share of them.

        Args:
            train: For training: shuffled by default, and the same number of batches everywhere.
            name: What it is called in messages.
        """
        return build_feed(spec, train=train, name=name, **self._started.feeding)

    def build_evaluator(self, spec: Any) -> Evaluator | None:
        """Metrics that are combined exactly over all processes; None for None."""
        if spec is None:
            return None
        evaluator = build_evaluator(spec)
        evaluator.bind(self._started.ranks, self.engine.batch, self._started.device)
        return evaluator

    def save_checkpoint(self, *, keep_last: int | None = None, protect: Collection[int] = ()) -> str:
        """Save the whole run under its present iteration. Returns the checkpoint's URL."""
        shared = persistence.shared_state(self)
        self.call_hooks("before_save_checkpoint", checkpoint=shared)
        own = persistence.own_state(self)
        url = self.checkpointer.save(self.iter, shared, own, meta=persistence.describe(self))
        self.checkpointer.apply_retention(keep_last, protect)
        self.last_checkpoint = url
        return url

    # -- how a job comes about

    @property
    def _started(self) -> start.Started:
        if self._parts is None:
            self._parts = start.start(self._form, self.state, self.setup_env)
        return self._parts

    def _prepare(self, job: Job) -> BaseLoop:
        """Check everything that the job needs, then build it."""
        require(self._form, job)
        parts.check(self._form, job)
        parse_env(self._form.env_cfg)
        parse_randomness(self._form.randomness)
        if not self._placed:
            self.engine.place(parts.build_model(self._form.model), parts.build_loss(self._form.loss))
            self._placed = True
        if job == "train" and not self._can_train:
            self._schedules = start.prepare_training(self._form, self.engine)
            self._can_train = True
        if job == "train" and self.has_validation:
            self._loop("val")
        return self._loop(job)

    def _loop(self, job: Job) -> BaseLoop:
        if job not in self._loops:
            self._loops[job] = parts.build_loop(self, self._form, job)
        return self._loops[job]

    def _evaluate(self, job: Job) -> dict[str, float]:
        loop = self._prepare(job)
        with self._running(job):
            loop.run()
        return self.metrics

    @contextmanager
    def _running(self, job: Job) -> Iterator[None]:
        self._job = job
        try:
            self.call_hooks("before_run")
            origin = start.load(self, self._form)
            self.loggers.say(summary.at_start(self, job, origin))
            if job != "train":
                self.engine.start_evaluation()
            yield
            self.call_hooks("after_run")
            self.loggers.say(summary.at_end(self, job))
        except Exception as error:
            self.call_hooks("on_exception", exception=error)
            raise
        finally:
            self._job = None
            self.loggers.flush()
