"""What torch is asked for in every step, without what looks after features that are not in use.

Of a step of a small model on the CPU, an eighth goes into Python around `run_backward` and
`Optimizer.step`. Nothing public leads past it, so the private names are all here; where any of those features
is in use, or a name is not there, the public call is made.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as of_optimizers

_run_backward: Callable[..., Any] | None = getattr(
    getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None
)
# Of such a mode all calls are to be heard.
_in_function_mode: Callable[[], bool] = getattr(torch._C, "_is_torch_function_mode_enabled", lambda: True)
_HOOKS_OF_ALL = tuple(
    getattr(of_optimizers, name, None)
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
)


def backward(loss: Tensor, seed: Tensor) -> None:
    """Add the gradients of a single number, times `seed`, of its shape and dtype."""
    # Not on other devices: what their threads are to know of this one is handed on by the public call.
    if _run_backward is None or type(loss) is not Tensor or not loss.is_cpu or _in_function_mode():
        loss.backward(seed)
        return
    _run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def step_of(optimizer: Optimizer) -> Callable[[], object]:
    """What makes an update of an optimizer: its `step`, without a section for the profiler if none is on."""
    kind: Any = type(optimizer).step
    inner = getattr(kind, "__wrapped__", None) if getattr(kind, "hooked", False) else None
    profiler = getattr(torch.autograd.profiler, "_is_profiler_enabled", None)
    if inner is None or profiler is None or None in _HOOKS_OF_ALL:
        return optimizer.step
    held = vars(optimizer)
    hooks = [held.get("_optimizer_step_pre_hooks"), held.get("_optimizer_step_post_hooks"), *_HOOKS_OF_ALL]
    if None in hooks:
        return optimizer.step

    def step() -> None:
        own = held.get("step")
        if torch.autograd.profiler._is_profiler_enabled or any(hooks):
            optimizer.step()
        elif own is None:
            inner(optimizer)
        elif hasattr(own, "_wrapped_by_lr_sched"):
            optimizer._opt_called = True  # type: ignore[attr-defined]  # all that a scheduler's wrapper does
            inner(optimizer)
        else:
            optimizer.step()

    return step
