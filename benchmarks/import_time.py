"""What starting costs, each in fresh processes: `python benchmarks/import_time.py [--json FILE]`.

Imports, `stratrun --help`, and the time from the start of a process to the end of its first training step:
the digits example beside a bare script with its model and data, and an MLP with every peer that is installed.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from measure import machine, percentile, told, write
from peers import MODULES, installed

HERE = Path(__file__).resolve().parent
FIRST = "first step of"
IMPORTS = {
    "nothing": "pass",
    "import stratrun": "import stratrun",
    "import torch": "import torch",
    "import torch, stratrun": "import torch, stratrun",
    "import torch; from stratrun import Runner": "import torch; from stratrun import Runner",
}
PEERS = {
    "fabric": "lightning_fabric",
    "ignite": "ignite.engine",
    "tnt": "torchtnt.framework",
    "mmengine": "mmengine.runner",
    "accelerate_loop": "accelerate",
    "lightning": "pytorch_lightning",
}
"""What one imports to train with each."""

# The clock is the same for all processes of a machine.
AT_FIRST_STEP = """
import os, sys, time
seen = []
def passed():
    seen.append(time.perf_counter())
    if len(seen) == 2:  # a second forward pass: the first step is done
        with open({answer!r}, "w") as stream:
            stream.write(repr(seen[1]))
        os._exit(0)
"""
DIGITS = f"""
import torch
sys.path.insert(0, {str(HERE.parent / "examples")!r})
def watched():
    import image_classification as example
    def hook(module, inputs):
        if isinstance(module, example.DigitNet) and module.training:
            passed()
    torch.nn.modules.module.register_module_forward_pre_hook(hook)
    return example
"""
DIGITS_OURS = "watched().main()"
DIGITS_BARE = """
import types
class Anything:  # in place of ours, of which the model and the data of the example need only these
    def register_module(self):
        return lambda kind: kind
sys.modules["stratrun"] = types.SimpleNamespace(DATASETS=Anything(), MODELS=Anything(), Runner=None)
example = watched()
from torch.utils.data import DataLoader
torch.manual_seed(0)
model = example.DigitNet()
loader = DataLoader(example.Digits("train", shift=1), batch_size=64, shuffle=True)
loss = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
model.train()
for images, labels in loader:
    optimizer.zero_grad()
    loss(model(images), labels).backward()
    optimizer.step()
"""
MLP = f"""
sys.path.insert(0, {str(HERE)!r})
from peers.task import Clock, Net, Task
import torch, warnings
warnings.simplefilter("ignore")
class AtOnce(Clock):
    def tick(self):
        passed()
batches = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(8)]
clock = AtOnce()
task = Task(Net(clock), batches, FOLDER, clock)
"""
MLP_OURS = """
from stratrun import Runner
Runner(task.model, loss="cross_entropy", train_dataloader=batches, train_cfg=dict(max_epochs=1),
       optimizer=dict(type="SGD", lr=0.01), work_dir=task.folder).train()
"""
MLP_PEER = """
from importlib import import_module
training = [one for one in import_module("peers.{module}").VARIANTS if one.job == "train"]
training[{number}].run(task)
"""


def importing(statement: str) -> float:
    """Seconds of one statement in a process of its own, its start not counted."""
    code = f"import time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def helping() -> float:
    """Seconds of a whole ``stratrun --help``, the start of Python too."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "stratrun", "--help"], capture_output=True, check=True)
    return perf_counter() - start


def first_step(program: str) -> float:
    """Seconds from the start of a process to the end of the first training step that it makes."""
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        whole = AT_FIRST_STEP.format(answer=str(answer)) + program.replace("FOLDER", repr(folder))
        start = perf_counter()
        done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, cwd=folder)
        if not answer.exists():
            raise SystemExit(f"a program ended before its first step:\n{done.stderr[-2000:]}")
        return float(answer.read_text()) - start


def cases(modules: list[str]) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {
        name: partial(importing, statement) for name, statement in IMPORTS.items()
    }
    for module in modules:
        found[f"import torch, {PEERS[module]}"] = partial(importing, f"import torch, {PEERS[module]}")
    found["stratrun --help, with the start of Python"] = helping
    found[f"{FIRST} digits, bare script"] = partial(first_step, DIGITS + DIGITS_BARE)
    found[f"{FIRST} digits, stratrun"] = partial(first_step, DIGITS + DIGITS_OURS)
    found[f"{FIRST} MLP, bare loop"] = partial(first_step, MLP + MLP_PEER.format(module="bare", number=0))
    found[f"{FIRST} MLP, stratrun"] = partial(first_step, MLP + MLP_OURS)
    for module in modules:
        with_logs = MLP + MLP_PEER.format(module=module, number=-1)
        found[f"{FIRST} MLP, {MODULES[module]}"] = partial(first_step, with_logs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=list(MODULES), help="only these; all by default")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    modules = list(installed()) if given.peers is None else given.peers
    todo = cases(modules)
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for number in range(given.rounds + 1):
        # In turns, so that a slow moment of the machine falls on all of them.
        for name, measured in todo.items():
            value = measured()
            if number:  # before that the files may not have been read yet
                seconds[name].append(value)
    print(told(machine()))
    print("| seconds | median | p5 to p95 |\n|---|---|---|")
    for name, values in seconds.items():
        low, high = percentile(values, 5), percentile(values, 95)
        print(f"| {name} | {median(values):.3f} | {low:.3f} to {high:.3f} |")
    write(given.json, {"seconds": seconds})


if __name__ == "__main__":
    main()
