"""Broken off after any step and resumed, a run is to the bit the one that was not, in every way to train."""

import shutil
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.resume_job import (
    EPOCHS,
    PER_EPOCH,
    Augmented,
    Case,
    SpentSampleError,
    differences,
    on,
    spent_after,
    tail,
    train,
)
from tests.ranks import Ranks

ITERATIONS = PER_EPOCH * EPOCHS
EVERY_STEP = {"interval": 1, "by_epoch": False, "keep_last": None}
MATRIX = [Case(*parts) for parts in product([1, 2], [0, 2], [1, 3], ["32-true", "bf16-mixed"])]


def name(case: Case) -> str:
    return f"ranks{case.size}-workers{case.workers}-accumulate{case.accumulate}-{case.precision}"


def whole_twice(case: Case, folder: str) -> list[dict[str, Any]]:
    """The run without a single save, and with one after every step."""
    return [train(case, f"{folder}/bare"), train(case, f"{folder}/saved", save=EVERY_STEP)]


def rest_of_each(
    case: Case, folder: str, spent: Mapping[int, Any], save: Any = EVERY_STEP
) -> dict[int, dict[str, Any]]:
    return {
        done: train(case, f"{folder}/{done}", save=save, resume=True, spent=consumed)
        for done, consumed in spent.items()
    }


def stopped_at_each(case: Case, folder: str, iterations: int) -> dict[int, dict[str, Any]]:
    """Runs that are asked to stop and save just then."""
    save = {"interval": None}
    return {
        done: train(case, f"{folder}/{done}", save=save, stop_at=done) for done in range(1, iterations + 1)
    }


def leave_one(saved: Path, folder: Path, done: int) -> None:
    """A work dir as it is left by a kill right after a save."""
    step = f"checkpoints/step-{done:08d}"
    shutil.copytree(saved / step, folder / str(done) / step)


def wrong(truth: list[dict[str, Any]], found: list[dict[int, dict[str, Any]]]) -> list[str]:
    """What is not as in the whole run, of all ranks and all stops."""
    return [
        f"rank {rank}, stopped after {done}: {text}"
        for rank, results in enumerate(found)
        for done, result in results.items()
        for text in differences(tail(result), tail(truth[rank], done))
    ]


def check_every_step(case: Case, ranks: Ranks, tmp_path: Path, iterations: int = ITERATIONS) -> None:
    both = on(ranks, case.size, whole_twice, case, str(tmp_path))
    truth = [saved for _, saved in both]
    changes = [text for bare, saved in both for text in differences(tail(saved), tail(bare))]
    assert changes == [], "saving changed the run"
    assert truth[0]["counters"]["iter"] == iterations
    for done in range(1, iterations + 1):
        leave_one(tmp_path / "saved", tmp_path / "killed", done)
    spent = {done: spent_after(truth, done, PER_EPOCH) for done in range(1, iterations + 1)}
    found = on(ranks, case.size, rest_of_each, case, str(tmp_path / "killed"), spent)
    assert wrong(truth, found) == []


@pytest.mark.parametrize("case", MATRIX, ids=name)
def test_killed_after_any_step_and_resumed_it_is_the_run_that_was_not(
    case: Case, two_ranks: Ranks, tmp_path: Path
) -> None:
    check_every_step(case, two_ranks, tmp_path)


