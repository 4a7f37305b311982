"""What joins a class written for Lightning to a run: its steps, what they log, and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.engine.contract import detached
from stratrun.errors import ConfigError, ModelError
from stratrun_ext.migrate.lightning import methods, optimizers
from stratrun_ext.migrate.lightning.logged import Logged, is_metric
from stratrun_ext.migrate.lightning.view import TrainerView

if TYPE_CHECKING:
    from stratrun import Runner
    from stratrun_ext.migrate.lightning.checkpoint import LightningCheckpoint

_TAKEN = ("weight", "grad_norm")


class Link:
    """The state of a module in a run that the module itself does not hold.

    Args:
        own: Gives a method of the user's class by name, not that of the bridge over it.
    """

    def __init__(self, module: nn.Module, own: Callable[[str], Any]) -> None:
        self.module = module
        self.own = own
        self.runner: Runner | None = None
        self.view: TrainerView = TrainerView(self)
        self.datamodule: Any = None
        self.origin: LightningCheckpoint | None = None
        """The file of Lightning that the run starts from."""
        self.epoch = 0
        self.batch_idx = 0
        self.outputs: Any = None
        """What the last step returned."""
        self.flags: dict[str, Logged] = {}
        """How each name was logged last in training."""
        self.metrics: dict[str, float] = {}
        """The latest value of each name over an epoch or an evaluation."""
        self.collecting: dict[str, Any] = {}
        """Metrics that were logged as objects in the evaluation under way."""
        self.schedulers: list[optimizers.Scheduled] = []
        self.optimizer: Optimizer | None = None
        self._step: dict[str, Logged] | None = None
        self._late: dict[str, Logged] | None = None

    def __deepcopy__(self, memo: Any) -> Link:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a module in a run is not pickled; save module.state_dict()")

    # -- the steps

    def train_step(self, batch: Any) -> dict[str, Any]:
        logged, result = self._logging("training_step", batch)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            given = "None" if result is None else "no tensor 'loss'"
            raise ModelError(
                f"{type(self.module).__name__}.training_step returned {given}; return the loss, or a dict "
                "with 'loss'. A batch is not skipped by returning None: return a loss times zero"
            )
        values: dict[str, Any] = {}
        for name, one in logged.items():
            values[name] = self._of_training(name, one)
        self.outputs = detached(dict(result)) if isinstance(result, Mapping) else loss.detach()
        return {**values, "loss": loss}

    def eval_step(self, step: str, batch: Any) -> dict[str, Any]:
        logged, result = self._logging(step, batch)
        self.outputs = result
        size = self.samples
        rows = {}
        for name, one in logged.items():
            if is_metric(one.value):
                self.collecting[name] = one.value
            elif one.on_epoch is not False:
                rows[name] = (one.value, size if one.batch_size is None else one.batch_size, one.reduce)
        return {"logged": rows, "output": result}

    def predict_step(self, batch: Any) -> Any:
        step = "predict_step" if methods.defines(self.module, "predict_step") else "forward"
        _, self.outputs = self._logging(step, batch)
        return self.outputs

    @property
    def samples(self) -> int:
        """Of the batch in hand, on this rank."""
        size = None if self.runner is None else self.runner.engine.batch.size
        return 1 if size is None else size

    def _logging(self, step: str, batch: Any) -> tuple[dict[str, Logged], Any]:
        if methods.defines(self.module, "on_after_batch_transfer"):
            batch = self.own("on_after_batch_transfer")(batch, 0)
        self._step = {}
        try:
            # Called by way of the module where it is no step, so that hooks on its forward run.
            method = self.module if step == "forward" else self.own(step)
            result = method(batch) if step == "forward" else methods.call(method, batch, self.batch_idx)
            return self._step, result
        finally:
            self._step = None

    def _of_training(self, name: str, one: Logged) -> Any:
        if name in _TAKEN:
            raise ConfigError(f"self.log({name!r}): the run has a value of that name; log it as 'my_{name}'")
        if one.reduce != "mean":
            raise ConfigError(
                f"self.log({name!r}, reduce_fx={one.reduce!r}) in training_step: training logs means; leave "
                "it out, or log in on_train_epoch_end"
            )
        self.flags[name] = one
        if not is_metric(one.value):
            return one.value
        if one.on_epoch:
            raise ConfigError(
                f"self.log({name!r}, metric, on_epoch=True) in training_step: what the metric has collected "
                "is in no checkpoint, so a resumed run would log another value; log metric(preds, target)"
            )
        return one.value._forward_cache

    # -- logging

    def log(self, name: str, value: Any, **how: Any) -> None:
        one = Logged.of(name, value, how)
        if self._step is not None:
            self._step[name] = one
        elif self._late is not None:
            self._late[name] = one
        elif self.runner is not None:
            mean = self.runner.engine.mean({name: float(one.value)})
            self.metrics.update(mean)
            self.runner.log(mean, kind="train")

    def at_end(self, method: str) -> dict[str, float]:
        """Call a hook at the end of an evaluation; what it logs, and metrics logged as objects before."""
        self._late = {}
        try:
            if methods.defines(self.module, method):
                self.own(method)()
            late, objects = self._late, dict(self.collecting)
        finally:
            self._late, self.collecting = None, {}
        objects.update({name: one.value for name, one in late.items() if is_metric(one.value)})
        found = {name: float(metric.compute()) for name, metric in objects.items()}
        for metric in {id(one): one for one in objects.values()}.values():
            metric.reset()
        values = {name: float(one.value) for name, one in late.items() if not is_metric(one.value)}
        if values and self.runner is not None:
            found.update(self.runner.engine.mean(values))
        return found

    # -- the optimizer

    def make_optimizer(self, parameters: Any) -> Optimizer:
        """Have the class make its optimizer, once its parameters lie where they are trained."""
        self.optimizer, self.schedulers = optimizers.parse(self.own("configure_optimizers")())
        optimizers.refuse_foreign(self.optimizer, self.module)
        if methods.defines(self.module, "on_before_optimizer_step"):
            hook = self.own("on_before_optimizer_step")
            self.optimizer.register_step_pre_hook(lambda optimizer, *_: hook(optimizer))
        if self.origin is not None:
            self.origin.load_optimizer(self)
        return self.optimizer

    def move_schedulers(self, interval: str, count: int) -> None:
        """Move those that are due when so many epochs, or batches of the epoch, are done."""
        for one in self.schedulers:
            if one.due(interval, count):
                one.move(self.metrics)
