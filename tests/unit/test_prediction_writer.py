"""Predictions in files: every one there in order, of any process, or none taken for whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Runner, read_predictions
from stratrun.errors import DataError, StorageError, StratrunError
from stratrun.hooks import Hook, PredictionWriterHook
from stratrun.predictions.writer import PredictionWriter
from stratrun.storage import Folder
from tests.ranks import Ranks
from tests.stores import Store
from tests.unit.test_predict_loop import DATA, Answers

SAMPLES = 23


class Row(nn.Module):
    """A row of each kind of value, from which the number of the sample can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.one.weight)

    def predict_step(self, batch: Tensor) -> dict[str, Any]:
        values = self.one(batch)[:, 0]
        lengths = [int(number) % 3 for number in batch[:, 0].tolist()]
        return {
            "value": values.double(),
            "half": values.to(torch.float16),
            "pair": (values, values.long()),
            "boxes": [torch.full((length, 4), float(length)) for length in lengths],
        }


def expected(number: int) -> dict[str, Any]:
    value = torch.tensor(float(number))
    boxes = torch.full((number % 3, 4), float(number % 3))
    return {"value": value.double(), "half": value.half(), "pair": (value, value.long()), "boxes": boxes}


def numbers(samples: int = SAMPLES) -> list[Tensor]:
    return [torch.tensor([float(n)]) for n in range(samples)]


def predict(work_dir: str, strategy: str = "auto", model: Any = None, **options: Any) -> list[Any]:
    settings: dict[str, Any] = {"shard_size": 3, **options}
    data = settings.pop("data", None) or {"dataset": numbers(), "batch_size": 2}
    runner = Runner(
        model or Row(),
        predict_dataloader=data,
        predict_cfg={"collect": settings.pop("collect", False)},
        custom_hooks=[*settings.pop("hooks", ()), {"type": "PredictionWriterHook", **settings}],
        strategy=strategy,
        loggers=(),
        work_dir=work_dir,
    )
    try:
        return runner.predict()
    finally:
        runner.close()


def in_every_format(work_dir: str, strategy: str) -> None:
    for form in ("safetensors", "npz", "jsonl"):
        assert predict(work_dir, strategy, path=form, format=form) == []


def check(folder: Path) -> None:
    for form in ("safetensors", "npz"):
        found = list(read_predictions(folder / form).numbered())
        assert [number for number, _ in found] == list(range(SAMPLES)), form
        for number, row in found:
            torch.testing.assert_close(row, expected(number), rtol=0, atol=0, check_dtype=True)
    rows = read_predictions(folder / "jsonl")
    assert len(rows) == SAMPLES
    for number, row in enumerate(rows):
        boxes = [[float(number % 3)] * 4] * (number % 3)
        assert row == {"value": number, "half": number, "pair": [number, number], "boxes": boxes}


