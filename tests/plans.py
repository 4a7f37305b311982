"""A run to plan and to measure: the figures of both are to be the same."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from stratrun import DATASETS, MODELS, Runner
from stratrun.cli.plan.meter import Meter
from stratrun.cli.plan.simulation import phases
from stratrun.hooks import Hook

VALUES = 16


@MODELS.register_module(force=True)
class Stack(nn.Module):
    """Layers one like another, between two that are not."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(VALUES, width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, VALUES)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.table(numbers)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)

    def train_step(self, numbers: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(numbers).flatten(0, 1), numbers.flatten())


@DATASETS.register_module(force=True)
class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(index, index + 24) % VALUES


def config(**changed: Any) -> dict[str, Any]:
    return {
        "model": {"type": "Stack"},
        "train_dataloader": {"dataset": {"type": "Rows"}, "batch_size": 4},
        "train_cfg": {"by_epoch": False, "max_iters": 4},
        "optimizer": {"type": "AdamW", "lr": 1e-3},
        "clip_grad": 1.0,
        "loggers": [],
        **changed,
    }


def planned(folder: Path, capsys: Any, *options: str, **changed: Any) -> dict[str, Any]:
    """What ``stratrun plan --json`` says of a config."""
    from stratrun.cli.main import run

    path = folder / "run.json"
    path.write_text(json.dumps(config(**changed)))
    capsys.readouterr()
    code = run(["plan", str(path), "--json", *options])
    said = capsys.readouterr()
    assert code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


class Metering(Hook):
    """Counts what a run really holds and exchanges, as the planner does for one that does not take place."""

    priority = 0

    def __init__(self) -> None:
        self.meter = Meter()
        self.marks = [self.meter.traffic.copy()]

    def before_train(self, runner: Any) -> None:
        module = runner.engine.state_module
        self.meter.ledger.name(module.parameters(), "weights")
        self.meter.ledger.name(module.buffers(), "buffers")
        self._phases = phases(self.meter, self._before_update)
        self.meter.__enter__()
        self._phases.__enter__()

    def after_train_iter(self) -> None:
        self.marks.append(self.meter.traffic.copy())

    def after_train(self, runner: Any) -> None:
        self._phases.__exit__(None, None, None)
        self.meter.__exit__(None, None, None)
        states = [dict(one.state) for one in runner.engine.optimizers.values()]
        tensors = [
            one for one in tree_leaves([list(state.values()) for state in states]) if isinstance(one, Tensor)
        ]
        self.meter.ledger.name(tensors, "optimizer")

    def _before_update(self, optimizer: Any) -> None:
        held = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.meter.ledger.name(held, "gradients")


def measured(cfg: dict[str, Any], window: int = 1) -> dict[str, Any]:
    """What a run really needed on this rank. Its last update is the one whose exchanges are told."""
    torch.set_num_threads(1)
    hook = Metering()
    quiet = {"default_hooks": {"checkpoint": None, "logger": None}, "custom_hooks": [hook]}
    runner = Runner.from_cfg({**cfg, **quiet})
    runner.train()
    traffic = hook.marks[-1].since(hook.marks[-1 - window])
    peak, most = hook.meter.ledger.most()
    runner.close()
    return {
        "peak": peak.total,
        "phase": peak.phase,
        "most": most,
        "exchanges": sorted((k.name, k.ranks, n, traffic.sizes[k]) for k, n in traffic.counts.items()),
    }
