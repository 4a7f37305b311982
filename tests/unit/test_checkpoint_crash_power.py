"""A loss of power at any moment of a save: what was not synced by then may be there, missing or zero."""

import shutil
from contextlib import suppress

import pytest

from stratrun.checkpoint.discovery import committed_steps
from stratrun.errors import CheckpointError
from stratrun.storage import Folder, local
from tests.checkpoints import checkpointer, own_state, same, shared_state
from tests.disks import Counted, Disk, build, observed
from tests.unit.test_checkpoint_crash import is_whole, save, save_and_retain, state


def power_losses(root, work):
    """Every state that the disk can be in while work is done on the folder, without repetitions.

    Yields the operations that were done, whether those were all, and the state.
    """
    disk, counted, known = Disk(root), Counted(), set()
    with observed(counted):
        work()
    for done in range(len(counted.seen) + 1):
        for tree in disk.losses(seed=done):
            last = done == len(counted.seen)
            key = (last, tuple(sorted(tree.items())))
            if key not in known:
                known.add(key)
                yield [operation.name for operation in counted.seen[:done]], last, tree
        if not last:
            disk.apply(counted.seen[done])


def check_newest(place, tree, expected, what):
    """Build the state, and see that what has a marker is whole, and the newest one of the expected steps."""
    target = place / "after"
    build(tree, target)
    folder = Folder(target / "run" / "checkpoints")
    steps = committed_steps(folder)
    assert steps and steps[-1] in expected, what
    for step in steps:
        assert is_whole(folder, step), what
    shutil.rmtree(target)
    return steps[-1]


@pytest.fixture(params=["direct", "buffered"], autouse=True)
def path(request, monkeypatch):
    if request.param == "buffered":
        monkeypatch.setattr(local, "_DIRECT", 0)


def test_a_checkpoint_is_whole_or_not_there_and_stays_once_save_has_returned(tmp_path):
    root = tmp_path / "disk"
    folder = Folder(root / "run" / "checkpoints")
    for step in (1, 2, 3):
        save(folder, step)
    newest = set()
    for done, last, tree in power_losses(root, lambda: save_and_retain(folder, 4)):
        newest.add(check_newest(tmp_path, tree, {4} if last else {3, 4}, f"after {done}"))
    assert len(done) > 40
    assert newest == {3, 4}


def test_the_first_one_of_a_run_stays_with_the_folders_that_were_made_for_it(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    folder = Folder(root / "run" / "checkpoints")
    for done, last, tree in power_losses(root, lambda: save(folder, 4)):
        if last:
            check_newest(tmp_path, tree, {4}, f"after {done}")


def test_while_a_damaged_one_is_written_anew_the_older_one_stays(tmp_path):
    root = tmp_path / "disk"
    folder = Folder(root / "run" / "checkpoints")
    for step in (1, 2):
        save(folder, step)
    (root / "run/checkpoints/step-00000002/index.json").write_bytes(b"{}")
    for number, (done, last, tree) in enumerate(power_losses(root, lambda: save(folder, 2))):
        target = tmp_path / str(number)
        build(tree, target)
        loaded = checkpointer(target / "run" / "checkpoints").load()
        assert loaded.meta["step"] in ({2} if last else {1, 2}), f"after {done}"
        assert same(loaded.shared, state(loaded.meta["step"])), f"after {done}"
        shutil.rmtree(target)


def test_a_save_that_fails_and_a_loss_of_power_leave_the_older_one(tmp_path):
    root = tmp_path / "disk"
    folder = Folder(root / "run" / "checkpoints")
    save(folder, 3)

    def fail():
        raise OSError(28, "No space left on device")

    def work():
        with suppress(CheckpointError), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Folder, "rename", lambda *args: fail())
            checkpointer(folder).save(4, shared_state(4), own_state(4))

    for done, _, tree in power_losses(root, work):
        check_newest(tmp_path, tree, {3}, f"after {done}")
