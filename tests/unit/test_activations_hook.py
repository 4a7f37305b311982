"""What modules put out, against the same written out, whoever computes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import ConfigError, Runner
from stratrun.hooks import ActivationsHook
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

INTERVAL, BATCH, ITERATIONS = 3, 8, 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


def run(work_dir: str, hook: dict[str, Any] | None, **options: Any) -> tuple[list[dict[str, Any]], Tensor]:
    """What was logged, by the main process, and weights that training came to."""
    model = Net()
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(40), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"by_epoch": False, "max_iters": ITERATIONS},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "default_hooks": {"checkpoint": None},
        "custom_hooks": [] if hook is None else [{"type": "ActivationsHook", "interval": INTERVAL, **hook}],
        "loggers": ["jsonl"],
        "work_dir": work_dir,
    }
    runner = Runner(model, **{**form, **options})
    runner.train()
    runner.close()
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    assert hooked == []
    weights = {name: p.detach() for name, p in model.named_parameters()}["head.weight"]
    whole = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
    if runner.log_folder is None:
        return [], whole.clone()
    lines = next(Path(runner.log_folder).glob("*.jsonl")).read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["kind"] == "activations"], whole.clone()


def plain(names: dict[str, str]) -> list[dict[str, float]]:
    model, data, found = Net(), points(40), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(ITERATIONS):
        at = [(i * BATCH + j) % 40 for j in range(BATCH)]
        inputs, labels = data.tensors[0][at], data.tensors[1][at]
        outputs = {"body.0": model.body[0](inputs)}
        outputs["body.1"] = outputs["body"] = outputs["body.0"].relu()
        outputs["head"] = model.head(outputs["body"])
        nn.functional.cross_entropy(outputs["head"], labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        values: dict[str, float] = {"iter": i + 1}
        for name in names:
            one = outputs[name].detach().double()
            values[f"mean/{name}"] = float(one.mean())
            values[f"std/{name}"] = float(one.std(correction=0))
            values[f"largest/{name}"] = float(one.abs().max())
            values[f"zeros/{name}"] = float((one == 0).double().mean())
        if (i + 1) % INTERVAL == 0:
            found.append(values)
    return found


def check(records: list[dict[str, Any]], truth: list[dict[str, float]]) -> None:
    assert len(records) == len(truth) == 2
    for record, values in zip(records, truth, strict=True):
        assert record.keys() - {"kind", "epoch", "step", "samples", "timestamp"} == values.keys()
        for name, value in values.items():
            assert record[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


LEAVES = dict.fromkeys(["body.0", "body.1", "head"], "")


def test_statistics_are_those_of_a_plain_loop_and_training_is_as_without(tmp_path: Path) -> None:
    records, weights = run(str(tmp_path / "with"), {})
    check(records, plain(LEAVES))
    assert records[0]["zeros/body.1"] > 0.1
    _, bare = run(str(tmp_path / "without"), None)
    assert torch.equal(weights, bare)


def test_modules_are_chosen_by_name(tmp_path: Path) -> None:
    records, _ = run(str(tmp_path), {"include": "^body$|head"})
    check(records, plain(dict.fromkeys(["body", "head"], "")))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_tell_of_the_values_of_both(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    (records, weights), _ = two_ranks(run, str(tmp_path / "with"), {}, strategy=strategy)
    check(records, plain(LEAVES))
    (_, bare), _ = two_ranks(run, str(tmp_path / "without"), None, strategy=strategy)
    assert torch.equal(weights, bare)


class Several(nn.Module):
    """Parts that return more than a tensor, or none of floating point."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"index": x.argmax(1), "values": (x, x * 100)}

    class Index(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pair, self.index = nn.Linear(FEATURES, CLASSES), self.Pair(), self.Index()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.pair(self.linear(x))["values"][0]
        self.index(scores)
        return scores


def test_of_several_outputs_the_first_is_looked_at(tmp_path: Path) -> None:
    runner = Runner(
        Several(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(8), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[ActivationsHook(interval=1)],
        loggers=["jsonl"],
        work_dir=tmp_path,
    )
    runner.train()
    lines = next(Path(str(runner.log_folder)).glob("*.jsonl")).read_text().splitlines()
    first = next(one for one in map(json.loads, lines) if one["kind"] == "activations")
    assert first["mean/pair"] == first["mean/linear"] and "mean/index" not in first
    runner.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"interval": 0}, "interval=0 must be a whole number of at least 1"),
        ({"include": "("}, "include='\\(' is no regular expression"),
        ({"include": "haed"}, "in no module's name; did you mean 'head'"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        run(str(tmp_path), arguments)
