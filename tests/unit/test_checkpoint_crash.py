"""A process that dies at any operation of a save leaves the newest committed checkpoint whole."""

import shutil
import signal
import uuid
from pathlib import Path

import pytest
import torch

from stratrun.checkpoint import index, shards
from stratrun.checkpoint.discovery import committed_steps
from stratrun.errors import CheckpointError
from stratrun.storage import Folder, local, uploads
from tests.checkpoints import checkpointer, own_state, same, shared_state
from tests.disks import Counted, in_child, observed

KINDS = {"mkdir", "open", "pwrite", "write", "fsync", "rename", "unlink", "rmdir", "nameless", "link"}


def state(step):
    """Of some pages and a rest, so that files are written past the cache and through it."""
    return {**shared_state(step), "big": torch.arange(5000) * step}


def save(folder, step, **options):
    checkpointer(folder).save(step, state(step), own_state(step), **options)


def save_and_retain(folder, step, background=False):
    ours = checkpointer(folder)
    ours.save(step, state(step), own_state(step), keep_last=2, background=background)
    ours.wait()


def survivors_are_whole(folder):
    """Whether the newest one is found, and every one with a marker loads as it was saved."""
    steps = committed_steps(folder)
    newest = checkpointer(folder).load()
    return newest.meta["step"] == steps[-1] and all(is_whole(folder, step) for step in steps)


def is_whole(folder, step):
    loaded = checkpointer(folder).load(step)
    return same(loaded.shared, state(step)) and same(loaded.own, own_state(step))


def as_if_large(monkeypatch, per_file=15_000, part=16_384):
    """Have the state written like one of gigabytes: in several files at once, in blocks made ahead."""
    monkeypatch.setattr(index, "BLOCK", shards.PAGE)
    monkeypatch.setattr(shards, "_BUFFER", 3 * shards.PAGE)
    monkeypatch.setattr(shards, "_PER_FILE", per_file)
    monkeypatch.setattr(uploads, "_PART", part)


@pytest.fixture
def path(request, monkeypatch):
    """How writes go to the disk."""
    if request.param == "buffered":
        monkeypatch.setattr(local, "_DIRECT", 0)
    if request.param == "large":
        as_if_large(monkeypatch)
    return request.param


def copies(before, place):
    """The same folder again and again, and for the k-th time k."""
    for fatal in range(1, 1000):
        target = place / str(fatal)
        shutil.copytree(before, target)
        yield fatal, Folder(target)
        shutil.rmtree(target)


def operations_of(before, place, work):
    counted = Counted()
    shutil.copytree(before, place / "whole")
    with observed(counted):
        work(Folder(place / "whole"))
    return counted.seen


@pytest.fixture
def three(tmp_path):
    """A folder with three checkpoints, and with what saves and removals that were killed have left."""
    for step in (1, 2, 3):
        save(Folder(tmp_path / "three"), step)
    for name in (".staging-step-00000004.run.0a", ".trash-step-00000001.run.0b"):
        shutil.copytree(tmp_path / "three" / "step-00000001", tmp_path / "three" / name)
    return tmp_path / "three"


@pytest.mark.parametrize(
    ("path", "background"), [("direct", False), ("buffered", False), ("large", True)], indirect=["path"]
)
def test_killed_at_any_operation_the_newest_committed_one_is_whole(tmp_path, three, path, background):
    seen = operations_of(three, tmp_path, lambda folder: save_and_retain(folder, 4, background))
    assert {operation.name for operation in seen} == KINDS
    assert any(operation.direct for operation in seen) == (path != "buffered")
    files = {
        operation.path for operation in seen if operation.name == "pwrite" and "shard-" in operation.path
    }
    assert len(files) == (3 if path == "large" else 1)
    newest = set()
    for fatal, folder in copies(three, tmp_path):

        def work(folder=folder, fatal=fatal):
            with observed(Counted(fatal)):
                save_and_retain(folder, 4, background)

        code = in_child(work)
        newest.add(committed_steps(folder)[-1])
        assert survivors_are_whole(folder), f"killed at operation {fatal}: {folder.names()}"
        save_and_retain(folder, 5)
        assert survivors_are_whole(folder)
        # What was left goes with the next success: of the dead attempt, and of earlier ones.
        left = [name for name in folder.names() if not name.startswith("step-")]
        assert (left, len(committed_steps(folder))) == ([], 2), f"killed at operation {fatal}"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert fatal == len(seen) + 1 > 40
    assert newest == {3, 4}


