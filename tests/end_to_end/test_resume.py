"""A run that is killed and resumed is, to the bit, the run that was never killed."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.errors import CheckpointNotFoundError
from stratrun.hooks import Hook
from stratrun.loggers import Logger, Record
from tests.problems import CLASSES, FEATURES, points
from tests.rank_server import RankError
from tests.ranks import Ranks

SAMPLES, GLOBAL_BATCH, EPOCHS = 42, 6, 3  # 7 iterations an epoch, 3 updates with windows of 3, 3 and 1
SAVE_EVERY, LOG_EVERY = 4, 3
TIMINGS = ("time", "eta", "memory")


class Augmented(Dataset[tuple[Tensor, Tensor, int]]):
    """Points with noise from every generator of the host. Each index that is read goes to a file."""

    def __init__(self, read_log: str) -> None:
        self.read_log = read_log
        self.inputs, self.targets = points(SAMPLES).tensors

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        # By workers too, at the same time: a short line that is appended stays whole.
        with open(self.read_log, "a") as stream:
            stream.write(f"{index}\n")
        noise = torch.randn(FEATURES) * random.random() + float(numpy.random.standard_normal())
        return self.inputs[index] + 0.1 * noise, self.targets[index], index


class Noisy(nn.Module):
    """A classifier with dropout and running statistics that also logs which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)
        )
        self.seen: list[list[int]] = []

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, targets, index = batch
        self.seen.append(index.tolist())
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def val_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets, _ = batch
        scores = self.net(inputs)
        return {"preds": scores, "target": targets, "loss": nn.functional.cross_entropy(scores, targets)}


