"""What code that builds a model sees of recorded tensors: ordinary ones, on the device that it asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stratrun.deferred.handles import META, cell_of
from stratrun.deferred.recorder import Recorder


def _functions(*names: str) -> frozenset[Any]:
    return frozenset(getattr(Tensor, name) for name in names if hasattr(Tensor, name))


# Those that read values without an operation that could be recorded.
_READ = _functions("tolist", "__repr__", "__format__", "__reduce_ex__")
# Those that give out the memory itself.
_GIVE_OUT = _functions(
    *("numpy", "__array__", "data_ptr", "storage", "untyped_storage", "_typed_storage", "__dlpack__"),
    *("share_memory_", "is_shared", "pin_memory", "is_pinned"),
)


_TO = ("device", "dtype", "non_blocking", "copy")


class View(TorchFunctionMode):
    """Answers in the place of recorded tensors, where torch would tell that they have no memory."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._answers: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: lambda tensor, *_: _device(tensor),
            Tensor.is_meta.__get__: lambda *_: False,  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor, *_: _device(tensor).type == "cpu",  # type: ignore[attr-defined]
            Tensor.is_cuda.__get__: lambda tensor, *_: _device(tensor).type == "cuda",  # type: ignore[attr-defined]
            Tensor.get_device: lambda tensor: -1 if _device(tensor).index is None else _device(tensor).index,
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor, **kwargs: self._to(tensor, "cpu", **kwargs),
            Tensor.type: self._type,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self._recorder
        if recorder.inside:
            return func(*args, **kwargs)
        first: Any = args[0] if args else None
        if func == Tensor.data.__set__ and len(args) > 1:  # type: ignore[attr-defined]
            return self._set_data(func, first, args[1])
        if cell_of(first) is not None:
            if func in _READ:
                return self._on_memory(func, recorder.kept.real, args, kwargs)
            if func in _GIVE_OUT:
                return self._on_memory(func, recorder.kept.pin, args, kwargs)
            answer = self._answers.get(func)
            if answer is not None:
                return answer(*args, **kwargs)
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorder = self._recorder
        device = kwargs.get("device")
        before = recorder.wants_meta
        recorder.wants_meta = before or (device is not None and _is_meta(device))
        try:
            return func(*args, **kwargs)
        finally:
            recorder.wants_meta = before

    def _on_memory(self, func: Any, find: Callable[[Tensor], Tensor], args: Any, kwargs: Any) -> Any:
        self._recorder.inside = True
        try:
            return func(find(args[0]).requires_grad_(args[0].requires_grad), *args[1:], **kwargs)
        finally:
            self._recorder.inside = False

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Torch returns the tensor itself where nothing is to be changed of it."""
        first = args[0] if args else None
        if isinstance(first, Tensor):
            args = (_device(first), first.dtype, *args[1:])
        names = ("dtype", "non_blocking", "copy") if isinstance(first, torch.dtype) else _TO
        wanted = {**dict(zip(names, args, strict=False)), **kwargs}
        if isinstance(other := wanted.pop("other", None), Tensor):
            wanted.update(device=_device(other), dtype=other.dtype)
        device = wanted.get("device")
        if device is None or _same(torch.device(device), _device(tensor)):
            wanted.pop("device", None)
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not wanted.keys() - {"non_blocking"}:
            return tensor
        if "device" in wanted:
            return self._call(Tensor.to, (tensor,), wanted)
        # Without a device it is taken by position only.
        return self._call(Tensor.to, (tensor, wanted.pop("dtype", tensor.dtype)), wanted)

    def _type(self, tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            where = _device(tensor).type
            return (
                torch.empty(0, dtype=tensor.dtype, device="cpu")
                .type()
                .replace("torch.", "torch." if where == "cpu" else f"torch.{where}.")
            )
        return Tensor.type(tensor, dtype, *args, **kwargs)

    def _set_data(self, func: Any, tensor: Tensor, value: Tensor) -> Any:
        """Torch does not give a tensor without memory the memory of another, nor the other way round."""
        recorder, old, new = self._recorder, cell_of(tensor), cell_of(value)
        recorder.inside = True
        try:
            if old is not None and new is None:
                value = recorder.kept.adopt(value)
            elif old is None and new is not None and tensor.device != META:
                value = recorder.kept.pin(value)
        finally:
            recorder.inside = False
        return func(tensor, value)


def _device(tensor: Tensor) -> torch.device:
    cell = cell_of(tensor)
    return tensor.device if cell is None else cell.device


def _is_meta(device: Any) -> bool:
    return not isinstance(device, int) and torch.device(device) == META


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index is None or one.index == other.index)
