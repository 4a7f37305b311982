"""Files on local disk: past the cache, through it, and when the disk refuses."""

import errno
import fcntl
import mmap
import os
import pickle
import resource
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from stratrun.errors import StorageError
from stratrun.storage import Folder

PAGE = 4096
SIZES = [0, 1, 511, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 17, 2**20 + 5]


def pages(data):
    """A copy that begins on a page."""
    memory = mmap.mmap(-1, max(len(data), 1))
    memory[: len(data)] = data
    return memoryview(memory)[: len(data)]


def content(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
def direct_writes(monkeypatch):
    """For each write, whether it went past the cache."""
    seen = []
    write = os.pwrite

    def noted(handle, data, offset):
        seen.append(bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT))
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    return seen


@pytest.mark.parametrize("place", ["disk", "/dev/shm"])
@pytest.mark.parametrize("size", SIZES)
def test_blocks_are_written_byte_for_byte_whatever_their_size(tmp_path, place, size):
    root = Path(tempfile.mkdtemp(dir=None if place == "disk" else place))
    try:
        data = content(size)
        Folder(root).write_blocks("sub/a", lambda: [pages(data)])
        assert (root / "sub" / "a").read_bytes() == data
        Folder(root).write_blocks("b", lambda: [memoryview(data)])
        assert (root / "b").read_bytes() == data
    finally:
        shutil.rmtree(root)


def test_whole_pages_go_past_the_cache_and_the_rest_through_it(tmp_path, direct_writes):
    data = content(3 * PAGE + 17)
    Folder(tmp_path).write_blocks("a", lambda: [pages(data[: 2 * PAGE]), pages(data[2 * PAGE :])])
    assert direct_writes == [True, True, False]
    assert (tmp_path / "a").read_bytes() == data


def test_blocks_of_odd_sizes_and_places_follow_each_other(tmp_path):
    parts = [content(size) for size in (PAGE, 3, 2 * PAGE, 0, 7 * PAGE + 1, PAGE)]
    odd = memoryview(b"x" + parts[2])[1:]
    Folder(tmp_path).write_blocks(
        "a", lambda: [pages(parts[0]), pages(parts[1]), odd, *map(pages, parts[3:])]
    )
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


def test_memory_is_reused_between_blocks(tmp_path):
    memory = pages(bytes(2 * PAGE))

    def blocks():
        for number in range(5):
            memory[:] = bytes([number]) * len(memory)
            yield memory

    Folder(tmp_path).write_blocks("a", blocks)
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([number]) * 2 * PAGE for number in range(5))


def test_a_disk_that_refuses_to_be_written_directly_is_written_through_the_cache(tmp_path, monkeypatch):
    write = os.pwrite

    def picky(handle, data, offset):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not so")
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", picky)
    Folder(tmp_path).write_blocks("a", lambda: [pages(content(3 * PAGE))] * 2)
    assert (tmp_path / "a").read_bytes() == content(3 * PAGE) * 2


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: write(handle, data[:1000], offset))
    Folder(tmp_path).write_blocks("a", lambda: [memoryview(content(5001))])
    assert (tmp_path / "a").read_bytes() == content(5001)


def test_a_file_of_blocks_is_synced(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), fsync(handle)))
    Folder(tmp_path).write_blocks("a", lambda: [pages(content(PAGE + 1))])
    assert synced == [PAGE + 1]


def test_a_file_that_is_there_is_not_written_over_by_blocks(tmp_path):
    Folder(tmp_path).write_bytes("a", b"old")
    with pytest.raises(FileExistsError):
        Folder(tmp_path).write_blocks("a", lambda: [memoryview(b"new")])
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_error_of_the_source_leaves_no_file_and_stays_itself(tmp_path):
    def blocks():
        yield pages(content(PAGE))
        raise ZeroDivisionError("the source")

    with pytest.raises(ZeroDivisionError, match="the source"):
        Folder(tmp_path).write_blocks("a", blocks)
    assert os.listdir(tmp_path) == []


def test_what_a_network_mount_refuses_once_is_written_anew_from_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("stratrun.storage.retry.time.sleep", lambda seconds: None)
    fsync, failures, made = os.fsync, [OSError(errno.ESTALE, "stale")], []

    def once(handle):
        if failures:
            raise failures.pop()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", once)
    Folder(tmp_path).write_blocks("a", lambda: (made.append(1), [memoryview(b"all of it")])[1])
    assert (tmp_path / "a").read_bytes() == b"all of it"
    assert len(made) == 2


