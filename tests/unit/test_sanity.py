"""`sanity_batches`: a validation before training that changes nothing, and shows what is broken."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Hook, Runner
from stratrun.hooks import CheckpointHook, EarlyStoppingHook
from stratrun.loggers import Logger, Record
from tests.parity.sharded import whole
from tests.problems import perceptron, points
from tests.ranks import Ranks

TIMINGS = ("time", "data", "eta", "memory")


class Drawing(nn.Module):
    """Draws random numbers and moves a buffer in evaluation too."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), perceptron())
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += 1
        out: Tensor = self.net(inputs) + 0.1 * torch.randn(3)
        return out


class Memory(Logger):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log(self, record: Record) -> None:
        if record.kind != "progress":
            kept = {k: v for k, v in record.values.items() if not any(word in k for word in TIMINGS)}
            self.rows.append((record.kind, record.iter, kept))

    def say(self, text: str) -> None:
        if "sanity" in text and "train" not in text:
            self.rows.append(text)


class Seen(Hook):
    """What a hook sees of validations."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def before_val(self) -> None:
        self.points.append("begin")

    def after_val_iter(self) -> None:
        self.points.append("batch")

    def after_val_epoch(self) -> None:
        self.points.append("results")

    def after_val(self) -> None:
        self.points.append("end")

    def on_break_off(self) -> None:
        self.points.append("left")


def run(work_dir: Any, *hooks: Any, batches: int | None = 2, **options: Any) -> Runner:
    data = {"dataset": points(18), "batch_size": 4}
    given: dict[str, Any] = {
        "train_dataloader": data,
        "val_dataloader": data,
        "val_evaluator": [{"type": "Accuracy"}, {"type": "DumpResults"}],
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
        "loss": "cross_entropy",
        "loggers": [],
        "custom_hooks": hooks,
        "work_dir": work_dir,
        "randomness": {"seed": 1},
        "dev_cfg": None if batches is None else {"sanity_batches": batches},
    }
    return Runner(options.pop("model", None) or Drawing(), **{**given, **options})


def outcome(work_dir: Any, batches: int | None, **options: Any) -> Any:
    """All that training leaves: weights, metrics, logs, hooks and random numbers."""
    memory, seen, stopping = Memory(), Seen(), EarlyStoppingHook("accuracy", patience=9)
    best = CheckpointHook(save_best="accuracy")
    runner = run(
        work_dir,
        *(seen, stopping, best, {"type": "EMAHook"}),
        batches=batches,
        loggers=[memory],
        default_hooks={"checkpoint": None},
        param_scheduler={"type": "ReduceLROnPlateau", "monitor": "accuracy", "patience": 0},
        **options,
    )
    runner.train()
    left = {
        "weights": whole(runner.model),
        "state": (runner.metrics, runner.state.state_dict()),
        "rows": [row for row in memory.rows if not isinstance(row, str)],
        "hooks": (stopping.state_dict(), best.best),
        "drawn": torch.rand(3),
    }
    said = [row for row in memory.rows if isinstance(row, str)]
    runner.close()
    return left, seen.points, said


def assert_same(found: Any, truth: Any) -> None:
    weights, others = found.pop("weights"), truth.pop("weights")
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert torch.equal(found.pop("drawn"), truth.pop("drawn"))
    assert found == truth


def compare(work_dir: str, strategy: str) -> None:
    truth, points, _ = outcome(f"{work_dir}/without", None, strategy=strategy)
    found, seen, said = outcome(f"{work_dir}/with", 1, strategy=strategy)
    assert_same(found, truth)
    assert seen == ["begin", "batch", "left", *points]
    assert said == [] or "gave accuracy, thrown away" in said[0]


def test_training_is_to_the_bit_what_it_is_without(tmp_path: Path) -> None:
    compare(str(tmp_path), "single")
    folders = sorted(path.name for path in tmp_path.glob("with/runs/*/evaluation/*"))
    assert folders == ["val-00000005", "val-00000010"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_of_two_ranks_is_to_the_bit_what_it_is_without(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(compare, str(tmp_path), strategy)


@pytest.mark.parametrize("where", ["step", "metric"])
def test_what_is_broken_shows_before_training(where: str, tmp_path: Path) -> None:
    class Broken(Drawing):
        def val_step(self, batch: Any) -> Tensor:
            raise KeyError("head")

    class Counts(Hook):
        steps = 0

        def before_train_iter(self) -> None:
            self.steps += 1

    counts = Counts()
    wrong_word = "head" if where == "step" else "topk"
    wrong: dict[str, Any] = {"model": Broken(), "loss": None} if where == "step" else {}
    if where == "metric":
        wrong = {"val_evaluator": {"type": "Accuracy", "topk": 7}}
    with pytest.raises(Exception, match=wrong_word) as caught:
        run(tmp_path, counts, **wrong).train()
    assert counts.steps == 0
    assert any("sanity_batches=2" in note for note in caught.value.__notes__)


def test_a_run_that_goes_on_has_been_tried_before(tmp_path: Path) -> None:
    class Stop(Hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == 3:
                runner.request("stop", agreed=True)

    first = run(tmp_path, Stop())
    first.train()
    first.close()
    seen = Seen()
    again = run(tmp_path, seen, resume=True)
    again.train()
    again.close()
    assert "left" not in seen.points and again.iter == 10
