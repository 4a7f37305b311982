"""A `Runner` for a class that was written for Lightning."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from stratrun import Runner
from stratrun.errors import ConfigError, IncompatibleError
from stratrun_ext.migrate.lightning import checkpoint, methods
from stratrun_ext.migrate.lightning.bridge import attach
from stratrun_ext.migrate.lightning.hook import LightningHook, logger
from stratrun_ext.migrate.lightning.link import Link
from stratrun_ext.migrate.lightning.logged import LoggedMetric
from stratrun_ext.migrate.lightning.loop import LightningTrainLoop
from stratrun_ext.migrate.lightning.seeding import randomness

_DECIDED = ("optimizer", "param_scheduler", "loss", "val_evaluator", "test_evaluator")
_STAGES = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}


def runner_for(
    module: nn.Module,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    test_dataloaders: Any = None,
    predict_dataloaders: Any = None,
    *,
    datamodule: Any = None,
    max_epochs: int = 1000,
    start_from: str | os.PathLike[str] | None = None,
    **runner_options: Any,
) -> Runner:
    """A runner that trains a `LightningModule`, of whichever make, or an `nn.Module` with such methods.

    Args:
        module: Its steps, hooks, `self.log` and `configure_optimizers` are what the run is made of.
        datamodule: Gives the loaders that are not given.
        start_from: A ``.ckpt`` of Lightning: its weights, and for training its optimizer, schedulers and
            counts. The start of the run says what was taken.
        runner_options: Arguments of `Runner`, but for those that the class decides: the optimizer,
            schedules and metrics. A `train_cfg` is added to.

    Raises:
        ModelError: the class lacks a step that its loaders need, or relies on what is not taken over.
        ConfigError: a runner option is one that the class decides.
    """
    link = attach(module)
    link.datamodule = datamodule
    given = {
        "train": train_dataloaders,
        "val": val_dataloaders,
        "test": test_dataloaders,
        "predict": predict_dataloaders,
    }
    loaders = _loaders(module, datamodule, {job: one for job, one in given.items() if one is not None})
    for taken in _DECIDED:
        if taken in runner_options:
            raise ConfigError(
                f"{taken}=: {type(module).__name__} decides that itself, by its configure_optimizers and "
                "self.log; leave it out, or give the model to stratrun.Runner with a train_step"
            )
    link.origin = None if start_from is None else checkpoint.read(start_from)
    options = _with_parts(link, loaders, runner_options, max_epochs)
    link.runner = Runner(_made_ready(link, loaders), **options)
    return link.runner


def _with_parts(
    link: Link, loaders: Mapping[str, Any], given: Mapping[str, Any], max_epochs: int
) -> dict[str, Any]:
    """The arguments of the runner, with what the class decides."""
    options = dict(given)
    for job, loader in loaders.items():
        options[f"{job}_dataloader"] = loader
        if job in ("val", "test"):
            options[f"{job}_evaluator"] = LoggedMetric()
    if "train" in loaders:
        options["optimizer"] = link.make_optimizer
        cfg = {"max_epochs": max_epochs, **options.get("train_cfg", {})}
        cfg.pop("by_epoch", None)
        options["train_cfg"] = {"type": LightningTrainLoop, **cfg}
    hooks = dict(options.pop("default_hooks", None) or {})
    shown = hooks.get("logger", {})
    if shown is True or (isinstance(shown, Mapping) and "type" not in shown):
        hooks["logger"] = logger(link, shown if isinstance(shown, Mapping) else {})
    options["default_hooks"] = hooks
    options["randomness"] = randomness(options.get("randomness"))
    options["custom_hooks"] = [LightningHook(link), *options.get("custom_hooks", ())]
    return options


def _made_ready(link: Link, loaders: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        # Before the optimizer is made, as Lightning does: these may make layers.
        stage = _STAGES[next(iter(loaders))]
        if methods.defines(link.module, "setup"):
            link.own("setup")(stage)
        if methods.defines(link.module, "configure_model"):
            link.own("configure_model")()
        if link.origin is not None:
            link.origin.load_weights(link.module)
        return link.module

    return model


def _loaders(module: nn.Module, datamodule: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The loaders of each job: those given, or those of the data module or the class."""
    found = dict(given)
    source: Any = datamodule if datamodule is not None else module
    if methods.defines(source, "prepare_data"):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise IncompatibleError(
                f"{type(source).__name__}.prepare_data would run in each of several processes at once; "
                "prepare the data before the run is started, and leave it out"
            )
        source.prepare_data()
    if not found or datamodule is not None:
        if datamodule is not None and not found:
            datamodule.setup("fit" if methods.defines(datamodule, "train_dataloader") else "test")
        names = ("train", "val") if methods.defines(source, "train_dataloader") else ("test", "predict")
        for job in names:
            if job not in found and methods.defines(source, f"{job}_dataloader"):
                found[job] = getattr(source, f"{job}_dataloader")()
    if not found:
        raise ConfigError(
            f"there is no data: give train_dataloaders=DataLoader(...), or {type(module).__name__} a method "
            "train_dataloader()"
        )
    return {job: _single(job, loader) for job, loader in found.items() if _is_wanted(module, job, found)}


def _single(job: str, loader: Any) -> Any:
    """The only loader of a job; a dict that describes one is left as it is."""
    described = isinstance(loader, Mapping) and ("dataset" in loader or "type" in loader)
    if described or not isinstance(loader, list | tuple | Mapping):
        return loader
    if isinstance(loader, list | tuple) and len(loader) == 1:
        return loader[0]
    raise IncompatibleError(
        f"{job}_dataloaders holds {len(loader)} loaders, which is not taken over; evaluate them one after "
        "the other, or join their data sets by torch.utils.data.ConcatDataset"
    )


def _is_wanted(module: nn.Module, job: str, found: Mapping[str, Any]) -> bool:
    if job == "val" and "train" in found and not methods.defines(module, "validation_step"):
        told = f"{type(module).__name__} has no validation_step, so val_dataloaders= is not used"
        warnings.warn(told, stacklevel=5)
        return False
    methods.require(module, job)
    return True
