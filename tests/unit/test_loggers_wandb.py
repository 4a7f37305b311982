"""Runs in Weights & Biases, offline, read back from the files that are synchronised later."""

import json
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratrun.errors import ConfigError, Stopped
from stratrun.testing import check_logger
from tests.tracked import Shows, found_secrets, runner_of, stop_by_signal

wandb = pytest.importorskip("wandb", exc_type=ImportError)

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

_HEADER, _BLOCK = 7, 32768
_WHOLE, _LAST = 1, 4


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


def entries(path: Path) -> Iterator[Any]:
    """What is in a ``.wandb`` file: LevelDB's log format, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        whole += data[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (_WHOLE, _LAST):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(whole)
            whole = b""
            yield entry


class Kept:
    """Offline runs below a folder, in the order in which they were begun."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
        self.folders = [path.parent for path in paths]
        self.entries = [list(entries(path)) for path in paths]
        self.ids = [entry.run.run_id for entry in self._of("run")]
        self.exits = [entry.exit.exit_code for entry in self._of("exit")]
        self.rows = [
            {tuple(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            for entry in self._of("history")
        ]

    def _of(self, kind: str) -> list[Any]:
        return [e for one in self.entries for e in one if e.WhichOneof("record_type") == kind]

    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self._of("run")[0].run.config.update}

    def steps(self, name: str) -> list[int]:
        return [row[("iter",)] for row in self.rows if name in {key[0] for key in row}]


def test_a_run_is_there_as_a_whole_and_its_secrets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "storage.secret=s3cr3t-k3y"])
    logger = {
        "type": "WandbLogger",
        "project": "tests",
        "name": "first",
        "params": {"seeds": [1, 2], "access_token": "hunter2"},
        "tags": ["https://me:t0psecret@host/"],
    }
    runner = runner_of(tmp_path / "work", ["jsonl", logger], Shows(tmp_path))
    runner.train()
    runner.close()
    kept = Kept(tmp_path)
    assert (kept.ids, kept.exits) == ([runner.checkpointer.run_id], [0])
    config = kept.config()
    assert config["optimizer"] == {"type": "SGD", "lr": 0.1} and config["seeds"] == [1, 2]
    assert config["param_scheduler"]["api_key"] == "***" == config["access_token"]
    assert kept.steps("train/loss") == list(range(1, 9))
    assert kept.steps("train/loss_epoch") == kept.steps("pictures/noise") == kept.steps("notes") == [4, 8]
    picture = {key[1]: value for row in kept.rows for key, value in row.items() if key[0] == "pictures/noise"}
    files = kept.folders[0] / "files"
    assert (picture["width"], picture["height"]) == (9, 8) and (files / picture["path"]).exists()
    assert (files / "files" / "reports" / "last.txt").read_text() == "after 8"
    (note, _) = sorted((files / "media" / "html").glob("*"))
    assert "&lt;epoch" in note.read_text()
    assert not found_secrets(tmp_path)


def test_a_resumed_run_goes_on_in_the_same_run_and_a_new_one_in_another(tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = runner_of(work, ["wandb"], Shows(tmp_path, stop_at=3))
    first.train()
    first.close()
    second = runner_of(work, ["wandb"], Shows(tmp_path), resume=True)
    second.train()
    second.close()
    kept = Kept(tmp_path)
    assert len(kept.ids) == 2 and len(set(kept.ids)) == 1
    assert all(one.run.resume for one in kept._of("run"))
    assert kept.steps("train/loss") == list(range(1, 9))
    third = runner_of(tmp_path / "other", ["wandb"])
    third.train()
    third.close()
    assert len(set(Kept(tmp_path).ids)) == 2


@pytest.mark.parametrize(("error", "code"), [(ValueError("x"), 1), (KeyboardInterrupt(), 255), (None, 0)])
def test_how_a_run_has_ended_is_told(tmp_path: Path, error: Any, code: int) -> None:
    runner = runner_of(tmp_path / "work", ["wandb"], Shows(tmp_path, 2, error))
    if error is None:
        runner.train()
    else:
        with pytest.raises(type(error)):
            runner.train()
    # Without close(), as where an error ends a script.
    assert Kept(tmp_path).exits == [code]
    runner.close()
    assert Kept(tmp_path).exits == [code]


def test_a_run_that_a_signal_ends_is_killed_and_has_all_of_its_values(tmp_path: Path) -> None:
    runner = runner_of(tmp_path / "work", ["wandb"], stop_by_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        runner.train()
    kept = Kept(tmp_path)
    assert kept.exits == [255]
    assert kept.steps("train/loss") == list(range(1, runner.iter + 1))


@pytest.mark.usefixtures("ready_ranks")
def test_it_passes_the_checks_of_a_logger() -> None:
    check_logger("wandb")


def test_a_mode_that_there_is_not_is_refused_before_anything_is_logged() -> None:
    from stratrun_ext.loggers.wandb import WandbLogger

    with pytest.raises(ConfigError, match="mode='ofline' is unknown; did you mean 'offline'"):
        WandbLogger(mode="ofline")
    with pytest.raises(ConfigError, match="queue=5 must be a dict"):
        WandbLogger(queue=5)  # type: ignore[arg-type]
