"""A run on S3 whose requests fail, are denied, hang, or find no store at all."""

from collections import Counter
from typing import Any

import pytest

from stratrun.storage import Folder, Retry
from tests.end_to_end.fault_job import FAULT_AT, INTERVAL, STEPS, Told, check_whole, s3_job
from tests.ranks import Ranks
from tests.stores import BUCKET, KEY, KINDS, SECRET, Store

QUICK = {"base": 0.01, "cap": 0.05}
ATTEMPTS = Retry().attempts


def run_on(ranks: Ranks | None, store: Store, faults: dict[str, Any], **options: Any) -> list[Told]:
    return [s3_job(store, faults, **options)] if ranks is None else ranks(s3_job, store, faults, **options)


@pytest.fixture(params=[1, 2])
def ranks(request: pytest.FixtureRequest, two_ranks: Ranks) -> Ranks | None:
    return two_ranks if request.param == 2 else None


def folder_of(store: Store) -> Folder:
    return Folder(store.url, **store.options)


def check_told(told: list[Told], store: Store, limit: float) -> None:
    """The same error on all, in time, that names the place and gives nothing away."""
    for one in told:
        assert f"saving step {2 * INTERVAL} to {store.url}/checkpoints failed" in one.error, one.trace
        assert one.seconds < limit
        assert one.late <= 1
        assert not [word for word in (KEY, SECRET) if word in one.trace]
    assert len({(one.error, one.iterations) for one in told}) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
def test_with_a_fifth_of_the_requests_failing_a_run_saves_and_goes_on(
    asynchronous: bool, ranks: Ranks | None, s3: Store
) -> None:
    faults = {"rate": 0.2, "seed": 3, "kinds": KINDS}
    s3.set_faults(**faults)
    common: dict[str, Any] = {"retry": QUICK, "asynchronous": asynchronous}
    assert [one.error for one in run_on(ranks, s3, faults, steps=10, **common)] == [""] * (1 + bool(ranks))
    resumed = run_on(ranks, s3, faults, resume=True, **common)
    assert [(one.error, one.iterations) for one in resumed] == [("", STEPS)] * (1 + bool(ranks))
    log = s3.log()
    s3.set_faults()
    failed = Counter((method, path) for method, path, fate in log if fate != "done")
    assert sum(failed.values()) > len(log) / 10
    # Away or not: no request was sent again without end.
    assert max(failed.values()) < 4 * ATTEMPTS
    assert check_whole(folder_of(s3)) == [12, 16]
    assert s3.pending_uploads() == 0


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("begun", [1, 6])
def test_what_is_denied_in_mid_run_fails_on_all_ranks_at_once(
    begun: int, asynchronous: bool, ranks: Ranks | None, s3: Store
) -> None:
    told = run_on(ranks, s3, {"deny_from": begun}, asynchronous=asynchronous)
    check_told(told, s3, 5.0)
    assert any(word in told[0].error for word in ("Access Denied", "Forbidden")), told[0].error
    assert " s3://bucket/" in told[0].error and "(1 attempt, 0." in told[0].error
    s3.set_faults()
    assert check_whole(folder_of(s3)) == [INTERVAL]


def test_what_is_denied_from_the_start_is_refused_before_the_first_step(
    ranks: Ranks | None, s3: Store
) -> None:
    s3.set_faults(deny_from=1)
    for one in run_on(ranks, s3, {"deny_from": 1}):
        assert one.iterations == 0
        assert one.seconds < 5
        assert f"s3://{BUCKET}/" in one.error
        assert " failed: " in one.error
        assert not [word for word in (KEY, SECRET) if word in one.trace]


def test_a_store_that_is_away_for_a_while_is_waited_for(ranks: Ranks | None, s3: Store) -> None:
    told = run_on(ranks, s3, {"away_from": 2, "away_for": 3.0}, retry={"base": 0.1, "cap": 0.5})
    assert [(one.error, one.iterations) for one in told] == [("", STEPS)] * len(told)
    assert all(one.seconds > 2 for one in told)
    assert check_whole(folder_of(s3)) == [12, 16]


@pytest.mark.parametrize(("fault", "ranks"), [("away_from", 1), ("hang_from", 2)], indirect=["ranks"])
def test_a_store_that_stays_away_or_never_answers_fails_at_the_deadline_on_all_ranks(
    fault: str, ranks: Ranks | None, s3: Store
) -> None:
    deadline = 8.0
    told = run_on(ranks, s3, {fault: 4}, retry={"base": 0.1, "cap": 0.5, "deadline": deadline})
    s3.set_faults()
    # What was begun is not removed with the same patience.
    check_told(told, s3, deadline + 5.0)
    assert told[0].iterations > FAULT_AT
    assert check_whole(folder_of(s3)) == [INTERVAL]
