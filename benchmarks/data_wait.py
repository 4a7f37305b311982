"""How long a training step waits for its batch: `python benchmarks/data_wait.py`.

A loop that asks for a batch, works for a fixed time and asks for the next, over ours and over torch's own
loader of the same data, in turns. What counts is the time between asking and having. With a GPU the
batches are brought there, by us on a stream of their own, by the plain loop with `non_blocking=True`, and the
work is there too.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import machine, percentile, told, write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stratrun.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator
from stratrun.accelerators.transfer import move_batch
from stratrun.data import build_feed
from stratrun.state import BatchInfo

BATCH, BATCHES, FEATURES = 32, 200, 256
Loop = Callable[[], Iterable[Any]]


class Augmented(Dataset[Tensor]):
    """Samples that take a while, and draw random numbers."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((FEATURES,), float(index)) + torch.rand(FEATURES)


def sources() -> dict[str, tuple[Any, Loop]]:
    """What ours is given, and what makes a pass of the plain loop."""
    tensors = TensorDataset(torch.randn(BATCH * BATCHES, FEATURES))
    augmented = Augmented(BATCH * BATCHES)
    ready = list(torch.randn(BATCHES, BATCH, FEATURES))

    def made() -> Iterator[Tensor]:
        return iter(ready)

    found: dict[str, tuple[Any, Loop]] = {
        "a list of ready batches": (ready, lambda: ready),
        "a function that makes batches": (made, made),
    }
    for name, dataset in (("tensors", tensors), ("augmented samples", augmented)):
        for workers in (0, 2):
            settings: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
            loader = plain_loader(dataset, workers)
            found[f"{name}, {workers} workers"] = ({"dataset": dataset, **settings}, partial(of, loader))
    return found


def plain_loader(dataset: Dataset[Any], workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def of(loader: DataLoader[Any]) -> Iterable[Any]:
    return loader


def ours(spec: Any, accelerator: Accelerator, device: torch.device) -> Loop:
    feed = build_feed(
        spec,
        train=True,
        seed=0,
        rank=0,
        world_size=1,
        batch=BatchInfo(),
        move=lambda batch: move_batch(batch, device, non_blocking=accelerator.pin_memory),
        pin_memory=accelerator.pin_memory,
        beside=accelerator.side_copies(device),
    )
    return lambda: feed


def plain(batches: Loop, device: torch.device) -> Loop:
    def moved() -> Iterator[Any]:
        for batch in batches():
            yield batch if device.type == "cpu" else move_batch(batch, device, non_blocking=True)

    return moved


def waits(batches: Loop, work: Callable[[], None], device: torch.device) -> tuple[list[float], float]:
    """Microseconds before each batch of a pass but the first, and their share of the time of the pass."""
    found, begun = [], 0.0
    asked = time.perf_counter()
    for number, _ in enumerate(batches()):
        had = time.perf_counter()
        if number:
            found.append((had - asked) * 1e6)
        else:
            begun = had  # workers start before it, or begin an epoch
        work()
        asked = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return found, sum(found) / ((time.perf_counter() - begun) * 1e6)


def worker(milliseconds: float, device: torch.device) -> Callable[[], None]:
    """Work of about that long: on the host, or queued on the GPU."""
    if device.type == "cuda":
        square = torch.randn(2048, 2048, device=device)
        product = torch.empty_like(square)

        def queue() -> None:
            torch.mm(square, square, out=product)

        return queue

    def busy() -> None:
        end = time.perf_counter() + milliseconds / 1e3
        while time.perf_counter() < end:
            pass

    return busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="passes over each")
    parser.add_argument(
        "--work", type=float, default=1.0, help="milliseconds of work on each batch, on a CPU"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = CUDAAccelerator() if torch.cuda.is_available() else CPUAccelerator()
    device = accelerator.device(0)
    work = worker(given.work, device)
    figures: dict[str, Any] = {}
    lines = [
        "| data | ours, µs a batch | p5 | share | plain, µs | p5 | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (spec, batches) in sources().items():
        pair = {"ours": ours(spec, accelerator, device), "plain": plain(batches, device)}
        passes: dict[str, list[tuple[list[float], float]]] = {kind: [] for kind in pair}
        for number in range(given.rounds + 1):
            for kind in sorted(pair, reverse=bool(number % 2)):
                found = waits(pair[kind], work, device)
                if number:  # the first starts the workers
                    passes[kind].append(found)
        figures[name] = {kind: summary(those) for kind, those in passes.items()}
        cells = [f"{s['median']:.0f} | {s['p5']:.0f} | {s['share']:.0%}" for s in figures[name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print(told(machine()))
    print("\n".join(lines))
    write(given.json, {"data_wait": figures})


def summary(passes: list[tuple[list[float], float]]) -> dict[str, float]:
    every = [wait for waits, _ in passes for wait in waits]
    share = statistics.median(share for _, share in passes)
    return {"median": statistics.median(every), "p5": percentile(every, 5), "share": share}


if __name__ == "__main__":
    main()
