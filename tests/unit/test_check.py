"""``stratrun check``: all mistakes of a config at once, by the rules that a job begins with."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from stratrun import MODELS, Config, Runner
from stratrun.cli.main import run
from stratrun.errors import ConfigError, StratrunError
from stratrun.problems import gathering, part
from stratrun.registry import OPTIMIZERS

ROOT = Path(__file__).parents[2]
GOOD = """\
model: {type: Linear, in_features: 4, out_features: 3}
loss: cross_entropy
train_dataloader: {dataset: {type: NeverBuilt}, batch_size: 4}
train_cfg: {by_epoch: true, max_epochs: 1}
optimizer: {type: SGD, lr: 1e-1}
"""
# Each line with a mistake of its own, and what was meant.
BAD = """\
model: {type: NeverBuilt, widht: 3}          # 1 width
los: cross_entropy                           # 2 loss
train_dataloader:
  dataset: {type: Subsett}                   # 4 Subset
  num_wrokers: 2                             # 5 num_workers
train_cfg: {by_epoch: true, max_epoch: 1}    # 6 max_epochs
optimizer:
  type: SGD
  momentun: 0.9                              # 9 momentum
param_scheduler: {type: StepLr, step_size: 1}  # 10 StepLR
val_dataloader: {dataset: {type: NeverBuilt}, batchsize: 3}  # 11 batch_size
val_evaluator: [{type: Acuracy}]             # 12 Accuracy
custom_hooks:
- {type: EMAHok}                             # 14 EMAHook
- {type: EarlyStoppingHook, monitr: loss}    # 15 monitor
default_hooks: {checkpoint: {intervall: 3}}  # 16 interval
loggers: [consol]                            # 17 console
strategy: dpp                                # 18 ddp
precision: bf16-mixd                         # 19 bf16-mixed
randomness: {sede: 0}                        # 20 seed
env_cfg: {tf23: true}                        # 21 tf32
checkpoint_cfg: {asynchronus: true}          # 22 asynchronous
dev_cfg: {sanity_batch: 1}                   # 23 sanity_batches
clip_grad: {max_nrom: 1}                     # 24 max_norm
"""


@MODELS.register_module(force=True)
class NeverBuilt(nn.Module):
    """Says so when it is built all the same."""

    def __init__(self, width: int = 1) -> None:
        raise AssertionError("built")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from stratrun import DATASETS

    monkeypatch.setitem(DATASETS._entries, "NeverBuilt", NeverBuilt)


def checked(text: str, folder: Path, capsys: Any, *words: str) -> tuple[int, dict[str, Any]]:
    (folder / "run.yaml").write_text(text)
    code = run(["check", str(folder / "run.yaml"), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_good_config_has_no_problem_and_nothing_of_it_is_built(tmp_path: Path, capsys: Any) -> None:
    code, told = checked(GOOD, tmp_path, capsys)
    assert (code, told["problems"], told["jobs"]) == (0, [], ["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_every_mistake_is_named_with_its_line_and_what_was_meant(tmp_path: Path, capsys: Any) -> None:
    code, told = checked(BAD, tmp_path, capsys)
    found = {(one["line"], one["near"]) for one in told["problems"]}
    planted = {(int(line), near) for line, near in re.findall(r"# (\d+) (\S+)", BAD)}
    assert code == 2
    assert found == planted
    assert {one["file"] for one in told["problems"]} == {str(tmp_path / "run.yaml")}
    assert all(one["reason"] and one["mend"] for one in told["problems"])


def test_each_mistake_is_the_one_that_the_runner_raises_for_it_alone(tmp_path: Path, capsys: Any) -> None:
    good = GOOD.replace("NeverBuilt", "TensorDataset")
    for bad in ("optimizer.lrr=1", "train_cfg.max_epochs=0", "los=mse_loss", "env_cfg.gc=never"):
        _, told = checked(good, tmp_path, capsys, bad)
        with pytest.raises(StratrunError) as raised:
            Runner.from_cfg(Config.load(tmp_path / "run.yaml", [bad])).train()
        messages = [one["message"] for one in told["problems"]]
        assert str(raised.value).partition(" (override")[0] in messages
        assert f"override {bad!r}" in {one["place"] for one in told["problems"]}


def test_readers_get_a_line_for_each_problem_in_the_order_of_the_file(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BAD)
    assert run(["check", str(path), "optimizer.dampning=0"]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}:1: model: NeverBuilt takes no argument 'widht'; did you mean")
    numbers = [int(found[1]) for line in lines if (found := re.match(rf"{path}:(\d+): ", line))]
    assert numbers == sorted(numbers)
    assert lines[-1].startswith("override 'optimizer.dampning=0': optimizer: SGD takes no argument")
    assert re.match(rf"{path}: 21 problems \(", last)


def test_a_class_that_the_config_may_not_name_is_told_and_never_imported(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "not_trusted.py").write_text("class Net:\n    pass\n")
    for text, words in (
        (GOOD.replace("type: Linear", "type: not_trusted.Net"), ()),
        (GOOD, ("model.type=not_trusted.Net",)),
        (GOOD, ("model={type: not_trusted.Net}",)),
        (GOOD, ("custom_hooks=[{type: not_trusted.Net}]",)),
        (GOOD, ("runner_type=not_trusted.Net",)),
    ):
        code, told = checked(text, tmp_path, capsys, *words)
        assert code == 2
        assert any("would import code" in one["message"] for one in told["problems"])
    assert "not_trusted" not in sys.modules


def test_what_a_missing_part_would_bring_along_is_told_once(tmp_path: Path, capsys: Any) -> None:
    _, told = checked("train_dataloader: {dataset: {type: NeverBuilt}}\n", tmp_path, capsys)
    messages = " ".join(one["message"] for one in told["problems"])
    assert len(told["problems"]) == 3
    assert all(word in messages for word in ("no 'model'", "needs train_cfg", "needs optimizer"))


def test_values_and_keys_that_come_twice_are_told_with_the_rest(tmp_path: Path, capsys: Any) -> None:
    text = """\
