"""What `predict` returns: each sample once, in order, whatever the outputs are and on any number of ranks."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.data.rows import Predicted, take_apart
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.state import BatchInfo
from tests.ranks import Ranks


@dataclass
class Answer:
    """Outputs of a user's own class."""

    double: Tensor
    texts: list[str]


class Stream(IterableDataset[Tensor]):
    """Numbers, how many of them nobody says."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.tensor([float(number)]) for number in range(self.samples))


class Answers(nn.Module):
    """Answers in many ways, from which the number of the sample can be told."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.one.weight)
        self.kind = kind

    def predict_step(self, batch: Tensor) -> Any:
        values = self.one(batch)[:, 0]
        texts = [f"#{number:.0f}" for number in batch[:, 0].tolist()]
        return {
            "tensor": lambda: values,
            "array": lambda: {"v": values.detach().numpy()},
            "list": lambda: texts,
            "dict": lambda: {"v": values, "nested": {"t": texts}, "loss": values.sum()},
            "tuple": lambda: (values, texts),
            "dataclass": lambda: Answer(values * 2, texts),
        }[self.kind]()


def expected(kind: str, number: int) -> Any:
    text = f"#{number}"
    return {
        "tensor": number,
        "array": {"v": float(number)},
        "list": text,
        "dict": {"v": number, "nested": {"t": text}},
        "tuple": (number, text),
        "dataclass": {"double": 2 * number, "texts": text},
    }[kind]


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


KINDS = ("tensor", "array", "list", "dict", "tuple", "dataclass")
DATA = {
    "13 by 2": lambda: {"dataset": [torch.tensor([float(n)]) for n in range(13)], "batch_size": 2},
    "1 by 4": lambda: {"dataset": [torch.tensor([0.0])], "batch_size": 4},
    "stream of 7": lambda: {"dataset": Stream(7), "batch_size": 2},
    "stream of 1": lambda: {"dataset": Stream(1), "batch_size": 2},
}


def predicted(strategy: str) -> dict[tuple[str, str], Any]:
    """Predictions by kind of answer and of data."""
    found = {}
    cases = [(kind, "13 by 2") for kind in KINDS] + [("dict", data) for data in DATA]
    for kind, data in cases:
        runner = Runner(Answers(kind), predict_dataloader=DATA[data](), strategy=strategy, loggers=())
        found[kind, data] = [plain(one) for one in runner.predict()]
        runner.close()
    return found


def check(found: dict[tuple[str, str], Any]) -> None:
    for (kind, data), values in found.items():
        count = int(data.removeprefix("stream of ").split()[0])
        assert values == [expected(kind, number) for number in range(count)], (kind, data)


def test_one_process_returns_each_sample_in_order_whatever_the_outputs_are() -> None:
    check(predicted("single"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_return_what_one_process_does(strategy: str, two_ranks: Ranks) -> None:
    for found in two_ranks(predicted, strategy):
        check(found)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_ranks_of_which_some_have_no_sample_return_what_one_process_does(
    strategy: str, four_ranks: Ranks
) -> None:
    for found in four_ranks(predicted, strategy):
        check(found)


def test_a_row_is_not_sent_with_all_the_others_of_its_batch() -> None:
    """Pickled one by one, each row of a tensor brings the whole of it."""
    batch = BatchInfo(size=256, positions=range(256))
    sent = Predicted.of(batch, 0, torch.zeros(1024, 64)[::4])
    assert len(pickle.dumps(sent)) < 2 * 256 * 64 * 4
    assert len(sent.rows()) == 256


def test_what_a_model_writes_over_its_last_outputs_does_not_change_them() -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.zeros(2)

        def predict_step(self, batch: Tensor) -> Tensor:
            return self.out.copy_(batch[:, 0])

    data = {"dataset": [torch.tensor([float(n)]) for n in range(6)], "batch_size": 2}
    runner = Runner(Reusing(), predict_dataloader=data, loggers=())
    assert [int(value) for value in runner.predict()] == list(range(6))


class Seen(Hook):
    """What the hooks are given."""

    def __init__(self) -> None:
        self.batches = 0
        self.predictions: Any = None

    def after_predict_iter(self) -> None:
        self.batches += 1

    def after_predict(self, predictions: Any) -> None:
        self.predictions = predictions


def test_nothing_is_kept_where_nothing_is_to_be_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predicted, "of", None)
    seen = Seen()
    options: dict[str, Any] = {"predict_cfg": {"collect": False}, "custom_hooks": [seen], "loggers": ()}
    runner = Runner(Answers("tensor"), predict_dataloader=DATA["13 by 2"](), **options)
    assert runner.predict() == [] and seen.predictions == []
    assert seen.batches == 7


def test_collect_must_be_told_plainly(tmp_path: Path) -> None:
    runner = Runner(Answers("tensor"), predict_dataloader=DATA["1 by 4"](), predict_cfg={"collect": "no"})
    with pytest.raises(ConfigError, match=r"predict_cfg: PredictLoop: collect='no' is a string; write true"):
        runner.predict()


@pytest.mark.parametrize(
    "outputs", [torch.zeros(()), torch.zeros(3), (torch.zeros(2), 1.0), [1], "text", None]
)
def test_what_has_no_row_for_each_sample_is_one_entry(outputs: Any) -> None:
    assert take_apart(outputs, 2) is None
    rows = Predicted.of(BatchInfo(size=2, positions=[4, 6]), 1, outputs).rows()
    assert [place for place, _ in rows] == [4]
