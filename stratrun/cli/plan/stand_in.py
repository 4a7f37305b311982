"""Tensors without memory that stand in for real ones, and exchanges with ranks that are not there."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from stratrun.cli.plan.meter import Meter
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import StratrunError

T = TypeVar("T")
# Tensors up to so many elements are computed with, where that is asked for or nothing large is among them.
_SMALL = 2**16
_NEW_EMPTY = torch.ops.aten.new_empty.default
_READ = torch.ops.aten._local_scalar_dense.default
# What is told of a value that is not there: an overflow would stop a scaler, and a length of 0 a division.
_TOLD = {torch.bool: False, torch.float32: 0.0, torch.float64: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0}
_MOST_READS = 10_000


class NotPlannable(StratrunError):
    """What a model computes depends on values, which stand-ins have none of."""


class Pretence(Meter):
    """Within the block, tensors have shapes and no values, and what is computed with them costs nothing.

    Small tensors that come from nowhere else stay real, so that programs can read numbers off them: index
    arithmetic, and beside the model itself the settings of its parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.building = False
        """Whether a model is being built, small parts of which may be computed with."""
        self.reads: int = 0
        """How many values a forward pass asked for that are not there."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._work: _Done | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._patches.enter_context(patch.object(torch.utils, "swap_tensors", _swap))
        self._patches.enter_context(patch.object(torch, "chunk", _chunk))
        return self

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = list(_inputs(args, kwargs))
        if func is _READ and isinstance(inputs[0], FakeTensor):
            return self._told(inputs[0].dtype)
        if inputs and all(type(one) is not FakeTensor and one.numel() <= _SMALL for one in inputs):
            return func(*args, **kwargs)
        if func is _NEW_EMPTY and 0 in args[1]:
            return torch.empty(args[1], dtype=kwargs.get("dtype") or args[0].dtype)
        with self._fake:
            result = func(*args, **kwargs)
        if not inputs and self._is_better_real(result):
            return func(*args, **kwargs)
        if func.name() == "c10d::allreduce_":
            # DDP waits for what the exchange returns, and a group that is not there returns nothing.
            self._work = _Done(args[0])
            return result[0], self._work.boxed()
        return result

    def stand_in(self, tensor: Tensor) -> Tensor:
        """A tensor like this one, with no memory."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._fake:
            return torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, requires_grad=tensor.requires_grad
            )

    def stand_in_for(self, module: nn.Module) -> None:
        """Put stand-ins in place of all parameters and buffers; what was one stays one."""
        known: dict[int, Any] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and not isinstance(parameter, FakeTensor):
                    new = known.get(id(parameter))
                    if new is None:
                        new = nn.Parameter(self.stand_in(parameter.detach()), parameter.requires_grad)
                        known[id(parameter)] = new
                    part._parameters[name] = new
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = known.setdefault(id(buffer), self.stand_in(buffer))

    def _told(self, dtype: torch.dtype) -> Any:
        # Beside it an update asks whether gradients overflow, and is told that they do not.
        self.reads += self.ledger.phase == "forward"
        if self.building or self.reads > _MOST_READS:
            raise NotPlannable("it reads values of tensors")
        return _TOLD.get(dtype, 1)

    def _is_better_real(self, made: Any) -> bool:
        if not isinstance(made, Tensor) or made.device.type != "cpu" or made.numel() > _SMALL:
            return False
        return self.building or not (made.is_floating_point() or made.is_complex())


_plain_swap = torch.utils.swap_tensors


def _swap(one: Tensor, other: Tensor) -> None:
    """What `nn.Module.to` does with tensors like these, and refuses where something refers to them."""
    if isinstance(one, FakeTensor) and isinstance(other, FakeTensor):
        one.data = other.detach()
    else:
        _plain_swap(one, other)


_plain_chunk = torch.chunk
_MANY = 32


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
    """As of old, only that equal parts are one tensor: sharding makes as many as there are ranks."""
    size = input.size(dim)
    # Models split in a few, and their backward passes are to cost what they cost.
    if not isinstance(input, FakeTensor) or chunks < _MANY or not size:
        return _plain_chunk(input, chunks, dim)
    each = -(-size // chunks)
    whole, rest = divmod(size, each)
    parts = [input.narrow(dim, 0, each)] * whole
    return (*parts, input.narrow(dim, size - rest, rest)) if rest else tuple(parts)


class _Done(dist.Work):
    """An exchange that is over."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        # Not to keep them: they are somebody's gradients.
        self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def get_future(self) -> torch.futures.Future[Any]:
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result([tensor() for tensor in self._tensors])
        return future

    def wait(self, timeout: Any = None) -> bool:
        return True


class AgreeingRanks(Collectives):
    """Ranks that all say what this one says."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor * self.world_size

    def gather(self, value: T) -> list[T]:
        return [value] * self.world_size

    def gather_to_main(self, value: T) -> list[T] | None:
        return self.gather(value)

    def from_main(self, value: T) -> T:
        return value

    def scatter_from_main(self, values: list[T] | None) -> T:
        assert values is not None
        return values[0]

    def barrier(self) -> None:
        return None

    def agree(self, error: Exception | None, what: str) -> None:
        if error is not None:
            raise error


@contextmanager
def pretended_group(env: ProcessEnv) -> Iterator[AgreeingRanks]:
    """A process group of which this process is the only member that there is."""
    # Importing it makes the backend known; there is no public way to it.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=env.rank, world_size=env.world_size)
    try:
        yield AgreeingRanks(env)
    finally:
        dist.destroy_process_group()


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for one in (*args, *kwargs.values()):
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from (item for item in one if isinstance(item, Tensor))
