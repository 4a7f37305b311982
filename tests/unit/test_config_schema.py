"""``stratrun config schema``: an editor that follows it accepts what a run takes, and no more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stratrun import Config
from stratrun.cli.config.schema.annotations import of_annotation
from stratrun.cli.main import run
from stratrun.errors import StratrunError
from stratrun.registry import HOOKS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)  # all that can be named is imported once
GOOD: dict[str, Any] = {
    "model": {"type": "Linear", "in_features": 4, "out_features": 3},
    "loss": "cross_entropy",
    "train_dataloader": {"dataset": {"type": "TensorDataset"}, "batch_size": 4, "num_workers": 0},
    "train_cfg": {"by_epoch": True, "max_epochs": 1},
    "val_dataloader": {"dataset": {"type": "TensorDataset"}},
    "val_evaluator": [{"type": "Accuracy"}],
    "optimizer": {"type": "AdamW", "lr": 1e-1, "betas": [0.9, 0.95]},
    "param_scheduler": {"type": "CosineAnnealingLR", "T_max": "auto"},
    "custom_hooks": [{"type": "EMAHook", "decay": 0.9, "priority": "HIGH"}],
    "default_hooks": {"checkpoint": {"interval": 2}, "timer": None},
    "loggers": ["console", {"type": "jsonl"}],
    "strategy": "ddp",
    "precision": "bf16-mixed",
    "env_cfg": {"tf32": True},
    "clip_grad": 1.0,
    "non_finite": "skip",
    "dev_cfg": {"fast_dev_run": True},
}


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> jsonschema.Draft7Validator:
    # In a process of its own: what other tests have registered is not to be in it.
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    example = ROOT / "examples" / "image_classification.py"
    words = ["config", "schema", "--import", str(example), "--out", str(path)]
    subprocess.run([sys.executable, "-m", "stratrun", *words], check=True, cwd=ROOT, capture_output=True)
    schema = json.loads(path.read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def errors(validator: jsonschema.Draft7Validator, config: dict[str, Any]) -> list[str]:
    return [error.message for error in validator.iter_errors(config)]


def with_value(key: str, value: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(GOOD))
    node = config
    *outer, last = key.split(".")
    for name in outer:
        node = node[int(name) if name.isdecimal() else name]
    node[last] = value
    return config  # type: ignore[no-any-return]


def test_a_good_config_is_accepted_and_so_are_those_of_the_examples(
    validator: jsonschema.Draft7Validator,
) -> None:
    assert errors(validator, GOOD) == []
    for path in ROOT.glob("examples/configs/*.yaml"):
        assert errors(validator, json.loads(json.dumps(dict(Config.load(path))))) == [], path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimiser", {}),
        ("model.in_feature", 4),
        ("model.in_features", "four"),
        ("optimizer.type", "AdmaW"),
        ("optimizer.weigth_decay", 0.1),
        ("optimizer.lr", "1e-3 "),
        ("custom_hooks.0.decy", 0.9),
        ("custom_hooks.0.type", "EMAHok"),
        ("default_hooks.checkpoint.intervall", 2),
        ("default_hooks.chekpoint", None),
        ("train_cfg.max_epoch", 3),
        ("train_dataloader.batchsize", 3),
        ("train_dataloader.dataset", {"type": "TensorDatset"}),
        ("val_dataloader.num_wrokers", 3),
        ("val_evaluator.0.type", "Acuracy"),
        ("loggers", ["consol"]),
        ("strategy", "dpp"),
        ("precision", "bf16-mixd"),
        ("env_cfg.tf23", True),
        ("env_cfg.tf32", "yes"),
        ("non_finite", "skp"),
        ("clip_grad", {"max_nrom": 1}),
        ("param_scheduler.T_mx", 3),
    ],
)
def test_what_a_run_refuses_an_editor_underlines(
    key: str, value: Any, validator: jsonschema.Draft7Validator
) -> None:
    assert errors(validator, with_value(key, value)) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {"lr": 0.1}),  # the class is that of a base config
        ("optimizer", {"_delete_": True, "type": "SGD"}),
        ("optimizer", {"one": {"type": "SGD", "params": "a"}, "two": {"type": "Adam", "params": "b"}}),
        ("model", {"type": "mine.Net", "anything": 1}),
        ("val_dataloader", {"first": {"dataset": {"type": "TensorDataset"}}}),
        (
            "train_dataloader",
            {"type": "MultiLoader", "loaders": {"a": {"dataset": {"type": "TensorDataset"}}}},
        ),
        ("train_cfg", {"max_iters": 3, "by_epoch": False}),
        ("custom_hooks", []),
        ("_base_", ["a.yaml", "b.yaml"]),
        ("train_dataloader.batch_size", None),
        ("non_finite", {"policy": "rollback", "to": "memory"}),
        ("work_dir", "s3://bucket/run"),
    ],
)
def test_every_form_that_a_run_takes_is_accepted(
    key: str, value: Any, validator: jsonschema.Draft7Validator
) -> None:
    assert errors(validator, with_value(key, value)) == []


def test_every_name_has_the_text_that_its_class_has_for_it(validator: jsonschema.Draft7Validator) -> None:
    hook = validator.schema["definitions"]["hooks.EMAHook"]
    assert hook["properties"]["decay"]["default"] == 0.999
    assert "How much of an average stays" in hook["properties"]["decay"]["description"]
    assert validator.schema["else"]["properties"]["resume"]["description"].startswith("True goes on from")


def test_the_schema_of_a_class_wants_what_the_class_wants(capsys: Any) -> None:
    assert run(["config", "schema", "hooks", "EarlyStoppingHook"]) == 0
    schema = json.loads(capsys.readouterr().out)
    check = jsonschema.Draft7Validator(schema)
    good = {"type": "EarlyStoppingHook", "monitor": "loss"}
    for spec in (good, {**good, "monitr": 1}, {"type": "EarlyStoppingHook"}, {**good, "patience": "many"}):
        try:
            HOOKS.build(dict(spec))
            taken = True
        except (StratrunError, TypeError):
            taken = False
        assert (list(check.iter_errors(spec)) == []) is taken, spec


def test_arguments_that_the_run_gives_are_left_out(capsys: Any) -> None:
    assert run(["config", "schema", "optimizers", "SGD"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["type"] and "paramwise" in schema["properties"]
    assert "params" in schema["properties"]


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        (int | None, None, True),
        (int | None, "a", False),
        (list[int], [1, 2], True),
        (list[int], ["a"], False),
        (tuple[float, float], [0.1, 1], True),
        (dict[str, int], {"a": "b"}, False),
        (Path, "a/b", True),
        (Path, 3, False),
        (Any, object, True),
        (jsonschema.Draft7Validator, 3, True),
    ],
)
def test_an_annotation_allows_what_it_says(annotation: Any, value: Any, fits: bool) -> None:
    check = jsonschema.Draft7Validator(of_annotation(annotation))
    assert (list(check.iter_errors(value)) == []) is fits
