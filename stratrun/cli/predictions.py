"""Predictions as a file of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stratrun.data.json_lines import json_line
from stratrun.storage import Folder

if TYPE_CHECKING:
    from stratrun.runner import Runner

FILE = "predictions.jsonl"


def collects(config: Mapping[str, Any]) -> bool:
    """Whether the job has its predictions in memory; if not, a hook may have written them."""
    settings = config.get("predict_cfg")
    return not (isinstance(settings, Mapping) and settings.get("collect") is False)


def write(runner: Runner, predictions: list[Any]) -> None:
    """Write one line for each sample, in the order of the data set, replacing an older file."""
    lines = "".join(f"{json_line(one)}\n" for one in predictions)
    if runner.rank == 0:
        folder = Folder(runner.work_dir)
        folder.write_bytes(FILE, lines.encode())
        runner.loggers.say(f"  predictions: {len(predictions)}, one a line, in {folder.url}/{FILE}")
