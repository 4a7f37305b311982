"""Updates by one kernel for all parameters, where that comes to the same and is faster.

Torch leaves it to the user, as its kernels take less than its loops do. They read parameters, gradients and
state by their place in memory, so that all of them have to lie there in the same way.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from stratrun.spread import is_spread, local_part

_SPREAD = (Adam, AdamW)
"""Of which torch has the kernel for parts of parameters too."""


def pays(
    entry: Callable[..., Any],
    options: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    module: nn.Module,
) -> bool:
    """Whether an optimizer of a spec is to be built with ``fused=True``.

    Not of classes derived from torch's, and not where the user has said how updates are made.
    """
    if entry not in (SGD, Adam, AdamW, Adagrad) or {"fused", "foreach"} & options.keys():
        return False
    if options.get("differentiable") or options.get("capturable"):
        return False
    kinds = {parameter.device.type for parameter in parameters}
    if len({parameter.device for parameter in parameters}) > 1 or not kinds <= _devices(entry, options):
        return False
    if entry is SGD and not _keeps_to_momentum(options, parameters):
        return False
    spread = {_placement(parameter) for parameter in parameters}
    if len(spread) > 1 or (spread != {None} and entry not in _SPREAD):
        return False
    return all(map(_is_dense, parameters)) and not _gets_sparse_gradients(module, parameters)


def keep_momentum_whole(optimizer: Optimizer) -> None:
    """Have fused SGD begin with a momentum of zero for each parameter that gets its first gradient.

    Torch's own knows one first update for all parameters: it fails where one is thawed later, and where that
    first update is dropped for an overflow it goes on with memory that nobody has written to.
    """
    groups = optimizer.param_groups
    if type(optimizer) is SGD and any(one["fused"] and not one["dampening"] for one in groups):
        optimizer.register_step_pre_hook(_begin_momentum)


def lay_out_gradients(optimizer: Optimizer) -> None:
    """Have a kernel find gradients where it looks for them.

    Those of a backward pass lie as their parameters do, but not all that a loop sets by itself: numbers of a
    transposed one would go to other places, and of an expanded one memory be read that is not its own.
    """
    groups = optimizer.param_groups
    if any(group.get("fused") for group in groups):
        spread = any(is_spread(parameter) for group in groups for parameter in group["params"])
        optimizer.register_step_pre_hook(_lay_out_parts if spread else _lay_out)


def told(optimizers: Mapping[str, Optimizer], default: str) -> list[str]:
    """A line on each optimizer that updates by one kernel."""
    return [
        f"{'optimizer' if name == default else f'optimizer.{name}'}: {type(one).__name__}, fused"
        for name, one in optimizers.items()
        if all(group.get("fused") for group in one.param_groups)
    ]


def _begin_momentum(optimizer: Optimizer, *_: Any) -> None:
    state = optimizer.state
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"] or group["dampening"]:
            continue
        for parameter in group["params"]:
            if parameter.grad is not None and state[parameter].get("momentum_buffer") is None:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _lay_out(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and not (gradient.is_contiguous() and parameter.is_contiguous()):
                _lay_out_one(parameter, gradient)


def _lay_out_parts(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                _lay_out_one(parameter, parameter.grad)


def _lay_out_one(parameter: Tensor, gradient: Tensor) -> None:
    mine, theirs = local_part(gradient), local_part(parameter)
    # Sparse ones, and parts that are cut in another way, are torch's to refuse.
    if mine.layout is not torch.strided or mine.shape != theirs.shape or mine.stride() == theirs.stride():
        return
    made = torch.empty_like(parameter, dtype=gradient.dtype, requires_grad=False)
    local_part(made).copy_(mine)
    parameter.grad = made


def _devices(entry: Callable[..., Any], options: Mapping[str, Any]) -> set[str]:
    if entry is SGD and not options.get("momentum"):
        # A product and a sum for each parameter, which on the CPU the kernel makes no faster.
        return {"cuda"}
    # On GPUs not every torch that we run with has that of Adagrad.
    return {"cpu"} if entry is Adagrad else {"cpu", "cuda"}


def _keeps_to_momentum(options: Mapping[str, Any], parameters: Iterable[Tensor]) -> bool:
    """Whether the kernel of SGD comes to what it should: with momentum in 16 bits that of the CPU does not.

    With dampening the first gradient of a parameter counts in full, which it knows of all of them only.
    """
    return not options.get("dampening") and all(p.dtype in (torch.float32, torch.float64) for p in parameters)


def _placement(parameter: Any) -> Any:
    return (parameter.device_mesh, tuple(parameter.placements)) if is_spread(parameter) else None


def _is_dense(parameter: Tensor) -> bool:
    """Whether it is of real numbers, and state that is made like it lies in memory as it does."""
    part = local_part(parameter)
    alike = part.is_contiguous() or torch.empty_like(part, device="meta").stride() == part.stride()
    return part.is_floating_point() and alike


def _gets_sparse_gradients(module: nn.Module, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether some are of a layer such as ``nn.Embedding(sparse=True)``."""
    sparse = {
        parameter
        for one in module.modules()
        if getattr(one, "sparse", False) is True
        for parameter in one.parameters(recurse=False)
    }
    return not sparse.isdisjoint(parameters)
