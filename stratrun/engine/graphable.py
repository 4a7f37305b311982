"""What cannot be captured in a graph, or not safely."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from stratrun.engine.finite import Guard
from stratrun.errors import ConfigError


def refuse(
    *,
    captures: bool,
    device: str,
    strategy: str,
    scales: bool,
    accumulate: int,
    optimizers: Mapping[str, Optimizer],
    guard: Guard | None,
) -> None:
    """
    Raises:
        ConfigError: says what is in the way, why, and what to do.
    """
    if not captures:
        raise _error(
            f"captures the work of a CUDA device, and this run is on {device!r}; leave it out, or give "
            "compile=dict(step=True)"
        )
    if strategy != "single":
        raise _error(
            f"is for strategy='single', and this run has {strategy!r}, whose exchanges are not captured; "
            "leave it out, or give compile=dict(step=True)"
        )
    if scales:
        raise _error(
            "captures the update, and a precision that scales losses looks at each before it goes on; give "
            "precision='bf16-mixed'"
        )
    if accumulate != 1:
        raise _error(
            f"captures an update for each batch, and accumulate={accumulate} makes one of several; give "
            "larger batches, or leave one of the two out"
        )
    if len(optimizers) != 1:
        raise _error(
            f"captures one optimizer, and there are {len(optimizers)}; give one, with a group of parameters "
            "for each part, or compile=dict(step=True)"
        )
    _refuse_optimizer(next(iter(optimizers.values())), guard)


def _refuse_optimizer(optimizer: Optimizer, guard: Guard | None) -> None:
    name, fused = type(optimizer).__name__, all(group.get("fused") for group in optimizer.param_groups)
    # Torch has no public way to ask for them. Ours do what is captured, or hear of it otherwise.
    hooks = [
        hook
        for when in ("pre", "post")
        for hook in (getattr(optimizer, f"_optimizer_step_{when}_hooks", None) or {}).values()
        if not getattr(hook, "__module__", "").startswith("stratrun.")
    ]
    if hooks:
        shown = getattr(hooks[0], "__qualname__", repr(hooks[0]))
        raise _error(
            f"replays the step of {name}, and no replay calls {shown}, a hook of it; "
            "do its work in a hook of the runner, in before_train_iter or after_train_iter"
        )
    if not fused and "capturable" not in optimizer.defaults:
        raise _error(
            f"captures the update, for which {name} needs numbers on the host; take one that torch can "
            "capture, such as AdamW, or SGD with fused=True"
        )
    if guard is not None and guard.reason is not None:
        raise _error(
            f"captures the update, and non_finite={guard.settings.policy!r} has to know before each whether "
            f"it is made, unless the optimizer's kernel asks; give {name} fused=True where it takes that, or "
            "non_finite='ignore'"
        )


def refuse_draws(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Tell of a step that has moved generators of the host, given their state before it and after.

    Raises:
        ConfigError: it has; each replay would have the numbers of the step that was captured.
    """
    moved = [name for name in before if name in after and not _alike(before[name], after[name])]
    if moved:
        raise _error(
            "replays what the device does, and the training step draws random numbers on the host "
            f"(of {', '.join(moved)}), which each replay would have alike; draw them with device=, or in the "
            "data set, or leave graphs= out"
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return all(_alike(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    return bool(one == other)


def _error(text: str) -> ConfigError:
    return ConfigError(f"compile: graphs=True {text}")
