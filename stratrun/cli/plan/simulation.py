"""A training step of a run on many ranks, in one process and without memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves

from stratrun.accelerators.cpu import CPUAccelerator
from stratrun.blocks import BlockTransforms
from stratrun.cli.plan.meter import Meter, Traffic
from stratrun.cli.plan.stand_in import AgreeingRanks, Pretence
from stratrun.connector import Choice, choose
from stratrun.data import build_feed
from stratrun.data.options import WORKER_KEYS, LoaderOptions
from stratrun.data.several_spec import SeveralLoaders, is_several
from stratrun.data.source import Setting
from stratrun.distributed import DataRanks, ProcessEnv
from stratrun.engine import Clipping, Engine
from stratrun.engine.step_module import StepModule
from stratrun.errors import ConfigError, IncompatibleError
from stratrun.registry.spec import edited
from stratrun.runner import parts, start
from stratrun.runner.form import Form
from stratrun.state import TrainState

_SIMULATED = 3
"""Micro-batches of an accumulation window that are simulated: the first, one between, and the last."""
_WINDOWS = 3
"""Updates that are simulated: in the second DDP arranges its buckets anew, once optimizer state is there."""


def chosen(form: Form, env: ProcessEnv) -> Choice:
    """The parts of the run, on hardware that need not be here.

    Raises:
        IncompatibleError: they do not fit one another.
    """
    given = form.accelerator
    names = ["cuda", "cpu", "mps"] if given == "auto" else [getattr(given, "name", given)]
    errors = []
    for name in names:
        try:
            return choose(
                strategy=form.strategy, accelerator=_hardware(name), precision=form.precision, env=env
            )
        except IncompatibleError as error:
            errors.append(error)
    raise errors[0]


def _hardware(given: Any) -> CPUAccelerator:
    kind = str(given.get("type") if isinstance(given, Mapping) else given)
    hardware: CPUAccelerator = type("Assumed", (CPUAccelerator,), {"name": kind})()
    return hardware


class Simulation:
    """A run whose tensors stand in for real ones, from its model to its updates."""

    def __init__(self, form: Form, choice: Choice, ranks: AgreeingRanks) -> None:
        self.form = form
        self.choice = choice
        self.pretence: Pretence = Pretence()
        self.remarks: list[str] = []
        self.traffic: Traffic = Traffic()
        """What one update exchanges."""
        self.gradients: int = 0
        self.data_ranks: int = ranks.world_size // choice.strategy.ranks_per_batch
        self._ranks = ranks
        self.engine: Engine = self._engine()

    def build(self) -> None:
        """Build model and optimizers, and place them as the strategy does."""
        model = self._model()
        if self.form.compile not in (None, False):
            self.remarks.append("compile is left out: a compiled model needs no more memory, and often less")
        with self.pretence:
            self.pretence.stand_in_for(model)
            loss = parts.build_loss(self.form.loss)
            if isinstance(loss, nn.Module):
                self.pretence.stand_in_for(loss)
            blocks = BlockTransforms(None, self.form.activation_checkpointing)
            self.engine.place(lambda: model, lambda: loss, [blocks])
            start.prepare_training(self.form, self.engine, start.update_size(self.form, self.data_ranks))
            self.engine.start_training()

    def run(self, batch: Any, accumulate: int) -> None:
        """Simulate updates, and take the last for what they are like.

        Raises:
            NotPlannable: the step depends on values.
        """
        simulated = min(accumulate, _SIMULATED)
        with self.pretence, phases(self.pretence, self._before_update):
            held = tree_leaves(batch)
            self.pretence.ledger.name((one for one in held if isinstance(one, Tensor)), "batch")
            for _ in range(_WINDOWS):
                before = [self.pretence.traffic.copy()]
                for number in range(simulated):
                    moved = self.engine.move(batch)
                    self.engine.train_step(moved, update=number == simulated - 1, divisor=accumulate)
                    before.append(self.pretence.traffic.copy())
        self.traffic = before[-1].since(before[0])
        if accumulate > simulated:
            # Those between the first and the last are alike.
            self.traffic += before[2].since(before[1], times=accumulate - simulated)

    def update_alone(self) -> None:
        """Give the optimizers their state without a step of the model."""
        with self.pretence, phases(self.pretence, self._before_update):
            for parameter in self.engine.state_module.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            for one in self.engine.optimizers.values():
                one.step()
                one.zero_grad(set_to_none=True)

    def _model(self) -> nn.Module:
        self.pretence.building = True
        try:
            with self.pretence:
                return parts.build_model(self.form.model)
        except Exception:
            # It computes with its weights while it is built; what is wrong otherwise shows again.
            self.remarks.append("the model was built in memory, as its construction reads values of weights")
            return parts.build_model(self.form.model)
        finally:
            self.pretence.building = False

    def _engine(self) -> Engine:
        strategy, precision = self.choice.strategy, self.choice.precision
        each = strategy.ranks_per_batch
        precision.setup("cpu")
        engine = Engine(
            accelerator=self.choice.accelerator,
            strategy=strategy,
            precision=precision,
            data=DataRanks(self._ranks, each) if each > 1 else self._ranks,
            device=torch.device("cpu"),
            state=TrainState(),
            clipping=Clipping.parse(self.form.clip_grad),
        )
        engine.gauges.ranks = self._ranks
        return engine

    def _before_update(self, optimizer: Optimizer) -> None:
        held = (p.grad for group in optimizer.param_groups for p in group["params"])
        self.gradients = self.pretence.ledger.name((one for one in held if one is not None), "gradients")


@contextmanager
def phases(meter: Meter, before_update: Any) -> Iterator[None]:
    """Tell a meter what is under way: the forward pass, the backward pass, or the update."""

    def forward(module: nn.Module, *_: Any) -> None:
        if isinstance(module, StepModule):
            meter.ledger.mark("forward")

    def backward(module: nn.Module, *_: Any) -> None:
        if isinstance(module, StepModule):
            meter.ledger.mark("backward")

    def update(optimizer: Optimizer, *_: Any) -> None:
        before_update(optimizer)
        meter.ledger.mark("update")

    with ExitStack() as after:
        for handle in (
            register_module_forward_pre_hook(forward),
            register_module_forward_hook(backward),
            register_optimizer_step_pre_hook(update),
        ):
            after.callback(handle.remove)
        yield


def first_batch(form: Form, engine: Engine, data_ranks: int, size: int | None) -> Any:
    """A batch of one rank, really read.

    Args:
        size: Samples of it, if not as many as the config says.
    """
    name, spec = "train_dataloader", form.train_dataloader
    setting = Setting(name, True, 0, 0, data_ranks, False)
    if is_several(spec):
        loaders = SeveralLoaders.of(spec, setting).loaders
        whole = {
            key: _for_one_rank(one, replace(setting, name=f"{name}.loaders.{key}"), size)
            for key, one in loaders.items()
        }
        spec = edited(spec, put={"loaders": whole})
    else:
        spec = _for_one_rank(spec, setting, size)
    feed = build_feed(
        spec, train=True, seed=0, rank=0, world_size=1, batch=engine.batch, move=lambda one: one, name=name
    )
    try:
        return next(iter(feed))
    finally:
        feed.close()


def _for_one_rank(spec: Any, setting: Setting, size: int | None) -> Any:
    """A loader with all the data for one rank: what there is of it may not be enough for thousands."""
    if isinstance(spec, Mapping):
        size = LoaderOptions.from_dict(spec, setting).batch_size if size is None else size
        return edited(spec, drop=["global_batch_size", "num_workers", *WORKER_KEYS], put={"batch_size": size})
    if size is not None:
        raise ConfigError(
            f"--batch-size {size} needs a {setting.name} that is a dict; a ready-made one has its own"
        )
    return spec
