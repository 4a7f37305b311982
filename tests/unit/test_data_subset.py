"""Which samples a subset may be told to have."""

from typing import Any

import numpy
import pytest
import torch

from stratrun.data.views import Subset
from stratrun.errors import ConfigError
from tests.feeds import Numbers


@pytest.mark.parametrize(
    "indices", [range(1, 3), [1, 2], (1, -1), torch.tensor([1, 2]), numpy.array([1, 2]), numpy.array([1, -1])]
)
def test_samples_are_told_by_numbers_of_any_kind(indices: Any) -> None:
    assert [int(one) for one in Subset(Numbers(3), indices)] == [1, 2]


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        (
            torch.tensor([True, False, True]),
            "indices has True, as a mask has; give the numbers of the samples",
        ),
        (numpy.array([False, True, True]), "indices has False, as a mask has"),
        ([True, False, True], "indices has True, as a mask has"),
        ([1.5], r"indices has 1\.5, and no whole number"),
        ("12", "indices has '1', and no whole number"),
        (torch.zeros(2, 2, dtype=torch.int64), r"indices has \[0, 0\], and no whole number"),
    ],
)
def test_what_is_no_number_of_a_sample_is_refused(indices: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Subset(Numbers(3), indices)
