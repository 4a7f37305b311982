"""Memory of a training process, and whether it grows with steps: `python benchmarks/memory.py [--json FILE]`.

The task of `step_overhead.py` in a process of its own for each way of doing it: what the process holds after
warming up, what that has grown by at the end, and its largest size.
"""

import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median

import psutil
import torch
from measure import arguments, machine, told, write
from ours import VARIANTS
from peers import Task, Variant, bare, variants
from peers.task import BLOCK

HERE = Path(__file__).resolve().parent
WARM = 5
"""Blocks of steps after which everything that is made once is there."""


class Sizes:
    """Notes the size of the process each so many forward passes, in place of the time."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []
        self._process = psutil.Process()

    def tick(self) -> None:
        if self.count % BLOCK == 0:
            self.seen.append(self._process.memory_info().rss)
        self.count += 1


def all_variants(peers: list[str] | None) -> list[Variant]:
    own = [*bare.VARIANTS, *VARIANTS]
    return [*(variant for variant in own if variant.job == "train"), *variants("train", peers)]


def alone(name: str, blocks: int) -> dict[str, float]:
    """In this process: MiB after warming up, at the end, and at the most."""
    torch.set_num_threads(1)
    (variant,) = [one for one in all_variants(None) if one.name == name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task, sizes = Task.make(folder, blocks), Sizes()
        task.model.clock = sizes  # type: ignore[assignment]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            variant.run(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    warm, end = sizes.seen[WARM], sizes.seen[-1]
    return {key: size / 2**20 for key, size in (("warm", warm), ("end", end), ("peak", peak))}


def measured(name: str, blocks: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, str(HERE / "memory.py"), "--alone", name, "--blocks", str(blocks)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=3, blocks=40)
    parser.add_argument("--alone", help="only this variant, in this process")
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(alone(given.alone, given.blocks)))
        return
    print(told(machine()))
    steps = (given.blocks - WARM) * BLOCK
    print(f"| MiB | after {WARM * BLOCK} steps | grown in {steps} more | at most |")
    print("|---|---|---|---|")
    figures = {}
    for variant in all_variants(given.peers):
        runs = [measured(variant.name, given.blocks) for _ in range(given.rounds)]
        one = {key: median(run[key] for run in runs) for key in runs[0]}
        figures[variant.name] = {**one, "runs": runs}
        print(f"| {variant.name} | {one['warm']:.0f} | {one['end'] - one['warm']:.1f} | {one['peak']:.0f} |")
    write(given.json, {"steps": steps, "memory": figures})


if __name__ == "__main__":
    main()
