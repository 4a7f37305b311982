"""The size of a batch, told from its shape."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stratrun.data import batch_size_of


@dataclass
class Record:
    name: str
    image: torch.Tensor


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ([torch.ones(4, 2), torch.ones(4)], 4),
        ({"name": ["a", "b"], "x": torch.ones(5)}, 5),
        ({"scale": torch.tensor(1.0), "x": (torch.ones(6), None)}, 6),
        (UserDict(x=torch.ones(2, 2)), 2),
        (Record("n", torch.ones(7, 1)), 7),
        (["a", "b", "c"], 3),
        ({"names": ["a", "b"], "n": 4}, 2),
        ([["a", "b", "c"], [1, 2, 3]], 3),
        ("text", None),
        ({"n": 4}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_first_tensor_tells_the_size_or_else_the_first_list(batch: Any, size: int | None) -> None:
    assert batch_size_of(batch) == size