def test_one_process_writes_what_is_read_in_order(tmp_path: Path) -> None:
    in_every_format(str(tmp_path), "single")
    check(tmp_path)
    index = json.loads((tmp_path / "jsonl/index.json").read_text())
    assert [one["rows"] for one in index["files"]] == [3] * 7 + [2]
    assert index["files"][1]["places"] == [[3, 1, 3]]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_write_what_is_read_as_of_one(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    two_ranks(in_every_format, str(tmp_path), strategy)
    check(tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_ranks_write_what_is_read_as_of_one(strategy: str, four_ranks: Ranks, tmp_path: Path) -> None:
    four_ranks(in_every_format, str(tmp_path), strategy)
    check(tmp_path)


def odd_data(work_dir: str) -> list[Any]:
    """What predict returns of batches that come ready, streams by workers, and fewer samples than ranks."""
    found = []
    batches = [torch.tensor([[float(10 * b + i)] for i in range(2)]) for b in range(3)]
    data = {
        "ready": batches,
        "stream": DATA["stream of 7"](),
        "workers": {**DATA["stream of 7"](), "num_workers": 2},
        "one": DATA["1 by 4"](),
    }
    for name, one in data.items():
        predictions = predict(
            work_dir, model=Answers("list"), path=name, collect=True, data=one, shard_size=3
        )
        found.append((name, predictions))
    return found


def test_files_have_the_order_that_predict_has_for_any_data(two_ranks: Ranks, tmp_path: Path) -> None:
    for name, predictions in two_ranks(odd_data, str(tmp_path))[0]:
        assert predictions and list(read_predictions(tmp_path / name)) == predictions, name
    with pytest.raises(DataError, match="the samples have no numbers"):
        read_predictions(tmp_path / "ready").numbered()


def test_no_more_than_a_file_of_predictions_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []
    add = PredictionWriter.add

    def counted(self: PredictionWriter, rows: Any, *, by_sample: bool) -> None:
        add(self, rows, by_sample=by_sample)
        held.append((self.held, len(Folder(str(tmp_path / "predictions")).names())))

    monkeypatch.setattr(PredictionWriter, "add", counted)
    assert predict(str(tmp_path), data={"dataset": numbers(100), "batch_size": 4}, shard_size=6) == []
    assert max(number for number, _ in held) < 6
    assert [files for _, files in held] == [4 * (n + 1) // 6 for n in range(25)]


def test_large_predictions_are_written_before_there_are_many(tmp_path: Path) -> None:
    class Large(nn.Module):
        def predict_step(self, batch: Tensor) -> Tensor:
            return batch.expand(-1, 1 << 16)  # 256 KiB each

    predict(str(tmp_path), model=Large(), format="safetensors", shard_size=1000, shard_mib=1)
    sizes = [one["rows"] for one in json.loads((tmp_path / "predictions/index.json").read_text())["files"]]
    assert max(sizes) <= 4 and sum(sizes) == SAMPLES


class Failing(Hook):
    """Fails after some batches, on one process."""

    priority = 90

    def __init__(self, at: int) -> None:
        self.at = at

    def after_predict_iter(self, batch_idx: int) -> None:
        if batch_idx == self.at:
            raise ZeroDivisionError


def test_what_a_failed_job_has_left_is_not_taken_for_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        predict(str(tmp_path), hooks=[Failing(8)])
    assert not [name for name in Folder(str(tmp_path / "predictions")).names() if name.startswith("part")]
    with pytest.raises(DataError, match=r"no predictions in .*: there is no index.json"):
        read_predictions(tmp_path)


KILLED = """
import os, sys
from stratrun import Runner
from stratrun.hooks import Hook
from tests.unit.test_prediction_writer import predict
class Dying(Hook):
    def after_predict_iter(self, batch_idx):
        if batch_idx == 8:
            os._exit(3)
predict(sys.argv[1], hooks=[Dying()])
"""


def test_a_killed_job_leaves_what_was_there_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    for before in (None, 4):
        if before is not None:
            predict(str(tmp_path), data={"dataset": numbers(before), "batch_size": 2})
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert done.returncode == 3
        if before is None:
            with pytest.raises(DataError, match=r"were not written to their end, as there is no index.json"):
                read_predictions(tmp_path)
        else:
            assert len(list(read_predictions(tmp_path))) == before
    predict(str(tmp_path))
    assert len(list(read_predictions(tmp_path))) == SAMPLES
    assert len(Folder(str(tmp_path / "predictions")).names()) == 8 + 1


def lone_failure(folder: str) -> str:
    """One rank cannot write its last file: what each of them says."""
    import os

    class Full(Folder):
        def write_bytes(self, path: str, data: bytes, exclusive: bool = False) -> None:
            if path.startswith("part-") and os.environ["RANK"] == "1":
                raise StorageError("the disk is full")
            super().write_bytes(path, data, exclusive)

    from datetime import timedelta

    from stratrun.distributed import Collectives, ProcessEnv
    from stratrun.distributed.process_group import control_group

    env = ProcessEnv.from_environ()
    ranks = Collectives(env, control_group(env, timedelta(seconds=30)))
    writer = PredictionWriter(Full(folder), ranks, format="jsonl", rows=10, size=1 << 20)
    writer.add([(ranks.rank, 1.5)], by_sample=True)
    try:
        writer.commit()
    except StratrunError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        writer.discard()
        ranks.close()
    return ""


def test_a_rank_that_cannot_write_is_an_error_on_all_and_nothing_is_committed(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    for told in two_ranks(lone_failure, str(tmp_path / "p")):
        assert told.startswith("StorageError: writing predictions in")
        assert "rank 1: the disk is full" in told
    assert Folder(str(tmp_path / "p")).names() == []


def test_a_store_elsewhere_serves_as_well(s3: Store) -> None:
    runner = Runner(
        Row(),
        predict_dataloader={"dataset": numbers(5), "batch_size": 2},
        custom_hooks=[PredictionWriterHook(format="safetensors", shard_size=2)],
        checkpoint_cfg={"storage_options": s3.options},
        loggers=(),
        work_dir=f"{s3.url}/run",
    )
    returned = runner.predict()
    runner.close()
    found = list(read_predictions(f"{s3.url}/run", **s3.options))
    for ours, theirs in zip(found, returned, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
