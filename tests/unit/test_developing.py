"""`fast_dev_run`: every branch of a run once, and nothing left of it; and how long a limited run is."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun import DATASETS, Hook, IterBasedTrainLoop, Runner
from stratrun.cli.plot_schedule.course import course_of
from stratrun.errors import CheckpointError, StorageError
from stratrun.hooks import CheckpointHook, SWAHook
from stratrun.loggers import ConsoleLogger, Logger, Record
from tests.feeds import Numbers, Stream
from tests.problems import perceptron, points
from tests.ranks import Ranks


class Calls(Hook):
    """The points that were called, and what was saved and loaded of a number."""

    def __init__(self) -> None:
        self.points: list[str] = []
        self.loaded: int | None = None

    def before_train_iter(self) -> None:
        self.points.append("train")

    def after_train_epoch(self) -> None:
        self.points.append("epoch")

    def after_val_iter(self) -> None:
        self.points.append("val")

    def after_val_epoch(self) -> None:
        self.points.append("results")

    def after_test_iter(self) -> None:
        self.points.append("test")

    def after_predict_iter(self) -> None:
        self.points.append("predict")

    def state_dict(self) -> dict[str, int]:
        return {"points": len(self.points)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["points"]


class Dot(nn.Module):
    """Trains on points or numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def train_step(self, batch: Any) -> Any:
        rows = batch[0] if isinstance(batch, list | tuple) else batch
        return (rows.float() * self.weight).mean()


@DATASETS.register_module()
class FortyNumbers(Numbers):
    def __init__(self) -> None:
        super().__init__(40)


class Tracker(Logger):
    """Must not be asked for anything."""

    def open(self, folder: Path) -> None:
        raise AssertionError(folder)

    def log(self, record: Record) -> None:
        raise AssertionError(record)


def run(work_dir: Any, *hooks: Any, dev: Any = True, **options: Any) -> Runner:
    data = {"dataset": points(40), "batch_size": 4}
    given: dict[str, Any] = {
        "train_dataloader": data,
        "val_dataloader": data,
        "test_dataloader": data,
        "predict_dataloader": data,
        "val_evaluator": {"type": "Accuracy"},
        "test_evaluator": {"type": "Accuracy"},
        "train_cfg": {"max_epochs": 20, "accumulate": 4, "val_begin": 5, "val_interval": 3},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "loss": "cross_entropy",
        "loggers": [Tracker(), "console", "csv"],
        "custom_hooks": hooks,
        "work_dir": work_dir,
        "randomness": {"seed": 1},
        "dev_cfg": {"fast_dev_run": dev},
    }
    return Runner(options.pop("model", None) or perceptron(), **{**given, **options})


@pytest.mark.parametrize("batches", [1, 2])
def test_each_job_has_its_batches_an_update_and_the_ends_of_its_epoch(tmp_path: Path, batches: int) -> None:
    calls = Calls()
    runner = run(tmp_path, calls, dev=True if batches == 1 else batches)
    runner.train()
    counts = (runner.epoch, runner.iter, runner.step)
    runner.val()
    runner.test()
    assert len(runner.predict()) == 4 * batches
    runner.close()
    assert counts == (1, batches, 1)
    trained = ["train"] * batches + ["epoch"] + ["val"] * batches + ["results"]
    assert calls.points == [
        *(*trained, *["val"] * batches, "results"),
        *(*["test"] * batches, *["predict"] * batches),
    ]


def test_training_by_iterations_validates_and_ends_its_epoch_too(tmp_path: Path) -> None:
    calls = Calls()
    runner = run(tmp_path, calls, dev=2, train_cfg={"max_iters": 900, "val_begin": 500, "accumulate": 3})
    runner.train()
    runner.close()
    assert (runner.epoch, runner.iter, runner.step) == (1, 2, 1)
    assert calls.points == ["train", "train", "val", "val", "results", "epoch"]


def test_a_loop_of_the_users_is_cut_down_by_the_names_of_ours(tmp_path: Path) -> None:
    class Own(IterBasedTrainLoop):
        """Another one."""

    runner = run(tmp_path, dev=3, train_cfg={"type": Own, "max_iters": 900})
    runner.train()
    runner.close()
    assert (runner.epoch, runner.iter) == (1, 3)


def test_nothing_is_left_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for place in ("there", "new/deep"):
        dumped = [{"type": "Accuracy"}, {"type": "DumpResults"}]
        runner = run(tmp_path / place, val_evaluator=dumped)
        runner.train()
        assert runner.last_checkpoint is None
        runner.test()
        runner.close()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"there", "there/file"}


def test_a_run_beside_the_checkpoints_of_a_whole_one_leaves_them_alone(tmp_path: Path) -> None:
    whole = run(tmp_path, dev=False, loggers=(), train_cfg={"max_epochs": 1})
    whole.train()
    whole.close()
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    for options in ({}, {"resume": "auto"}, {"load_from": "last"}):
        runner = run(tmp_path, **options)
        runner.train()
        assert runner.iter == 1
        runner.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == before
    assert not any("fast_dev_run" in name for name in os.listdir(tmp_path))


