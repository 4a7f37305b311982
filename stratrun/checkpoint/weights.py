"""Weights alone, of our checkpoints or of other files. Pickles are met here and in `foreign` alone."""

import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stratrun.checkpoint.discovery import newest_in
from stratrun.checkpoint.reader import opened
from stratrun.checkpoint.selection import locate
from stratrun.errors import CheckpointCorruptedError, CheckpointError, nearest
from stratrun.storage import Folder
from stratrun.storage.urls import redacted

MODEL = "model"
"""Where the shared state of a checkpoint has the weights."""
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""How files of weights end."""
AVERAGES = {"ema": "EMAHook", "swa": "SWAHook"}
"""What the states of hooks that average weights are called by, perhaps with a number behind it."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_NESTINGS = ("state_dict", "model", "model_state_dict", "module")


def read_weights(url: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The state dict of a model, on the CPU.

    Args:
        url: A checkpoint of ours, or a folder of them (the newest, or with ``/best`` behind it), whose
            bytes are verified; a ``.safetensors`` file; a ``.pt`` or ``.pth`` file that holds nothing
            but tensors and plain values, also below a key such as ``state_dict`` or ``model``. A path
            or any URL that fsspec knows.
        options: Go to the fsspec file system.

    Raises:
        CheckpointNotFoundError: there is nothing; names what is nearby.
        CheckpointError: it holds no weights, or objects that only running its code could restore.
    """
    try:
        at = locate(url, **options)
        if at.is_file():
            return _read_file(at.parent, at.name, str(at))
        path = newest_in(at)
        with opened(at.child(path) if path else at) as stored:
            return dict(stored.read_part(MODEL))
    except OSError as error:
        raise CheckpointError(f"{redacted(os.fspath(url))} cannot be read: {error}") from error


def averaged(
    weights: Mapping[str, Any], hooks: Mapping[str, Any], where: str, kind: str = "ema"
) -> dict[str, Any]:
    """The weights with their averages in the place of what those are averages of.

    Args:
        hooks: State of each hook, of which only that of the hook of this `kind` is looked at.
        where: What it was read from, for messages.

    Raises:
        CheckpointError: there are no averages, or several, or of other weights.
    """
    hook, what = AVERAGES[kind], "moving averages" if kind == "ema" else "averages by SWA"
    found = {name: state for name, state in hooks.items() if name.startswith(hook)}
    if not found:
        has = f"its hooks with state are {', '.join(hooks)}" if hooks else "no hook of its run has state"
        raise CheckpointError(
            f"{where} has no {what}: {has}; have them kept with "
            f"custom_hooks=[dict(type={hook!r}, ...)], or take weights='model'"
        )
    if len(found) > 1:
        raise CheckpointError(f"{where} has several {what}, of {', '.join(found)}")
    state = next(iter(found.values()))
    averages = state.get("averages") if isinstance(state, Mapping) else None
    if not isinstance(averages, Mapping) or not averages:
        raise CheckpointError(f"{where} has no {what} yet: averaging had not begun at its step")
    # Beside a loss with weights of its own the model's lie one level lower.
    foreign = {prefix: [n for n in averages if prefix + n not in weights] for prefix in ("", f"{MODEL}.")}
    prefix, lacking = min(foreign.items(), key=lambda item: len(item[1]))
    if lacking:
        raise CheckpointError(
            f"{where} averages {lacking[0]!r}, which its model does not have; {nearest(lacking[0], weights)}"
        )
    averages = {prefix + name: average for name, average in averages.items()}
    # Tied weights are one tensor in the checkpoint, and averaged perhaps under one of their names only.
    tied = {id(weights[name]): average for name, average in averages.items()}
    return {name: averages.get(name, tied.get(id(value), value)) for name, value in weights.items()}


def _read_file(folder: Folder, name: str, where: str) -> dict[str, Any]:
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
    if not stream.read(1):
        raise CheckpointCorruptedError(f"{where} is empty")
    try:
        # torch does not look at the checksums that it has written.
        damaged = damaged_entry(stream)
        if damaged is not None:
            raise CheckpointCorruptedError(f"{where} is damaged: the checksum of {damaged!r} does not match")
        stream.seek(0)
        with warnings.catch_warnings(action="ignore"):  # that this is no pickle as torch writes it
            return torch.load(stream, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:
            raise CheckpointCorruptedError(f"{where} is no file of torch.save, or a damaged one") from error
        mend = "save the state dict alone, with torch.save(model.state_dict(), ...)"
        if found[1].startswith("mmengine."):
            mend = f"stratrun migrate mmengine {where} takes the weights and the optimizer out of it"
        raise CheckpointError(
            f"{where} holds more than tensors and plain values ({found[1]}), which is never run; {mend}"
        ) from error
    except Exception as error:  # whatever the bytes of a damaged file lead a reader to
        reason = first_line(error) or type(error).__name__
        raise CheckpointCorruptedError(f"{where} is no intact file of torch.save: {reason}") from error


def damaged_entry(stream: BinaryIO) -> str | None:
    """The first entry of a file of `torch.save` whose checksum does not match; None if all do."""
    if not zipfile.is_zipfile(stream):
        return None
    with zipfile.ZipFile(stream) as archive:
        return archive.testzip()


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


def first_line(error: Exception) -> str:
    """What an error of torch says, without what follows."""
    return str(error).strip().partition("\n")[0][:200]