class Memory(Logger):
    """Keeps what is logged, without what no two runs have in common."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def log(self, record: Record) -> None:
        values = {k: v for k, v in record.values.items() if not any(word in k for word in TIMINGS)}
        self.rows.append((record.iter, record.step, record.samples, record.kind, values))


class Killer(Hook):
    """Kills this process, or just asks it to stop, when so many iterations are done."""

    priority = 100

    def __init__(self, at: int, signal_number: int | None) -> None:
        self.at = at
        self.signal_number = signal_number

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter != self.at:
            return
        if self.signal_number is None:
            runner.state.should_stop = True
        else:
            os.kill(os.getpid(), self.signal_number)


def run(
    work_dir: str,
    read_log: str,
    *,
    workers: int = 0,
    resume: Any = False,
    kill_at: int | None = None,
    stop_at: int | None = None,
    lone: bool = False,
    seed: int = 1,
) -> dict[str, Any] | None:
    """Train, and return everything that the run ends with. A `lone` run is that of one process."""
    if lone:
        if os.environ.get("RANK") != "0":
            return None
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    model, memory = Noisy(), Memory()
    interrupts = []
    if stop_at is not None:
        interrupts.append(Killer(stop_at, None))
    if kill_at is not None and os.environ.get("RANK", "0") in ("0", "1"):
        interrupts.append(Killer(kill_at, signal.SIGKILL))
    runner = Runner(
        model,
        work_dir=work_dir,
        train_dataloader={
            "dataset": Augmented(read_log),
            "global_batch_size": GLOBAL_BATCH,
            "num_workers": workers,
        },
        train_cfg={"max_epochs": EPOCHS, "accumulate": 3},
        val_dataloader={"dataset": Augmented(os.devnull), "batch_size": 8},
        val_evaluator=[{"type": "Accuracy"}, {"type": "MeanMetric"}],
        optimizer={"type": "AdamW", "lr": 0.02},
        param_scheduler={"type": "CosineAnnealingLR", "T_max": 9, "by_epoch": False},
        clip_grad=1.0,
        default_hooks={
            "checkpoint": {"interval": SAVE_EVERY, "by_epoch": False, "keep_last": None},
            "logger": {"interval": LOG_EVERY},
        },
        custom_hooks=interrupts,
        loggers=[memory],
        resume=resume,
        randomness={"seed": seed},
    )
    metrics = runner.train()
    result = outcome(runner, model, memory, metrics)
    runner.close()
    return result


def outcome(runner: Runner, model: Noisy, memory: Memory, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "weights": dict(model.state_dict()),
        "optimizer": runner.engine.optimizers["optimizer"].state_dict(),
        "schedule": runner.schedules[0].state_dict(),
        "counters": runner.state.state_dict(),
        "metrics": metrics,
        "logged": memory.rows,
        "seen": model.seen,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(part) for part in numpy.random.get_state()],
    }


def tail(result: dict[str, Any], done: int) -> dict[str, Any]:
    """What of a whole run comes after `done` iterations."""
    return {
        **result,
        "seen": result["seen"][done:],
        "logged": [row for row in result["logged"] if row[0] > done],
    }


def assert_same(found: Any, truth: Any, path: str = "") -> None:
    """Equal to the bit."""
    assert type(found) is type(truth), path
    if isinstance(truth, dict):
        assert list(found) == list(truth), path
        for key in truth:
            assert_same(found[key], truth[key], f"{path}/{key}")
    elif isinstance(truth, list | tuple):
        assert len(found) == len(truth), f"{path}: {found} against {truth}"
        for i, (one, other) in enumerate(zip(found, truth, strict=True)):
            assert_same(one, other, f"{path}/{i}")
    elif isinstance(truth, Tensor):
        assert torch.equal(found, truth), path
    else:
        assert found == truth, path


def launcher(ranks: Ranks, size: int) -> Callable[..., list[dict[str, Any]]]:
    """Runs on both ranks, or on the first one as a process by itself."""

    def call(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        results = ranks(run, *args, lone=size == 1, **kwargs)
        return results[:size]

    return call


def read(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


# Iteration 6 ends a window, 4 and 12 lie within one; 12 and 15 lie beyond the first epoch.
@pytest.mark.parametrize(("killed_at", "saved_at"), [(6, 4), (15, 12)])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_a_killed_run_that_is_resumed_is_the_uninterrupted_one(
    size: int, workers: int, killed_at: int, saved_at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    start = launcher(two_ranks, size)
    truth = start(str(tmp_path / "whole"), str(tmp_path / "whole.txt"), workers=workers)
    work_dir = str(tmp_path / "broken")
    with pytest.raises(RankError, match="died, exit code -9"):
        start(work_dir, str(tmp_path / "killed.txt"), workers=workers, kill_at=killed_at)
    resumed = start(work_dir, str(tmp_path / "resumed.txt"), workers=workers, resume=True)
    for rank in range(size):
        assert truth[rank]["counters"]["iter"] == 7 * EPOCHS
        assert_same(resumed[rank], tail(truth[rank], saved_at))
        assert truth[rank]["seen"][0] and len(resumed[rank]["seen"]) == 7 * EPOCHS - saved_at
    assert resumed[0]["logged"], "the main rank logs"
    # The samples before the checkpoint are not read again, be it to skip them.
    done = saved_at * GLOBAL_BATCH
    assert sorted(read(tmp_path / "resumed.txt")) == sorted(seen_after(truth, done))


def seen_after(results: list[dict[str, Any]], samples: int) -> list[int]:
    """The samples of all ranks after the first so many, in the order of the iterations."""
    iterations = zip(*(result["seen"] for result in results), strict=True)
    return [index for parts in iterations for part in parts for index in part][samples:]


def test_the_truth_draws_dropout_and_noise_that_matter(two_ranks: Ranks, tmp_path: Path) -> None:
    start = launcher(two_ranks, 1)
    one = start(str(tmp_path / "one"), os.devnull)[0]
    again = start(str(tmp_path / "again"), os.devnull)[0]
    other = start(str(tmp_path / "other"), os.devnull, seed=2)[0]
    assert_same(again, one)
    assert other["seen"] != one["seen"]
    assert not torch.equal(other["weights"]["net.0.weight"], one["weights"]["net.0.weight"])


def test_a_killed_run_goes_on_from_auto_and_from_a_path(two_ranks: Ranks, tmp_path: Path) -> None:
    start = launcher(two_ranks, 1)
    truth = start(str(tmp_path / "whole"), os.devnull)[0]
    work_dir = str(tmp_path / "broken")
    assert_same(start(work_dir, os.devnull, resume="auto", stop_at=9)[0]["seen"], truth["seen"][:9])
    # From a path of the user's own into another folder; an older one at that.
    path = str(tmp_path / "broken" / "checkpoints" / "step-00000004")
    assert_same(start(str(tmp_path / "third"), os.devnull, resume=path)[0], tail(truth, 4))
    assert_same(start(work_dir, os.devnull, resume="auto")[0], tail(truth, 9))


def test_to_resume_from_nothing_is_an_error_that_names_auto(two_ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="resume='auto' starts anew"):
        launcher(two_ranks, 1)(str(tmp_path), os.devnull, resume=True)


def test_another_seed_at_resume_does_not_change_the_order(two_ranks: Ranks, tmp_path: Path) -> None:
    start = launcher(two_ranks, 1)
    truth = start(str(tmp_path / "whole"), os.devnull)[0]
    start(str(tmp_path / "broken"), os.devnull, stop_at=5)
    resumed = start(str(tmp_path / "broken"), os.devnull, resume=True, seed=99)[0]
    for part in ("weights", "optimizer", "seen", "counters", "torch", "python"):
        assert_same(resumed[part], tail(truth, 5)[part])


def test_another_seed_at_resume_does_not_change_the_noise_of_the_validation(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    start = launcher(two_ranks, 1)
    truth = start(str(tmp_path / "whole"), os.devnull)[0]
    start(str(tmp_path / "broken"), os.devnull, stop_at=5)
    resumed = start(str(tmp_path / "broken"), os.devnull, resume=True, seed=99)[0]
    assert_same(resumed["metrics"], truth["metrics"])


def test_two_ranks_then_one_then_two_see_each_sample_once_in_the_same_global_order(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    alone, both = launcher(two_ranks, 1), launcher(two_ranks, 2)
    truth = alone(str(tmp_path / "whole"), os.devnull)
    work_dir = str(tmp_path / "moved")
    parts = [
        both(work_dir, os.devnull, stop_at=5),
        alone(work_dir, os.devnull, resume=True, stop_at=11),
        both(work_dir, os.devnull, resume=True),
    ]
    batches = [
        sorted(index for part in iteration for index in part)
        for results in parts
        for iteration in zip(*(result["seen"] for result in results), strict=True)
    ]
    assert batches == [sorted(batch) for batch in truth[0]["seen"]]
    for epoch in range(EPOCHS):
        seen = [index for batch in batches[epoch * 7 : epoch * 7 + 7] for index in batch]
        assert sorted(seen) == list(range(SAMPLES))
    assert parts[-1][0]["counters"]["samples"] == EPOCHS * SAMPLES
