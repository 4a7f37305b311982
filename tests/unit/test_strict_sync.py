"""With `strict_sync`, hooks that wait for the device between log points are named."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stratrun import ConfigError, Hook, Runner
from tests.problems import perceptron, points

INTERVAL = 4


class Reads(Hook):
    """Reads a loss whenever it is told to."""

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        if runner.iter % self.every == 0:
            float(outputs["loss"])


class ReadsLate(Reads):
    priority = 90  # after the hook that logs


class Keeps(Hook):
    """Sums without reading, and reads where values are logged."""

    def before_train(self) -> None:
        self.total: Any = 0.0

    def after_train_iter(self, outputs: Any) -> None:
        self.total = self.total + outputs["loss"].detach()

    def before_log(self, values: dict[str, Any]) -> None:
        values["kept"] = float(self.total)

    def after_train_epoch(self) -> None:
        float(self.total)


class ReadsResults(Hook):
    def after_val_iter(self, outputs: Any) -> None:
        outputs["preds"].tolist()


def warned(tmp_path: Path, *hooks: Hook, **env_cfg: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = Runner(
            perceptron(),
            loss="cross_entropy",
            train_dataloader={"dataset": points(30), "batch_size": 3},
            train_cfg={"max_epochs": 2},
            val_dataloader={"dataset": points(9), "batch_size": 3},
            val_evaluator="Accuracy",
            optimizer={"type": "SGD", "lr": 0.1},
            default_hooks={"logger": {"interval": INTERVAL}, "checkpoint": None},
            custom_hooks=hooks,
            loggers=["jsonl"],
            env_cfg=env_cfg,
            work_dir=tmp_path,
        )
        runner.train()
        runner.close()
    return [str(one.message) for one in caught if "strict_sync" in str(one.message)]


def test_a_hook_that_reads_at_each_iteration_is_named_once_with_its_line(tmp_path: Path) -> None:
    (text,) = warned(tmp_path, Reads(), Keeps(), strict_sync=True)
    assert "Reads.after_train_iter waits for the device" in text
    line = Path(__file__).read_text().splitlines().index('            float(outputs["loss"])') + 1
    assert f"item at {__file__}:{line}" in text
    assert "before_log" in text


def test_each_hook_is_named_for_itself_and_in_evaluations_too(tmp_path: Path) -> None:
    texts = warned(tmp_path, Reads(), ReadsLate(), ReadsResults(), strict_sync=True)
    assert Counter(text.split()[1] for text in texts) == {
        "Reads.after_train_iter": 1,
        "ReadsLate.after_train_iter": 1,
        "ReadsResults.after_val_iter": 1,
    }


def test_reading_at_log_points_and_epochs_is_nobodys_fault(tmp_path: Path) -> None:
    assert warned(tmp_path, Reads(INTERVAL), ReadsLate(INTERVAL), Keeps(), strict_sync=True) == []


def test_nothing_is_watched_unless_asked_for(tmp_path: Path) -> None:
    assert warned(tmp_path, Reads()) == []


def test_a_setting_that_is_no_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strict_sync='yes' must be True or False"):
        warned(tmp_path, strict_sync="yes")
