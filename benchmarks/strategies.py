"""What a strategy costs in time and memory, on one device: a GPT under each, beside a plain loop.

    python benchmarks/strategies.py [--width 1024] [--depth 24] [--batch 8] [--precision bf16-mixed]

With one rank nothing is spread, so that what a sharded strategy adds is the work of gathering and giving up.
On a GPU it exchanges through nccl. Ways take turns; the median step of each is told, and the largest memory.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.hooks import Hook

WORDS, CONTEXT, WARM = 4096, 256, 5
GPU = torch.cuda.is_available()
WAYS: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, kept gathered": {"strategy": {"type": "fsdp", "reshard_after_forward": False}},
    "fsdp, offload": {"strategy": {"type": "fsdp", "offload": True}},
    "fsdp, recomputed": {"strategy": "fsdp", "activation_checkpointing": True},
    "single, compiled": {"strategy": "single", "compile": True},
    "fsdp, compiled": {"strategy": "fsdp", "compile": True},
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def train_step(self, text: Tensor) -> Tensor:
        logits = self.head(self.blocks(self.words(text[:, :-1])))
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class Texts(Dataset[Tensor]):
    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(index, index + CONTEXT + 1) % WORDS


class Clock(Hook):
    """When each step ended on the device, and the memory that training took."""

    priority = 100

    def __init__(self) -> None:
        self.ends: list[float] = []

    def before_train(self) -> None:
        if GPU:
            torch.cuda.reset_peak_memory_stats()

    def after_train_iter(self) -> None:
        self.ends.append(now())


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if GPU else float("nan")


def by_runner(way: dict[str, Any], options: argparse.Namespace) -> tuple[float, float]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            {"type": GPT, "width": options.width, "depth": options.depth},
            train_dataloader={"dataset": Texts(), "batch_size": options.batch},
            train_cfg={"by_epoch": False, "max_iters": WARM + options.steps},
            optimizer={"type": "AdamW", "lr": 1e-4},
            clip_grad=1.0,
            precision=options.precision,
            work_dir=folder,
            loggers=(),
            default_hooks={"checkpoint": None},
            custom_hooks=[clock],
            **way,
        )
        runner.train()
        runner.close()
    return told(clock.ends)


def by_hand(options: argparse.Namespace) -> tuple[float, float]:
    """The same steps without anything of ours."""
    device = torch.device("cuda" if GPU else "cpu")
    model = GPT(options.width, options.depth).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = Texts()
    ends = []
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM + options.steps):
        first = number * options.batch
        text = torch.stack([data[first + row] for row in range(options.batch)]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            loss = model.train_step(text)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(now())
    return told(ends)


def told(ends: list[float]) -> tuple[float, float]:
    steps = [after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
    return statistics.median(steps), memory()


@contextmanager
def lone_rank() -> Iterator[None]:
    """The variables of a launcher that started one process."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({**names, "MASTER_PORT": "29533"})
    yield
    for name in (*names, "MASTER_PORT"):
        os.environ.pop(name, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in {"width": 1024, "depth": 24, "batch": 8, "steps": 20, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="bf16-mixed", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"plain loop": [], **{name: [] for name in options.only}}
    for _ in range(options.rounds):
        found["plain loop"].append(by_hand(options))
        for name in options.only:
            with lone_rank():
                found[name].append(by_runner(WAYS[name], options))
    plain = statistics.median(seconds for seconds, _ in found["plain loop"])
    for name, rounds in found.items():
        seconds = statistics.median(one for one, _ in rounds)
        rate = options.batch * CONTEXT / seconds
        gigabytes = max(memory for _, memory in rounds)
        held = f" {gigabytes:7.2f} GiB" if GPU else ""
        print(f"{name:22} {seconds * 1e3:9.1f} ms {seconds / plain:6.2f} {rate:10.0f} words/s{held}")


if __name__ == "__main__":
    main()
