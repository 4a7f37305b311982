"""What files hold, read back by other means than those that wrote them."""

import csv
import gc
import json
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest

from stratrun.loggers import CsvLogger, JsonlLogger, Logger, Record, TensorBoardLogger


def record(iter: int, kind: str = "train", **values: float) -> Record:
    return Record(kind, values, epoch=1, iter=iter, step=iter, samples=8 * iter, time=1000.5)


def lines(path: Path) -> list[dict[str, Any]]:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


def events(folder: Path) -> list[Any]:
    """Events of all files in a folder: each is a length, its checksum, the bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return [event for event in found if event.HasField("summary")]


def test_a_json_line_holds_counters_and_values(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.open(tmp_path)
    logger.log(record(3, loss=0.1))
    logger.log(record(4, kind="val", accuracy=1.0))
    logger.close()
    counters = {"epoch": 1, "timestamp": 1000.5}
    assert lines(tmp_path / "metrics.jsonl") == [
        {"kind": "train", "iter": 3, "step": 3, "samples": 24, "loss": 0.1, **counters},
        {"kind": "val", "iter": 4, "step": 4, "samples": 32, "accuracy": 1.0, **counters},
    ]


def test_json_lines_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.open(tmp_path)
    logger.log(record(1, a=math.nan, b=math.inf, c=-math.inf))
    logger.close()
    (row,) = lines(tmp_path / "metrics.jsonl")
    assert math.isnan(float(row["a"]))
    assert (float(row["b"]), float(row["c"])) == (math.inf, -math.inf)


def test_a_value_named_like_a_counter_hides_no_counter(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.open(tmp_path)
    logger.log(Record("train", {"iter": 0.5, "epoch": 0.25}, epoch=1, iter=3))
    logger.close()
    (row,) = lines(tmp_path / "metrics.jsonl")
    assert (row["iter"], row["iter_"], row["epoch"], row["epoch_"]) == (3, 0.5, 1, 0.25)


@pytest.mark.parametrize("logger", [JsonlLogger(), CsvLogger()])
def test_a_record_is_in_the_file_as_soon_as_it_is_logged(logger: Logger, tmp_path: Path) -> None:
    logger.open(tmp_path)
    logger.log(record(3, loss=0.125))
    (path,) = tmp_path.iterdir()
    assert "0.125" in path.read_text()
    logger.close()


@pytest.mark.parametrize("kind", [JsonlLogger, CsvLogger, TensorBoardLogger])
def test_a_logger_that_was_closed_goes_on_where_it_stopped(kind: type[Logger], tmp_path: Path) -> None:
    logger = kind()
    logger.open(tmp_path)
    logger.log(record(1, loss=0.5))
    logger.close()
    logger.close()
    logger.log(record(2, loss=0.25))
    logger.close()
    if kind is TensorBoardLogger:
        assert [event.step for event in events(tmp_path / "tensorboard")] == [1, 2]
    else:
        (path,) = tmp_path.iterdir()
        text = path.read_text()
        assert text.index("0.5") < text.index("0.25")


@pytest.mark.parametrize("kind", [JsonlLogger, CsvLogger, TensorBoardLogger])
def test_a_logger_that_nobody_closed_leaves_no_warning(kind: type[Logger], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = kind()
        logger.open(tmp_path)
        logger.log(record(1, loss=0.5))
        if isinstance(logger, TensorBoardLogger):
            logger.close()
        del logger
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_new_name_becomes_a_new_column_of_all_rows(tmp_path: Path) -> None:
    logger = CsvLogger()
    logger.open(tmp_path)
    logger.log(record(1, loss=0.5))
    logger.log(record(2, loss=0.25))
    logger.log(record(2, kind="val", **{"accuracy, top 1": 0.75}))
    logger.log(record(3, loss=1e-7))
    logger.close()
    with open(tmp_path / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["iter"], row["loss"], row["accuracy, top 1"]) for row in rows] == [
        ("train", "1", "0.5", ""),
        ("train", "2", "0.25", ""),
        ("val", "2", "", "0.75"),
        ("train", "3", "1e-07", ""),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_tensorboard_gets_one_event_a_record(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    logger.open(tmp_path)
    logger.log_config("lr: 0.1")
    logger.log(record(7, loss=0.5, lr=0.125))
    logger.log(record(7, kind="val", accuracy=0.75))
    logger.close()
    config, train, val = events(tmp_path / "tensorboard")
    assert b"lr: 0.1" in config.summary.value[0].tensor.string_val[0]
    assert (train.step, train.wall_time) == (7, 1000.5)
    assert {value.tag: value.simple_value for value in train.summary.value} == {
        "train/loss": 0.5,
        "train/lr": 0.125,
    }
    assert [value.tag for value in val.summary.value] == ["val/accuracy"]


def test_constructing_a_logger_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in (JsonlLogger, CsvLogger, TensorBoardLogger):
        kind()
    assert list(tmp_path.iterdir()) == []
