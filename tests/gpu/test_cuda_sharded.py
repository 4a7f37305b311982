"""Sharded strategies on one GPU, under nccl with one rank. Not run where there is none."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from stratrun import Runner
from stratrun.hooks import Hook
from tests.gpu.test_cuda import BATCH, EPOCHS, SAMPLES, data, lone_rank, restored  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("lone_rank"),
]

ACCELERATOR = "cuda"
PLAN = {"blocks.*.up": "column", "blocks.*.down": "row"}
STRATEGIES = [
    "fsdp",
    {"type": "fsdp", "accumulate": "unsharded", "reshard_after_forward": False},
    {"type": "fsdp", "offload": True},
    {"type": "fsdp", "blocks": False, "ignore": ["head"]},
    {"type": "hsdp", "replicate": 1},
    {"type": "tensor_parallel", "size": 1, "plan": PLAN},
]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.down(torch.tanh(self.up(self.norm(x)))))


class Net(nn.Module):
    def __init__(self, width=32, depth=3):
        super().__init__()
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, 1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))


def run(work_dir, strategy, network=None, **options):
    settings = {
        "train_dataloader": {"dataset": data(), "batch_size": BATCH},
        "train_cfg": {"max_epochs": EPOCHS, "accumulate": 2},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "clip_grad": 0.5,
        "loss": "mse_loss",
        "loggers": [],
        "randomness": {"seed": 3},
        "accelerator": ACCELERATOR,
    }
    return Runner(
        network or {"type": Net}, work_dir=str(work_dir), strategy=strategy, **{**settings, **options}
    )


def train(work_dir, strategy, network=None, **options):
    runner = run(work_dir, strategy, network, **options)
    runner.train()
    found = whole(runner)
    runner.close()
    return found


def whole(runner):
    named = runner.model.state_dict().items()
    return {name: (v.full_tensor() if isinstance(v, DTensor) else v).cpu() for name, v in named}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_model_in_parts_reaches_the_weights_of_a_single_process(tmp_path, strategy):
    torch.testing.assert_close(
        train(tmp_path / "parts", strategy), train(tmp_path / "single", "single"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("strategy", ["fsdp", {"type": "fsdp", "offload": True}], ids=str)
def test_precisions_are_those_of_a_single_process(tmp_path, precision, strategy):
    # Not Adam, which makes a whole step of the smallest difference.
    options = {"precision": precision, "optimizer": {"type": "SGD", "lr": 0.05}}
    found = train(tmp_path / "parts", strategy, **options)
    truth = train(tmp_path / "single", "single", **options)
    close = {"rtol": 1e-9, "atol": 1e-12} if precision == "64-true" else {"rtol": 0.02, "atol": 0.005}
    torch.testing.assert_close(found, truth, **close)


def test_offloaded_parts_and_the_optimizers_state_are_in_pinned_host_memory(tmp_path):
    runner = run(tmp_path, {"type": "fsdp", "offload": True})
    runner.train()
    (optimizer,) = runner.engine.optimizers.values()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    parameters = [parameter.to_local() for parameter in runner.model.parameters()]
    assert {one.device.type for one in [*moments, *parameters]} == {"cpu"}
    assert all(parameter.is_pinned() for parameter in parameters)
    runner.close()


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_compiled_and_recomputed_blocks_reach_the_same_weights_by_one_graph(tmp_path, strategy):
    plain = train(tmp_path / "plain", strategy)
    runner = run(tmp_path / "compiled", strategy, compile=True, activation_checkpointing=True)
    runner.train()
    assert runner.compilations.graphs == 1
    torch.testing.assert_close(whole(runner), plain, rtol=1e-3, atol=1e-3)
    runner.close()


class Stop(Hook):
    """Ends training after so many iterations."""

    priority = 100

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner):
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


@pytest.mark.usefixtures("restored")
def test_a_resumed_run_is_bitwise_the_uninterrupted_one_and_goes_on_in_a_single_process(tmp_path):
    options = {
        "default_hooks": {"checkpoint": {"interval": 1, "by_epoch": False, "keep_last": None}},
        "randomness": {"seed": 3, "deterministic": True},
    }
    uninterrupted = train(tmp_path / "whole", "fsdp", **options)
    train(tmp_path / "part", "fsdp", custom_hooks=[Stop(5)], **options)
    resumed = train(tmp_path / "part", "fsdp", resume=True, **options)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    other = {**options, "resume": str(tmp_path / "whole" / "checkpoints" / "step-00000005")}
    single = train(tmp_path / "single", "single", **other)
    torch.testing.assert_close(single, uninterrupted, rtol=1e-5, atol=1e-6)


def test_a_model_built_without_memory_begins_with_the_weights_of_one_that_has_it(tmp_path):
    begun = {}
    for strategy in ("single", "fsdp"):
        runner = run(tmp_path / strategy, strategy, predict_dataloader={"dataset": data(), "batch_size": 8})
        predictions = torch.stack([torch.as_tensor(one).cpu() for one in runner.predict()])
        begun[strategy] = {**whole(runner), "predictions": predictions}
        runner.close()
    torch.testing.assert_close(begun["fsdp"], begun["single"], rtol=1e-6, atol=1e-6)


class NoWaiting(Hook):
    """After the first updates, has whatever waits for the device in an iteration fail."""

    priority = 0

    def before_train_iter(self, batch_idx):
        if batch_idx >= 3:
            torch.cuda.set_sync_debug_mode("error")

    def after_train_iter(self):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("strategy", ["fsdp", {"type": "fsdp", "accumulate": "unsharded"}], ids=str)
def test_steps_with_clipping_and_accumulation_never_wait_for_the_device(tmp_path, strategy):
    pinned = {"dataset": data(), "batch_size": BATCH, "num_workers": 1}
    try:
        train(tmp_path, strategy, train_dataloader=pinned, custom_hooks=[NoWaiting()])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def peak(work_dir, strategy, **options):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(work_dir, strategy, {"type": Net, "width": 512, "depth": 8}, **options)
    return torch.cuda.max_memory_allocated() - before


def test_offloading_keeps_most_of_a_model_off_the_device(tmp_path):
    held = peak(tmp_path / "held", "fsdp")
    assert peak(tmp_path / "off", {"type": "fsdp", "offload": True}) < 0.5 * held


def test_the_number_of_updates_is_that_of_the_data(tmp_path):
    runner = run(tmp_path, "fsdp")
    runner.train()
    assert (runner.iter, runner.step) == (EPOCHS * SAMPLES // BATCH, EPOCHS * SAMPLES // BATCH // 2)
    runner.close()
