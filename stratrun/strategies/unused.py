"""Parameters that a backward pass will not reach, found in the graph of the loss before it is made."""

import logging
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stratrun.errors import ModelError, shortened

_LOG = logging.getLogger("stratrun.strategies")
STEPS = 4
"""Exchanges that must each reach every parameter before looking for others is called needless."""
_WAITS = (
    "; strategy='ddp' exchanges the gradients of all parameters in each update, and ranks would wait for "
    "these. Use them in the loss, freeze them (requires_grad_(False)), or give "
    "strategy=dict(type='ddp', find_unused_parameters=True), which looks for such in each update"
)
_NEEDLESS = (
    f"find_unused_parameters=True walks the graph of each update, and each of the first {STEPS} reached all "
    "parameters on all ranks; if that is always so, leave it out, as the walk takes long in large models"
)


class Reach(NamedTuple):
    """What a backward pass from a loss will leave out."""

    missed: list[str]
    """Names of parameters, in their order."""
    certain: bool
    """Whether all of the graph can be seen: what a custom `autograd.Function` does in its backward, such as
    another backward pass (reentrant checkpoints do), cannot."""


def watch(wrapped: DistributedDataParallel, *, searches: bool) -> None:
    """Look at the first steps whose gradients will be exchanged, and at none after them.

    Where all parameters are waited for, one step is looked at. What one rank leaves out all hear of, so that
    none comes to an exchange that the others are not in.

    Args:
        searches: Whether each exchange is searched for such parameters, because the user has said so.
    """
    reached_all: list[bool] = []

    # It must not hold what it is hung on: an old wrapper has to go when a new one is made.
    def look(module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        # A recipe of its own may go back from several losses, one after another.
        whole = len(args) > 2 and args[2]
        if not (whole and module.require_backward_grad_sync and torch.is_grad_enabled()):
            return
        loss, bare = outputs["loss"], cast(nn.Module, module.module)
        reach = missed_by(loss, bare)
        reached_all.append(not reach.missed)
        if searches and len(reached_all) < STEPS:
            return
        handle.remove()
        somewhere = _is_anywhere(not all(reached_all), loss.device)
        if searches and not somewhere and dist.get_rank() == 0:
            _LOG.warning("%s", _NEEDLESS)
        elif somewhere and not searches:
            _refuse(reach)

    handle = wrapped.register_forward_hook(look)


def missed_by(loss: Tensor, module: nn.Module) -> Reach:
    """Which parameters of a module that want a gradient a backward pass from `loss` will not reach."""
    todo, seen, leaves, certain = [loss.grad_fn], set[Any](), {id(loss)}, True
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.add(id(cast(Any, node).variable))
        certain = certain and not _hides(node)
        todo += [behind for behind, _ in node.next_functions]
    missed = [
        _plain(name) for name, p in module.named_parameters() if p.requires_grad and id(p) not in leaves
    ]
    return Reach(missed, certain)


def _hides(node: Any) -> bool:
    function = getattr(type(node), "_forward_cls", None)
    # A function of the compiler has all parameters that it uses among its inputs.
    return function is not None and not function.__module__.startswith("torch._functorch")


def _plain(name: str) -> str:
    """The name in the user's model, which lies in the module that is wrapped."""
    return name.removeprefix("model.")


def _is_anywhere(here: bool, device: torch.device) -> bool:
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _refuse(reach: Reach) -> None:
    """To be called on all ranks.

    Raises:
        ModelError: on all of them, as soon as one knows that it leaves parameters out.
    """
    reaches: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reaches, tuple(reach))
    told = {rank: names for rank, (names, certain) in enumerate(reaches) if names and certain}
    if not told:
        return
    first = next(iter(told.values()))
    where = ""
    if len(told) < len(reaches):
        which = [str(rank) for rank, names in told.items() if names == first]
        where = f" on rank {', '.join(which)} of {len(reaches)}"
    count = f"{len(first)} parameters have" if len(first) > 1 else "a parameter has"
    raise ModelError(f"{count} no part in the loss of a training step{where}: {shortened(first)}{_WAITS}")
