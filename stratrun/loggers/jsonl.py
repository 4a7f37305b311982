import json
import math
from pathlib import Path
from typing import Any

from stratrun.loggers.base import Logger
from stratrun.loggers.record import Record
from stratrun.loggers.text_file import TextFile
from stratrun.registry import LOGGERS

_encode = json.JSONEncoder(allow_nan=False).encode


@LOGGERS.register_module("jsonl")
class JsonlLogger(Logger):
    """One JSON object a line: the counters, then the values.

    JSON has no numbers that are not finite; they are written as the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, which `float` reads.
    """

    def __init__(self, filename: str = "metrics.jsonl") -> None:
        self.filename = filename
        self._file: TextFile

    def open(self, folder: Path) -> None:
        self._file = TextFile(folder / self.filename)

    def log(self, record: Record) -> None:
        row = {key: _finite(value) for key, value in record.flat().items()}
        self._file.write(_encode(row) + "\n")

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
