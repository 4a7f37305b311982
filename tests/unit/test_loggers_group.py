"""Loggers together: where they are built, where their files go, and what one that fails does."""

import gc
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import nn

from stratrun import Runner
from stratrun.errors import ConfigError, UnknownNameError
from stratrun.loggers import CsvLogger, Logger, LoggerGroup, Record, RunFolder
from stratrun.state import TrainState


class Memory(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def open(self, folder: Path) -> None:
        self.heard.append(folder.name)

    def log(self, record: Record) -> None:
        self.heard.append(record)

    def say(self, text: str) -> None:
        self.heard.append(text)


class Broken(Logger):
    """Cannot write."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def log(self, record: Record) -> None:
        raise self.error


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_lie_in_a_folder_of_the_start(tmp_path: Path) -> None:
    group = LoggerGroup.build(
        ["jsonl", {"type": "csv"}, CsvLogger("b.csv")], work_dir=str(tmp_path), is_main=True
    )
    group.log_config("lr: 0.1\n")
    group.log_values({"loss": 0.5}, TrainState(iter=3))
    group.close()
    assert group.folder is not None
    assert re.fullmatch(r"runs/\d{8}-\d{6}", group.folder.url.removeprefix(f"{tmp_path}/"))
    assert files(group.folder.path) == ["b.csv", "config.yaml", "metrics.csv", "metrics.jsonl"]
    assert (group.folder.path / "config.yaml").read_text() == "lr: 0.1\n"


def test_each_start_has_a_folder_of_its_own_even_within_a_second(tmp_path: Path) -> None:
    folders = set()
    for _ in range(4):
        group = LoggerGroup.build(["jsonl"], work_dir=str(tmp_path), is_main=True)
        group.log_values({"loss": 0.5}, TrainState())
        group.close()
        folders.add(group.folder.path if group.folder else None)
    assert len(folders) == 4
    assert len(files(tmp_path)) == 4


def test_other_ranks_build_nothing_and_touch_no_disk(tmp_path: Path) -> None:
    group = LoggerGroup.build(["jsonl", "console"], work_dir=str(tmp_path), is_main=False)
    group.say("hello")
    group.log_config("a: 1")
    group.log_values({"loss": torch.tensor(0.5)}, TrainState())
    group.flush()
    group.close()
    assert (group.loggers, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize(
    ("specs", "kind", "told"),
    [
        ("jsnol", UnknownNameError, r"loggers='jsnol'.*did you mean 'jsonl'"),
        ({"type": "csv", "file": "x"}, ConfigError, r"CsvLogger takes no argument 'file'.*'filename'"),
        (
            [3],
            ConfigError,
            r"loggers: 3 is no logger; .*\(known: .*console, csv, files, jsonl, .*\)",
        ),
    ],
)
def test_a_wrong_logger_is_refused_on_every_rank(
    specs: Any, kind: type[Exception], told: str, is_main: bool, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told):
        LoggerGroup.build(specs, work_dir=str(tmp_path), is_main=is_main)
    assert list(tmp_path.iterdir()) == []


def test_a_work_dir_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"work_dir='.*/file/x' cannot be written: .*; choose another"):
        LoggerGroup.build(["jsonl"], work_dir=f"{tmp_path}/file/x", is_main=True)


@pytest.mark.parametrize("is_main", [True, False])
def test_a_value_that_is_no_number_is_refused_on_every_rank(is_main: bool, tmp_path: Path) -> None:
    group = LoggerGroup.build([Memory()], work_dir=str(tmp_path), is_main=is_main)
    with pytest.raises(ConfigError, match=r"log\(\{'scores': ...\}\): shape \(2,\) is not a single number"):
        group.log_values({"loss": 1.0, "scores": torch.zeros(2)}, TrainState())
    with pytest.raises(ConfigError, match="'high' is not a single number"):
        group.log_values({"loss": "high"}, TrainState())  # type: ignore[dict-item]


def test_values_come_under_the_counters_of_the_state(tmp_path: Path) -> None:
    logger = Memory()
    group = LoggerGroup.build(logger, work_dir=str(tmp_path), is_main=True)
    group.say("hello")
    values: dict[str, Any] = {"loss": torch.tensor([0.5]), "lr": 1, "n": torch.tensor(3)}
    group.log_values(values, TrainState(epoch=1, iter=2, step=3, samples=4), kind="val")
    name, text, record = logger.heard
    assert text == "hello"
    assert group.folder is not None and name == group.folder.path.name
    assert (record.kind, record.values) == ("val", {"loss": 0.5, "lr": 1.0, "n": 3.0})
    assert (record.epoch, record.iter, record.step, record.samples) == (1, 2, 3, 4)


def test_progress_reaches_only_those_that_show_it() -> None:
    class Shows(Memory):
        """Wants to see progress."""

        shows_progress = True

    plain, shows = Memory(), Shows()
    group = LoggerGroup([plain, shows])
    group.log_values({"val": 3.0}, TrainState(), kind="progress")
    assert (len(plain.heard), len(shows.heard)) == (0, 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_a_logger_that_cannot_write_is_left_out_and_training_goes_on(error: Exception) -> None:
    after = Memory()
    group = LoggerGroup([Broken(error), after])
    with pytest.warns(UserWarning, match=r"Broken is switched off, its log failed: \w+Error"):
        group.log(Record("train", {"loss": 1.0}))
    group.log(Record("train", {"loss": 2.0}))
    assert [record.values["loss"] for record in after.heard] == [1.0, 2.0]


def test_a_mistake_in_a_logger_is_raised() -> None:
    group = LoggerGroup([Broken(KeyError("x"))])
    with pytest.raises(KeyError):
        group.log(Record("train", {}))


def test_files_of_a_remote_work_dir_are_copied_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    remote = fsspec.filesystem("memory")
    specs = ["jsonl", "csv", "tensorboard"]
    groups = [LoggerGroup.build(specs, work_dir="memory://logs/run", is_main=True) for _ in range(2)]
    for group in groups:
        group.log_config("a: 1")
        group.log_values({"loss": 0.5}, TrainState(iter=1))
        group.flush()
    for group in groups:
        group.log_values({"loss": 0.25}, TrainState(iter=2))
        group.close()
    folders = [group.folder for group in groups if group.folder is not None]
    assert len({folder.url for folder in folders}) == 2
    for folder in folders:
        assert folder.url.startswith("memory://logs/run/runs/")
        assert {Path(path).name.split(".")[0] for path in remote.find(folder.url)} == {
            "config",
            "events",
            "metrics",
        }
        assert remote.cat_file(f"{folder.url}/metrics.jsonl").count(b"\n") == 2
    assert list(tmp_path.iterdir()) == []
    remote.rm("/logs", recursive=True)


@pytest.fixture
def broken_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing can be copied to a memory URL until the patch is undone."""

    def fail(*_: Any) -> None:
        raise OSError("no route")

    remote = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(type(remote), "put_file", fail)
        yield patch
    if remote.exists("/logs"):
        remote.rm("/logs", recursive=True)


def test_what_could_not_be_copied_is_told_and_copied_later(broken_memory: pytest.MonkeyPatch) -> None:
    group = LoggerGroup.build(["jsonl"], work_dir="memory://logs/run", is_main=True)
    group.log_values({"loss": 0.5}, TrainState())
    assert group.folder is not None
    with pytest.warns(UserWarning, match=r"could not be copied to memory://.*: no route; they are kept in"):
        group.close()
    broken_memory.undo()
    group.close()
    assert fsspec.filesystem("memory").exists(f"{group.folder.url}/metrics.jsonl")
    shutil.rmtree(group.folder.path)


def test_what_could_not_be_copied_in_the_background_is_told_and_kept(
    broken_memory: pytest.MonkeyPatch,
) -> None:
    folder = RunFolder("memory://logs/run")
    (folder.path / "file").touch()
    folder.upload()
    for thread in threading.enumerate():
        if thread.name == "stratrun-log-upload":
            thread.join()
    with pytest.warns(UserWarning, match="no route"):
        folder.upload()
    with pytest.warns(UserWarning, match="no route"):
        folder.upload(wait=True)
    path = folder.path
    del folder
    gc.collect()
    assert (path / "file").exists()
    shutil.rmtree(path)


def test_the_stand_in_for_a_remote_folder_goes_when_it_is_not_needed() -> None:
    folder = RunFolder("memory://logs/run")
    path = folder.path
    assert path.is_dir()
    del folder
    gc.collect()
    assert not path.exists()


def test_a_password_in_the_work_dir_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        LoggerGroup.build([], work_dir="nosuch://me:secret@host/x", is_main=True)
    assert "secret" not in str(caught.value)
    assert "//***@host" in str(caught.value)


def test_rich_and_tensorboard_are_imported_only_when_used(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom stratrun.loggers import LoggerGroup\nfrom stratrun.state import TrainState\n"
        f"group = LoggerGroup.build(['console', 'csv'], work_dir={str(tmp_path)!r}, is_main=True)\n"
        "group.log_values({'loss': 0.5}, TrainState())\ngroup.close()\n"
        "print('imported', *{'rich', 'tensorboardX'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-1].strip() == "imported"
    assert done.stderr == ""


def test_what_is_secret_in_the_url_of_a_work_dir_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(
        nn.Linear(4, 2),
        loss="cross_entropy",
        work_dir="memory://me:hunter2@store/secret-run",
        train_dataloader=[(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))],
        predict_dataloader=[torch.zeros(2, 4)],
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        loggers=["console", "jsonl"],
        custom_hooks=["PredictionWriterHook", "ReportHook"],
    )
    runner.train()
    runner.predict()
    runner.close()
    shown = "".join(capsys.readouterr())
    assert "secret-run: a new start" in shown and "2, in memory" in shown and "report: memory" in shown
    assert "hunter2" not in shown
