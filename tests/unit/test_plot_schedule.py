"""``stratrun plot-schedule``: the values that a real run has, and words on those that will not be meant."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from stratrun import DATASETS, MODELS, OPTIMIZERS, Runner
from stratrun.cli.main import run
from stratrun.cli.plot_schedule.course import Course, course_of
from tests.problems import perceptron, points
from tests.rates import Used


@MODELS.register_module(force=True)
def net_to_plot() -> nn.Module:
    return perceptron()


@MODELS.register_module(force=True)
class Vast(nn.Module):
    """Of 400 GB, which nobody has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10**6, 10**5))


@DATASETS.register_module(force=True)
def plotted_points(samples: int) -> Any:
    return points(samples)


@DATASETS.register_module(force=True)
class PlottedStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from points(8)


@OPTIMIZERS.register_module(force=True)
def by_layer(params: Any, lr: float) -> torch.optim.Optimizer:
    first, *rest = params
    groups = [{"params": [first], "name": "stem", "lr": lr / 2}, {"params": rest, "name": "head"}]
    return torch.optim.AdamW(groups, lr=lr)


FORM: dict[str, Any] = {
    "model": {"type": "net_to_plot"},
    "loss": "cross_entropy",
    "train_dataloader": {"dataset": {"type": "plotted_points", "samples": 56}, "batch_size": 4},
    "train_cfg": {"max_epochs": 4, "accumulate": 4},  # 14 batches: 4 updates an epoch
    "optimizer": {"type": "by_layer", "lr": 0.5},
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.25, "by_epoch": False, "end": 4},
        {"type": "CosineAnnealingLR", "begin": 1, "convert_to_iter_based": True},
        {"type": "StepLR", "step_size": 2, "groups": ["head"]},
        {"type": "ExponentialLR", "gamma": 0.9, "param": "momentum", "by_epoch": False},
    ],
}


def config(folder: Path, **changed: Any) -> str:
    path = folder / "run.json"
    path.write_text(json.dumps({**FORM, **changed}))
    return str(path)


def course(
    folder: Path, *, param: str = "lr", world_size: int = 1, batches: Any = None, **changed: Any
) -> Course:
    given = Namespace(
        config=config(folder, **changed),
        settings=(),
        imports=(),
        allow=(),
        param=param,
        world_size=world_size,
        batches_per_epoch=batches,
    )
    return course_of(given)


