"""MMEngine's configs in our words, read and never run."""

from pathlib import Path
from typing import Any

import pytest

from stratrun.cli.main import run
from stratrun.config import Config
from stratrun.errors import ConfigError
from stratrun_ext.migrate.mmengine.convert import convert
from stratrun_ext.migrate.report import Report

BASE = """
classes = 5
data = dict(type='Images', count=44)
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True), collate_fn=dict(type='default_collate'),
    dataset=data)
val_dataloader = dict(batch_size=10, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=2, save_best='acc', rule='greater', max_keep_ckpts=4),
    sampler_seed=dict(type='DistSamplerSeedHook'))
"""
CONFIG = """
_base_ = ['./base.py']
epochs = 3
model = dict(type='mmx.Classifier', classes={{_base_.classes}})
optim_wrapper = dict(
    _delete_=True, type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=4 * 1e-3), clip_grad=dict(max_norm=35, norm_type=2),
    paramwise_cfg=dict(
        bias_lr_mult=2., custom_keys={'head': dict(decay_mult=0.), 'backbone.stem': dict(lr_mult=0.1)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1, convert_to_iter_based=True),
    dict(type='PolyLR', power=0.9, begin=1, end=epochs)]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1, val_begin=2)
val_cfg = dict()
val_evaluator = dict(type='Percent')
test_dataloader = _base_.val_dataloader
custom_hooks = [
    dict(type='EMAHook', momentum=0.0002, ema_type='ExpMomentumEMA', gamma=100, begin_iter=5, priority=49),
    dict(type='EarlyStoppingHook', monitor='acc', rule='greater'),
    dict(type='MineHook', words=['a', 'b'])]
randomness = dict(seed=3, deterministic=True)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
launcher, resume = 'none', True
resume = True
work_dir = './work/net'
"""


def written(
    folder: Path, text: str = CONFIG, base: str = BASE, name: str = "net.py"
) -> tuple[Config, Report]:
    """The config that comes of it, as a run would load it, and the report."""
    (folder / "base.py").write_text(base)
    (folder / name).write_text(text)
    made, report = convert(folder / name)
    (folder / "made.yaml").write_text(made)
    return Config.load(folder / "made.yaml"), report


def of(report: Report, outcome: Any) -> dict[str, str]:
    return {row.theirs: row.place.rpartition("/")[2] for row in report.counted(outcome)}


IMAGES = {"type": "Images", "count": 44}
EVALUATED = {
    "dataset": IMAGES,
    "batch_size": 10,
    "shuffle": False,
    "collate_fn": {"type": "pseudo_collate"},
}
EXPECTED = {
    "model": {"type": "Classifier", "classes": 5},
    "train_dataloader": {
        "dataset": IMAGES,
        "batch_size": 8,
        "num_workers": 0,
        "persistent_workers": False,
        "drop_last": True,
        "shuffle": True,
    },
    "val_dataloader": EVALUATED,
    "test_dataloader": EVALUATED,
    "val_evaluator": {"type": "Percent"},
    "train_cfg": {"by_epoch": True, "max_epochs": 3, "val_interval": 1, "val_begin": 2, "accumulate": 2},
    "val_cfg": {},
    "optimizer": {
        "type": "AdamW",
        "lr": 4e-3,
        "paramwise": {
            "bias_lr_mult": 2.0,
            "norm_lr_mult": 1.0,
            "rules": {
                "**.*backbone.stem*": {"lr_mult": 0.1, "decay_mult": 1.0},
                "**.*head*": {"lr_mult": 1.0, "decay_mult": 0.0},
            },
        },
    },
    "precision": "bf16-mixed",
    "clip_grad": {"max_norm": 35, "norm_type": 2},
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 1, "convert_to_iter_based": True},
        {"type": "PolynomialLR", "total_iters": 1, "power": 0.9, "begin": 1, "end": 3},
    ],
    "default_hooks": {
        "logger": {"type": "LoggerHook", "interval": 100},
        "checkpoint": {
            "type": "CheckpointHook",
            "interval": 2,
            "keep_last": 4,
            "save_best": {"acc": "greater"},
        },
    },
    "custom_hooks": [
        {
            "type": "EMAHook",
            "decay": 0.9998,
            "warmup": "exponential",
            "gamma": 100,
            "begin": 5,
            "priority": 49,
        },
        {"type": "EarlyStoppingHook", "monitor": "acc", "mode": "max", "min_delta": 0.1, "patience": 5},
        {"type": "MineHook", "words": ["a", "b"]},
    ],
    "randomness": {"seed": 3, "deterministic": True},
    "env_cfg": {"cudnn_benchmark": False, "mp_start_method": "fork"},
    "loggers": ["console", "jsonl", "csv", "files", "tensorboard"],
    "resume": "auto",
    "work_dir": "./work/net",
}


