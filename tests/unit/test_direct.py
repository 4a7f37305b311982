"""Calls past torch's own wrappers do what those do, and leave out nothing that is in use."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from stratrun.engine import direct


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def loss_of(module: nn.Module) -> Tensor:
    return module(torch.arange(8.0).view(2, 4)).square().mean()


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop]
)
def test_weights_are_those_of_a_plain_loop_to_the_bit(kind: Any) -> None:
    ours, plain = model(), model()
    mine, theirs = kind(ours.parameters(), lr=0.1), kind(plain.parameters(), lr=0.1)
    step = direct.step_of(mine)
    for _ in range(5):
        direct.backward(loss_of(ours), torch.ones(()))
        step()
        mine.zero_grad()
        loss_of(plain).backward()
        theirs.step()
        theirs.zero_grad()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_seed_that_is_no_number_reaches_every_gradient() -> None:
    module = model()
    direct.backward(loss_of(module), torch.tensor(float("nan")))
    assert all(
        parameter.grad.isnan().all() for parameter in module.parameters() if parameter.grad is not None
    )
    assert module[0].weight.grad is not None  # type: ignore[union-attr,index]


def test_a_mode_that_hears_calls_of_torch_hears_the_backward_pass() -> None:
    heard: list[str] = []

    class Hears(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            heard.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    loss = loss_of(model())
    with Hears():
        direct.backward(loss, torch.ones(()))
    assert "backward" in heard


def with_gradients() -> Optimizer:
    module = model()
    loss_of(module).backward()
    return torch.optim.SGD(module.parameters(), lr=0.1)


def test_hooks_of_an_optimizer_are_called_when_they_come_before_or_after_the_first_step() -> None:
    optimizer, calls = with_gradients(), list[str]()
    step = direct.step_of(optimizer)
    step()
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    step()
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    step()
    assert calls == ["pre", "pre", "post"]


def test_hooks_of_all_optimizers_are_called() -> None:
    optimizer, calls = with_gradients(), list[str]()
    step = direct.step_of(optimizer)
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append("all"))
    try:
        step()
    finally:
        handle.remove()
    step()
    assert calls == ["all"]


def test_a_profiler_sees_the_section_of_the_update() -> None:
    step = direct.step_of(with_gradients())
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    assert "Optimizer.step#SGD.step" in {event.key for event in seen.key_averages()}


def test_a_schedule_does_not_think_that_no_update_was_made() -> None:
    optimizer = with_gradients()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    direct.step_of(optimizer)()
    schedule.step()  # warns, and so fails, if it has not seen one


def test_a_step_that_somebody_has_put_in_its_place_is_called() -> None:
    optimizer, calls = with_gradients(), list[str]()
    step = direct.step_of(optimizer)
    optimizer.step = lambda closure=None: calls.append("own")  # type: ignore[method-assign,assignment,misc]
    step()
    assert calls == ["own"]


def test_an_optimizer_that_is_none_of_torchs_kind_is_called_by_its_step() -> None:
    class Own:
        def __init__(self) -> None:
            self.calls = 0

        def step(self) -> None:
            self.calls += 1

    own: Any = Own()
    direct.step_of(own)()
    assert own.calls == 1
