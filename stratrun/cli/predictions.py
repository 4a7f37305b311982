"""Predictions as a file of JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stratrun.storage import Folder

if TYPE_CHECKING:
    from stratrun.runner import Runner

FILE = "predictions.jsonl"


def write(runner: Runner, predictions: list[Any]) -> None:
    """Write one line for each sample, in the order of the data set, replacing an older file."""
    lines = "".join(f"{line(one)}\n" for one in predictions)
    if runner.rank == 0:
        folder = Folder(runner.work_dir)
        folder.write_bytes(FILE, lines.encode())
        runner.loggers.say(f"  predictions: {len(predictions)}, one a line, in {folder.url}/{FILE}")


def line(prediction: Any) -> str:
    """One prediction as JSON. Numbers that are not finite become strings, which JSON has none for."""
    return json.dumps(_plain(prediction), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
