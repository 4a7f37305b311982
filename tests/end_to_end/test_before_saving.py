"""What could not be saved is refused before any work is lost, and what is refused leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun.errors import CheckpointError, ConfigError, StorageError
from stratrun.hooks import Hook
from stratrun.runner import saving
from stratrun.runner.in_use import InUse
from stratrun.storage import Folder
from tests.end_to_end.fault_job import mounted
from tests.end_to_end.runs import run
from tests.ranks import Ranks


def trained(work_dir: str, **options: Any) -> None:
    form = {"loss": "cross_entropy", "default_hooks": {"logger": None}}
    run(nn.Linear(5, 5), work_dir, **{**form, **options})


class Keeping(Hook):
    """A hook with state, and a count of iterations."""

    def __init__(self, state: Any, of: int | None = None) -> None:
        self.state, self.of = state, of
        self.done = 0

    def after_train_iter(self) -> None:
        self.done += 1

    def state_dict(self) -> Any:
        return self.state if self.of in (None, int(os.environ.get("RANK", 0))) else {}


class Failing(Keeping):
    def state_dict(self) -> Any:
        raise ZeroDivisionError("no state")


class Late(Hook):
    """A hook that has its state only when training begins."""

    def before_train(self) -> None:
        self.counts = {"seen": 0}

    def state_dict(self) -> Any:
        return self.counts


class Drawing(Hook):
    def state_dict(self) -> Any:
        return {"drawn": torch.rand(3)}


def cause(at: str, what: str) -> str:
    return (
        rf"Keeping\.state_dict\(\) gives what cannot be saved: the state at hooks\.Keeping\.{at} is a {what}"
    )


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"net": nn.Linear(1, 1)}, cause("net", r"torch\.nn\.modules\.linear\.Linear")),
        ({"seen": {1, 2}}, cause("seen", r"builtins\.set")),
        ({"deep": [torch.zeros(2).to_sparse()]}, cause(r"deep\.0", "tensor sparse")),
    ],
)
def test_state_of_a_hook_that_cannot_be_saved_is_refused_before_the_first_step(
    state: Any, reason: str, tmp_path: Path
) -> None:
    hook = Keeping(state)
    with pytest.raises(CheckpointError, match=reason):
        trained(str(tmp_path / "new" / "run"), custom_hooks=[hook])
    assert hook.done == 0
    assert list(tmp_path.iterdir()) == []
    off = {"checkpoint": None}
    trained(str(tmp_path / "new"), custom_hooks=[hook], default_hooks=off)
    assert hook.done == 12


def test_state_that_cannot_be_had_when_an_iteration_is_done_is_an_error(tmp_path: Path) -> None:
    hook = Failing(None)
    with pytest.raises(CheckpointError, match=r"^Failing\.state_dict\(\) failed: ZeroDivisionError: no"):
        trained(str(tmp_path), custom_hooks=[hook])
    assert hook.done == 0


def test_state_that_a_hook_has_only_when_training_begins_is_saved(tmp_path: Path) -> None:
    trained(str(tmp_path), custom_hooks=[Late()])
    assert len(Folder(tmp_path / "checkpoints").names()) == 2


class Looked(Hook):
    """Keeps what the next random number was when it was looked at, and whenever an iteration is over."""

    def __init__(self) -> None:
        self.numbers: list[bytes] = []

    def before_train(self) -> None:
        self.numbers.append(torch.get_rng_state().numpy().tobytes())

    def before_train_iter(self) -> None:
        self.numbers.append(torch.get_rng_state().numpy().tobytes())


def test_looking_at_state_draws_no_random_numbers(tmp_path: Path) -> None:
    found = []
    for hooks in ([], [Drawing()]):
        looked = Looked()
        options = {"randomness": {"seed": 1}, "default_hooks": {"checkpoint": {"interval": 9}}}
        trained(str(tmp_path / str(len(hooks))), custom_hooks=[*hooks, looked], **options)
        found.append(looked.numbers)
    assert len(found[0]) == 13 and found[0] == found[1]


def keeping_on_one(work_dir: str) -> str:
    try:
        trained(work_dir, custom_hooks=[Keeping({"seen": {1}}, of=1)])
    except CheckpointError as error:
        return str(error)
    return "trained"


def test_state_that_one_rank_cannot_save_is_refused_on_all(two_ranks: Ranks, tmp_path: Path) -> None:
    for told in two_ranks(keeping_on_one, str(tmp_path)):
        assert "failed on rank 1: Keeping.state_dict() gives what cannot be saved" in told


def test_a_start_that_is_refused_for_want_of_room_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_ROOM", 1e18)
    with pytest.raises(StorageError, match="free, and a checkpoint will have about"):
        trained(str(tmp_path / "new" / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_probe_that_fails_leaves_no_folder_but_those_of_before(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        (tmp_path / "new").mkdir()
    monkeypatch.setattr(Folder, "read_bytes", lambda *_, **__: b"other")
    with pytest.raises(StorageError, match="does not read the same"):
        trained(str(tmp_path / "new" / "run"))
    assert [path.name for path in tmp_path.rglob("*")] == (["new"] if there else [])


def test_a_work_dir_on_a_file_system_that_can_only_be_read_is_called_that(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mounted(disk, "5m")
    try:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ConfigError, match=f"{disk} is on a file system that can only be read; choose"):
            trained(str(disk / "run"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_file_where_checkpoints_go_is_said_to_be_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoints is in the way, and no folder; move it away"):
        trained(str(tmp_path))


HOLD = """
import sys
from stratrun.runner.in_use import InUse
from stratrun.storage import Folder
mark = InUse()
assert mark.set(Folder(sys.argv[1])) is None
print("held", flush=True)
sys.stdin.read()
"""


def test_a_new_run_is_refused_where_another_trains_and_not_once_that_was_killed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(
            CheckpointError, match=f"is that of a run that is training now, process {other.pid} on"
        ):
            trained(str(tmp_path))
        trained(str(tmp_path), resume="auto", train_cfg={"max_epochs": 1})
        other.kill()
    assert (tmp_path / ".running").exists()
    trained(str(tmp_path), resume="auto")
    assert not (tmp_path / ".running").exists()
    assert (tmp_path / "checkpoints" / "step-00000012").is_dir()


def test_a_run_may_follow_another_of_its_process(tmp_path: Path) -> None:
    first, second = InUse(), InUse()
    assert first.set(Folder(tmp_path)) is None and second.set(Folder(tmp_path)) is None
    assert InUse().set(Folder("memory://elsewhere/run")) is None
