"""The evaluator: values over the samples of all ranks."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun.distributed import Collectives, ProcessEnv, control_group
from stratrun.evaluation import Accuracy, BaseMetric, Evaluator, MeanMetric, Metric, build_evaluator
from stratrun.state import BatchInfo
from tests.unit.evaluation_ranks import (
    CLASSES,
    LABELS,
    LOGITS,
    SAMPLES,
    ThreadRank,
    batch_of,
    evaluated,
    on_ranks,
    shares,
)

RANKS_AND_SIZES = [(ranks, size) for ranks in (1, 2, 4) for size in (1, 3, 8)]


class Ordered(BaseMetric):
    """One result for each sample; the value depends on their order."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(zip(data_samples["logits"][:, 0], data_batch[1].tolist(), strict=True))

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        assert all(isinstance(score, Tensor) for score, _ in results)
        return {"counted": len(results), "order": sum(i * label for i, (_, label) in enumerate(results))}


class Spread(Metric):
    """A state of each kind; the middle of the gathered scores depends on their order."""

    scores: list[Tensor]
    highest: Tensor
    lowest: Tensor
    total: Tensor
    counted: int

    def __init__(self) -> None:
        self.add_state("scores", [])
        self.add_state("highest", torch.tensor(-torch.inf), "max")
        self.add_state("lowest", torch.tensor(torch.inf), "min")
        self.add_state("total", torch.tensor(100.0))
        self.add_state("counted", 0)

    def update(self, logits: Tensor, target: Tensor) -> None:
        self.scores.append(logits[:, 0])
        self.highest = torch.maximum(self.highest, logits.max())
        self.lowest = torch.minimum(self.lowest, logits.min())
        self.total += logits.sum()
        self.counted += len(logits)

    def compute(self) -> dict[str, Any]:
        scores = torch.cat(self.scores)
        return {
            "first": scores[0],
            "middle": scores[SAMPLES // 2],
            "range": self.highest - self.lowest,
            "total": self.total,
            "seen": self.counted,
        }


def truth() -> dict[str, float]:
    top3 = (LOGITS.topk(3).indices == LABELS[:, None]).any(1)
    return {
        "accuracy": (LOGITS.argmax(1) == LABELS).double().mean().item(),
        "accuracy_top3": top3.double().mean().item(),
        "loss": nn.functional.cross_entropy(LOGITS.double(), LABELS).item(),
        "counted": SAMPLES,
        "order": sum(i * label for i, label in enumerate(LABELS.tolist())),
        "first": LOGITS[0, 0].item(),
        "middle": LOGITS[SAMPLES // 2, 0].item(),
        "range": (LOGITS.max() - LOGITS.min()).item(),
        "total": 100 + LOGITS.double().sum().item(),
        "seen": SAMPLES,
    }


@pytest.mark.parametrize(("ranks", "size"), RANKS_AND_SIZES)
def test_every_value_is_that_of_one_process_on_every_rank(ranks: int, size: int) -> None:
    metrics = lambda: [Accuracy((1, 3)), MeanMetric(), Ordered(), Spread()]  # noqa: E731
    results = evaluated(metrics, batch_of, SAMPLES, ranks, size)
    for result in results:
        assert result == pytest.approx(truth(), rel=1e-5)
        assert result == results[0]
    for exact in ("accuracy", "accuracy_top3", "counted", "order", "first", "middle", "seen"):
        assert results[0][exact] == truth()[exact]


@pytest.mark.parametrize("idle", [(0,), (1, 3), (1, 2, 3)])
def test_ranks_without_a_batch_change_no_value(idle: tuple[int, ...]) -> None:
    metrics = lambda: [Accuracy((1, 3)), MeanMetric(), Ordered(), Spread()]  # noqa: E731
    for result in evaluated(metrics, batch_of, SAMPLES, 4, 8, idle=idle):
        assert result == pytest.approx(truth(), rel=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_fewer_samples_than_ranks_are_counted_once_each(samples: int) -> None:
    metrics = lambda: [Accuracy(), MeanMetric(), Ordered()]  # noqa: E731
    alone = evaluated(metrics, batch_of, samples, 1, 2)[0]
    assert alone["counted"] == samples
    for result in evaluated(metrics, batch_of, samples, 8, 2):
        assert result == pytest.approx(alone, rel=1e-6)


def test_without_positions_values_that_need_no_order_stay_exact() -> None:
    metrics = lambda: [Accuracy(), MeanMetric(), Ordered()]  # noqa: E731
    result = evaluated(metrics, batch_of, SAMPLES, 2, 3, positions=False)[1]
    for name in ("accuracy", "loss", "counted"):
        assert result[name] == pytest.approx(truth()[name], rel=1e-6)


def evaluate_on_rank() -> tuple[dict[str, float], int]:
    """Two evaluations in a row over the run's own collectives, on two gloo ranks."""
    env = ProcessEnv.from_environ()
    info = BatchInfo()
    evaluator = Evaluator([Accuracy((1, 3)), MeanMetric(), Ordered(), Spread()])
    evaluator.bind(Collectives(env, control_group(env, timedelta(seconds=20))), info, torch.device("cpu"))
    for _ in range(2):
        for places in shares(SAMPLES, env.world_size, 8)[env.rank]:
            info.size, info.positions = len(places), places
            evaluator.process(*batch_of(places))
        result = evaluator.evaluate()
    return result, env.rank


def test_an_evaluation_takes_two_exchanges_however_many_metrics_and_batches() -> None:
    def run(rank: ThreadRank) -> int:
        info = BatchInfo()
        evaluator = Evaluator([Accuracy(), MeanMetric(), Ordered(), Spread()])
        evaluator.bind(rank, info)
        for places in shares(SAMPLES, 2, 1)[rank.rank]:
            info.size, info.positions = len(places), places
            evaluator.process(*batch_of(places))
        evaluator.evaluate()
        return rank.exchanges

    assert on_ranks(run, 2) == [2, 2]


def test_one_process_exchanges_nothing_and_needs_no_binding() -> None:
    evaluator = Evaluator(Accuracy())
    evaluator.process(*batch_of([0, 1, 2]))
    expected = (LOGITS[:3].argmax(1) == LABELS[:3]).double().mean().item()
    assert evaluator.evaluate() == {"accuracy": expected}


def test_a_batch_that_only_keeps_ranks_in_step_is_not_counted() -> None:
    info = BatchInfo()
    evaluator = Evaluator([MeanMetric(), Ordered()])
    evaluator.bind(Collectives(ProcessEnv()), info)
    for places, size in (([0, 1], 2), ([2], 0)):
        info.size = size
        evaluator.process(*batch_of(places))
    assert evaluator.evaluate()["counted"] == 2


def test_evaluations_start_anew() -> None:
    evaluator = Evaluator([Ordered(), Accuracy(), MeanMetric()])
    for places in ([0, 1, 2, 3], [4]):
        evaluator.process(*batch_of(places))
        values = evaluator.evaluate()
        assert values["counted"] == len(places)
        assert values["loss"] == pytest.approx(batch_of(places)[1]["loss"].item())
        assert values["accuracy"] == (LOGITS[places].argmax(1) == LABELS[places]).double().mean().item()


def test_two_metrics_of_one_name_are_told_apart_by_a_prefix() -> None:
    evaluator = Evaluator(
        [Accuracy(), {"type": "Accuracy", "topk": 7, "prefix": "easy"}, Accuracy(prefix="p")]
    )
    evaluator.process(*batch_of([0, 1, 2]))
    values = evaluator.evaluate()
    assert set(values) == {"accuracy", "easy/accuracy_top7", "p/accuracy"}
    assert values["easy/accuracy_top7"] == 1.0


class Keeper(Metric):
    """Keeps what it gets as it is."""

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.add_state("kept", [])
        self.add_state("total", torch.zeros(()))

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.kept: list[Tensor] = [*self.kept, preds]
        self.total: Tensor = self.total + preds.sum()

    def compute(self) -> float:
        return float(self.total)


class PickingKeeper(Keeper):
    """Gets what the evaluator has not seen."""

    def arguments(self, outputs: Any, batch: Any, size: int) -> tuple[Any, ...]:
        return outputs["logits"], None


def test_no_state_holds_on_to_the_graph_of_a_model() -> None:
    weight = torch.ones(CLASSES, requires_grad=True)
    evaluator = Evaluator([keeper := Keeper(), picking := PickingKeeper(prefix="own"), MeanMetric()])
    evaluator.process((None, LABELS[:4]), {"logits": LOGITS[:4] * weight, "loss": (weight * 2).sum()})
    assert not keeper.kept[0].requires_grad
    assert not keeper.total.requires_grad
    assert not picking.total.requires_grad
    assert evaluator.evaluate()["loss"] == 2 * CLASSES


def test_a_lone_value_is_named_after_its_class() -> None:
    class TopLabelF1(Metric):
        """Always a half."""

        def update(self, preds: Tensor, target: Tensor) -> None: ...

        def compute(self) -> Tensor:
            return torch.tensor([0.5])

    evaluator = Evaluator(TopLabelF1())
    evaluator.process(*batch_of([0]))
    assert evaluator.evaluate() == {"top_label_f1": 0.5}


def test_an_evaluator_is_built_from_any_spelling() -> None:
    made = Evaluator(Accuracy())
    assert build_evaluator(made) is made
    for spec in (
        "Accuracy",
        Accuracy,
        {"type": "Accuracy"},
        [{"type": "Accuracy"}],
        {"metrics": [Accuracy()], "preds": "logits"},
        {"type": "Evaluator", "metrics": "Accuracy"},
        {"type": "Accuracy", "preds": "logits", "target": 1},
    ):
        evaluator = build_evaluator(spec)
        evaluator.process(*batch_of([0, 1]))
        assert list(evaluator.evaluate()) == ["accuracy"]


def test_two_ranks_that_are_processes_agree_with_the_truth(two_ranks: Any) -> None:
    for rank, (values, told) in enumerate(two_ranks(evaluate_on_rank)):
        assert told == rank
        assert values == pytest.approx(truth(), rel=1e-5)
