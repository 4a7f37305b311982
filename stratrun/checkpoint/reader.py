"""A committed checkpoint, read with every byte of it checked."""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import neighbours
from stratrun.checkpoint.division import Division
from stratrun.checkpoint.index import Index
from stratrun.checkpoint.opening import meta_of, open_manifest, read_json
from stratrun.checkpoint.shards import dtype_name
from stratrun.checkpoint.skeleton import entries_of, tensor_names, unflatten
from stratrun.errors import CheckpointCorruptedError, CheckpointError, ConfigError
from stratrun.storage import Folder

if TYPE_CHECKING:  # a second of imports, for what only reading tensors needs
    from stratrun.checkpoint.layout import Manifest
    from stratrun.checkpoint.storage_reader import ShardReader

Room = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""Gives what a stored tensor is read to, by its name in `index`; None for a new one in host memory."""

_OF_HOOKS = "hooks/"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a checkpoint held."""

    shared: Any
    """State that was the same on all ranks."""
    own: Any
    """State of this rank, or of one that had the same samples; None where none had."""
    meta: dict[str, Any]
    """What was given as `meta`, with `step`, `run_id` and `world_size` of the saving run."""
    url: str
    passed_over: dict[int, str] = field(default_factory=dict)
    """Newer checkpoints that are damaged: the reason by step."""
    owns: list[Any] = field(default_factory=list)
    """State of each saving rank, one for each part of the samples, where another run than this shared
    them out, or gradients, in another way."""
    same_ranks: bool = True
    """Whether `own` was saved by a rank that did what this one does."""


@dataclass(frozen=True, slots=True)
class Verified:
    """How much of a checkpoint was read and found as it was written."""

    files: int
    tensors: int
    nbytes: int


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
        self.manifest: Manifest = open_manifest(folder)

    @property
    def step(self) -> int:
        return self.manifest.step

    def read(
        self,
        rank: int = 0,
        division: Division | int = 1,
        template: Mapping[str, Tensor] | Room | None = None,
    ) -> Loaded:
        """All that this rank needs: the shared state and its own.

        Args:
            rank: Which of the ranks that now load this is.
            division: How the run is divided over those, or their number.
            template: Tensors by the names of `describe`, spread over ranks or on any device, to be filled
                and to occur in the state in place of new ones in host memory. Of tensors that are spread,
                only what this rank holds is fetched. Not asked for what this rank alone reads.

        Raises:
            CheckpointCorruptedError: some of it is not as written.
            CheckpointError: a tensor of the template has another shape.
            OSError: it could not be fetched.
        """
        now = Division(division) if isinstance(division, int) else division
        state, saved = self._state, self.division
        shared, owns = state["shared"], state["ranks"]
        own, every = now.own(saved, owns, rank), now.every(saved, owns)
        common = tensor_names([shared, *every])
        tensors = self.read_tensors(common, template)
        tensors |= self.read_tensors(tensor_names(own) - common)
        return Loaded(
            unflatten(shared, tensors),
            unflatten(own, tensors),
            self.meta,
            self.folder.url,
            owns=[unflatten(one, tensors) for one in every],
            same_ranks=now.same_ranks(saved),
        )

    def read_part(self, *path: str, template: Mapping[str, Tensor] | Room | None = None) -> Any:
        """One entry of the shared state, or one of an entry, fetching nothing else.

        Args:
            template: See `read`.

        Raises:
            CheckpointError: there is no such entry; names those that there are.
        """
        part = self._state["shared"]
        for depth, key in enumerate(path):
            entries = entries_of(part)
            if key not in entries:
                known = ", ".join(entries) or "nothing"
                where = f" in {'.'.join(path[:depth])}" if depth else ""
                raise CheckpointError(f"{self.folder} has no {key!r}{where}; it holds {known}")
            part = entries[key]
        return unflatten(part, self.read_tensors(tensor_names(part), template))

    @property
    def meta(self) -> dict[str, Any]:
        """What was given as `meta`, with `step`, `run_id` and `world_size` of the saving run."""
        own = {"step": self.step, "run_id": self.manifest.run_id, "world_size": self.manifest.world_size}
        return meta_of(self._state) | own

    @property
    def division(self) -> Division:
        """How the saving run was divided over its ranks."""
        return Division.of(self.meta, self.manifest.world_size)

    def describe(self) -> dict[str, Any]:
        """What is in it, as plain values: ``tensors`` by name, ``entries`` of the shared state, ``meta``."""
        tensors = {
            name: {"dtype": dtype_name(entry.dtype), "shape": list(entry.shape), "bytes": entry.nbytes}
            for name, entry in self.index.tensors.items()
        }
        return {"tensors": tensors, "entries": list(entries_of(self._state["shared"])), "meta": self.meta}

    def verify(self) -> Verified:
        """Read all files of all ranks.

        Raises:
            CheckpointCorruptedError: some byte is not as written.
        """
        state, shards = self._state, self._shards
        nbytes = shards.verify()
        missing = tensor_names([state["shared"], state["ranks"]]) - self.index.tensors.keys()
        if missing:
            raise CheckpointCorruptedError(f"{layout.INDEX} lacks {min(missing)!r}")
        nbytes += sum(self.manifest.files[file].size for file in (layout.INDEX, layout.STATE))
        return Verified(len(self.manifest.files), len(self.index.tensors), nbytes)

    @property
    def skeleton(self) -> Any:
        """The shared state with names in the place of its tensors; see `tree.unflatten`."""
        return self._state["shared"]

    @cached_property
    def index(self) -> Index:
        """Where each tensor lies."""
        return Index.parse(read_json(self.folder, layout.INDEX, self.manifest), self.manifest.files)

    def read_tensors(
        self, names: Iterable[str], template: Mapping[str, Tensor] | Room | None = None
    ) -> dict[str, Tensor]:
        """Those of the named tensors that are there, fetching nothing else.

        Args:
            names: As in `index` and in `skeleton`.
            template: See `read`.

        Raises:
            CheckpointCorruptedError: some of it is not as written.
        """
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        metadata = self._shards.read_metadata()
        stored: dict[str, Any] = metadata.state_dict_metadata
        room = _room_where_spread(template, stored) if callable(template) else _room_of(template or {})
        tensors = {name: _room(name, stored[name], room) for name in sorted(names) if name in stored}
        for name, tensor in tensors.items():
            if tensor.shape != stored[name].size:
                raise CheckpointError(
                    f"{name!r} is of shape {list(stored[name].size)} in {self.folder}, and "
                    f"{list(tensor.shape)} is to be filled from it"
                )
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), metadata)
        self._shards.read_data(planner.create_local_plan(), planner).wait()
        return tensors

    @cached_property
    def _state(self) -> dict[str, Any]:
        state = read_json(self.folder, layout.STATE, self.manifest)
        kinds = (type(state.get("ranks")), type(state.get("meta")), "shared" in state)
        if kinds != (list, dict, True):
            raise CheckpointCorruptedError(f"{layout.STATE} is incomplete")
        return state

    @cached_property
    def _shards(self) -> "ShardReader":
        from stratrun.checkpoint.storage_reader import ShardReader

        return ShardReader(self.folder, self.manifest, self.index)


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


