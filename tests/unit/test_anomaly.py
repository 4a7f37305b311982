"""`detect_anomaly`: the operation that a value that is no number came about by."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import NonFiniteError
from tests.problems import perceptron, points, trained
from tests.ranks import Ranks


class Rooted(nn.Module):
    """The derivative of its root is infinite where it is taken, and times 0 on the way back."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.net, self.at, self.calls = perceptron(), at, 0

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.calls += 1
        out = self.net(batch[0])
        zeros = out * (self.calls <= self.at)
        loss: Tensor = out.mean() + root(zeros).sum()
        return loss


def root(zeros: Tensor) -> Any:
    return zeros.abs().sqrt()


def run(model: nn.Module, **options: Any) -> Any:
    given: dict[str, Any] = {
        "train_dataloader": {"dataset": points(24), "batch_size": 4},
        "train_cfg": {"max_epochs": 1},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "dev_cfg": {"detect_anomaly": True},
        "randomness": {"seed": 1},
    }
    return trained(model, **{**given, **options})


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    yield
    assert not torch.is_anomaly_enabled()


@pytest.mark.parametrize("policy", ["raise", "skip", "ignore"])
def test_the_error_names_the_operation_and_the_line_that_called_it(policy: str) -> None:
    with pytest.raises(NonFiniteError, match=r"iteration 1: .*'AbsBackward0' returned nan") as caught:
        run(Rooted(), non_finite=policy)
    assert re.search(
        r"test_anomaly.py\", line \d+, in root\n    return zeros.abs\(\).sqrt\(\)", str(caught.value)
    )
    assert "detect_anomaly=True" in str(caught.value) and "Triggered internally" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_of_the_backward_pass_stay_and_say_where_the_operation_was_called() -> None:
    class Overwritten(Rooted):
        def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            out = self.net(batch[0]).exp()
            loss: Tensor = (out * out).sum()
            with torch.no_grad():
                out.zero_()
            return loss

    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        run(Overwritten())
    assert any("in train_step" in note for note in caught.value.__notes__)


def test_a_mode_that_the_user_has_on_is_on_afterwards() -> None:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        run(nn.Sequential(perceptron()), loss="cross_entropy")
        assert torch.is_anomaly_enabled() and not torch.is_anomaly_check_nan_enabled()


def test_weights_are_those_of_a_run_that_does_not_look() -> None:
    found = [
        run(perceptron(), loss="cross_entropy", dev_cfg={"detect_anomaly": on}).model.state_dict()
        for on in (True, False)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def on_ranks(work_dir: str) -> list[str]:
    told = []
    for strategy in ("ddp", "fsdp"):
        try:
            run(Rooted(), strategy=strategy, work_dir=work_dir)
        except NonFiniteError as error:
            told.append(str(error))
    return told


def test_the_operation_is_named_on_every_rank(two_ranks: Ranks, tmp_path: Path) -> None:
    for told in two_ranks(on_ranks, str(tmp_path)):
        assert ["'AbsBackward0' returned nan" in text for text in told] == [True, True]
