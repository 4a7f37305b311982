"""One attempt to write a checkpoint.

What may be relied on, whoever else is at work: dead or alive, of this run or another. On local disk an
attempt has a folder of its own until it is whole, and takes its place in one step that only one can take.
Stores without rename have nothing of the kind, so there the order and the names of files do it:

1. Shards bear the name of their attempt. Nobody else writes or removes them, but a later process of the
   same run that takes the attempt for dead.
2. ``state.json`` comes next, and only where no file without such a name is there. It is created
   exclusively and names the attempt, so of several attempts one goes on; then index, manifest and, once
   all has been seen in place again, the marker, each exclusively as well. So marker and manifest
   are always those of one attempt.
3. An attempt that gives up removes its shards and what it has created itself, and once the marker
   is on its way nothing: should it have come, the checkpoint is whole; else a later process clears up.
4. What other runs have begun is left in place. A new attempt goes on beside their shards, and refuses where
   they have come to step 2.
5. A whole checkpoint is removed by the retention of its run alone, marker first.

So no process, dead or alive, has a reader take for whole what is not: a marker beside another manifest, or
a manifest with other files, does not fit its digests, is passed over for the one before, and is written anew
by the next save of that step. Two things may still bring such a marker about, as no such store looks and acts
in one step. A process that was given up may live on, and set its marker in the moment after a later one of
the same run has removed its files. And a removal whose answer was late may be carried out when a new attempt
has created a file of that name, which takes a second process at the same step of the same folder as well.
"""

import errno
import logging
import platform
import secrets
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from stratrun.checkpoint import index as indexing
from stratrun.checkpoint import layout
from stratrun.checkpoint.index import Entry, Index, Slice
from stratrun.checkpoint.layout import Digest, Manifest
from stratrun.checkpoint.remains import COMMON, STAGING, drop_if_empty, remove_files
from stratrun.errors import CheckpointError, StratrunError
from stratrun.storage import Folder

if TYPE_CHECKING:  # a second of imports, for what only a save needs
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.storage import WriteResult

    from stratrun.checkpoint.storage_writer import ShardWriter

_LOG = logging.getLogger("stratrun.checkpoint")
# Seconds for each step of removing what a failed save has written.
_CLEARING = 3.0
# By these a store says that it has not done what was asked.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


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
        self._place = f"{STAGING}-{self._name}.{run_id}.{token}" if root.is_local else self._name
        self.folder: Folder = root.child(self._place)
        self._writer: ShardWriter | None = None
        self._created: dict[str, bytes] = {}
        self._mark = b""
        self._may_exist = False

    def writer(self, rank: int = 0, world_size: int = 1, own: Any = None) -> "ShardWriter":
        """What one rank writes with.

        Args:
            own: What the rank saves beside its tensors, as JSON has it.
        """
        from stratrun.checkpoint.storage_writer import ShardWriter

        token = "" if self._root.is_local else self._title
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
        self._check_sizes(shards)
        written = {
            # First, as no other attempt writes the same: who has created it may go on.
            layout.STATE: layout.to_json(self._completed(state or {}, index)),
            layout.INDEX: index.to_json(),
        }
        files = shards | {file: layout.digest_of(data) for file, data in written.items()}
        manifest = Manifest(self._step, self._run_id, len(results), files).to_bytes()
        for file, data in {**written, layout.MANIFEST: manifest}.items():
            self._create(file, data)
        self._check_sizes(files)
        # The names of all files must be safe before the one that vouches for them.
        self.folder.sync()
        self._vouch(layout.marker(manifest))
        if self._place != self._name:
            self.folder.sync()
            self._root.rename(self._place, self._name)

    def abandon(self) -> None:
        """Remove what was written, as far as that is possible; a later save removes the rest.

        Does nothing once the checkpoint is there, or may be.
        """
        if self._may_exist:
            return
        # All ranks wait for this to be told what went wrong, which may be that nothing answers.
        root = self._root.hurried(_CLEARING)
        try:
            if self._place == self._name:
                self._withdraw(root.child(self._place))
                drop_if_empty(root, self._place)
            else:
                root.remove(self._place)
        except (OSError, StratrunError) as error:
            _LOG.warning("an unfinished checkpoint in %s was not removed: %s", self._root, error)

    @property
    def _title(self) -> str:
        return f"{self._run_id}.{self._token}"

    def _create(self, file: str, data: bytes) -> None:
        """Write a file that all attempts call the same, unless another has written it."""
        self._created[file] = data
        try:
            self.folder.write_bytes(file, data, exclusive=self._place == self._name)
        except FileExistsError as error:
            del self._created[file]
            raise self._taken(file) from error

    def _vouch(self, mark: bytes) -> None:
        # No answer may come, and the marker all the same. Locally, only the renamed one counts.
        self._mark, self._may_exist = mark, self._place == self._name
        try:
            self.folder.write_bytes(layout.COMMITTED, mark, exclusive=True)
        except FileExistsError as error:
            self._may_exist = False
            raise self._taken(layout.COMMITTED) from error
        except OSError as error:
            self._may_exist = self._may_exist and error.errno not in _REFUSALS
            raise

    def _withdraw(self, folder: Folder) -> None:
        """Remove what this attempt has put among files of others."""
        sizes = folder.sizes()
        if layout.COMMITTED in sizes and folder.read_bytes(layout.COMMITTED) == self._mark:
            return
        remove_files(folder, [file for file in sizes if layout.attempt_of_shard(file) == self._title])
        for file, data in reversed(self._created.items()):
            # Of another attempt's, were this one's gone by now, nothing may be removed.
            if sizes.get(file) == len(data) and folder.read_bytes(file) == data:
                folder.remove(file)

    def _taken(self, file: str) -> CheckpointError:
        return CheckpointError(
            f"{self._root.child(self._name)} has a {file} that another process has written meanwhile; "
            "is this run started twice, or has another one the same work_dir?"
        )

    def _completed(self, state: Mapping[str, Any], index: Index) -> dict[str, Any]:
        kept = self._writer.owns if self._writer else []
        return {
            "shared": state["shared"] if "shared" in state else _by_name(index),
            "ranks": state.get("ranks", kept),
            "meta": state.get("meta", {}),
            "written_by": {
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "attempt": self._title,
            },
        }

    def _check_sizes(self, files: Mapping[str, Digest]) -> None:
        """See that the files are there, and beside this attempt's none that another would have created."""
        found = self.folder.sizes()
        foreign = COMMON & found.keys() - self._created.keys()
        if foreign:
            raise self._taken(min(foreign))
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
