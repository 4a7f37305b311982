"""State under logical names, of models that each rank has whole or that are spread over them.

`torch.distributed.checkpoint.state_dict` does the same, but steps an optimizer that has no state
yet, with side effects on the run; here nothing is touched.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.errors import CheckpointError, nearest
from stratrun.spread import Divided, is_spread, is_unsettled, spread_as
from stratrun.strategies.optimizer_shards import OptimizerShards

WAYS = ("foreach", "fused", "capturable", "differentiable")
"""Options of optimizers that say how an update is computed, not what it comes to. Which of them can be had
depends on where the parameters are, so that a run keeps its own whatever it loads."""

_SCALARS = "spread_scalars"


def state_dict(
    module: nn.Module, optimizers: Mapping[str, Optimizer], shards: OptimizerShards | None = None
) -> dict[str, Any]:
    """`model`: the module's own state dict. `optimizers`: see `optimizer_state`."""
    model = module.state_dict()  # first, as it has what a forward pass gathered given back
    names = parameter_names(module)
    return {
        "model": model,
        "optimizers": {
            key: optimizer_state(optimizer, names, shards) for key, optimizer in optimizers.items()
        },
    }


def load_state_dict(
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    shards: OptimizerShards | None = None,
) -> None:
    """Restore what `state_dict` returned, exactly: every name must be on both sides.

    Raises:
        CheckpointError: names or shapes differ; says which.
    """
    load_model(module, state["model"])
    names = parameter_names(module)
    for key, optimizer in optimizers.items():
        if key not in state["optimizers"]:
            raise CheckpointError(
                f"the checkpoint has no state for optimizer {key!r}; {nearest(key, state['optimizers'])}"
            )
        load_optimizer_state(optimizer, names, state["optimizers"][key], key, shards)


def load_model(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Restore weights and buffers, whole or spread over ranks as those of the module are.

    Raises:
        CheckpointError: names or shapes differ; says which.
    """
    own = module.state_dict()
    values = OrderedDict((name, spread_as(value, own.get(name))) for name, value in state.items())
    # The versions of the modules, by which they tell what of an older one they have to adapt.
    values._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        raise CheckpointError(f"the model does not fit the checkpoint: {error}") from error


def parameter_names(module: nn.Module) -> dict[Tensor, str]:
    """The name of each parameter; the first one, of a parameter that has several."""
    return {parameter: name for name, parameter in module.named_parameters()}


def optimizer_state(
    optimizer: Optimizer, names: Mapping[Tensor, str], shards: OptimizerShards | None = None
) -> dict[str, Any]:
    """`state` by parameter name, and `param_groups` that list names in place of indices.

    With `shards` the state is that of this rank's parameters.
    """
    packed = optimizer.state_dict()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    by_index = {index: names[p] for index, p in enumerate(held)}
    state = {by_index[index]: _settled(values) for index, values in packed["state"].items()}
    scalars = {name: found for name, values in state.items() if (found := _spread_scalars(values))}
    groups = [
        {**group, "params": [by_index[index] for index in group["params"]]}
        for group in packed["param_groups"]
    ]
    return {
        "state": state if shards is None else Divided(state),
        "param_groups": groups,
        **({_SCALARS: scalars} if scalars else {}),
        **{key: value for key, value in packed.items() if key not in ("state", "param_groups")},
    }


def load_optimizer_state(
    optimizer: Optimizer,
    names: Mapping[Tensor, str],
    state: dict[str, Any],
    key: str,
    shards: OptimizerShards | None = None,
) -> None:
    """Restore by name, whatever the order of the parameters is now, and however they are updated."""
    own = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    saved = [group["params"] for group in state["param_groups"]]
    if [sorted(group) for group in own] != [sorted(group) for group in saved]:
        lacking = sorted({n for g in own for n in g} ^ {n for g in saved for n in g})
        what = f"on one side only: {', '.join(lacking[:5])}" if lacking else "the groups are cut differently"
        raise CheckpointError(f"the parameters of optimizer {key!r} are not those of the checkpoint ({what})")
    index = {name: i for i, name in enumerate(name for group in own for name in group)}
    groups = [
        {**theirs, **_ways(group), "params": [index[name] for name in mine]}
        for theirs, group, mine in zip(state["param_groups"], optimizer.param_groups, own, strict=True)
    ]
    held = {name: p for p, name in names.items() if shards is None or shards.holds(p)}
    scalars = state.get(_SCALARS, {})
    values = {
        index[name]: _cloned(v, held[name], scalars.get(name, ()))
        for name, v in state["state"].items()
        if shards is None or name in held
    }
    rest = {k: v for k, v in state.items() if k not in ("state", "param_groups", _SCALARS)}
    # Asked for before loading, which adds a default that only torch's own optimizers have in their groups.
    expected = set(optimizer.defaults)
    try:
        optimizer.load_state_dict({"state": values, "param_groups": groups, **rest})
        lacking = sorted(expected - optimizer.param_groups[0].keys())
        if lacking:
            raise KeyError(", ".join(lacking))
    except KeyError as error:  # some classes ask for theirs while they load
        raise CheckpointError(
            f"optimizer {key!r}, {type(optimizer).__name__}, is of another class than the checkpoint's; "
            f"that had no {error.args[0]}; use the same, or only the weights, with load_from="
        ) from error


def _ways(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group keeps of its own: how it is updated, and what it is called."""
    return {name: group[name] for name in (*WAYS, "name") if name in group}


def _settled(values: Any) -> Any:
    """The same, with sums that are still to be taken over ranks taken, as files hold no terms of one."""
    if isinstance(values, dict):
        return {name: _settled(value) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_settled(value) for value in values)
    return _copies(values) if is_unsettled(values) else values


def _spread_scalars(values: Any) -> list[Any]:
    """Which entries are single numbers that all ranks have together, unlike a count of steps."""
    if not isinstance(values, dict):
        return []
    return [name for name, value in values.items() if is_spread(value) and not value.ndim]


def _cloned(values: Any, parameter: Tensor, scalars: Collection[Any] = ()) -> Any:
    """Tensors of their own, which the optimizer may then update in place; spread as the parameter is.

    Those of another shape, as means over rows are, become copies that are known to be such, since torch does
    not calculate with parts and plain tensors at once. Single numbers it takes as they are.
    """
    if isinstance(values, dict):
        return {
            name: _copied(value, parameter)
            if name in scalars and isinstance(value, Tensor)
            else _cloned(value, parameter)
            for name, value in values.items()
        }
    if type(values) in (list, tuple):
        return type(values)(_cloned(value, parameter) for value in values)
    if not isinstance(values, Tensor):
        return values
    if values.ndim and values.shape != parameter.shape:
        return _copied(values, parameter)
    spread = spread_as(values, parameter)
    if spread is not values:
        return spread
    if values.shape != parameter.shape or values.stride() == parameter.stride():
        return values.clone()
    # In memory as the parameter is: files have no strides, and fused kernels go by the place in it.
    return torch.empty_like(parameter, dtype=values.dtype, device=values.device, requires_grad=False).copy_(
        values
    )


def _copied(value: Tensor, parameter: Any) -> Tensor:
    """A whole copy on each rank that has a part of the parameter, and of others a plain one."""
    if is_spread(value):
        return _copies(value).clone()
    if not is_spread(parameter):
        return value.clone()
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    copy = value.to(parameter.device, copy=True)
    return DTensor.from_local(copy, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _copies(spread: Any) -> Tensor:
    from torch.distributed.tensor import Replicate

    mesh = spread.device_mesh
    whole: Tensor = spread.redistribute(mesh, [Replicate()] * mesh.ndim)
    return whole
