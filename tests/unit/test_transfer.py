"""Nested batches arrive whole, in kind, on the device, cast where asked."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from stratrun.accelerators.transfer import move_batch

# A device without storage: enough to see that a tensor was moved, on any machine.
META = torch.device("meta")
CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: Tensor
    y: Any


@dataclasses.dataclass(frozen=True)
class Sample:
    image: Tensor
    name: str
    derived: int = dataclasses.field(init=False, default=7)


class Encoding(UserDict[str, Any]):
    """Like BatchEncoding of transformers."""

    def to(self, device: torch.device) -> "Encoding":
        return Encoding({key: value.to(device) for key, value in self.items()})


class Graph:
    """Nothing but a method to move it."""

    device = CPU

    def to(self, device: torch.device) -> "Graph":
        moved = Graph()
        moved.device = device
        return moved


class Named(OrderedDict[str, Any]):
    origin = ""


def test_every_tensor_of_a_nested_batch_is_moved() -> None:
    batch: dict[str, Any] = {
        "x": torch.ones(2),
        "more": [torch.ones(1), (torch.ones(1), {"y": torch.ones(1)})],
    }
    moved = move_batch(batch, META)
    assert moved["x"].device == META
    assert moved["more"][0].device == META
    assert [type(part) for part in (moved, moved["more"], moved["more"][1])] == [dict, list, tuple]
    assert moved["more"][1][0].device == META
    assert moved["more"][1][1]["y"].device == META
    assert batch["x"].device == CPU


@pytest.mark.parametrize(
    "leaf", ["text", 3, 2.5, True, None, b"raw", object(), {1, 2}, range(3), int, Graph, Sample]
)
def test_what_is_no_tensor_comes_through_as_the_same_object(leaf: Any) -> None:
    assert move_batch({"leaf": leaf, "x": torch.ones(1)}, META)["leaf"] is leaf


def test_containers_keep_their_kind() -> None:
    pair = move_batch(Pair(torch.ones(1), "label"), META)
    assert type(pair) is Pair
    assert pair.x.device == META
    assert pair.y == "label"
    ordered = Named(x=torch.ones(1))
    ordered.origin = "here"
    moved = move_batch(ordered, META)
    assert type(moved) is Named
    assert moved.origin == "here"
    assert moved["x"].device == META
    assert ordered["x"].device == CPU
    with_default = move_batch(defaultdict(list, x=[torch.ones(1)]), META)
    assert with_default["unknown"] == []
    assert with_default["x"][0].device == META
    assert move_batch(MappingProxyType({"x": torch.ones(1)}), META)["x"].device == META


def test_frozen_data_classes_with_computed_fields_are_moved() -> None:
    sample = Sample(torch.ones(1), "a")
    moved = move_batch([sample], META)[0]
    assert type(moved) is Sample
    assert moved.image.device == META
    assert (moved.name, moved.derived) == ("a", 7)
    assert sample.image.device == CPU


@pytest.mark.parametrize("non_blocking", [False, True])
def test_objects_that_can_move_themselves_do(non_blocking: bool) -> None:
    encoding = move_batch(Encoding(ids=torch.ones(2)), META, non_blocking=non_blocking)
    assert type(encoding) is Encoding
    assert encoding["ids"].device == META
    assert move_batch([Graph()], META, non_blocking=non_blocking)[0].device == META
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    assert move_batch((packed,), META, non_blocking=non_blocking)[0].data.device == META


def test_only_floating_point_tensors_are_cast() -> None:
    batch = {
        "x": torch.ones(2),
        "ids": torch.ones(2, dtype=torch.int64),
        "mask": torch.ones(2, dtype=torch.bool),
    }
    moved = move_batch(batch, CPU, dtype=torch.bfloat16)
    assert [value.dtype for value in moved.values()] == [torch.bfloat16, torch.int64, torch.bool]


def test_tensor_subclasses_and_tensors_alone_are_moved() -> None:
    assert move_batch(torch.nn.Parameter(torch.ones(1)), META).device == META
    assert move_batch(torch.ones(1), META, dtype=torch.float64).dtype == torch.float64
