"""What a resumed run says of what is other than it was when the checkpoint was saved."""

from pathlib import Path
from typing import Any

import pytest

from stratrun import Hook, Runner
from stratrun.errors import CheckpointNotFoundError
from tests.problems import perceptron, points

SAMPLES = 24


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Any) -> None:
        runner.state.should_stop = runner.iter == self.iteration


class Counts(Hook):
    """Keeps what `max_iters` was at each iteration."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def before_train(self, runner: Any) -> None:
        self.seen.append(runner.max_iters)

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append(runner.max_iters)


def run(work_dir: Path, *hooks: Any, **options: Any) -> Runner:
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "batch_size": 4},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "work_dir": work_dir,
        "resume": "auto",
        "loggers": ["console"],
        "custom_hooks": list(hooks),
    }
    runner = Runner(perceptron(), **{**form, **options})
    runner.train()
    runner.close()
    return runner


def test_max_iters_is_what_is_done_and_what_is_left_in_batches_of_another_size(tmp_path: Path) -> None:
    run(tmp_path, StopAt(3), loggers=[])  # 12 of 24 samples
    counts = Counts()
    smaller = {"dataset": points(SAMPLES), "batch_size": 3}
    runner = run(tmp_path, counts, loggers=[], train_dataloader=smaller)
    assert runner.iter == 3 + 4 + 8
    assert set(counts.seen) == {runner.iter}


def test_max_iters_of_a_run_that_has_ended_is_what_was_done(tmp_path: Path) -> None:
    run(tmp_path, loggers=[])
    counts = Counts()
    other = {"dataset": points(SAMPLES), "batch_size": 5}
    run(tmp_path, counts, loggers=[], train_dataloader=other)
    assert counts.seen == [12]


def test_max_iters_counts_whole_epochs_at_first(tmp_path: Path) -> None:
    counts = Counts()
    run(tmp_path, counts, loggers=[])
    assert counts.seen == [12] * 13


@pytest.mark.parametrize("given", ["Auto", "nowhere", "x.safetensors"])
def test_only_who_asks_for_the_newest_is_told_of_auto_that_starts_anew(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError) as caught:
        run(tmp_path / "run", resume=given)
    assert "starts anew" not in str(caught.value)
