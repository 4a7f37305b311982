"""Ranks that work on the same samples: data, losses, logs, metrics and draws go by groups of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun import Runner
from stratrun.hooks import Hook
from tests.parity.waiting import Waiting
from tests.problems import perceptron, points, weights
from tests.ranks import Ranks

TRAIN, VAL = 22, 7


class Drawn(Hook):
    """What each rank reads and draws."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.draws: list[float] = []
        self.means: dict[str, float] = {}

    def after_train_iter(self, runner: Any) -> None:
        self.samples += runner.engine.batch.positions
        self.draws.append(torch.rand(()).item())
        self.means = runner.engine.mean({"first": float(runner.engine.batch.positions[0])})


def run(work_dir: str, strategy: Any, drawn: Drawn) -> Runner:
    torch.manual_seed(0)
    return Runner(
        perceptron(),
        train_dataloader={"dataset": points(TRAIN), "global_batch_size": 4, "shuffle": False},
        train_cfg={"max_epochs": 2, "accumulate": 2, "val_interval": 1},
        val_dataloader={"dataset": points(VAL, seed=1), "batch_size": 2},
        val_evaluator=[{"type": "Accuracy"}, {"type": "MeanMetric"}],
        predict_dataloader={"dataset": points(VAL, seed=1), "batch_size": 2},
        optimizer={"type": "Adam", "lr": 0.1},
        loss="cross_entropy",
        clip_grad=0.5,
        strategy=strategy,
        custom_hooks=[drawn],
        default_hooks={"checkpoint": None, "logger": {"interval": 1}},
        loggers={"type": "jsonl"},
        randomness={"seed": 3},
        work_dir=work_dir,
    )


def trained(work_dir: str, ranks_per_batch: int = 0) -> dict[str, Any]:
    drawn = Drawn()
    runner = run(work_dir, Waiting(ranks_per_batch) if ranks_per_batch else "single", drawn)
    metrics = runner.train()
    found = {
        "weights": weights(runner.model),
        "metrics": metrics,
        "counts": (runner.iter, runner.step, runner.samples, runner.epoch),
        "predictions": torch.stack(runner.predict()),
        "samples": drawn.samples,
        "draws": drawn.draws,
        "mean": drawn.means,
    }
    runner.close()
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: line[key] for key in ("iter", "samples", "loss") if key in line} for line in lines]


@pytest.mark.parametrize("ranks_per_batch", [2, 4])
def test_groups_of_ranks_with_the_same_samples_train_and_measure_as_one_process(
    ranks_per_batch: int, four_ranks: Ranks, tmp_path: Path
) -> None:
    plain = trained(str(tmp_path / "plain"))
    per_rank = four_ranks(trained, str(tmp_path / "ranks"), ranks_per_batch)
    assert logged(tmp_path / "ranks") == [pytest.approx(line) for line in logged(tmp_path / "plain")]
    for rank, found in enumerate(per_rank):
        torch.testing.assert_close(found["weights"], plain["weights"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["predictions"], plain["predictions"], rtol=1e-5, atol=1e-6)
        assert found["metrics"] == pytest.approx(plain["metrics"], rel=1e-5)
        assert found["counts"] == plain["counts"]
        first = per_rank[rank - rank % ranks_per_batch]
        assert (found["samples"], found["draws"]) == (first["samples"], first["draws"])
    groups = per_rank[::ranks_per_batch]
    assert sorted(n for found in groups for n in found["samples"]) == sorted(plain["samples"])
    assert len({tuple(found["draws"]) for found in per_rank}) == len(groups)
    assert per_rank[0]["draws"] == plain["draws"]
    # The last global batch begins at 20, of which the second group has 21.
    assert {found["mean"]["first"] for found in per_rank} == {20.5 if len(groups) == 2 else 20.0}
