"""Where ranks, or several optimizers, must come to one decision."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import ConfigError, DataError, EpochBasedTrainLoop, Runner
from tests.end_to_end.runs import run
from tests.problems import QUIET, perceptron, points
from tests.ranks import Ranks


def uneven(work_dir: str) -> str:
    batch = next(iter(torch.utils.data.DataLoader(points(4), batch_size=4)))
    batches = [batch] * (2 + int(os.environ["RANK"]))
    try:
        run(perceptron(), work_dir, loss="cross_entropy", train_dataloader=batches)
    except DataError as error:
        return str(error)
    return "trained"


def test_ready_batches_that_are_more_on_one_rank_are_refused_on_all(two_ranks: Ranks, tmp_path: Any) -> None:
    told = two_ranks(uneven, str(tmp_path))
    assert told[0] == told[1]
    assert "different numbers of batches on the ranks (rank 0: 2, rank 1: 3)" in told[0]


class Halves(nn.Module):
    """Two parameters, of which the gradient of the first overflows in float16 at the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.calls = 0

    def both_step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        first, second = self.first(batch).float().mean(), self.second(batch).float().mean()
        if self.calls == 2:
            first.register_hook(lambda gradient: gradient * float("inf"))
        return first, second


class Together(EpochBasedTrainLoop):
    """Both losses go back before either optimizer steps."""

    def run_iter(self, idx: int, data_batch: Tensor) -> dict[str, Tensor]:
        engine = self.runner.engine
        first, second = engine.forward(data_batch, "both")
        engine.backward(first)
        engine.backward(second)
        engine.step("first")
        engine.step("second")
        return {}


def test_an_overflow_of_one_optimizer_leaves_the_gradients_of_the_next_at_their_scale(tmp_path: Any) -> None:
    model = Halves()
    before = model.second.weight.detach().clone()
    sgd = {"type": "SGD", "lr": 0.125}
    runner = Runner(
        model,
        train_dataloader=[torch.ones(2, 1)] * 3,
        train_cfg={"type": Together, "max_epochs": 1},
        optimizer={"first": {**sgd, "params": "first"}, "second": {**sgd, "params": "second"}},
        precision={"type": "16-mixed", "init_scale": 8.0},
        work_dir=str(tmp_path),
        **QUIET,
    )
    runner.train()
    # The gradient is 1, three times.
    torch.testing.assert_close(model.second.weight.detach(), before - 3 * 0.125)
    assert runner.state.skipped == 1


def test_a_setting_that_deterministic_mode_rules_out_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"cudnn_benchmark=True .* leave one of them out"):
        run(
            perceptron(),
            str(tmp_path),
            env_cfg={"cudnn_benchmark": True},
            randomness={"deterministic": True},
        )
