"""MMEngine's checkpoints, with objects in them that only its code could restore."""

import sys
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from stratrun import Runner
from stratrun.checkpoint.foreign import Placeholder, read_with_placeholders
from stratrun.checkpoint.weights import read_weights
from stratrun.cli.main import run
from stratrun.errors import CheckpointCorruptedError, CheckpointError
from stratrun_ext.migrate.mmengine.checkpoint import migrate_checkpoint
from stratrun_ext.migrate.report import Report

LR = 0.01


class HistoryBuffer:
    """Stands in for MMEngine's, of which a message hub is full."""

    def __init__(self) -> None:
        self.values = [1.0, 2.0]


class Executes:
    """What somebody could put into a file: it is called where a file is restored."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def network() -> nn.Module:
    torch.manual_seed(0)
    # Ahead of batch normalization a bias has no gradient but rounding, which AdamW makes much of.
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data() -> TensorDataset:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for x, y in DataLoader(data(), batch_size=8):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def theirs(path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[nn.Module, AdamW]:
    """Saved after an epoch of a plain loop, with what MMEngine puts into a checkpoint."""
    model = network()
    optimizer = AdamW(model.parameters(), lr=LR)
    epoch(model, optimizer)
    home = ModuleType("mmengine_history")
    home.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine_history")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "mmengine_history", home)
        payload = {
            "meta": {"epoch": 1, "iter": 4, "cfg": "x = 1", "mmengine_version": "0.10.7"},
            "state_dict": model.state_dict(),
            "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
            "optimizer": optimizer.state_dict(),
            "param_schedulers": [{"milestones": Counter([1])}],
            **more,
        }
        torch.save(payload, path)
    return model, optimizer


def goes_on(folder: Path, load_from: Any) -> dict[str, Tensor]:
    runner = Runner(
        network(),
        loss="cross_entropy",
        train_dataloader=DataLoader(data(), batch_size=8, shuffle=False),
        train_cfg=dict(max_epochs=1),
        optimizer=dict(type="AdamW", lr=LR),
        load_from=load_from,
        work_dir=folder / "work",
        accelerator="cpu",
        loggers=[],
    )
    runner.train()
    return runner.model.state_dict()


def noted(report: Report) -> dict[str, str]:
    return {row.theirs: row.outcome for row in report.rows}


def test_training_goes_on_with_their_weights_and_optimizer_as_a_plain_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = theirs(tmp_path / "epoch_1.pth", monkeypatch)
    report = migrate_checkpoint(tmp_path / "epoch_1.pth", tmp_path / "ours.safetensors")
    assert noted(report) == {
        "state_dict": "mapped",
        "optimizer": "mapped",
        "meta": "left for you",
        "param_schedulers": "left for you",
        "message_hub": "nothing to do",
    }
    torch.testing.assert_close(
        load_file(tmp_path / "ours.safetensors"), dict(model.state_dict()), rtol=0, atol=0
    )
    epoch(model, optimizer)
    found = goes_on(tmp_path, dict(path=tmp_path / "ours", parts=["model", "optimizer"]))
    torch.testing.assert_close(found, model.state_dict(), rtol=0, atol=1e-6)


def test_weights_alone_load_into_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = theirs(tmp_path / "epoch_1.pth", monkeypatch)
    migrate_checkpoint(tmp_path / "epoch_1.pth", tmp_path / "ours.safetensors")
    fresh = AdamW(model.parameters(), lr=LR)
    epoch(model, fresh)
    found = goes_on(tmp_path, tmp_path / "ours.safetensors")
    torch.testing.assert_close(found, model.state_dict(), rtol=0, atol=1e-6)


def test_nothing_that_a_file_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "ran"
    theirs(tmp_path / "bad.pth", monkeypatch, extra=Executes(str(flag)), many=[Executes(str(flag))])
    payload = read_with_placeholders(tmp_path / "bad.pth")
    assert not flag.exists()
    assert isinstance(payload["extra"], Placeholder) and "open" in repr(payload["extra"])
    buffer = payload["message_hub"]["log_scalars"]["loss"]
    assert repr(buffer) == "<mmengine_history.HistoryBuffer, not restored>"
    assert payload["param_schedulers"] == [{"milestones": Counter([1])}]
    assert "mmengine_history" not in sys.modules
    report = migrate_checkpoint(tmp_path / "bad.pth", tmp_path / "ours.safetensors")
    assert not flag.exists()
    assert noted(report)["extra"] == "left for you"


def test_without_a_placeholder_the_same_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs(tmp_path / "epoch_1.pth", monkeypatch)
    with pytest.raises(CheckpointError, match="never run"):
        read_weights(tmp_path / "epoch_1.pth")


def test_averages_are_the_weights_and_training_goes_on_with_the_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MMEngine's EMAHook saves the averages as state_dict, and what is trained as those of the average.
    plain = {f"module.{name}": one + 1 for name, one in network().state_dict().items()}
    model, _ = theirs(tmp_path / "e.pth", monkeypatch, ema_state_dict={**plain, "steps": torch.tensor(4)})
    report = migrate_checkpoint(tmp_path / "e.pth", tmp_path / "ours.safetensors")
    assert noted(report)["ema_state_dict"] == "changed"
    assert torch.equal(load_file(tmp_path / "ours.safetensors")["0.weight"], model.state_dict()["0.weight"])
    trained = load_file(tmp_path / "ours.plain.safetensors")
    assert torch.equal(trained["0.weight"], plain["module.0.weight"])
    assert torch.equal(read_weights(tmp_path / "ours")["0.weight"], plain["module.0.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"generator": state, "judge": state}, "several optimizers"),
        (
            lambda state: {**state, "param_groups": [{**state["param_groups"][0], "params": [0, 1]}]},
            "2 parameters",
        ),
        (lambda state: {**state, "state": {0: {"exp_avg": torch.ones(2, 2)}}}, "shapes"),
    ],
)
def test_an_optimizer_whose_names_cannot_be_told_is_left_out(
    change: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, optimizer = theirs(tmp_path / "plain.pth", monkeypatch)
    theirs(tmp_path / "e.pth", monkeypatch, optimizer=change(optimizer.state_dict()))
    report = migrate_checkpoint(tmp_path / "e.pth", tmp_path / "ours.safetensors")
    (row,) = [row for row in report.rows if row.theirs == "optimizer"]
    assert row.outcome == "left for you" and words in row.note
    assert not (tmp_path / "ours").exists()


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(CheckpointError, match=r"no file that torch\.save has written"):
        read_with_placeholders(tmp_path / "text.pth")
    theirs(tmp_path / "e.pth", monkeypatch)
    whole = (tmp_path / "e.pth").read_bytes()
    at = whole.index(b"data/0") + 600
    (tmp_path / "e.pth").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(CheckpointCorruptedError):
        read_with_placeholders(tmp_path / "e.pth")
    torch.save({"meta": {}, "author": "me"}, tmp_path / "n.pth")
    with pytest.raises(CheckpointError, match="'meta', 'author'"):
        migrate_checkpoint(tmp_path / "n.pth", tmp_path / "ours.safetensors")


def test_the_command_takes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "epoch_1.pth", monkeypatch)
    assert run(["migrate", "mmengine", "epoch_1.pth"]) == 0
    assert "optimizer: with the weights in" in capsys.readouterr().out
    assert Path("epoch_1.safetensors").is_file() and Path("epoch_1").is_dir()
    assert run(["migrate", "mmengine", "epoch_1.pth"]) == 2
