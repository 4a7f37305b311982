"""What ranks have of a window and of logged means, shared out over another number: plain arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun.engine.window import Window, shared_out
from stratrun.hooks import Hook
from stratrun.loggers import RecordBuffer, merged
from tests.problems import CLASSES, FEATURES, perceptron, points, trained, weights
from tests.ranks import Ranks


def held(gradient: float | None, weight: float | None = None, dtype: Any = torch.float32) -> dict[str, Any]:
    gradients = {} if gradient is None else {"w": torch.tensor([gradient], dtype=dtype)}
    amount = None if weight is None else torch.tensor(weight)
    return {"batches": 2, "planned": 3, "weight": amount, "waiting": False, "gradients": gradients}


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_the_mean_over_the_new_ranks_is_that_over_the_old_ones(ranks: int) -> None:
    found = shared_out([held(1.0), held(3.0)], ranks)
    assert float(found["gradients"]["w"]) == 2.0  # on each of them, so their mean too
    assert (found["batches"], found["planned"], found["weight"]) == (2, 3, None)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_the_sums_of_a_weighted_window_stay_what_they_are(ranks: int) -> None:
    found = shared_out([held(1.0, 5.0), held(3.0, 7.0)], ranks)
    assert float(found["gradients"]["w"]) * ranks == pytest.approx(4.0)
    assert float(found["weight"]) * ranks == pytest.approx(12.0)


def test_a_rank_without_a_gradient_counts_as_zero_and_none_at_all_stays_none() -> None:
    assert float(shared_out([held(None), held(3.0)], 1)["gradients"]["w"]) == 1.5
    assert shared_out([held(None), held(None)], 1)["gradients"] == {}
    assert shared_out([{}, {}], 4) == {}


def test_gradients_of_sixteen_bits_are_added_up_in_more() -> None:
    parts = [held(60000.0, dtype=torch.float16) for _ in range(4)]  # their sum is beyond float16
    assert float(shared_out(parts, 1)["gradients"]["w"]) == 60000.0
    kept = shared_out(parts[:1], 1)["gradients"]["w"]
    assert kept.dtype is torch.float16 and torch.equal(kept, parts[0]["gradients"]["w"])


def test_a_window_that_turns_out_to_be_of_another_length_is_averaged_over_that() -> None:
    window = Window()
    assert window.grown(2) == 1.0
    window.add({"loss": torch.tensor(1.0)}, 2, 1.0)
    assert window.grown(2) == 1.0
    assert window.grown(3) == pytest.approx(2 / 3)


class Lengthened(Hook):
    """Ends the run within a window that then turns out to be longer."""

    priority = 100

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 4:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


def test_a_run_broken_off_in_its_last_short_window_and_made_longer_averages_over_all_of_it(
    tmp_path: Path,
) -> None:
    def go(folder: str, iters: int, **more: Any) -> dict[str, Tensor]:
        runner = trained(
            perceptron(),
            loss="cross_entropy",
            train_dataloader={"dataset": points(24), "batch_size": 4, "shuffle": False},
            train_cfg={"max_iters": iters, "by_epoch": False, "accumulate": 3},
            optimizer={"type": "SGD", "lr": 0.3},
            work_dir=str(tmp_path / folder),
            **more,
        )
        return weights(runner.model)

    truth = go("whole", 6)
    go("broken", 5, custom_hooks=[Lengthened()])  # iterations 4 and 5 are a window of two
    torch.testing.assert_close(go("broken", 6, resume=True), truth)


def test_means_are_those_of_all_ranks_after_their_sums_are_merged() -> None:
    buffers = [RecordBuffer(), RecordBuffer()]
    for length in (None, 2):
        for rank, buffer in enumerate(buffers):
            buffer.length = length
            for step in range(3):
                buffer.add({"loss": 10.0 * rank + step}, size=rank + 1)
    one = RecordBuffer()
    one.load_state_dict(merged([buffer.state_dict() for buffer in buffers]))
    one.length = 2
    # The last two steps: 1 and 2 with weight 1, 11 and 12 with weight 2.
    assert one.window() == {"loss": pytest.approx((1 + 2 + 2 * (11 + 12)) / 6)}
    assert one.epoch() == {"loss": pytest.approx((3 + 2 * 33) / 9)}


def test_a_value_that_counts_for_nothing_on_one_rank_does_not_spoil_the_mean() -> None:
    buffers = [RecordBuffer(), RecordBuffer()]
    for buffer, value, size in zip(buffers, (2.0, float("nan")), (4, 0), strict=True):
        buffer.length = 3
        buffer.add({"loss": value}, size=size)
    one = RecordBuffer()
    one.load_state_dict(merged([buffer.state_dict() for buffer in buffers]))
    one.length = 3
    assert one.window() == {"loss": 2.0}
    assert merged([]) == {"series": {}, "latest": {}}


class Counted(nn.Module):
    """Keeps a buffer that differs by rank, and a part that is frozen at first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)
        self.late = nn.Linear(FEATURES, CLASSES)
        self.late.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(FEATURES))

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen += batch[0].sum(0)
        return cross_entropy(self.net(batch[0]) + self.late(batch[0]), batch[1])


class Thaw(Hook):
    def before_train_epoch(self, runner: Any) -> None:
        runner.model.late.requires_grad_(runner.epoch > 0)


def thawed(work_dir: str) -> Tensor:
    runner = trained(
        Counted(),
        train_dataloader={"dataset": points(8), "global_batch_size": 4, "shuffle": False},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.1},
        strategy={"type": "ddp", "broadcast_buffers": False},
        custom_hooks=[Thaw()],
        work_dir=work_dir,
    )
    seen: Tensor = runner.model.seen  # type: ignore[assignment]
    return seen


def test_buffers_of_each_rank_outlive_a_part_that_is_thawed(two_ranks: Ranks, tmp_path: Path) -> None:
    inputs, _ = points(8).tensors
    for rank, seen in enumerate(two_ranks(thawed, str(tmp_path))):
        torch.testing.assert_close(seen, 2 * inputs[rank::2].sum(0))
