"""A strategy that is wrong in one way fails the check of that, and is told what to look at."""

from typing import Any

import pytest

from stratrun.errors import ConfigError
from stratrun.strategies.ddp import DDPStrategy
from stratrun.testing import CheckFailure, check_strategy
from tests.contracts import wrong_strategies as wrong

pytestmark = [pytest.mark.usefixtures("ready_ranks"), pytest.mark.timeout(240)]

# The class, the checks that it must fail and what is said, and others that it must pass.
WRONG: list[tuple[type, dict[str, str], tuple[str, ...]]] = [
    (wrong.NoAveraging, {"weights": "not their sum or one rank's"}, ("start",)),
    (wrong.Summing, {"weights": "parameters differ", "clipping": "the first is"}, ("start",)),
    (wrong.WrongNorm, {"clipping": "clip_grad_norm() must return the norm"}, ("weights",)),
    (wrong.OwnPartsNorm, {"clipping": "is put together over the ranks first"}, ("weights",)),
    (wrong.OnlyTold, {"clipping": "the first norm of type 2 is right"}, ("weights",)),
    (wrong.NoNoSync, {"traffic": "no_sync() must keep"}, ("weights", "accumulation")),
    (wrong.Prefixed, {"start": "not the model's: 'head.0.bias'", "weights": "keep their names"}, ()),
    (wrong.OwnStart, {"start": "gives all ranks the values of rank 0"}, ("declarations",)),
    (wrong.Copied, {"weights": "no weight has changed", "start": "on rank 1: "}, ()),
    (wrong.OwnMean, {"weighted losses": "mean() must return"}, ("accumulation",)),
    (wrong.ForgottenEnd, {"unforeseen end": "reduce_gradients()"}, ("accumulation",)),
    (wrong.OwnBuffers, {"evaluation": "sync_buffers()"}, ("weights",)),
    (wrong.WrappedOnce, {"thawing": "wrap() is called again"}, ("weights",)),
    (wrong.Forgetful, {"resuming": "own_state() keeps"}, ("weights",)),
    # It ends, as what ranks agree on needs all of them; not before the first update that lacks one.
    (wrong.Swallowing, {"failed rank": "though rank 1 failed in batch 3"}, ("weights",)),
    (wrong.Unnamed, {"declarations": "it runs on tpu, not on cpu"}, ()),
]


@pytest.mark.parametrize(("kind", "fails", "passes"), WRONG, ids=[kind.__name__ for kind, _, _ in WRONG])
def test_what_is_wrong_is_caught_by_the_check_of_it(
    kind: type, fails: dict[str, str], passes: tuple[str, ...]
) -> None:
    with pytest.raises(CheckFailure) as caught:
        check_strategy(kind, only=(*fails, *passes))
    report = caught.value.report
    assert {finding.name for finding in report.failed} == set(fails), str(report)
    for name, said in fails.items():
        assert said in report.finding(name).told
        assert f"NO  {name}: " in str(caught.value)


def test_an_object_is_refused_as_each_run_makes_its_own() -> None:
    with pytest.raises(ConfigError, match="each run of the checks makes one of its own"):
        check_strategy(DDPStrategy())


@pytest.mark.parametrize(
    ("spec", "options", "told"),
    [
        ("dpp", {}, "did you mean 'ddp'"),
        ({"type": "ddp", "static_grap": True}, {}, "did you mean 'static_graph'"),
        ("ddp", {"only": "weigths"}, "did you mean 'weights'"),
    ],
)
def test_what_is_misspelt_is_told_before_anything_runs(spec: Any, options: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_strategy(spec, **options)
