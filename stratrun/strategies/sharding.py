"""Which parameters are spread together, and over what."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parameter import is_lazy

from stratrun.blocks import select
from stratrun.blocks.select import Named, fits
from stratrun.errors import ConfigError, nearest
from stratrun.strategies.shard_options import ShardOptions

# Their parameters are not matrix products' and lower precision does not reach them in one process.
_KEEP_FORMAT = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
)


@dataclass(frozen=True, slots=True)
class Sharded:
    """A module after `shard`."""

    root: FSDPModule
    units: list[FSDPModule]
    """All parts whose parameters are gathered together, the root first."""
    stay_gathered: list[FSDPModule]
    """Those that a forward pass leaves gathered for the backward pass."""
    whole: frozenset[str]
    """Names of parameters that every rank has."""


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    options: ShardOptions,
    *,
    device: torch.device,
    compute_dtype: torch.dtype,
    what: str,
) -> Sharded:
    """Spread the parameters of a module over a mesh, in place; those without memory get none by it.

    Args:
        mesh: Of one dimension to shard over; or of two, the first of replicas.
        what: The argument that the options were given for.

    Raises:
        ConfigError: the options do not fit the model, or the model cannot be sharded.
    """
    model = model_of(module)
    _check_reshard(options, mesh, what)
    blocks = select(model, options.blocks, f"{what}: blocks")
    parameters = list(module.parameters())
    owners = _owners(module, blocks)
    whole = _kept_whole(module, model, options, what) | {p for p in parameters if owners[p] is None}
    for parameter in parameters:
        if not parameter.is_contiguous():  # as in formats for images
            parameter.data = parameter.data.contiguous()
        if parameter in whole and not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    offload = CPUOffloadPolicy(pin_memory=device.type != "cpu") if options.offload else OffloadPolicy()
    for block in [*(block for _, block in reversed(blocks)), module]:
        own = [p for p in parameters if owners[p] is block and p not in whole]
        # Before the hook that this adds, by which a backward pass gathers the block again.
        block.register_forward_hook(_without_views)
        # On a CPU a norm takes no weight of 16 bits for inputs of 32, which autocast sees to elsewhere.
        low = device.type != "cpu" and block is not module and not isinstance(block, _KEEP_FORMAT)
        fully_shard(
            block,
            mesh=mesh,
            # Of the root the backward pass needs all at once, where the forward pass has just left it.
            reshard_after_forward=options.reshard_after_forward if block is not module else False,
            mp_policy=_policy(own, options, compute_dtype if low else None, model, what),
            offload_policy=offload,
            ignored_params=set(parameters).difference(own),
        )
    units: list[FSDPModule] = [part for part in module.modules() if isinstance(part, FSDPModule)]
    assert isinstance(module, FSDPModule)
    stay: list[FSDPModule] = [module] if options.reshard_after_forward else units
    return Sharded(module, units, stay, frozenset(n for n, p in module.named_parameters() if p in whole))


def _without_views(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Copy what is a view: what hangs on an output would be lost where a model writes into that in place."""
    if isinstance(output, torch.Tensor):
        return output.clone() if output.requires_grad and output._is_view() else output
    if type(output) in (tuple, list):
        return type(output)(_without_views(module, arguments, one) for one in output)
    if type(output) is dict:
        return {key: _without_views(module, arguments, one) for key, one in output.items()}
    return output


def model_of(module: nn.Module) -> nn.Module:
    """The user's model within what is placed: names that the user writes are relative to it."""
    inner = getattr(module, "model", None)
    return inner if isinstance(inner, nn.Module) else module


def _owners(root: nn.Module, blocks: Named) -> dict[nn.Parameter, nn.Module | None]:
    """With which block each parameter is gathered: the innermost that has it; with the root, outside of all.

    One that several share is gathered with the one among them that the others are within. None if there is
    none: it cannot be spread, as each of them would gather it for itself.
    """
    parts = {id(block) for _, block in blocks}
    paths: dict[nn.Parameter, set[tuple[nn.Module, ...]]] = {}
    for path, parameter in _uses(root, parts, (root,)):
        paths.setdefault(parameter, set()).add(path)
    owners: dict[nn.Parameter, nn.Module | None] = {}
    for parameter, found in paths.items():
        top = min(found, key=len)
        owners[parameter] = top[-1] if all(path[: len(top)] == top for path in found) else None
    return owners


def _uses(
    module: nn.Module, blocks: set[int], path: tuple[nn.Module, ...]
) -> Iterator[tuple[tuple[nn.Module, ...], nn.Parameter]]:
    """Each parameter, as often as modules have it, with the blocks around it from the root on."""
    for parameter in module._parameters.values():
        if parameter is not None:
            yield path, parameter
    for child in module.children():
        yield from _uses(child, blocks, (*path, child) if id(child) in blocks else path)


def _kept_whole(module: nn.Module, model: nn.Module, options: ShardOptions, what: str) -> set[nn.Parameter]:
    """What the user wants whole, and single numbers, which have no part that could be elsewhere."""
    named = dict(model.named_parameters(remove_duplicate=False))
    whole = {p for p in module.parameters() if p.dim() == 0 or p.is_complex()}
    for pattern in options.ignore:
        found = {p for name, p in named.items() if _names(pattern, name)}
        if not found:
            known = [*named, *(name for name, _ in model.named_modules() if name)]
            raise ConfigError(f"{what}: ignore={pattern!r} names no parameter; {nearest(pattern, known)}")
        whole |= found
    return whole


def _names(pattern: str, name: str) -> bool:
    """Whether a pattern is that of a parameter, or of a module that it is in."""
    steps = name.split(".")
    return any(fits(steps[:length], pattern.split(".")) for length in range(1, len(steps) + 1))


def _policy(
    parameters: list[nn.Parameter],
    options: ShardOptions,
    compute_dtype: torch.dtype | None,
    model: nn.Module,
    what: str,
) -> MixedPrecisionPolicy:
    """How parameters are gathered, and their gradients averaged."""
    trained = {p.dtype for p in parameters if p.requires_grad}
    if len(trained) > 1:
        names = {p: name for name, p in model.named_parameters()}
        least = min(trained, key=lambda dtype: sum(p.numel() for p in parameters if p.dtype is dtype))
        some = [names[p] for p in parameters if p.dtype is least and p in names]
        raise ConfigError(
            f"{what}: parameters of {' and '.join(sorted(map(str, trained)))} cannot be sharded together; "
            f"convert the model to one dtype, or keep those of {least} whole, with ignore={some[:4]}"
        )
    floating = {p.dtype for p in parameters if p.is_floating_point()}
    lower = compute_dtype in (torch.bfloat16, torch.float16) and floating <= {torch.float32, compute_dtype}
    dtype = next(iter(trained), torch.float32)
    return MixedPrecisionPolicy(
        param_dtype=compute_dtype if lower else None,
        reduce_dtype=options.reduced_in(dtype),
        cast_forward_inputs=False,
    )


def _check_reshard(options: ShardOptions, mesh: DeviceMesh, what: str) -> None:
    ranks, size = options.reshard_after_forward, mesh.size(mesh.ndim - 1)
    if not isinstance(ranks, bool) and size % ranks:
        raise ConfigError(
            f"{what}: reshard_after_forward={ranks} must divide the {size} ranks that "
            "the model is spread over"
        )


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model whose parameters have no shape yet.

    Raises:
        ConfigError: says which.
    """
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ConfigError(
            f"{type(model).__name__} cannot be sharded before its shapes are known: {', '.join(lazy[:4])} "
            "get theirs in the first forward pass; give them when the model is built, or call it once"
        )
