"""Metrics of torchmetrics, used as they are, against a single process that saw every sample."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef, R2Score
from torchmetrics.aggregation import CatMetric, MaxMetric
from torchmetrics.aggregation import MeanMetric as TorchmetricsMean
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import NormalizedRootMeanSquaredError
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric, Running

from stratrun.errors import MetricError
from stratrun.evaluation import Evaluator
from stratrun.state import BatchInfo
from tests.unit.evaluation_ranks import ThreadRank, evaluated, on_ranks, shares

SAMPLES, CLASSES = 101, 4
RANKS_AND_SIZES = [(ranks, size) for ranks in (1, 2, 4) for size in (1, 3, 8)]
Make = Callable[[], Any]


def data() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(11)
    x = torch.randn(SAMPLES, generator=random)
    return {
        "scores": torch.randn(SAMPLES, CLASSES, generator=random).softmax(1),
        "labels": torch.randint(CLASSES, (SAMPLES,), generator=random),
        "x": x,
        "y": x + torch.randn(SAMPLES, generator=random) / 2,
        "chance": torch.rand(SAMPLES, generator=random),
        "bit": torch.randint(2, (SAMPLES,), generator=random),
        "indexes": torch.arange(SAMPLES) // 10,
        "image": torch.rand(SAMPLES, 1, 4, 4, generator=random),
    }


DATA = data()


def classes(places: list[int]) -> tuple[Any, Any]:
    return {}, {"preds": DATA["scores"][places], "target": DATA["labels"][places]}


def numbers(places: list[int]) -> tuple[Any, Any]:
    return {}, {"preds": DATA["x"][places], "target": DATA["y"][places]}


def bits(places: list[int]) -> tuple[Any, Any]:
    return {}, {"preds": DATA["chance"][places], "target": DATA["bit"][places]}


def queries(places: list[int]) -> tuple[Any, Any]:
    _batch, outputs = bits(places)
    return {"indexes": DATA["indexes"][places]}, outputs


def images(places: list[int]) -> tuple[Any, Any]:
    return {}, {"preds": DATA["image"][places], "target": DATA["image"][places].flip(-1)}


def values(places: list[int]) -> tuple[Any, Any]:
    return {}, {"value": DATA["x"][places]}


def collection() -> MetricCollection:
    members = [MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES), MulticlassAUROC(CLASSES)]
    return MetricCollection([*members, MulticlassPrecision(CLASSES)], prefix="val_")


CASES: dict[str, tuple[Make, Callable[[list[int]], tuple[Any, Any]]]] = {
    "sum states": (lambda: MulticlassAccuracy(CLASSES), classes),
    "cat states": (lambda: MulticlassAUROC(CLASSES), classes),
    "cat states kept on the cpu": (lambda: MulticlassAUROC(CLASSES, compute_on_cpu=True), classes),
    "a max state": (MaxMetric, values),
    "an update of one argument": (TorchmetricsMean, values),
    "a mean state that is a constant": (lambda: PeakSignalNoiseRatio(data_range=(0.0, 1.0)), images),
    "states stacked by rank": (PearsonCorrCoef, numbers),
    "full_state_update": (R2Score, numbers),
    "lists without a reduction, a third argument": (RetrievalMAP, queries),
    "a sum of metrics": (lambda: MeanSquaredError() + MeanSquaredError() * 2, numbers),
    "a wrapper": (lambda: ClasswiseWrapper(MulticlassAccuracy(CLASSES, average=None)), classes),
    "a wrapper with a memory": (lambda: MinMaxMetric(MulticlassAccuracy(CLASSES)), classes),
    "a collection with compute groups": (collection, classes),
    "a collection without": (lambda: MetricCollection([BinaryAUROC()], compute_groups=False), bits),
    "dist_sync_on_step": (lambda: MulticlassAccuracy(CLASSES, dist_sync_on_step=True), classes),
}


def truth(make: Make, feed: Callable[[list[int]], tuple[Any, Any]]) -> dict[str, float]:
    """One update with everything."""
    metric = make()
    batch, outputs = feed(list(range(SAMPLES)))
    metric.update(*outputs.values(), **batch)
    value = metric.compute()
    named = value if isinstance(value, dict) else {type(metric).__name__: value}
    return {name: float(number) for name, number in named.items()}


@pytest.mark.parametrize(("ranks", "size"), RANKS_AND_SIZES)
@pytest.mark.parametrize("case", CASES)
def test_every_value_is_that_of_one_process(case: str, ranks: int, size: int) -> None:
    make, feed = CASES[case]
    results = evaluated(make, feed, SAMPLES, ranks, size)
    for result in results:
        assert result == pytest.approx(truth(make, feed), rel=1e-5)
        assert result == results[0]


@pytest.mark.parametrize("idle", [(0,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("case", CASES)
def test_ranks_without_a_batch_change_no_value(case: str, idle: tuple[int, ...]) -> None:
    make, feed = CASES[case]
    for result in evaluated(make, feed, SAMPLES, 4, 8, idle=idle):
        assert result == pytest.approx(truth(make, feed), rel=1e-5)


def test_members_of_a_collection_that_agree_by_chance_stay_apart() -> None:
    low, high = BinaryAccuracy(threshold=0.3), BinaryAccuracy(threshold=0.7)
    make = lambda: MetricCollection({"low": low.clone(), "high": high.clone()})  # noqa: E731
    assert evaluated(make, bits, SAMPLES, 1, 1)[0] == pytest.approx(truth(make, bits), rel=1e-6)


def test_members_of_a_collection_with_one_state_share_it() -> None:
    metrics = collection()
    evaluator = Evaluator(metrics)
    evaluator.process(*classes([0, 1, 2]))
    shared = {frozenset(group) for group in metrics.compute_groups.values()}
    assert frozenset({"MulticlassAccuracy", "MulticlassF1Score", "MulticlassPrecision"}) in shared
    assert frozenset({"MulticlassAUROC"}) in shared


def test_groups_that_the_user_chose_are_kept() -> None:
    metrics = MetricCollection(
        [MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES)], compute_groups=False
    )
    Evaluator(metrics).process(*classes([0]))
    assert metrics.compute_groups == {}


def test_evaluations_start_anew_and_leave_the_metric_able_to_sync() -> None:
    metric = MulticlassAccuracy(CLASSES, average="micro")
    available = metric.distributed_available_fn
    evaluator = Evaluator(metric)
    for places in ([0, 1, 2, 3], [5]):
        evaluator.process(*classes(places))
        right = DATA["scores"][places].argmax(1) == DATA["labels"][places]
        assert evaluator.evaluate() == {"MulticlassAccuracy": pytest.approx(right.double().mean().item())}
    assert metric.distributed_available_fn is available
    assert metric.update_count == 0


def test_a_metric_never_starts_an_exchange_of_its_own() -> None:
    make = lambda: MulticlassAUROC(  # noqa: E731
        CLASSES,
        distributed_available_fn=lambda: pytest.fail("asked for other ranks"),
        dist_sync_on_step=True,
    )
    assert isinstance(evaluated(make, classes, SAMPLES, 2, 8)[1], dict)


class Kept(Metric):
    """Keeps one state over resets, as FID keeps what it knows of real images."""

    real: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("real", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor) -> None:
        self.real += len(value)

    def compute(self) -> Tensor:
        return self.real

    def reset(self) -> None:
        real = self.real
        super().reset()
        self.real = real


def test_what_a_metric_keeps_over_resets_is_counted_once() -> None:
    def run(rank: ThreadRank) -> list[dict[str, float]]:
        info = BatchInfo()
        evaluator = Evaluator(Kept())
        evaluator.bind(rank, info)
        results = []
        for _ in range(3):
            for places in shares(SAMPLES, 2, 8)[rank.rank]:
                info.size, info.positions = len(places), places
                evaluator.process(*values(places))
            results.append(evaluator.evaluate())
        return results

    assert on_ranks(run, 2)[1] == [{"Kept": SAMPLES}, {"Kept": 2 * SAMPLES}, {"Kept": 3 * SAMPLES}]


class Boxes(Metric):
    """Per-image lists, as the detection metrics have."""

    boxes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("boxes", [], dist_reduce_fx=None)

    def update(self, preds: list[Tensor], target: Any) -> None:
        self.boxes.extend(preds)

    def compute(self) -> dict[str, float]:
        sizes = [len(box) for box in self.boxes]
        return {"images": len(sizes), "order": sum(i * size for i, size in enumerate(sizes))}


@pytest.mark.parametrize(("ranks", "size"), RANKS_AND_SIZES)
def test_lists_of_images_keep_their_order_and_are_not_joined(ranks: int, size: int) -> None:
    def feed(places: list[int]) -> tuple[Any, Any]:
        return ([], []), [torch.zeros(place % 3, 4) for place in places]

    expected = {"images": SAMPLES, "order": sum(i * (i % 3) for i in range(SAMPLES))}
    assert evaluated(Boxes, feed, SAMPLES, ranks, size)[-1] == expected


class Plain(Metric):
    """Forgot to say how its state is reduced, or counts outside of it."""

    total: Tensor

    def __init__(self, reduce: str | None = None, outside: bool = False) -> None:
        super().__init__()
        self.seen = 0
        self.outside = outside
        self.add_state("total", torch.zeros(()), dist_reduce_fx=reduce)

    def update(self, value: Tensor) -> None:
        self.total += value.sum()
        self.seen += self.outside

    def compute(self) -> Tensor:
        return self.total.sum()


@pytest.mark.parametrize(
    ("make", "feed", "ranks", "said"),
    [
        (Plain, values, 2, "Plain, state 'total': it has no reduction"),
        (lambda: Plain("mean"), values, 2, "Plain, state 'total': its values differ from rank to rank"),
        (lambda: Plain("sum", outside=True), values, 2, "Plain counts in 'seen'"),
        (lambda: Running(MeanSquaredError(), window=3), numbers, 2, "Running counts in '_num_vals_seen'"),
        (lambda: NormalizedRootMeanSquaredError(), numbers, 4, "wrongly for more than two ranks"),
    ],
)
def test_what_cannot_be_combined_exactly_is_an_error_on_every_rank(
    make: Make, feed: Callable[[list[int]], tuple[Any, Any]], ranks: int, said: str
) -> None:
    for result in evaluated(make, feed, SAMPLES, ranks, 8):
        assert isinstance(result, Exception)
        assert said in str(result)


class OwnReduction(Metric):
    """Reduces its state by a function, which gets a value for each rank."""

    ranks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", torch.zeros(()), dist_reduce_fx=lambda stacked: torch.tensor(len(stacked)))

    def update(self, value: Tensor) -> None: ...

    def compute(self) -> Tensor:
        return self.ranks


def test_a_reduction_by_a_function_gets_no_value_of_a_rank_without_a_batch() -> None:
    assert evaluated(OwnReduction, values, SAMPLES, 4, 8, idle=(0,))[1] == {"OwnReduction": 3}


def test_in_one_process_a_metric_that_no_ranks_could_combine_still_works() -> None:
    result = evaluated(lambda: Plain("mean", outside=True), values, SAMPLES, 1, 8)[0]
    assert result["Plain"] == pytest.approx(DATA["x"].sum().item(), rel=1e-4)


@pytest.mark.parametrize("make", [CatMetric, lambda: MulticlassConfusionMatrix(CLASSES)])
def test_a_table_is_no_value(make: Make) -> None:
    feed = values if make is CatMetric else classes
    with pytest.raises(MetricError, match="not one number"):
        raise evaluated(make, feed, 8, 1, 8)[0]


def test_metrics_are_found_by_their_names_and_moved_to_the_device() -> None:
    evaluator = Evaluator({"type": "MulticlassAccuracy", "num_classes": CLASSES, "prefix": "clean"})
    evaluator.bind(ThreadRank.alone(), BatchInfo(), torch.device("cpu"))
    evaluator.process(*classes([0, 1]))
    assert list(evaluator.evaluate()) == ["clean/MulticlassAccuracy"]


def test_no_warning_is_left_where_the_main_rank_had_no_batch() -> None:
    def run(rank: ThreadRank) -> Any:
        evaluator = Evaluator(MulticlassAccuracy(CLASSES))
        evaluator.bind(rank, BatchInfo())
        if rank.rank == 1:
            evaluator.process(*classes([0, 1]))
        return evaluator.evaluate()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_ranks(run, 2)[0] == evaluated(CASES["sum states"][0], classes, 2, 1, 2)[0]
