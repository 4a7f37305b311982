"""Weights after training against those of plain loops, which are written out here.

What the truth is under ddp: in float32 it is one process that takes the whole global batch. In lower
precision that process rounds sums that ddp never forms, so the truth is one process that computes the share
of each rank by itself, in the format of the run, and averages the gradients of the shares.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from tests.problems import perceptron, points, trained, weights
from tests.ranks import Ranks

BATCH = 3
EPOCHS = 2
RATE = 0.5
CLIPS: dict[str, Any] = {"unclipped": None, "norm": {"max_norm": 0.05}, "value": {"value": 0.01}}


def windows(samples: int, batch: int, accumulate: int) -> list[list[slice]]:
    """Batches in the order of the data set, `accumulate` to an update, the last ones short."""
    batches = [slice(start, min(start + batch, samples)) for start in range(0, samples, batch)]
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


def clip(model: nn.Module, limits: dict[str, float] | None) -> None:
    if limits and "max_norm" in limits:
        nn.utils.clip_grad_norm_(model.parameters(), limits["max_norm"])
    if limits and "value" in limits:
        nn.utils.clip_grad_value_(model.parameters(), limits["value"])


def plain(
    samples: int, batch: int, accumulate: int, limits: Any = None, precision: str = "32-true"
) -> dict[str, Tensor]:
    """One process."""
    model, (inputs, targets) = perceptron(), points(samples).tensors
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision)
    if dtype is not None:
        model, inputs = model.to(dtype), inputs.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for _ in range(EPOCHS):
        for window in windows(samples, batch, accumulate):
            for part in window:
                with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
                    loss = cross_entropy(model(inputs[part]), targets[part])
                (loss / len(window)).backward()
            clip(model, limits)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def plain_shares(
    samples: int, batch: int, accumulate: int, limits: Any = None, ranks: int = 2
) -> dict[str, Tensor]:
    """One process that does the work of each rank in turn, under autocast to bfloat16."""
    model, (inputs, targets) = perceptron(), points(samples).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for _ in range(EPOCHS):
        for window in windows(samples, batch * ranks, accumulate):
            means = [torch.zeros_like(p) for p in model.parameters()]
            for rank in range(ranks):
                model.zero_grad()
                for part in window:
                    x, y = inputs[part][rank::ranks], targets[part][rank::ranks]
                    if len(x):
                        with torch.autocast("cpu", torch.bfloat16):
                            loss = cross_entropy(model(x), y)
                        (loss / len(window) * (len(x) * ranks / len(inputs[part]))).backward()
                for mean, p in zip(means, model.parameters(), strict=True):
                    if p.grad is not None:
                        mean += p.grad / ranks
            for mean, p in zip(means, model.parameters(), strict=True):
                p.grad = mean
            clip(model, limits)
            optimizer.step()
    return weights(model)


def with_runner(samples: int, accumulate: int, limits: Any, precision: Any, work_dir: str) -> dict[str, Any]:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(samples), "batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": EPOCHS, "accumulate": accumulate},
        optimizer={"type": "SGD", "lr": RATE, "momentum": 0.9},
        clip_grad=limits,
        precision=precision,
        work_dir=work_dir,
    )
    counts = runner.state
    return {
        "weights": weights(runner.model),
        "counts": (counts.iter, counts.step, counts.samples, counts.skipped),
    }


def assert_same(
    found: dict[str, Tensor], truth: dict[str, Tensor], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    torch.testing.assert_close(found, truth, rtol=rtol, atol=atol)


# 22 samples: the last window is short, and so is its last batch.
@pytest.mark.parametrize("limits", CLIPS)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_process_reaches_the_weights_of_a_plain_loop(
    precision: str, accumulate: int, limits: str, tmp_path: Any
) -> None:
    found = with_runner(22, accumulate, CLIPS[limits], precision, str(tmp_path))
    assert_same(found["weights"], plain(22, BATCH, accumulate, CLIPS[limits], precision))
    updates = EPOCHS * len(windows(22, BATCH, accumulate))
    assert found["counts"] == (EPOCHS * 8, updates, EPOCHS * 22, 0)


# The last global batch of 6 has 5 samples, which do not divide over the ranks, or 1, which leaves one none.
@pytest.mark.parametrize("samples", [23, 19])
@pytest.mark.parametrize("limits", CLIPS)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_ranks_reach_the_weights_of_one_plain_loop(
    precision: str, accumulate: int, limits: str, samples: int, two_ranks: Ranks, tmp_path: Any
) -> None:
    first, second = two_ranks(with_runner, samples, accumulate, CLIPS[limits], precision, str(tmp_path))
    if precision == "32-true":
        truth = plain(samples, BATCH * 2, accumulate, CLIPS[limits])
    else:
        truth = plain_shares(samples, BATCH, accumulate, CLIPS[limits])
    assert_same(first["weights"], truth)
    assert_same(second["weights"], first["weights"], rtol=0, atol=0)
    updates = EPOCHS * len(windows(samples, BATCH * 2, accumulate))
    assert first["counts"] == second["counts"] == (EPOCHS * 4, updates, EPOCHS * samples, 0)


@pytest.mark.parametrize("samples", [24, 22])
def test_two_ranks_reach_the_weights_of_one_plain_loop_where_the_last_batch_divides(
    samples: int, two_ranks: Ranks, tmp_path: Any
) -> None:
    for rank in two_ranks(with_runner, samples, 3, CLIPS["norm"], "32-true", str(tmp_path)):
        assert_same(rank["weights"], plain(samples, BATCH * 2, 3, CLIPS["norm"]))


def test_four_ranks_two_of_them_without_a_sample_in_the_last_batch_reach_the_weights_of_one(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    for rank in four_ranks(with_runner, 26, 2, CLIPS["norm"], "32-true", str(tmp_path)):
        assert_same(rank["weights"], plain(26, BATCH * 4, 2, CLIPS["norm"]))


def test_the_limits_of_clipping_are_low_enough_to_be_noticed() -> None:
    free = plain(22, BATCH, 3)
    for name in ("norm", "value"):
        moved = plain(22, BATCH, 3, CLIPS[name])
        assert max(float((moved[key] - free[key]).abs().max()) for key in free) > 0.05, name


def test_in_double_precision_one_process_and_two_ranks_agree_to_twelve_digits(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    tight = {"rtol": 1e-12, "atol": 1e-13}
    found = with_runner(22, 3, CLIPS["norm"], "64-true", str(tmp_path))
    assert found["weights"]["0.weight"].dtype is torch.float64
    assert_same(found["weights"], plain(22, BATCH, 3, CLIPS["norm"], "64-true"), **tight)
    spread = two_ranks(with_runner, 23, 3, CLIPS["norm"], "64-true", str(tmp_path))
    assert_same(spread[1]["weights"], plain(23, BATCH * 2, 3, CLIPS["norm"], "64-true"), **tight)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_true_sixteen_bit_format_reaches_the_weights_of_a_plain_loop_in_it(
    precision: str, tmp_path: Any
) -> None:
    found = with_runner(22, 3, CLIPS["norm"], precision, str(tmp_path))
    truth = plain(22, BATCH, 3, CLIPS["norm"], precision)
    assert {value.dtype for value in found["weights"].values()} == {truth["0.weight"].dtype}
    assert_same(found["weights"], truth, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_true_sixteen_bit_format_runs_on_two_ranks_with_equal_weights(
    precision: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    first, second = two_ranks(with_runner, 23, 3, None, precision, str(tmp_path))
    assert_same(first["weights"], second["weights"], rtol=0, atol=0)
    assert_same(first["weights"], plain(23, BATCH * 2, 3, None, precision), rtol=0.1, atol=0.1)


def test_a_shuffled_epoch_is_the_same_one_on_two_ranks(two_ranks: Ranks, tmp_path: Any) -> None:
    alone = shuffled(str(tmp_path))
    for spread in two_ranks(shuffled, str(tmp_path)):
        assert_same(spread, alone)
    assert not torch.allclose(alone["0.weight"], shuffled(str(tmp_path), seed=4)["0.weight"], atol=1e-3)


def shuffled(work_dir: str, seed: int = 3) -> dict[str, Tensor]:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(23), "global_batch_size": 6},
        train_cfg={"max_epochs": EPOCHS, "accumulate": 3},
        optimizer={"type": "SGD", "lr": RATE},
        randomness={"seed": seed},
        work_dir=work_dir,
    )
    return weights(runner.model)


# Optimizers ----------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "SGD": {"lr": 0.3, "nesterov": True, "momentum": 0.9},
}


def plain_by(kind: str, batch: int) -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(23).tensors
    optimizer = getattr(torch.optim, kind)(model.parameters(), **KINDS[kind])
    for window in windows(23, batch, 2):
        for part in window:
            (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def with_optimizer(optimizer: Any, work_dir: str) -> dict[str, Tensor]:
    runner = trained(
        perceptron(),
        loss=nn.CrossEntropyLoss(),
        train_dataloader={"dataset": points(23), "batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": 1, "accumulate": 2},
        optimizer=optimizer,
        work_dir=work_dir,
    )
    return weights(runner.model)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_reaches_the_weights_of_a_plain_loop(
    kind: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    spec = {"type": kind, **KINDS[kind]}
    # Those that divide by the size of a gradient make much of the rounding of a small one.
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    assert_same(with_optimizer(spec, str(tmp_path)), plain_by(kind, BATCH), **tolerance)
    for spread in two_ranks(with_optimizer, spec, str(tmp_path)):
        assert_same(spread, plain_by(kind, BATCH * 2), **tolerance)


def plain_by_two(batch: int) -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(23).tensors
    assert isinstance(model, nn.Sequential)
    lower = torch.optim.SGD(model[0].parameters(), lr=0.3)
    upper = torch.optim.AdamW(model[2].parameters(), lr=0.01)
    for window in windows(23, batch, 2):
        for part in window:
            (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
        for optimizer in (lower, upper):
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def test_an_optimizer_for_each_part_of_the_model_reaches_the_weights_of_a_plain_loop(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    spec = {
        "lower": {"type": "SGD", "lr": 0.3, "params": "0"},
        "upper": {"type": "AdamW", "lr": 0.01, "params": "2"},
    }
    assert_same(with_optimizer(spec, str(tmp_path)), plain_by_two(BATCH))
    for spread in two_ranks(with_optimizer, spec, str(tmp_path)):
        assert_same(spread, plain_by_two(BATCH * 2), rtol=1e-4, atol=1e-5)


def test_a_ready_optimizer_and_a_schedule_by_updates_reach_the_weights_of_a_plain_loop(tmp_path: Any) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    runner = Runner(
        model,
        loss="cross_entropy",
        train_dataloader={"dataset": points(22), "batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": EPOCHS, "accumulate": 3},
        optimizer=optimizer,
        param_scheduler={"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False},
        loggers=(),
        work_dir=str(tmp_path),
    )
    runner.train()
    twin, (inputs, targets) = perceptron(), points(22).tensors
    theirs = torch.optim.SGD(twin.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.5)
    for _ in range(EPOCHS):
        for window in windows(22, BATCH, 3):
            for part in window:
                (cross_entropy(twin(inputs[part]), targets[part]) / len(window)).backward()
            theirs.step()
            theirs.zero_grad()
            schedule.step()
    assert_same(weights(model), weights(twin))
    assert optimizer.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
