"""A committed checkpoint, read with every byte of it checked."""

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.shards import Slice, read_shard
from stratrun.checkpoint.tree import tensor_names, unflatten
from stratrun.errors import CheckpointCorruptedError, CheckpointError, ConfigError
from stratrun.storage import Folder


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a checkpoint held."""

    shared: Any
    """State that was the same on all ranks."""
    own: Any
    """State of this rank; None when fewer ranks saved than now load."""
    meta: dict[str, Any]
    """What was given as `meta`, with `step`, `run_id` and `world_size` of the saving run."""
    url: str
    passed_over: dict[int, str] = field(default_factory=dict)
    """Newer checkpoints that are damaged: the reason by step."""


class StoredCheckpoint:
    """One folder with a marker.

    Marker and manifest are checked when it is opened, everything else when it is read.
    """

    def __init__(self, folder: Folder) -> None:
        """
        Raises:
            CheckpointCorruptedError: marker, manifest or the list of files are not as written.
        """
        self.folder = folder
        self.manifest = _open(folder)

    @property
    def step(self) -> int:
        return self.manifest.step

    def read(self, rank: int) -> Loaded:
        """All that this rank needs: the shared state and its own.

        Raises:
            CheckpointCorruptedError: some of it is not as written.
            OSError: it could not be fetched.
        """
        state, index = self._json(layout.STATE), self._index()
        try:
            shared, owns, meta = state["shared"], state["ranks"], dict(unflatten(state["meta"], {}))
            own = owns[rank] if rank < len(owns) else None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointCorruptedError(f"{layout.STATE} is incomplete: {error!r}") from error
        tensors = self._tensors(index, tensor_names([shared, own]), whole=True)
        meta |= {"step": self.step, "run_id": self.manifest.run_id, "world_size": self.manifest.world_size}
        return Loaded(unflatten(shared, tensors), unflatten(own, tensors), meta, self.folder.url)

    def read_part(self, key: str) -> Any:
        """One entry of the shared state, fetching nothing else.

        Raises:
            CheckpointError: there is no such entry; names those that there are.
        """
        shared, index = self._json(layout.STATE).get("shared"), self._index()
        if not isinstance(shared, dict) or key not in shared:
            known = ", ".join(shared) if isinstance(shared, dict) else "nothing"
            raise CheckpointError(f"{self.folder} has no {key!r}; it holds {known}")
        return unflatten(shared[key], self._tensors(index, tensor_names(shared[key]), whole=False))

    def verify(self) -> None:
        """Read all files of all ranks.

        Raises:
            CheckpointCorruptedError: some byte is not as written.
        """
        self._json(layout.STATE)
        self._index()
        for file, digest in self.manifest.files.items():
            if file not in (layout.INDEX, layout.STATE):
                read_shard(self.folder, file, {}, digest)

    def _json(self, file: str) -> dict[str, Any]:
        data = self.folder.read_bytes(file, limit=layout.JSON_LIMIT)
        if layout.digest_of(data) != self.manifest.files[file]:
            raise CheckpointCorruptedError(f"{file} is damaged: its digest does not match")
        return layout.parse_json(data, file)

    def _index(self) -> dict[str, Slice]:
        try:
            index = {n: Slice.parse(fields) for n, fields in self._json(layout.INDEX)["tensors"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptedError(f"{layout.INDEX} is not one: {error!r}") from error
        for name, place in index.items():
            if place.file not in self.manifest.files or place.stop > self.manifest.files[place.file].size:
                raise CheckpointCorruptedError(f"{layout.INDEX} places {name!r} outside the files")
        return index

    def _tensors(self, index: Mapping[str, Slice], names: Iterable[str], *, whole: bool) -> dict[str, Tensor]:
        wanted = {name: index[name] for name in names if name in index}
        tensors: dict[str, Tensor] = {}
        for file in sorted({place.file for place in wanted.values()}):
            digest = self.manifest.files[file] if whole else None
            tensors |= read_shard(self.folder, file, _lying_in(wanted, file), digest)
        return tensors


def damage(error: Exception) -> str | None:
    """Why a checkpoint counts as damaged, or None when it merely could not be fetched.

    The difference matters: damage sends a run back to an older checkpoint, while a server that
    does not answer must not.
    """
    if isinstance(error, CheckpointCorruptedError):
        return str(error)
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return f"a file is missing: {error}"
    if isinstance(error, ConfigError | RecursionError):  # too large, or nested without end
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return f"the disk cannot read it: {error}"
    return None


def _open(folder: Folder) -> Manifest:
    sizes = folder.sizes()
    for file in (layout.COMMITTED, layout.MANIFEST):
        if file not in sizes:
            raise CheckpointCorruptedError(f"{file} is missing")
    data = folder.read_bytes(layout.MANIFEST, limit=layout.MANIFEST_LIMIT)
    mark = layout.marker(data)
    if folder.read_bytes(layout.COMMITTED, limit=len(mark)) != mark:
        raise CheckpointCorruptedError(f"{layout.COMMITTED} and {layout.MANIFEST} do not belong together")
    manifest = Manifest.parse(data)
    if layout.step_of(folder.name) not in (manifest.step, None):
        raise CheckpointCorruptedError(f"{folder.name} holds step {manifest.step}")
    for file, digest in manifest.files.items():
        if sizes.get(file) != digest.size:
            found = f"has {sizes[file]} bytes, not {digest.size}" if file in sizes else "is missing"
            raise CheckpointCorruptedError(f"{file} {found}")
    return manifest


def _lying_in(index: Mapping[str, Slice], file: str) -> dict[str, Slice]:
    return {name: place for name, place in index.items() if place.file == file}
