"""Data parallel training on ranks of this machine: `python benchmarks/ddp_scaling.py [--json FILE]`.

Ours with all default hooks and three loggers, and the peers that are installed, each next to a bare loop
over DistributedDataParallel in the same run, gloo, one thread each. Also what the exchange itself costs: the
bare loop without any, on all ranks at once.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from measure import arguments, as_json, compare, machine, table, told, write
from peers import Task, Variant, bare, installed, variants
from peers.task import LEARNING_RATE, LOG_EVERY
from torch.nn.parallel import DistributedDataParallel

from stratrun import Runner

# Of the others those that go data parallel when a launcher has started them, by a word or by none.
LAUNCHED = ("fabric", "accelerate_loop", "lightning")
TASKS = {"MLP, batch 32 a rank": Task.make, "CNN, batch 32 a rank": Task.of_images}


def ours(task: Task) -> None:
    runner = Runner(
        task.model,
        loss="cross_entropy",
        strategy="ddp",
        train_dataloader=task.batches,
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": LEARNING_RATE},
        default_hooks={"logger": {"interval": LOG_EVERY}, "checkpoint": None},
        loggers=["console", "jsonl", "tensorboard"],
        work_dir=task.folder,
    )
    runner.train()
    runner.close()


def ddp(task: Task) -> None:
    bare.train(replace(task, model=DistributedDataParallel(task.model)))


BARE = Variant("bare DDP loop", "train", False, ddp)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Every rank does the same in the same order; the main one tells."""
    modules = [name for name in given.peers or installed() if name in LAUNCHED]
    others = [variant for variant in variants("train", modules) if not variant.logs]
    lone = Variant("bare loop, no exchange", "train", False, bare.train, agrees=False)
    ways = [BARE, lone, Variant("stratrun, default hooks, three loggers", "train", True, ours), *others]
    figures = {}
    for name, make in TASKS.items():
        found = compare(ways, BARE, rounds=given.rounds, blocks=given.blocks, make=make)
        figures[name] = as_json(found)
        if dist.get_rank() == 0:
            print(f"\n{table(found, name)}\n")
            for one in found.values():
                rate = 32e6 * dist.get_world_size() / median(one.own)
                print(f"- {one.name}: {rate:.0f} samples/s, {1 / one.summary()['ratio']:.3f} of bare DDP")
    return figures


def main() -> None:
    parser = arguments(__doc__, rounds=9, blocks=4)
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={given.ranks}", *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        if dist.get_rank() == 0:
            print(told(machine()))
        figures = measured(given)
        if dist.get_rank() == 0:
            write(given.json, {"ranks": dist.get_world_size(), **figures})
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
