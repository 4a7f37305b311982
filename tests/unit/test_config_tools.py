"""``stratrun config show``, ``explain`` and ``diff``: what a config says, and who said it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stratrun import Config
from stratrun.cli.main import run
from stratrun.data.options import OWN_KEYS
from stratrun.registry.docs import documented
from stratrun.runner.slots import LOADER_KEYS, SLOTS

BASE = """\
model: {type: Linear, in_features: 4, out_features: 3}
loss: cross_entropy
train_dataloader: {dataset: {type: TensorDataset}, batch_size: 4}
train_cfg: {by_epoch: true, max_epochs: 1}
optimizer: {type: AdamW, lr: 1e-1}
custom_hooks:
- {type: EMAHook, decay: 0.9}
"""
OWN = """\
_base_: base.yaml
optimizer:
  lr: 0.01
loggers:
- {type: wandb, api_key: very-private}
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("own.yaml").write_text(OWN)


def told(capsys: Any, *words: str) -> str:
    assert run(["config", *words]) == 0
    text: str = capsys.readouterr().out
    return text


def refused(capsys: Any, *words: str) -> str:
    assert run(["config", *words]) == 2
    text: str = capsys.readouterr().err
    return text


def test_what_is_shown_is_the_config_that_a_run_would_have(capsys: Any) -> None:
    shown = yaml.safe_load(told(capsys, "show", "own.yaml", "optimizer.eps=0.5"))
    config = Config.load("own.yaml", ["optimizer.eps=0.5"])
    assert shown.pop("name") == "own"
    assert shown["loggers"] == [{"type": "wandb", "api_key": "***"}]
    del shown["loggers"], config["loggers"]
    assert shown == dict(config)


def test_beside_each_value_stands_who_set_it(capsys: Any) -> None:
    shown = told(capsys, "show", "own.yaml", "optimizer.eps=0.5", "--sources")
    assert yaml.safe_load(shown) == yaml.safe_load(told(capsys, "show", "own.yaml", "optimizer.eps=0.5"))
    of = {line.split("#")[0].strip(): line.partition("# ")[2] for line in shown.splitlines()}
    assert of["lr: 0.01"] == "own.yaml:3"
    assert of["in_features: 4"] == "base.yaml:1"
    assert of["eps: 0.5"] == "override 'optimizer.eps=0.5'"
    assert of["decay: 0.9"] == "base.yaml:7"


def test_a_value_is_explained_by_all_that_set_it_and_by_what_takes_it(capsys: Any) -> None:
    lines = told(capsys, "explain", "own.yaml", "optimizer.lr").splitlines()
    assert lines[:3] == ["optimizer.lr: 0.01", "  set by   own.yaml:3: 0.01", "  before   base.yaml:5: 0.1"]
    assert "AdamW: lr" in lines[3] and "0.001 by default" in lines[3]
    assert "learning rate" in lines[4]
    first = told(capsys, "explain", "own.yaml", "optimizer.lr", "optimizer.lr=3").splitlines()
    assert first[0] == "optimizer.lr: 3"
    assert first[1].startswith("  set by   override 'optimizer.lr=3'")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optimizer.weight_decay", ["is not set, and is 0.01 by default", "weight decay coefficient"]),
        ("train_dataloader.num_workers", ["is 0 by default", "a loader: num_workers", "subprocesses"]),
        ("train_dataloader.global_batch_size", ["over all ranks"]),
        ("custom_hooks.0.decay", ["0.9", "base.yaml:7", "EMAHook", "0.999 by default"]),
        ("default_hooks.checkpoint.interval", ["CheckpointHook", "1 by default"]),
        ("env_cfg.tf32", ["None by default", "TF32"]),
        ("work_dir", ["Where checkpoints and logs go"]),
        ("strategy", ["'auto' by default", "ddp, fsdp, hsdp, single"]),
        ("optimizer", ["a     torch.optim", "lr = 0.01", "eps = 1e-08  (default)"]),
        ("loggers.0.api_key", ["***"]),
        ("custom_hooks.0.priority", ["lower ones first"]),
    ],
)
def test_every_place_of_a_config_is_explained(key: str, words: list[str], capsys: Any) -> None:
    text = told(capsys, "explain", "own.yaml", key)
    assert [word for word in words if word not in text] == []
    assert "very-private" not in text


