"""A range test before training: the weights of training without one, and the curve of a plain loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.hooks import EMAHook
from tests.parity.test_exact_state import KINDS, same
from tests.problems import CLASSES, FEATURES, QUIET, weights
from tests.ranks import Ranks

SAMPLES, BATCH = 52, 8  # 7 batches an epoch over all ranks, the last of them short


def separable(samples: int = SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))


class Net(nn.Module):
    """All that a step can leave something in."""

    def __init__(self, *, forgets: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._forgets = forgets  # what no checkpoint has
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Tanh(), nn.Linear(12, CLASSES)
        )
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.calls = 0

    scratch: Tensor

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        self.calls += 1
        self.scratch += self.calls
        self.seen = 0.7 * self.seen + 0.3 * inputs.mean(0)
        factor = 1 + 0.01 * self.scratch if self._forgets else 1.0
        return cross_entropy(self.net(inputs - self.seen) * factor, targets)


def runner_of(work_dir: str | None = None, **options: Any) -> Runner:
    form: dict[str, Any] = {
        **QUIET,
        "train_dataloader": {"dataset": separable(), "global_batch_size": BATCH},
        "train_cfg": {"max_epochs": 2, "accumulate": 2},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "param_scheduler": {"type": "CosineAnnealingLR", "T_max": 5},
        "randomness": {"seed": 1},
        "clip_grad": 1.0,
        "work_dir": work_dir,
        **options,
    }
    return Runner(form.pop("model", None) or Net(), **form)


def state_of(runner: Runner) -> dict[str, Any]:
    """All that there is of a run in this process."""
    bare = runner.engine.state_module
    return {
        "weights": weights(runner.model),
        "scratch": [getattr(m, "scratch", None) for m in runner.model.modules()][:1],
        "calls": getattr(runner.model, "calls", 0),
        "optimizers": {name: one.state_dict() for name, one in runner.engine.optimizers.items()},
        "precision": runner.engine.saved.shared_state()["precision"],
        "counters": runner.state.state_dict(),
        "gradients": [p.grad for p in bare.parameters()],
        "modes": [module.training for module in bare.modules()],
        "random": torch.get_rng_state(),
    }


def local(tree: Any) -> Any:
    """Parts in place of what is spread over ranks."""
    if isinstance(tree, Tensor):
        return getattr(tree, "_local_tensor", tree).detach().clone()
    if isinstance(tree, dict):
        return {key: local(value) for key, value in tree.items()}
    return [local(value) for value in tree] if isinstance(tree, list | tuple) else tree


def trained(find: bool, **options: Any) -> Any:
    runner = runner_of(**options)
    if find:
        found = runner.find_lr(iters=24, end=1.0)
        assert 10 < len(found.losses) <= 24
        assert runner.iter == runner.step == runner.epoch == 0
    runner.train()
    state = local(state_of(runner))
    runner.close()
    return state


def alone(function: Any, *args: Any, **options: Any) -> Any:
    return [function(*args, **options)]


MIXED = {"type": "16-mixed", "init_scale": 2.0**20, "growth_interval": 2}
CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "scaled": {"precision": MIXED, "non_finite": "skip"},
    "lists": {"optimizer": KINDS["History"], "param_scheduler": None},
    "stopped": {"train_cfg": {"by_epoch": False, "max_iters": 5, "accumulate": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_training_after_it_comes_to_the_same_bits_in_one_process(case: str) -> None:
    options = {**CASES[case], "custom_hooks": [EMAHook(decay=0.9)]}
    assert same(trained(True, **options), trained(False, **options))


APART = {"type": "ddp", "broadcast_buffers": False}
DIVIDED = {"type": "ddp", "shard_optimizer": True}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", APART, DIVIDED])
def test_training_after_it_comes_to_the_same_bits_on_two_ranks(strategy: Any, two_ranks: Ranks) -> None:
    found = two_ranks(trained, True, strategy=strategy)
    assert all(map(same, found, two_ranks(trained, False, strategy=strategy)))


def test_training_after_it_comes_to_the_same_bits_on_four_ranks(four_ranks: Ranks) -> None:
    data = {"dataset": separable(), "global_batch_size": BATCH, "drop_last": True}
    options = {"strategy": "ddp", "train_dataloader": data}
    found = four_ranks(trained, True, **options)
    assert all(map(same, found, four_ranks(trained, False, **options)))


# The curve ------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A model whose loss on samples is that on their parts, whoever has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Linear(12, CLASSES))

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])


def by_hand(start: float, end: float, iters: int, accumulate: int = 1) -> tuple[list[float], list[float]]:
    """The test written out, on data in its own order."""
    model, data = Plain(), separable()
    lower, upper = model.net[0].parameters(), model.net[2].parameters()
    optimizer = torch.optim.SGD(
        [{"params": list(lower), "lr": 0.1}, {"params": list(upper), "lr": 0.05}], momentum=0.9
    )
    batches = [data[i : i + BATCH] for i in range(0, SAMPLES, BATCH)]
    windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    lrs, losses = [], []
    for number in range(iters):
        rate = math.exp(math.log(start) + (math.log(end) - math.log(start)) * number / (iters - 1))
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate / 2
        window, total, samples = windows[number % len(windows)], 0.0, 0
        for inputs, targets in window:
            loss = cross_entropy(model.net(inputs), targets)
            (loss / len(window)).backward()
            total, samples = total + loss.item() * len(targets), samples + len(targets)
        optimizer.step()
        optimizer.zero_grad()
        lrs.append(rate)
        losses.append(total / samples)
    return lrs, losses


def curve(strategy: str, accumulate: int = 1) -> tuple[list[float], list[float]]:
    runner = Runner(
        Plain(),
        **QUIET,
        train_dataloader={"dataset": separable(), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"by_epoch": False, "max_iters": 3, "accumulate": accumulate},
        optimizer={
            "type": "SGD",
            "lr": 0.1,
            "momentum": 0.9,
            "paramwise": {"rules": {"net.2": {"lr_mult": 0.5}}},
        },
        param_scheduler={"type": "OneCycleLR", "max_lr": 7.0, "total_steps": 50, "cycle_momentum": False},
        strategy=strategy,
    )
    found = runner.find_lr(1e-4, 1.0, 30)
    runner.close()
    return found.lrs, found.losses


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_the_curve_is_that_of_a_plain_loop(strategy: str, two_ranks: Ranks) -> None:
    start = alone if strategy == "single" else two_ranks
    for found in start(curve, strategy):
        torch.testing.assert_close(found, by_hand(1e-4, 1.0, 30), rtol=1e-6, atol=1e-6)


def test_batches_that_are_accumulated_have_one_rate_and_one_loss() -> None:
    lrs, losses = curve("single", accumulate=3)
    torch.testing.assert_close((lrs, losses), by_hand(1e-4, 1.0, 30, 3), rtol=1e-6, atol=1e-6)


class Square(nn.Linear):
    """Blows up by powers."""

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self(batch[0]).sum(1) - batch[1]).square().mean()


def diverging() -> tuple[list[float], str]:
    runner = Runner(
        Square(FEATURES, CLASSES),
        **QUIET,
        train_dataloader={"dataset": separable(), "global_batch_size": BATCH},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.001},
        randomness={"seed": 1},
    )
    found = runner.find_lr(1e-3, 1e5, 60, diverged=math.inf)
    again = runner.find_lr(1e-3, 1e5, 60)
    runner.train()
    runner.close()
    assert all(map(math.isfinite, [*found.losses, *weights(runner.model)["weight"].flatten()]))
    return again.losses, found.ended + again.ended


def test_all_ranks_end_it_at_the_same_rate(two_ranks: Ranks) -> None:
    one, other = two_ranks(diverging)
    assert one == other
    assert "not finite at" in one[1] and "4 times its best" in one[1] and len(one[0]) < 60
