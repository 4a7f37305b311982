"""What one number of ranks has saved, another loads to the bit, and its next step is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Runner
from stratrun.hooks import Hook
from stratrun.loggers import Logger, Record
from tests.problems import perceptron, points, weights
from tests.ranks import Ranks

SAVED_AT, ALL = 7, 12


class Losses(Logger):
    def __init__(self) -> None:
        self.by_iteration: dict[int, float] = {}

    def log(self, record: Record) -> None:
        if record.kind == "train" and "loss" in record.values:
            self.by_iteration[record.iter] = record.values["loss"]


class Keep(Hook):
    """Keeps what the run goes on from, and what it is like where it is saved and stopped."""

    priority = 100

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at = stop_at
        self.states: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        self.states["start"] = state_of(runner)

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.stop_at:
            runner.save_checkpoint()
            self.states["saved"] = state_of(runner)
            runner.request("stop", agreed=True)


def state_of(runner: Any) -> dict[str, Any]:
    saved = runner.engine.saved.shared_state()["optimizers"]["optimizer"]["state"]
    moments = {name: {k: torch.as_tensor(v).clone() for k, v in one.items()} for name, one in saved.items()}
    return {"weights": weights(runner.model), "moments": moments}


def normalized() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def go(
    work_dir: str, stop_at: int | None, accumulate: int, resume: Any = False, norm: bool = False
) -> dict[str, Any]:
    losses, keep = Losses(), Keep(stop_at)
    options: dict[str, Any] = {}
    if norm and torch.distributed.is_initialized():
        options["strategy"] = {"type": "ddp", "broadcast_buffers": False}
    runner = Runner(
        normalized() if norm else perceptron(),
        work_dir=work_dir,
        loss="cross_entropy",
        train_dataloader={"dataset": points(96), "global_batch_size": 8},
        train_cfg={"by_epoch": False, "max_iters": ALL, "accumulate": accumulate},
        optimizer={"type": "AdamW", "lr": 0.05},
        default_hooks={"checkpoint": None, "logger": {"interval": 1}},
        custom_hooks=[keep],
        loggers=[losses],
        randomness={"seed": 1},
        resume=resume,
        **options,
    )
    runner.train()
    runner.close()
    return {"losses": losses.by_iteration, **keep.states}


def on(ranks: Ranks | None, *args: Any, **options: Any) -> list[dict[str, Any]]:
    return [go(*args, **options)] if ranks is None else ranks(go, *args, **options)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


# 7 iterations leave a window of 3 open, by one.
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2), (1, 4)])
def test_the_state_is_loaded_to_the_bit_and_the_next_losses_are_those_of_the_run_that_went_on(
    before: int, after: int, accumulate: int, two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path
) -> None:
    ranks = {1: None, 2: two_ranks, 4: four_ranks}
    truth = on(ranks[before], str(tmp_path / "whole"), None, accumulate)[0]
    saved = on(ranks[before], str(tmp_path / "moved"), SAVED_AT, accumulate)
    found = on(ranks[after], str(tmp_path / "moved"), None, accumulate, resume=True)
    for result in found:
        assert equal(result["start"], saved[0]["saved"])
    losses = found[0]["losses"]
    assert list(losses) == list(range(SAVED_AT + 1, ALL + 1))
    assert losses[SAVED_AT + 1] == pytest.approx(truth["losses"][SAVED_AT + 1], rel=1e-6, abs=1e-6)
    assert list(losses.values()) == pytest.approx([truth["losses"][i] for i in losses], rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_of_buffers_that_differ_by_rank_one_process_takes_those_of_the_main_rank(
    accumulate: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    main, other = on(two_ranks, str(tmp_path), SAVED_AT, accumulate, norm=True)
    assert not equal(main["saved"], other["saved"])
    (found,) = on(None, str(tmp_path), None, accumulate, resume=True, norm=True)
    assert equal(found["start"], main["saved"])
    # As many ranks as before each take their own.
    again = on(
        two_ranks,
        str(tmp_path),
        SAVED_AT + 1,
        accumulate,
        resume=str(tmp_path / "checkpoints" / f"step-{SAVED_AT:08d}"),
        norm=True,
    )
    assert equal(again[0]["start"], main["saved"]) and equal(again[1]["start"], other["saved"])