def test_a_mapping_that_was_dropped_is_told(capsys: Any) -> None:
    Path("other.yaml").write_text("_base_: own.yaml\noptimizer: {_delete_: true, type: SGD}\n")
    text = told(capsys, "explain", "other.yaml", "optimizer.lr")
    assert "optimizer.lr is not set" in text
    assert "other.yaml:2: not there any more" in text and "before   own.yaml:3: 0.01" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["explain", "own.yaml", "optimizer.lrr"], "did you mean 'optimizer.lr'?"),
        (["explain", "own.yaml", "optimiser"], "did you mean 'optimizer'?"),
        (["explain", "own.yaml"], "write: stratrun config explain CONFIG KEY"),
        (["explain", "own.yaml", "optimizer.lr=3"], "write: stratrun config explain CONFIG KEY"),
        (["explain"], "which config?"),
        (["diff", "own.yaml", "base.yml"], "base.yaml"),
        (["show", "own.yaml", "--source"], "did you mean '--sources'?"),
        (["schema", "hook"], "did you mean 'hooks'?"),
        (["schema", "hooks"], "write: stratrun config schema hooks NAME"),
        (["schema", "hooks", "EMAHok"], "did you mean 'EMAHook'?"),
        (["schema", "hooks", "EMAHook", "--out", "no/where.json"], "choose another place"),
        (["shw"], "did you mean 'show'?"),
    ],
)
def test_a_mistake_is_told_with_its_mend(words: list[str], hint: str, capsys: Any) -> None:
    assert hint in refused(capsys, *words)


def test_explaining_imports_nothing_that_a_config_names_by_its_path(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("not_trusted.py").write_text("class Net:\n    pass\n")
    Path("path.yaml").write_text(BASE.replace("type: Linear", "type: not_trusted.Net"))
    told(capsys, "explain", "path.yaml", "model.in_features", "--allow", "not_trusted")
    assert "not_trusted" not in sys.modules


def test_two_configs_differ_where_a_run_would(capsys: Any) -> None:
    assert run(["config", "diff", "base.yaml", "own.yaml"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "~ optimizer.lr: 0.1 (base.yaml:5) -> 0.01 (own.yaml:3)",
        "+ loggers.0.type: wandb (own.yaml:5)",
        "+ loggers.0.api_key: '***' (own.yaml:5)",
    ]
    assert told(capsys, "diff", "own.yaml", "own.yaml") == ""


def test_a_secret_that_differs_is_told_without_it(capsys: Any) -> None:
    Path("other.yaml").write_text("_base_: own.yaml\nloggers: [{type: wandb, api_key: another}]\n")
    assert run(["config", "diff", "own.yaml", "other.yaml"]) == 1
    shown = capsys.readouterr().out
    assert "loggers.0.api_key" in shown and "another" not in shown and "very-private" not in shown


def test_every_default_of_a_place_is_registered_and_every_key_of_a_loader_told() -> None:
    for key, slot in SLOTS.items():
        if slot.registry is not None and slot.default is not None:
            assert slot.registry.get(slot.default), key
    assert set(LOADER_KEYS) == set(OWN_KEYS)


def test_arguments_are_documented_by_whatever_form_their_class_uses() -> None:
    class Base:
        """A base.

        Args:
            first: One thing,
                on two lines.
            second, third: Two at once.

        Raises:
            ValueError: never.
        """

    class Torch(Base):
        r"""In torch's form.

        Args:
            second (Tensor, optional): replaced (default: ``None``)
        """

    assert documented(Torch) == {
        "first": "One thing, on two lines.",
        "second": "replaced (default: ``None``)",
        "third": "Two at once.",
    }


def test_an_argument_of_a_class_is_not_said_to_be_one_of_the_classes(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    assert "one of" not in told(capsys, "explain", "own.yaml", "optimizer.lr")
    assert "one of" in told(capsys, "explain", "own.yaml", "optimizer")