def test_a_usual_config_becomes_one_of_ours(tmp_path: Path) -> None:
    config, _ = written(tmp_path)
    assert config == EXPECTED


def test_each_setting_is_told_of_with_the_line_that_set_it(tmp_path: Path) -> None:
    _, report = written(tmp_path)
    assert of(report, "left for you") == {
        "launcher, resume = 'none', True": "net.py:25",
        "model": "net.py:4",
        "train_dataloader.dataset": "base.py:7",
        "val_dataloader.dataset": "base.py:8",
        "test_dataloader.dataset": "base.py:8",
        "val_evaluator": "net.py:15",
        "custom_hooks.2.type": "net.py:20",
    }
    assert of(report, "changed") == {
        "model.type": "net.py:4",
        "train_dataloader.sampler": "base.py:6",
        "val_dataloader.collate_fn": "",
        "test_dataloader.collate_fn": "",
        "optim_wrapper.accumulative_counts": "net.py:6",
        "optim_wrapper.paramwise_cfg.custom_keys": "net.py:9",
    }
    assert {"classes", "data", "epochs", "vis_backends"} <= set(of(report, "nothing to do"))
    assert of(report, "mapped")["default_hooks.checkpoint.max_keep_ckpts"] == "base.py:14"


def test_nothing_of_a_config_is_run(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    text = f"""
open({str(flag)!r}, 'w')
train_cfg = dict(max_epochs=int('3'), val_interval=2)
for i in range(3):
    open({str(flag)!r}, 'w')
train_dataloader = dict(
    batch_size=(lambda: open({str(flag)!r}, 'w'))(), dataset=dict(type='A', many=[open({str(flag)!r}, 'w')]))
work_dir = 'a' * 10 ** 9
"""
    config, report = written(tmp_path, text)
    assert not flag.exists()
    assert config == {
        "train_cfg": {"val_interval": 2},
        "train_dataloader": {"dataset": {"type": "A"}, "collate_fn": {"type": "pseudo_collate"}},
    }
    left = of(report, "left for you")
    assert left["train_cfg.max_epochs"] == "net.py:3"
    assert left["for i in range(3):"] == "net.py:4"
    assert {"train_dataloader.batch_size", "train_dataloader.dataset.many", "work_dir"} <= set(left)


@pytest.mark.parametrize("name", ["net.yaml", "net.json"])
def test_data_configs_inherit_and_take_values_of_their_base(name: str, tmp_path: Path) -> None:
    model = '{"type": "M", "classes": "{{_base_.classes}}"}'
    text = f'{{"_base_": "base.py", "model": {model}, "work_dir": "w{{{{ _base_.classes }}}}"}}'
    config, report = written(tmp_path, text, name=name)
    assert config.model == {"type": "M", "classes": 5}
    assert config.work_dir == "w5"
    assert config.optimizer == {"type": "SGD", "lr": 0.01, "momentum": 0.9}
    assert "classes" in of(report, "nothing to do")


def test_values_are_worked_out_of_names_and_changed_in_place(tmp_path: Path) -> None:
    text = """
size = (2, 3)
common = dict(type='M', size=size, a=[1])
model = dict(**common, b=-size[0], c={'d': f'{size[1]}x'}, e=common['a'] + [2])
model['c']['d2'] = not True
custom_hooks = [dict(type='A')]
custom_hooks += [dict(type='B')]
work_dir = 'x'
del work_dir
"""
    config, _ = written(tmp_path, text)
    assert config.model == {
        "type": "M",
        "size": [2, 3],
        "a": [1],
        "b": -2,
        "c": {"d": "3x", "d2": False},
        "e": [1, 2],
    }
    assert [hook["type"] for hook in config.custom_hooks] == ["A", "B"]
    assert "work_dir" not in config


SCHEDULES = [
    ("dict(type='StepLR', step_size=3, gamma=0.5)", {"type": "StepLR", "step_size": 3, "gamma": 0.5}),
    (
        "dict(type='MultiStepMomentum', milestones=[1], by_epoch=False)",
        {"type": "MultiStepLR", "milestones": [1], "param": "momentum", "by_epoch": False},
    ),
    (
        "dict(type='LinearParamScheduler', param_name='weight_decay', end=9)",
        {"type": "LinearLR", "param": "weight_decay", "end": 9},
    ),
    (
        "dict(type='OneCycleLR', eta_max=1., total_steps=9)",
        {"type": "OneCycleLR", "max_lr": 1.0, "total_steps": 9, "cycle_momentum": False},
    ),
    (
        "dict(type='CosineRestartLR', periods=[2, 4, 8], eta_min=0.1)",
        {"type": "CosineAnnealingWarmRestarts", "T_0": 2, "T_mult": 2, "eta_min": 0.1},
    ),
    (
        "dict(type='ReduceOnPlateauLR', monitor='acc', rule='greater', min_value=1e-5)",
        {"type": "ReduceLROnPlateau", "monitor": "acc", "mode": "max", "min_lr": 1e-5},
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), SCHEDULES)
def test_schedules_go_by_their_names_here(theirs: str, ours: dict[str, Any], tmp_path: Path) -> None:
    assert written(tmp_path, f"param_scheduler = {theirs}")[0].param_scheduler == [ours]


@pytest.mark.parametrize(
    "theirs",
    [
        "dict(type='PolyLR', end=9, eta_min=0.1)",
        "dict(type='PolyLR')",
        "dict(type='CosineRestartLR', periods=[2, 3], restart_weights=[1, 0.5])",
        "dict(type='MyLR', x=1)",
    ],
)
def test_a_schedule_that_would_not_be_the_same_is_left_out_and_told(theirs: str, tmp_path: Path) -> None:
    config, report = written(tmp_path, f"param_scheduler = {theirs}")
    assert "param_scheduler" not in config
    assert any(name.startswith("param_scheduler") for name in of(report, "left for you"))


def test_a_form_that_is_not_known_is_told_and_no_riddle(tmp_path: Path) -> None:
    text = "default_hooks = dict(checkpoint=dict(interval='often'))\nrandomness = 5\nmodel = dict(type='M')"
    config, report = written(tmp_path, text)
    assert config == {"model": {"type": "M"}}
    assert of(report, "left for you")["default_hooks"] == "net.py:1"


def test_the_command_writes_the_config_and_prints_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    assert run(["migrate", "mmengine", "net.py", "--out", "ours.yaml"]) == 0
    told = capsys.readouterr().out
    assert "left for you (7)" in told and "net.py:4" in told and "written: ours.yaml" in told
    assert Config.load("ours.yaml").train_cfg.max_epochs == 3
    assert run(["migrate", "mmengine", "net.py", "--out", "ours.yaml"]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("with read_base():\n    from .base import *", "net.py:1: read_base"),
        ("_base_ = 'mmdet::x.py'", "installed package"),
        ("_base_ = 'net.py'", "circle"),
        ("_base_ = 'bass.py'", "did you mean 'base.py'"),
        ("a = (", "net.py:1: no Python"),
        ("_base_ = 3", "must be the name of a file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_do(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        written(tmp_path, text, base="")


@pytest.mark.parametrize(
    "text",
    [
        "a = 10**60\n" + "a = a * a\n" * 30,
        "a = [0]\n" + "a = [*a, *a]\n" * 40,
        "a = 'x'\n" + "a = a + a\n" * 60,
        "a = 'x'\n" + "a = f'{a}{a}'\n" * 60,
        "a = '%900000000d' % 1\n",
        "a = -[1]\nb = -'abc'\nc = 2j\nd = ...\n",
        "model = dict(x=1)\nmodel['x'] = model\n",
        "a = " + " + ".join("1" for _ in range(5000)) + "\n",
    ],
)
def test_a_hostile_config_is_read_at_once_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text + "train_cfg = dict(by_epoch=True, max_epochs=1)\n")
    assert run(["migrate", "mmengine", str(tmp_path / "a.py"), "--out", str(tmp_path / "a.yaml")]) in (0, 2)


def test_a_config_in_yaml_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("train_cfg: {by_epoch: true, max_epochs: 1}\n")
    assert run(["migrate", "mmengine", "a.yaml"]) == 0
    assert Path("a-stratrun.yaml").is_file() and "max_epochs: 1" in Path("a.yaml").read_text()
    assert run(["migrate", "mmengine", "a.yaml", "--out", "a.yaml", "--force"]) == 2
