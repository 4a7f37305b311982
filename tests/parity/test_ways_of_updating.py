"""How an optimizer computes its updates is the run's own, whatever it goes on with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun import Runner
from stratrun.loggers import Logger, Record
from tests.parity.test_other_ranks import Stop
from tests.problems import perceptron, points, weights

STOP, END = 3, 5
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"foreach": False},
    "together": {"foreach": True},
    "fused": {"fused": True},
}


class Told(Logger):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def log(self, record: Record) -> None:
        pass

    def say(self, text: str) -> None:
        self.texts.append(text)


def run(work_dir: Path, way: str, **options: Any) -> tuple[Runner, dict[str, torch.Tensor], str]:
    model, told = perceptron(), Told()
    runner = Runner(
        model,
        train_dataloader={"dataset": points(40), "batch_size": 8},
        train_cfg={"by_epoch": False, "max_iters": END},
        optimizer={"type": "AdamW", "lr": 0.02, **WAYS[way]},
        loss="cross_entropy",
        default_hooks={"checkpoint": None},
        loggers=[told],
        randomness={"seed": 1},
        work_dir=str(work_dir),
        **options,
    )
    runner.train()
    runner.close()
    return runner, weights(model), "\n".join(told.texts)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_in_its_own_way_with_the_state_of_each(way: str, tmp_path: Path) -> None:
    _, truth, _ = run(tmp_path / "whole", way)
    parts = ["model", "optimizer", "scheduler", "counters", "data", "rng"]
    for other in WAYS:
        run(tmp_path / other, other, custom_hooks=[Stop(STOP)])
        saved = str(tmp_path / other / "checkpoints")
        ways: list[dict[str, Any]] = [{"resume": saved}, {"load_from": {"path": saved, "parts": parts}}]
        for number, loading in enumerate(ways):
            runner, found, told = run(tmp_path / f"{other}-{number}", way, **loading)
            group = runner.engine.optimizers["optimizer"].param_groups[0]
            assert {name: group[name] for name in WAYS[way]} == WAYS[way]
            assert "is given" not in told
            assert runner.iter == END
            for name, value in truth.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
