"""Files of other frameworks, read without running what they name."""

import io
import os
import pickle
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stratrun.checkpoint.selection import locate
from stratrun.checkpoint.weights import damaged_entry, first_line
from stratrun.errors import CheckpointCorruptedError, CheckpointError, CheckpointNotFoundError


class Placeholder:
    """In the place of an object in a file that only running code could restore."""

    __slots__ = ()
    name = "an object"
    """What the file calls its class."""

    def __new__(cls, *args: Any, **options: Any) -> "Placeholder":
        return super().__new__(cls)

    def __call__(self, *args: Any, **options: Any) -> "Placeholder":
        return self

    def __setstate__(self, state: Any) -> None:
        """Whatever was in it is left out."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def __repr__(self) -> str:
        return f"<{self.name}, not restored>"


def read_with_placeholders(url: str | os.PathLike[str], **options: Any) -> Any:
    """What is in a file of `torch.save`, with a `Placeholder` for all but tensors and plain values.

    Nothing that the file names is imported or called, but what makes tensors, and dicts of the standard
    library.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: it is no file of torch.save, is damaged, or is of a torch before 1.6.
    """
    at = locate(url, **options)
    if not at.exists():
        raise CheckpointNotFoundError(f"there is no file {at}")
    if not at.is_file():
        raise CheckpointError(f"{at} is a folder, and not a file of torch.save")
    with at.parent.open(at.name) as opened_file:
        stream = opened_file if at.is_local else io.BytesIO(opened_file.read())
        return _load_apart(stream, str(at))


def _load_apart(stream: BinaryIO, where: str) -> Any:
    if not zipfile.is_zipfile(stream):
        raise CheckpointError(
            f"{where} is no file that torch.save has written since torch 1.6, or a damaged one; an older one "
            "can be read by torch.load where you trust it; save its state dict alone"
        )
    try:
        damaged = damaged_entry(stream)
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive:
            program = any(name.endswith("constants.pkl") for name in archive.namelist())
    except Exception as error:
        raise CheckpointCorruptedError(f"{where} is no intact file of torch.save: {error}") from error
    if damaged is not None:
        raise CheckpointCorruptedError(f"{where} is damaged: the checksum of {damaged!r} does not match")
    if program:
        raise CheckpointError(f"{where} is a program of TorchScript, which is not run; save its state dict")
    try:
        stream.seek(0)
        with warnings.catch_warnings(action="ignore"):
            # Its find_class decides what there is to be called, so that nothing foreign runs.
            return torch.load(stream, map_location="cpu", weights_only=False, pickle_module=_Apart)
    except Exception as error:  # whatever the bytes of a damaged file lead a reader to
        reason = first_line(error) or type(error).__name__
        raise CheckpointCorruptedError(f"{where} is no intact file of torch.save: {reason}") from error


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    # Without the hooks that a file may have for the backward pass.
    made: Tensor = torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())
    return made


_MAKES: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
}


class _Make:
    """Calls one of the few functions that are known. It is no class and has no attributes to be changed."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any) -> Any:
        return _MAKES[self._name](*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _ApartUnpickler(pickle.Unpickler):
    """Gives a placeholder for each name that is not known."""

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full in _MAKES:
            return _Make(full)
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        # A class of its own, as objects may be made of it without a call.
        return type(name.rpartition(".")[2], (Placeholder,), {"__slots__": (), "name": full})


class _Apart:
    """What `torch.load` takes for the module pickle."""

    Unpickler = _ApartUnpickler
    UnpicklingError = pickle.UnpicklingError
