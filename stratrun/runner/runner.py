"""Builds a run out of what the user gave, and starts its jobs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from stratrun.accelerators.channels_last import ChannelsLast
from stratrun.blocks import BlockTransforms, Compilations
from stratrun.engine.anomaly import detecting
from stratrun.engine.whole_step import take_over
from stratrun.errors import ConfigError, StratrunError
from stratrun.hooks import CheckpointHook
from stratrun.loops import BaseLoop, TrainLoop
from stratrun.optim import optimizer as optimizers
from stratrun.registry import RUNNERS
from stratrun.runner import checks, parts, resume, saving, start, stopping, summary
from stratrun.runner.arguments import of_config
from stratrun.runner.collector import collecting
from stratrun.runner.context import RunnerContext
from stratrun.runner.developing import leaving_nothing, parse_dev
from stratrun.runner.environment import parse_env
from stratrun.runner.form import DEFAULT_LOGGERS, Form, Job, require
from stratrun.runner.in_use import InUse

if TYPE_CHECKING:
    from stratrun.runner.lr_curve import FoundLR
    from stratrun.runner.names import AnAccelerator, APolicy, APrecision, AStrategy, Loggers

_FIELDS = {field.name for field in fields(Form)}


@RUNNERS.register_module()
class Runner(RunnerContext):
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
        non_finite: What follows from a loss or gradients that are not finite: ``"raise"``, ``"skip"``,
            ``"rollback"``, ``"ignore"``, or ``dict(policy="rollback", to="memory", every=, limit=)``.
        compile: True, or ``dict(blocks=, backend=, mode=, dynamic=, fullgraph=)``: `torch.compile` for each
            of the blocks that repeat in the model, or that `blocks` names; see `stratrun.blocks.select`.
            With ``step=True`` for the training step as one; with ``graphs=True`` it is captured.
        activation_checkpointing: True, blocks as above, or ``dict(blocks=, every=)``: have these keep their
            inputs alone, and compute them once more in the backward pass.
        default_hooks: Replaces (a spec) or drops (None) ``timer``, ``scheduler``, ``logger``, ``checkpoint``.
        load_from: Weights to start from: a checkpoint, a ``.safetensors`` or a ``.pt`` file; ``"best"`` or
            ``"last"`` for those of `work_dir`. Or ``dict(path=, parts=["model", "optimizer", ...],
            rename={regex: replacement}, strict=, mismatch="error"|"skip", weights="model"|"ema"|"swa",
            storage_options=)``; `load_report` then tells what was loaded.
        resume: True goes on from the newest checkpoint in `work_dir`, ``"auto"`` does so if there
            is one; a path, a URL or a name such as ``"work_dirs/x/best"`` goes on from there.
        randomness: ``dict(seed=, deterministic=)``, the second True or ``"warn"``.
        env_cfg: ``dict(cudnn_benchmark=, tf32=, num_threads=, mp_start_method=, backend=, timeout=,
            strict_sync=, gc="paused"|"python", channels_last=)``; see `stratrun.runner.environment`.
        checkpoint_cfg: ``dict(asynchronous=, deadline=, storage_options=)``; see `stratrun.runner.saving`.
        control_cfg: ``dict(signals=, time_limit=, requeue=)``; see `stratrun.control.settings`.
        inference_cfg: ``dict(preprocess=, collate=, postprocess=, batch_size=)``: how an `Inferencer` of this
            model deals with raw inputs; kept with the config, and not used by the jobs.
        dev_cfg: ``dict(fast_dev_run=True, limit_batches=, overfit_batches=, sanity_batches=,
            detect_anomaly=)``: less than the whole run, for developing; see `stratrun.runner.developing`.
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
        non_finite: APolicy = "raise",
        strategy: AStrategy = "auto",
        accelerator: AnAccelerator = "auto",
        precision: APrecision = "32-true",
        compile: Any = False,
        activation_checkpointing: Any = False,
        default_hooks: Mapping[str, Any] | None = None,
        custom_hooks: Iterable[Any] = (),
        loggers: Loggers = DEFAULT_LOGGERS,
        load_from: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        randomness: Mapping[str, Any] | None = None,
        env_cfg: Mapping[str, Any] | None = None,
        checkpoint_cfg: Mapping[str, Any] | None = None,
        control_cfg: Mapping[str, Any] | None = None,
        inference_cfg: Mapping[str, Any] | None = None,
        dev_cfg: Mapping[str, Any] | None = None,
        cfg: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _FIELDS}
        super().__init__(Form(**given))
        self._placed = self._can_train = self._scheduled = False
        self._rates: dict[str, list[float | None]] = {}
        self._mark = InUse()
        self._blocks = BlockTransforms()

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """A runner from a config: its keys are the arguments, and ``runner_type`` the class.

        Raises:
            ConfigError: a key is no argument of the runner; names the nearest.
        """
        entry, arguments = of_config(cfg, cls)
        runner: Self = entry(**{"cfg": cfg, **arguments})
        return runner

    @property
    def compilations(self) -> Compilations | None:
        """What was compiled since the model was built, and why once more; None without `compile`."""
        return self._blocks.compilations

    # -- the jobs

    def train(self) -> dict[str, float]:
        """Train, and validate as `train_cfg` says. Returns the metrics of the last validation."""
        environment, developing = parse_env(self._form.env_cfg), parse_dev(self._form.dev_cfg)
        with self._doing("train") as loop, collecting(environment.gc):
            with detecting(self.engine, developing.detect_anomaly):
                loop.run()
            self.engine.saved.settle()
        return self.metrics

    def val(self) -> dict[str, float]:
        """Metrics on the validation data."""
        return self._evaluate("val")

    def test(self) -> dict[str, float]:
        """Metrics on the test data."""
        return self._evaluate("test")

    def predict(self) -> list[Any]:
        """What the model predicts for each sample, in the order of the data set, on every rank."""
        with self._doing("predict") as loop:
            predictions: list[Any] = loop.run()
        return predictions

    def find_lr(
        self,
        start: float = 1e-7,
        end: float = 10.0,
        iters: int = 100,
        *,
        scale: Literal["exp", "linear"] = "exp",
        smoothing: float = 0.9,
        diverged: float = 4.0,
        optimizer: str | None = None,
        loss: str = "loss",
    ) -> FoundLR:
        """Make training steps at rising learning rates, and see what the loss does; then all is as it was.

        The groups of an optimizer keep their proportions. Schedules stand still, and no hook is called but
        `MicroBatchHook`, so that nothing is logged or saved. See `FoundLR` for what is found.

        Args:
            start: The first rate, and `end` the last, of `iters` updates; `scale` is how they rise.
            smoothing: Of the loss; see `FoundLR`.
            diverged: The test ends where the running mean of the loss is so many times its best.
            optimizer: The name of one, where there are several. The others keep their rates.
            loss: The value of what steps return that is looked at.
        """
        from stratrun.runner import range_steps, range_test

        test = range_test.RangeTest(start, end, iters, scale, smoothing, diverged, optimizer, loss)
        if self._job is not None:
            raise ConfigError(f"find_lr() cannot be done within {self._job}(); call it before or after")
        require(self._form, "train")
        checks.check(self._form, "train")
        checks.check_hooked(self._form, "train", self.hooks)
        range_test.check(self._form, test)
        loop = self._build("train")
        self._job = "train"
        try:
            return range_steps.run(self, self._started, self._form, loop, test, self._rates)
        finally:
            self._job = None

    def close(self) -> None:
        """End loader workers, close the loggers, and leave the process group if this run started it."""
        if self._parts is not None:
            for job in self._loops:
                for feed in self.feeds(job):
                    feed.close()
            self._parts.close()

    # -- how a job comes about

    def _prepare(self, job: Job) -> BaseLoop:
        """Check everything that the job needs, then build it."""
        require(self._given, job)
        checks.check(self._given, job)
        checks.check_hooked(self._form, job, self.hooks)
        stopping.allow_requests(self, self._form, job)
        resume.check(self, self._started.ranks, self._form, job)
        loop = self._build(job)
        hooks = self.hooks
        if job == "train" and any(isinstance(hook, CheckpointHook) for hook in hooks):
            ranks = self._started.ranks
            saving.try_states(ranks, hooks, self.engine)
            saving.prepare_saving(
                ranks,
                self.checkpointer,
                self.engine,
                self._started.saving,
                self._mark,
                resumes=self._form.resume is not False or self.iter > 0,
            )
        return loop

    def _build(self, job: Job) -> BaseLoop:
        if not self._placed:
            self._place()
        if job == "train" and not self._can_train:
            size = start.update_size(self._form, self._started.data.world_size)
            start.prepare_training(self._form, self.engine, size)
            self._rates = start.rates_of(self.engine.optimizers)
            self.reasons.extend(optimizers.told(self.engine.optimizers, self._form.optimizer, size))
            if self.engine.guard is not None and self.engine.guard.reason is not None:
                self.reasons.append(self.engine.guard.reason)
            blocks = self._blocks
            self.reasons.extend(take_over(self.engine, blocks.step_compiler, blocks.graphs))
            self._can_train = True
        if job == "train" and self.has_validation:
            self.loop("val")
        loop = self.loop(job)
        if job == "train":
            if self.trial and isinstance(loop, TrainLoop):
                loop.closes_epoch = True
            start.agree_on_length(self._started.ranks, self.train_dataloader)
            if not self._scheduled:
                self._schedules = start.prepare_schedules(self._form, self.engine, loop)
                self._scheduled = True
        return loop

    def _place(self) -> None:
        form = self._form
        self._blocks = BlockTransforms(form.compile, form.activation_checkpointing)
        model, loss = partial(parts.build_model, form.model), partial(parts.build_loss, form.loss)
        changes: list[ChannelsLast | BlockTransforms] = [self._blocks]
        if parse_env(form.env_cfg).channels_last:
            changes.insert(0, ChannelsLast())
        self.engine.place(model, loss, changes)
        self.reasons.extend(reason for change in changes for reason in change.reasons)
        if self.compilations is not None:
            self.engine.watches.append(self.compilations.look)
        self._placed = True

    def _evaluate(self, job: Job) -> dict[str, float]:
        with self._doing(job) as loop:
            loop.run()
        return self.metrics

    def _tell_hooks(self, error: BaseException) -> None:
        try:
            self.call_hooks("on_exception", exception=error)
        except Exception as second:
            # What went wrong first is what the user has to see.
            error.add_note(f"then on_exception failed too: {type(second).__name__}: {second}")

    def _end_saving(self, error: BaseException) -> None:
        """Let a save that is under way come to its end: it may be the last one."""
        try:
            self.checkpointer.wait()
        except StratrunError as second:
            error.add_note(f"nor could the save under way be completed: {second}")

    @contextmanager
    def _doing(self, job: Job) -> Iterator[BaseLoop]:
        """Make a job ready and do it, and end the process after it if a signal has asked for that."""
        with leaving_nothing(self), stopping.caught(self, self._form, job) as why_not:
            loop = self._prepare(job)
            if why_not and why_not not in self.reasons:
                self.reasons.append(why_not)
            with self._running(job):
                yield loop
        stopping.leave(self, self._form, job, self.close)

    @contextmanager
    def _running(self, job: Job) -> Iterator[None]:
        self._job, ended = job, stopping.outcome(self)
        start.open_loggers(self._started, self._form)
        try:
            self.call_hooks("before_run")
            origin = resume.load(self, self._started.ranks, self._form)
            self.loggers.start_run(self.checkpointer.run_id)
            self.loggers.say(summary.at_start(self, job, self._form, origin, self._started.data.world_size))
            clock = summary.Clock(self)
            if job == "train":
                self.engine.start_training()
            else:
                self.engine.start_evaluation()
            self.control.start()
            yield
            self.finish_saving()
            self.call_hooks("after_run")
            self.finish_saving()  # once more, as that may have saved
            self.control.meet()  # what came since is for all to know, too
            for text in self.hooks.never_called():
                warnings.warn(text, stacklevel=2)
            self.loggers.say(summary.at_end(self, job, self._form, clock, self.compilations))
            ended = stopping.outcome(self)
        except BaseException as error:
            ended = stopping.failed(self, error)
            self._tell_hooks(error)
            self._end_saving(error)
            raise
        finally:
            self._job = None
            self._mark.clear()
            self.loggers.end_run(ended)
            self.loggers.flush()
