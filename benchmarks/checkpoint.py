"""What saving and loading cost: `python benchmarks/checkpoint.py --gigabytes 2 --rounds 3 [--json FILE]`.

Weights and Adam moments of the size given, on CPU. Each round takes every variant in turn, as disks
drift; beside ours stand the disk's own rate (page-aligned direct writes, and plain ones, both fsynced),
`torch.save`, and torch's distributed checkpoint. Medians over the rounds. Each begins after a pause, as
saves of a run are minutes apart: memory that was in use a moment ago is written to several times as fast
as memory that a virtual machine has given back meanwhile. Page caches are dropped before anything is read.
"""

import argparse
import json
import mmap
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from stratrun.checkpoint import Checkpointer, StoredCheckpoint
from stratrun.data import build_feed
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.state import BatchInfo
from stratrun.storage import Folder

_BLOCK = 16 << 20
_PAUSE = 5.0
State = dict[str, dict[str, Tensor]]
Figures = dict[str, list[float]]


def state_of(size: int) -> State:
    """Matrices of 4096 x 1024 with two moments each, and some small tensors, as a model has them."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, size // (3 * 4096 * 1024 * 4))
    model = {f"layer.{i}.weight": torch.randn(4096, 1024, generator=generator) for i in range(count)}
    model |= {f"layer.{i}.bias": torch.randn(1024, generator=generator) for i in range(count)}
    moments = {
        f"{key}.{name}": torch.rand_like(value)
        for name, value in model.items()
        for key in ("exp_avg", "exp_avg_sq")
    }
    return {"model": model, "optimizer": moments}


def tensors_of(state: State) -> list[Tensor]:
    return [tensor for part in state.values() for tensor in part.values()]


def rested(work: Callable[[], Any]) -> float:
    """Seconds of what is done after a pause."""
    time.sleep(_PAUSE)
    return timed(work)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class PeakMemory:
    """The most resident memory beyond that at the start, in MB, looked at every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self._process, self._over = psutil.Process(), threading.Event()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.megabytes = (self._peak - self._start) / 1e6

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, self._process.memory_info().rss)


# -- what others do


def write_raw(path: Path, size: int, *, direct: bool) -> None:
    """The disk's own rate: one buffer, written again and again, and synced."""
    buffer = memoryview(mmap.mmap(-1, _BLOCK))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0))
    try:
        for start in range(0, size, _BLOCK):
            os.pwrite(handle, buffer, start)
        os.fsync(handle)
    finally:
        os.close(handle)


