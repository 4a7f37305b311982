"""What `torch.distributed.checkpoint` writes through: it plans who writes what, this does it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from stratrun.checkpoint import layout
from stratrun.checkpoint.shards import Piece, code_of, write_shards
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

Commit = Callable[[Metadata, list[list[WriteResult]]], None]


class SnapshotPlanner(DefaultSavePlanner):
    """Plans from the live tensors, and gives out copies of them that were taken before.

    What several ranks have is written by the lowest of them, so that what merely should be equal,
    such as the buffers of a model, is always that of the same rank.
    """

    def __init__(self, live: Mapping[str, Tensor], staged: Mapping[str, Tensor] | None = None) -> None:
        """
        Args:
            live: Tensors by name, spread over ranks or not.
            staged: Copies of what this rank holds of them; without, the tensors themselves.
        """
        super().__init__(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
        self._staged = staged
        self.set_up_planner(dict(live))

    def lookup_object(self, index: Any) -> Any:
        return super().lookup_object(index) if self._staged is None else self._staged[index.fqn]


class ShardWriter(StorageWriter):
    """Writes safetensors files, one or a few for each rank.

    `write_data` returns when all is written: who wants that beside other work calls it in a thread.
    """

    def __init__(
        self,
        folder: Folder,
        rank: int = 0,
        world_size: int = 1,
        token: str = "",
        own: Any = None,
        commit: Commit | None = None,
    ) -> None:
        """
        Args:
            folder: Where the files go.
            token: Part of their names, the same on all ranks; see `layout.shard_name`.
            own: What this rank saves that is no tensor, as JSON has it.
            commit: Called on the coordinator when all ranks have written.
        """
        self.owns: list[Any] = []
        """On the coordinator, once it has planned: `own` of every rank."""
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._token = token
        self._own = own
        self._commit = commit

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return isinstance(checkpoint_id, str | os.PathLike)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            raise CheckpointError(
                f"checkpoint_id={os.fspath(checkpoint_id)!r} has no meaning here: a ShardWriter is made for "
                "one attempt; leave it out"
            )
        self.owns = []

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be made: the first file makes the folder."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """
        Raises:
            CheckpointError: something to be saved is no tensor, or of a dtype that files do not have.
        """
        for item in plan.items:
            _check(item)
        return replace(plan, storage_data=self._own)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.owns = [plan.storage_data for plan in plans]
        return [replace(plan, storage_data=None) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        pieces = {id(item): _piece(item, planner) for item in plan.items}
        written = write_shards(self._folder, self._name, list(pieces.values()))
        places = {(done.name, done.place.offsets): done for done in written}
        future: Future[list[WriteResult]] = Future()
        results = []
        for item in plan.items:
            piece = pieces[id(item)]
            done = places[piece.name, piece.offsets]
            results.append(WriteResult(item.index, piece.nbytes, done))
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._commit is None:
            raise CheckpointError("this ShardWriter only writes files; Attempt.writer gives one that commits")
        self._commit(metadata, results)

    def _name(self, part: int) -> str:
        return layout.shard_name(self._rank, self._world_size, part, self._token)


def _check(item: WriteItem) -> None:
    name = item.index.fqn
    if item.type is WriteItemType.BYTE_IO or item.tensor_data is None:
        raise CheckpointError(
            f"{name!r} is no tensor; only tensors go into shards, and other values into the state beside them"
        )
    code_of(name, item.tensor_data.properties.dtype)


def _piece(item: WriteItem, planner: SavePlanner) -> Piece:
    _check(item)
    data: Any = item.tensor_data
    resolve: Any = partial(planner.resolve_data, item)
    return Piece(
        item.index.fqn,
        tuple(data.chunk.offsets),
        tuple(data.chunk.sizes),
        data.properties.dtype,
        resolve,
    )
