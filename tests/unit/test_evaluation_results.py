"""Results of single samples: dumped by an evaluation, and measured again later."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import ConfigError, DataError, MetricError, Runner
from stratrun.evaluation import Accuracy, DumpResults, Evaluator, evaluate_results
from tests.problems import CLASSES, perceptron, points
from tests.ranks import Ranks

SAMPLES = 13


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def val_step(self, batch: Any) -> dict[str, Any]:
        logits = self.net(batch[0])
        return {
            "logits": logits,
            "loss": logits.mean(),
            "text": [f"says {int(row.argmax())}" for row in logits],
        }


def evaluated(folder: str, strategy: str = "auto") -> tuple[dict[str, float], list[str]]:
    runner = Runner(
        Model(),
        val_dataloader={"dataset": points(SAMPLES), "batch_size": 3},
        val_evaluator=["Accuracy", "DumpResults"],
        strategy=strategy,
        loggers=[],
        work_dir=folder,
    )
    metrics = runner.val()
    runner.close()
    files = [] if runner.log_folder is None else [*Path(runner.log_folder).rglob("*.jsonl")]
    return metrics, [file.read_text() for file in files]


def truth() -> list[dict[str, Any]]:
    model, data = perceptron(), points(SAMPLES)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in data.tensors[0].split(3)])
    return [
        {"logits": row.tolist(), "text": f"says {int(row.argmax())}", "target": int(label)}
        for row, label in zip(logits, data.tensors[1], strict=True)
    ]


def test_each_sample_has_a_line_in_the_order_of_the_data(tmp_path: Path) -> None:
    _, (text,) = evaluated(str(tmp_path))
    same_lines([json.loads(line) for line in text.splitlines()], truth())


def same_lines(found: list[Any], expected: list[Any]) -> None:
    """Whether they are of the same samples. A batch of another size may round its sums otherwise."""
    assert [line["text"] for line in found] == [one["text"] for one in expected]
    for line, one in zip(found, expected, strict=True):
        assert line["logits"] == pytest.approx(one["logits"], rel=1e-5)
        assert line["target"] == one["target"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_lines_of_all_ranks_are_in_one_file_under(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    replies = two_ranks(evaluated, str(tmp_path), strategy)
    ((metrics, (text,)), (_, nothing)) = replies
    assert nothing == []
    lines = [json.loads(line) for line in text.splitlines()]
    same_lines(lines, truth())
    assert metrics == evaluated(str(tmp_path / "one"))[0]


def test_what_was_dumped_is_measured_as_it_was_then(tmp_path: Path) -> None:
    metrics, (text,) = evaluated(str(tmp_path))
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    assert evaluate_results(file, ["Accuracy"], batch_size=4) == metrics
    assert evaluate_results(str(file), Evaluator(Accuracy(), preds="logits")) == metrics


def test_results_come_from_anywhere_one_by_one() -> None:
    results = ({"preds": torch.eye(CLASSES)[i % CLASSES], "target": i % 2} for i in range(10))
    right = sum(i % CLASSES == i % 2 for i in range(10))
    assert evaluate_results(results, "Accuracy", batch_size=3) == {"accuracy": right / 10}


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    values = torch.tensor([[0.1, float("nan")], [1e-30, float("-inf")]])

    def dump(preds: Tensor) -> Path:
        evaluator = Evaluator(DumpResults())
        evaluator.process((torch.zeros(2, 1), torch.tensor([1, 0])), preds)
        evaluator.evaluate(folder=tmp_path)
        return tmp_path / "dump_results.jsonl"

    from stratrun.data.json_lines import value_of

    rows = [value_of(line)["preds"] for line in dump(values).read_text().splitlines()]
    assert torch.equal(torch.stack(rows).nan_to_num(7.0), values.nan_to_num(7.0))


def test_keys_choose_what_is_kept(tmp_path: Path) -> None:
    evaluator = Evaluator(DumpResults(["target"]))
    evaluator.process((torch.zeros(2, 1), torch.tensor([1, 0])), torch.zeros(2, 3))
    evaluator.evaluate(folder=tmp_path)
    assert (tmp_path / "dump_results.jsonl").read_text() == '{"target": 1}\n{"target": 0}\n'
    with pytest.raises(MetricError, match=r"keys=\['box'\] are not there; a sample has"):
        Evaluator(DumpResults(["box"])).process((torch.zeros(2, 1), torch.tensor([1, 0])), torch.zeros(2, 3))


def test_what_has_no_row_for_each_sample_is_refused() -> None:
    with pytest.raises(MetricError, match="has no row for each sample"):
        Evaluator(DumpResults()).process((torch.zeros(2, 1), torch.zeros(2)), torch.tensor(0.5))


def test_a_result_unlike_the_first_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no result of a sample like the first, "):
        evaluate_results([{"preds": 1, "target": 1}, {"preds": 1}], "Accuracy")
    with pytest.raises(ConfigError, match="like the first, a mapping"):
        evaluate_results([3], "Accuracy")


def test_a_file_that_is_none_or_was_broken_off_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"preds": [0.1, 0.9], "target": 1}\n{"preds": [0.1, 0')
    for file, told in (
        (tmp_path / "cut.jsonl", r"cut\.jsonl:2 is no line of JSON, as where writing was broken off"),
        (tmp_path / "cat.jsonl", r"cat\.jsonl does not exist; did you mean 'cut\.jsonl'"),
        (tmp_path, "is a folder, and no file"),
    ):
        with pytest.raises(DataError, match=told):
            evaluate_results(file, "Accuracy")


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="results=None is no file, and gives no results one by one"):
        evaluate_results(None, "Accuracy")
    with pytest.raises(ConfigError, match="batch_size=0 must be a whole number, 1 or more"):
        evaluate_results([{"preds": 1, "target": 1}], "Accuracy", batch_size=0)
    with pytest.raises(ConfigError, match=r"keys='logits' must be a list of names; write keys=\['logits'\]"):
        DumpResults("logits")
