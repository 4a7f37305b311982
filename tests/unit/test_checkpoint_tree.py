import json
from collections import Counter, OrderedDict, defaultdict, deque
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stratrun.checkpoint.skeleton import tensor_names, unflatten
from stratrun.checkpoint.tree import flatten
from stratrun.errors import CheckpointError
from tests.checkpoints import same


def round_trip(tree):
    skeleton, tensors = flatten(tree)
    return unflatten(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)


VALUES = [
    None,
    True,
    0,
    2**100,
    -0.0,
    0.1,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    "text",
    "",
    "\x00\ud800",
    b"\x00\xff",
    [],
    (),
    {},
    [1, [2, (3, {"a": (4,)})]],
    {0: "a", 1: "b", "1": "c", None: "d", 2.5: "f", (1, "x"): "g", float("inf"): "h"},
    {"$tensor": 1, "$x": 2},
    {"$float": "nan"},
    torch.Size([2, 3]),
    Counter({3: 2, 8: 1}),
    OrderedDict(b=1, a=2),
    deque([1, 2], maxlen=5),
    deque([(1,)]),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back_as_they_were(value):
    back = round_trip({"key": [value]})["key"][0]
    assert same(back, value)
    if isinstance(value, deque):
        assert back.maxlen == value.maxlen
    if isinstance(value, dict):
        assert list(back.items()) == list(value.items())
        assert [type(key) for key in back] == [type(key) for key in value]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.tensor(1.5),
        torch.empty(0, 4),
        torch.randn(3).bfloat16(),
        torch.tensor([True, False]),
        torch.randn(2, dtype=torch.complex64),
        torch.randn(2, 3, dtype=torch.complex128),
        torch.randn(2, 3, dtype=torch.complex128).conj(),
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.ones(2)),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)
def test_tensors_come_back_equal(tensor):
    assert same(round_trip([tensor])[0], tensor.detach().resolve_conj())


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.uint32).reshape(2, 3), np.array(2.5), np.zeros((0, 2)), np.arange(3, dtype=">i4")],
    ids=repr,
)
def test_arrays_come_back_as_arrays(array):
    back = round_trip({"a": array})["a"]
    assert isinstance(back, np.ndarray)
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_numbers_of_numpy_become_plain_numbers_of_the_same_value():
    back = round_trip([np.float64(0.1), np.float32(0.1), np.int64(7), np.bool_(True)])
    assert back == [0.1, float(np.float32(0.1)), 7, True]
    assert [type(value) for value in back] == [float, float, int, bool]


def test_a_tensor_that_occurs_twice_is_kept_once_and_comes_back_as_one():
    layer = nn.Linear(3, 3)
    state = {"encoder": layer.weight, "decoder": layer.weight.detach()}
    skeleton, tensors = flatten(state)
    assert list(tensors) == ["encoder"]
    back = unflatten(skeleton, tensors)
    assert back["encoder"] is back["decoder"]


def test_views_of_one_storage_that_differ_are_kept_apart():
    whole = torch.arange(4.0)
    square = whole.view(2, 2)
    back = round_trip(
        {"a": whole[:2], "b": whole[2:], "c": square, "d": square.t(), "e": whole.view(torch.int32)}
    )
    assert back["b"].tolist() == [2, 3]
    assert back["c"].tolist() == [[0, 1], [2, 3]]
    assert back["d"].tolist() == [[0, 2], [1, 3]]
    assert back["e"].dtype == torch.int32


def test_tensors_are_named_by_their_path_and_clashing_paths_stay_apart():
    skeleton, tensors = flatten(
        {"model": {"fc.weight": torch.ones(1)}, "a/b": torch.zeros(1), "a": {"b": torch.ones(2)}}
    )
    assert set(tensors) == {"model/fc.weight", "a/b", "a/b~2"}
    assert tensor_names(skeleton) == set(tensors)
    assert flatten([torch.ones(1)], prefix="rank-00001/")[1].keys() == {"rank-00001/0"}


def test_the_versions_that_modules_note_in_their_state_survive():
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    back = round_trip({"model": state})["model"]
    assert back._metadata == state._metadata
    assert type(back) is OrderedDict


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Path("x"), "PosixPath"),
        (Level.LOW, "save its value"),
        (defaultdict(list), "defaultdict.*save dict"),
        ({1, 2}, "set"),
        (lambda: 1, "function"),
        (object(), "object"),
        (torch.Generator(), "Generator"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (np.array([object()]), "ndarray"),
        ({object(): 1}, "key"),
        ({(1, Path("x")): 1}, "key"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_saved_is_refused_with_its_place(value, reason):
    with pytest.raises(CheckpointError, match=rf"hooks\.Ema\.1 .*{reason}"):
        flatten({"hooks": {"Ema": [0, value]}})


def test_a_state_that_contains_itself_is_refused():
    state = {}
    state["me"] = [state]
    with pytest.raises(CheckpointError, match="contain itself"):
        flatten(state)


@pytest.mark.parametrize(
    "skeleton",
    [
        {"$import": "os.system"},
        {"$tensor": "missing"},
        {"$tensor": ["x"]},
        {"$tensor": "a", "more": 1},
        {"$dict": [[["unhashable"], 1]]},
        {"$dict": 3},
        {"$size": ["x"]},
        {"$bytes": "&"},
        {"$module": [[1], [2]]},
        {"$numpy": 3},
        {"$deque": [[1], "x"]},
    ],
    ids=str,
)
def test_a_forged_skeleton_is_refused(skeleton):
    with pytest.raises(CheckpointError):
        unflatten({"x": [skeleton]}, {})
