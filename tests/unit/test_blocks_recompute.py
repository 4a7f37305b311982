"""Activation checkpointing: the same numbers with less kept for the backward pass."""

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stratrun.blocks import BlockTransforms
from stratrun.errors import ConfigError

WIDTH = 16


class Power(nn.Module):
    """Changes a buffer in a forward pass, and reads it there."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return x * self.seen


class Block(nn.Module):
    """All that makes it hard to compute something twice: random numbers of three kinds, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.power = nn.BatchNorm1d(WIDTH), Power()
        self.layer, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        y = self.drop(torch.tanh(self.layer(self.power(self.norm(x)))))
        return x + y * random.random() * float(np.random.rand()) + shift


class Net(nn.Module):
    """Blocks in a list, with a keyword each."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, shift=0.1)
        return x


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def steps(model: nn.Module, count: int = 3) -> dict[str, Tensor]:
    """Weights and buffers after updates, with what follows in the random streams."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(count):
        model(torch.randn(8, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
    return {**{name: value.clone() for name, value in model.state_dict().items()}, "after": after}


def recomputing(spec: Any = True) -> Net:
    model = net()
    BlockTransforms(activation_checkpointing=spec)(model)
    return model


ROWS = 256
INPUT = ROWS * WIDTH * 4


def kept(model: nn.Module) -> int:
    """Bytes that are there after a forward pass and were not before: what the backward pass is to need."""
    model(torch.randn(ROWS, WIDTH))
    inputs = torch.randn(ROWS, WIDTH)
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        outputs = model(inputs)
    assert outputs.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.events())


def test_training_is_the_same_to_the_bit_whatever_a_block_draws_and_writes() -> None:
    truth = steps(net())
    for spec in (True, "Block", {"blocks": "blocks.*", "every": 2}):
        found = steps(recomputing(spec))
        assert found.keys() == truth.keys()
        for name, value in truth.items():
            assert torch.equal(found[name], value), (spec, name)


def test_a_recomputed_block_keeps_nothing_but_what_it_was_called_with() -> None:
    # The first block's input was there before, the model's output is not an input; beside them each has
    # the state of the random numbers, and small change.
    small = len(torch.get_rng_state()) + 256
    plain, each, other = kept(net()), kept(recomputing()), kept(recomputing({"every": 2}))
    assert 4 * INPUT <= each <= 4 * (INPUT + small)
    assert plain >= 4 * 4 * INPUT
    assert abs(other - (plain + each) / 2) <= 4 * small


def test_names_stay_and_copies_stand_alone() -> None:
    model = recomputing()
    assert model.state_dict().keys() == net().state_dict().keys()
    assert [type(block) for block in model.blocks] == [Block] * 4
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        truth, found = steps(net()), steps(made)
        assert all(torch.equal(found[name], truth[name]) for name in truth)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_another_run_begins_with_the_forwards_of_the_classes() -> None:
    model = recomputing()
    BlockTransforms(activation_checkpointing="blocks.1")(model)
    assert [list(vars(block)).count("forward") for block in model.blocks] == [0, 1, 0, 0]
    BlockTransforms()(model)
    assert not any("forward" in vars(block) for block in model.blocks)


def test_a_forward_that_lies_on_the_block_itself_is_the_one_that_runs() -> None:
    model = net()
    own = model.blocks[0].forward = lambda x, shift: x * 2
    BlockTransforms(activation_checkpointing=True)(model)
    assert torch.equal(model.blocks[0](torch.ones(2, WIDTH), shift=0.0), torch.full((2, WIDTH), 2.0))
    BlockTransforms()(model)
    assert model.blocks[0].forward is own


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "activation_checkpointing=3 says of no blocks which"),
        ({"block": "x"}, "activation_checkpointing: 'block' is not known; did you mean 'blocks'?"),
        ({"every": 0}, "every=0 must be a whole number"),
        ({"every": True}, "every=True must be"),
        ({"blocks": False}, "chooses nothing to recompute"),
        ({"blocks": 7}, "activation_checkpointing: blocks=7 says"),
        ([], "is an empty list"),
    ],
)
def test_what_could_be_no_choice_is_refused_before_there_is_a_model(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BlockTransforms(activation_checkpointing=given)


def test_a_model_without_what_is_to_be_recomputed_is_refused() -> None:
    transforms = BlockTransforms(activation_checkpointing=True)
    with pytest.raises(ConfigError, match="no part of Linear repeats in a list; say which"):
        transforms(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="blocks='Blok' is no part of Net; did you mean 'Block'"):
        recomputing("Blok")
