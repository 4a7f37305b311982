"""Loss scaling in 16-mixed: an update whose gradients overflow is dropped and counted, on every rank.

A sample that overflows makes the loss infinite too. Torch's scaler, to which runs are compared here, does not
look at that: neither do these runs.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

from stratrun.loggers import Logger, Record
from tests.problems import CLASSES, FEATURES, perceptron, points, trained, weights
from tests.ranks import Ranks

BATCH, SAMPLES, EPOCHS = 4, 24, 2
TOO_LARGE = 1e6  # beyond float16
OPTIMIZER = {"type": "SGD", "lr": 0.1}


def spoiled(at: int | None) -> TensorDataset:
    """Points, one of which overflows in float16."""
    inputs, targets = points(SAMPLES).tensors
    if at is not None:
        inputs[at] = TOO_LARGE
    return TensorDataset(inputs, targets)


def plain(at: int | None, accumulate: int, init_scale: float) -> tuple[dict[str, Tensor], int]:
    """Weights, and how many updates were dropped."""
    model, (inputs, targets) = perceptron(), spoiled(at).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=OPTIMIZER["lr"])  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    skipped = 0
    for _ in range(EPOCHS):
        for start in range(0, SAMPLES, BATCH * accumulate):
            for first in range(start, start + BATCH * accumulate, BATCH):
                part = slice(first, first + BATCH)
                with torch.autocast("cpu", torch.float16):
                    loss = cross_entropy(model(inputs[part]), targets[part])
                scaler.scale(loss / accumulate).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
            optimizer.zero_grad()
    return weights(model), skipped


def with_runner(
    at: int | None, accumulate: int, init_scale: float, work_dir: str
) -> tuple[dict[str, Tensor], tuple[int, int, int]]:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": spoiled(at), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": EPOCHS, "accumulate": accumulate},
        optimizer=OPTIMIZER,
        precision={"type": "16-mixed", "init_scale": init_scale},
        non_finite="ignore",
        work_dir=work_dir,
    )
    state = runner.state
    return weights(runner.model), (state.iter, state.step, state.skipped)


def test_a_scale_that_is_far_too_large_costs_updates_and_ends_at_the_weights_of_a_plain_loop(
    tmp_path: Any,
) -> None:
    truth, skipped = plain(None, 1, 2.0**22)
    found, counts = with_runner(None, 1, 2.0**22, str(tmp_path))
    torch.testing.assert_close(found, truth, rtol=0, atol=0)
    assert 1 <= skipped < 12
    assert counts == (12, 12 - skipped, skipped)


def test_a_sample_that_overflows_drops_the_update_of_its_window_alone(tmp_path: Any) -> None:
    truth, skipped = plain(9, 3, 256.0)
    found, counts = with_runner(9, 3, 256.0, str(tmp_path))
    torch.testing.assert_close(found, truth, rtol=0, atol=0)
    assert skipped == EPOCHS
    assert counts == (12, 4 - EPOCHS, EPOCHS)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_an_overflow_on_one_rank_drops_the_update_on_both(two_ranks: Ranks, tmp_path: Any) -> None:
    # Sample 9 is the second of its batch, so it lies on the second rank alone.
    first, second = two_ranks(with_runner, 9, 3, 256.0, str(tmp_path))
    assert first[1] == second[1] == (12, 4 - EPOCHS, EPOCHS)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    torch.testing.assert_close(first[0], plain(9, 3, 256.0)[0], rtol=1e-2, atol=1e-3)
    assert not torch.equal(first[0]["0.weight"], weights(perceptron())["0.weight"])


class Norms(Logger):
    """Keeps the norms that are logged."""

    def __init__(self) -> None:
        self.windows: list[float] = []
        self.epochs: list[float] = []

    def log(self, record: Record) -> None:
        self.windows += [v for name, v in record.values.items() if name == "grad_norm"]
        self.epochs += [v for name, v in record.values.items() if name == "grad_norm_epoch"]


def test_the_norm_of_a_dropped_update_is_in_no_mean(tmp_path: Any) -> None:
    logged, seen, model = Norms(), [], perceptron()

    def note(*_: Any) -> None:
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())

    handle = register_optimizer_step_pre_hook(note)
    try:
        trained(
            model,
            loss="cross_entropy",
            train_dataloader={"dataset": spoiled(9), "global_batch_size": BATCH, "shuffle": False},
            train_cfg={"max_epochs": EPOCHS, "accumulate": 3},
            optimizer=OPTIMIZER,
            precision={"type": "16-mixed", "init_scale": 256.0},
            non_finite="ignore",
            clip_grad=1e9,
            loggers=[logged],
            default_hooks={"logger": {"interval": 6}},
            work_dir=str(tmp_path),
        )
    finally:
        handle.remove()
    assert len(seen) == EPOCHS
    assert logged.epochs == logged.windows == pytest.approx([float(norm) for norm in seen])


def test_schedules_move_by_epochs_without_a_warning_where_all_updates_were_dropped(tmp_path: Any) -> None:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": spoiled(0), "global_batch_size": SAMPLES, "shuffle": False},
        train_cfg={"max_epochs": EPOCHS},
        optimizer=OPTIMIZER,
        param_scheduler={"type": "ExponentialLR", "gamma": 0.5},
        precision="16-mixed",
        non_finite="ignore",
        work_dir=str(tmp_path),
    )
    assert (runner.step, runner.state.skipped) == (0, EPOCHS)
    assert runner.engine.optimizers["optimizer"].param_groups[0]["lr"] == 0.1 * 0.5**EPOCHS


class TakingTurns(nn.Module):
    """Two heads, of which each batch trains one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.other = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
        self.batches = 0

    def train_step(self, batch: list[Tensor]) -> Tensor:
        head = self.other if self.batches % 2 else self.one
        self.batches += 1
        return cross_entropy(head(batch[0]), batch[1])


def in_turns(precision: str, work_dir: str) -> tuple[dict[str, Tensor], int]:
    runner = trained(
        TakingTurns(),
        train_dataloader={"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": EPOCHS},
        optimizer={part: {**OPTIMIZER, "params": part} for part in ("one", "other")},
        precision=precision,
        clip_grad=0.1,
        work_dir=work_dir,
    )
    return weights(runner.model), runner.step


def test_an_optimizer_whose_part_a_batch_does_not_reach_waits_for_its_turn(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    truth, steps = in_turns("32-true", str(tmp_path / "full"))
    alone = in_turns("16-mixed", str(tmp_path / "scaled"))
    for found, counted in [alone, *two_ranks(in_turns, "16-mixed", str(tmp_path / "ranks"))]:
        assert counted == steps == 12
        torch.testing.assert_close(found, truth, rtol=1e-2, atol=5e-3)
