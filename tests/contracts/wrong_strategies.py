"""Strategies each of which is wrong in one way."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stratrun.strategies import Strategy
from stratrun.strategies.ddp import DDPStrategy
from stratrun.strategies.fsdp import FSDPStrategy


class NoAveraging(DDPStrategy):
    """Each rank trains by itself."""

    name = "no averaging"

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
        return module

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        return None


class Summing(DDPStrategy):
    """The sum over the ranks in place of the mean."""

    name = "summing"

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        wrapped = super().wrap(module, device, partial_backward=partial_backward)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(None, _summed)
        return wrapped


def _summed(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


class WrongNorm(DDPStrategy):
    """The norm as if each rank had a part of the gradients."""

    name = "wrong norm"

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)
        total = norm**2
        dist.all_reduce(total)
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total.sqrt())
        return total.sqrt()


class OwnPartsNorm(FSDPStrategy):
    """The norm of the parts of gradients that a rank has."""

    name = "own parts' norm"

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        parts = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
        norm = nn.utils.get_total_norm(parts, norm_type)
        for part in parts:
            part.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


class OnlyTold(DDPStrategy):
    """The norm is right, but nothing is clipped."""

    name = "only told"

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)


class NoNoSync(DDPStrategy):
    """Gradients are exchanged with each batch of a window: right weights, dear."""

    name = "no no_sync"

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()


class Prefixed(DDPStrategy):
    """A part of the model is replaced by a wrapper around it, which is in all names."""

    name = "prefixed"

    def place(self, module: nn.Module, device: torch.device, **options: Any) -> None:
        super().place(module, device, **options)
        model = module.model
        assert isinstance(model, nn.Module)
        model.head = nn.Sequential(model.head)


class OwnStart(Strategy):
    """Gradients are averaged, but each rank begins where it drew."""

    name = "own start"
    accelerators = frozenset({"cpu"})

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        return Averaging(module, _averaged)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        return None

    def mean(self, value: Tensor) -> Tensor:
        dist.all_reduce(total := value.clone())
        return total / dist.get_world_size()


class Averaging(nn.Module):
    """Averages each gradient as it comes."""

    def __init__(self, module: nn.Module, average: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(average)

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def _averaged(gradient: Tensor) -> Tensor:
    dist.all_reduce(total := gradient.clone())
    return total / dist.get_world_size()


class Copied(DDPStrategy):
    """What is trained is a copy of the model."""

    name = "copied"

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        return super().wrap(copy.deepcopy(module), device, partial_backward=partial_backward)


class OwnMean(DDPStrategy):
    """The weight of losses is that of each rank's own."""

    name = "own mean"

    def mean(self, value: Tensor) -> Tensor:
        return value


class ForgottenEnd(DDPStrategy):
    """What was kept local stays so where the data ends in a window."""

    name = "forgotten end"

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        return None


class OwnBuffers(DDPStrategy):
    """Each rank evaluates with its own buffers."""

    name = "own buffers"

    def __init__(self) -> None:
        super().__init__(broadcast_buffers=False)


class WrappedOnce(DDPStrategy):
    """What is thawed later is not exchanged."""

    name = "wrapped once"

    def __init__(self) -> None:
        super().__init__()
        self._made: nn.Module | None = None

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        if self._made is None:
            self._made = super().wrap(module, device, partial_backward=partial_backward)
        return self._made


class Forgetful(DDPStrategy):
    """What it goes on from is not what was saved: each rank's own learning rate of sorts."""

    name = "forgetful"

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        self._seen += 1
        return super().clip_grad_norm(parameters, max_norm / self._seen, norm_type)


class Swallowing(OwnStart):
    """An exchange that fails is passed over, and training goes on with what there is."""

    name = "swallowing"

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
        return Averaging(module, _averaged_if_possible)


def _averaged_if_possible(gradient: Tensor) -> Tensor:
    try:
        return _averaged(gradient)
    except RuntimeError:
        return gradient


class Unnamed(DDPStrategy):
    """Says wrong things of itself."""

    accelerators = frozenset({"tpu"})
