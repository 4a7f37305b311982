"""What files of predictions hold, and what is said of those that are damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun import read_predictions
from stratrun.errors import ConfigError, DataError, StratrunError
from stratrun.hooks import PredictionWriterHook
from stratrun.predictions.index import Index, runs_of
from stratrun.predictions.writer import PredictionWriter
from stratrun.storage import Folder
from tests.problems import perceptron, points
from tests.ranks import Ranks
from tests.unit.test_predict_loop import Answers
from tests.unit.test_prediction_writer import Failing, numbers, predict


def test_damage_is_told(tmp_path: Path) -> None:
    predict(str(tmp_path), data={"dataset": numbers(4), "batch_size": 2}, shard_size=2)
    folder = tmp_path / "predictions"
    second = sorted(folder.glob("part-*"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole.replace(b"2", b"3"))
    rows = iter(read_predictions(folder))
    assert next(rows)["value"] == 0
    with pytest.raises(DataError, match=r"part-.*00001.jsonl is not as it was written"):
        list(rows)
    second.unlink()
    with pytest.raises(DataError, match=r"is missing, which the index names"):
        list(read_predictions(folder))
    (folder / "index.json").write_bytes(b'{"version": 1}')
    with pytest.raises(DataError, match=r"is no index of predictions"):
        read_predictions(folder)
    with pytest.raises(DataError, match=r"does not exist; did you mean 'predictions'"):
        read_predictions(tmp_path / "prediction")


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    predict(str(tmp_path), data={"dataset": numbers(2), "batch_size": 2})
    index = tmp_path / "predictions/index.json"
    told = json.loads(index.read_text())
    told["files"][0]["name"] = "../../secret"
    index.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="is not a plain relative path"):
        list(read_predictions(tmp_path))


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_tensors_keep_how_each_prediction_is_built(form: str, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"a": 1, "b": [2.5, None, True], "c": {"d": torch.tensor([1, 2])}},
        torch.zeros(()),
        (torch.ones(2, 0), [torch.tensor(False)]),
        {"seen from the side": torch.arange(6.0).view(2, 3).t()},
        None,
    ]

    class Alone:
        rank, is_main = 0, True
        from_main = staticmethod(lambda value: value)
        gather = staticmethod(lambda value: [value])

        @staticmethod
        def agree(error: Exception | None, what: str) -> None:
            if error is not None:
                raise error

    writer = PredictionWriter(Folder(str(tmp_path)), Alone(), format=form, rows=10, size=1 << 20)
    writer.add(list(enumerate(rows)), by_sample=True)
    writer.commit()
    for found, row in zip(read_predictions(tmp_path), rows, strict=True):
        if row is not None:
            torch.testing.assert_close(found, row, rtol=0, atol=0)
        assert type(found) is type(row)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "jsnl"}, "format='jsnl' is unknown; did you mean 'jsonl'"),
        ({"format": "pickle"}, "format='pickle' is unknown"),
        ({"shard_size": 0}, "shard_size=0 must be a whole number above 0"),
        ({"shard_mib": -1}, "shard_mib=-1 must be a number above 0"),
        ({"path": ""}, "path='' is no folder"),
    ],
)
def test_wrong_settings_are_refused_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PredictionWriterHook(**options)


class Odd(Answers):
    """Answers of kinds that not all formats can hold."""

    def predict_step(self, batch: torch.Tensor) -> Any:
        values = self.one(batch)[:, 0].detach()
        if self.kind in ("bfloat16", "float8_e4m3fn"):
            return values.to(getattr(torch, self.kind))
        if self.kind == "__metadata__":
            return {"__metadata__": values}
        if self.kind == "number":
            return [2**66 for _ in values]
        if self.kind == "arrays":
            return {
                "rows": torch.stack([values, 2 * values], 1).numpy(),
                "one": list(values.double().numpy()),
            }
        if self.kind == "half":
            return {"text": [f"{value:.0f}\ud83d" for value in values], "sparse": values[:, None].to_sparse()}
        return super().predict_step(batch)


@pytest.mark.parametrize(
    ("form", "kind", "told"),
    [
        (
            "safetensors",
            "list",
            "prediction is a str, which a file of tensors cannot hold; write format='jsonl'",
        ),
        ("npz", "dict", "nested.t is a str"),
        ("npz", "bfloat16", "prediction is bfloat16, which .npz has not; write format='safetensors'"),
        ("npz", "float8_e4m3fn", "prediction is float8_e4m3fn, which .npz has not"),
        ("safetensors", "__metadata__", "a part called '__metadata__', which is not told from others"),
        ("safetensors", "number", "prediction is 73786976294838206464, which takes more than 64 bits"),
    ],
)
def test_what_a_format_cannot_hold_is_told(form: str, kind: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        predict(str(tmp_path), model=Odd(kind), format=form)


@pytest.mark.parametrize("form", ["jsonl", "safetensors", "npz"])
def test_arrays_of_numpy_are_written_as_tensors_are(form: str, tmp_path: Path) -> None:
    predict(str(tmp_path), model=Odd("arrays"), format=form)
    found = list(read_predictions(tmp_path))
    assert [(float(one["rows"][1]), float(one["one"])) for one in found] == [(2.0 * i, i) for i in range(23)]


def test_texts_that_end_in_half_a_character_and_sparse_tensors_have_a_line(tmp_path: Path) -> None:
    predict(str(tmp_path), model=Odd("half"))
    found = list(read_predictions(tmp_path))
    assert found == [{"text": f"{i}\ud83d", "sparse": [float(i)]} for i in range(23)]


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "predictions").write_text("in the way")
    seen = Failing(0)
    with pytest.raises(StratrunError, match="predictions"):
        predict(str(tmp_path), hooks=[seen])


def test_places_of_a_process_take_a_few_numbers() -> None:
    assert runs_of(list(range(1, 4000, 4))) == ((1, 4, 1000),)
    places = [0, 1, 2, 10, 20, 30, 7, 7, 7]
    runs = runs_of(places)
    assert [first + i * step for first, step, count in runs for i in range(count)] == places
    assert Index("jsonl", True, ()).rows == 0


def by_tensor_parallelism(work_dir: str) -> list[torch.Tensor]:
    return predict(
        work_dir,
        {"type": "tensor_parallel", "plan": {"0": "column", "2": "row"}, "size": 2},
        perceptron(),
        data={"dataset": list(points(9).tensors[0]), "batch_size": 2},
        format="safetensors",
        collect=True,
    )


def test_of_ranks_that_work_on_the_same_samples_one_writes_them(four_ranks: Ranks, tmp_path: Path) -> None:
    with torch.no_grad():
        truth = perceptron()(points(9).tensors[0])
    returned = four_ranks(by_tensor_parallelism, str(tmp_path))[3]
    torch.testing.assert_close(torch.stack(returned), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack(list(read_predictions(tmp_path))), truth, rtol=1e-5, atol=1e-6)
    index = json.loads((tmp_path / "predictions/index.json").read_text())
    names = {one["name"] for one in index["files"]} | {"index.json"}
    assert set(Folder(str(tmp_path / "predictions")).names()) == names
