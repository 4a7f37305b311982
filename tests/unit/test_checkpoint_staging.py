"""Copies in host memory: exact, apart from the originals, and in the same place every time."""

import threading

import pytest
import torch

from stratrun.checkpoint import Staging
from tests.checkpoints import odd_tensors, same


def test_copies_have_every_bit_and_are_dense():
    live = odd_tensors()
    staged = Staging().take(live)
    assert list(staged) == list(live)
    for name, tensor in live.items():
        assert same(staged[name], tensor.detach().resolve_conj().resolve_neg()), name
        assert staged[name].is_contiguous()
        assert not staged[name].requires_grad
        assert not staged[name].is_conj()


def test_what_happens_to_the_originals_does_not_reach_the_copies():
    live = {"w": torch.ones(1000), "n": torch.tensor(3)}
    staging = Staging()
    staged = staging.take(live)
    staging.wait()
    live["w"].zero_()
    live["n"] += 1
    assert staged["w"].eq(1).all()
    assert staged["n"] == 3


def test_memory_is_taken_once():
    staging = Staging()
    live = {"a": torch.randn(300), "b": torch.randn(7, 9)}
    first = {name: copy.data_ptr() for name, copy in staging.take(live).items()}
    live["a"].add_(1)
    again = staging.take(live)
    assert {name: copy.data_ptr() for name, copy in again.items()} == first
    assert torch.equal(again["a"], live["a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda live: live | {"c": torch.randn(5000)},
        lambda live: {"a": live["a"]},
        lambda live: {"a": live["a"].double(), "b": live["b"]},
        lambda live: {"a": live["a"][:100], "b": live["b"].t()},
    ],
    ids=["one more", "one less", "another dtype", "other shapes"],
)
def test_another_state_is_copied_as_well(change):
    staging = Staging()
    live = {"a": torch.randn(300), "b": torch.randn(7, 9)}
    staging.take(live)
    changed = change(live)
    for _ in range(2):
        staged = staging.take(changed)
        assert list(staged) == list(changed)
        assert all(torch.equal(staged[name], changed[name]) for name in changed)


def test_reserved_memory_is_what_a_copy_goes_to():
    live = {"a": torch.randn(300), "b": torch.randn(7, 9), "e": torch.empty(0)}
    staging = Staging()
    thread = threading.Thread(target=staging.reserve, args=(sum(tensor.nbytes for tensor in live.values()),))
    thread.start()
    thread.join()
    place = staging._plain._memory.data_ptr()
    staged = staging.take(live)
    assert staged["a"].data_ptr() == place
    assert staging._plain._memory.data_ptr() == place


def test_memory_that_was_reserved_is_enough_for_some_small_tensors_more():
    staging = Staging()
    live = {"counted": torch.zeros(2 << 20, dtype=torch.uint8)}
    staging.reserve(live["counted"].nbytes)
    before = staging._plain._memory.data_ptr()
    staging.take({**live, **{f"step {i}": torch.tensor(float(i)) for i in range(100)}})
    assert staging._plain._memory.data_ptr() == before
