"""What is wrong in one way fails the check of that, and the message says what to do instead."""

from collections.abc import Callable
from typing import Any

import pytest

from stratrun import Accuracy
from stratrun.errors import ConfigError
from stratrun.hooks import EMAHook, Hook
from stratrun.loggers import CsvLogger
from stratrun.precision import FullPrecision
from stratrun.testing import (
    CheckFailure,
    check_hook,
    check_logger,
    check_loop,
    check_metric,
    check_precision,
)
from tests.contracts import wrong_abilities
from tests.contracts import wrong_parts as wrong

pytestmark = [pytest.mark.usefixtures("ready_ranks"), pytest.mark.timeout(240)]

# The check, what it is given, and the checks that fail with what is said. All others of `only` pass.
HOOKS: list[tuple[type, str, str, tuple[str, ...]]] = [
    (
        wrong.SpeaksOfRanks,
        "words",
        "line 25: 'torch.distributed'; runner.engine",
        ("points", "training"),
    ),
    (wrong.Misnamed, "points", "did you mean 'after_train_epoch'?", ("words",)),
    (wrong.Meddling, "training", "parameters differ", ("words",)),
    (wrong.Drawing, "training", "it draws from torch's generator", ("words",)),
    (wrong.Reading, "waiting", "it reads 1 tensors' values in each iteration", ("training",)),
    (wrong.Exchanging, "traffic", "exchanges between processes in each iteration", ("waiting",)),
    (wrong.Unsaved, "resuming", "state_dict() has all", ("training",)),
    (wrong.OwnSamples, "ranks", "state_dict() on rank 1 and on rank 0['total']", ("state",)),
    (wrong.StateOfAKind, "state", "state_dict()['seen'] is a set, which no checkpoint keeps", ("training",)),
]
TRAIN = {"max_epochs": 2}
LOOPS: list[tuple[Any, str, str, tuple[str, ...]]] = [
    ({"type": wrong.NoCounting, **TRAIN}, "counters", "runner.iter is [0, 1, 2]", ("work",)),
    ({"type": wrong.Deaf, **TRAIN}, "stopping", "asked to stop after iteration 2", ("work", "counters")),
    ({"type": wrong.StartsAnew, **TRAIN}, "resuming", "go on from runner.epoch", ("work", "stopping")),
    ({"type": wrong.ByItself, **TRAIN}, "ranks", "the verbs of runner.engine", ("work", "again")),
    ({"type": wrong.Whimsical, **TRAIN}, "again", "which a run seeds", ("counters",)),
    (wrong.OwnMetric, "ranks", "take metrics from self.evaluator", ("work", "points")),
    (wrong.Unended, "points", "'after_val' is not called, though 'before_val' is", ("work", "ranks")),
]
LOGGERS: list[tuple[type, str, str, tuple[str, ...]]] = [
    (wrong.WritesEarly, "construction", "the constructor wrote lines.txt", ()),
    (wrong.Changing, "records", "a record goes to all loggers", ("flushing",)),
    (wrong.Lazy, "flushing", "its files have 0, 0, 0 bytes", ("records",)),
    (wrong.Overwriting, "going on", "for appending", ("records",)),
    (wrong_abilities.Led, "abilities", "it wrote elsewhere beside its folder", ("records", "flushing")),
    (wrong.Fragile, "failing disk", "let an OSError through", ("flushing", "going on")),
]
METRICS: list[tuple[type, str, str, tuple[str, ...]]] = [
    (wrong.MeanOfMeans, "batches", "not means of batches", ("value", "anew", "waiting")),
    (wrong.Undeclared, "anew", "add_state()", ("value", "batches")),
    (wrong.WrongReduction, "ranks", "says how what ranks have becomes one", ("value", "batches")),
]
PRECISIONS: list[tuple[type, str, str, tuple[str, ...]]] = [
    (wrong.NeverUnscaled, "clipping", "unscale(optimizer) is called before clipping", ("formats",)),
    (wrong.AlwaysStepped, "overflow", "step() returns False", ("weights", "clipping")),
    (wrong.ForgetsItsScale, "resuming", "a scale and its age", ("formats",)),
    (wrong.Leaky, "context", "put back what was there", ("declarations",)),
    (wrong.Misdeclared, "formats", "a product is bfloat16 and compute_dtype=float32", ("context",)),
]
ALL: list[tuple[Callable[..., Any], tuple[Any, str, str, tuple[str, ...]]]] = [
    *((check_hook, case) for case in HOOKS),
    *((check_loop, case) for case in LOOPS),
    *((check_logger, case) for case in LOGGERS),
    *((check_metric, case) for case in METRICS),
    *((check_precision, case) for case in PRECISIONS),
]


def name_of(spec: Any) -> str:
    kind = spec["type"] if isinstance(spec, dict) else spec
    return str(kind.__name__)


@pytest.mark.parametrize(("check", "case"), ALL, ids=[name_of(case[0]) for _, case in ALL])
def test_what_is_wrong_is_caught_by_the_check_of_it(check: Callable[..., Any], case: Any) -> None:
    spec, name, said, passes = case
    options = {"job": "val"} if spec in (wrong.OwnMetric, wrong.Unended) else {}
    with pytest.raises(CheckFailure) as caught:
        check(spec, only=(name, *passes), **options)
    report = caught.value.report
    assert [finding.name for finding in report.failed] == [name], str(report)
    assert said in " ".join(report.finding(name).told.split())


@pytest.mark.parametrize(
    ("check", "part"),
    [
        (check_hook, EMAHook()),
        (check_logger, CsvLogger()),
        (check_metric, Accuracy()),
        (check_precision, FullPrecision()),
    ],
)
def test_an_object_is_refused_as_each_run_makes_its_own(check: Callable[..., Any], part: Any) -> None:
    with pytest.raises(ConfigError, match="is an object; give its class"):
        check(part)


def test_a_word_that_means_something_else_may_be_allowed() -> None:
    with pytest.raises(CheckFailure, match="'get_rank'"):
        check_hook(wrong.SpeaksOfRanks, only="words")
    with pytest.raises(CheckFailure, match=r"torch\.distributed") as caught:
        check_hook(wrong.SpeaksOfRanks, only="words", allow=("rank",))
    assert "get_rank" not in str(caught.value)


def test_a_loop_that_is_none_and_a_job_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="is no loop; give a subclass of BaseLoop"):
        check_loop(wrong.Deaf.__name__.__class__)
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        check_loop("EpochBasedTrainLoop", job="trian")


class Restarting(Hook):
    """Logs a count that it does not save."""

    def __init__(self) -> None:
        self.count = 0

    def after_train_iter(self, runner: Any) -> None:
        self.count += 1
        runner.log({"count": self.count})


def test_a_hook_that_logs_from_what_it_has_lost_is_caught_though_it_has_no_state() -> None:
    with pytest.raises(CheckFailure, match="what it logs after a stop is not what it logs without one"):
        check_hook(Restarting, only="resuming")
