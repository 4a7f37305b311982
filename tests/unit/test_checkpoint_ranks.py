"""Saving and loading on several ranks: together, or not at all."""

import os
import time
from contextlib import nullcontext

import pytest
import torch

from stratrun.checkpoint import Checkpointer, layout
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import CheckpointCorruptedError, CheckpointError, CheckpointNotFoundError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, full_disk, own_state, same, shared_state


def ours(place):
    return Checkpointer(Folder(place), Collectives(ProcessEnv.from_environ(os.environ)), run_id="run")


def rank():
    return int(os.environ["RANK"])


def save_steps(place, steps):
    together = ours(place)
    for step in steps:
        url = together.save(step, shared_state(step) if rank() == 0 else None, own_state(step, rank()))
    together.apply_retention(3)
    return url


def load_step(place, which="latest"):
    loaded = ours(place).load(which)
    step = loaded.meta["step"]
    assert same(loaded.shared, shared_state(step))
    assert same(loaded.own, own_state(step, rank())) or loaded.own is None
    return step, loaded.own is not None, loaded.meta["world_size"], loaded.passed_over


def test_each_rank_gets_the_shared_state_and_its_own(two_ranks, tmp_path):
    urls = two_ranks(save_steps, str(tmp_path), [1, 2])
    assert urls == [f"{tmp_path}/step-00000002"] * 2
    assert two_ranks(load_step, str(tmp_path)) == [(2, True, 2, {})] * 2
    names = Folder(tmp_path / "step-00000002").names()
    assert [name for name in names if name.startswith("shard")] == [layout.shard_name(r, 2) for r in (0, 1)]


def test_one_rank_loads_what_two_saved_and_two_what_one_saved(two_ranks, tmp_path):
    two_ranks(save_steps, str(tmp_path / "two"), [1])
    loaded = checkpointer(tmp_path / "two").load()
    assert same(loaded.own, own_state(1, 0))
    assert loaded.meta["world_size"] == 2
    checkpointer(tmp_path / "one").save(1, shared_state(1), own_state(1))
    assert two_ranks(load_step, str(tmp_path / "one")) == [(1, True, 1, {}), (1, False, 1, {})]


def test_damage_to_one_ranks_file_sends_all_ranks_to_the_same_older_one(two_ranks, tmp_path):
    two_ranks(save_steps, str(tmp_path), [1, 2])
    path = tmp_path / "step-00000002" / layout.shard_name(1, 2)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    found = two_ranks(load_step, str(tmp_path))
    assert [step for step, *_ in found] == [1, 1]
    assert all(path.name in passed_over[2] for *_, passed_over in found)


def errors_of(place, work):
    """The error of this rank, and how long it took."""
    start = time.monotonic()
    try:
        work(place)
    except CheckpointError as error:
        return type(error), str(error), time.monotonic() - start
    return None


def failing_save(place, failing_rank, path):
    with full_disk(path) if rank() == failing_rank else nullcontext():
        return errors_of(place, lambda place: save_steps(place, [2]))


@pytest.mark.parametrize(
    ("failing_rank", "path"),
    [(1, "shard-00001"), (0, "shard-00000"), (0, "state.json"), (0, "manifest.json"), (0, "COMMITTED")],
)
def test_a_failure_on_one_rank_is_the_same_error_on_all_and_leaves_nothing(
    two_ranks, tmp_path, failing_rank, path
):
    two_ranks(save_steps, str(tmp_path), [1])
    found = two_ranks(failing_save, str(tmp_path), failing_rank, path)
    assert [kind for kind, *_ in found] == [CheckpointError] * 2
    for _, message, seconds in found:
        assert message.startswith(f"saving step 2 to {tmp_path} failed on rank {failing_rank}: ")
        assert "No space left" in message
        assert path in message
        assert seconds < 10
    assert Folder(tmp_path).names() == ["step-00000001"]
    assert two_ranks(load_step, str(tmp_path)) == [(1, True, 2, {})] * 2


def save_unsavable(place):
    return errors_of(place, lambda place: ours(place).save(2, {}, {"hook": object()} if rank() == 1 else {}))


def test_state_that_one_rank_cannot_save_is_named_on_all(two_ranks, tmp_path):
    for _, message, _ in two_ranks(save_unsavable, str(tmp_path)):
        assert "failed on rank 1: the state at hook is a " in message


def load_and_report(place, which="latest"):
    return errors_of(place, lambda place: ours(place).load(which))


def test_none_and_all_damaged_are_the_same_error_on_all_ranks(two_ranks, tmp_path):
    assert [kind for kind, *_ in two_ranks(load_and_report, str(tmp_path))] == [CheckpointNotFoundError] * 2
    two_ranks(save_steps, str(tmp_path), [1, 2])
    for step in (1, 2):
        (tmp_path / layout.name_of(step) / layout.shard_name(1, 2)).write_bytes(b"")
    found = two_ranks(load_and_report, str(tmp_path))
    assert [kind for kind, *_ in found] == [CheckpointCorruptedError] * 2
    assert found[0][1] == found[1][1]


def save_apart(place):
    """Each rank writes where the other cannot see it."""
    return errors_of(f"{place}/{rank()}", lambda place: save_steps(place, [1]))


def test_storage_that_the_ranks_do_not_share_is_found_before_the_commit(two_ranks, tmp_path):
    for _, message, _ in two_ranks(save_apart, str(tmp_path)):
        assert "shard-00001-of-00002.safetensors" in message
        assert "storage that they share" in message
    assert Folder(tmp_path / "0").names() == []


def save_twice(place):
    together = ours(place)
    return [together.save(3, shared_state(3), own_state(3, rank())) for _ in range(2)]


def test_a_step_saved_twice_is_left_as_it_is_on_all_ranks(two_ranks, tmp_path):
    assert two_ranks(save_twice, str(tmp_path)) == [[f"{tmp_path}/step-00000003"] * 2] * 2


def save_without_own(place):
    ours(place).save(1, {"x": torch.ones(2)})


def test_ranks_without_tensors_write_no_file(two_ranks, tmp_path):
    two_ranks(save_without_own, str(tmp_path))
    names = Folder(tmp_path / "step-00000001").names()
    assert [name for name in names if name.startswith("shard")] == [layout.shard_name(0, 2)]


def save_other_steps(place):
    return errors_of(place, lambda place: ours(place).save(5 + rank(), shared_state(5), own_state(5, rank())))


def test_ranks_that_save_different_steps_are_told_so_and_leave_nothing(two_ranks, tmp_path):
    for _, message, seconds in two_ranks(save_other_steps, str(tmp_path)):
        assert "failed on rank 1: step 6 is saved here, and step 5 on the main rank" in message
        assert seconds < 10
    assert Folder(tmp_path).names() == []


def fail_in_collecting(place):
    def own():
        if rank() == 1:
            raise ValueError("spoiled state of a hook")
        return {}

    return errors_of(place, lambda place: ours(place).save(5, lambda: shared_state(5), own))


def test_state_that_one_rank_fails_to_give_is_told_to_all(two_ranks, tmp_path):
    for _, message, _ in two_ranks(fail_in_collecting, str(tmp_path)):
        assert "failed on rank 1: ValueError: spoiled state of a hook" in message
