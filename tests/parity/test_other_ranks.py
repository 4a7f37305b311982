"""A run that goes on with another number of ranks is, but for rounding, the run that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.hooks import Hook
from stratrun.loggers import Logger, Record
from tests.problems import perceptron, points, weights
from tests.ranks import Ranks

SAMPLES, GLOBAL_BATCH, ACCUMULATE, EPOCHS = 101, 12, 3, 2  # 9 batches an epoch, the last of 5 samples
TIMINGS = ("time", "data_share", "eta", "memory")


class Weighted(nn.Module):
    """Its losses are sums over tokens, of which samples have different numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        tokens = 1.0 + targets
        losses = cross_entropy(self.net(inputs), targets, reduction="none")
        return {"loss": (losses * tokens).sum() / tokens.sum(), "weight": tokens.sum()}


class Plain(Weighted):
    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"loss": cross_entropy(self.net(inputs), targets)}


class PointStream(IterableDataset[Any]):
    """Points without a length: that a window stays short shows only when they end."""

    def __iter__(self) -> Any:
        yield from points(SAMPLES - 12)  # 8 batches, the last window of 2


class Memory(Logger):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, record: Record) -> None:
        if record.kind == "train":
            values = {k: v for k, v in record.values.items() if not any(word in k for word in TIMINGS)}
            self.rows.append((record.iter, values))


class Stop(Hook):
    """Saves after so many iterations, and ends the run."""

    priority = 100

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"model": "weighted"},
    "16-mixed": {"precision": {"type": "16-mixed", "init_scale": 1024.0, "growth_interval": 2}},
    "bf16-true": {"precision": "bf16-true"},
    "stream": {"stream": True},
    "no views": {"strategy": {"type": "ddp", "gradient_as_bucket_view": False}},
    "clipped": {"clip_grad": 0.05},
}


def part(work_dir: str, case: str, stop_at: int | None, resume: bool) -> dict[str, Any]:
    """A run from where it is to where it is to be stopped."""
    options = dict(CASES[case])
    model = Weighted() if options.pop("model", "") == "weighted" else Plain()
    dataset = PointStream() if options.pop("stream", False) else points(SAMPLES)
    loader: dict[str, Any] = {"dataset": dataset, "global_batch_size": GLOBAL_BATCH}
    if not torch.distributed.is_initialized():
        options.pop("strategy", None)
    memory = Memory()
    runner = Runner(
        model,
        train_dataloader=loader,
        train_cfg={"max_epochs": EPOCHS, "accumulate": ACCUMULATE},
        optimizer={"type": "SGD", "lr": 0.3, "momentum": 0.9},
        default_hooks={"checkpoint": None, "logger": {"interval": 4}},
        custom_hooks=[] if stop_at is None else [Stop(stop_at)],
        loggers=[memory],
        randomness={"seed": 1},
        work_dir=work_dir,
        resume=resume,
        **options,
    )
    runner.train()
    runner.close()
    counts = runner.state
    return {
        "weights": weights(model),
        "momentum": runner.engine.optimizers["optimizer"].state_dict()["state"],
        "counts": (counts.iter, counts.step, counts.samples, counts.skipped),
        "logged": memory.rows,
    }


def assert_goes_on(found: dict[str, Any], truth: dict[str, Any], stopped_at: int, **tolerance: float) -> None:
    for key in ("weights", "momentum"):
        torch.testing.assert_close(found[key], truth[key], **tolerance)
    assert found["counts"] == truth["counts"]
    logged = [row for row in truth["logged"] if row[0] > stopped_at]
    assert [row[0] for row in found["logged"]] == [row[0] for row in logged]
    for (_, one), (_, other) in zip(found["logged"], logged, strict=True):
        assert one == pytest.approx(other, rel=tolerance["rtol"])


# Windows are of iterations 1-3, 4-6, 7-9, 10-12, ...: the first stop lies at each of their phases.
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 4), (3, 5), (8, 17)])
def test_two_ranks_then_one_then_four_reach_the_weights_of_one(
    first: int, second: int, two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path
) -> None:
    moved("plain", first, second, two_ranks, four_ranks, tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_so_do_other_ways_to_add_up_gradients(
    case: str, two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path
) -> None:
    moved(case, 2, 7, two_ranks, four_ranks, tmp_path)


def moved(case: str, first: int, second: int, two: Ranks, four: Ranks, folder: Path) -> None:
    truth = part(str(folder / "whole"), case, None, False)
    work_dir = str(folder / "moved")
    two(part, work_dir, case, first, False)
    alone = part(work_dir, case, second, True)
    results = four(part, work_dir, case, None, True)
    rough = {"bf16-true": 0.1, "16-mixed": 2e-3}.get(case)
    tolerance = {"rtol": rough, "atol": rough} if rough else {"rtol": 1e-4, "atol": 1e-5}
    assert_goes_on(results[0], truth, second, **tolerance)
    for other in results[1:]:
        torch.testing.assert_close(other["weights"], results[0]["weights"], rtol=0, atol=0)
    # Where it is stopped it logs as well, what it has by then.
    logged = dict(alone["logged"])
    for iteration, values in truth["logged"]:
        if first < iteration <= second:
            assert logged[iteration] == pytest.approx(values, rel=rough or 1e-4)
