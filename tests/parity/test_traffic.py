"""What crosses between the ranks: right weights alone would not show that too much does."""

from collections import Counter
from itertools import pairwise
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from stratrun import Runner
from stratrun.hooks import Hook
from tests.problems import perceptron, points
from tests.ranks import Ranks


class Exchanges(TorchDispatchMode):
    """Counts what goes through a process group, by kind.

    torch's own counter warns of models that return a dict.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "c10d":
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Counting(Hook):
    """Notes how many exchanges of each kind there were when an iteration was done."""

    priority = 100

    def __init__(self, exchanges: Exchanges) -> None:
        self.exchanges = exchanges
        self.seen: list[dict[str, int]] = []

    def after_train_iter(self) -> None:
        self.seen.append(dict(self.exchanges.counts))


def counted(work_dir: str, accumulate: int, **options: Any) -> list[Any]:
    """Exchanges up to each iteration, of 11 with 3 samples a rank, by kind."""
    with Exchanges() as exchanges:
        hook = Counting(exchanges)
        form = {
            "loss": "cross_entropy",
            "train_dataloader": {"dataset": points(66), "batch_size": 3},
            "train_cfg": {"max_epochs": 1, "accumulate": accumulate},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "work_dir": work_dir,
            "loggers": (),
        }
        Runner(perceptron(), custom_hooks=[hook], **{**form, **options}).train()
    return hook.seen


def new(seen: list[dict[str, int]], kind: str = "allreduce_") -> list[int]:
    """What each iteration added, after the first."""
    totals = [counts.get(kind, 0) for counts in seen]
    return [after - before for before, after in pairwise(totals)]


def test_without_accumulation_each_iteration_makes_one_round(two_ranks: Ranks, tmp_path: Any) -> None:
    for seen in two_ranks(counted, str(tmp_path), 1):
        assert new(seen) == [1] * 10


def test_accumulation_of_three_makes_one_round_for_each_window(two_ranks: Ranks, tmp_path: Any) -> None:
    for seen in two_ranks(counted, str(tmp_path), 3):
        # Before the first round ranks tell each other whether it will reach all parameters.
        assert new(seen) == [0, 2, 0, 0, 1, 0, 0, 1, 0, 1]


def test_the_default_hooks_exchange_nothing_between_log_points(two_ranks: Ranks, tmp_path: Any) -> None:
    quiet = two_ranks(counted, f"{tmp_path}/quiet", 3, default_hooks={"logger": None})
    noisy = two_ranks(counted, f"{tmp_path}/noisy", 3, loggers=["jsonl"], clip_grad=0.5)
    assert [len(seen) for seen in quiet] == [11, 11]
    for one, other in zip(quiet, noisy, strict=True):
        kinds = {kind for counts in (*one, *other) for kind in counts}
        assert "allreduce_" in kinds
        for kind in kinds:
            assert new(one, kind) == new(other, kind), kind


def test_a_log_point_costs_one_round_once_the_names_are_known(two_ranks: Ranks, tmp_path: Any) -> None:
    hooks = {"logger": {"interval": 4}, "checkpoint": None}
    for seen in two_ranks(counted, str(tmp_path), 1, default_hooks=hooks):
        rounds = new(seen)  # of the iterations 2 to 11
        assert rounds[6] == 2  # the gradients, and the sums of the log point after iteration 8
        assert [rounds[i] for i in (0, 1, 3, 4, 5, 7, 8, 9)] == [1] * 8


def test_several_optimizers_share_one_round_of_gradients(two_ranks: Ranks, tmp_path: Any) -> None:
    parts = {part: {"type": "SGD", "lr": 0.1, "params": part} for part in ("0", "2")}
    for seen in two_ranks(counted, str(tmp_path), 3, optimizer=parts):
        # Finding parameters that a backward pass did not reach costs a second one.
        assert new(seen) == [0, 2, 0, 0, 2, 0, 0, 2, 0, 2]
