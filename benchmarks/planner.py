"""The planner against real ranks, and for thousands of them: `python benchmarks/planner.py [--large]`.

Real memory is what the processes grow by between the start and the peak of training, as the system counts it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import DATASETS, MODELS, Hook, Runner

VOCABULARY = 1000


@MODELS.register_module()
class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, VOCABULARY)

    def train_step(self, numbers: Tensor) -> Tensor:
        x = self.table(numbers)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), numbers.flatten())


@DATASETS.register_module()
class Sentences(Dataset[Tensor]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(index, index + self.length) % VOCABULARY


class Grown(Hook):
    """What the process has grown by at its peak since training began, on the main rank."""

    def before_train(self, runner: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        self.before = _status("VmRSS")
        module = runner.engine.state_module
        own = (p.to_local() if hasattr(p, "to_local") else p for p in module.parameters())
        self.weights = sum(p.untyped_storage().nbytes() for p in own)

    def after_train(self, runner: Any) -> None:
        print(json.dumps({"rank": runner.rank, "grown": _status("VmHWM") - self.before + self.weights}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def config(width: int, depth: int, strategy: str) -> dict[str, Any]:
    return {
        "model": {"type": "Transformer", "width": width, "depth": depth},
        "train_dataloader": {"dataset": {"type": "Sentences", "length": 128}, "batch_size": 4},
        "train_cfg": {"by_epoch": False, "max_iters": 3},
        "optimizer": {"type": "AdamW", "lr": 1e-4},
        "clip_grad": 1.0,
        "strategy": strategy,
        "default_hooks": {"checkpoint": None},
        "loggers": [],
    }


def plan(cfg: dict[str, Any], folder: Path, ranks: int) -> tuple[dict[str, Any], float]:
    path = folder / "plan.json"
    path.write_text(json.dumps(cfg))
    words = ["plan", str(path), "--import", __file__, "--world-size", str(ranks), "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stratrun", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), time.perf_counter() - start


def grown(cfg: dict[str, Any], folder: Path, ranks: int) -> list[int]:
    (folder / "real.json").write_text(json.dumps({**cfg, "work_dir": str(folder / "run")}))
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    words = [
        torchrun,
        "--standalone",
        f"--nproc_per_node={ranks}",
        __file__,
        "--real",
        str(folder / "real.json"),
    ]
    # Memory that is given back goes back to the system, so that what it counts is what is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [one["grown"] for one in told]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", metavar="CONFIG")
    parser.add_argument("--large", action="store_true", help="only a large model on thousands of ranks")
    given = parser.parse_args()
    if given.real:
        torch.set_num_threads(1)
        Runner.from_cfg({**json.loads(Path(given.real).read_text()), "custom_hooks": [Grown()]}).train()
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        for strategy, ranks in () if given.large else (("fsdp", 4), ("fsdp", 2), ("ddp", 2), ("hsdp", 4)):
            cfg = config(512, 8, strategy)
            planned, seconds = plan(cfg, folder, ranks)
            peak, real = planned["peak"]["total"], max(grown(cfg, folder, ranks))
            print(
                f"{strategy} on {ranks}: planned {peak / 1e6:.0f} MB, grown by {real / 1e6:.0f} MB, ", end=""
            )
            print(f"ratio {peak / real:.3f}; planned in {seconds:.1f} s", flush=True)
        for strategy, ranks in (("fsdp", 64), ("fsdp", 4096), ("hsdp", 4096)):
            planned, seconds = plan(config(4096, 32, strategy), folder, ranks)
            numbers, peak = planned["parameters"], planned["peak"]["total"]
            print(
                f"{numbers / 1e9:.1f} G parameters, {strategy} on {ranks}: {peak / 1e9:.1f} GB a rank, ",
                end="",
            )
            print(f"planned in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
