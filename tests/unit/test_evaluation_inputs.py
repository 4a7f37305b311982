"""Where predictions and targets are found, and what is said when they are not."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stratrun.errors import MetricError
from stratrun.evaluation import Evaluator, Metric

P, T, X = torch.zeros(2, 3), torch.ones(2), torch.full((2, 5), 2.0)
Pair = namedtuple("Pair", "logits aux")


@dataclass
class Output:
    """As model libraries return it."""

    loss: Tensor
    logits: Tensor


class Spy(Metric):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        self.add_state("calls", [])
        self.calls: list[Any] = []

    def update(self, preds: Any, target: Any) -> None:
        self.calls.append((preds, target))

    def compute(self) -> float:
        return len(self.calls)


def seen(outputs: Any, batch: Any, **names: Any) -> Any:
    evaluator = Evaluator(spy := Spy(), **names)
    evaluator.process(batch, outputs)
    return spy.calls[-1]


@pytest.mark.parametrize(
    ("outputs", "batch", "names"),
    [
        (P, (X, T), {}),
        (P, [X, T], {}),
        ((P, T), X, {}),
        ((P, T), (X, X), {}),
        ({"preds": P, "target": T}, None, {}),
        ({"logits": P, "loss": X}, (X, T), {}),
        ({"logits": P, "scores": X}, {"x": X, "labels": T}, {}),
        ({"pred": P, "targets": T}, {"target": X}, {}),
        ({"predictions": P, "label": T}, (X, X), {}),
        (Output(X, P), {"input_ids": X, "labels": T}, {}),
        (Pair(P, T), (X, X), {"preds": "logits", "target": 1}),
        ({"a": P, "b": X}, {"c": T}, {"preds": "a", "target": "c"}),
        ({"preds": X}, {"mask": P, "target": T}, {"preds": "mask"}),
        ((X, T, P), None, {"preds": -1, "target": 1}),
        (P, (X, X, T), {"target": 2}),
    ],
)
def test_arguments_are_found_where_they_usually_are_or_where_told(
    outputs: Any, batch: Any, names: dict[str, Any]
) -> None:
    preds, target = seen(outputs, batch, **names)
    assert preds is P
    assert target is T


def test_each_metric_may_be_told_names_of_its_own() -> None:
    class Sums(Metric):
        """Of what it was given."""

        def __init__(self) -> None:
            self.add_state("sums", torch.zeros(2))

        def update(self, preds: Tensor, target: Tensor) -> None:
            self.sums: Tensor = self.sums + torch.stack([preds.sum(), target.sum()])

        def compute(self) -> dict[str, Tensor]:
            return {"preds": self.sums[0], "target": self.sums[1]}

    own = {"type": Sums, "preds": "b", "target": "d", "prefix": "own"}
    evaluator = Evaluator([Sums(), own], preds="a", target="c")
    values = {name: torch.tensor([float(i)]) for i, name in enumerate("abcd")}
    evaluator.process(None, values)
    assert evaluator.evaluate() == {"preds": 0, "target": 2, "own/preds": 1, "own/target": 3}


def test_lists_of_texts_and_of_boxes_are_predictions_as_a_whole() -> None:
    texts, boxes = ["a", "b"], [{"boxes": P}, {"boxes": P}]
    assert seen(texts, (X, ["c", "d"])) == (texts, ["c", "d"])
    assert seen(boxes, (X, boxes)) == (boxes, boxes)
    assert seen((texts, ["c", "d"]), None) == (texts, ["c", "d"])


class Named(Metric):
    """Has words of its own for its arguments, and a third one."""

    def __init__(self) -> None:
        self.add_state("seen", [])
        self.seen: list[Any] = []

    def update(self, density: Any, truth: Any, mask: Any, *, scale: Any, extra: Any = None) -> None:
        self.seen.append((density, truth, mask, scale, extra))

    def compute(self) -> float:
        return 0.0


def test_further_arguments_are_found_by_their_names() -> None:
    evaluator = Evaluator(metric := Named())
    evaluator.process({"truth": 2, "mask": 3, "extra": 9}, {"density": 1, "preds": 8, "scale": 4})
    assert metric.seen == [(1, 2, 3, 4, None)]


class Own(Metric):
    """Picks its argument itself."""

    def __init__(self) -> None:
        self.add_state("total", 0)
        self.total: int = 0

    def arguments(self, outputs: Any, batch: Any, size: int) -> tuple[Any, ...]:
        return outputs["deep"]["values"], size

    def update(self, values: list[int], size: int) -> None:
        self.total += sum(values) * size

    def compute(self) -> float:
        return self.total


def test_a_metric_may_pick_its_arguments_itself() -> None:
    evaluator = Evaluator(Own())
    evaluator.process(X, {"deep": {"values": [3, 4]}})
    assert evaluator.evaluate() == {"own": 14.0}


def test_the_way_is_found_once_and_again_when_batches_change_their_structure() -> None:
    evaluator = Evaluator(spy := Spy())
    for outputs, batch in ((P, (X, T)), ({"preds": P}, {"target": T}), ((P, T), None)):
        evaluator.process(batch, outputs)
    assert all(preds is P and target is T for preds, target in spy.calls)
    evaluator.evaluate()
    evaluator.process({"target": T}, P)
    assert spy.calls == [(P, T)]


class Watched(dict[str, Any]):
    """Counts look-ups."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        type(self).looks += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        type(self).looks += 1
        return super().get(key, default)


def test_a_batch_after_the_first_costs_one_look_up_for_each_argument() -> None:
    evaluator = Evaluator(Spy())
    evaluator.process((X, T), Watched(scores=P, target=T))
    Watched.looks = 0
    for _ in range(10):
        evaluator.process((X, T), Watched(scores=P, target=T))
    assert Watched.looks == 20


@pytest.mark.parametrize(
    ("outputs", "batch", "names", "said"),
    [
        (
            {"out": P, "loss": X},
            (X, T),
            {},
            "Spy: no preds found; the model returned {'out': float32[2, 3], 'loss': float32[2, 5]} for a "
            "batch (float32[2, 5], float32[2]). Name what to take: Evaluator(metric, preds='key')",
        ),
        (P, {"image": X}, {}, "Spy: no target found; the model returned float32[2, 3] for a batch {'image'"),
        (P, (X, T), {"target": 5}, "Spy: target=5, which is neither in the outputs nor in the batch"),
        ({"logits": P}, (X, T), {"preds": "logit"}, "preds='logit', which is neither"),
        ({"logits": P}, (X, T), {"preds": "logit"}, "did you mean 'logits'?"),
        (None, (X, T), {}, "the model returned NoneType"),
        (Output(X, P), X, {}, "the model returned Output(loss=float32[2, 5], logits=float32[2, 3])"),
        ([[[[1]]]] * 5, X, {}, "[[[...]], [[...]], [[...]], ... 2 more]"),
    ],
)
def test_what_is_not_found_is_shown_with_what_there_is(
    outputs: Any, batch: Any, names: dict[str, Any], said: str
) -> None:
    with pytest.raises(MetricError) as caught:
        seen(outputs, batch, **names)
    assert said in str(caught.value)


def test_a_third_argument_that_is_missing_is_named() -> None:
    with pytest.raises(MetricError, match=r"Named: needs 'scale', which is neither"):
        Evaluator(Named()).process({"truth": 2, "mask": 3}, {"density": 1})
