"""Deterministic mode: the same bits again, and what is said of operations that it refuses."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Runner
from stratrun.cli.failures import report
from stratrun.errors import ConfigError
from stratrun.runner.environment import parse_randomness
from stratrun.testing.process_state import Snapshot
from tests.problems import CLASSES, FEATURES, QUIET, points
from tests.ranks import Ranks

BOTH = pytest.mark.parametrize("mode", [True, "warn"])


class Put(nn.Module):
    """Writes to places of a tensor, of which two may be the same: torch knows no order to keep."""

    def forward(self, inputs: Tensor) -> Tensor:
        places = torch.arange(inputs.numel())
        return torch.zeros_like(inputs).put_(places, inputs)


class Trained(nn.Module):
    """A classifier with something in between that torch may refuse."""

    def __init__(self, refused: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.4), refused or nn.Identity())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.stem(inputs))
        return outputs


class RefusedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient).put_(torch.arange(gradient.numel()), gradient)


class Backward(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = RefusedBackward.apply(inputs)
        return outputs


def run(work_dir: str, mode: Any, refused: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    given: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(24), "batch_size": 2},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "AdamW", "lr": 0.1},
        "randomness": {"seed": 3, "deterministic": mode},
        "work_dir": work_dir,
    }
    runner = Runner(Trained(refused), **{**QUIET, **given, **options})
    runner.train()
    runner.close()
    state: dict[str, Any] = runner.model.state_dict()
    return {n: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for n, v in state.items()}


@BOTH
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_two_runs_are_the_same_to_the_bit(
    strategy: str, mode: Any, two_ranks: Ranks, tmp_path: Path, fresh: None
) -> None:
    def found(number: int) -> Any:
        options = {"strategy": strategy}
        if strategy == "single":
            return [run(str(tmp_path / str(number)), mode, **options)]
        return two_ranks(run, str(tmp_path / str(number)), mode, **options)

    first, second = found(1), found(2)
    assert torch.equal(first[0]["head.weight"], first[-1]["head.weight"])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a run sets in the process is put back, by what sees to it between all tests."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = Snapshot.take()
    yield
    before.restore()
    assert before.changes() == []


@BOTH
def test_both_modes_set_what_bits_depend_on(mode: Any, fresh: None) -> None:
    torch.backends.cudnn.benchmark = True
    parse_randomness({"deterministic": mode}).apply()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() is (mode == "warn")
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_refused_operation_is_told_with_its_module_and_the_way_out(
    tmp_path: Path, fresh: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation") as caught:
        run(str(tmp_path), True, Put())
    (note,) = caught.value.__notes__
    assert "in Put 'stem.2' of the model: randomness=dict(deterministic=True) refuses" in note
    assert "deterministic='warn'" in note
    assert report(caught.value) == 1
    assert "in Put 'stem.2'" in capsys.readouterr().err


def test_of_a_backward_pass_it_is_told_how_to_find_the_call(tmp_path: Path, fresh: None) -> None:
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic") as caught:
        run(str(tmp_path), True, Backward())
    (note,) = caught.value.__notes__
    assert "in a backward pass (torch.autograd.set_detect_anomaly(True) shows" in note


def test_an_error_of_another_kind_gets_no_note(tmp_path: Path, fresh: None) -> None:
    class Fails(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        run(str(tmp_path), True, Fails())
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("refused", [Put, Backward])
def test_warn_goes_on_and_says_which_operation_it_was(refused: Any, tmp_path: Path, fresh: None) -> None:
    with pytest.warns(UserWarning, match="put_ does not have a deterministic implementation"):
        found = run(str(tmp_path), "warn", refused())
    with pytest.warns(UserWarning, match="put_"):
        again = run(str(tmp_path), "warn", refused())
    torch.testing.assert_close(found, again, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["Warn", 1, "yes"])
def test_what_is_neither_true_nor_false_nor_warn_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=f"deterministic={given!r} must be True, False or 'warn'"):
        parse_randomness({"deterministic": given})
