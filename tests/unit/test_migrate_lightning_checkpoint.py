"""A file of Lightning is read without running anything, and a run goes on from it as Lightning would."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stratrun import Runner
from stratrun.checkpoint.foreign import Placeholder, read_with_placeholders
from stratrun.cli.main import run
from stratrun.errors import CheckpointError, CheckpointNotFoundError
from stratrun_ext.migrate.lightning import LightningModule, runner_for
from stratrun_ext.migrate.lightning.checkpoint import read
from tests.lightning_shapes import EPOCHS, loaders, shaped, trained


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


class Odd(dict[str, Any]):
    """Restored by its class alone."""


def written(path: Path, work_dir: str, epochs: int, **more: Any) -> Any:
    """A file in Lightning's layout, of a training by so many epochs."""
    module, runner = trained(work_dir, schedule="two", max_epochs=epochs)
    link = module._link
    payload = {
        "epoch": epochs - 1,
        "global_step": runner.step,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": module.state_dict(),
        "loops": {
            "fit_loop": {
                "epoch_loop.batch_progress": {"total": {"completed": runner.iter}, "is_last_batch": True}
            }
        },
        "callbacks": {},
        "optimizer_states": [link.optimizer.state_dict()],
        "lr_schedulers": [one.scheduler.state_dict() for one in link.schedulers],
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(x=1)},
        **more,
    }
    torch.save(payload, path)
    return module


def gone_on(path: Path, work_dir: Path, epochs: int = EPOCHS, schedule: str = "two") -> Any:
    module = shaped(LightningModule)(schedule)
    options: Any = {"accelerator": "cpu", "loggers": [], "work_dir": work_dir}
    runner = runner_for(module, *loaders(), max_epochs=epochs, start_from=path, **options)
    runner.train()
    runner.close()
    return module


def test_a_run_goes_on_from_a_file_to_the_bit(tmp_path: Path) -> None:
    truth, _ = trained(str(tmp_path / "whole"), schedule="two")
    begun = written(tmp_path / "a.ckpt", str(tmp_path / "begun"), EPOCHS - 1)
    module = gone_on(tmp_path / "a.ckpt", tmp_path / "rest")
    assert begun.curve + module.curve == truth.curve
    assert begun.rates + module.rates == truth.rates


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Odd(a=1)
    held = {"evil": Evil(), "odd": odd, "t": torch.arange(3.0), "n": [1, "x", None], "d": torch.bfloat16}
    torch.save(held, "a.ckpt")
    found = read_with_placeholders("a.ckpt")
    assert not Path("ran").exists()
    assert isinstance(found["evil"], Placeholder) and isinstance(found["odd"], Placeholder)
    assert "Odd, not restored" in repr(found["odd"])
    assert found["t"].tolist() == [0, 1, 2] and found["n"] == [1, "x", None] and found["d"] is torch.bfloat16


def test_the_report_says_what_is_taken_and_what_is_not(tmp_path: Path) -> None:
    written(tmp_path / "a.ckpt", str(tmp_path / "begun"), 1, extra=3)
    told = "\n".join(read(tmp_path / "a.ckpt").report)
    assert "weights: 4 tensors" in told and "optimizer: state of 4 parameters" in told
    assert "1 epochs, 6 batches, 6 updates" in told
    assert "hyper_parameters['args'], <argparse.Namespace, not restored>" in told
    assert "left out: callbacks" in told and "left out: extra" in told


def test_what_is_no_file_of_this_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is no file"):
        read(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(CheckpointError, match="is no file that torch"):
        read(tmp_path / "text.ckpt")
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no 'state_dict', but model"):
        read(tmp_path / "other.ckpt")
    torch.save({"state_dict": {"net.0.wight": torch.zeros(1)}}, tmp_path / "another.ckpt")
    with pytest.raises(CheckpointError, match=r"'net\.0\.wight': the model has no such weight"):
        gone_on(tmp_path / "another.ckpt", tmp_path / "work")


class Plain(nn.Module):
    """The same weights without anything of Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_the_command_writes_what_a_plain_runner_goes_on_from_as_a_plain_loop_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = written(tmp_path / "a.ckpt", "begun", 2, extra=3)
    assert run(["migrate", "lightning", "a.ckpt"]) == 0
    told = capsys.readouterr().out
    assert "4 tensors in a.safetensors" in told and "2 epochs, 12 updates were done" in told
    assert "hyper_parameters.args: <argparse.Namespace, not restored>" in told
    assert "extra: is not taken" in told
    truth, theirs = Plain(), module._link.optimizer
    truth.load_state_dict(load_file("a.safetensors"))
    optimizer = torch.optim.AdamW(truth.parameters(), lr=0.05)
    optimizer.load_state_dict(theirs.state_dict())
    for x, y in loaders()[0]:
        nn.functional.cross_entropy(truth(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    runner = Runner(
        Plain(),
        train_dataloader=loaders()[0],
        loss="cross_entropy",
        optimizer={"type": "AdamW", "lr": 0.05},
        train_cfg={"max_epochs": 1},
        load_from={"path": "a", "parts": ["model", "optimizer"]},
        accelerator="cpu",
        loggers=[],
        work_dir="rest",
    )
    runner.train()
    runner.close()
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, truth.state_dict()[name])


@pytest.mark.parametrize(
    "odd",
    [
        {"loops": None},
        {
            "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": None, "is_last_batch": True}}},
            "epoch": None,
        },
        {"optimizer_states": 3, "lr_schedulers": "x", "global_step": None},
        {"hyper_parameters": {"t": torch.zeros(2), "d": torch.float32, "api_key": "hunter30", "k": [object]}},
    ],
)
def test_a_file_of_another_form_is_migrated_as_far_as_it_goes(
    odd: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"net.weight": torch.ones(2, 2), "net.sparse": torch.eye(3).to_sparse(), "count": 3}
    torch.save({"state_dict": weights, **odd}, "a.ckpt")
    assert run(["migrate", "lightning", "a.ckpt"]) == 0
    told = capsys.readouterr().out
    assert list(load_file("a.safetensors")) == ["net.weight"] and "1 tensors" in told
    assert "state_dict.net.sparse: is not taken" in told and "state_dict.count: is not taken: a int" in told
    assert "hunter30" not in told


@pytest.mark.filterwarnings("ignore")  # of Lightning, about torch
@pytest.mark.parametrize("schedule", ["two", "epoch", "plateau"])
def test_lightnings_own_file_is_gone_on_from(schedule: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    def fit(epochs: int) -> Any:
        module = shaped(lightning.LightningModule)(schedule)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, filename=f"of{epochs}")
        options: Any = {"max_epochs": epochs, "accelerator": "cpu", "num_sanity_val_steps": 0, **quiet}
        lightning.Trainer(callbacks=[keep], **options).fit(module, *loaders())
        return module

    truth = fit(EPOCHS)
    begun = fit(EPOCHS - 1)
    module = gone_on(tmp_path / f"of{EPOCHS - 1}.ckpt", tmp_path / "rest", schedule=schedule)
    assert begun.curve + module.curve == truth.curve
    assert begun.rates + module.rates == truth.rates
