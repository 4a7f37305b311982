"""One norm of all gradients, of which each rank may hold only a part, and clipping by it."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Groups = dict[str, dist.ProcessGroup]


@torch.no_grad()
def clip(parameters: Sequence[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale gradients in place so that their global norm is `max_norm` at most.

    Like `torch.nn.utils.clip_grad_norm_` on the whole gradients in one process. Parameters may be sharded,
    replicated or both, over one mesh or several, and plain ones, whose gradients are the same on all ranks,
    may be among them. Every rank must come with the same parameters. Nothing waits for a device, unless
    gradients are elsewhere than the mesh is.

    Returns:
        The norm from before, the same plain number on every rank. If it is not finite, no rank's gradients
        are what they were, as with torch's.
    """
    norm = total(parameters, norm_type)
    # Applied even where it is 1, as whether it is could only be known by waiting.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in (local(p.grad) for p in parameters if p.grad is not None):
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, gradients in by_device.items():
        torch._foreach_mul_(gradients, factor.to(device))
    return norm


@torch.no_grad()
def total(parameters: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all gradients taken together, the same plain number on every rank.

    One exchange for each mesh dimension that something is sharded over, of one or two numbers for each way in
    which parameters are sharded.
    """
    kinds: dict[tuple[str, ...], list[Tensor]] = {}
    groups: Groups = {}
    for parameter in parameters:
        # Sorted by the parameter, not by its gradient: a rank may lack one that another has, and yet all
        # must come to the same exchanges.
        sharing = _sharing(parameter)
        groups.update(sharing)
        gradients = kinds.setdefault(tuple(sharing), [])
        if parameter.grad is not None:
            gradients.append(settled(parameter))
    double = any(p.dtype in (torch.float64, torch.complex128) for p in parameters)
    dtype = torch.float64 if double else torch.float32
    device = _meeting_place(parameters)
    infinite = math.isinf(norm_type)
    parts = [_part(gradients, norm_type, dtype).to(device) for gradients in kinds.values()]
    for name, group in groups.items():
        concerned = [i for i, sharing in enumerate(kinds) if name in sharing]
        exchanged = torch.stack([parts[i] for i in concerned])
        dist.all_reduce(exchanged, dist.ReduceOp.MAX if infinite else dist.ReduceOp.SUM, group)
        for i, value in zip(concerned, exchanged.unbind(), strict=True):
            parts[i] = value
    if not parts:
        return torch.zeros((), dtype=dtype)
    together = torch.stack(parts)
    if not infinite:
        return together.sum().pow(1.0 / norm_type)
    largest, undefined = together.amax(0).unbind()
    return largest.masked_fill(undefined > 0, math.nan)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory: all of one that is not spread over ranks."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharing(parameter: Tensor) -> Groups:
    """The groups of ranks among which the parts of a parameter are, by mesh dimension."""
    if not isinstance(parameter, DTensor):
        return {}
    mesh = parameter.device_mesh
    sharded = [dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    # By their members, not by name: torch may give some parameters a mesh of an earlier run that is equal to
    # that of the others, and has groups of its own.
    return {str(dist.get_process_group_ranks(group)): group for group in map(mesh.get_group, sharded)}


def settled(parameter: Tensor) -> Tensor:
    """The local part of a gradient, once it is spread as its parameter is.

    Of a parameter that all ranks of a mesh have, a backward pass may leave on each its part of a sum.
    """
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        if gradient.placements != placements:
            parameter.grad = gradient = gradient.redistribute(mesh, placements)
    return local(gradient)


def _meeting_place(parameters: Sequence[Tensor]) -> torch.device:
    """Where numbers of parameters on several devices come together: where ranks can exchange them."""
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            return torch.device(parameter.device_mesh.device_type)
    return parameters[0].device if parameters else torch.device("cpu")


def _part(gradients: Sequence[Tensor], norm_type: float, dtype: torch.dtype) -> Tensor:
    """What these add to the norm: the sum of their powers; or their maximum, and whether any is NaN.

    The latter apart, since a maximum over ranks may pass over NaN.
    """
    infinite = math.isinf(norm_type)
    # An empty shard has no maximum.
    present = [g.abs() if g.is_complex() else g for g in gradients if g.numel()]
    if not present:
        return torch.zeros(2 if infinite else (), dtype=dtype)
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in present:
        by_device.setdefault(gradient.device, []).append(gradient)
    norms = [torch.stack(torch._foreach_norm(some, norm_type, dtype=dtype)) for some in by_device.values()]
    together = torch.cat([norm.to(norms[0].device) for norm in norms])
    if not infinite:
        return together.pow(norm_type).sum()
    largest = together.amax()
    return torch.stack([largest.nan_to_num(nan=0.0, posinf=math.inf), largest.isnan().to(dtype)])
