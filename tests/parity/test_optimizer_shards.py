"""Updates divided among ranks come to what plain ddp comes to, with a part of the state on each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from tests.parity.test_other_ranks import Stop
from tests.problems import CLASSES, FEATURES, QUIET, points
from tests.ranks import Ranks

SHARDED = {"type": "ddp", "shard_optimizer": True}
OPTIMIZERS: dict[str, Any] = {
    "SGD": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "fused": False},
    "fused SGD": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "fused": True},
    "AdamW": {"type": "AdamW", "lr": 0.02, "weight_decay": 0.1, "fused": False},
    "AdamW together": {"type": "AdamW", "lr": 0.02, "foreach": True},
    "fused AdamW": {"type": "AdamW", "lr": 0.02, "weight_decay": 0.1, "fused": True},
    "Adagrad": {"type": "Adagrad", "lr": 0.05},
    "Adafactor": {"type": "Adafactor", "lr": 0.02},
    "several": {
        "body": {"type": "AdamW", "lr": 0.02, "params": ["first", "norm", "conv", "scale"]},
        "head": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "params": ["last"]},
    },
    "groups": lambda parameters: torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for p in parameters if p.ndim == 1], "lr": 0.05},
            {"params": [p for p in parameters if not p.ndim]},
        ],
        lr=0.01,
    ),
}


class Net(nn.Module):
    """With parameters of one number, of another order in memory, of 64 bits, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.conv = nn.Conv2d(2, 2, 2).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.last = nn.Linear(3, CLASSES)
        self.last.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.first(inputs)))
        hidden = self.conv(hidden.view(-1, 2, 2, 2)).view(-1, 2)
        hidden = torch.cat([hidden, inputs[:, :1]], 1) * self.scale.to(torch.float32)
        found: Tensor = self.last(hidden)
        return found


class Bad(Net):
    """Its loss is not finite in the third forward pass of training, on the last rank alone."""

    factor = float("nan")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        bad = self.calls == 3 and rank == torch.distributed.get_world_size() - 1
        loss = cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss * self.factor if bad else loss}


class Large(Bad):
    """Its loss is finite then, and scaled by what `16-mixed` begins with, is not."""

    factor = 1e35


class Losses(Hook):
    """Notes what each iteration came to."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        rates = [group["lr"] for one in runner.engine.optimizers.values() for group in one.param_groups]
        told = {"loss": float(outputs["loss"]), **{f"lr{n}": rate for n, rate in enumerate(rates)}}
        self.seen.append(told | ({"norm": float(outputs["grad_norm"])} if "grad_norm" in outputs else {}))


def run(strategy: Any, kind: str = "fused AdamW", **options: Any) -> dict[str, Any]:
    model, losses = options.pop("model", Net)(), Losses()
    runner = Runner(
        model,
        **{
            **QUIET,
            "train_dataloader": {"dataset": points(66), "global_batch_size": 8},
            "train_cfg": {"by_epoch": False, "max_iters": 7, "accumulate": 2},
            "optimizer": OPTIMIZERS[kind],
            "param_scheduler": {"type": "StepLR", "step_size": 1, "gamma": 0.9, "by_epoch": False},
            "loss": "cross_entropy",
            "randomness": {"seed": 3},
            "strategy": strategy,
            **options,
            "custom_hooks": [losses, *options.get("custom_hooks", ())],
        },
    )
    runner.train()
    optimizers = runner.engine.optimizers.values()
    found = {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "seen": losses.seen,
        "skipped": runner.state.skipped,
        "step": runner.step,
        "bytes": sum(t.nbytes for one in optimizers for s in one.state.values() for t in tensors(s)),
        "groups": [len(group["params"]) for one in optimizers for group in one.param_groups],
        "averages": [h.state_dict().get("averages") for h in runner.hooks if type(h).__name__ == "EMAHook"],
    }
    runner.close()
    return found


def tensors(state: dict[str, Any]) -> list[Tensor]:
    """Those that grow with the parameter."""
    return [value for value in state.values() if isinstance(value, Tensor) and value.ndim]


def alike(some: Any, others: Any) -> bool:
    if isinstance(some, Tensor):
        return torch.equal(some, others)
    if isinstance(some, dict):
        return some.keys() == others.keys() and all(alike(some[key], others[key]) for key in some)
    if isinstance(some, list):
        return len(some) == len(others) and all(map(alike, some, others))
    return bool(some == others) or (some != some and others != others)


def assert_same(ranks: Ranks, kind: str, **options: Any) -> list[dict[str, Any]]:
    plain, divided = ranks(run, "ddp", kind, **options), ranks(run, SHARDED, kind, **options)
    for one, other in zip(plain, divided, strict=True):
        for key in ("weights", "seen", "skipped", "step", "groups", "averages"):
            assert alike(one[key], other[key]), key
    return divided


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_are_bitwise_those_of_plain_ddp_with(kind: str, two_ranks: Ranks) -> None:
    assert_same(two_ranks, kind, clip_grad=0.3)


def test_more_ranks_than_parameters_of_a_group_come_to_the_same(four_ranks: Ranks) -> None:
    averaged = {"type": "EMAHook", "decay": 0.8}
    assert_same(four_ranks, "groups", custom_hooks=[averaged])
    assert_same(four_ranks, "several", clip_grad=0.3, custom_hooks=[averaged])


@pytest.mark.parametrize("kind", ["AdamW", "fused AdamW"])
def test_an_overflow_on_one_rank_drops_the_update_of_all_of_them(kind: str, two_ranks: Ranks) -> None:
    for clip in (None, 0.3):
        found = assert_same(two_ranks, kind, model=Large, precision="16-mixed", clip_grad=clip, loss=None)
        assert [one["skipped"] for one in found] == [1, 1]


@pytest.mark.parametrize("policy", ["skip", {"policy": "rollback", "to": "memory", "every": 1}])
def test_an_update_that_is_not_finite_is_dropped_or_rolled_back_as_under_plain_ddp(
    policy: Any, two_ranks: Ranks
) -> None:
    for kind in ("SGD", "fused AdamW"):
        found = assert_same(two_ranks, kind, model=Bad, non_finite=policy, loss=None)
        assert found[0]["skipped"] == 1


def refused(**options: Any) -> tuple[str, bool, bool]:
    """The error, whether weights are still those of before it, and whether those are known."""
    before = {}

    class Keep(Hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == 2:
                before.update({n: p.detach().clone() for n, p in runner.model.named_parameters()})

    made: list[nn.Module] = []

    def model() -> nn.Module:
        made.append(Bad())
        return made[0]

    with pytest.raises(Exception) as caught:
        run(SHARDED, model=model, custom_hooks=[Keep()], loss=None, **options)
    same = all(torch.equal(p, before[n]) for n, p in made[0].named_parameters()) if before else False
    return type(caught.value).__name__, same, bool(before)


def test_a_loss_that_is_not_finite_ends_the_run_on_all_ranks_before_any_of_them_updates(
    two_ranks: Ranks,
) -> None:
    assert two_ranks(refused) == [("NonFiniteError", True, True)] * 2


class Wide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(nn.Linear(FEATURES, FEATURES) for _ in range(12)), nn.Linear(FEATURES, CLASSES))


def test_each_rank_keeps_about_its_part_of_the_state(two_ranks: Ranks, four_ranks: Ranks) -> None:
    for ranks, size in ((two_ranks, 2), (four_ranks, 4)):
        whole = ranks(run, "ddp", "AdamW", model=Wide)[0]["bytes"]
        parts = [one["bytes"] for one in ranks(run, SHARDED, "AdamW", model=Wide)]
        assert sum(parts) == whole
        assert max(parts) == parts[0] <= 1.1 * whole / size


def test_state_that_an_optimizer_makes_as_it_is_built_is_divided_too(two_ranks: Ranks) -> None:
    whole = two_ranks(run, "ddp", "Adagrad", model=Wide)[0]["bytes"]
    assert sum(one["bytes"] for one in two_ranks(run, SHARDED, "Adagrad", model=Wide)) == whole


# Checkpoints -----------------------------------------------------------------------------------------------


def interrupted(folder: str, strategy: Any, kind: str, stop: int, **options: Any) -> None:
    run(strategy, kind, work_dir=folder, custom_hooks=[Stop(stop)], **options)


@pytest.mark.parametrize("kind", ["SGD", "fused AdamW", "several"])
def test_a_run_that_is_stopped_in_a_window_or_after_one_goes_on_bitwise(
    kind: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    truth = two_ranks(run, SHARDED, kind, work_dir=str(tmp_path / "whole"))
    for stop in (2, 5):
        folder = str(tmp_path / f"{stop}")
        two_ranks(interrupted, folder, SHARDED, kind, stop)
        found = two_ranks(run, SHARDED, kind, work_dir=folder, resume=True)
        for one, other in zip(found, truth, strict=True):
            assert alike(one["weights"], other["weights"])
            assert alike(one["seen"], other["seen"][stop:])
            assert one["bytes"] == other["bytes"]


def test_a_run_goes_on_bitwise_with_plain_ddp_and_back(two_ranks: Ranks, tmp_path: Path) -> None:
    truth = two_ranks(run, "ddp", work_dir=str(tmp_path / "whole"))
    for name, first, second in (("to", SHARDED, "ddp"), ("from", "ddp", SHARDED)):
        folder = str(tmp_path / name)
        two_ranks(interrupted, folder, first, "fused AdamW", 4)
        found = two_ranks(run, second, work_dir=folder, resume=True)
        assert alike(found[0]["weights"], truth[0]["weights"])


class Break(Hook):
    def before_train_iter(self, runner: Any) -> None:
        if runner.iter == 5:
            raise ValueError("broken off")


def broken_off(folder: str) -> str:
    with pytest.raises(ValueError, match="broken off") as caught:
        run(
            SHARDED,
            work_dir=folder,
            custom_hooks=[Break()],
            default_hooks={"checkpoint": {"save_on": "exception"}},
        )
    return "\n".join(caught.value.__notes__)


def test_what_an_exception_breaks_off_is_saved_and_gone_on_with_bitwise(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    truth = two_ranks(run, SHARDED, work_dir=str(tmp_path / "whole"))
    for told in two_ranks(broken_off, str(tmp_path / "broken")):
        assert "saved as of iteration 5" in told
    found = two_ranks(run, SHARDED, work_dir=str(tmp_path / "broken"), resume=True)
    assert alike(found[0]["weights"], truth[0]["weights"])


# What cannot be divided ------------------------------------------------------------------------------------


class Together(torch.optim.SGD):
    """Its learning rate goes by all gradients, as that of Prodigy does."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            seen = [p.grad.abs().sum() for p in group["params"] if p.grad is not None]
            group["seen"] = group.get("seen", 0.0) + float(sum(seen))
        return super().step(closure)


def message(optimizer: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(SHARDED, optimizer=optimizer, train_cfg={"by_epoch": False, "max_iters": 12})
    return str(caught.value)


def test_optimizers_that_reckon_with_all_parameters_together_are_refused(two_ranks: Ranks) -> None:
    for told in two_ranks(message, {"type": "LBFGS"}):
        assert "LBFGS, makes one step for all parameters together" in told
    for told in two_ranks(message, {"type": Together, "lr": 0.1}):
        assert "Together, has come to other settings of its groups on each rank" in told


def again(first: Any, second: Any) -> str:
    """What a run says to a ready-made optimizer that another has used."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run(first, model=lambda: model, optimizer=optimizer)
    try:
        run(second, model=lambda: model, optimizer=optimizer)
    except ConfigError as error:
        return str(error)
    return "went on"


def test_an_optimizer_with_a_part_of_the_state_is_not_taken_for_a_whole_one(two_ranks: Ranks) -> None:
    for told in two_ranks(again, SHARDED, "ddp"):
        assert "has a rank's part of the state of an earlier run" in told
    assert two_ranks(again, SHARDED, SHARDED) == two_ranks(again, "ddp", SHARDED) == ["went on"] * 2
