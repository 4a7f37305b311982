"""Predictions that lie in several files, as one sequence."""

import hashlib
import heapq
import os
from collections.abc import Iterator
from typing import Any

from stratrun.errors import DataError, nearest
from stratrun.predictions.formats import format_called
from stratrun.predictions.index import INDEX, INDEX_LIMIT, Index, Part
from stratrun.storage import Folder
from stratrun.storage.urls import redacted

FOLDER = "predictions"
"""What the folder is called in a work dir, unless the user calls it otherwise."""


class Predictions:
    """Predictions in the order of the samples, whichever process has written which.

    Iterating reads the files as it goes, each verified: of every process that has written one is held.
    """

    def __init__(self, folder: Folder, index: Index) -> None:
        self._folder = folder
        self._index = index

    def __len__(self) -> int:
        return self._index.rows

    def __iter__(self) -> Iterator[Any]:
        return (prediction for _, prediction in self._merged())

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """Each with the number of its sample.

        Raises:
            DataError: samples had no number, as their batches came ready on several processes.
        """
        if not self._index.by_sample:
            raise DataError(
                f"{self._folder}: the samples have no numbers, as each process read batches of its own; "
                "iterate without them"
            )
        return self._merged()

    def _merged(self) -> Iterator[tuple[int, Any]]:
        # The numbers of parts decide between equal places: by process, and in each by time.
        waiting = sorted(enumerate(self._index.parts), key=lambda one: (-one[1].first, -one[0]))
        opened: list[tuple[int, int, Any, Iterator[tuple[int, Any]]]] = []
        while waiting or opened:
            while waiting and (not opened or waiting[-1][1].first <= opened[0][0]):
                number, part = waiting.pop()
                rows: Iterator[tuple[int, Any]] = zip(part.each(), self._read(part), strict=True)
                place, prediction = next(rows)
                heapq.heappush(opened, (place, number, prediction, rows))
            place, number, prediction, rows = heapq.heappop(opened)
            yield place, prediction
            following = next(rows, None)
            if following is not None:
                heapq.heappush(opened, (following[0], number, following[1], rows))

    def _read(self, part: Part) -> list[Any]:
        where = f"{self._folder}/{part.name}"
        try:
            data = self._folder.read_bytes(part.name)
        except FileNotFoundError as error:
            raise DataError(f"{where} is missing, which the index names; predict again") from error
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise DataError(f"{where} is not as it was written: its digest does not match; predict again")
        found = format_called(self._index.format).decode(data, where)
        if len(found) != part.rows:
            raise DataError(f"{where} has {len(found)} predictions, and not the {part.rows} of the index")
        return found


def read_predictions(url: str | os.PathLike[str], **options: Any) -> Predictions:
    """Predictions that `PredictionWriterHook` has written.

    Args:
        url: Their folder, or the work dir that has them in ``predictions``: a path or any URL that fsspec
            knows.
        options: Go to the fsspec file system.

    Raises:
        DataError: there are none, or writing them has not come to its end.
    """
    at = Folder(os.fspath(url), **options)
    for folder in (at, at.child(FOLDER)):
        if folder.exists(INDEX):
            index = Index.parse(folder.read_bytes(INDEX, limit=INDEX_LIMIT), f"{folder}/{INDEX}")
            return Predictions(folder, index)
    raise DataError(_why_none(at))


def _why_none(at: Folder) -> str:
    shown = redacted(str(at))
    if not at.exists():
        beside = at.parent.names() if at.parent.exists() else []
        return f"no predictions in {shown}, which does not exist; {nearest(at.name, beside)}"
    for folder in (at, at.child(FOLDER)):
        if any(name.startswith("part-") for name in folder.names()):
            return f"the predictions in {folder} were not written to their end, as there is no {INDEX}"
    return f"no predictions in {shown}: there is no {INDEX}"