def test_the_checkpoint_is_loaded_into_the_run(tmp_path: Path) -> None:
    calls = Calls()
    runner = run(tmp_path, calls)
    runner.train()
    runner.close()
    assert calls.loaded == 2  # saved after the epoch, before its validation

    class Broken(Calls):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("other")

    with pytest.raises(KeyError, match="other"):
        run(tmp_path / "broken", Broken()).train()
    assert not (tmp_path / "broken").exists()


def test_without_a_checkpoint_hook_nothing_is_saved(tmp_path: Path) -> None:
    calls = Calls()
    run(tmp_path, calls, default_hooks={"checkpoint": None}).train()
    assert calls.loaded is None


def test_a_run_whose_checkpoints_cannot_be_written_fails(tmp_path: Path) -> None:
    class Unsavable(Hook):
        def state_dict(self) -> dict[str, Any]:
            return {"model": nn.Linear(1, 1)} if self.late else {}

        late = False

        def after_train_epoch(self) -> None:
            self.late = True

    with pytest.raises((CheckpointError, StorageError)):
        run(tmp_path / "work", Unsavable()).train()
    assert not (tmp_path / "work").exists()


def test_schedules_early_stopping_and_the_best_checkpoint_take_part(tmp_path: Path) -> None:
    best = CheckpointHook(save_best="accuracy", interval=7)
    runner = run(
        tmp_path,
        {"type": "EarlyStoppingHook", "monitor": "accuracy"},
        {"type": "EMAHook"},
        best,
        default_hooks={"checkpoint": None},
        param_scheduler=[
            {"type": "LinearLR", "end": 10},
            {"type": "ReduceLROnPlateau", "monitor": "accuracy"},
        ],
    )
    runner.train()
    runner.close()
    assert best.best["accuracy"] and runner.epoch == 1


def test_averages_that_begin_late_are_taken_at_the_end(tmp_path: Path) -> None:
    swa = SWAHook(begin=15)
    runner = run(tmp_path, swa)
    runner.train()
    runner.close()
    assert swa.state_dict()["averages"]


def test_only_the_console_logs_and_a_line_says_what_is_off(tmp_path: Path, capsys: Any) -> None:
    runner = run(tmp_path)
    runner.train()
    assert [type(one) for one in runner.loggers.loggers] == [ConsoleLogger]
    runner.close()
    told = capsys.readouterr().out
    assert "fast_dev_run=1: 1 batch each of training" in told and "the checkpoint was written" in told
    assert "  logs: " not in told and "  checkpoint: " not in told
    silent = run(tmp_path, loggers=())
    silent.train()
    assert silent.loggers.loggers == []
    silent.close()


def on_ranks(work_dir: str) -> list[Any]:
    found = []
    for strategy in ("ddp", "fsdp"):
        calls = Calls()
        runner = run(work_dir, calls, strategy=strategy, loggers=())
        runner.train()
        predicted = len(runner.predict())
        found.append((runner.epoch, runner.iter, runner.step, calls.loaded, predicted))
        runner.close()
    return found


def test_two_ranks_try_a_run_and_leave_nothing(two_ranks: Ranks, tmp_path: Path) -> None:
    for found in two_ranks(on_ranks, str(tmp_path / "work")):
        assert found == [(1, 1, 1, 2, 8), (1, 1, 1, 2, 8)]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("data", [points(40), Stream(40)])
def test_schedules_go_by_the_limited_length(data: Any, tmp_path: Path) -> None:
    runner = run(
        tmp_path,
        train_dataloader={"dataset": data, "batch_size": 4},
        train_cfg={"max_epochs": 3, "accumulate": 2},
        param_scheduler={"type": "CosineAnnealingLR", "convert_to_iter_based": True},
        loss=None,
        model=Dot(),
        val_dataloader=None,
        val_evaluator=None,
        loggers=(),
        dev_cfg={"limit_batches": {"train": 3}},
    )
    runner.train()
    runner.close()
    scheduler: Any = runner.schedules[0].scheduler
    assert (runner.iter, runner.step, runner.max_iters) == (9, 6, 9)
    assert scheduler.T_max == 6


def test_the_plot_of_a_schedule_has_the_limited_length(tmp_path: Path, capsys: Any) -> None:
    config = {
        "model": {"type": "torch.nn.Linear", "in_features": 4, "out_features": 1},
        "train_dataloader": {"dataset": {"type": "FortyNumbers"}, "batch_size": 4},
        "train_cfg": {"max_epochs": 3},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "param_scheduler": {"type": "CosineAnnealingLR"},
        "dev_cfg": {"limit_batches": 0.5},
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config))
    given = Namespace(
        config=str(path),
        settings=(),
        imports=(),
        allow=("torch",),
        param="lr",
        world_size=1,
        batches_per_epoch=None,
    )
    assert course_of(given).updates == 15
