"""What `torch.distributed.checkpoint` reads through: only the blocks that a plan needs, each verified."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from stratrun.checkpoint import layout
from stratrun.checkpoint.blocks import BlockReader, Wanted
from stratrun.checkpoint.index import Entry, Index, Slice
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.opening import open_manifest, read_json
from stratrun.checkpoint.shards import DTYPES, memory_of
from stratrun.errors import CheckpointCorruptedError, CheckpointError
from stratrun.storage import Folder

# Of boxes that lie in strides, all between their ends is read: a rank that holds a few columns of each weight
# would have the whole model in memory at once.
_ASIDE = 256 << 20


class ShardReader(StorageReader):
    """Reads tensors of a committed checkpoint. Nothing in it is unpickled."""

    def __init__(self, folder: Folder, manifest: Manifest | None = None, index: Index | None = None) -> None:
        """
        Raises:
            CheckpointCorruptedError: the checkpoint is not as it was written.
        """
        manifest = manifest or open_manifest(folder)
        self._index = index or Index.parse(read_json(folder, layout.INDEX, manifest), manifest.files)
        self._blocks = BlockReader(folder, self._index, manifest.files)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return isinstance(checkpoint_id, str | os.PathLike)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            raise CheckpointError(
                f"checkpoint_id={os.fspath(checkpoint_id)!r} has no meaning here: a ShardReader is made for "
                "one checkpoint; leave it out"
            )

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({name: _described(name, entry) for name, entry in self._index.tensors.items()})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing is to be set up: what there is was read when this was made."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """
        Raises:
            CheckpointCorruptedError: some of the bytes are not those that were written.
        """
        self._blocks.check_headers(self._place(item).file for item in plan.items)
        wanted: list[Wanted] = []
        finish: list[Callable[[], None]] = []
        aside = 0
        for item in plan.items:
            if aside > _ASIDE:
                self._fill(wanted, finish)
                wanted, finish, aside = [], [], 0
            place = self._place(item)
            into = planner.resolve_tensor(item).detach()
            dtype = DTYPES[self._index.tensors[item.storage_index.fqn].dtype]
            if _fits(item, place, into, dtype):
                memory = memory_of(into)
                if len(memory):
                    wanted.append(Wanted(place, 0, memory))
            else:
                want, copy = self._aside(item, place, into, dtype)
                wanted.append(want)
                finish.append(copy)
                aside += len(want.into)
            finish.append(partial(planner.commit_tensor, item, into))
        self._fill(wanted, finish)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def verify(self) -> int:
        """Read all shards and return how many bytes they have."""
        return self._blocks.verify()

    def _fill(self, wanted: list[Wanted], finish: list[Callable[[], None]]) -> None:
        self._blocks.read(wanted)
        for action in finish:
            action()

    def _place(self, item: ReadItem) -> Slice:
        if item.type is LoadItemType.BYTE_IO:
            raise CheckpointError(f"{item.storage_index.fqn!r} is no tensor; shards hold nothing else")
        entry = self._index.tensors[item.storage_index.fqn]
        hint, offsets = item.storage_index.index, tuple(item.storage_index.offset or ())
        if hint is not None and hint < len(entry.slices) and entry.slices[hint].offsets == offsets:
            return entry.slices[hint]
        return next(place for place in entry.slices if place.offsets == offsets)

    def _aside(
        self, item: ReadItem, place: Slice, into: Tensor, dtype: torch.dtype
    ) -> tuple[Wanted, Callable[[], None]]:
        """Read the blocks that hold a box, to be copied from there."""
        strides = _strides(place.shape)
        begin = sum(at * stride for at, stride in zip(item.storage_offsets, strides, strict=True))
        last = sum((n - 1) * stride for n, stride in zip(item.lengths, strides, strict=True))
        width = dtype.itemsize
        first, end = self._blocks.span(place, begin * width, (begin + last + 1) * width)
        room = torch.empty(end - first, dtype=torch.uint8)
        inner = room[begin * width - first : (begin + last + 1) * width - first]

        def copy() -> None:
            # Blocks need not end where numbers do, so that what is wanted is moved to where one starts.
            numbers = (inner if begin * width == first else inner.clone()).view(dtype)
            into.copy_(numbers.as_strided(tuple(item.lengths), strides))

        return Wanted(place, first, memory_of(room)), copy


def _described(name: str, entry: Entry) -> TensorStorageMetadata:
    try:
        return TensorStorageMetadata(
            TensorProperties(dtype=DTYPES[entry.dtype]),
            torch.Size(entry.shape),
            [ChunkStorageMetadata(torch.Size(s.offsets), torch.Size(s.shape)) for s in entry.slices],
        )
    except (RuntimeError, TypeError, OverflowError) as error:  # no bytes, but sizes beyond all bounds
        raise CheckpointCorruptedError(f"{name!r} has a shape that no tensor has: {entry.shape}") from error


def _fits(item: ReadItem, place: Slice, into: Tensor, dtype: torch.dtype) -> bool:
    """Whether the bytes of a slice are those of the tensor that they go to."""
    plain = into.device.type == "cpu" and into.is_contiguous() and not into.is_conj() and not into.is_neg()
    return plain and into.dtype == dtype and tuple(item.lengths) == place.shape


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
