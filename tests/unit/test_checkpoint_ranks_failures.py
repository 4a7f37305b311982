"""A save beside the run that fails on one rank: when, and with what, all ranks raise, and what is left."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from stratrun.checkpoint import Checkpointer, Staging
from stratrun.checkpoint.holdings import Holdings
from stratrun.checkpoint.storage_writer import ShardWriter, SnapshotPlanner
from stratrun.distributed import Collectives, ProcessEnv, control_group, message_board
from stratrun.errors import StratrunError
from stratrun.storage import Folder
from tests.checkpoints import full_disk, own_state, same, shared_state
from tests.ranks import Ranks

ITERATIONS = 6000  # of 2 ms: more than any failure may take

# What is made to fail in each phase, and whether that is done on the main rank alone.
PHASES: dict[str, tuple[type, str] | str] = {
    "copy": (Staging, "take"),
    "copy from a device": (Staging, "wait"),
    "plan": (ShardWriter, "prepare_local_plan"),
    "last plan": (SnapshotPlanner, "finish_plan"),
    "exchange of plans": (Collectives, "scatter_from_main"),
    "shard": "shard-",
    "room": (Holdings, "make_room"),
    "plan of all": (SnapshotPlanner, "create_global_plan"),
    "index": "index.json",
    "state": "state.json",
    "manifest": "manifest.json",
    "marker": "COMMITTED",
    "names": (Folder, "sync"),
    "place": (Folder, "rename"),
}
ON_ANY = list(PHASES)[:6]


def wired(place: str, deadline: float = 20.0) -> Checkpointer:
    """As a run wires it: a group for saves alone, whose exchanges are told."""
    env = ProcessEnv.from_environ(os.environ)
    ranks = Collectives(env, control_group(env, timedelta(seconds=20)), message_board(env))
    saving = Collectives(env, control_group(env, timedelta(seconds=deadline)), message_board(env), tells=True)
    return Checkpointer(Folder(place), ranks, run_id="run", saving=saving, deadline=deadline)


def rank() -> int:
    return int(os.environ["RANK"])


@contextmanager
def failing(phase: str) -> Iterator[None]:
    spot = PHASES[phase]
    if isinstance(spot, str):
        with full_disk(spot):
            yield
        return

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"no {phase} for you")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*spot, fail)
        yield


@contextmanager
def slow(seconds: float, each: bool) -> Iterator[None]:
    """Writing takes so long: for each tensor, or in one operation that asks for nothing meanwhile."""
    lookup, write = SnapshotPlanner.lookup_object, Folder.write_blocks
    with pytest.MonkeyPatch.context() as patch:
        if each:
            patch.setattr(SnapshotPlanner, "lookup_object", lambda *a: time.sleep(seconds) or lookup(*a))
        else:
            patch.setattr(Folder, "write_blocks", lambda *a, **k: time.sleep(seconds) or write(*a, **k))
        yield


def iterate(together: Checkpointer, first: int = 1) -> tuple[int, str, str, float]:
    """Iterations in step with each other, as an exchange of gradients has them, until one raises."""
    begun = time.monotonic()
    for iteration in range(first, first + ITERATIONS):
        time.sleep(0.002)
        try:
            together.raise_if_failed(iteration)
        except StratrunError as error:
            return iteration, type(error).__name__, str(error), time.monotonic() - begun
        dist.all_reduce(torch.ones(1))
    raise AssertionError("nothing was raised")


def saves(place: str, fault: Callable[[], Any], deadline: float = 20.0) -> dict[str, Any]:
    """A good save, one with the fault, and whatever comes of that."""
    together = wired(place, deadline)
    many = {f"part {i}": torch.full((3,), float(i)) for i in range(40)}
    together.save(1, shared_state(1), own_state(1, rank()), background=True)
    together.wait()
    with fault():
        together.save(2, shared_state(2), {**own_state(2, rank()), **many}, background=True)
        raised = iterate(together)
        before = time.monotonic()
        worker = together._background._worker
        assert worker is not None
        worker.join(30)
        lasted = time.monotonic() - before
    dist.barrier()
    result = {"raised": raised, "lasted": lasted, "names": Folder(place).names()}
    result["again"] = saved_again(together)
    loaded = together.load()
    result["loaded"] = loaded.meta["step"] if same(loaded.own, own_state(1, rank())) else None
    together.close()
    return result


def saved_again(together: Checkpointer) -> str:
    """What the next save comes to after one that failed."""
    try:
        together.save(1, shared_state(1), own_state(1, rank()), background=True)
        together.wait()
    except StratrunError as error:
        return type(error).__name__
    return "saved"


def fail_in(place: str, phase: str, where: int, lag: str = "") -> dict[str, Any]:
    def fault() -> Any:
        if rank() == where:
            return failing(phase)
        return slow(*{"": (0.0, True), "each": (0.7, True), "one": (12.0, False)}[lag])

    return saves(place, fault, 20.0 if lag else 8.0)


def check(results: list[dict[str, Any]], place: Path, words: str, limit: float = 10.0) -> None:
    """All raise the same at the same iteration in time; only the good checkpoint is there and loads."""
    iterations, kinds, texts, seconds = zip(*(result["raised"] for result in results), strict=True)
    assert len(set(iterations)) == len(set(texts)) == 1, list(zip(iterations, texts, strict=True))
    assert set(kinds) == {"CheckpointError"}
    assert f"saving step 2 to {place} {words}" in texts[0]
    assert max(seconds) < limit
    assert all(result["names"] == ["step-00000001"] for result in results)
    assert all(result["loaded"] == 1 for result in results)


@pytest.mark.parametrize(
    ("phase", "where"), [(phase, 0) for phase in PHASES] + [(phase, 1) for phase in ON_ANY]
)
def test_a_failure_in_any_phase_is_raised_by_all_at_the_same_iteration(
    phase: str, where: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    results = two_ranks(fail_in, str(tmp_path), phase, where)
    check(results, tmp_path, f"failed on rank {where}: ")
    text = results[0]["raised"][2]
    cause = "No space left" if isinstance(PHASES[phase], str) else f"ValueError: no {phase} for you"
    assert cause in text
    if phase == "exchange of plans":
        two_ranks.stop()  # the other is left in an exchange that nobody comes to
    else:
        assert [result["again"] for result in results] == ["saved"] * 2


@pytest.mark.parametrize("where", [0, 3])
def test_four_ranks_raise_together_too(where: int, four_ranks: Ranks, tmp_path: Path) -> None:
    check(four_ranks(fail_in, str(tmp_path), "shard", where), tmp_path, f"failed on rank {where}: ")


@pytest.mark.parametrize(("lag", "where"), [("each", 0), ("each", 1), ("one", 0)])
def test_a_rank_that_still_writes_slowly_does_not_keep_the_others_from_raising(
    where: int, lag: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    results = two_ranks(fail_in, str(tmp_path), "shard", where, lag)
    check(results, tmp_path, f"failed on rank {where}: ")
    assert "No space left" in results[0]["raised"][2]
    # 42 tensors of 0.7 s: it has stopped long before it was done.
    assert max(result["lasted"] for result in results) < 10