@contextmanager
def opened(folder: Folder) -> Iterator[StoredCheckpoint]:
    """A checkpoint whose damage, when it is met, is told with where it is and what lies beside it.

    Raises:
        CheckpointCorruptedError: it is damaged.
    """
    try:
        yield StoredCheckpoint(folder)
    except Exception as error:
        reason = None if isinstance(error, ConfigError) else damage(error)
        if reason is None:
            raise
        raise CheckpointCorruptedError(
            f"checkpoint {folder} is damaged: {reason}; {neighbours(folder)}"
        ) from error


def _room_of(template: Mapping[str, Tensor]) -> Room:
    return lambda name, *_: template.get(name)


def _room_where_spread(room: Room, stored: Mapping[str, Any]) -> Room:
    """The same, but for what a hook had whole: it counts on getting that back as it was."""

    def found(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        whole = name.startswith(_OF_HOOKS) and len(stored[name].chunks) == 1
        return None if whole else room(name, shape, dtype)

    return found


def _room(name: str, stored: Any, room: Room) -> Tensor:
    found = room(name, stored.size, stored.properties.dtype)
    if found is not None:
        return found
    try:
        return torch.empty(stored.size, dtype=stored.properties.dtype)
    except (RuntimeError, TypeError, OverflowError) as error:
        if stored.size.numel():
            raise CheckpointError(f"there is no memory for {name!r}, of shape {list(stored.size)}") from error
        # No bytes, but sizes beyond all bounds.
        raise CheckpointCorruptedError(f"{name!r} has a shape that no tensor has: {stored.size}") from error
