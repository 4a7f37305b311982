"""The table of a model, by counts that can be told beforehand."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from stratrun import ConfigError, Runner
from stratrun.hooks import SummaryHook
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

FIRST, LAST = FEATURES * 8, 8 * CLASSES


def model() -> nn.Module:
    built = nn.Sequential(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()), nn.Linear(8, CLASSES))
    built[0][0].bias.requires_grad_(False)
    return built


def shown(work_dir: Path, hook: SummaryHook, **options: Any) -> list[list[str]]:
    runner = Runner(
        model(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(8), "batch_size": 2},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[hook],
        default_hooks={"checkpoint": None},
        loggers=[],
        work_dir=work_dir,
        **options,
    )
    runner.train()
    runner.close()
    if runner.log_folder is None:
        return []
    return [line.split() for line in Path(runner.log_folder, "model.txt").read_text().splitlines()]


def test_modules_have_their_parameters_and_operations(tmp_path: Path) -> None:
    head, *rows = shown(tmp_path, SummaryHook())
    assert head == ["module", "type", "parameters", "trained", "operations"]
    # Forward, and the gradients of weights; of inputs that of the last layer alone.
    first, last = 2 * 2 * FIRST, 3 * 2 * LAST
    parameters = FIRST + 8 + LAST + CLASSES
    assert rows == [
        ["(all)", "Sequential", str(parameters), str(parameters - 8), str(first + last)],
        ["0", "Sequential", str(FIRST + 8), str(FIRST), str(first)],
        ["0.0", "Linear", str(FIRST + 8), str(FIRST), str(first)],
        ["0.1", "Tanh", "0", "0", "0"],
        ["1", "Linear", str(LAST + CLASSES), str(LAST + CLASSES), str(last)],
    ]


def test_without_operations_the_table_has_no_column_of_them(tmp_path: Path) -> None:
    head, *rows = shown(tmp_path, SummaryHook(depth=1, flops=False))
    assert head == ["module", "type", "parameters", "trained"]
    assert [row[0] for row in rows] == ["(all)", "0", "1"]


def on_ranks(folder: str, strategy: str) -> list[list[str]]:
    return shown(Path(folder), SummaryHook(), strategy=strategy)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_table_is_that_of_the_whole_model_under(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    table = two_ranks(on_ranks, str(tmp_path / "ranks"), strategy)[0]
    assert table == shown(tmp_path / "one", SummaryHook())


def test_a_depth_that_is_no_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="depth=0"):
        SummaryHook(depth=0)
