"""A run that draws from every generator, and whatever it ends with, for tests that break it off."""

import os
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.hooks import CheckpointHook, Hook
from stratrun.loggers import Logger, Record
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

SAMPLES, GLOBAL_BATCH, EPOCHS = 17, 4, 2
PER_EPOCH = 5  # the last batch is of one sample, so that of two ranks one has none
MEASURED = ("time", "data_time", "data_share", "eta", "memory")


class SpentSampleError(Exception):
    """A sample was read that the run was done with before it was broken off."""


class Augmented(Dataset[tuple[Tensor, Tensor, int]]):
    """Points with noise from every generator of the host. Reads of a spent sample are refused.

    Args:
        spent: Indices by epoch that must not be read in that epoch.
        read_log: File that each index that is read goes to.
    """

    def __init__(
        self,
        samples: int = SAMPLES,
        spent: Mapping[int, Collection[int]] | None = None,
        read_log: str = os.devnull,
    ) -> None:
        self.inputs, self.targets = points(samples).tensors
        self.spent = spent or {}
        self.read_log = read_log
        self.epoch = -1

    def __len__(self) -> int:
        return len(self.inputs)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        if index in self.spent.get(self.epoch, ()):
            raise SpentSampleError(f"sample {index} of epoch {self.epoch} is read once more")
        if self.read_log != os.devnull:
            # By workers too, at the same time: a short line that is appended stays whole.
            with open(self.read_log, "a") as stream:
                stream.write(f"{index}\n")
        noise = torch.randn(FEATURES) * random.random() + float(numpy.random.standard_normal())
        return self.inputs[index] + 0.1 * noise, self.targets[index], index


class Drawing(nn.Module):
    """A classifier that draws from every generator, and keeps a running mean and the samples it saw."""

    mean: Tensor

    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.3), nn.Linear(8, CLASSES))
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.weighted = weighted
        self.seen: list[list[int]] = []

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets, index = batch
        self.seen.append(index.tolist())
        with torch.no_grad():
            self.mean.lerp_(inputs.mean(0), 0.1)
        # NumPy keeps every second of these in store, which is a part of its state.
        factor = 1 + 0.1 * random.random() + 0.1 * numpy.random.standard_normal()
        loss = nn.functional.cross_entropy(self.net(inputs - self.mean), targets) * factor
        outputs = {"loss": loss, "factor": torch.tensor(factor)}
        return {**outputs, "weight": index.sum() + 1.0} if self.weighted else outputs

    def val_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets, _ = batch
        scores = self.net(inputs - self.mean)
        return {"preds": scores, "target": targets, "loss": nn.functional.cross_entropy(scores, targets)}


class Averages(Hook):
    """Has state of every kind: tensors by name, one of 16 bit, numbers, and a list that grows."""

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}
        self.half = torch.zeros(CLASSES, dtype=torch.bfloat16)
        self.norms: list[float] = []

    def after_train_iter(self, runner: Any) -> None:
        for name, value in runner.model.named_parameters():
            mean = self.means.setdefault(name, torch.zeros_like(value))
            mean.lerp_(value.detach(), 1 / 3)
        self.half += runner.model.net[-1].bias.detach().bfloat16()
        self.norms.append(float(runner.model.net[0].weight.detach().norm()))

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self.means), "half": self.half.clone(), "norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means, self.half, self.norms = dict(state["means"]), state["half"], list(state["norms"])


class Stop(Hook):
    """Asks for the end of the run when so many iterations are done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


class Memory(Logger):
    """Keeps what is logged, without what no two runs have in common."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.counts: dict[int, int] = {}
        """How many rows there were when the run was saved with so many iterations, or could have been."""

    def log(self, record: Record) -> None:
        values = {k: v for k, v in record.values.items() if k.removesuffix("_epoch") not in MEASURED}
        self.rows.append((record.iter, record.step, record.samples, record.kind, values))


class Count(Hook):
    """Notes how much was logged when the run was saved, or else when an iteration was wholly done."""

    priority = 100

    def __init__(self, memory: Memory) -> None:
        self.counts, self.rows = memory.counts, memory.rows

    def after_train_iter(self, runner: Any) -> None:
        self.counts.setdefault(runner.iter, len(self.rows))

    def before_save_checkpoint(self, runner: Any) -> None:
        # The save after the last iteration of all is made when its epoch has ended.
        self.counts[runner.iter] = len(self.rows)


@dataclass(frozen=True)
class Case:
    """One way to train. `options` go to the Runner."""

    size: int = 1
    workers: int = 0
    accumulate: Any = 1
    precision: Any = "32-true"
    weighted: bool = False
    samples: int = SAMPLES
    train_cfg: Mapping[str, Any] = field(default_factory=lambda: {"max_epochs": EPOCHS})
    options: Mapping[str, Any] = field(default_factory=dict)
    hooks: tuple[Any, ...] = ()


