"""Which values of runs are drawn together, and under which heading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stratrun.report.history import History, Series

POINTS = 2000
"""Most points of a line. Longer ones are thinned out evenly, first and last point kept."""

_SECTIONS: tuple[tuple[str, str], ...] = (
    ("Learning rate", r"(lr|momentum|weight_decay)(/.*)?"),
    ("Throughput", r"(\w+_per_s|mfu)"),
    ("Time of an iteration", r"(time|data_time|data_share|hook_us)"),
    ("Memory", r"(\w*memory\w*|host_free)"),
    ("Machine", r"(cpu_busy|process_cpu|disk_\w+|net_\w+|gpu_\w+)"),
)
_HIDDEN = {"eta", "time_epoch", "data_time_epoch", "data_share_epoch"}
ORDER = ("Curves", *(title for title, _ in _SECTIONS), "Weights and gradients")


def charts(runs: Sequence[History]) -> list[dict[str, Any]]:
    """One chart for each value, with a line for each run and kind that has it, in the order of sections."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for (kind, name), series in run.series.items():
            if name in _HIDDEN or not any(value is not None for value in series.values):
                continue
            place = section_of(kind, name)
            # The mean over an epoch belongs to the values that it is of.
            shown = name.removesuffix("_epoch") if kind == "train" else name
            label = f"{kind}, mean of epochs" if shown != name else kind
            line = {"run": run.name, "kind": label, **_points(series)}
            found.setdefault((place, shown), []).append(line)
    for run in runs:
        if split := _split(run):
            found[
                "Time of an iteration", f"where it goes: {run.name}" if len(runs) > 1 else "where it goes"
            ] = split
    # Losses come first in their section, as they are what one looks for.
    ordered = sorted(found, key=lambda key: (ORDER.index(key[0]), "loss" not in key[1], key[1]))
    return [{"section": place, "title": name, "lines": found[place, name]} for place, name in ordered]


def section_of(kind: str, name: str) -> str:
    if kind == "parameters":
        return "Weights and gradients"
    if kind == "train":
        name = name.removesuffix("_epoch")
        for title, pattern in _SECTIONS:
            if re.fullmatch(pattern, name):
                return title
    return "Curves"


def _split(run: History) -> list[dict[str, Any]]:
    """What an iteration waits for its data, and the rest of it, to be put on top of each other."""
    whole, waits = run.series.get(("train", "time")), run.series.get(("train", "data_time"))
    if whole is None or waits is None or whole.iters != waits.iters:
        return []
    rest = [
        None if a is None or b is None else max(a - b, 0.0)
        for a, b in zip(whole.values, waits.values, strict=True)
    ]
    parts = {"waits for data": waits, "works": Series(whole.iters, whole.epochs, whole.hours, rest)}
    return [{"run": run.name, "kind": kind, "stacked": True, **_points(part)} for kind, part in parts.items()]


def _points(series: Series) -> dict[str, list[Any]]:
    count = len(series.values)
    step = max(1, -(-count // POINTS))
    picked = list(range(0, count, step))
    if picked[-1] != count - 1:
        picked.append(count - 1)
    columns: dict[str, list[Any]] = {
        "iter": series.iters,
        "epoch": series.epochs,
        "hours": series.hours,
        "y": series.values,
    }
    return {name: [column[i] for i in picked] for name, column in columns.items()}