def test_the_values_are_those_that_the_real_run_uses_and_logs(tmp_path: Path) -> None:
    found = course(tmp_path)
    hook, log = Used("lr", "betas"), tmp_path / "run"
    options = {"loggers": ["jsonl"], "work_dir": str(log), "custom_hooks": [hook]}
    hooks = {"checkpoint": None, "logger": {"interval": 1}}
    runner = Runner(**{**FORM, **options, "default_hooks": hooks})
    runner.train()
    runner.close()
    used = [values for _, values in sorted(hook.by_update.items())]
    assert found.kept == list(range(1, 17)) and found.updates == runner.step == 16
    assert found.epochs == [4, 8, 12, 16]
    assert found.values == {"lr/stem": [v[0] for v in used], "lr/head": [v[2] for v in used]}
    momentum = course(tmp_path, param="momentum")
    assert momentum.values["momentum/head"] == [v[3][0] for v in used]
    (lines,) = log.rglob("*.jsonl")
    rows = [row for row in map(json.loads, lines.read_text().splitlines()) if "lr/stem" in row]
    # What is logged after an iteration is what the next update is made with; the end of an epoch comes later.
    logged = {row["iter"]: row["lr/stem"] for row in rows if row["iter"] % 14}
    done = {iteration: iteration // 14 * 4 + iteration % 14 // 4 for iteration in logged}
    assert len(logged) == 52 and all(logged[i] == found.values["lr/stem"][done[i]] for i in logged)


def test_it_is_so_with_windows_that_change_and_rates_that_are_scaled_group_by_group(tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        "train_cfg": {"max_epochs": 3, "accumulate": [[0, 1], [1, 4]]},
        "optimizer": {
            "type": "AdamW",
            "lr": 0.5,
            "paramwise": {"bias_lr_mult": 2.0},
            "scale_lr": {"base_batch_size": 16},
        },
        "param_scheduler": [
            {"type": "StepLR", "step_size": 1, "gamma": 0.5},
            {"type": "LinearLR", "start_factor": 0.25, "total_iters": "auto", "by_epoch": False},
        ],
    }
    found, hook = course(tmp_path, **changed), Used("lr")
    runner = Runner(**{**FORM, **changed, "loggers": [], "work_dir": tmp_path, "custom_hooks": [hook]})
    runner.train()
    runner.close()
    used = [values for _, values in sorted(hook.by_update.items())]
    assert found.epochs == [14, 18, 22] and found.updates == runner.step
    assert found.values == {"lr/default": [v[0] for v in used], "lr/bias": [v[1] for v in used]}
    assert found.values["lr/default"][0] == 0.5 * 0.25 * 0.25
    more = course(tmp_path, world_size=2, strategy="ddp", **changed)
    assert more.values["lr/bias"][0] == 2 * found.values["lr/bias"][0] and more.epochs == [7, 9, 11]


def test_more_ranks_make_fewer_updates_as_their_loop_counts_them(tmp_path: Path) -> None:
    assert course(tmp_path, world_size=2, strategy="ddp").updates == 4 * 2
    assert course(tmp_path, world_size=7, strategy="fsdp").epochs == [1, 2, 3, 4]
    loop = {"by_epoch": False, "max_iters": 30, "accumulate": 4}
    found = course(tmp_path, train_cfg=loop)
    assert (found.updates, found.epochs) == (4 + 4 + 1, [4, 8])


def test_a_model_that_fits_no_memory_is_no_matter_and_data_can_be_left_out(tmp_path: Path) -> None:
    changed = {"model": {"type": "Vast"}, "optimizer": {"type": "SGD", "lr": 0.1}, "loss": None}
    data = {"dataset": {"type": "plotted_points", "samples": "none"}, "batch_size": 4}
    schedule = {"type": "WarmupCosineLR", "warmup_iters": 5, "by_epoch": False}
    found = course(tmp_path, batches=200, train_dataloader=data, param_scheduler=schedule, **changed)
    assert found.updates == 200 and found.values["lr"][4:6] == [pytest.approx(0.1 * 5 / 6), 0.1]


REMARKS: dict[str, tuple[dict[str, Any], str]] = {
    "early": (
        {"type": "CosineAnnealingLR", "T_max": 2},
        "has T_max=2, and goes on for 4 epochs: after its end the value goes up again",
    ),
    "cut": ({"type": "CosineAnnealingLR", "T_max": 100}, "the training has 4 epochs from where it begins"),
    "over": ({"type": "PolynomialLR", "total_iters": 5, "by_epoch": False}, "16 updates"),
    "window": (
        {"type": "LinearLR", "total_iters": 4, "end": 4, "by_epoch": False},
        "its window has 4 updates: the value stays where it is by then",
    ),
    "still": ({"type": "StepLR", "step_size": 5}, "StepLR never moves lr"),
    "behind": (
        {"type": "StepLR", "step_size": 1, "begin": 4},
        "begins after 4 epochs, and the training has 4",
    ),
    "standing": ({"type": "ExponentialLR", "gamma": 0.5, "end": 2}, "stands still after"),
    "other": ({"type": "ExponentialLR", "gamma": 0.5, "param": "weight_decay"}, "no schedule moves lr"),
    "metric": (
        {"type": "ReduceLROnPlateau", "monitor": "accuracy"},
        "follows 'accuracy', which nobody knows before",
    ),
}
VALIDATED = {
    "val_dataloader": {"dataset": {"type": "plotted_points", "samples": 8}},
    "val_evaluator": {"type": "Accuracy"},
}


@pytest.mark.parametrize("name", list(REMARKS))
def test_what_will_not_be_meant_is_told(name: str, tmp_path: Path) -> None:
    schedule, told = REMARKS[name]
    remarks = course(tmp_path, param_scheduler=schedule, **VALIDATED).remarks
    assert any(told in remark for remark in remarks), remarks


@pytest.mark.parametrize(
    "schedule",
    [
        FORM["param_scheduler"],
        {"type": "CosineAnnealingLR"},
        {"type": "OneCycleLR", "max_lr": 1.0, "by_epoch": False},
        {"type": "MultiStepLR", "milestones": [1, 2]},
        {"type": "LinearLR", "total_iters": 4, "by_epoch": False},
        {"type": "WarmupStableDecayLR", "decay_iters": 4, "warmup_iters": 2, "by_epoch": False},
        {"type": "WarmupConstantLR", "warmup_iters": 2, "by_epoch": False},
    ],
    ids=str,
)
def test_nothing_is_said_of_what_is_usual(schedule: Any, tmp_path: Path) -> None:
    assert course(tmp_path, param_scheduler=schedule).remarks == []


def test_the_terminal_shows_a_chart_of_each_shape_and_a_table_of_all_groups(
    tmp_path: Path, capsys: Any
) -> None:
    schedule = {"type": "PolynomialLR", "by_epoch": False, "total_iters": 16}
    assert run(["plot-schedule", config(tmp_path, param_scheduler=schedule)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lr/stem and 1 more of this shape"
    assert lines[1].split("┤") == ["     0.25 ", "█▁" + " " * 14] or lines[1].startswith("     0.25 ┤█")
    assert "16 updates, 4 epochs" in lines[12]
    assert lines[-2].split() == ["lr/stem", "0.25", "0.01562", "0.25", "1", "0.01562"]
    assert lines[-1].split() == ["lr/head", "0.5", "0.03125", "0.5", "1", "0.03125"]


def test_a_picture_is_written_in_the_format_of_its_name(tmp_path: Path, capsys: Any) -> None:
    png, svg = tmp_path / "lr.png", tmp_path / "lr.svg"
    for out in (png, svg):
        assert run(["plot-schedule", config(tmp_path), "--out", str(out)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text()
    assert f"{png}: lr/stem, lr/head over 16 updates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "lr.gif"], "must end in .png, .svg, .pdf"),
        (["--out", "/nowhere/lr.png"], "there is no folder /nowhere"),
        (["--world-size", "0"], "--world-size 0: must be at least 1"),
        (["--param", "momentumm"], "not every parameter group has it"),
        (["--param", "betas"], "is nothing to draw"),
        (["optimizer.lr=1e-3", "param_scheduler=5"], "param_scheduler=5 is no scheduler"),
        (["train_dataloader.dataset={_delete_: true, type: PlottedStream}"], "give --batches-per-epoch N"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: list[str], told: str, tmp_path: Path, capsys: Any) -> None:
    schedule = {"type": "StepLR", "step_size": 1}
    assert run(["plot-schedule", config(tmp_path, param_scheduler=schedule), *options]) == 2
    assert told in capsys.readouterr().err


def test_a_scheduler_that_fails_before_the_end_fails_here_too(tmp_path: Path, capsys: Any) -> None:
    schedule = {
        "type": "SequentialLR",
        "milestones": [1],
        "schedulers": [{"type": "ConstantLR"}, {"type": "OneCycleLR", "max_lr": 1.0, "total_steps": 2}],
    }
    assert run(["plot-schedule", config(tmp_path, param_scheduler=schedule)]) == 2
    assert "SequentialLR fails after epoch 4, as the training would" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named_before_anything_is_built(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratrun.cli.plot_schedule.command.find_spec", lambda name: None)
    assert run(["plot-schedule", "nowhere.yaml", "--out", "lr.png"]) != 0
    assert "pip install 'stratrun[plot]'" in capsys.readouterr().err
