"""What an evaluation refuses, and that every rank hears of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError, MetricError
from stratrun.evaluation import Accuracy, BaseMetric, Evaluator, Metric, build_evaluator
from stratrun.state import BatchInfo
from tests.unit.evaluation_ranks import CLASSES, SAMPLES, ThreadRank, batch_of, evaluated, on_ranks


class Counting(BaseMetric):
    """How many samples there were."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_batch[1].tolist())

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"counted": len(results)}


def test_a_failed_evaluation_leaves_nothing_for_the_next() -> None:
    evaluator = Evaluator([Counting(), Counting()])
    evaluator.process(*batch_of([0, 1, 2]))
    with pytest.raises(MetricError, match="both Counting and Counting give 'counted'"):
        evaluator.evaluate()
    with pytest.raises(MetricError, match="nothing to evaluate"):
        evaluator.evaluate()


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_processed_is_an_error_on_every_rank(ranks: int) -> None:
    for result in evaluated(Accuracy, batch_of, 0, ranks, 2):
        assert isinstance(result, MetricError)
        assert "nothing to evaluate" in str(result)


class Broken(BaseMetric):
    """Fails where the main rank computes."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        raise KeyError("absent")


def test_a_failure_of_the_main_rank_reaches_every_rank() -> None:
    main, other = evaluated(Broken, batch_of, SAMPLES, 2, 8)
    assert isinstance(main, KeyError)
    assert isinstance(other, MetricError)
    assert "KeyError: 'absent'" in str(other)


class Lopsided(Metric):
    """Counts where no other process looks."""

    def __init__(self) -> None:
        self.right = 0
        self.add_state("counted", 0)

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.right += 1
        self.counted: int = self.counted + len(preds)

    def compute(self) -> float:
        return self.right / self.counted


def test_a_count_outside_the_states_is_an_error_over_several_ranks() -> None:
    for result in evaluated(Lopsided, batch_of, SAMPLES, 2, 8):
        assert isinstance(result, MetricError)
        assert "Lopsided counts in 'right', which no add_state() declares" in str(result)


def test_samples_counted_twice_are_noticed_when_the_size_is_known() -> None:
    def run(rank: ThreadRank) -> Any:
        info = BatchInfo()
        evaluator = Evaluator(Accuracy())
        evaluator.bind(rank, info)
        for start in range(0, 16, 8):  # each rank takes all of them
            info.size = 8
            evaluator.process(*batch_of(list(range(start, start + 8))))
        return evaluator.evaluate(16)

    for result in on_ranks(run, 2):
        assert isinstance(result, MetricError)
        assert "32 samples were counted, but the data set has 16" in str(result)


def test_a_text_is_no_value_even_if_it_reads_like_a_number() -> None:
    class Told(BaseMetric):
        """Says its value."""

        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results.append(None)

        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            return {"told": "0.5"}

    evaluator = Evaluator(Told())
    evaluator.process(*batch_of([0]))
    with pytest.raises(MetricError, match="Told gave str for 'told', not one number"):
        evaluator.evaluate()


def test_a_value_that_is_no_number_says_what_it_is() -> None:
    class Rows(Metric):
        """Gives a value for each class."""

        def update(self, preds: Tensor, target: Tensor) -> None: ...

        def compute(self) -> Tensor:
            return torch.zeros(CLASSES)

    evaluator = Evaluator(Rows())
    evaluator.process(*batch_of([0]))
    with pytest.raises(MetricError, match=r"Rows gave float32\[7\] for 'rows', not one number"):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([], "measures nothing"),
        (nn.Linear(1, 1), "Linear is no metric"),
        ("Acuracy", "did you mean 'Accuracy'"),
        ({"type": "Accuracy", "topk": 0}, "at least 1"),
        ({"type": "Accuracy", "topc": 1}, "did you mean 'topk'"),
        ({"metrics": "Accuracy", "pred": "x"}, "did you mean 'preds'"),
    ],
)
def test_what_is_no_evaluator_is_refused_with_a_reason(spec: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_evaluator(spec)
