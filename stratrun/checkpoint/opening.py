"""Marker, manifest and what the manifest vouches for, of a checkpoint that nobody needs to trust."""

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.skeleton import unflatten
from stratrun.errors import CheckpointCorruptedError, CheckpointError, ConfigError
from stratrun.storage import Folder


def open_manifest(folder: Folder) -> Manifest:
    """The manifest of a checkpoint, with marker, names and sizes of all files checked.

    Raises:
        CheckpointCorruptedError: marker, manifest or the list of files are not as written.
    """
    sizes = folder.sizes()
    for file in (layout.COMMITTED, layout.MANIFEST):
        if file not in sizes:
            raise CheckpointCorruptedError(f"{file} is missing")
    _refuse_others(folder, [layout.COMMITTED, layout.MANIFEST])
    data = _read(folder, layout.MANIFEST, layout.MANIFEST_LIMIT)
    mark = layout.marker(data)
    found = _read(folder, layout.COMMITTED, len(mark))
    if found != mark:
        layout.refuse_other_format(found, data)
        raise CheckpointCorruptedError(f"{layout.COMMITTED} and {layout.MANIFEST} do not belong together")
    manifest = Manifest.parse(data)
    if layout.step_of(folder.name) not in (manifest.step, None):
        raise CheckpointCorruptedError(f"{folder.name} holds step {manifest.step}")
    for file, digest in manifest.files.items():
        if sizes.get(file) != digest.size:
            seen = f"has {sizes[file]} bytes, not {digest.size}" if file in sizes else "is missing"
            raise CheckpointCorruptedError(f"{file} {seen}")
    _refuse_others(folder, manifest.files)
    return manifest


def owner_of(folder: Folder) -> str | None:
    """The run that a manifest tells, be the checkpoint whole or not; None where there is nothing that tells.

    Raises:
        StorageError: it could not be fetched, and may tell later.
    """
    try:
        _refuse_others(folder, [layout.MANIFEST])
        return Manifest.parse(_read(folder, layout.MANIFEST, layout.MANIFEST_LIMIT)).run_id
    except (CheckpointError, FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # a disk says that for good
            return None
        raise


def read_json(folder: Folder, file: str, manifest: Manifest) -> dict[str, Any]:
    """What one of the JSON files holds, its digest checked.

    Raises:
        CheckpointCorruptedError: it is not as written.
    """
    data = _read(folder, file, layout.JSON_LIMIT)
    if layout.digest_of(data) != manifest.files[file]:
        raise CheckpointCorruptedError(f"{file} is damaged: its digest does not match")
    return layout.parse_json(data, file)


def meta_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What was noted beside the state, of what the file of the state holds.

    Raises:
        CheckpointCorruptedError: nothing was, which no run does.
    """
    meta = unflatten(state.get("meta"), {})
    if not isinstance(meta, dict):
        raise CheckpointCorruptedError(f"{layout.STATE} is incomplete")
    return meta


def _read(folder: Folder, file: str, limit: int) -> bytes:
    try:
        return folder.read_bytes(file, limit=limit)
    except ConfigError as error:
        raise CheckpointCorruptedError(f"{file} has more than the {limit} bytes that it may have") from error


def _refuse_others(folder: Folder, files: Iterable[str]) -> None:
    """Of a link could be read what lies anywhere; a pipe or a device may never come to an end."""
    place = folder.local_path()
    if place is None:
        return
    for file in files:
        mode = os.lstat(place / file).st_mode
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "no file"
            raise CheckpointCorruptedError(f"{file} is {kind}; a checkpoint holds its own files")
