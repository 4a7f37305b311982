"""Pairing, statistics, tables and JSON of the benchmarks."""

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from peers import MODULES, Task, Variant

Make = Callable[[str, int], Task]
"""Makes a task out of a folder to write to and the number of blocks to time."""


@dataclass
class Figures:
    """What was found for one variant and the bare loop that ran beside it."""

    name: str
    logs: bool = False
    own: list[float] = field(default_factory=list)
    """Microseconds a step of each block of steps."""
    bare: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of the medians of each pair of runs: what slows the machine falls on both."""

    def add(self, own: list[float], bare: list[float]) -> None:
        self.own += own
        self.bare += bare
        self.ratios.append(statistics.median(own) / statistics.median(bare))

    def summary(self) -> dict[str, float]:
        """`quiet` is the difference of the fastest blocks, which no neighbour disturbed."""
        quiet = percentile(self.own, 5), percentile(self.bare, 5)
        return {
            "median": statistics.median(self.own),
            "p5": quiet[0],
            "p95": percentile(self.own, 95),
            "bare": statistics.median(self.bare),
            "ratio": statistics.median(self.ratios),
            "ratio_p5": percentile(self.ratios, 5),
            "ratio_p95": percentile(self.ratios, 95),
            "extra": statistics.median(self.own) - statistics.median(self.bare),
            "quiet_extra": quiet[0] - quiet[1],
            "quiet_ratio": quiet[0] / quiet[1],
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the nearest two values, by how near each is."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def run(variant: Variant, blocks: int, make: Make = Task.make) -> tuple[list[float], Any]:
    """Microseconds a step of each block, and what came of it: weights, or the share of right answers."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others say of a model so small
        task = make(folder, blocks)
        gc.collect()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                result = variant.run(task)
        except Exception as error:
            error.add_note(f"in {variant.name}, which said:\n{said.getvalue()[-2000:]}")
            raise
    if variant.job == "train":
        result = [parameter.detach() for parameter in task.model.parameters()]
    return task.clock.per_step(), result


def compare(
    variants: Sequence[Variant], bare: Variant, *, rounds: int, blocks: int, make: Make = Task.make
) -> dict[str, Figures]:
    """Run each variant next to the bare loop, in turns, after a first run of each that must agree with it.

    Raises:
        SystemExit: some variant did not do the same work.
    """
    _, expected = run(bare, 1, make)
    for variant in variants:
        _, result = run(variant, 1, make)
        if not variant.agrees:
            continue
        try:
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            raise SystemExit(f"{variant.name} did not do what the bare loop does: {error}") from error
    # What all the frameworks have imported must not weigh on anybody's collections.
    gc.collect()
    gc.freeze()
    found = {variant.name: Figures(variant.name, variant.logs) for variant in variants}
    for number in range(rounds):
        turn = number % max(1, len(variants))
        for variant in [*variants[turn:], *variants[:turn]]:
            # Who goes first changes, as the second may find the caches warm.
            if number % 2:
                own, other = run(variant, blocks, make)[0], run(bare, blocks, make)[0]
            else:
                other, own = run(bare, blocks, make)[0], run(variant, blocks, make)[0]
            found[variant.name].add(own, other)
    return found


def table(found: dict[str, Figures], title: str) -> str:
    """Markdown, the figures of those with less to do first; the lowest extra cost of each group on top."""
    lines = [
        f"| {title} | µs | p5 to p95 | extra µs | ratio | p5 to p95 | quiet: extra µs | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(found.values(), key=lambda one: (one.logs, one.summary()["ratio"]))
    for one in order:
        s = one.summary()
        lines.append(
            f"| {one.name} | {s['median']:.0f} | {s['p5']:.0f} to {s['p95']:.0f} | {s['extra']:.1f} "
            f"| {s['ratio']:.3f} | {s['ratio_p5']:.2f} to {s['ratio_p95']:.2f} "
            f"| {s['quiet_extra']:.1f} | {s['quiet_ratio']:.3f} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """When, on what, and with which versions figures were taken."""
    versions = {"torch": str(torch.__version__)}
    for name in ("stratrun", *MODULES.values()):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": device,
        "python": platform.python_version(),
        "versions": versions,
    }


def told(place: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in place["versions"].items())
    gpu = "" if place["gpu"] == "none" else f", {place['gpu']}"
    return (
        f"{place['date']}, {place['cores']} cores (load {place['load']}){gpu}, "
        f"Python {place['python']}, {versions}"
    )


def arguments(description: str | None, *, rounds: int, blocks: int) -> argparse.ArgumentParser:
    """What all benchmarks take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each variant")
    parser.add_argument("--blocks", type=int, default=blocks, help="blocks of 100 steps in a run")
    parser.add_argument("--peers", nargs="*", choices=list(MODULES), help="only these; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures with the machine that they were taken on."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


def as_json(found: dict[str, Figures]) -> dict[str, Any]:
    """Summaries and the single values behind them."""
    return {name: {**asdict(one), "summary": one.summary()} for name, one in found.items()}


def main_of(
    description: str | None,
    title: str,
    variants: Callable[[argparse.Namespace], Sequence[Variant]],
    bare: Variant,
    *,
    rounds: int,
    blocks: int,
) -> None:
    """A whole benchmark: arguments, runs, table and JSON."""
    given = arguments(description, rounds=rounds, blocks=blocks).parse_args()
    torch.set_num_threads(1)
    found = compare(variants(given), bare, rounds=given.rounds, blocks=given.blocks)
    print(told(machine()))
    print(table(found, title))
    write(given.json, {title: as_json(found)})
