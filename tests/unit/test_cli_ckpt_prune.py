"""Deleting checkpoints from the command line: what goes, what never does, and only with leave."""

import os
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from stratrun.checkpoint import StoredCheckpoint
from stratrun.cli.ckpt.entries import Entry
from stratrun.cli.ckpt.prune import Policy, plan
from stratrun.cli.main import run
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, own_state, shared_state

DAY = 24 * 3600


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A work dir, on disk and in a store without folders."""
    if request.param == "local":
        return f"{tmp_path}/digits"
    return f"memory://{tmp_path.name}/digits"


@pytest.fixture
def prune(place: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Do `stratrun ckpt prune`; gives the exit code and all it said."""

    def do(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run(["ckpt", "prune", place, *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return do


def save(place: str, *steps: int, run_id: str = "run", best: Any = None) -> None:
    saver = checkpointer(Folder(place).child("checkpoints"), run_id)
    for step in steps:
        saver.save(step, shared_state(step), own_state(step), meta={"best": best or {}})


def steps(place: str) -> list[int]:
    """The steps that are there, each of them whole."""
    folder = Folder(place).child("checkpoints")
    names = folder.names()
    for name in names:
        StoredCheckpoint(folder.child(name)).verify()
    return [int(name.removeprefix("step-")) for name in names]


def spoil(place: str, step: int) -> None:
    folder = Folder(place).child(f"checkpoints/step-{step:08d}")
    name = next(name for name in folder.names() if name.startswith("shard"))
    data = bytearray(folder.read_bytes(name))
    data[-1] ^= 1
    folder.remove(name)
    folder.write_bytes(name, bytes(data))


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("--keep-last 2", [1, 5, 6]),
        ("--keep-last 9", [1, 2, 3, 4, 5, 6]),
        ("--keep-last 2 --keep-best 0", [5, 6]),
        ("--keep-every 2", [1, 2, 4, 6]),
        ("--keep-every 3 --keep-last 2", [1, 3, 5, 6]),
        ("--keep-best 1", [1, 6]),
        ("--keep-best 0", [6]),
        ("--keep-every 100 --keep-best 0", [6]),
    ],
)
def test_what_is_to_stay_stays_and_the_rest_goes(
    place: str, prune: Callable[..., tuple[int, str]], words: str, left: list[int]
) -> None:
    save(place, 1, 2, 3, 4, 5, 6, best={"accuracy": [[0.9, 1]]})
    assert prune(*words.split(), "--yes")[0] == 0
    assert steps(place) == left


def test_without_leave_it_only_says_what_would_go(place: str, prune: Callable[..., tuple[int, str]]) -> None:
    save(place, 1, 2, 3)
    code, said = prune("--keep-last", "1")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()[:2]] == ["step-00000001", "step-00000002"]
    assert "would delete 2 folders" in said and "--yes deletes" in said
    assert steps(place) == [1, 2, 3]


