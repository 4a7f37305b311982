"""The built-in metrics and their base class, one at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation import Accuracy, BaseMetric, Evaluator, MeanMetric, Metric

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 2, 1, 1])


def accuracy(preds: Tensor, target: Tensor, **options: Any) -> dict[str, float]:
    metric = Accuracy(**options)
    metric.update(preds, target)
    return metric.compute()


@pytest.mark.parametrize(
    ("topk", "expected"),
    [
        (1, {"accuracy": 0.25}),
        (2, {"accuracy_top2": 0.75}),
        ((1, 2, 3), {"accuracy": 0.25, "accuracy_top2": 0.75, "accuracy_top3": 1.0}),
    ],
)
def test_accuracy_counts_targets_among_the_first_k(topk: Any, expected: dict[str, float]) -> None:
    assert accuracy(LOGITS, LABELS, topk=topk) == expected


def test_accuracy_takes_classes_as_predictions() -> None:
    assert accuracy(torch.tensor([0, 2, 2, 0]), LABELS) == {"accuracy": 0.5}


def test_accuracy_counts_each_place_of_an_image_or_text() -> None:
    images = LOGITS.T.reshape(1, 3, 2, 2)
    assert accuracy(images, LABELS.reshape(1, 2, 2)) == {"accuracy": 0.25}
    texts = LOGITS.reshape(1, 4, 3)
    assert accuracy(texts, LABELS.reshape(1, 4), class_dim=-1) == {"accuracy": 0.25}
    both = accuracy(texts, LABELS.reshape(1, 4), class_dim=-1, topk=(1, 2))
    assert both == {"accuracy": 0.25, "accuracy_top2": 0.75}


def test_accuracy_leaves_padding_out() -> None:
    padded = torch.tensor([0, -100, 2, -100])
    assert accuracy(LOGITS, padded, ignore_index=-100) == {"accuracy": 1.0}
    assert accuracy(LOGITS, LABELS, ignore_index=0) == {"accuracy": 0.0}
    with pytest.raises(MetricError, match="every one of them is ignore_index=-100"):
        accuracy(LOGITS, torch.full((4,), -100), ignore_index=-100)


@pytest.mark.parametrize(
    ("preds", "target", "said"),
    [
        (torch.rand(4), LABELS, "give .scores > threshold..long"),
        (torch.rand(2, 4, 3), torch.zeros(2, 4, dtype=torch.long), "pass class_dim=-1"),
        (torch.rand(4, 3), torch.zeros(5, dtype=torch.long), r"predictions \(4, 3\) float32"),
        (torch.tensor(0.5), LABELS, "one dimension more"),
    ],
)
def test_accuracy_says_which_shapes_it_cannot_compare(preds: Tensor, target: Tensor, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        accuracy(preds, target)


def test_accuracy_refuses_more_answers_than_classes() -> None:
    with pytest.raises(MetricError, match="needs at least 5 classes, the predictions have 3"):
        accuracy(LOGITS, LABELS, topk=5)


@pytest.mark.parametrize("topk", [0, (), (1, -2), ("1",)])
def test_accuracy_refuses_a_k_that_is_no_count(topk: Any) -> None:
    with pytest.raises(ConfigError, match="topk"):
        Accuracy(topk)


def mean(*outputs: Any, key: str = "loss", size: int = 2) -> float:
    evaluator = Evaluator(MeanMetric(key))
    for one in outputs:
        evaluator.process(torch.zeros(size, 1), one)
    return evaluator.evaluate()[key]


def test_a_mean_weighs_a_batch_by_its_samples() -> None:
    evaluator = Evaluator(MeanMetric())
    evaluator.process(torch.zeros(3, 1), {"loss": torch.tensor(1.0)})
    evaluator.process(torch.zeros(1, 1), {"loss": torch.tensor(5.0)})
    assert evaluator.evaluate() == {"loss": 2.0}


def test_a_mean_takes_values_by_sample_numbers_and_bare_tensors() -> None:
    assert mean({"loss": torch.tensor([1.0, 2.0])}, {"loss": 4.5}) == 3.0
    assert mean(torch.tensor(1.5)) == 1.5
    assert mean({"score": torch.tensor([[1.0], [2.0]])}, key="score") == 1.5


@pytest.mark.parametrize("weight", [30, torch.tensor(30), torch.tensor([10.0, 20.0])])
def test_a_mean_prefers_the_weight_that_the_model_returns(weight: Any) -> None:
    batches = [{"loss": torch.tensor(1.0), "weight": weight}, {"loss": torch.tensor(5.0), "weight": 10}]
    assert mean(*batches) == 2.0


def test_a_mean_pairs_values_and_weights_of_samples() -> None:
    assert mean({"loss": torch.tensor([1.0, 5.0]), "weight": torch.tensor([3, 1])}) == 2.0


def test_a_mean_of_many_small_numbers_does_not_drift() -> None:
    metric = MeanMetric()
    for _ in range(20_000):
        metric.update(torch.tensor(1 / 3), 7, 7)
    assert metric.compute()["loss"] == pytest.approx(float(torch.tensor(1 / 3)), rel=1e-12)


def test_a_mean_says_what_there_is_instead_of_its_key() -> None:
    with pytest.raises(MetricError, match=r"MeanMetric\(key='loss'\).*\{'logits': float32\[2, 3\]\}"):
        mean({"logits": torch.zeros(2, 3)})
    with pytest.raises(MetricError, match=r"shape \(3,\) for 2 samples"):
        mean({"loss": torch.zeros(3)})
    with pytest.raises(MetricError, match="no telling how many samples"):
        Evaluator(MeanMetric()).process({}, {"loss": torch.tensor(1.0)})


class Forgetful(Metric):
    """Calls no __init__ of ours."""

    def __init__(self) -> None:
        self.add_state("total", torch.zeros(2))
        self.add_state("seen", [])

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total: Tensor = self.total
        self.total += preds.sum()
        self.seen: list[Tensor] = [*self.seen, target]

    def compute(self) -> dict[str, float]:
        return {"sum": float(self.total[0]), "batches": len(self.seen)}


def test_a_reset_gives_each_state_its_default_again() -> None:
    metric = Forgetful()
    for _ in range(2):
        metric.update(torch.ones(3), torch.ones(1))
        assert metric.compute() == {"sum": 3.0, "batches": 1}
        metric.reset()
    assert metric.compute() == {"sum": 0.0, "batches": 0}


def test_states_move_to_a_device_with_their_defaults() -> None:
    metric = Forgetful()
    metric.update(torch.ones(3), torch.ones(1))
    metric.to(torch.device("meta"))
    assert metric.total.device.type == metric.seen[0].device.type == "meta"
    metric.reset()
    assert metric.total.device.type == "meta"


@pytest.mark.parametrize(
    ("default", "reduce"),
    [([], "sum"), ([1], None), (torch.zeros(1), "cat"), (0, "cat"), (0.0, "mean")],
)
def test_a_state_that_cannot_be_combined_is_refused(default: Any, reduce: Any) -> None:
    with pytest.raises(ConfigError, match=r"Forgetful.add_state\('more'.*an empty list goes with 'cat'"):
        Forgetful().add_state("more", default, reduce)


class Counted(BaseMetric):
    """Collects as MMEngine's metrics do, without calling __init__."""

    default_prefix = "mm"

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            self.results.append({"value": sample * self.step})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        return {"mean": float(torch.stack([result["value"] for result in results]).mean())}