def test_an_exclusive_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write_bytes("lock", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        folder.write_bytes("lock", b"second", exclusive=True)
    folder.write_bytes("lock", b"first", exclusive=True)
    assert folder.read_bytes("lock") == b"first"

    def broken(handle):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match=r"creating .*other failed"):
        folder.write_bytes("other", b"x", exclusive=True)
    assert folder.names() == ["lock"]


def test_a_disk_without_nameless_files_creates_exclusively_all_the_same(tmp_path, monkeypatch):
    opened = os.open

    def old(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "unknown")
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", old)
    Folder(tmp_path).write_bytes("lock", b"1", exclusive=True)
    with pytest.raises(FileExistsError):
        Folder(tmp_path).write_bytes("lock", b"2", exclusive=True)
    assert (tmp_path / "lock").read_bytes() == b"1"


def test_of_many_who_create_a_file_at_once_one_succeeds(tmp_path):
    def claim(number):
        try:
            Folder(tmp_path).write_bytes("lock", b"%d" % number, exclusive=True)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(claim, range(8)) if number is not None]
    assert [b"%d" % number for number in winners] == [(tmp_path / "lock").read_bytes()]


@pytest.fixture
def small_disk(tmp_path):
    """8 MB of disk."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_an_error_with_its_number_and_leaves_no_half_file(small_disk):
    folder = Folder(small_disk)
    block = pages(bytes(2**20))
    folder.write_blocks("fits", lambda: [block] * 5)
    with pytest.raises(
        StorageError, match=r"writing .*too-much failed: \[ENOSPC\] No space left.*make room"
    ) as error:
        folder.write_blocks("too-much", lambda: [block] * 5)
    assert error.value.errno == errno.ENOSPC
    assert folder.sizes() == {"fits": 5 * 2**20}
    assert folder.free_bytes() == 3 * 2**20
    assert folder.child("not/there/yet").free_bytes() == 3 * 2**20


def test_a_file_beyond_the_limit_of_the_process_is_an_error_and_not_a_death(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(StorageError, match="File too large") as error:
            Folder(tmp_path).write_blocks("a", lambda: [pages(bytes(2**17))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


@contextmanager
def nobody():
    """As a user whom permissions bind, unlike root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


WRITES = {
    "write_bytes": lambda folder: folder.write_bytes("a", b"1"),
    "exclusive": lambda folder: folder.write_bytes("a", b"1", exclusive=True),
    "write_blocks": lambda folder: folder.write_blocks("a", lambda: [memoryview(b"1")]),
    "make": lambda folder: folder.child("sub").make(),
    "remove": lambda folder: folder.remove("there"),
    "rename": lambda folder: folder.rename("there", "here"),
    "probe": lambda folder: folder.probe("token"),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_folder_that_can_only_be_read_is_an_error_that_says_what_to_do(name):
    place = Path(tempfile.mkdtemp())
    (place / "there").write_bytes(b"kept")
    place.chmod(0o555)
    try:
        with nobody():
            folder = Folder(place)
            assert folder.read_bytes("there") == b"kept"
            with pytest.raises(
                StorageError, match=r"failed: \[EACCES\] Permission denied; this user"
            ) as error:
                WRITES[name](folder)
            assert error.value.errno == errno.EACCES
            assert folder.names() == ["there"]
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


def test_a_file_in_the_place_of_the_folder_fails_the_probe(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="/file is in the way, and no folder; move it away") as error:
            Folder(place).probe("token")
        assert error.value.errno in (errno.EEXIST, errno.ENOTDIR)


def test_a_probe_on_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="ENOSPC"):
        Folder(tmp_path).probe("token")
    assert os.listdir(tmp_path) == []


def test_a_probe_leaves_nothing(tmp_path):
    Folder(tmp_path / "run").probe("token")
    assert os.listdir(tmp_path / "run") == []


def test_a_disk_that_reads_other_bytes_than_were_written_fails_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "read_bytes", lambda self, path, limit=None: b"other")
    with pytest.raises(StorageError, match="does not read the same"):
        Folder(tmp_path).probe("token")


def test_the_error_of_a_store_keeps_its_number_between_processes():
    error = pickle.loads(pickle.dumps(StorageError("text", errno.ENOSPC)))
    assert isinstance(error, OSError)
    assert (str(error), error.errno) == ("text", errno.ENOSPC)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cannot_be_looked_up_is_an_error_and_not_nothing(number, tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write_bytes("there", b"x")
    looked_up = os.stat

    def refuse(path, *args, **kwargs):
        if str(path).endswith("there"):
            raise OSError(number, os.strerror(number), path)
        return looked_up(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(StorageError, match="looking up"):
        folder.exists("there")
    with pytest.raises(StorageError, match="looking up"):
        folder.child("there").is_file()
    assert not folder.exists("elsewhere")
