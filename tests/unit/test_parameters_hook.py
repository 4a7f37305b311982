"""Norms of parameters and gradients against a plain loop, whoever holds their parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun import ConfigError, Runner
from stratrun.hooks import ParametersHook
from tests.parity.sharded import net
from tests.problems import points
from tests.ranks import Ranks

INTERVAL, BATCH, CLIP = 3, 4, 0.05
OPTIMIZER: dict[str, Any] = {"type": "SGD", "lr": 0.1, "momentum": 0.9}


def run(work_dir: Path, model: nn.Module | None = None, **options: Any) -> list[dict[str, float]]:
    """The records of a run of 8 iterations, kept in a file by the main process."""
    options.setdefault("custom_hooks", [ParametersHook(INTERVAL, updates=True)])
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(40), "batch_size": BATCH, "shuffle": False},
        "train_cfg": {"by_epoch": False, "max_iters": 8},
        "optimizer": OPTIMIZER,
        "default_hooks": {"checkpoint": None},
        "clip_grad": CLIP,
        "loggers": ["jsonl"],
        "work_dir": work_dir,
    }
    runner = Runner(model or net(), **{**form, **options})
    runner.train()
    runner.close()
    folder = runner.log_folder
    return [] if folder is None else recorded(Path(folder))


def recorded(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in next(folder.glob("*.jsonl")).read_text().splitlines()]
    return [line for line in lines if line["kind"] == "parameters"]


def plain(batch: int = BATCH) -> list[dict[str, float]]:
    """The same, written out."""
    model, data, found = net(), points(40), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(8):
        at = [(i * batch + j) % 40 for j in range(batch)]
        inputs, labels = data.tensors[0][at], data.tensors[1][at]
        nn.functional.cross_entropy(model(inputs), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        values: dict[str, float] = {"iter": i + 1}
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            assert p.grad is not None
            values[f"grad_norm/{name}"] = float(p.grad.norm())
            values[f"weight_norm/{name}"] = float(p.detach().norm())
        optimizer.step()
        optimizer.zero_grad()
        for name, p in model.named_parameters():
            values[f"update_ratio/{name}"] = float((p.detach() - before[name]).norm() / before[name].norm())
        if (i + 1) % INTERVAL == 0:
            found.append(values)
    return found


def check(records: list[dict[str, float]], truth: list[dict[str, float]]) -> None:
    assert len(records) == len(truth) == 2
    for record, values in zip(records, truth, strict=True):
        assert record.keys() - {"kind", "epoch", "step", "samples", "timestamp"} == values.keys()
        for name, value in values.items():
            assert record[name] == pytest.approx(value, rel=1e-4, abs=1e-8), name


def test_norms_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    check(run(tmp_path), plain())


def on_ranks(folder: str, strategy: str) -> list[dict[str, float]]:
    return run(
        Path(folder),
        strategy=strategy,
        train_dataloader={"dataset": points(40), "batch_size": BATCH // 2, "shuffle": False},
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_norms_are_those_of_whole_tensors_under(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    check(two_ranks(on_ranks, str(tmp_path), strategy)[0], plain())


def test_modules_have_the_norm_of_all_their_parameters(tmp_path: Path) -> None:
    hook = ParametersHook(INTERVAL, depth=1, include="blocks|head")
    for record, values in zip(run(tmp_path, custom_hooks=[hook]), plain(), strict=True):
        names = {name for name in record if "/" in name}
        assert names == {f"{what}_norm/{part}" for what in ("grad", "weight") for part in ("blocks", "head")}
        parts = [v**2 for name, v in values.items() if name.startswith("grad_norm/blocks")]
        assert record["grad_norm/blocks"] == pytest.approx(sum(parts) ** 0.5, rel=1e-4)


def test_under_accumulation_the_update_that_ends_the_window_is_looked_at(tmp_path: Path) -> None:
    accumulated = run(tmp_path, train_cfg={"by_epoch": False, "max_iters": 8, "accumulate": 4})
    assert [record["iter"] for record in accumulated] == [4, 8]


def test_gradients_are_told_without_the_scale_of_mixed_precision(tmp_path: Path) -> None:
    options: dict[str, Any] = {"clip_grad": None, "custom_hooks": [ParametersHook(INTERVAL)]}
    full = run(tmp_path / "full", **options)
    mixed = run(tmp_path / "mixed", precision="16-mixed", **options)
    assert mixed[0]["grad_norm/head.weight"] == pytest.approx(full[0]["grad_norm/head.weight"], rel=0.05)


def test_a_resumed_run_looks_at_the_same_updates(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    part = {"default_hooks": {"checkpoint": {"interval": 2, "by_epoch": False}}}
    run(tmp_path / "cut", train_cfg={"by_epoch": False, "max_iters": 4}, **part)
    resumed = run(tmp_path / "cut", resume=True, **part)
    names = [name for name in whole[-1] if "/" in name]
    assert [resumed[-1][name] for name in names] == [whole[-1][name] for name in names]


def test_a_pattern_in_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in no parameter's name; did you mean 'head\.weight'"):
        run(tmp_path, custom_hooks=[ParametersHook(include="haed.weight")])
    with pytest.raises(ConfigError, match="is no regular expression"):
        ParametersHook(include="(")
    with pytest.raises(ConfigError, match=r"include=\[\] must be a regular expression"):
        ParametersHook(include=[])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="interval=0"):
        ParametersHook(0)
