"""Runs in which one sample is no number, and the same as plain loops written out."""

import copy
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stratrun import Hook, NonFiniteError, Runner
from stratrun.loops import EpochBasedTrainLoop
from stratrun.registry import LOOPS
from tests.problems import CLASSES, FEATURES, QUIET, perceptron, points

SAMPLES, BATCH, EPOCHS, BAD = 24, 4, 2, 15
"""Of two ranks the second one has sample 15, in the fourth batch of each epoch."""
BATCHES = SAMPLES // BATCH
RATE = 0.1

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulated": {"train_cfg": {"max_epochs": EPOCHS, "accumulate": 2}},
    "clipped by norm": {"clip_grad": 0.05},
    "clipped by value": {"clip_grad": {"value": 0.01}},
    "scaled": {"precision": {"type": "16-mixed", "init_scale": 256.0}},
}


def spoiled() -> TensorDataset:
    """Points, one of which is no number."""
    inputs, targets = points(SAMPLES).tensors
    inputs[BAD] = math.nan
    return TensorDataset(inputs, targets)


class Normed(nn.Module):
    """A classifier with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.norm, self.head = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.body(inputs)))
        return out


class Heads(nn.Module):
    """Two heads with an optimizer and a loss each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one, self.other = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def one_step(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.one(batch[0].nan_to_num()), batch[1])

    def other_step(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.other(batch[0]), batch[1])

    def train_step(self, batch: list[Tensor]) -> Tensor:
        return self.one_step(batch) + self.other_step(batch)


@LOOPS.register_module(force=True)
class InTurns(EpochBasedTrainLoop):
    """A recipe of its own: an update of each head for its loss."""

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        engine = self.runner.engine
        for name in ("one", "other"):
            engine.update(engine.forward(data_batch, name), name)
        return {}


class Before(Hook):
    """Keeps what the parameters were before the iteration in hand."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def before_train_iter(self, runner: Any) -> None:
        self.kept = [held(p).clone() for p in runner.model.parameters()]


def held(tensor: Any) -> Tensor:
    """What this rank has of it."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor).detach()
    return part


def whole(model: nn.Module) -> dict[str, Tensor]:
    state = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in model.state_dict().items()}
    return {name: value.detach().clone() for name, value in state.items()}


def arguments(work_dir: str, **options: Any) -> dict[str, Any]:
    return {
        **QUIET,
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": spoiled(), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "SGD", "lr": RATE, "momentum": 0.9},
        "work_dir": work_dir,
        **options,
    }


def by_heads(work_dir: str, **options: Any) -> dict[str, Any]:
    parts = {part: {"type": "SGD", "lr": RATE, "params": part} for part in ("one", "other")}
    return arguments(work_dir, **{"optimizer": parts, "loss": None, **options})


def raised(strategy: str, work_dir: str) -> dict[str, tuple[bool, int, str]]:
    """By kind of run: whether parameters are to the bit what they were, after which iteration, and why."""
    found = {}
    for name, options in {**OPTIONS, "two optimizers": {}}.items():
        before = Before()
        several = name == "two optimizers"
        given = by_heads(work_dir) if several else arguments(work_dir, **options)
        model = Heads() if several else perceptron()
        runner = Runner(model, strategy=strategy, custom_hooks=[before], **given)
        text = ""
        try:
            runner.train()
        except NonFiniteError as error:
            text = str(error)
        same = all(
            torch.equal(held(p), kept) for p, kept in zip(model.parameters(), before.kept, strict=True)
        )
        found[name] = (same, runner.iter, text)
        runner.close()
    return found


def skipped(
    strategy: str, work_dir: str, kinds: Iterable[str]
) -> dict[str, tuple[dict[str, Tensor], tuple[int, ...]]]:
    """By kind of run: the weights at the end, and counts of iterations, updates and dropped ones."""
    found = {}
    for name in kinds:
        given, model = arguments(work_dir), perceptron()
        if name in OPTIONS:
            given = arguments(work_dir, **OPTIONS[name])
        elif name == "running statistics":
            model = Normed()
        else:
            given, model = by_heads(work_dir), Heads()
            if name == "in turns":
                given["train_cfg"] = {"type": "InTurns", "max_epochs": EPOCHS}
        runner = Runner(model, strategy=strategy, non_finite="skip", **given)
        runner.train()
        found[name] = (whole(model), (runner.iter, runner.step, runner.state.skipped))
        runner.close()
    return found


