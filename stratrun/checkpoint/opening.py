"""Marker, manifest and what the manifest vouches for, of a checkpoint that nobody needs to trust."""

from collections.abc import Mapping
from typing import Any

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.skeleton import unflatten
from stratrun.errors import CheckpointCorruptedError, ConfigError
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
    _refuse_links(folder, [layout.COMMITTED, layout.MANIFEST])
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
    _refuse_links(folder, manifest.files)
    return manifest


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


def _refuse_links(folder: Folder, files: Any) -> None:
    """A link could have the run read, and take for its own, what lies anywhere."""
    place = folder.local_path()
    for file in files if place is not None else ():
        if (place / file).is_symlink():
            raise CheckpointCorruptedError(f"{file} is a link; a checkpoint holds its own files")
