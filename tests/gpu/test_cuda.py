"""The main road on one GPU. Not run where there is none."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import Runner
from tests.leaks import Snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SAMPLES, BATCH, EPOCHS = 48, 8, 2


@pytest.fixture
def lone_rank(monkeypatch):
    """The variables of a launcher that started one process; its process group is left at the end."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29511")
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def restored():
    """What a run in deterministic mode leaves set in the process is set back."""
    before = Snapshot.take()
    yield
    before.restore()


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 16, generator=generator)
    return TensorDataset(inputs, inputs @ torch.randn(16, 1, generator=generator))


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))


def train(work_dir, network=None, **options):
    settings = {
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "loss": "mse_loss",
        "loggers": [],
        "randomness": {"seed": 3},
        "accelerator": "cuda",
    }
    dataloader = {"dataset": data(), "batch_size": BATCH, "num_workers": options.pop("num_workers", 0)}
    runner = Runner(
        network or model(), train_dataloader=dataloader, work_dir=str(work_dir), **{**settings, **options}
    )
    runner.train()
    return runner


def weights(runner):
    return {name: value.cpu() for name, value in runner.model.state_dict().items()}


def test_one_rank_under_nccl_reaches_the_weights_of_a_single_process(tmp_path, lone_rank):
    with_ddp = weights(train(tmp_path / "ddp", strategy="ddp"))
    single = weights(train(tmp_path / "single", strategy="single"))
    torch.testing.assert_close(with_ddp, single, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "precision", ["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
)
def test_every_precision_lowers_the_loss(precision, tmp_path):
    network = model().eval()
    inputs, targets = data().tensors
    before = nn.functional.mse_loss(network(inputs), targets).item()
    # Not Adam: its epsilon is zero in float16.
    sgd = {"type": "SGD", "lr": 0.05}
    runner = train(tmp_path, network, precision=precision, train_cfg={"max_epochs": 10}, optimizer=sgd)
    trained = copy.deepcopy(runner.model).float().cpu().eval()
    assert nn.functional.mse_loss(trained(inputs), targets).item() < 0.7 * before


def test_fused_optimizer_drops_an_overflowing_update_and_says_so(tmp_path):
    runner = train(
        tmp_path,
        precision={"type": "16-mixed", "init_scale": 2.0**40},
        optimizer={"type": "AdamW", "lr": 0.01, "fused": True},
        train_cfg={"max_epochs": 1},
    )
    assert runner.state.skipped > 0
    assert runner.state.skipped + runner.step == SAMPLES // BATCH


def test_batches_wait_in_pinned_memory_and_arrive_on_the_device(tmp_path):
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model()

        def train_step(self, batch):
            seen.append({part.device.type for part in batch})
            return nn.functional.mse_loss(self.body(batch[0]), batch[1])

    runner = train(tmp_path, Recorder(), loss=None, num_workers=2)
    assert seen == [{"cuda"}] * (EPOCHS * SAMPLES // BATCH)
    assert runner.engine.memory()["memory"] > 0


def test_a_resumed_run_draws_the_dropout_masks_of_the_uninterrupted_one(tmp_path):
    every = {"checkpoint": {"by_epoch": False, "interval": 4}}
    whole = train(tmp_path / "whole", default_hooks=every)
    part = train(tmp_path / "part", default_hooks=every, train_cfg={"by_epoch": False, "max_iters": 4})
    assert part.iter == 4
    resumed = train(
        tmp_path / "part",
        default_hooks=every,
        train_cfg={"by_epoch": False, "max_iters": whole.iter},
        resume=True,
    )
    assert all(
        torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True)
    )


def test_tf32_is_switched_by_env_cfg(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        train(tmp_path / "on", env_cfg={"tf32": True})
        assert torch.get_float32_matmul_precision() == "high"
        train(tmp_path / "off", env_cfg={"tf32": False})
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
