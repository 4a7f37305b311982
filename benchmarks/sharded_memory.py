"""A model too large for a memory limit on one process, trained by two: `python benchmarks/sharded_memory.py`.

Blocks of two layers, trained by AdamW: four times the weights. Each process may take so many MiB of memory
for data (RLIMIT_DATA), and tells its peak (VmHWM) over what it had with everything imported.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 1300
WIDTH, BLOCKS = 1024, 12
STEPS = 3
MIB = 2**20
# What is free goes back at once; by itself the allocator keeps as much again, in pieces that fit nothing.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "2"}


def model() -> Any:
    """As a config names it: built by each process, or not, as the strategy says."""
    from torch import nn

    class Block(nn.Module):
        """Two layers beside which its input passes."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            nn.init.trunc_normal_(self.up.weight, std=0.02)

        def forward(self, x: Any) -> Any:
            return x + self.down(self.up(self.norm(x)).relu())

    return nn.Sequential(*(Block() for _ in range(BLOCKS)))


def peak() -> int:
    """The largest that this process has been, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def worker(strategy: str, limit: int) -> None:
    """One process of a run; tells what became of it."""
    import torch
    import torch.distributed.fsdp
    from torch.utils.data import TensorDataset

    from stratrun import Runner

    torch.set_num_threads(1)
    before = peak()
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB))
    data = TensorDataset(torch.randn(8 * STEPS, WIDTH), torch.randn(8 * STEPS, WIDTH))
    said = "trained"
    try:
        with tempfile.TemporaryDirectory() as folder:
            Runner(
                model,
                loss="mse_loss",
                optimizer={"type": "AdamW", "lr": 1e-4},
                train_dataloader={"dataset": data, "global_batch_size": 8},
                train_cfg={"max_iters": STEPS},
                strategy=strategy,
                default_hooks={"checkpoint": None},
                loggers=(),
                work_dir=folder,
                env_cfg={"timeout": 30},
            ).train()
    except (RuntimeError, MemoryError) as error:
        said = "no memory" if "memory" in str(error) else str(error).splitlines()[0]
        said = "lost the other one" if "Connection" in said else said
    found = {"rank": int(os.environ.get("RANK", 0)), "peak": peak() - before, "said": said}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the other process may be waiting in an exchange


def run(ranks: int, strategy: str, limit: int) -> list[dict[str, Any]]:
    """What the processes of one run tell."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [__file__, "--worker", strategy, "--limit", str(limit)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return sorted(lines, key=lambda line: int(line["rank"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=LIMIT, help="MiB of data memory for each process")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.limit)
    weights = BLOCKS * (8 * WIDTH * WIDTH + 7 * WIDTH) * 4 / MIB
    print(f"weights {weights:.0f} MiB, with gradients and AdamW's averages {4 * weights:.0f} MiB")
    print("| processes | strategy | limit MiB | | peak MiB of each |\n|---|---|---|---|---|")
    for ranks, strategy, limit in [
        (1, "single", 0),
        (1, "single", given.limit),
        (2, "ddp", given.limit),
        (2, "fsdp", 0),
        (2, "fsdp", given.limit),
    ]:
        found = run(ranks, strategy, limit)
        said = "; ".join(sorted({str(one["said"]) for one in found}))
        peaks = ", ".join(str(one["peak"]) for one in found)
        print(f"| {ranks} | {strategy} | {limit or 'none'} | {said} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()
