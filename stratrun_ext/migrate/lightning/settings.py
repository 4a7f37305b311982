"""Arguments of Lightning's Trainer in the words of a `Runner`."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from stratrun import Runner
from stratrun.errors import ConfigError, nearest
from stratrun.hooks import Hook

_PRECISIONS = {
    "32": "32-true",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "64": "64-true",
}
_STRATEGIES = {
    "ddp_find_unused_parameters_true": "strategy=dict(type='ddp', find_unused_parameters=True)",
    "ddp_spawn": "strategy='ddp', started by stratrun launch",
    "ddp_notebook": "strategy='ddp', started by stratrun launch",
    "ddp_fork": "strategy='ddp', started by stratrun launch",
}
_NOTHING = (
    "enable_progress_bar",
    "enable_model_summary",
    "barebones",
)
"""Taken, with nothing to do: the console decides by itself what it shows."""
_INSTEAD = {
    "max_steps": "max_epochs=, or stratrun.Runner with train_cfg=dict(max_iters=...)",
    "min_epochs": "EarlyStoppingHook(...) among callbacks=",
    "min_steps": "EarlyStoppingHook(...) among callbacks=",
    "max_time": "control_cfg=dict(time_limit=...)",
    "limit_train_batches": "dev_cfg=dict(limit_batches=...)",
    "limit_val_batches": "dev_cfg=dict(limit_batches=...)",
    "limit_test_batches": "dev_cfg=dict(limit_batches=...)",
    "limit_predict_batches": "dev_cfg=dict(limit_batches=...)",
    "overfit_batches": "dev_cfg=dict(overfit_batches=...)",
    "num_sanity_val_steps": "dev_cfg=dict(sanity_batches=...)",
    "detect_anomaly": "dev_cfg=dict(detect_anomaly=True)",
    "val_check_interval": "train_cfg=dict(val_interval=...) in epochs, or check_val_every_n_epoch=",
    "benchmark": "env_cfg=dict(cudnn_benchmark=True)",
    "inference_mode": "nothing: evaluation runs without gradients",
    "profiler": "ProfilerHook(...) among callbacks=",
    "plugins": "strategy= and precision= of stratrun",
    "sync_batchnorm": "torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)",
    "reload_dataloaders_every_n_epochs": "a data set that knows its epoch (docs/data.md)",
    "fast_dev_run": "dev_cfg=dict(fast_dev_run=True)",
    "use_distributed_sampler": "DataLoader(..., sampler=...) of your own, which is left as it is",
    "model_registry": "nothing: checkpoints lie in work_dir",
}


def settings_of(arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many epochs, and the arguments of a `Runner`, of those of a Trainer.

    Raises:
        ConfigError: one is not taken over, or not known; says what to write instead.
    """
    given, options = dict(arguments), dict[str, Any]()
    epochs = given.pop("max_epochs", None)
    for name, instead in _INSTEAD.items():
        if given.get(name) is not None and not _is_default(name, given[name]):
            raise ConfigError(f"Trainer({name}={given[name]!r}) is not taken over; give {instead}")
        given.pop(name, None)
    for name in _NOTHING:
        given.pop(name, None)
    _loop(given, options)
    _layers(given, options)
    _beside(given, options)
    known = inspect.signature(Runner).parameters
    for name in given:
        if name not in known:
            near = nearest(name, [*known, *_INSTEAD, "max_epochs", "devices", "callbacks", "logger"])
            raise ConfigError(f"Trainer({name}={given[name]!r}) is not known; {near}")
    return 1000 if epochs is None else epochs, {**options, **given}


# The values that say to do as always.
_OFF: dict[str, tuple[Any, ...]] = {
    "num_sanity_val_steps": (0, 2),
    "max_steps": (-1,),
    "overfit_batches": (0, 0.0),
    "val_check_interval": (1.0,),
    **{f"limit_{job}_batches": (1.0,) for job in ("train", "val", "test", "predict")},
}


def _is_default(name: str, value: Any) -> bool:
    # An int of 1 is one batch, and 1.0 all of them.
    if name == "use_distributed_sampler":
        return value is True
    return value is False or any(value == off and type(value) is type(off) for off in _OFF.get(name, ()))


