"""Where a run writes what it was asked for, beside its logs and checkpoints."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from stratrun.runner.start import Started
from stratrun.storage import Folder

if TYPE_CHECKING:
    from stratrun.predictions import PredictionWriter


class Outputs:
    """The part of the `RunContext` that writes results, by all processes of the run."""

    @property
    def _started(self) -> Started:
        raise NotImplementedError

    def write_predictions(self, path: str, *, format: str, rows: int, size: int) -> PredictionWriter:
        """Begin to write predictions to a folder of the work dir, or to a path or URL elsewhere."""
        # Only now, as most runs predict nothing.
        from stratrun.predictions import PredictionWriter

        started = self._started
        options = started.saving.storage_options
        if "://" in path or PurePath(path).is_absolute():
            folder = Folder(path, **(options if "://" in path else {}))
        else:
            folder = Folder(started.work_dir, **options).child(path)
        return PredictionWriter(
            folder, started.ranks, format=format, rows=rows, size=size, counts=started.data.leads
        )
