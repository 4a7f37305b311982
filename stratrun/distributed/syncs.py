"""What makes a piece of Python code wait for its device, or for other ranks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from threading import get_ident
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Not public, though torch tells others to derive from it: nothing else sees what C++ calls.
from torch.utils._python_dispatch import TorchDispatchMode

# What they return, or how much of it, depends on values, so the host must know those first.
_SHAPED_BY_DATA = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
    "aten::allclose",
    "aten::_linalg_check_errors",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# What these read is on the host wherever the model is: numbers of steps, orders of samples.
_ON_HOST = ("torch.optim", "torch.utils.data", "stratrun.data")
_MECHANICS = (
    __name__,
    "torch._compile",
    "torch._dynamo",
    "torch._ops",
    "torch._tensor",
    "torch.overrides",
    "torch.utils._python_dispatch",
    "torch.utils._stats",
)


@dataclass(frozen=True, slots=True)
class Sync:
    """One wait of the host for its device."""

    what: str
    """`item` and the like, `copy`, `synchronize`, or an operation whose result the host must know."""
    where: str
    """The line that asked for it, the nearest that is not torch's."""

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


class SyncWatch:
    """Notes what this thread waits for between entering and leaving; entered again, it goes on.

    Waits for the device: reading values (`item`, `tolist`, `numpy`, `cpu`), also of CPU tensors, since the
    same code would wait on another device; operations such as `nonzero`; copies between host and device
    other than those into pinned memory, or out of the host, that do not block; calls of `synchronize`.
    Numbers that torch's optimizers and data loaders keep on the host are not counted.
    """

    def __init__(self) -> None:
        self.syncs: list[Sync] = []
        self.exchanges: Counter[str] = Counter()
        """Collectives over the group of all ranks, by name: also those of the strategy."""
        self._entered: list[ExitStack] = []
        self._thread = 0

    @property
    def kinds(self) -> Counter[str]:
        """How often each kind of wait was seen."""
        return Counter(sync.what for sync in self.syncs)

    def __len__(self) -> int:
        return len(self.syncs)

    def __str__(self) -> str:
        places = Counter(map(str, self.syncs))
        return "\n".join(f"{count} x {place}" for place, count in places.items()) or "no wait"

    def __enter__(self) -> Self:
        self._thread = get_ident()
        with ExitStack() as stack:
            for owner in _synchronizers():
                stack.callback(setattr, owner, "synchronize", owner.synchronize)
                owner.synchronize = self._noting(owner.synchronize)
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operations(self))
            self._entered.append(stack.pop_all())
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().close()

    def note(self, what: str, *, on_host: bool = False) -> None:
        """Note a wait that is under way, and who asked for it.

        Args:
            on_host: Whether what is waited for is on the host, so that only its use elsewhere would wait.
        """
        frame = sys._getframe(1)
        while _is_of(frame, _MECHANICS) and frame.f_back is not None:
            frame = frame.f_back
        if on_host and _is_of(frame, _ON_HOST):
            return
        while _is_of(frame, (__name__, "torch")) and frame.f_back is not None:
            frame = frame.f_back
        self.syncs.append(Sync(what, f"{frame.f_code.co_filename}:{frame.f_lineno}"))

    def _noting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if get_ident() == self._thread:  # other threads stop nobody else
                self.note("synchronize")
            return call(*args, **kwargs)

        return noted


class _Operations(TorchDispatchMode):
    """Sees every operation, called from Python or not."""

    def __init__(self, watch: SyncWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        others = [kind for kind in types if kind is not Tensor and kind is not torch.nn.Parameter]
        if any(kind.__module__.startswith("torch._subclasses") for kind in others):
            return func(*args, **kwargs)  # without values, made to learn of shapes
        if others:
            # Tensors in disguise: their own way of doing this comes first, and what that does is seen.
            return NotImplemented
        name = func.name().partition(".")[0]
        if name.startswith(("c10d::", "_c10d_functional::")):
            if _in_group_of_all((*args, *kwargs.values())) and not name.endswith("wait_tensor"):
                self._watch.exchanges[name.partition("::")[2]] += 1
        elif name == "aten::_local_scalar_dense":
            self._watch.note("item", on_host=args[0].device.type == "cpu")
        elif name in ("aten::_to_copy", "aten::copy_"):
            if _blocks(name, args, kwargs):
                self._watch.note("copy")
        elif name in _SHAPED_BY_DATA or _masks(name, args) or _repeats(func, kwargs):
            self._watch.note(name.removeprefix("aten::"), on_host=_on_cpu(args))
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Sees what reads values past all operations."""

    def __init__(self, watch: SyncWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__repr__ or (func is Tensor.__format__ and args[0].dim()):
            self._watch.note("repr")  # the operations of which torch hides
        elif func in _READERS and args[0].device.type == "cpu":
            # On another device it is a copy, which the operations show.
            self._watch.note(_READERS[func], on_host=True)
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device.type != "cpu":
            self._watch.note("copy")
        return result


_READERS: dict[Any, str] = {
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.cpu: "cpu",
}


def _synchronizers() -> list[Any]:
    owners = [torch.cuda, torch.cuda.Stream, torch.cuda.Event, torch.cpu, torch.mps, torch.accelerator]
    return [owner for owner in owners if hasattr(owner, "synchronize")]


def _is_of(frame: FrameType, packages: Iterable[str]) -> bool:
    module = frame.f_globals.get("__name__", "")
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _on_cpu(args: Any) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].device.type == "cpu"


def _blocks(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it is a copy between host and device that the host waits for."""
    if name == "aten::copy_":
        target, source = args[0], args[1]
        does_not = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        to, pinned = target.device.type, target.device.type != "cpu" or target.is_pinned()
    else:
        source, does_not = args[0], kwargs.get("non_blocking", False)
        # What it copies to is made for it: pinned, where it is not to block.
        to, pinned = torch.device(kwargs.get("device") or source.device).type, True
    return (source.device.type == "cpu") != (to == "cpu") and not (does_not and pinned)


def _masks(name: str, args: Any) -> bool:
    """Whether it indexes by a mask, of which it must know how many places it has."""
    if name not in _INDEXING:
        return False
    by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    # One value for all places needs no count of them.
    return by_mask and (name == "aten::index" or args[2].numel() > 1)


def _repeats(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it repeats by numbers on the device, without being told their sum."""
    return bool(func.name() == "aten::repeat_interleave.Tensor") and kwargs.get("output_size") is None


def _in_group_of_all(args: Iterable[Any]) -> bool:
    if not dist.is_initialized() or dist.group.WORLD is None:
        return False
    name = dist.group.WORLD.group_name
    for arg in args:
        if isinstance(arg, str) and arg == name:
            return True
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return bool(dist.ProcessGroup.unbox(arg).group_name == name)
    return False
