"""A disk that is full, read-only or forbidden while a run trains: an error on all ranks, and no harm done."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stratrun.storage import Folder
from tests.end_to_end.fault_job import (
    FAULT_AT,
    INTERVAL,
    Told,
    check_whole,
    job,
    lose_permission,
    mounted,
    regain_permission,
    run,
)
from tests.ranks import Ranks

SEEN = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "denied": "Permission denied",
    "denied to rank 1": "Permission denied",
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 24 MB."""
    place = tmp_path / "disk"
    mounted(place, "24m")
    tmp_path.chmod(0o755)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def check_told(told: list[Told], fault: str, disk: Path) -> None:
    for one in told:
        assert SEEN[fault] in one.error, one.trace
        # The first save after the fault fails; its word comes with the step after its end.
        assert f"saving step {2 * INTERVAL} to {disk}/work/checkpoints failed" in one.error
        assert one.late <= 1
        assert one.seconds < 10
        assert FAULT_AT < one.iterations < 4 * INTERVAL
    assert len({one.error for one in told}) == 1
    assert len({one.iterations for one in told}) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("fault", ["full", "read-only", "denied"])
def test_what_a_disk_refuses_is_an_error_and_the_older_checkpoint_stays(
    fault: str, asynchronous: bool, disk: Path
) -> None:
    told = job(str(disk / "work"), fault, asynchronous=asynchronous)
    check_told([told], fault, disk)
    assert os.listdir(disk / "work" / "checkpoints") == ["step-00000004"]
    assert check_whole(Folder(disk / "work")) == [INTERVAL]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("fault", ["full", "read-only", "denied", "denied to rank 1"])
def test_on_two_ranks_it_is_the_same_error_on_both(
    fault: str, asynchronous: bool, disk: Path, two_ranks: Ranks
) -> None:
    told = two_ranks(job, str(disk / "work"), fault, asynchronous=asynchronous)
    check_told(told, fault, disk)
    assert os.listdir(disk / "work" / "checkpoints") == ["step-00000004"]
    assert check_whole(Folder(disk / "work")) == [INTERVAL]


def test_a_failure_of_the_very_last_save_is_no_silent_end(disk: Path) -> None:
    told = job(str(disk / "work"), "full", steps=FAULT_AT + 1)
    assert "No space left on device" in told.error
    assert check_whole(Folder(disk / "work")) == [INTERVAL]


def refused(work_dir: str, as_nobody: bool) -> Told:
    if as_nobody:
        lose_permission()
    try:
        return run(work_dir)
    finally:
        regain_permission()


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that all may read and nobody but root may write."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o555)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("why", ["denied", "read-only"])
def test_a_folder_that_can_only_be_read_is_refused_before_the_first_step_on_all_ranks(
    why: str, disk: Path, readable: Path, two_ranks: Ranks
) -> None:
    place = readable
    if why == "read-only":
        place = disk
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    begun = time.monotonic()
    for told in two_ranks(refused, str(place / "work"), why == "denied"):
        assert told.iterations == 0
        assert told.error.startswith(("StorageError: ", "ConfigError: "))
        assert str(place / "work") in told.error
        assert SEEN[why] in told.error or "cannot be written" in told.error
        assert "choose another work_dir" in told.error
    assert time.monotonic() - begun < 10
    assert list(place.iterdir()) == []


def test_too_little_room_is_refused_before_the_first_step_with_the_figures(tmp_path: Path) -> None:
    mounted(tmp_path / "small", "5m")
    try:
        told = job(str(tmp_path / "small" / "work"), "none")
        assert told.iterations == 0
        assert "has 5.0 MiB free, and a checkpoint will have about 2.7 MiB: 6.0 MiB are needed" in told.error
    finally:
        subprocess.run(["umount", "-l", tmp_path / "small"], check=True)


def test_nothing_is_staged_where_temporary_files_go(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(tmp_path / "tmp", "1m")
    try:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert job(str(disk / "work"), "none").error == ""
        assert os.listdir(tmp_path / "tmp") == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "tmp"], check=True)
    assert len(check_whole(Folder(disk / "work"))) == 2


def test_a_run_that_takes_up_anothers_checkpoint_never_removes_it(tmp_path: Path) -> None:
    assert run(str(tmp_path / "source")).error == ""
    before = sorted(path.name for path in (tmp_path / "source" / "checkpoints").iterdir())
    source = str(tmp_path / "source" / "checkpoints" / before[-1])
    assert run(str(tmp_path / "new"), steps=40, resume=source).error == ""
    assert sorted(path.name for path in (tmp_path / "source" / "checkpoints").iterdir()) == before
    assert check_whole(Folder(tmp_path / "source")) == [12, 16]
    assert check_whole(Folder(tmp_path / "new")) == [36, 40]


def test_a_second_run_in_the_same_folder_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    assert run(str(tmp_path / "work")).error == ""
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")}
    told = run(str(tmp_path / "work"))
    assert told.iterations == 0
    assert "already holds checkpoints of steps after the start" in told.error
    assert {p: p.stat().st_mtime_ns for p in before if p.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }
