"""Groups of parameters under every strategy, and over a resume under another one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.hooks import Hook
from stratrun.optim import optimizer as optimizers
from stratrun.strategies import logical
from tests.problems import CLASSES, FEATURES, perceptron, points
from tests.ranks import Ranks

BATCH, STOP, END = 8, 3, 6
WIDTH, INNER = 6, 10
# torch asks for it while it traces, and hides its own warning in a way that an error is not hidden by.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {"strategy": "single"}),
    "ddp": (2, {"strategy": "ddp"}),
    "ddp, divided": (2, {"strategy": {"type": "ddp", "shard_optimizer": True}}),
    "fsdp": (2, {"strategy": "fsdp"}),
    "fsdp 4, other blocks": (
        4,
        {"strategy": "fsdp", "activation_checkpointing": True, "compile": {"backend": "eager"}},
    ),
    "tensor": (
        4,
        {
            "strategy": {
                "type": "tensor_parallel",
                "size": 2,
                "plan": {"blocks.*.up": "column", "blocks.*.down": "row"},
            }
        },
    ),
}
THEN = dict(zip(STRATEGIES, [*list(STRATEGIES)[1:], "single"], strict=True))
PARAMWISE: dict[str, Any] = {
    "layer_decay": 0.5,
    "norm_decay_mult": 0.0,
    "bias_lr_mult": 2.0,
    "rules": {"blocks.1.down": {"betas": (0.8, 0.9), "name": "down"}, "head": {"lr": 0.01}},
}
GROUPS = [
    ("head", 0.01, 0.1, (0.9, 0.999)),
    ("layer_0", 0.005, 0.1, (0.9, 0.999)),
    ("layer_0/bias", 0.01, 0.1, (0.9, 0.999)),
    ("layer_1", 0.01, 0.1, (0.9, 0.999)),
    ("layer_1/norm", 0.01, 0.0, (0.9, 0.999)),
    ("layer_1/norm_bias", 0.02, 0.0, (0.9, 0.999)),
    ("layer_1/bias", 0.02, 0.1, (0.9, 0.999)),
    ("layer_2", 0.02, 0.1, (0.9, 0.999)),
    ("layer_2/norm", 0.02, 0.0, (0.9, 0.999)),
    ("layer_2/norm_bias", 0.04, 0.0, (0.9, 0.999)),
    ("layer_2/bias", 0.04, 0.1, (0.9, 0.999)),
    ("layer_2/down", 0.02, 0.1, (0.8, 0.9)),
    ("layer_2/down/bias", 0.04, 0.1, (0.8, 0.9)),
]
MEMBERS: dict[str, list[str]] = {
    "head": ["head.weight", "head.bias"],
    "layer_0": ["stem.weight"],
    "layer_0/bias": ["stem.bias"],
    "layer_1": ["blocks.0.up.weight", "blocks.0.down.weight"],
    "layer_1/norm": ["blocks.0.norm.weight"],
    "layer_1/norm_bias": ["blocks.0.norm.bias"],
    "layer_1/bias": ["blocks.0.up.bias", "blocks.0.down.bias"],
    "layer_2": ["blocks.1.up.weight"],
    "layer_2/norm": ["blocks.1.norm.weight"],
    "layer_2/norm_bias": ["blocks.1.norm.bias"],
    "layer_2/bias": ["blocks.1.up.bias"],
    "layer_2/down": ["blocks.1.down.weight"],
    "layer_2/down/bias": ["blocks.1.down.bias"],
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = inputs + self.down(torch.tanh(self.up(self.norm(inputs))))
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.stem = nn.Linear(FEATURES, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.head = nn.Linear(WIDTH, CLASSES)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = self.stem(batch[0])
        for block in self.blocks:
            x = block(x)
        return cross_entropy(self.head(x), batch[1])


class Stop(Hook):
    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == STOP:
            runner.request("stop", agreed=True)


def run(work_dir: str, ways: dict[str, Any], *, resume: bool = False, stop: bool = False) -> dict[str, Any]:
    runner = Runner(
        {"type": Net},
        train_dataloader={"dataset": points(24), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"by_epoch": False, "max_iters": END},
        optimizer={"type": "AdamW", "lr": 0.04, "weight_decay": 0.1, "paramwise": PARAMWISE},
        param_scheduler={"type": "StepLR", "step_size": 1, "gamma": 0.5, "by_epoch": False},
        custom_hooks=[Stop()] if stop else [],
        work_dir=work_dir,
        loggers=(),
        resume=resume,
        randomness={"seed": 1},
        **ways,
    )
    runner.train()
    shared = runner.engine.saved.shared_state()
    (groups,) = [one["param_groups"] for one in shared["optimizers"].values()]
    found = {
        "model": {name: whole(value) for name, value in shared["model"].items()},
        "groups": [(g["name"], g["initial_lr"], g["weight_decay"], tuple(g["betas"])) for g in groups],
        "rates": [g["lr"] for g in groups],
        "members": {g["name"]: g["params"] for g in groups},
    }
    runner.close()
    return found


def whole(value: Any) -> Tensor:
    full: Tensor = (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
    return full


def plain() -> dict[str, Tensor]:
    model = Net()
    inputs, targets = points(24).tensors
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[one] for one in MEMBERS[name]], "lr": lr, "weight_decay": decay, "betas": betas}
            for name, lr, decay, betas in GROUPS
        ]
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for number in range(END):
        first = number * BATCH % 24
        model.train_step((inputs[first : first + BATCH], targets[first : first + BATCH])).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def truth() -> dict[str, Tensor]:
    return plain()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_are_the_same_under_each_strategy_and_go_on_under_another(
    strategy: str, truth: dict[str, Tensor], two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path
) -> None:
    def on(name: str, **options: Any) -> dict[str, Any]:
        size, ways = STRATEGIES[name]
        if size == 1:
            return run(str(tmp_path), ways, **options)
        found: dict[str, Any] = (two_ranks if size == 2 else four_ranks)(run, str(tmp_path), ways, **options)[
            0
        ]
        return found

    def check(found: dict[str, Any], updates: int) -> None:
        assert found["groups"] == GROUPS and found["members"] == MEMBERS
        assert found["rates"] == [lr * 0.5**updates for _, lr, _, _ in GROUPS]

    check(on(strategy, stop=True), STOP)
    found = on(THEN[strategy], resume=True)
    check(found, END)
    torch.testing.assert_close(found["model"], truth, rtol=1e-5, atol=1e-6)


def resumed_alike(work_dir: str, strategy: str) -> bool:
    """Whether a run that was stopped and goes on comes to the same, to the bit."""
    ways = {"strategy": strategy}
    expected = run(f"{work_dir}/whole", ways)
    run(f"{work_dir}/stopped", ways, stop=True)
    found = run(f"{work_dir}/stopped", ways, resume=True)
    same = all(torch.equal(found["model"][name], value) for name, value in expected["model"].items())
    return same and all(found[key] == expected[key] for key in ("groups", "rates", "members"))


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(two_ranks: Ranks, tmp_path: Path) -> None:
    assert resumed_alike(str(tmp_path / "single"), "single")
    for strategy in ("ddp", "fsdp"):
        assert two_ranks(resumed_alike, str(tmp_path / strategy), strategy) == [True, True]


class Turned(nn.Module):
    """The layers of `perceptron`, the last first."""

    def __init__(self) -> None:
        super().__init__()
        first, _, last = perceptron()
        self.add_module("2", last)
        self.add_module("0", first)


def test_options_of_a_group_go_on_with_its_parameters_in_whatever_order_they_are() -> None:
    spec = {"type": "Adam", "lr": 0.5, "paramwise": {"bias_lr_mult": 2.0}}

    def built(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        (made,) = optimizers.build({**spec, "lr": rate}, model).values()
        return made

    one, other = perceptron(), Turned()
    saved, loaded = built(one, 0.5), built(other, 0.25)
    for number, parameter in enumerate(one.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    saved.step()
    state = logical.optimizer_state(saved, logical.parameter_names(one))
    logical.load_optimizer_state(loaded, logical.parameter_names(other), state, "optimizer")
    assert [(g["name"], g["lr"]) for g in loaded.param_groups] == [("default", 0.5), ("bias", 1.0)]
    named = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        moment = loaded.state[named[name]]["exp_avg"]
        torch.testing.assert_close(moment, saved.state[parameter]["exp_avg"], rtol=0, atol=0)
