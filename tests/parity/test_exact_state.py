"""State that is easily lost: what a rank has for itself, optimizers that never stepped, gradients at hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from stratrun import Runner
from stratrun.hooks import Hook
from stratrun.loops import EpochBasedTrainLoop
from stratrun.strategies import logical
from tests.parity.test_other_ranks import Stop
from tests.problems import CLASSES, FEATURES, perceptron, points, weights
from tests.ranks import Ranks

SAMPLES, GLOBAL_BATCH, EPOCHS = 50, 8, 2  # 7 batches an epoch


class Drifting(nn.Module):
    """What it learns from depends on what it saw before, by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, CLASSES))
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.load_state_dict({**self.state_dict(), "net.2.weight": torch.linspace(-1, 1, 120).view(3, 40)})

    seen: Tensor

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        self.seen = 0.7 * self.seen + 0.3 * inputs.mean(0)
        return cross_entropy(self.net(inputs - self.seen), targets)


class Tagging(Hook):
    """Writes into parameter groups, which are the user's to extend."""

    def after_train_iter(self, runner: Any) -> None:
        for name, optimizer in runner.engine.optimizers.items():
            optimizer.param_groups[0]["tag"] = {"of": name, "at": [runner.iter]}


class Early(Hook):
    """Saves before the first step."""

    def before_train(self, runner: Any) -> None:
        runner.save_checkpoint()


