"""A checkpoint's shared state with its tensors left where they are, to be fetched one by one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.reader import StoredCheckpoint
from stratrun.checkpoint.shards import DTYPES
from stratrun.checkpoint.tree import tensor_names, unflatten
from stratrun.errors import CheckpointCorruptedError


class TensorSource:
    """Parts of the shared state, with tensors of dtype and shape but no data in them.

    Tensors that were one when they were saved, as tied weights are, are one here.
    """

    def __init__(self, stored: StoredCheckpoint) -> None:
        """
        Raises:
            CheckpointCorruptedError: state or index are not as written.
        """
        self._stored = stored
        self._shared = stored.skeleton
        self._index = stored.index.tensors
        self._places: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def parts(self, *path: str) -> list[str]:
        """What there is below a path."""
        here = self._at(path)
        return list(here) if isinstance(here, dict) else []

    def part(self, *path: str) -> Any:
        """What lies at a path; None if there is nothing."""
        here = self._at(path)
        return unflatten(here, {name: self._placed(name) for name in tensor_names(here)})

    def read(self, tensor: Tensor) -> Tensor:
        """The data of a tensor that `part` has given, verified.

        Raises:
            CheckpointCorruptedError: it is not as written.
            CheckpointError: it is of a kind that cannot be read alone.
        """
        name = self._names[id(tensor)]
        return self._stored.read_tensors([name])[name]

    def _at(self, path: tuple[str, ...]) -> Any:
        here = self._shared
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    def _placed(self, name: str) -> Tensor:
        if name not in self._index:
            raise CheckpointCorruptedError(f"{layout.INDEX} lacks {name!r}")
        if name not in self._places:
            place = self._index[name]
            made = torch.empty(place.shape, dtype=DTYPES[place.dtype], device="meta")
            self._places[name], self._names[id(made)] = made, name
        return self._places[name]