# Whatever moves during training, at once: all of it goes by counts and has state.
MOVING: dict[str, Any] = {
    "accumulate": [(0, 2), (1, 3)],
    "hooks": (
        {"type": "EMAHook", "decay": 0.7, "warmup": True, "interval": 2},
        {"type": "EarlyStoppingHook", "monitor": "accuracy", "patience": 9},
        {"type": "SpikeHook", "deviations": 0.7, "window": 3, "warmup": 2, "interval": 2, "action": "skip"},
        {"type": "FreezeHook", "params": "net.0", "until": 1},
    ),
    "options": {
        "non_finite": "skip",
        "optimizer": {
            "type": "AdamW",
            "lr": 0.02,
            "paramwise": {"bias_decay_mult": 0.0, "rules": {"net.2": {"lr_mult": 2.0}}},
            "scale_lr": {"base_batch_size": 8},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 2},
            {"type": "CosineAnnealingLR", "T_max": 3, "begin": 2, "by_epoch": False},
        ],
    },
}
OTHERS = {
    "all that moves": Case(**MOVING),
    "all that moves on two ranks": Case(size=2, workers=2, **MOVING),
    "weighted window": Case(accumulate=3, weighted=True),
    "weighted window on two ranks": Case(size=2, accumulate=3, weighted=True),
    "scaler that skips": Case(
        accumulate=2, precision={"type": "16-mixed", "init_scale": 2.0**17, "growth_interval": 2}
    ),
    "by iterations": Case(
        workers=2,
        accumulate=3,
        train_cfg={"by_epoch": False, "max_iters": ITERATIONS + 1, "val_interval": 4},
    ),
    "by iterations on two ranks": Case(
        size=2, accumulate=2, train_cfg={"by_epoch": False, "max_iters": ITERATIONS + 1, "val_interval": 3}
    ),
    "windows of other lengths": Case(
        accumulate=[(0, 3), (4, 2), (7, 4)],
        train_cfg={"by_epoch": False, "max_iters": ITERATIONS + 1, "val_interval": 3},
    ),
    "average of weights": Case(
        accumulate=3, hooks=({"type": "EMAHook", "decay": 0.7, "begin": 1, "warmup": True},)
    ),
    "average of weights of some updates": Case(
        accumulate=3, hooks=({"type": "SWAHook", "begin": 1, "by_epoch": False},)
    ),
    "average of weights on two ranks": Case(size=2, workers=2, hooks=({"type": "EMAHook", "decay": 0.7},)),
    "means over several log points": Case(
        options={"default_hooks": {"checkpoint": EVERY_STEP, "logger": {"interval": 2, "window": 5}}}
    ),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_so_it_is_with_other_loops_windows_and_scalers(case: Case, two_ranks: Ranks, tmp_path: Path) -> None:
    iterations = case.train_cfg.get("max_iters", ITERATIONS)
    check_every_step(case, two_ranks, tmp_path, iterations)


def test_the_scaler_that_skips_does_skip(two_ranks: Ranks, tmp_path: Path) -> None:
    (result,) = on(two_ranks, 1, train, OTHERS["scaler that skips"], str(tmp_path))
    assert 2 <= result["counters"]["skipped"] < result["counters"]["step"] + 2


@pytest.mark.parametrize("case", [Case(accumulate=3), Case(size=2, workers=2, accumulate=3)], ids=name)
def test_stopped_on_request_after_any_step_and_resumed_it_is_the_run_that_was_not(
    case: Case, two_ranks: Ranks, tmp_path: Path
) -> None:
    truth = on(two_ranks, case.size, train, case, str(tmp_path / "whole"))
    first = on(two_ranks, case.size, stopped_at_each, case, str(tmp_path), ITERATIONS - 1)
    spent = {done: spent_after(truth, done, PER_EPOCH) for done in first[0]}
    found = on(two_ranks, case.size, rest_of_each, case, str(tmp_path), spent, {"interval": None})
    assert wrong(truth, found) == []
    for rank, results in enumerate(first):
        for done, result in results.items():
            assert result["seen"] == truth[rank]["seen"][:done]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_set_refuses_spent_samples_of_that_epoch_alone(
    workers: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    case = Case(workers=workers)
    (result,) = on(two_ranks, 1, train, case, str(tmp_path / "whole"))
    last = result["seen"][-1]
    (again,) = on(two_ranks, 1, train, case, str(tmp_path / "0"), spent={2: last})
    assert differences(tail(again), tail(result)) == []
    with pytest.raises(SpentSampleError, match=f"sample {last[0]} of epoch 1"):
        on(two_ranks, 1, train, case, str(tmp_path / "1"), spent={1: last})
    assert len(Augmented()) == len({index for batch in result["seen"][:PER_EPOCH] for index in batch})


def test_the_truth_draws_noise_that_matters(two_ranks: Ranks, tmp_path: Path) -> None:
    (one,) = on(two_ranks, 1, train, Case(), str(tmp_path / "one"))
    other_seed = Case(options={"randomness": {"seed": 2}})
    (other,) = on(two_ranks, 1, train, other_seed, str(tmp_path / "other"))
    parts = {text.split(":")[0].split("/")[1] for text in differences(tail(other), tail(one))}
    assert {"seen", "logged", "weights", "engine", "metrics", "hooks", "torch", "python", "numpy"} <= parts
