"""One attempt to write a checkpoint, and the removal of one."""

import logging
import platform
import re
import secrets
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from stratrun.checkpoint import index as indexing
from stratrun.checkpoint import layout
from stratrun.checkpoint.index import Entry, Index, Slice
from stratrun.checkpoint.layout import Digest, Manifest
from stratrun.errors import CheckpointError, StratrunError
from stratrun.storage import Folder

if TYPE_CHECKING:  # a second of imports, for what only a save needs
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.storage import WriteResult

    from stratrun.checkpoint.storage_writer import ShardWriter

_LOG = logging.getLogger("stratrun.checkpoint")
# Seconds for each step of removing what a failed save has written.
_CLEARING = 3.0
_STAGING = ".staging"
_TRASH = ".trash"
_BEGUN = re.compile(re.escape(_STAGING) + r"-step-[0-9]+\.([A-Za-z0-9_-]{1,64})\.[0-9a-f]+")


class Attempt:
    """A checkpoint that is not one yet.

    On local disk it grows beside its place and takes it in one step. Elsewhere folders cannot be
    renamed, so it grows in its place, in files that bear its name, and is ignored until its marker
    is there.
    """

    def __init__(self, root: Folder, step: int, run_id: str, token: str) -> None:
        """`token` tells it from other attempts at the same step, and is the same on all ranks."""
        self._root = root
        self._step = step
        self._run_id = run_id
        self._token = token
        self._name = layout.name_of(step)
        self._place = f"{_STAGING}-{self._name}.{run_id}.{token}" if root.is_local else self._name
        self.folder = root.child(self._place)
        self._writer: ShardWriter | None = None

    def writer(self, rank: int = 0, world_size: int = 1, own: Any = None) -> "ShardWriter":
        """What one rank writes with.

        Args:
            own: What the rank saves beside its tensors, as JSON has it.
        """
        from stratrun.checkpoint.storage_writer import ShardWriter

        token = "" if self._root.is_local else f"{self._run_id}.{self._token}"
        self._writer = ShardWriter(self.folder, rank, world_size, token, own, self.commit)
        return self._writer

    def commit(
        self,
        metadata: "Metadata",
        results: "list[list[WriteResult]]",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Turn what all ranks have written into a checkpoint, the last step of which is atomic.

        Args:
            metadata: What the planner says that there must be.
            results: What each rank has written, by rank.
            state: ``shared``, ``meta`` and ``ranks``, as JSON has them; where one is left out it is the
                tensors by name, nothing, and what the ranks gave their writers.

        Raises:
            CheckpointError: something of it is not there, or not whole.
        """
        index, shards = _index_of(metadata, results)
        written = {
            layout.INDEX: index.to_json(),
            layout.STATE: layout.to_json(self._completed(state or {}, index)),
        }
        files = shards | {file: layout.digest_of(data) for file, data in written.items()}
        manifest = Manifest(self._step, self._run_id, len(results), files).to_bytes()
        for file, data in written.items():
            self.folder.write_bytes(file, data)
        self._check_sizes(files)
        self.folder.write_bytes(layout.MANIFEST, manifest)
        # The names of all files must be safe before the one that vouches for them.
        self.folder.sync()
        # No other attempt may be committed in the same place, be it that both found room for it.
        self.folder.write_bytes(layout.COMMITTED, layout.marker(manifest), exclusive=True)
        if self._place != self._name:
            self.folder.sync()
            self._root.rename(self._place, self._name)

    def abandon(self) -> None:
        """Remove what was written, as far as that is possible; a later save removes the rest."""
        # All ranks wait for this to be told what went wrong, which may be that nothing answers.
        root = self._root.hurried(_CLEARING)
        try:
            root.remove(f"{self._place}/{layout.COMMITTED}")
            root.remove(self._place)
        except (OSError, StratrunError) as error:
            _LOG.warning("an unfinished checkpoint in %s was not removed: %s", self._root, error)

    def _completed(self, state: Mapping[str, Any], index: Index) -> dict[str, Any]:
        kept = self._writer.owns if self._writer else []
        return {
            "shared": state["shared"] if "shared" in state else _by_name(index),
            "ranks": state.get("ranks", kept),
            "meta": state.get("meta", {}),
            "written_by": {"torch": str(torch.__version__), "python": platform.python_version()},
        }

    def _check_sizes(self, files: Mapping[str, Digest]) -> None:
        found = self.folder.sizes()
        for file, digest in files.items():
            if found.get(file) != digest.size:
                seen = f"{found[file]} bytes of it" if file in found else "nothing of it"
                raise CheckpointError(
                    f"{file} has {digest.size} bytes, and the main rank sees {seen} in {self.folder}; "
                    "all ranks must write to storage that they share"
                )


def _index_of(metadata: "Metadata", results: "list[list[WriteResult]]") -> tuple[Index, dict[str, Digest]]:
    """What was written, checked against what was planned: torch's own writer loses failed threads' files."""
    from stratrun.checkpoint.shards import code_of

    slices: dict[str, dict[tuple[int, ...], Slice]] = defaultdict(dict)
    files: dict[str, Digest] = {}
    for result in (result for of_rank in results for result in of_rank):
        done = result.storage_data
        slices[done.name][done.place.offsets] = done.place
        files[done.place.file] = done.digest
    tensors = {}
    planned: Any
    for name, planned in metadata.state_dict_metadata.items():
        chunks = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in getattr(planned, "chunks", ())}
        places = slices.pop(name, {})
        if not chunks or {at: place.shape for at, place in places.items()} != chunks:
            raise CheckpointError(
                f"{name!r} was not written whole: {len(places)} of {len(chunks)} parts are there"
            )
        code = code_of(name, planned.properties.dtype)
        tensors[name] = Entry(code, tuple(planned.size), tuple(places[at] for at in sorted(places)))
    if slices:
        raise CheckpointError(f"{next(iter(slices))!r} was written, and planned by no rank")
    return Index(tensors, indexing.BLOCK), files


def _by_name(index: Index) -> dict[str, Any]:
    return {"$dict": [[name, {"$tensor": name}] for name in index.tensors]}


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


def leftovers(root: Folder, run_id: str) -> list[str]:
    """What earlier attempts of this run have left in a folder when they were killed."""
    names = root.names()
    if root.is_local:
        begun = (f"{_STAGING}-", f"{_TRASH}-")
        return [name for name in names if name.startswith(begun) and name.split(".")[2:3] == [run_id]]
    return [name for name in names if layout.step_of(name) is not None and _is_dead(root.child(name), run_id)]


def unfinished_run(root: Folder) -> str | None:
    """The run that last began a checkpoint on local disk and did not finish it; None where none is begun."""
    if not root.is_local:
        return None  # there a later save at the same step makes room
    begun = map(_BEGUN.fullmatch, sorted(root.names()))
    runs = [found[1] for found in begun if found]
    return runs[-1] if runs else None


def _is_dead(folder: Folder, run_id: str) -> bool:
    """Whether a folder is no checkpoint, and all in it that tells whose it is tells this run."""
    files = folder.names()
    if layout.COMMITTED in files:
        return False
    runs = {layout.run_of_shard(file) for file in files if layout.is_shard(file)}
    if layout.MANIFEST in files:
        try:
            data = folder.read_bytes(layout.MANIFEST, layout.MANIFEST_LIMIT)
            runs.add(Manifest.parse(data).run_id)
        except (OSError, StratrunError):
            return False
    return runs == {run_id}
