"""Means over all ranks, by the default group."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; the argument is left alone."""
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def reached(parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """The parameters of which some rank has a gradient; one that has none gets a gradient of zero.

    What no rank's backward pass reached must stay without one, or the optimizer would decay it; a rank
    cannot know that of the others.
    """
    if not parameters:
        return
    here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    anywhere = here.to(parameters[0].device)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    for parameter, some in zip(parameters, anywhere.tolist(), strict=True):
        if some:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            yield parameter
