"""A process that dies at any operation of a save leaves the newest committed checkpoint whole."""

import builtins
import os
import signal
import uuid
from pathlib import Path

from stratrun.checkpoint.discovery import committed_steps
from stratrun.storage import Folder, local
from tests.checkpoints import checkpointer, own_state, same, shared_state

# Each changes what is on disk. `open` and `write` are added below.
OPERATIONS = ("mkdir", "rename", "unlink", "rmdir", "fsync")


class Faults:
    """Calls `die` in place of operation number `fatal`, and counts them all."""

    def __init__(self, fatal, die):
        self.count = 0
        self._fatal = fatal
        self._die = die

    def tick(self):
        self.count += 1
        if self.count == self._fatal:
            self._die()

    def guarded(self, function):
        def call(*args, **kwargs):
            self.tick()
            return function(*args, **kwargs)

        return call


class HalvedFile:
    """Writes in two steps, so that a death between them leaves half of what was to be written."""

    def __init__(self, file, faults):
        self._file = file
        self._faults = faults

    def write(self, data):
        data = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._faults.tick()
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._faults.tick()
        self._file.write(data[len(data) // 2 :])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()


def save_and_retain(folder, step):
    ours = checkpointer(folder)
    ours.save(step, shared_state(step), own_state(step))
    ours.apply_retention(2)


def inject(faults):
    """Route every operation of this process that changes a local folder past the faults."""
    for name in OPERATIONS:
        setattr(os, name, faults.guarded(getattr(os, name)))

    def opened(path, mode="rb"):
        if "w" not in mode:
            return builtins.open(path, mode)
        faults.tick()
        return HalvedFile(builtins.open(path, mode), faults)

    local.open = opened


def in_child(work):
    """Run in a forked process. Returns its exit code, or minus the signal it died of."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def survivors_are_whole(folder):
    """Whether the newest one is found, and every one with a marker loads as it was saved."""
    steps = committed_steps(folder)
    newest = checkpointer(folder).load()
    return newest.meta["step"] == steps[-1] and all(is_whole(folder, step) for step in steps)


def is_whole(folder, step):
    loaded = checkpointer(folder).load(step)
    return same(loaded.shared, shared_state(step)) and same(loaded.own, own_state(step))


def test_killed_at_any_operation_the_newest_committed_one_is_whole(tmp_path):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    newest = set()
    for fatal in range(1, 1000):
        folder = Folder(tmp_path / str(fatal))
        for step in (1, 2, 3):
            checkpointer(folder).save(step, shared_state(step), own_state(step))

        def work(folder=folder, fatal=fatal):
            inject(Faults(fatal, die))
            save_and_retain(folder, 4)

        code = in_child(work)
        newest.add(committed_steps(folder)[-1])
        assert survivors_are_whole(folder), f"killed at operation {fatal}: {folder.names()}"
        save_and_retain(folder, 5)
        assert survivors_are_whole(folder)
        assert folder.names() == ["step-00000004", "step-00000005"] or 4 not in committed_steps(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert fatal > 40
    assert newest == {3, 4}


def test_killed_while_a_damaged_one_is_written_anew_the_older_one_is_whole(tmp_path):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    for fatal in range(1, 1000):
        folder = Folder(tmp_path / str(fatal))
        for step in (1, 2):
            checkpointer(folder).save(step, shared_state(step), own_state(step))
        Path(tmp_path / str(fatal) / "step-00000002/index.json").write_bytes(b"{}")

        def work(folder=folder, fatal=fatal):
            inject(Faults(fatal, die))
            checkpointer(folder).save(2, shared_state(2), own_state(2))

        code = in_child(work)
        loaded = checkpointer(folder).load()
        assert same(loaded.shared, shared_state(loaded.meta["step"]))
        if code == 0:
            break
    assert loaded.meta["step"] == 2


class Crash(BaseException):
    """Stands for the death of the process: nothing after it runs, cleaning up included."""


class FaultyStore:
    """A file system of fsspec whose changes may be cut short for good."""

    protocol = "memory"

    def __init__(self, fs, faults):
        self._fs = fs
        self._faults = faults
        self.dead = False

    def __getattr__(self, name):
        found = getattr(self._fs, name)
        return self._checked(found) if callable(found) else found

    def _checked(self, function):
        def call(*args, **kwargs):
            if self.dead:
                raise Crash
            try:
                self._faults.tick()
            except Crash:
                self.dead = True
                raise
            return function(*args, **kwargs)

        return call

    def rm(self, path, recursive=False):
        # A store removes one object after the other, in any order: here the marker last.
        for name in sorted(self._fs.find(path), reverse=True):
            self._checked(self._fs.rm_file)(name)


def test_a_store_without_rename_keeps_the_newest_committed_one_whole():
    def die():
        raise Crash

    newest = set()
    for fatal in range(1, 1000):
        folder = Folder(f"memory://{uuid.uuid4().hex}")
        for step in (1, 2, 3):
            checkpointer(folder).save(step, shared_state(step), own_state(step))
        healthy = folder._fs
        folder._fs = FaultyStore(healthy, Faults(fatal, die))
        try:
            save_and_retain(folder, 4)
            crashed = False
        except Crash:
            crashed = True
        folder._fs = healthy
        newest.add(committed_steps(folder)[-1])
        assert survivors_are_whole(folder), f"crashed at operation {fatal}: {folder._fs.find(folder._root)}"
        save_and_retain(folder, 5)
        assert survivors_are_whole(folder)
        if not crashed:
            break
    assert fatal > 25
    assert newest == {3, 4}


def test_everything_is_on_disk_before_the_marker_and_the_marker_before_the_name(tmp_path, monkeypatch):
    log = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(handle):
        log.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".staging-")[-1])
        fsync(handle)

    def logged_rename(old, new):
        log.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    checkpointer(tmp_path / "here").save(7, shared_state(7))
    names = [name.partition(".run.")[0] for name in log]
    assert names == [
        "shard-00000-of-00001.safetensors",
        "index.json",
        "state.json",
        "manifest.json",
        "step-00000007",
        "COMMITTED",
        "step-00000007",
        "rename",
        "here",
    ]