@pytest.mark.parametrize("broken", ["index.json", "COMMITTED", "shard-00000-of-00001.safetensors"])
def test_killed_while_a_damaged_one_is_written_anew_the_older_one_is_whole(tmp_path, broken):
    for step in (1, 2):
        save(Folder(tmp_path / "two"), step)
    (tmp_path / "two" / "step-00000002" / broken).write_bytes(b"{}")
    newest = []
    for fatal, folder in copies(tmp_path / "two", tmp_path):

        def work(folder=folder, fatal=fatal):
            with observed(Counted(fatal)):
                save(folder, 2)

        code = in_child(work)
        loaded = checkpointer(folder).load()
        newest.append(loaded.meta["step"])
        assert same(loaded.shared, state(newest[-1])), f"killed at operation {fatal}"
        save(folder, 3)
        assert [name for name in folder.names() if not name.startswith("step-")] == []
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert fatal > 25
    assert sorted(newest) == newest and set(newest) == {1, 2}


READS = {"ls", "info", "find", "exists", "isdir", "isfile", "cat_file", "invalidate_cache"}


class Crash(BaseException):
    """Stands for the death of the process: nothing after it runs, cleaning up included."""


class FaultyStore:
    """A file system of fsspec whose changes are cut short for good at one of them."""

    protocol = "memory"

    def __init__(self, fs, fatal):
        self._fs = fs
        self._left = fatal

    def __getattr__(self, name):
        found = getattr(self._fs, name)
        return self._checked(found) if callable(found) else found

    def _checked(self, function):
        def call(*args, **kwargs):
            # At a read it would leave what it leaves at the next change.
            self._left -= function.__name__ not in READS
            if self._left <= 0:
                raise Crash
            return function(*args, **kwargs)

        return call

    def rm(self, path, recursive=False):
        # A store removes one object after the other, in any order: here the marker last.
        for name in sorted(self._fs.find(path), reverse=True):
            self._checked(self._fs.rm_file)(name)


@pytest.mark.parametrize("large", [False, True])
def test_a_store_without_rename_keeps_the_newest_committed_one_whole(large, monkeypatch):
    if large:
        as_if_large(monkeypatch)
    newest = set()
    for fatal in range(1, 1000):
        folder = Folder(f"memory://{uuid.uuid4().hex}")
        for step in (1, 2, 3):
            save(folder, step)
        healthy = folder._fs
        folder._fs = FaultyStore(healthy, fatal)
        try:
            save_and_retain(folder, 4)
            crashed = False
        except (Crash, CheckpointError) as error:  # as what is raised in its thread
            assert "Crash" in repr(error)
            crashed = True
        folder._fs = healthy
        newest.add(committed_steps(folder)[-1])
        assert survivors_are_whole(folder), f"crashed at operation {fatal}: {folder._fs.find(folder._root)}"
        save_and_retain(folder, 5)
        assert survivors_are_whole(folder)
        if not crashed:
            break
    assert fatal > 20
    assert newest == {3, 4}


def test_everything_is_on_disk_before_the_marker_and_the_marker_before_the_name(tmp_path):
    counted = Counted()
    (tmp_path / "here").mkdir()
    with observed(counted):
        checkpointer(tmp_path / "here").save(7, shared_state(7))
    told = [one for one in counted.seen if one.name in ("fsync", "link", "rename")]
    names = [Path(one.path).name.split(".staging-")[-1].partition(".run.")[0] for one in told]
    marker = told[5].path
    assert Path(told[6].target).name == "COMMITTED"
    assert [(one.name, name) for one, name in zip(told, names, strict=True) if one.path != marker] == [
        ("fsync", "shard-00000-of-00001.safetensors"),
        ("fsync", "state.json"),
        ("fsync", "index.json"),
        ("fsync", "manifest.json"),
        ("fsync", "step-00000007"),
        ("fsync", "step-00000007"),
        ("rename", "step-00000007"),
        ("fsync", "here"),
    ]
    assert [one.name for one in told if one.path == marker] == ["fsync", "link"]
