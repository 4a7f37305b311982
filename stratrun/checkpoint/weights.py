"""Weights alone, from our checkpoints or from files of others. The one place that may meet a pickle."""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import look_into, neighbours
from stratrun.checkpoint.reader import StoredCheckpoint
from stratrun.errors import CheckpointCorruptedError, CheckpointError, CheckpointNotFoundError, nearest
from stratrun.storage import Folder

MODEL = "model"
"""Where the shared state of a checkpoint has the weights."""
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""How files of weights end."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_NESTINGS = ("state_dict", "model", "model_state_dict", "module")


def read_weights(url: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The state dict of a model, on the CPU.

    Args:
        url: A checkpoint of ours, or a folder of them (the newest), whose bytes are verified; a
            ``.safetensors`` file; a ``.pt`` or ``.pth`` file that holds nothing but tensors and
            plain values, also below a key such as ``state_dict`` or ``model``. A path or any URL
            that fsspec knows.
        options: Go to the fsspec file system.

    Raises:
        CheckpointNotFoundError: there is nothing; names what is nearby.
        CheckpointError: it holds no weights, or objects that only running its code could restore.
    """
    at = Folder(url, **options)
    try:
        return _read_file(at.parent, at.name) if at.is_file() else _read_checkpoint(at)
    except OSError as error:
        raise CheckpointError(f"{at} cannot be read: {error}") from error


def _read_checkpoint(at: Folder) -> dict[str, Any]:
    if not at.exists():
        raise CheckpointNotFoundError(missing(at))
    path, steps = look_into(at)
    folder = at.child(path) if path else at
    if steps:
        folder = folder.child(layout.name_of(steps[-1]))
    try:
        return dict(StoredCheckpoint(folder).read_part(MODEL))
    except CheckpointCorruptedError as error:
        raise CheckpointCorruptedError(
            f"checkpoint {folder} is damaged: {error}; {neighbours(folder)}"
        ) from error


def _read_file(folder: Folder, name: str) -> dict[str, Any]:
    where = f"{folder}/{name}"
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".safetensors":
        return _load_safetensors(folder.read_bytes(name), where)
    if suffix not in FILES:
        raise CheckpointError(f"{where} is no file of weights by its name; those end in {', '.join(FILES)}")
    with folder.open(name) as stream:
        payload = _load_pickled(stream if folder.is_local else io.BytesIO(stream.read()), where)
    return _weights_in(payload, where)


def _load_safetensors(data: bytes, where: str) -> dict[str, Any]:
    # Here, as importing the runner must not import what only some runs need.
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except SafetensorError as error:
        raise CheckpointCorruptedError(f"{where} is no intact safetensors file: {error}") from error


def _load_pickled(stream: BinaryIO, where: str) -> Any:
    """Restore tensors and plain values; anything else in the file is refused, not run."""
    if zipfile.is_zipfile(stream):
        # torch does not look at the checksums that it has written.
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointCorruptedError(f"{where} is damaged: the checksum of {damaged!r} does not match")
    stream.seek(0)
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:
            raise CheckpointCorruptedError(f"{where} is no file of torch.save, or a damaged one") from error
        raise CheckpointError(
            f"{where} holds more than tensors and plain values ({found[1]}), which is never run; "
            "save the state dict alone, with torch.save(model.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointCorruptedError(
            f"{where} is no intact file of torch.save: {_first_line(error)}"
        ) from error


def _weights_in(payload: Any, where: str) -> dict[str, Any]:
    for key in _NESTINGS:
        if isinstance(payload, Mapping) and _has_tensors(payload.get(key)):
            return dict(payload[key])
    if _has_tensors(payload):
        return dict(payload)
    has = f"a {type(payload).__name__}"
    if isinstance(payload, Mapping):
        has = f"the keys {', '.join(map(repr, list(payload)[:8]))}"
    raise CheckpointError(
        f"{where} holds no weights at its top or below {', '.join(_NESTINGS)}; it has {has}"
    )


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def missing(at: Folder) -> str:
    """Say that there is nothing at a URL, and what is nearby."""
    if layout.step_of(at.name) is not None:
        return f"{at} does not exist; {neighbours(at)}"
    if not at.parent.exists():
        return f"{at} does not exist, nor does the folder that it should be in; check the path"
    return f"{at} does not exist; {nearest(at.name, at.parent.names())}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