def _loop(given: dict[str, Any], options: dict[str, Any]) -> None:
    cfg = dict(given.pop("train_cfg", None) or {})
    for theirs, ours in {
        "accumulate_grad_batches": "accumulate",
        "check_val_every_n_epoch": "val_interval",
    }.items():
        if given.get(theirs) is not None:
            cfg[ours] = given[theirs]
        given.pop(theirs, None)
    if cfg:
        options["train_cfg"] = cfg
    clip, by = given.pop("gradient_clip_val", None), given.pop("gradient_clip_algorithm", None)
    if clip:
        options["clip_grad"] = {"value": clip} if by == "value" else {"max_norm": clip}


def _processes(given: dict[str, Any]) -> None:
    devices, nodes = given.pop("devices", "auto"), given.pop("num_nodes", None) or 1
    there, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    count = len(devices) if isinstance(devices, list | tuple) else devices
    if isinstance(count, int) and count > 0 and count * nodes != there and count * nodes > 1:
        several = f" --nodes {nodes} --rendezvous HOST:PORT" if nodes > 1 else ""
        raise ConfigError(
            f"Trainer(devices={devices!r}{f', num_nodes={nodes}' if nodes > 1 else ''}): "
            f"{'this is 1 process' if there == 1 else f'these are {there} processes'}, and stratrun starts "
            f"none by itself; run stratrun launch -n {count}{several} program.py"
        )
    if not isinstance(count, int) and nodes * here > there:
        raise ConfigError(
            f"Trainer(num_nodes={nodes}): there are {there} processes, {here} of them on this machine; run "
            f"stratrun launch --nodes {nodes} --rendezvous HOST:PORT program.py on each machine"
        )


def _layers(given: dict[str, Any], options: dict[str, Any]) -> None:
    _processes(given)
    strategy = given.pop("strategy", "auto")
    if isinstance(strategy, str) and strategy in _STRATEGIES:
        raise ConfigError(f"Trainer(strategy={strategy!r}) is not taken over; give {_STRATEGIES[strategy]}")
    if type(strategy).__module__.startswith(("lightning", "pytorch_lightning")):
        raise ConfigError(
            f"Trainer(strategy={type(strategy).__name__}(...)) is Lightning's; give its name, or "
            "dict(type='fsdp', ...) (docs/strategies.md)"
        )
    options["strategy"] = strategy
    accelerator = given.pop("accelerator", "auto")
    options["accelerator"] = "cuda" if accelerator == "gpu" else accelerator
    precision = given.pop("precision", None)
    if precision is not None:
        options["precision"] = _PRECISIONS.get(str(precision), precision)


def _beside(given: dict[str, Any], options: dict[str, Any]) -> None:
    root = given.pop("default_root_dir", None)
    if root is not None:
        options["work_dir"] = root
    hooks = given.pop("callbacks", None) or []
    for hook in hooks if isinstance(hooks, list | tuple) else [hooks]:
        if not isinstance(hook, Hook | Mapping):
            raise ConfigError(
                f"Trainer(callbacks=[{type(hook).__name__}(...)]) is no hook of stratrun; "
                f"{_hook_for(type(hook).__name__)}"
            )
        options.setdefault("custom_hooks", []).append(hook)
    shown = given.pop("logger", None)
    if shown is False:
        options["loggers"] = ["console"]
    elif shown is not None and shown is not True:
        raise ConfigError(
            f"Trainer(logger={type(shown).__name__}(...)) is no logger of stratrun; give "
            "loggers=['console', 'csv', 'tensorboard'] (docs/logging.md)"
        )
    every = given.pop("log_every_n_steps", None)
    hooked: dict[str, Any] = dict(given.pop("default_hooks", None) or {})
    if every is not None:
        hooked.setdefault("logger", {"interval": every})
    if given.pop("enable_checkpointing", None) is False:
        hooked["checkpoint"] = None
    if hooked:
        options["default_hooks"] = hooked
    if given.get("deterministic") is not None:
        options["randomness"] = {
            **(given.pop("randomness", None) or {}),
            "deterministic": given["deterministic"],
        }
    given.pop("deterministic", None)


def _hook_for(name: str) -> str:
    instead = {
        "ModelCheckpoint": "give default_hooks=dict(checkpoint=dict(save_best='val_loss'))",
        "EarlyStopping": "give dict(type='EarlyStoppingHook', monitor='val_loss')",
        "LearningRateMonitor": "leave it out: learning rates are logged",
        "StochasticWeightAveraging": "give dict(type='SWAHook')",
    }
    return instead.get(name, "write its methods as those of a stratrun.Hook (docs/custom_hook.md)")
