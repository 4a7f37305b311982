"""Arguments that the runner does not take, and what was meant by them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from stratrun.errors import ConfigError, MissingArgumentError, UnknownNameError, nearest
from stratrun.problems import part
from stratrun.registry import RUNNERS
from stratrun.registry.arguments import at, meant, name_of, parameters_of
from stratrun.registry.spec import edited

# What other frameworks call an argument of ours, and settings that belong into one of ours.
_ELSEWHERE = {
    "accumulate_grad_batches": "train_cfg=dict(accumulate=...)",
    "batch_size": "train_dataloader=dict(dataset=..., batch_size=...)",
    "callbacks": "custom_hooks=[...]",
    "ckpt_path": "resume=... or load_from=...",
    "device": "accelerator=...",
    "detect_anomaly": "dev_cfg=dict(detect_anomaly=True)",
    "devices": "stratrun launch -n ..., which starts the processes",
    "epochs": "train_cfg=dict(max_epochs=...)",
    "fast_dev_run": "dev_cfg=dict(fast_dev_run=True)",
    "fp16": "precision='16-mixed'",
    "gradient_clip_val": "clip_grad=...",
    "gradient_checkpointing": "activation_checkpointing=True",
    "hooks": "custom_hooks=[...], or default_hooks=dict(...) for ours",
    "launcher": "stratrun launch, which starts the processes",
    "limit_batches": "dev_cfg=dict(limit_batches=...)",
    "limit_predict_batches": "dev_cfg=dict(limit_batches=dict(predict=...))",
    "limit_test_batches": "dev_cfg=dict(limit_batches=dict(test=...))",
    "limit_train_batches": "dev_cfg=dict(limit_batches=dict(train=...))",
    "limit_val_batches": "dev_cfg=dict(limit_batches=dict(val=...))",
    "logger": "loggers=[...]",
    "lr": "optimizer=dict(type=..., lr=...)",
    "lr_scheduler": "param_scheduler=dict(type=...)",
    "max_epochs": "train_cfg=dict(max_epochs=...)",
    "max_iters": "train_cfg=dict(by_epoch=False, max_iters=...)",
    "max_steps": "train_cfg=dict(by_epoch=False, max_iters=...)",
    "metrics": "val_evaluator=...",
    "num_nodes": "stratrun launch --nodes ..., which starts the processes",
    "num_sanity_val_steps": "dev_cfg=dict(sanity_batches=...)",
    "optim_wrapper": "optimizer=..., clip_grad=..., precision=...",
    "overfit_batches": "dev_cfg=dict(overfit_batches=...)",
    "sanity_batches": "dev_cfg=dict(sanity_batches=...)",
    "scheduler": "param_scheduler=dict(type=...)",
    "seed": "randomness=dict(seed=...)",
    "torch_compile": "compile=True",
    "val_interval": "train_cfg=dict(max_epochs=..., val_interval=...)",
    "visualizer": "loggers=[...]",
}


def refuse_unknown(
    given: Iterable[str], known: Collection[str], who: str, places: Mapping[str, str]
) -> dict[str, str | None]:
    """
    Args:
        who: What takes the arguments, for the message.
        places: Where each was written, as far as that is known.

    Returns:
        Those that are unknown, where problems are gathered, and what was probably meant.

    Raises:
        ConfigError: one is unknown; says what it is called here, or what is nearest.
    """
    refused: dict[str, str | None] = {}
    for name in given:
        if name in known:
            continue
        hint = f"use {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(str(name), known)
        refused[name] = meant(hint)
        with part(name):
            raise ConfigError(f"{who} takes no argument {name!r}; {hint}{at(places, name)}")
    return refused


def of_config(cfg: Any, default: type) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class that a config names, or the default, and its arguments.

    Raises:
        ConfigError: it is no config, or a key of it is no argument of that class.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigError(
            f"from_cfg({cfg!r}): a config is a dict or a Config, not a {type(cfg).__name__}; "
            "read a file with Config.load(path)"
        )
    places: Mapping[str, str] = getattr(cfg, "places", {})
    kind = cfg.get("runner_type", default)
    entry, found = default, False
    with part("runner_type"):
        entry, found = _named(kind, places), True
    if not found:
        # Stands for it, so that the rest is looked at; what it does not take may be that one's own.
        kind = default
        own = parameters_of(default) or {}
        cfg = edited(cfg, drop=[key for key in cfg if key not in own])
    refused: dict[str, str | None] = {}
    if isinstance(entry, type):
        parameters = parameters_of(entry) or {}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            given = [key for key in cfg if key != "runner_type"]
            refused = refuse_unknown(given, parameters, f"config: {name_of(entry)}", places)
        cfg = _as_meant(cfg, refused)
        if "model" in parameters and "model" not in cfg:
            with part():
                raise MissingArgumentError(
                    "the config has no 'model'; add one, such as model: {type: MyNet}, with its class "
                    "registered in MODELS, or of torch.nn"
                )
            cfg = edited(cfg, put={"model": dict})  # stands for it, so that the rest is looked at
    return RUNNERS.check(edited(cfg, drop=["runner_type"], put={"type": kind}), where="config")


def _named(kind: Any, places: Mapping[str, str]) -> Any:
    """The class of a name that is no path; anything else as it is."""
    if not isinstance(kind, str) or "." in kind:
        return kind
    try:
        return RUNNERS.get(kind)
    except UnknownNameError as error:
        raise UnknownNameError(f"runner_type={kind!r}: {error}{at(places, 'runner_type')}") from error


def _as_meant(cfg: Mapping[str, Any], refused: Mapping[str, str | None]) -> Mapping[str, Any]:
    """The config with what was refused read as what was probably meant: what is in it is looked at too."""
    if not refused:
        return cfg
    put = {name: cfg[key] for key, name in refused.items() if name is not None and name not in cfg}
    return edited(cfg, drop=refused, put=put)
