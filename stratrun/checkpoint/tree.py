"""Nested state to JSON and named tensors. The way back is that of `skeleton`."""

import base64
import math
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import CheckpointError
from stratrun.spread import Divided, is_spread, local_part

_DEEPEST = 100
_Path = tuple[str, ...]


def flatten(tree: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into a JSON skeleton and its tensors, by name, neither copied nor moved.

    Dicts, lists, tuples, deques, counters, None, booleans, numbers, strings, bytes, NumPy arrays
    and tensors come back as they were; keys may be any plain value. A tensor that occurs twice,
    as tied weights do, is kept once.

    Raises:
        CheckpointError: a value of another type; names where it sits.
    """
    flattening = Flattening(prefix)
    return flattening.encode(tree, ()), flattening.tensors


class Flattening:
    """One pass over a tree, with the names that its tensors have been given so far."""

    def __init__(self, prefix: str = "") -> None:
        self.tensors: dict[str, Tensor] = {}
        self.divided: dict[str, dict[str, Any]] = {}
        """By their paths, the skeletons of mappings of which this rank has some entries."""
        self.apart: set[str] = set()
        """Names of the tensors in those."""
        self._prefix = prefix
        self._names: dict[object, str] = {}

    def encode(self, value: Any, path: _Path) -> Any:
        if len(path) > _DEEPEST:
            raise _refused(path[:5], f"nests deeper than {_DEEPEST} levels; does it contain itself?")
        if value is None or isinstance(value, bool | int | float | str):
            return _plain(value, path)
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if type(value) is list:
            return self._items(value, path)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if type(value) in (tuple, torch.Size):
            return {"$tuple" if type(value) is tuple else "$size": self._items(value, path)}
        if isinstance(value, deque):
            return {"$deque": [self._items(value, path), value.maxlen]}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        return self._numpy(value, path)

    def _items(self, values: Any, path: _Path) -> list[Any]:
        return [self.encode(value, (*path, str(i))) for i, value in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: _Path) -> Any:
        if type(value) is Divided:
            known = set(self.tensors)
            body = {key: self.encode(child, (*path, key)) for key, child in value.items()}
            self.divided["/".join(path)] = body
            self.apart |= self.tensors.keys() - known
            return body
        kind = _MAPPINGS.get(type(value))
        if kind is None:
            mend = "save dict(...) of it"
            raise _refused(path, f"is a {type(value).__qualname__}, which would come back as a dict; {mend}")
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:  # what modules put there tells their own loading which version it meets
            body = self._mapping(dict(value), path)
            return {"$module": [body, self._mapping(dict(metadata), (*path, "_metadata"))]}
        if kind == "" and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(child, (*path, key)) for key, child in value.items()}
        pairs = [
            [self._key(key, path), self.encode(child, (*path, str(key)))] for key, child in value.items()
        ]
        return {kind or "$dict": pairs}

    def _key(self, key: Any, path: _Path) -> Any:
        if key is None or isinstance(key, bool | int | float | str):
            return _plain(key, path)
        if type(key) is tuple:
            return {"$tuple": [self._key(part, path) for part in key]}
        raise _refused(path, f"has the key {key!r}; keys must be numbers, strings or tuples of them")

    def _tensor(self, tensor: Tensor, path: _Path) -> dict[str, Any]:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            kind = "on the meta device" if tensor.device.type == "meta" else "sparse or quantized"
            raise _refused(path, f"is a tensor {kind}; save a dense one with data")
        tensor = tensor.detach()
        if tensor.dtype == torch.complex128:  # a dtype that the file format lacks
            if hasattr(tensor, "placements"):
                raise _refused(path, "is a complex128 tensor spread over ranks; save its full_tensor()")
            return {"$complex": self._tensor(torch.view_as_real(tensor.resolve_conj()), path)}
        return {"$tensor": self._store(tensor, path)}

    def _store(self, tensor: Tensor, path: _Path) -> str:
        known = identity(tensor)
        if known in self._names:
            return self._names[known]
        base = name = self._prefix + "/".join(path)
        for attempt in range(2, sys.maxsize):
            if name not in self.tensors:
                break
            name = f"{base}~{attempt}"
        self._names[known], self.tensors[name] = name, tensor
        return name

    def _numpy(self, value: Any, path: _Path) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufU":
            return self.encode(value.item(), path)
        if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
            # A copy, as torch warns of arrays that are read-only and refuses foreign byte orders.
            own = numpy.array(value, dtype=value.dtype.newbyteorder("="))
            return {"$numpy": self._tensor(torch.from_numpy(own), path)}
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise _refused(path, f"is a {kind}; tensors, arrays, numbers, strings and containers can be saved")


def identity(tensor: Tensor) -> object:
    """What two tensors have in common when they are one, on all ranks alike."""
    view = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
    if not tensor.numel():
        return object()
    if is_spread(tensor):  # a rank may hold nothing of it, and must name it as the others do
        local = local_part(tensor)
        return local.untyped_storage()._cdata, local.storage_offset(), view, str(tensor.placements)
    return tensor.device, tensor.data_ptr(), view


def _plain(value: Any, path: _Path) -> Any:
    """A leaf as JSON has it. Subclasses, such as NumPy's float64, become the plain number they are."""
    if isinstance(value, Enum):
        raise _refused(path, f"is {value!r}; save its value")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    return int(value) if isinstance(value, int) else str.__str__(value)


def _refused(path: _Path, reason: str) -> CheckpointError:
    return CheckpointError(f"the state at {'.'.join(path) or 'its top'} {reason}")


_MAPPINGS: dict[type, str] = {dict: "", OrderedDict: "$ordered", Counter: "$counter"}