def torch_save(state: State, path: Path) -> None:
    with open(path, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def read_raw(folder: Path) -> None:
    buffer = bytearray(_BLOCK)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def drop_caches(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- one round


class Bench:
    """The state, where it is written to, and what was found."""

    def __init__(self, size: int, folder: Path) -> None:
        self.state = state_of(size)
        self.size = sum(tensor.nbytes for tensor in tensors_of(self.state))
        self.folder = folder
        self.found: Figures = {}
        self.checkpointer = Checkpointer(
            Folder(folder / "ours"), Collectives(ProcessEnv()), run_id="bench", deadline=600.0
        )
        self._copies = [torch.empty_like(tensor) for tensor in tensors_of(self.state)]
        self._copy()
        self._step = 0

    def note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def round(self) -> None:
        self.note("copy of the state in memory", timed(self._copy))
        for name, direct in (("disk, direct", True), ("disk, page cache", False)):
            path = self.folder / "raw"
            self.note(f"{name} + fsync", rested(lambda: write_raw(path, self.size, direct=direct)))  # noqa: B023
            path.unlink()
        path = self.folder / "torch.pt"
        self.note("torch.save + fsync", rested(lambda: torch_save(self.state, path)))
        path.unlink()
        self._stock_dcp()
        self._ours()
        self._read()

    def _copy(self) -> None:
        for copy, tensor in zip(self._copies, tensors_of(self.state), strict=True):
            copy.copy_(tensor)

    def _stock_dcp(self) -> None:
        path = self.folder / "dcp"
        writer = FileSystemWriter(path, sync_files=True)
        self.note(
            "torch DCP + fsync", timed(lambda: dcp_save(self.state, storage_writer=writer, no_dist=True))
        )
        shutil.rmtree(path)

    def _ours(self) -> None:
        saver, kept = self.checkpointer, {"keep_last": 1}
        with PeakMemory() as memory:
            self.note("ours, blocking", rested(lambda: saver.save(self._next(), self.state, **kept)))  # type: ignore[arg-type]
        self.note("peak memory, blocking (MB)", memory.megabytes)
        with PeakMemory() as memory:
            time.sleep(_PAUSE)
            start = time.perf_counter()
            saver.save(self._next(), self.state, background=True, **kept)  # type: ignore[arg-type]
            self.note("ours, in background: blocked", time.perf_counter() - start)
            saver.wait()
            self.note("ours, in background: committed", time.perf_counter() - start)
        self.note("peak memory, in background (MB)", memory.megabytes)

    def _read(self) -> None:
        folder = self.folder / "ours"
        stored = StoredCheckpoint(Folder(folder / f"step-{self._step:08d}"))
        for name, work in (
            ("read alone", lambda: read_raw(folder)),
            ("verify", stored.verify),
            ("load, verified", self.checkpointer.load),
        ):
            drop_caches(folder)
            self.note(name, timed(work))

    def _next(self) -> int:
        self._step += 1
        return self._step

    def taken_from_training(self) -> None:
        """Seconds of training that a save in the background costs, for 2 GB."""
        weight = torch.randn(512, 512)
        saver = self.checkpointer

        def rate(goes_on: Callable[[], bool]) -> tuple[float, float]:
            """Steps a second, and the seconds it was measured over."""
            start, done = time.perf_counter(), 0
            while goes_on():
                torch.mm(weight, weight)
                done += 1
            seconds = time.perf_counter() - start
            return done / seconds, seconds

        def for_a_while() -> Callable[[], bool]:
            end = time.perf_counter() + 2.0
            return lambda: time.perf_counter() < end

        before, _ = rate(for_a_while())
        blocked = timed(lambda: saver.save(self._next(), self.state, keep_last=1, background=True))
        saving = threading.Thread(target=saver.wait)
        saving.start()
        during, seconds = rate(saving.is_alive)
        saving.join()
        after, _ = rate(for_a_while())
        lost = seconds * (1 - 2 * during / (before + after)) + blocked
        self.note("taken from training, for 2 GB", lost * 2e9 / self.size)


# -- going on in the data


class Virtual(torch.utils.data.Dataset[int]):
    """Samples that cost nothing, as many as one likes."""

    def __len__(self) -> int:
        return 50_000_000

    def __getitem__(self, index: int) -> int:
        return index


def first_batch_after(step: int) -> float:
    """Seconds from a position in the data to its first batch."""
    spec = {"dataset": Virtual(), "batch_size": 32, "shuffle": True}
    feed = build_feed(
        spec, train=True, seed=0, rank=0, world_size=1, batch=BatchInfo(), move=lambda batch: batch
    )
    state = {**feed.state_dict(), "consumed": step * 32, "batches": step}

    def go_on() -> None:
        feed.load_state_dict(state)
        next(iter(feed))

    return timed(go_on)


def report(bench: Bench, figures: dict[str, float]) -> None:
    size = bench.size
    print(f"torch {torch.__version__}, {size / 1e9:.2f} GB of state, {os.cpu_count()} cores, medians")
    for name, value in figures.items():
        is_rate = not any(word in name for word in ("(MB)", "after", "taken"))
        print(f"{name:42}{value:12.4f}" + (f"{size / 1e6 / value:10.0f} MB/s" if is_rate else ""))
    print()
    for text, one, other in (
        ("blocked, against one copy", "ours, in background: blocked", "copy of the state in memory"),
        ("torch.save + fsync, against ours", "torch.save + fsync", "ours, blocking"),
        ("torch DCP + fsync, against ours", "torch DCP + fsync", "ours, blocking"),
        ("ours, against the disk", "ours, blocking", "disk, direct + fsync"),
        ("loading, against reading", "load, verified", "read alone"),
    ):
        print(f"{text:42}{figures[one] / figures[other]:12.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/benchmark"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(int(given.gigabytes * 1e9), given.folder)
    try:
        bench.checkpointer.reserve(bench.size)
        for _ in range(given.rounds):
            bench.round()
            bench.taken_from_training()
        for step in (10, 1_000_000):
            bench.found[f"first batch after step {step}"] = [first_batch_after(step) for _ in range(3)]
    finally:
        bench.checkpointer.close()
        shutil.rmtree(given.folder, ignore_errors=True)
    figures = {name: statistics.median(values) for name, values in bench.found.items()}
    report(bench, figures)
    if given.json:
        given.json.write_text(
            json.dumps({"bytes": bench.size, "medians": figures, "all": bench.found}, indent=1)
        )


if __name__ == "__main__":
    main()
