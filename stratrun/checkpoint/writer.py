"""One attempt to write a checkpoint, and the removal of one."""

import platform
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.shards import Digest, Slice, write_shard
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

_STAGING = ".staging"
_TRASH = ".trash"


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has contributed: its state without the tensors, and the file that has them."""

    own: Any
    digest: Digest | None = None
    slices: tuple[tuple[str, Slice], ...] = ()


class Attempt:
    """A checkpoint that is not one yet.

    On local disk it grows beside its place and takes it in one step. Elsewhere folders cannot be
    renamed, so it grows in its place and is ignored until its marker is there.
    """

    def __init__(self, root: Folder, step: int, run_id: str, token: str) -> None:
        """`token` tells it from other attempts at the same step, and is the same on all ranks."""
        self._root = root
        self._step = step
        self._run_id = run_id
        self._name = layout.name_of(step)
        self._place = f"{_STAGING}-{self._name}.{run_id}.{token}" if root.is_local else self._name
        self._folder = root.child(self._place)

    def write(self, rank: int, world_size: int, tensors: dict[str, Tensor], own: Any) -> Part:
        """Write the file of one rank."""
        if not tensors:
            return Part(own)
        digest, slices = write_shard(self._folder, layout.shard_name(rank, world_size), tensors)
        return Part(own, digest, tuple(slices.items()))

    def commit(self, parts: list[Part], shared: Any, meta: Any) -> None:
        """Turn the files of all ranks into a checkpoint, the last step of which is atomic."""
        slices = {name: asdict(place) for part in parts for name, place in part.slices}
        state = {
            "shared": shared,
            "ranks": [part.own for part in parts],
            "meta": meta,
            "written_by": {"torch": str(torch.__version__), "python": platform.python_version()},
        }
        written = {
            layout.INDEX: layout.to_json({"tensors": slices}),
            layout.STATE: layout.to_json(state),
        }
        files = {file: layout.digest_of(data) for file, data in written.items()}
        for rank, part in enumerate(parts):
            if part.digest is not None:
                files[layout.shard_name(rank, len(parts))] = part.digest
        manifest = Manifest(self._step, self._run_id, len(parts), files).to_bytes()
        for file, data in written.items():
            self._folder.write_bytes(file, data)
        self._check_sizes(files)
        self._folder.write_bytes(layout.MANIFEST, manifest)
        # The names of all files must be safe before the one that vouches for them.
        self._folder.sync()
        self._folder.write_bytes(layout.COMMITTED, layout.marker(manifest))
        if self._place != self._name:
            self._folder.sync()
            self._root.rename(self._place, self._name)

    def abandon(self) -> None:
        """Remove what was written."""
        self._root.remove(f"{self._place}/{layout.COMMITTED}")
        self._root.remove(self._place)

    def _check_sizes(self, files: dict[str, Digest]) -> None:
        found = self._folder.sizes()
        for file, digest in files.items():
            if found.get(file) != digest.size:
                seen = f"{found[file]} bytes of it" if file in found else "nothing of it"
                raise CheckpointError(
                    f"{file} has {digest.size} bytes, and the main rank sees {seen} in {self._folder}; "
                    "all ranks must write to storage that they share"
                )


def new_token() -> str:
    return secrets.token_hex(4)


def discard(root: Folder, name: str, run_id: str) -> None:
    """Remove a checkpoint so that no half of it is ever taken for a whole."""
    if root.is_local:
        trash = f"{_TRASH}-{name}.{run_id}.{new_token()}"
        root.rename(name, trash)
        root.remove(trash)
    else:
        root.remove(f"{name}/{layout.COMMITTED}")
        root.remove(name)


def leftovers(names: Iterable[str], run_id: str) -> list[str]:
    """What earlier attempts of this run have left behind when they were killed."""
    return [
        name
        for name in names
        if name.startswith((f"{_STAGING}-", f"{_TRASH}-")) and name.split(".")[2:3] == [run_id]
    ]
