"""The weights of a checkpoint as one safetensors file, for whoever runs the model without this framework."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratrun.checkpoint.discovery import newest_in
from stratrun.checkpoint.reader import StoredCheckpoint, opened
from stratrun.checkpoint.selection import locate
from stratrun.checkpoint.shards import DTYPES, header, memory_of
from stratrun.checkpoint.source import TensorSource
from stratrun.checkpoint.weights import AVERAGES, MODEL, averaged
from stratrun.errors import CheckpointError, ConfigError, nearest
from stratrun.storage import Folder

SUFFIX = ".safetensors"
_CHOICES = {
    "model": "the weights that training goes on with",
    "ema": "their moving averages",
    "swa": "their averages by SWAHook",
}
_BLOCK = 16 << 20


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_weights` has written."""

    url: str
    source: str
    step: int
    tensors: int
    size: int
    left_out: tuple[str, ...]
    """Entries of the model's state that are no tensors, which such a file cannot hold."""


def export_weights(
    source: str | os.PathLike[str] | Folder,
    output: str | os.PathLike[str],
    *,
    weights: str = "model",
    dtype: torch.dtype | str | None = None,
    force: bool = False,
    source_options: Mapping[str, Any] | None = None,
    output_options: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the weights of a checkpoint to one safetensors file.

    One tensor is in memory at a time, or a few small ones. Every byte is verified as it is read, and
    the file appears whole or not at all. Tied tensors are written under each of their names, so that
    the file loads with ``strict=True``; `load_from` and ``safetensors.torch.load_file`` read it. Its
    header has the step and the run that it is from.

    Args:
        source: A checkpoint, or a folder of them or a work dir for the newest, or with ``/best``.
        output: Where the file goes; ends in ``.safetensors``.
        weights: ``"model"``, ``"ema"`` for the averages of the EMAHook, or ``"swa"`` for those of the
            SWAHook; buffers that it does not average are the model's.
        dtype: What floating point tensors are converted to; None leaves them.
        force: Whether a file that is there already may be replaced.
        source_options: Go to the fsspec file system of `source`; `output_options` to that of `output`.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint.
        CheckpointCorruptedError: it is damaged; nothing is written then.
        CheckpointError: it has no such weights, or a value does not fit into `dtype`.
        ConfigError: an argument is wrong, or the file is there already.
    """
    wanted = dtype_of(dtype)
    if weights not in _CHOICES:
        raise ConfigError(f"weights={weights!r} is unknown; {nearest(weights, _CHOICES)}")
    target = Folder(output, **(output_options or {}))
    if not target.name.endswith(SUFFIX):
        raise ConfigError(f"output={target.url!r} must end in {SUFFIX}, which is what is written")
    if target.exists() and not force:
        raise ConfigError(f"output={target.url!r} is there already; force=True (--force) replaces it")
    at = source if isinstance(source, Folder) else locate(source, **(source_options or {}))
    path = newest_in(at)
    with opened(at.child(path) if path else at) as stored:
        return _export(stored, target, weights, wanted, force)


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """
    Raises:
        ConfigError: it is no dtype of floating point numbers.
    """
    known = {str(one).removeprefix("torch."): one for one in DTYPES.values() if one.is_floating_point}
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in known:
        raise ConfigError(f"dtype={dtype!r} is unknown; {nearest(name, known)}")
    return None if dtype is None else known[name]


def _export(
    stored: StoredCheckpoint, target: Folder, weights: str, dtype: torch.dtype | None, force: bool
) -> Exported:
    source, folder = TensorSource(stored), stored.folder
    state = _model(source, folder)
    if weights in AVERAGES:
        # Of other hooks the names alone, as their state may not be without data.
        own = AVERAGES[weights]
        hooks = {n: source.part("hooks", n) if n.startswith(own) else None for n in source.parts("hooks")}
        state = averaged(state, hooks, str(folder), weights)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    order = sorted(tensors, key=lambda name: (-_kind(tensors[name], dtype).itemsize, name))
    about = {"format": "pt", "step": str(stored.step), "run_id": stored.manifest.run_id, "weights": weights}
    head, places = header({name: (_kind(tensors[name], dtype), tensors[name].shape) for name in order}, about)

    def blocks() -> Iterator[memoryview]:
        # Two pieces: one piece alone might be taken for memory that is padded to whole pages.
        yield memoryview(head)[:8]
        yield memoryview(head)[8:]
        values = source.read(tensors[name] for name in order)
        for name in order:
            yield from _bytes_of(_converted(next(values), dtype, name))

    _write(target, blocks, force)
    left_out = tuple(name for name in state if name not in tensors)
    size = places[-1][1] if places else len(head)
    return Exported(target.url, folder.url, stored.step, len(tensors), size, left_out)


def _model(source: TensorSource, folder: Folder) -> dict[str, Any]:
    state = source.part(MODEL)
    if not isinstance(state, Mapping):
        known = ", ".join(source.parts())
        raise CheckpointError(f"{folder} has no weights called {MODEL!r}; it holds {known or 'nothing'}")
    return dict(state)


def _kind(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def _converted(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    kind = _kind(tensor, dtype)
    if kind == tensor.dtype:
        return tensor
    made = tensor.to(kind)
    lost = made.isfinite() != tensor.isfinite()
    if lost.any():
        value = float(tensor[lost].flatten()[0])
        raise CheckpointError(
            f"{name!r} holds {value:.6g}, which {kind} does not reach; choose a wider dtype"
        )
    return made


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    memory = memory_of(tensor)
    for start in range(0, len(memory), _BLOCK):
        # The generator keeps the tensor, and with it the memory, until the block is written.
        yield memory[start : start + _BLOCK]


def _write(target: Folder, blocks: Callable[[], Iterable[memoryview]], force: bool) -> None:
    folder, name = target.parent, target.name
    if not folder.is_local:
        # Such a store shows a file when it is complete, and has no renaming.
        folder.write_blocks(name, blocks)
        return
    beside = f".{name[:200]}.{secrets.token_hex(4)}.part"
    try:
        folder.write_blocks(beside, blocks)
        if force:
            os.replace(f"{folder.local_path()}/{beside}", f"{folder.local_path()}/{name}")
            folder.sync()
        else:
            folder.rename(beside, name)
    except BaseException:
        folder.remove(beside)
        raise
