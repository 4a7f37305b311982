"""Optimizers of a spec update by one kernel where that is correct, and as torch does by itself elsewhere."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratrun import Runner
from stratrun.optim import optimizer as optimizers
from stratrun.strategies import logical

PLAIN_SGD = {"type": "SGD", "lr": 0.1}
MOMENTUM = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
ADAMW = {"type": "AdamW", "lr": 0.01}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))


def _batches(number: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 2, 6, 6, generator=generator), torch.randint(2, (4,), generator=generator))
        for _ in range(number)
    ]


def _is_fused(spec: Any, model: nn.Module) -> bool:
    (built,) = optimizers.build(spec, model).values()
    return bool(built.param_groups[0].get("fused"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (MOMENTUM, True),
        ({"type": "Adam", "lr": 0.1, "amsgrad": True, "maximize": True}, True),
        (ADAMW, True),
        ("AdamW", True),
        (torch.optim.Adam, True),
        ({"type": "Adagrad", "lr": 0.1}, True),
        (PLAIN_SGD, False),  # the kernel is no faster here
        ({**MOMENTUM, "dampening": 0.1}, False),
        ({**ADAMW, "fused": None}, False),
        ({**ADAMW, "fused": False}, False),
        ({**ADAMW, "foreach": True}, False),
        ({**ADAMW, "differentiable": True}, False),
        ({"type": "RMSprop", "lr": 0.1}, False),
        (torch.optim.AdamW, True),
        (lambda parameters: torch.optim.AdamW(parameters), False),
    ],
)
def test_one_kernel_updates_where_torch_has_one_and_the_user_said_nothing(spec: Any, expected: bool) -> None:
    assert _is_fused(spec, _model()) is expected


def test_a_class_of_the_users_own_is_built_as_it_is_written() -> None:
    class Own(torch.optim.AdamW):
        pass

    assert not _is_fused({"type": Own, "lr": 0.1}, _model())


def _with(parameter: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(parameter)
    return module


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(5, 3, sparse=True),
        _with(torch.randn(3, 4, dtype=torch.complex64)),
        _with(torch.randn(6, 8)[:, :4]),  # state is made without the gaps
        _with(torch.empty(3, 4, device="meta")),
        _with(torch.randn(3, 4, dtype=torch.bfloat16)),  # torch's kernel makes something else of momentum
    ],
    ids=["sparse", "complex", "gaps", "elsewhere", "bfloat16"],
)
def test_parameters_that_the_kernel_does_not_take_are_updated_as_torch_does(module: nn.Module) -> None:
    assert not _is_fused(MOMENTUM, module)
    assert _is_fused(MOMENTUM, _with(torch.randn(4, 6).t()))


@pytest.mark.parametrize("spec", [MOMENTUM, ADAMW], ids=["SGD", "AdamW"])
def test_a_run_comes_to_the_weights_of_a_plain_loop_and_tells_how(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    def loop(**flags: Any) -> list[Tensor]:
        model = _model()
        options = {name: value for name, value in spec.items() if name != "type"}
        optimizer = getattr(torch.optim, spec["type"])(model.parameters(), **options, **flags)
        for inputs, targets in _batches():
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    runner = Runner(
        _model(),
        work_dir=tmp_path,
        loss="cross_entropy",
        train_dataloader=_batches(),
        train_cfg={"max_epochs": 1},
        optimizer=spec,
        loggers=None,
    )
    runner.train()
    runner.close()
    ours = [p.detach() for p in runner.model.parameters()]
    torch.testing.assert_close(ours, loop(fused=True), rtol=0, atol=0)
    torch.testing.assert_close(ours, loop())
    assert f"optimizer: {spec['type']}, fused" in runner.reasons


def _updated(
    build: Callable[[nn.Module], torch.optim.Optimizer], between: Callable[[int, Any, nn.Module], None]
) -> list[Tensor]:
    model = _model()
    optimizer = build(model)
    for number, (inputs, targets) in enumerate(_batches()):
        between(number, optimizer, model)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def _ours(model: nn.Module) -> torch.optim.Optimizer:
    (built,) = optimizers.build(MOMENTUM, model).values()
    assert built.param_groups[0]["fused"]
    return built


def _bare(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_parameters_that_are_thawed_later_get_their_momentum_then() -> None:
    def thaw(number: int, optimizer: Any, model: nn.Module) -> None:
        next(model.children()).requires_grad_(number >= 3)

    torch.testing.assert_close(_updated(_ours, thaw), _updated(_bare, thaw))


def test_a_first_update_that_is_dropped_leaves_a_momentum_of_zero() -> None:
    weight = nn.Parameter(torch.ones(64))
    (optimizer,) = optimizers.build(MOMENTUM, _with(weight)).values()
    held: Any = optimizer
    held.found_inf = torch.ones(())
    own = optimizer.param_groups[0]["params"][0]
    own.grad = torch.full((64,), torch.inf)
    optimizer.step()
    assert torch.equal(own, torch.ones(64))
    assert torch.equal(optimizer.state[own]["momentum_buffer"], torch.zeros(64))
    held.found_inf.zero_()
    own.grad = torch.ones(64)
    optimizer.step()
    torch.testing.assert_close(own.detach(), torch.full((64,), 0.9))


@pytest.mark.parametrize("spec", [MOMENTUM, ADAMW], ids=["SGD", "AdamW"])
def test_state_from_a_file_is_laid_out_as_the_parameters_are(spec: dict[str, Any]) -> None:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        (built,) = optimizers.build(spec, model).values()
        return built

    def by_file(number: int, optimizer: Any, model: nn.Module) -> None:
        if number != 3:
            return
        names = logical.parameter_names(model)
        state = copy.deepcopy(logical.optimizer_state(optimizer, names))
        for values in state["state"].values():
            for name, value in values.items():
                values[name] = value.contiguous()
        logical.load_optimizer_state(optimizer, names, state, "optimizer")

    nothing = _updated(build, lambda *_: None)
    assert nothing[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(_updated(build, by_file), nothing, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [MOMENTUM, ADAMW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("way", ["other", "expanded"])
def test_gradients_that_a_loop_sets_count_by_place_however_they_lie(
    spec: dict[str, Any], last: bool, way: str
) -> None:
    """Torch's kernels for the CPU take them as they come in memory, and read beyond an expanded one."""
    order = torch.channels_last if last else torch.contiguous_format
    other = torch.contiguous_format if last else torch.channels_last

    def gradient(parameter: Tensor, number: int) -> Tensor:
        if way == "expanded":
            return torch.tensor(0.1 * number).expand_as(parameter)
        made = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) * number
        return made.contiguous(memory_format=other) if made.ndim == 4 else made

    def updated(**flags: Any) -> list[Tensor]:
        model = _model().to(memory_format=order)  # type: ignore[call-overload]
        (optimizer,) = optimizers.build({**spec, **flags}, model).values()
        for number in (1, 2, 3):
            for parameter in model.parameters():
                parameter.grad = gradient(parameter, number)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(updated(), updated(fused=False))
