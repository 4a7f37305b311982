"""A save that meets an error at any of its operations says so, and leaves what was there before."""

import errno
import os
import shutil

import pytest

from stratrun.checkpoint import Checkpointer, layout
from stratrun.checkpoint.discovery import committed_steps
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import CheckpointError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, own_state, shared_state
from tests.disks import Counted, observed
from tests.unit.test_checkpoint_crash import is_whole, save, state


def refusing(number):
    def refuse(operation):
        raise OSError(number, os.strerror(number), operation.path)

    return refuse


@pytest.mark.parametrize(
    ("number", "background"),
    [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EROFS, False), (errno.EIO, True)],
)
def test_an_error_at_any_operation_is_raised_and_the_older_one_stays(tmp_path, number, background):
    save(Folder(tmp_path / "one"), 1)
    failed, folder = [], Folder(tmp_path / "run")
    for fatal in range(1, 100):
        shutil.copytree(tmp_path / "one", tmp_path / "run")
        counted, ours = Counted(fatal, refusing(number)), checkpointer(folder)
        try:
            with observed(counted):
                ours.save(2, state(2), own_state(2), background=background)
                ours.wait()
        except CheckpointError as error:
            failed.append(counted.seen[fatal - 1].name)
            assert f"saving step 2 to {folder} failed" in str(error)
            assert os.strerror(number) in str(error), f"{fatal}: {error}"
            if (failed[-1], counted.seen[fatal - 1].path) != ("fsync", str(tmp_path / "run")):  # the last
                assert folder.names() == ["step-00000001"], f"operation {fatal}: {failed[-1]}"
        else:
            # Without a word only if it is there.
            assert committed_steps(folder) == [1, 2] and is_whole(folder, 2)
        assert is_whole(folder, 1)
        ours.save(3, state(3), own_state(3))
        assert is_whole(folder, 3)
        assert [name for name in folder.names() if layout.step_of(name) is None] == []
        shutil.rmtree(tmp_path / "run")
        if len(counted.seen) < fatal:
            break
    assert {"mkdir", "open", "pwrite", "write", "fsync", "rename"} <= set(failed)
    # Of the others, all made a folder that was there.
    assert len(failed) > 25


def in_bucket(s3, run_id, **options):
    folder = Folder(s3.url, **s3.options, **options)
    return Checkpointer(folder, Collectives(ProcessEnv()), run_id=run_id)


def test_what_another_process_saves_and_removes_is_seen_past_a_cache_of_listings(s3):
    cached, other = in_bucket(s3, "run", use_listings_cache=True), in_bucket(s3, "run")
    other.save(1, shared_state(1))
    assert cached.load().meta["step"] == 1
    other.save(2, shared_state(2))
    other.save(3, shared_state(3), keep_last=1)
    assert cached.load().meta["step"] == 3
    assert committed_steps(cached.folder) == [3]
    cached.save(4, shared_state(4), keep_last=2)
    assert committed_steps(other.folder) == [3, 4]


def test_times_that_run_backwards_change_neither_the_newest_nor_what_is_removed(tmp_path):
    ours = checkpointer(tmp_path)
    for step in (9, 10, 100):
        ours.save(step, shared_state(step))
        for path in [tmp_path / layout.name_of(step), *(tmp_path / layout.name_of(step)).iterdir()]:
            os.utime(path, (2e9 - step, 2e9 - step))
    assert checkpointer(tmp_path).load().meta["step"] == 100
    ours.apply_retention(1)
    assert committed_steps(Folder(tmp_path)) == [100]