def test_results_of_a_base_metric_are_collected_and_forgotten() -> None:
    evaluator = Evaluator(metric := Counted(step=2))
    for values in ([1.0, 3.0], [7.0]):
        evaluator.process(None, torch.tensor(values))
        assert evaluator.evaluate() == {"mm/mean": 2 * sum(values) / len(values)}
        assert metric.results == []


def test_a_prefix_given_takes_the_place_of_the_default() -> None:
    evaluator = Evaluator({"type": Counted, "prefix": "own"})
    evaluator.process(None, torch.tensor([1.0]))
    assert evaluator.evaluate() == {"own/mean": 1.0}


def test_a_base_metric_takes_a_prefix_like_every_metric() -> None:
    class Plain(BaseMetric):
        """Leaves the constructor as it is."""

        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results.append(1)

        def compute_metrics(self, results: list[int]) -> dict[str, Any]:
            return {"batches": len(results)}

    evaluator = Evaluator([Plain(), Plain(prefix="own"), Plain("other")])
    evaluator.process(None, None)
    assert evaluator.evaluate() == {"batches": 1, "own/batches": 1, "other/batches": 1}


def test_a_base_metric_that_collects_nothing_says_so() -> None:
    evaluator = Evaluator(Counted())
    evaluator.process(None, [])
    with pytest.raises(MetricError, match=r"Counted.process\(\) appended nothing to self.results"):
        evaluator.evaluate()


def test_a_value_that_is_nan_stays_nan() -> None:
    assert math.isnan(mean({"loss": torch.tensor(math.nan)}))
