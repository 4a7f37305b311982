"""Batches brought to a GPU on a stream of their own. Not run where there is none."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from stratrun import Runner
from stratrun.accelerators import CUDAAccelerator
from stratrun.accelerators.side_copies import SideCopies
from stratrun.accelerators.transfer import move_batch
from stratrun.hooks import Hook
from tests.leaks import Snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS = 2**20


@pytest.fixture
def restored() -> Iterator[None]:
    """What a run in deterministic mode leaves set in the process is set back."""
    before = Snapshot.take()
    yield
    before.restore()


def slow_work(square: torch.Tensor, times: int = 40) -> None:
    for _ in range(times):
        square.copy_(torch.mm(square, square).clamp_(-1, 1))


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_are_whole_though_the_host_runs_ahead_and_their_memory_is_used_again(ahead: bool) -> None:
    device = CUDAAccelerator().device(0)
    square = torch.randn(2048, 2048, device=device)
    batches = ((torch.full((ROWS,), float(number)).pin_memory(), number) for number in range(30))

    def move(batch: Any) -> Any:
        return move_batch(batch, device, non_blocking=True)

    sums, kept = [], []
    for batch, number in SideCopies(torch.cuda, device).over(batches, move, ahead=ahead):
        slow_work(square)
        sums.append((batch.sum(dtype=torch.float64), number))
        if number % 7 == 0:
            kept.append((batch, number))
        del batch
    assert [total.item() for total, _ in sums] == [float(number) * ROWS for _, number in sums]
    assert all(torch.equal(batch, torch.full_like(batch, number)) for batch, number in kept)


def test_a_copy_does_not_wait_for_the_work_that_is_under_way() -> None:
    device = CUDAAccelerator().device(0)
    square = torch.randn(4096, 4096, device=device)
    slow_work(square, 2)
    torch.cuda.synchronize()
    batch = torch.ones(ROWS).pin_memory()
    copies = SideCopies(torch.cuda, device)
    slow_work(square, 100)
    worked = torch.cuda.current_stream(device).record_event()
    begun = copies._begin(batch, lambda one: move_batch(one, device, non_blocking=True))
    begun.done.synchronize()
    assert not worked.query()


class Noisy(Dataset[Any]):
    """Samples that draw from the host's generators."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(48, 16, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index] + 0.1 * torch.randn(16), self.inputs[index].sum(0, keepdim=True)


class Stop(Hook):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.should_stop = True


def trained(work_dir: Any, data: Any, stop: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    runner = Runner(
        nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 1)),
        train_dataloader=data,
        train_cfg={"max_epochs": 2},
        optimizer={"type": "AdamW", "lr": 0.01},
        loss="mse_loss",
        loggers=[],
        randomness={"seed": 3, "deterministic": True},
        accelerator="cuda",
        custom_hooks=[Stop(stop)] if stop else [],
        work_dir=str(work_dir),
        **options,
    )
    runner.train()
    found = {name: value.cpu() for name, value in runner.model.state_dict().items()}
    runner.close()
    return found


KINDS: dict[str, Any] = {
    "in this process": {"dataset": Noisy(), "batch_size": 8},
    "draws of the run's own": {"dataset": Noisy(), "batch_size": 8, "seed_samples": False},
    "workers": {"dataset": Noisy(), "batch_size": 8, "num_workers": 2},
    "tensors": {"dataset": TensorDataset(Noisy().inputs, Noisy().inputs[:, :1]), "batch_size": 8},
    "ready": [(Noisy().inputs[n : n + 8], Noisy().inputs[n : n + 8, :1]) for n in range(0, 48, 8)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_reads_ahead_resumes_to_the_bit_and_trains_as_one_that_does_not(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, restored: None
) -> None:
    whole = trained(tmp_path / "whole", KINDS[kind])
    trained(tmp_path / "parts", KINDS[kind], stop=4)
    resumed = trained(tmp_path / "parts", KINDS[kind], resume=True)
    monkeypatch.setattr(CUDAAccelerator, "side_copies", lambda self, device: None)
    plain = trained(tmp_path / "plain", KINDS[kind])
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
        assert torch.equal(whole[name], plain[name]), name
