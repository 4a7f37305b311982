"""A checkpoint's shared state with its tensors left where they are, to be fetched a few at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.reader import StoredCheckpoint
from stratrun.checkpoint.shards import DTYPES
from stratrun.checkpoint.skeleton import entries_of, tensor_names, unflatten
from stratrun.errors import CheckpointCorruptedError

_AT_ONCE = 64 << 20
"""Bytes that are fetched together; a larger tensor is fetched alone."""


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
        self._places: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def parts(self, *path: str) -> list[str]:
        """What there is below a path."""
        return list(entries_of(self._at(path)))

    def part(self, *path: str) -> Any:
        """What lies at a path; None if there is nothing."""
        here = self._at(path)
        return unflatten(here, {name: self._placed(name) for name in tensor_names(here)})

    def read(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """The data of tensors that `part` has given, each verified, and not kept here.

        Raises:
            CheckpointCorruptedError: one is not as written.
        """
        batch: list[str] = []
        size = 0
        for tensor in tensors:
            if batch and size + tensor.nbytes > _AT_ONCE:
                yield from self._fetched(batch)
                batch, size = [], 0
            batch.append(self._names[id(tensor)])
            size += tensor.nbytes
        yield from self._fetched(batch)

    def _fetched(self, names: list[str]) -> Iterator[Tensor]:
        found, left = self._stored.read_tensors(set(names)), Counter(names)
        for name in names:
            left[name] -= 1
            yield found[name] if left[name] else found.pop(name)

    def _at(self, path: tuple[str, ...]) -> Any:
        here = self._stored.skeleton
        for key in path:
            here = entries_of(here).get(key)
        return here

    def _placed(self, name: str) -> Tensor:
        entry = self._stored.index.tensors.get(name)
        if entry is None:
            raise CheckpointCorruptedError(f"{layout.INDEX} lacks {name!r}")
        if name not in self._places:
            made = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            self._places[name], self._names[id(made)] = made, name
        return self._places[name]
