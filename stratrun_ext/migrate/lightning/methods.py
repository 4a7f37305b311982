"""Which of Lightning's methods a class defines itself, how they are called, and those that are refused."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from stratrun.errors import IncompatibleError, ModelError

_BASES = (
    *("lightning.pytorch.core.", "pytorch_lightning.core.", "lightning.fabric.", "lightning_fabric."),
    *("torch.nn.modules.module", "stratrun_ext.migrate."),
)
REFUSED = {
    "backward": "gradients are computed by the run: write a loop of your own (docs/custom_loop.md)",
    "optimizer_step": "updates are made by the run: write a loop of your own (docs/custom_loop.md)",
    "optimizer_zero_grad": "updates are made by the run: write a loop of your own (docs/custom_loop.md)",
    "lr_scheduler_step": "return schedulers of torch from configure_optimizers, or a LambdaLR",
    "configure_gradient_clipping": "give gradient_clip_val=, or clip_grad=dict(max_norm=, value=)",
    "configure_callbacks": "give hooks of stratrun as custom_hooks=",
    "configure_sharded_model": "build layers in __init__ or configure_model()",
    "transfer_batch_to_device": "batches are moved by the run; give them a method to(device)",
    "on_before_batch_transfer": "do it in collate_fn= of the loader, or in on_after_batch_transfer",
    "on_before_backward": "do it at the end of training_step",
    "on_after_backward": "do it in on_before_optimizer_step(optimizer)",
    "on_before_zero_grad": "do it in on_train_batch_end",
    "training_step_end": "do it at the end of training_step",
    "validation_step_end": "do it at the end of validation_step",
    "test_step_end": "do it at the end of test_step",
    "training_epoch_end": "rename it to on_train_epoch_end(self), and keep outputs in a list",
    "validation_epoch_end": "rename it to on_validation_epoch_end(self), and keep outputs in a list",
    "test_epoch_end": "rename it to on_test_epoch_end(self), and keep outputs in a list",
    "on_epoch_end": "rename it to on_train_epoch_end(self)",
    **dict.fromkeys(
        [
            f"on_{job}_model_{do}"
            for job in ("validation", "test", "predict")
            for do in ("eval", "train", "zero_grad")
        ],
        "the run puts the model into the mode of each job: do it in on_validation_start and the like",
    ),
    "teardown": "do it in on_fit_end, on_test_end or on_predict_end",
    "tbptt_split_batch": "cut sequences in the data set",
}
"""Methods that nothing here would call, and what to do instead."""


def defines(owner: Any, name: str) -> bool:
    """Whether the class of an object has this method from somebody else than a framework."""
    return any(
        name in vars(kind) and not f"{kind.__module__}.".startswith(_BASES) for kind in type(owner).__mro__
    )


def check(module: Any) -> None:
    """Refuse a class that cannot be trained as it was meant.

    Raises:
        ModelError: it is no module, lacks a method, or relies on one that would not be called.
        IncompatibleError: it asks for optimization by hand.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else f"a {name}"
        hint = f"{module.__name__}(...)" if isinstance(module, type) else "nn.Module or LightningModule"
        raise ModelError(f"model={given} is no module to train; give an instance: {hint}")
    for method, instead in REFUSED.items():
        if defines(module, method):
            raise ModelError(f"{name}.{method} would not be called here, so it is refused; {instead}")
    for method in ("train_step", "val_step"):
        if defines(module, method):
            raise ModelError(
                f"{name} has a {method} of its own, which stratrun calls in the place of Lightning's steps; "
                "rename it, or give the model to stratrun.Runner as it is"
            )
    if getattr(module, "automatic_optimization", True) is False:
        raise IncompatibleError(
            f"{name}.automatic_optimization=False: optimization by hand is not taken over; move the body of "
            "training_step to run_iter of a loop, with runner.engine.update(loss, optimizer='name') "
            "(docs/custom_loop.md)"
        )


def require(module: nn.Module, job: str) -> None:
    """Refuse a job for which the class has no step."""
    steps = {"train": ("training_step", "configure_optimizers"), "val": ("validation_step",)}
    for method in steps.get(job, (f"{job}_step",)):
        if not defines(module, method) and job != "predict":
            raise ModelError(
                f"{type(module).__name__} has no {method}, which {job} needs; "
                f"define {method}(self{'' if method.startswith('conf') else ', batch, batch_idx'})"
            )


def call(method: Callable[..., Any], batch: Any, batch_idx: int) -> Any:
    """Call a step with as much of (batch, batch_idx, dataloader_idx) as it takes."""
    parameters = inspect.signature(method).parameters
    if "dataloader_iter" in parameters:
        raise ModelError("a step of dataloader_iter is not taken over; take (batch, batch_idx)")
    named = {"batch_idx": batch_idx, "dataloader_idx": 0}
    rest = list(parameters.values())[1:]
    if any(one.kind is one.VAR_POSITIONAL for one in rest):
        return method(batch, batch_idx)
    if rest and rest[0].name not in named and rest[0].default is rest[0].empty:
        # Some call it otherwise; its place says what it is.
        return method(batch, batch_idx)
    return method(batch, **{one.name: named[one.name] for one in rest if one.name in named})