model: {type: Linear, in_features: 4, out_features: 3}
loss: cross_entropy
train_dataloader: {dataset: {type: NeverBuilt}, batch_size: 0}
train_cfg: {by_epoch: true, max_epochs: -1, accumulate: 0}
optimizer:
  type: SGD
  lr: -1
  lr: 2
custom_hooks:
- {type: EMAHook, decay: 3}
- {type: EarlyStoppingHook, monitor: loss, patience: 0}
non_finite: rais
randomness: {deterministic: maybe}
clip_grad: {max_norm: -1}
"""
    code, told = checked(text, tmp_path, capsys)
    said = {
        (one["line"], value)
        for one in told["problems"]
        for value in re.findall(
            r"batch_size=0|max_epochs=-1|accumulate=0|'lr' is there|Invalid learning rate: "
            r"-1|decay=3|patience=0|'rais'|'maybe'|max_norm=-1",
            one["message"],
        )
    }
    assert said == {
        *((3, "batch_size=0"), (4, "max_epochs=-1"), (4, "accumulate=0"), (8, "'lr' is there")),
        *((7, "Invalid learning rate: -1"), (10, "decay=3"), (11, "patience=0"), (12, "'rais'")),
        *((13, "'maybe'"), (14, "max_norm=-1")),
    }
    assert (code, len(told["problems"])) == (2, 10)


def test_nothing_heavy_is_imported_to_check_a_config(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD.replace("NeverBuilt", "TensorDataset"))
    program = (
        "import sys; from stratrun.cli.main import run; code = run(['check', 'run.yaml']); "
        "print(code, *sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    code, *imported = done.stderr.split()
    assert code == "0", done.stdout + done.stderr
    assert "torch" in imported
    heavy = (
        "torch._dynamo",
        "torch._inductor",
        "torchmetrics",
        "tensorboardX",
        "mlflow",
        "wandb",
        "matplotlib",
    )
    assert not {*heavy, "torch.distributed.fsdp", "torch.distributed.checkpoint"} & set(imported)


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, capsys: Any) -> None:
    code, told = checked("model: {type: Linear\nx: [1", tmp_path, capsys)
    (only,) = told["problems"]
    assert (code, only["line"]) == (2, 2)


def test_a_job_can_be_looked_at_alone(tmp_path: Path, capsys: Any) -> None:
    text = f"{GOOD}test_dataloader: {{dataset: {{type: NeverBuilt}}, batch_siz: 4}}\n"
    assert checked(text, tmp_path, capsys)[0] == 2
    assert checked(text, tmp_path, capsys, "--job", "train")[0] == 0
    assert checked(GOOD, tmp_path, capsys, "--job", "test")[0] == 2


def test_a_strategy_is_held_against_the_ranks_that_are_named(tmp_path: Path, capsys: Any) -> None:
    words = ("strategy=ddp", "accelerator=cpu")
    assert checked(GOOD, tmp_path, capsys, *words)[0] == 0
    assert checked(GOOD, tmp_path, capsys, *words, "--world-size", "2")[0] == 0
    code, told = checked(GOOD, tmp_path, capsys, *words, "--world-size", "1")
    assert code == 2
    assert "needs several processes" in told["problems"][0]["message"]


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("examples/configs/*")))
def test_the_configs_of_the_examples_are_good(name: str, capsys: Any) -> None:
    code = run(["check", str(ROOT / "examples/configs" / name), "--json"])
    told = json.loads(capsys.readouterr().out)
    # Without the module that registers them, what it registers is what is missing.
    assert code == 2
    assert {one["kind"] for one in told["problems"]} == {"UnknownNameError"}


def test_outside_of_gathering_a_part_lets_its_error_through() -> None:
    with pytest.raises(ConfigError), part("optimizer"):
        raise ConfigError("wrong")


def test_gathering_keeps_other_errors_of_no_one() -> None:
    with pytest.raises(ZeroDivisionError), gathering() as found:
        with part("optimizer"):
            raise ConfigError("wrong")
        with part("model"):
            _ = 1 / 0
    assert [(one.key, str(one.error)) for one in found.found] == [("optimizer", "wrong")]
    with pytest.raises(ConfigError):
        OPTIMIZERS.check({"type": "SGD", "lrr": 1}, given=("params",))


def test_places_of_inherited_values_are_those_of_the_file_that_has_them(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("lr: 1e-1", "lrr: 1e-1"))
    _, told = checked("_base_: base.yaml\ndev_cfg: {sanity_batches: 0}\n", tmp_path, capsys)
    places = {Path(one["file"]).name: one["line"] for one in told["problems"]}
    assert places == {"base.yaml": 5, "run.yaml": 2}


@pytest.mark.parametrize(
    ("setting", "key", "word"),
    [
        ("name=2024", "name", "in quotes"),
        ("name=..", "name", "no name"),
        ("activation_checkpointing={every: 0}", "activation_checkpointing", "whole number"),
        ("strategy=dpp", "strategy", "did you mean 'ddp'"),
        ("param_scheduler={type: ExponentialLR, gamma: x}", "param_scheduler", "ExponentialLR says"),
        ("param_scheduler={type: LinearLR, start_factor: 3}", "param_scheduler", "greater than 0"),
        (
            "param_scheduler=[{type: OneCycleLR, max_lr: 1, anneal_strategy: cosine}]",
            "param_scheduler.0",
            "'cos' or 'linear'",
        ),
        (
            "param_scheduler={type: SequentialLR, milestones: [3], schedulers: "
            "[{type: LinearLR, end_factor: 7}, {type: ConstantLR}]}",
            "param_scheduler",
            "SequentialLR says: Ending multiplicative factor",
        ),
        ("resume=gone/step-7", "resume", "does not exist"),
        ("load_from=gone.pt", "load_from", "gone.pt"),
        ("load_from={path: here/model.pd}", "load_from", "did you mean 'model.pt'"),
    ],
)
def test_a_problem_is_told_by_the_key_that_has_it(
    setting: str, key: str, word: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here/model.pt").touch()
    _, told = checked(GOOD, tmp_path, capsys, setting)
    (only,) = told["problems"]
    assert only["key"] == key and word in only["message"]
    assert only["place"].startswith("override")


@pytest.mark.parametrize(
    "setting",
    [
        "resume=auto",
        "load_from=best",
        "load_from=here/best",
        "load_from=s3://nowhere/model.pt",
        "load_from=model.pt",
        "param_scheduler={type: CosineAnnealingLR}",
        "param_scheduler={type: OneCycleLR, max_lr: 1, by_epoch: false, cycle_momentum: false}",
        "param_scheduler={type: StepLR, step_size: 2, groups: head}",
        "param_scheduler={type: OneCycleLR, max_lr: [1, 2], by_epoch: false}",
        "param_scheduler={type: SequentialLR, milestones: [3], schedulers: "
        "[{type: CyclicLR, base_lr: [1, 2], max_lr: [2, 3]}, {type: ConstantLR}]}",
        "param_scheduler={type: LinearLR, begin: 2000000, end: 2000009, by_epoch: false}",
    ],
)
def test_what_only_a_run_can_tell_is_no_problem(
    setting: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").touch()
    code, told = checked(GOOD, tmp_path, capsys, setting)
    assert (code, told["problems"]) == (0, [])


def test_what_else_is_wrong_is_told_beside_a_misspelt_runner(tmp_path: Path, capsys: Any) -> None:
    settings = ("runner_type=Runer", "teacher=its_own", "optimizer.type=SDG")
    _, told = checked(GOOD, tmp_path, capsys, *settings)
    assert [(one["key"], one["near"]) for one in told["problems"]] == [
        ("optimizer", "SGD"),
        ("runner_type", "Runner"),
    ]


def test_a_module_that_fails_is_one_problem_among_others(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "fails.py").write_text("1 / 0\n")
    words = ("--import", str(tmp_path / "fails.py"), "optimizer.lrr=1")
    code, told = checked(GOOD, tmp_path, capsys, *words)
    assert code == 2
    assert sorted(one["kind"] for one in told["problems"]) == ["ConfigError", "ConfigError"]
    assert any("ZeroDivisionError" in one["message"] for one in told["problems"])
