import builtins
import os
import uuid
from typing import ClassVar

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from stratrun.errors import ConfigError, MissingDependencyError
from stratrun.storage import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return Folder(tmp_path / "run" if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def test_a_folder_that_is_not_there_is_empty(folder):
    assert folder.names() == []
    assert folder.sizes() == {}
    assert not folder.exists()


def test_what_is_written_is_read_back_and_listed(folder):
    folder.write_bytes("a.bin", b"12345")
    folder.child("sub").write_bytes("b.bin", b"1")
    assert folder.read_bytes("a.bin") == b"12345"
    assert folder.read_bytes("sub/b.bin") == b"1"
    assert folder.names() == ["a.bin", "sub"]
    assert folder.sizes() == {"a.bin": 5}
    assert folder.exists("sub/b.bin")


def test_removing_takes_a_file_a_tree_or_nothing(folder):
    for path in ("a.bin", "sub/b.bin", "sub/deep/c.bin"):
        folder.write_bytes(path, b"1")
    for path in ("a.bin", "sub", "never there"):
        folder.remove(path)
    assert folder.names() == []


def test_parent_and_child_lead_to_each_other(folder):
    assert folder.child("a").child("b").parent == folder.child("a")
    assert folder.child("a") != folder.child("b")
    assert folder.child("a/b").name == "b"


class Caching(MemoryFileSystem):
    """Keeps what it once listed, as the file systems of object stores do."""

    protocol = "caching"
    kept: ClassVar = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("caching://"))

    def ls(self, path, detail=True, **kwargs):
        key = (path, detail)
        if key not in self.kept:
            self.kept[key] = super().ls(path, detail=detail, **kwargs)
        return self.kept[key]

    def invalidate_cache(self, path=None):
        self.kept.clear()


def test_a_change_by_another_process_is_seen():
    register_implementation("caching", Caching, clobber=True)
    name = uuid.uuid4().hex
    ours, theirs = Folder(f"caching://{name}"), Folder(f"memory://{name}")
    theirs.write_bytes("one", b"1")
    assert ours.names() == ["one"]
    theirs.write_bytes("two", b"2")
    assert ours.names() == ["one", "two"]
    assert ours.sizes() == {"one": 1, "two": 1}


def test_reading_stops_at_the_limit(folder):
    folder.write_bytes("a", b"12345")
    assert folder.read_bytes("a", limit=5) == b"12345"
    with pytest.raises(ConfigError, match="more than the 4 bytes"):
        folder.read_bytes("a", limit=4)


BAD_PATHS = [
    "../x",
    "/etc/x",
    "a/../../x",
    "a//b",
    ".",
    "",
    "C:\\x",
    "s3://other",
    "a\0b",
    "x" * 300,
    "..\\x",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_leave_the_folder_is_refused_before_it_is_opened(folder, path):
    with pytest.raises(ConfigError, match="plain relative path"), folder.open(path, "wb"):
        pass
    assert folder.names() == []


def test_a_name_is_taken_only_once_by_renaming(tmp_path):
    folder = Folder(tmp_path)
    folder.write_bytes("a/x", b"1")
    folder.write_bytes("b/x", b"2")
    with pytest.raises(FileExistsError):
        folder.rename("a", "b")
    folder.rename("a", "c")
    assert folder.names() == ["b", "c"]


def test_only_the_disk_itself_counts_as_local(tmp_path):
    assert Folder(tmp_path).is_local
    assert Folder(f"file://{tmp_path}").local_path() == tmp_path
    cached = Folder("filecache::memory://x", filecache={"cache_storage": str(tmp_path)})
    assert not cached.is_local
    assert cached.local_path() is None


def test_stores_that_cannot_rename_say_so():
    with pytest.raises(ConfigError, match="cannot rename"):
        Folder("memory://r").rename("a", "b")


def test_a_local_file_is_synced_before_it_counts_as_written(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    Folder(tmp_path).write_bytes("a", b"1")
    assert synced == [str(tmp_path / "a")]


def test_a_failed_local_write_raises(tmp_path, monkeypatch):
    folder = Folder(tmp_path)

    def full(*args, **kwargs):
        return builtins.open("/dev/full", "wb")

    monkeypatch.setattr("stratrun.storage.local.open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        folder.write_bytes("a", b"1")


def test_credentials_never_show():
    folder = Folder("memory://user:s3cr3t@bucket/run")
    assert "s3cr3t" not in f"{folder} {folder.child('a')} {folder.child('a').parent}"
    with pytest.raises(ConfigError) as caught:
        Folder("s33://key:s3cr3t@bucket/run?token=t0k3n")
    assert "s3cr3t" not in str(caught.value)
    assert "t0k3n" not in str(caught.value)


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 's3'"):
        Folder("s33://bucket")


def test_a_store_whose_package_is_missing_names_the_package(monkeypatch):
    entry = {"class": "no_such_package_xyz.Fs", "err": "Please install no_such_package_xyz"}
    monkeypatch.setitem(known_implementations, "nosuch", entry)
    with pytest.raises(MissingDependencyError, match="no_such_package_xyz"):
        Folder("nosuch://bucket")


def test_an_empty_name_is_no_folder():
    with pytest.raises(ConfigError, match="is no folder"):
        Folder("")
