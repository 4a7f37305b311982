"""The most samples that fit are found before the first step, which is then as if they had been known."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.test_other_ranks import Stop
from tests.parity.test_out_of_memory import BATCH, EVERYWHERE, assert_same, failing, run
from tests.ranks import Ranks


@pytest.mark.parametrize(("room", "found"), [(1, 1), (5, 5), (7, 7), (11, 11), (EVERYWHERE, 12)])
def test_the_most_samples_that_fit_are_found_and_leave_no_trace(room: int, found: int) -> None:
    model = {"drop": 0.5}
    run_with = run(model=model, rooms=[room], hook={"find": True})
    assert run_with["hook"]["found"] == found
    parts = -(-BATCH // found)
    assert run_with["hook"]["parts"] == parts
    assert_same(run_with, run(model=model, hook={"parts": parts}))


def test_more_samples_than_a_batch_has_are_looked_for_up_to_a_number(two_ranks: Ranks) -> None:
    assert run(rooms=[37], hook={"find": 100})["hook"]["found"] == 37
    ranks = two_ranks(run, "ddp", [50, 37], hook={"find": 100})
    assert [one["hook"]["found"] for one in ranks] == [37, 37]


def test_all_ranks_take_the_parts_of_the_one_with_least_memory(two_ranks: Ranks) -> None:
    found = two_ranks(run, "ddp", [EVERYWHERE, 2], hook={"find": True})
    truth = two_ranks(run, "ddp", hook={"parts": 3})
    for one, other in zip(found, truth, strict=True):
        assert one["hook"]["found"] == 2
        assert_same(one, other)


def test_a_search_that_finds_no_room_for_one_sample_ends_the_run_on_all_ranks(two_ranks: Ranks) -> None:
    for kind, told in two_ranks(failing, [EVERYWHERE, 0], find=True):
        assert kind == "OutOfMemoryError"
        assert "not one sample fits" in told


def searched(
    folder: str, strategy: str, rooms: list[int], stop: int | None, **options: Any
) -> dict[str, Any]:
    hooks = {} if stop is None else {"custom_hooks": [Stop(stop)]}
    hook = {"find": True, "trials": 3}
    return run(strategy, rooms, hook=hook, work_dir=folder, model={"drop": 0.3}, **hooks, **options)


# The memory that the resumed run finds is another, so that a new search would come to another number.
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_ends_after_its_search_goes_on_bitwise_with_what_that_has_found(
    stop: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    one = str(tmp_path / "one")
    truth = searched(str(tmp_path / "whole"), "single", [5], None)
    searched(one, "single", [5], stop)
    found = searched(one, "single", [EVERYWHERE], None, resume=True)
    assert_same(found, {**truth, "seen": truth["seen"][stop:]})
    assert found["hook"] == truth["hook"] == {"parts": 3, "tried": 3, "found": 5}
    two, rooms = str(tmp_path / "two"), [EVERYWHERE, 2]
    truths = two_ranks(searched, str(tmp_path / "both"), "ddp", rooms, None)
    two_ranks(searched, two, "ddp", rooms, stop)
    ranks = two_ranks(searched, two, "ddp", [EVERYWHERE, EVERYWHERE], None, resume=True)
    for mine, wanted in zip(ranks, truths, strict=True):
        assert_same(mine, {**wanted, "seen": wanted["seen"][stop:]})
        assert mine["hook"] == wanted["hook"] == {"parts": 3, "tried": 3, "found": 2}
