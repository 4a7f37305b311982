"""What counts as a wait, and whom it is blamed on."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stratrun.testing import count_syncs

VALUES = torch.arange(4.0)
WAITS: dict[str, Callable[[], Any]] = {
    "item": VALUES.sum().item,
    "tolist": VALUES.tolist,
    "numpy": VALUES.numpy,
    "cpu": VALUES.cpu,
    "repr": lambda: f"{VALUES}",
    "nonzero": lambda: torch.where(VALUES > 1),
    "index": lambda: VALUES[VALUES > 1],
    "masked_select": lambda: VALUES.masked_select(VALUES > 1),
    "_unique2": VALUES.unique,
    "equal": lambda: torch.equal(VALUES, VALUES),
    "allclose": lambda: torch.allclose(VALUES, VALUES),
    "repeat_interleave": lambda: VALUES.repeat_interleave(VALUES.long()),
    "synchronize": lambda: torch.cpu.synchronize(),
}
READS: list[Callable[[Tensor], Any]] = [float, bool, int, "{:.1f}".format, lambda x: 1 if x > 0 else 2]
FREE: dict[str, Callable[[], Any]] = {
    "sums": lambda: VALUES.sum() / 2 + VALUES.detach().clone().mul_(3).norm(),
    "indexing by numbers": lambda: VALUES[torch.tensor([0, 2])],
    "setting one value by a mask": lambda: VALUES.clone().masked_fill_(VALUES > 1, 0.0),
    "repeating so often in all": lambda: VALUES.repeat_interleave(VALUES.long(), output_size=6),
    "shapes": lambda: (VALUES.shape, VALUES.dtype, VALUES.device, len(VALUES)),
    "loading": lambda: list(DataLoader(range(8), batch_size=2, shuffle=True)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", WAITS)
def test_what_waits_is_counted_once_under_its_name(kind: str) -> None:
    with count_syncs() as found:
        WAITS[kind]()
    assert found.kinds == {kind: 1}


def test_every_way_to_read_a_number_is_an_item() -> None:
    with count_syncs() as found:
        for read in READS:
            read(VALUES.sum())
    assert found.kinds == {"item": len(READS)}


@pytest.mark.parametrize("kind", FREE)
def test_what_does_not_wait_is_not_counted(kind: str) -> None:
    with count_syncs() as found:
        FREE[kind]()
    assert len(found) == 0, found


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_a_step_with_an_optimizer_of_torch_does_not_wait(kind: str) -> None:
    model = nn.Linear(4, 2)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    with count_syncs() as found:
        model(VALUES).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert len(found) == 0, found


def test_a_wait_in_a_backward_pass_is_counted() -> None:
    inputs = VALUES.clone().requires_grad_()
    inputs.register_hook(lambda gradient: print(gradient.sum().item()))
    with count_syncs() as found:
        inputs.sum().backward()
    assert found.kinds == {"item": 1}


def test_the_line_that_waits_is_told_and_not_one_of_torch() -> None:
    with count_syncs() as found:
        numpy.asarray(VALUES)
        torch.testing.assert_close(VALUES, VALUES)
    assert len(found) > 1
    assert {sync.where.rpartition(":")[0] for sync in found.syncs} == {__file__}
    assert f"1 x numpy at {__file__}" in str(found)


def test_waits_of_other_threads_and_outside_are_not_counted() -> None:
    watch = count_syncs()
    VALUES.sum().item()
    with watch:
        for work in (VALUES.sum().item, torch.cpu.synchronize):
            thread = Thread(target=work)
            thread.start()
            thread.join()
    assert len(watch) == 0
    with watch:
        VALUES.sum().item()
    assert len(watch) == 1


def test_synchronize_is_itself_again_afterwards() -> None:
    before = torch.cpu.synchronize, torch.accelerator.synchronize, torch.cuda.Event.synchronize
    with count_syncs(), count_syncs():
        assert torch.cpu.synchronize is not before[0]
    assert (torch.cpu.synchronize, torch.accelerator.synchronize, torch.cuda.Event.synchronize) == before
