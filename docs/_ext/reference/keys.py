"""The keys of a config: arguments of the runner, what is said of them, and the pages that say more."""

from __future__ import annotations

import inspect
import re

import stratrun
from reference import rst

# Where keys of a config are told of at length.
_PAGES = {
    "models": ("model", "loss"),
    "data": ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    "prediction": ("predict_dataloader", "predict_cfg"),
    "metrics": ("val_evaluator", "test_evaluator"),
    "custom_loop": ("train_cfg", "val_cfg", "test_cfg", "predict_cfg"),
    "optimizers": ("optimizer", "train_cfg"),
    "schedules": ("param_scheduler",),
    "strategies": ("strategy",),
    "launch": ("accelerator", "strategy"),
    "precision": ("precision", "clip_grad"),
    "non_finite": ("non_finite",),
    "compile": ("compile", "activation_checkpointing"),
    "custom_hook": ("custom_hooks", "default_hooks"),
    "logging": ("loggers", "work_dir", "name"),
    "loading": ("load_from",),
    "exact_resume": ("resume",),
    "determinism": ("randomness",),
    "performance": ("env_cfg",),
    "checkpoints": ("checkpoint_cfg", "default_hooks"),
    "control": ("control_cfg",),
    "inference": ("inference_cfg",),
    "developing": ("dev_cfg",),
}
# An argument and what is said of it, over as many lines as that takes.
_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.M)


def rows() -> list[list[str]]:
    parameters = list(inspect.signature(stratrun.Runner.__init__).parameters.values())[1:]
    section = inspect.cleandoc(stratrun.Runner.__doc__ or "").partition("Args:\n")[2]
    told = dict(_ARGUMENT.findall(section))
    return [
        [
            rst.code(one.name),
            "required" if one.default is one.empty else rst.code(repr(one.default)),
            rst.page(rst.prose(told.get(one.name, "")), _more(one.name)),
        ]
        for one in parameters
        if one.name != "cfg"
    ]


def _more(key: str) -> str:
    pages = [page for page, keys in _PAGES.items() if key in keys]
    return f"More: {', '.join(f':doc:`/{page}`' for page in pages)}." if pages else ""