def run(
    work_dir: str,
    *,
    model: str = "perceptron",
    stop_at: int | None = None,
    early: bool = False,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(2)
    built = Drifting() if model == "drifting" else perceptron()
    form: dict[str, Any] = {
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": GLOBAL_BATCH},
        "train_cfg": {"max_epochs": EPOCHS, "accumulate": 3},
        "optimizer": {"type": "SGD", "lr": 0.3, "momentum": 0.9},
        "loss": None if model == "drifting" else "cross_entropy",
        **options,
    }
    hooks = [*([Early()] if early else []), *([] if stop_at is None else [Stop(stop_at)]), Tagging()]
    runner = Runner(
        built,
        loggers=(),
        default_hooks={"checkpoint": None},
        custom_hooks=hooks,
        randomness={"seed": 1, **form.pop("randomness", {})},
        work_dir=work_dir,
        **form,
    )
    runner.train()
    runner.close()
    return {
        "weights": weights(built),
        "optimizers": {name: one.state_dict() for name, one in runner.engine.optimizers.items()},
        "precision": runner.engine.saved.shared_state()["precision"],
        "counters": runner.state.state_dict(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def broken_off(start: Any, folder: Path, stop_at: int, **options: Any) -> tuple[Any, Any]:
    """What a whole run ends with, and what one does that was stopped and resumed."""
    truth = start(run, str(folder / "whole"), **options)
    start(run, str(folder / "broken"), stop_at=stop_at, **options)
    return truth, start(run, str(folder / "broken"), resume=True, **options)


def alone(function: Any, *args: Any, **options: Any) -> Any:
    return [function(*args, **options)]


# Buffers that differ by rank -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [2, 3, 8])
def test_buffers_of_each_rank_are_saved_for_each_and_restored_exactly(
    stop_at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    strategy = {"type": "ddp", "broadcast_buffers": False}
    truth, found = broken_off(two_ranks, tmp_path, stop_at, model="drifting", strategy=strategy)
    assert not torch.equal(truth[0]["weights"]["seen"], truth[1]["weights"]["seen"])
    assert all(map(same, found, truth))


# Within a window buffers are not exchanged, so that they differ although they are broadcast.
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_buffers_that_differ_within_a_window_alone_are_restored_too(
    stop_at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    truth, found = broken_off(two_ranks, tmp_path, stop_at, model="drifting")
    assert all(map(same, found, truth))


def test_another_number_of_ranks_takes_the_buffers_of_the_main_one(two_ranks: Ranks, tmp_path: Path) -> None:
    strategy = {"type": "ddp", "broadcast_buffers": False}
    first, _ = two_ranks(run, str(tmp_path), model="drifting", strategy=strategy, stop_at=3)
    found = run(str(tmp_path), model="drifting", resume=True, train_cfg={"max_iters": 3, "by_epoch": False})
    assert torch.equal(found["weights"]["seen"], first["weights"]["seen"])


# Deterministic mode --------------------------------------------------------------------------------------


def test_four_ranks_resume_to_the_bit_in_deterministic_mode(four_ranks: Ranks, tmp_path: Path) -> None:
    truth, found = broken_off(four_ranks, tmp_path, 4, model="drifting", randomness={"deterministic": True})
    assert all(map(same, found, truth))


def test_without_it_torch_sorts_gradients_anew_and_four_ranks_differ_in_the_last_digits(
    four_ranks: Ranks, tmp_path: Path
) -> None:
    truth, found = broken_off(four_ranks, tmp_path, 4, model="drifting")
    assert not same(found[0]["weights"], truth[0]["weights"])
    torch.testing.assert_close(found[0]["weights"], truth[0]["weights"])


# Optimizers ----------------------------------------------------------------------------------------------


class History(Optimizer):
    """Keeps lists of tensors and numbers in its state, under its first parameter, as LBFGS does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            state = self.state[group["params"][0]]
            state.setdefault("calls", 0)
            state["calls"] += 1
            old = state.setdefault("old", [])
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            for past in old[-2:]:
                flat = flat + 0.5 * past
            old.append(flat)
            at = 0
            for p in group["params"]:
                p.sub_(flat[at : at + p.numel()].view_as(p), alpha=group["lr"])
                at += p.numel()


KINDS: dict[str, dict[str, Any]] = {
    "AdamW": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1},
    "SGD": {"type": "SGD", "lr": 0.3, "momentum": 0.9, "dampening": 0.5},
    "History": {"type": History, "lr": 0.05},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_a_checkpoint_before_the_first_step_changes_nothing_and_can_be_gone_on_from(
    size: int, kind: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    start = alone if size == 1 else two_ranks
    truth = start(run, str(tmp_path / "without"), optimizer=KINDS[kind])
    assert all(map(same, start(run, str(tmp_path / "with"), optimizer=KINDS[kind], early=True), truth))
    resumed = start(run, str(tmp_path / "with"), optimizer=KINDS[kind], resume=True)
    assert all(map(same, resumed, truth))


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_never_stepped_has_no_state_to_save_and_none_after(kind: str) -> None:
    model = perceptron()
    spec = dict(KINDS[kind])
    cls = spec.pop("type")
    optimizer = (getattr(torch.optim, cls) if isinstance(cls, str) else cls)(model.parameters(), **spec)
    before = weights(model)
    cross_entropy(model(points(4).tensors[0]), points(4).tensors[1]).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert logical.state_dict(model, {"one": optimizer})["optimizers"]["one"]["state"] == {}
    assert not optimizer.state
    assert same(weights(model), before)
    assert same([p.grad for p in model.parameters()], gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_loaded_onto_a_fresh_optimizer_with_gradients_around(kind: str) -> None:
    def made() -> tuple[nn.Module, Optimizer]:
        spec = dict(KINDS[kind])
        cls = spec.pop("type")
        model = perceptron()
        return model, (getattr(torch.optim, cls) if isinstance(cls, str) else cls)(model.parameters(), **spec)

    def backward(model: nn.Module) -> None:
        inputs, targets = points(8).tensors
        cross_entropy(model(inputs), targets).backward()

    first, theirs = made()
    for _ in range(3):
        backward(first)
        theirs.step()
        theirs.zero_grad()
    saved = logical.state_dict(first, {"one": theirs})
    second, mine = made()
    backward(second)
    gradients = [p.grad.clone() for p in second.parameters() if p.grad is not None]
    logical.load_state_dict(second, {"one": mine}, saved)
    assert same(mine.state_dict(), theirs.state_dict())
    assert same([p.grad for p in second.parameters()], gradients)
    mine.zero_grad()
    frozen = {k: v.clone() for k, v in saved["optimizers"]["one"]["state"].items() if isinstance(v, Tensor)}
    for model, one in ((first, theirs), (second, mine)):
        backward(model)
        one.step()
    assert same(weights(second), weights(first))
    assert same(frozen, {k: saved["optimizers"]["one"]["state"][k] for k in frozen})


TWO = {
    "lower": {"type": "SGD", "lr": 0.3, "momentum": 0.9, "params": "0"},
    "upper": {"type": "AdamW", "lr": 0.01, "params": "2"},
}


@pytest.mark.parametrize("stop_at", [2, 3, 6])
@pytest.mark.parametrize("size", [1, 2])
def test_a_loss_scale_several_optimizers_and_keys_of_groups_are_restored_to_the_bit(
    size: int, stop_at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    precision = {"type": "16-mixed", "init_scale": 2.0**20, "growth_interval": 2}
    start = alone if size == 1 else two_ranks
    truth, found = broken_off(start, tmp_path, stop_at, optimizer=TWO, precision=precision)
    assert all(map(same, found, truth))
    assert truth[0]["precision"]["scale"] != 2.0**20
    assert truth[0]["optimizers"]["upper"]["param_groups"][0]["tag"] == {"of": "upper", "at": [14]}


# Loops with a recipe of their own ------------------------------------------------------------------------


class ByHand(EpochBasedTrainLoop):
    """Adds up gradients over three iterations, without a word to anybody."""

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        engine = self.runner.engine
        loss = engine.forward(data_batch, "train")["loss"]
        engine.backward(loss)
        if idx % 3 == 2:
            engine.step()
        return {"loss": loss.detach()}


@pytest.mark.parametrize("stop_at", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_gradients_that_a_loop_of_the_users_adds_up_are_restored_to_the_bit(
    size: int, stop_at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    start = alone if size == 1 else two_ranks
    options = {"train_cfg": {"type": ByHand, "max_epochs": EPOCHS}}
    truth, found = broken_off(start, tmp_path, stop_at, **options)
    assert all(map(same, found, truth))