def train(
    case: Case,
    work_dir: str,
    *,
    save: Mapping[str, Any] | None = None,
    resume: Any = False,
    stop_at: int | None = None,
    spent: Mapping[int, Collection[int]] | None = None,
    read_log: str = os.devnull,
) -> dict[str, Any]:
    """Train, and return everything that the run ends with."""
    model, memory = Drawing(case.weighted), Memory()
    form: dict[str, Any] = {
        "work_dir": work_dir,
        "train_dataloader": {
            "dataset": Augmented(case.samples, spent, read_log),
            "global_batch_size": GLOBAL_BATCH,
            "num_workers": case.workers,
        },
        "train_cfg": {**case.train_cfg, "accumulate": case.accumulate},
        "val_dataloader": {"dataset": Augmented(7), "batch_size": 4},
        "val_evaluator": [{"type": "Accuracy"}, {"type": "MeanMetric"}],
        "optimizer": {"type": "AdamW", "lr": 0.02},
        "param_scheduler": [
            {"type": "CosineAnnealingLR", "T_max": 9, "by_epoch": False},
            {"type": "StepLR", "step_size": 1, "gamma": 0.7},
        ],
        "clip_grad": 1.0,
        "precision": case.precision,
        "default_hooks": {"checkpoint": save, "logger": {"interval": 3}},
        "custom_hooks": [
            Averages(),
            Count(memory),
            *case.hooks,
            *([] if stop_at is None else [Stop(stop_at)]),
        ],
        "loggers": [memory],
        "resume": resume,
        "randomness": {"seed": 1},
    }
    runner = Runner(model, **{**form, **case.options})
    metrics = runner.train()
    result = outcome(runner, model, memory, metrics)
    runner.close()
    return result


def outcome(runner: Runner, model: Any, memory: Memory, metrics: dict[str, float]) -> dict[str, Any]:
    hooks = [hook for hook in runner.hooks if not isinstance(hook, CheckpointHook | Count | Stop)]
    return {
        "seen": model.seen,
        "logged": memory.rows,
        "counts": memory.counts,
        "weights": dict(model.state_dict()),
        "engine": runner.engine.saved.shared_state(),
        "schedules": [schedule.state_dict() for schedule in runner.schedules],
        "counters": runner.state.state_dict(),
        "metrics": metrics,
        "hooks": [(type(hook).__name__, hook.state_dict()) for hook in hooks],
        "windows": windows(runner.records.state_dict()),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(part) for part in numpy.random.get_state()],
    }


def windows(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "series": {k: v for k, v in state["series"].items() if k not in MEASURED}}


def tail(result: dict[str, Any], done: int = 0) -> dict[str, Any]:
    """What of a run comes after it was saved with `done` iterations."""
    first = result["counts"][done] if done else 0
    rest = {**result, "seen": result["seen"][done:], "logged": result["logged"][first:]}
    del rest["counts"]
    return rest


def spent_after(truth: list[dict[str, Any]], done: int, per_epoch: int) -> dict[int, set[int]]:
    """What must not be read any more after `done` iterations, by epoch; `truth` is of all ranks."""
    spent: dict[int, set[int]] = {}
    for result in truth:
        for number, batch in enumerate(result["seen"][:done]):
            spent.setdefault(number // per_epoch, set()).update(batch)
    return spent


def differences(found: Any, truth: Any, path: str = "") -> list[str]:
    """Where two results are not equal to the bit."""
    if type(found) is not type(truth):
        return [f"{path}: a {type(found).__name__}, and a {type(truth).__name__} in truth"]
    if isinstance(truth, dict):
        if list(found) != list(truth):
            return [f"{path}: keys {list(found)}, in truth {list(truth)}"]
        return [text for key in truth for text in differences(found[key], truth[key], f"{path}/{key}")]
    if isinstance(truth, list | tuple):
        if len(found) != len(truth):
            return [f"{path}: {found}, in truth {truth}"]
        pairs = enumerate(zip(found, truth, strict=True))
        return [text for i, (one, other) in pairs for text in differences(one, other, f"{path}/{i}")]
    if isinstance(truth, Tensor):
        same = found.dtype == truth.dtype and torch.equal(found, truth)
        return [] if same else [f"{path}: another tensor"]
    # As text, so that nan is nan; it has every bit of a number.
    return [] if repr(found) == repr(truth) else [f"{path}: {found!r}, in truth {truth!r}"]


def as_processes(size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it in this rank, or, as a process by itself, in the first one alone."""
    if size == 1:
        if os.environ.get("RANK") != "0":
            return None
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    return function(*args, **kwargs)


def on(ranks: Ranks, size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Results of a function on both ranks, or on a process by itself."""
    return ranks(as_processes, size, function, *args, **kwargs)[:size]


def read(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]