def plain(name: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The same by a loop that leaves the batch, or the window that it is in, out."""
    accumulate, updates = (2 if name == "accumulated" else 1), 0
    model = Normed() if name == "running statistics" else perceptron()
    # By the same kernel as the run, as weights are compared to the bit.
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    inputs, targets = spoiled().tensors
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=name == "scaled")
    for _ in range(EPOCHS):
        for start in range(0, SAMPLES, BATCH * accumulate):
            firsts = range(start, start + BATCH * accumulate, BATCH)
            if any(first <= BAD < first + BATCH for first in firsts):
                continue
            for first in firsts:
                part = slice(first, first + BATCH)
                with torch.autocast("cpu", torch.float16, enabled=name == "scaled"):
                    loss = cross_entropy(model(inputs[part]), targets[part])
                scaler.scale(loss / accumulate).backward()
            if name == "clipped by norm":
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if name == "clipped by value":
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            updates += 1
    windows = BATCHES // accumulate * EPOCHS
    return whole(model), (BATCHES * EPOCHS, updates, windows - updates)


def plain_heads(name: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Both heads in one update, which is left out as a whole; or in turns, where that of the bad loss is."""
    model = Heads()
    inputs, targets = spoiled().tensors
    steps = 0
    for _ in range(EPOCHS):
        for first in range(0, SAMPLES, BATCH):
            bad = first <= BAD < first + BATCH
            batch = [inputs[first : first + BATCH], targets[first : first + BATCH]]
            steps += name == "in turns" or not bad
            for part in ("one", "other"):
                if bad and (name != "in turns" or part == "other"):
                    continue
                model.zero_grad()
                getattr(model, f"{part}_step")(batch).backward()
                torch.optim.SGD(getattr(model, part).parameters(), lr=RATE).step()
    return whole(model), (BATCHES * EPOCHS, steps, EPOCHS)


EVERY = {"memory": 4, "checkpoint": 2, "skip": 4}
"""Iterations between checkpoints."""


def rolled_back(strategy: str, work_dir: str, to: str, kill_at: int) -> list[Any]:
    """A run, and one that is gone on with from what it had saved after `kill_at` iterations."""
    ends = []
    for number in range(2):
        place = Path(work_dir, f"{to}-{number}")
        policy = {"policy": "rollback", "to": "memory", "every": 3} if to == "memory" else "rollback"
        saving = {"interval": EVERY[to], "by_epoch": False, "keep_last": None}
        given = arguments(
            str(place),
            non_finite="skip" if to == "skip" else policy,
            default_hooks={"checkpoint": saving},
            custom_hooks=[{"type": "EMAHook", "decay": 0.5}],
            param_scheduler={"type": "StepLR", "step_size": 2, "gamma": 0.9, "by_epoch": False},
        )
        runner = Runner(perceptron(), strategy=strategy, resume=number == 1, **given)
        runner.train()
        ema = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
        averages = {
            n: v.full_tensor() if hasattr(v, "full_tensor") else v
            for n, v in ema.state_dict()["averages"].items()
        }
        rate = runner.engine.optimizers["optimizer"].param_groups[0]["lr"]
        counts = (runner.iter, runner.step, runner.state.skipped)
        ends.append((whole(runner.model), averages, rate, counts))
        if number == 0 and runner.rank == 0:
            saved = place / "checkpoints" / f"step-{kill_at:08d}"
            shutil.copytree(saved, Path(work_dir, f"{to}-1", "checkpoints", saved.name))
        runner.engine.mean({"here": 0.0})  # all have come so far
        runner.close()
    return ends


def plain_rollback(to: str) -> tuple[dict[str, Tensor], dict[str, Tensor], float, tuple[int, ...]]:
    """The same by a loop that keeps copies where the run does: of checkpoints, and of each 3rd update."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    averages = whole(model)
    inputs, targets = spoiled().tensors
    step, dropped, kept, kept_at = 0, 0, None, 0
    for iteration in range(BATCHES * EPOCHS):
        due = iteration % EVERY[to] == 0 or (to == "memory" and step - kept_at >= 3)
        if due and (to == "memory" or iteration > 0):
            kept_at = step
            kept = copy.deepcopy(
                (model.state_dict(), optimizer.state_dict(), schedule.state_dict(), averages)
            )
        part = slice(iteration % BATCHES * BATCH, (iteration % BATCHES + 1) * BATCH)
        loss = cross_entropy(model(inputs[part]), targets[part])
        if not loss.isfinite():
            assert kept is not None
            state, moments, moved, averages = copy.deepcopy(kept)
            model.load_state_dict(state)
            optimizer.load_state_dict(moments)
            schedule.load_state_dict(moved)
            step, dropped = kept_at, dropped + 1
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        step += 1
        now = whole(model)
        averages = {name: torch.lerp(averages[name], value, 0.5) for name, value in now.items()}
    return whole(model), averages, optimizer.param_groups[0]["lr"], (BATCHES * EPOCHS, step, dropped)
