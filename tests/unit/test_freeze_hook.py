"""Parts that are frozen and thawed, against loops written out."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import ConfigError, Hook, Runner
from stratrun.hooks import FreezeHook
from tests.problems import CLASSES, FEATURES, QUIET, points, trained
from tests.ranks import Ranks

SAMPLES, BATCH, EPOCHS = 24, 4, 4
BATCHES = SAMPLES // BATCH


def net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class Trace(Hook):
    """The weights at the start of each epoch, and at the end."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def before_train_epoch(self, runner: Any) -> None:
        self.seen.append(whole(runner.model))


class Stop(Hook):
    """Ends training after an iteration, as if from outside."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "killed", urgent=True)


def whole(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    found = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def form(work_dir: Path | str, hooks: Sequence[Any], **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": EPOCHS, "accumulate": 2},
        "optimizer": {"type": "AdamW", "lr": 0.02, "weight_decay": 0.3},
        "custom_hooks": list(hooks),
        "work_dir": str(work_dir),
        **options,
    }


def plain(frozen: Callable[[int, int], str]) -> dict[str, Tensor]:
    """By a loop; `frozen` says by epochs and updates done which names are: a pattern."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3, fused=True)
    inputs, targets = points(SAMPLES).tensors
    updates = 0
    for epoch in range(EPOCHS):
        for window in range(0, SAMPLES, 2 * BATCH):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(re.search(frozen(epoch, updates) or "^$", name) is None)
            for first in (window, window + BATCH):
                part = slice(first, first + BATCH)
                (cross_entropy(model(inputs[part]), targets[part]) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    return whole(model)


CASES: dict[str, tuple[dict[str, Any], Callable[[int, int], str]]] = {
    "until an epoch": ({"params": "^0", "until": 2}, lambda epoch, _: "^0" if epoch < 2 else ""),
    "for good": ({"params": [r"^0\.", "bias"]}, lambda *_: r"^0\.|bias"),
    "from an epoch on": (
        {"params": "^2", "begin": 1, "until": 3},
        lambda epoch, _: "^2" if 1 <= epoch < 3 else "",
    ),
    "one by one": (
        {"params": ["^0", "^2"], "until": 1, "interval": 2},
        lambda epoch, _: "^[02]" if epoch < 1 else "^0" if epoch < 3 else "",
    ),
    "until an update": (
        {"params": ["^0", "^2"], "until": 4, "interval": 3, "by_epoch": False},
        lambda _, updates: "^[02]" if updates < 4 else "^0" if updates < 7 else "",
    ),
}


def run(strategy: str, work_dir: str, case: str, *hooks: Hook, **options: Any) -> dict[str, Tensor]:
    saving = {"checkpoint": {"interval": None, "keep_last": None}}
    given = form(work_dir, [FreezeHook(**CASES[case][0]), *hooks], default_hooks=saving, **options)
    return whole(trained(net(), strategy=strategy, **given).model)


def assert_case(strategy: str, work_dir: str, case: str) -> None:
    found = run(strategy, f"{work_dir}/whole", case)
    torch.testing.assert_close(found, plain(CASES[case][1]), rtol=1e-5, atol=1e-6)
    for at in (3, 8, 13):
        run(strategy, f"{work_dir}/{at}", case, Stop(at))
        again = run(strategy, f"{work_dir}/{at}", case, resume=True)
        torch.testing.assert_close(again, found, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_as_a_loop_that_freezes_by_hand_and_so_it_is_when_resumed(case: str, tmp_path: Path) -> None:
    assert_case("single", str(tmp_path), case)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", ["one by one", "until an update"])
def test_two_ranks_freeze_and_thaw_as_one_does(
    strategy: str, case: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_case, strategy, str(tmp_path), case)


def test_what_is_frozen_does_not_move_by_decay_nor_by_momentum(tmp_path: Path) -> None:
    trace = Trace()
    optimizer = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    trained(net(), **form(tmp_path, [trace, FreezeHook("^2", begin=1, until=3)], optimizer=optimizer))
    first, second, third, fourth = (one["2.weight"] for one in trace.seen)
    assert torch.equal(second, third) and torch.equal(third, fourth) and not torch.equal(first, second)


def test_what_the_user_has_frozen_stays_so(tmp_path: Path) -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    before = model[0].bias.clone()
    trained(model, **form(tmp_path, [FreezeHook("^0", until=1)]))
    assert torch.equal(model[0].bias, before) and not model[0].bias.requires_grad
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("norm_eval", [True, False])
def test_statistics_of_frozen_normalization_stay_when_asked_for(norm_eval: bool, tmp_path: Path) -> None:
    model, trace = nn.Sequential(nn.BatchNorm1d(FEATURES), net(), nn.BatchNorm1d(CLASSES)), Trace()
    options = {"val_dataloader": {"dataset": points(8), "batch_size": 4}, "val_evaluator": "Accuracy"}
    trained(model, **form(tmp_path, [trace, FreezeHook(r"^0\.", until=2, norm_eval=norm_eval)], **options))
    counts = [int(one["0.num_batches_tracked"]) for one in trace.seen]
    assert counts == ([0, 0, 0, BATCHES] if norm_eval else [0, BATCHES, 2 * BATCHES, 3 * BATCHES])
    assert [int(one["2.num_batches_tracked"]) for one in trace.seen] == [n * BATCHES for n in range(4)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"params": []}, r"params=\[\] must be a regular expression"),
        ({"params": "("}, r"params='\(' is no regular expression"),
        ({"params": "a", "until": 0}, "until=0 must be a whole number of epochs, at least 1"),
        ({"params": "a", "begin": 2, "until": 2}, "until=2 must be above begin=2"),
        ({"params": ["a", "b"], "interval": 1}, "interval=1 needs until="),
    ],
)
def test_settings_that_freeze_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        FreezeHook(**settings)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ("0.wight", "params='0.wight' is in no parameter's name; did you mean '0.weight'"),
        ("", "nothing is left"),
    ],
)
def test_parts_that_are_not_there_and_parts_that_are_all_are_errors(
    params: str, told: str, tmp_path: Path
) -> None:
    runner = Runner(net(), **QUIET, **form(tmp_path, [FreezeHook(params, until=1)]))
    with pytest.raises(ConfigError, match=told):
        runner.train()
    runner.close()