@pytest.mark.parametrize(("answer", "left"), [("y\n", [2]), ("\n", [1, 2]), ("no\n", [1, 2])])
def test_on_a_terminal_it_asks(
    place: str,
    prune: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    left: list[int],
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    save(place, 1, 2)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert prune("--keep-last", "1")[0] == 0
    assert "delete 1 folder" in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert steps(place) == left


def test_the_newest_intact_one_stays_though_newer_ones_are_there(
    place: str, prune: Callable[..., tuple[int, str]]
) -> None:
    save(place, 1, 2, 3, 4)
    spoil(place, 3)
    spoil(place, 4)
    assert prune("--keep-last", "1", "--yes")[0] == 0
    folder = Folder(place).child("checkpoints")
    assert folder.names() == ["step-00000002", "step-00000003", "step-00000004"]
    assert prune("--keep-last", "1", "--damaged", "--yes")[0] == 0
    assert folder.names() == ["step-00000002"]


def test_damaged_ones_go_when_they_are_seen_and_told_to(
    place: str, prune: Callable[..., tuple[int, str]]
) -> None:
    save(place, 1, 2, 3)
    Folder(place).remove("checkpoints/step-00000002/index.json")
    assert prune("--keep-last", "2", "--yes") == (0, "nothing to delete\n")
    code, said = prune("--damaged", "--yes")
    assert code == 0 and "damaged: index.json is missing" in said
    assert steps(place) == [1, 3]


def test_each_run_keeps_its_own(place: str, prune: Callable[..., tuple[int, str]]) -> None:
    save(place, 1, 2, run_id="old")
    save(place, 3, 4, 5, run_id="new")
    code, said = prune("--keep-last", "1", "--run", "newer")
    assert code == 2 and "did you mean 'new'?" in said
    prune("--keep-last", "1", "--run", "new", "--yes")
    assert steps(place) == [1, 2, 5]
    prune("--keep-last", "1", "--yes")
    assert steps(place) == [2, 5]


def test_unfinished_ones_that_are_young_stay_unless_told(
    place: str, prune: Callable[..., tuple[int, str]]
) -> None:
    save(place, 1, 2)
    Folder(place).remove("checkpoints/step-00000002/COMMITTED")
    assert prune("--keep-last", "1", "--yes") == (0, "nothing to delete\n")
    code, said = prune("--leftovers", "--yes")
    assert code == 0 and "unfinished, last written" in said
    assert steps(place) == [1]


def test_staged_folders_go_a_day_after_the_last_write_to_them(tmp_path: Path) -> None:
    save(f"{tmp_path}", 1)
    root = tmp_path / "checkpoints"
    for name, age in ((".staging-step-00000002.run.aa", 2 * DAY), (".staging-step-00000003.run.bb", 60)):
        (root / name).mkdir()
        (root / name / "shard").write_bytes(b"x")
        os.utime(root / name / "shard", (time.time() - age,) * 2)
        os.utime(root / name, (time.time() - age,) * 2)
    assert run(["ckpt", "prune", str(tmp_path), "--keep-last", "1", "--yes"]) == 0
    assert sorted(path.name for path in root.iterdir()) == [".staging-step-00000003.run.bb", "step-00000001"]


def test_an_unfinished_one_of_unknown_age_stays() -> None:
    entry = Entry(Folder("memory://w/step-00000001"), 1, "unfinished", changed=None)
    assert plan([entry], Policy(keep_last=1), now=time.time()) == []
    assert plan([entry], Policy(leftovers=True), now=time.time()) != []


def test_elsewhere_than_on_disk_the_marker_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{tmp_path.name}"
    save(place, 1, 2)
    removed: list[str] = []
    remove = Folder.remove

    def noted(folder: Folder, path: str) -> None:
        removed.append(path)
        remove(folder, path)

    monkeypatch.setattr(Folder, "remove", noted)
    assert run(["ckpt", "prune", place, "--keep-last", "1", "--yes"]) == 0
    assert removed[:2] == ["step-00000001/COMMITTED", "step-00000001"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "what is to stay? give --keep-last N"),
        (["--keep-last", "0"], "'0' is no whole number of at least 1"),
        (["--keep-last", "x"], "'x' is no whole number of at least 1"),
        (["--keep-lst", "1"], "did you mean '--keep-last'?"),
    ],
)
def test_a_mistake_deletes_nothing(
    place: str, prune: Callable[..., tuple[int, str]], words: list[str], told: str
) -> None:
    save(place, 1, 2)
    code, said = prune(*words, "--yes")
    assert code == 2 and told in said
    assert steps(place) == [1, 2]


def test_a_single_checkpoint_is_not_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(str(tmp_path), 1, 2)
    for path in (f"{tmp_path}/checkpoints/step-00000001/", f"{tmp_path}/last"):
        assert run(["ckpt", "prune", path, "--keep-last", "1", "--yes"]) == 2
        assert "is a single checkpoint; give the folder that it is in" in capsys.readouterr().err
